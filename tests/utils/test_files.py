"""Files and folders that are there whole or not at all, with their checksums."""

import os
import subprocess

import pytest

from hdkd_timm.utils.csv_files import write_rows
from hdkd_timm.utils.files import SUMS, add_sums, atomic_write, check_sums, new_folder, with_free_name, write_json


def content(folder):
    return sorted(path.name for path in folder.iterdir())


def test_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / 'file.txt'
    with atomic_write(path) as file:
        file.write('first ä\n')
        file.flush()
        assert not path.exists()  # nobody sees half a file
    assert path.read_bytes() == 'first ä\n'.encode()
    with atomic_write(str(path), 'wb') as file:
        file.write(b'\x00\n')
    assert path.read_bytes() == b'\x00\n'
    assert content(tmp_path) == ['file.txt']


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_old_file_survives_an_error(tmp_path, error):
    path = tmp_path / 'file.txt'
    path.write_text('old')

    def fail(path):
        with atomic_write(path) as file:
            file.write('half of the new')
            raise error

    for name in ('file.txt', 'other.txt'):
        with pytest.raises(error):
            fail(tmp_path / name)
    assert path.read_text() == 'old'
    assert content(tmp_path) == ['file.txt']


def test_folder_that_another_process_wrote_meanwhile(tmp_path):
    with pytest.raises(FileExistsError, match="a' already exists: choose another"), new_folder(tmp_path / 'a') as ours:
        (ours / 'ours').touch()
        (tmp_path / 'a').mkdir()
        (tmp_path / 'a' / 'theirs').touch()
    assert [path.name for path in tmp_path.rglob('*')] == ['a', 'theirs']


def test_first_name_that_is_free(tmp_path):
    def create(path):
        path.mkdir()
        return path.name

    assert [with_free_name(tmp_path / 'a.b', create) for _ in range(3)] == ['a.b', 'a.b-2', 'a.b-3']


def test_no_other_name_helps(tmp_path):
    """An output folder that is a link to nowhere, as to a disk that is not mounted."""
    os.symlink(tmp_path / 'gone', tmp_path / 'runs')
    with pytest.raises(FileExistsError, match='runs'):
        with_free_name(tmp_path / 'runs' / 'a', lambda path: path.mkdir(parents=True, exist_ok=True))


def summed(folder):
    """Does `sha256sum -c` find all files as they were written?"""
    return subprocess.run(['sha256sum', '-c', SUMS], cwd=folder, capture_output=True, check=False).returncode == 0


def test_checksums_are_those_of_sha256sum(tmp_path):
    for text in ('first', 'second'):
        write_json({'text': text}, tmp_path / 'a.json', summed=True)
        write_rows([{'text': text}], tmp_path / 'b.csv', summed=True)
        assert summed(tmp_path)
        assert len((tmp_path / SUMS).read_text().splitlines()) == 2
        check_sums(tmp_path)
    (tmp_path / 'b.csv').write_text('text\nthird\n')
    assert not summed(tmp_path)
    check_sums(tmp_path, 'a.json')
    with pytest.raises(ValueError, match=r"b\.csv' is damaged, or was edited: .*Restore it .* delete its line there"):
        check_sums(tmp_path)
    add_sums(tmp_path, 'b.csv', 'not there')
    check_sums(tmp_path)
    (tmp_path / 'a.json').unlink()  # not this module's to miss
    check_sums(tmp_path)
    (tmp_path / SUMS).unlink()
    check_sums(tmp_path)
