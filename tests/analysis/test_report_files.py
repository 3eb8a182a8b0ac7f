"""A report is replaced as a whole, and nothing else is."""

from pathlib import Path

import pytest

from hdkd_timm.analysis.report_files import GENERATOR, check_destination, replace_report


def write(out, content):
    with replace_report(out) as temporary:
        (temporary / 'report' / 'classes.png').write_text(content)
        (temporary / 'report.html').write_text(f'{GENERATOR}{content}')


def read(out):
    """Contents of page and pictures; there must be nothing else."""
    assert sorted(path.name for path in out.iterdir()) == ['report', 'report.html']
    return [(out / 'report.html').read_text(), *(path.read_text() for path in (out / 'report').iterdir())]


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError])
@pytest.mark.parametrize('number', range(4))
def test_interrupted_at_any_step(error, number, tmp_path, monkeypatch):
    """Page and pictures are both old, or both new."""
    write(tmp_path / 'out', 'old')
    calls = []

    def count(function):
        def wrapped(*args):
            calls.append(args)
            if len(calls) == number + 1:
                raise error('stop')
            return function(*args)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(Path, 'rename', count(Path.rename))
        patch.setattr(Path, 'replace', count(Path.replace))
        if number < 3:
            with pytest.raises(error):
                write(tmp_path / 'out', 'new')
        else:
            write(tmp_path / 'out', 'new')
    expected = 'new' if number == 3 else 'old'
    assert read(tmp_path / 'out') == [f'{GENERATOR}{expected}', expected]


def test_an_error_before_the_page_is_complete(tmp_path):
    write(tmp_path / 'out', 'old')
    with pytest.raises(KeyboardInterrupt), replace_report(tmp_path / 'out') as temporary:
        (temporary / 'report' / 'classes.png').write_text('new')
        raise KeyboardInterrupt
    assert read(tmp_path / 'out') == [f'{GENERATOR}old', 'old']
    with pytest.raises(OSError, match='full'), replace_report(tmp_path / 'a' / 'b'):
        raise OSError('full')
    assert not (tmp_path / 'a').exists()


@pytest.mark.parametrize(
    ('file', 'message'),
    [
        ('out', "out' is not a directory"),
        ('out/report.html', "report.html' was not written by hdkd_timm"),
        ('out/report', "report' is not a picture of a report"),
        ('out/report/mine.png', "mine.png' is not a picture of a"),
    ],
)
def test_other_files_are_not_replaced(file, message, tmp_path):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text('mine')
    with pytest.raises(FileExistsError, match=message):
        check_destination(tmp_path / 'out')


def test_a_report_may_be_replaced(tmp_path):
    check_destination(tmp_path / 'out')
    write(tmp_path / 'out', 'old')
    for name in ('curves.png', '1-student_alone-roc-pr.png', '2-student-mistake-07.png', '3-classes.png'):
        (tmp_path / 'out' / 'report' / name).touch()
    check_destination(tmp_path / 'out')
