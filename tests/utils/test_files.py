"""CSV files that spreadsheets open and that come back as they were; folders that two processes write at once."""
import csv
import os

import pytest

from hdkd_timm.data.samples import read_csv
from hdkd_timm.utils.files import new_folder, raw_cell, read_rows, safe_cell, with_free_name, write_rows

FORMULAS = ["=cmd|' /C calc'!A0", '+1+1', '-2+3', '@SUM(A1)', '\t=1', '\r=1', '\n=1', '＝1+1', '-', '+ve', '-ve', '=']
OTHERS = ['a', "'", "''", "'a'", "it's", '', ' =1', 'a=b', '/data/=x.png', '-1', '+0.5', '-1e-5', '-inf', "'-1", '膠']


@pytest.mark.parametrize('text', [*FORMULAS, *OTHERS, *(f"'{text}" for text in FORMULAS), "'''=a"])
def test_there_and_back(text):
    cell = safe_cell(text)
    assert raw_cell(cell) == text
    assert cell[:1] not in '=+-@\t\r\n＝' or not cell or cell == text in OTHERS
    assert (cell != text) == (text.lstrip("'") in [*FORMULAS, '=a'])


def test_numbers_stay():
    assert [safe_cell(value) for value in (-1, -0.5, None, True)] == [-1, -0.5, None, True]


def test_rows_there_and_back(tmp_path):
    names = [*FORMULAS, *OTHERS]
    rows = [{'path': name, '=column': name, 'value': -0.5} for name in names]
    write_rows(rows, tmp_path / 'a.csv')
    with (tmp_path / 'a.csv').open(newline='', encoding='utf-8') as file:
        cells = list(csv.reader(file))
    assert cells[0] == ['path', "'=column", 'value']
    assert cells[1] == ["'=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0", '-0.5']  # as a spreadsheet gets it
    assert read_rows(tmp_path / 'a.csv') == [dict(row, value='-0.5') for row in rows]


def test_data_csv_takes_what_was_written(tmp_path):
    """Files and classes of such names are found again; a table of one's own may name them as they are."""
    rows = []
    for name in ('=a.png', "'=b.png", '-c.png', '@d.png'):
        (tmp_path / name).write_bytes(b'')
        rows.append(dict(path=name, label=f'={len(rows) % 2}'))
    write_rows(rows, tmp_path / 'ours.csv')
    (tmp_path / 'own.csv').write_text('path,label\n=a.png,=0\n-c.png,=0\n@d.png,=1\n')
    for table, number in (('ours.csv', 4), ('own.csv', 3)):
        samples, classes = read_csv(tmp_path / table)
        assert classes == ['=0', '=1']
        names = samples['train'].filenames()
        assert len(names) == number
        assert all((tmp_path / name).exists() for name in names)


@pytest.mark.parametrize(('text', 'message'), [
    ('a,b\n1,2\n3\n', r"a\.csv' is damaged \(line 3: 1 cells, expected 2\)"),
    ('a,b\n1,2,3\n', 'line 2: 3 cells, expected 2'),
    ('a,a\n1,2\n', "two columns are named 'a'"),
    ('a,b\n"1,2\n', 'unexpected end of data'),
])
def test_damaged_rows(text, message, tmp_path):
    (tmp_path / 'a.csv').write_text(text)
    with pytest.raises(ValueError, match=message):
        read_rows(tmp_path / 'a.csv')


def test_folder_that_another_process_wrote_meanwhile(tmp_path):
    with pytest.raises(FileExistsError, match="a' exists already: choose another"), new_folder(tmp_path / 'a') as ours:
        (ours / 'ours').touch()
        (tmp_path / 'a').mkdir()
        (tmp_path / 'a' / 'theirs').touch()
    assert [path.name for path in tmp_path.rglob('*')] == ['a', 'theirs']


def test_first_name_that_is_free(tmp_path):
    def create(path):
        path.mkdir()
        return path.name

    assert [with_free_name(tmp_path / 'a.b', create) for _ in range(3)] == ['a.b', 'a.b-2', 'a.b-3']


def test_no_name_helps(tmp_path):
    """An output folder that is a link to nowhere, as to a disk that is not mounted."""
    os.symlink(tmp_path / 'gone', tmp_path / 'runs')
    with pytest.raises(FileExistsError, match='runs'):
        with_free_name(tmp_path / 'runs' / 'a', lambda path: path.mkdir(parents=True, exist_ok=True))
