"""Files and folders that are written whole or not at all, and checksums that tell whether they are still as written.

`SHA256SUMS` beside the files is what `sha256sum -c SHA256SUMS` reads. While a file is being replaced it lists the
digests of both, the old and the new one: a process that is killed at any moment leaves a file that is listed.
"""
import csv
import errno
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Sequence, TypeVar, Union

PathLike = Union[str, Path]
T = TypeVar('T')

# how text is written and read; names of files that are no UTF-8 come back as they were
TEXT = dict(newline='', encoding='utf-8', errors='surrogateescape')
SUMS = 'SHA256SUMS'
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # Python does not name the file in these
TAKEN_ERRORS = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)  # of a folder that is renamed to what is there

Sums = Dict[str, List[str]]  # file name -> digests that it may have


def _sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, in case the power fails."""
    with suppress(OSError):  # not every system opens folders
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _user_mode(mode: int) -> int:
    """A file mode without what the user's umask forbids."""
    umask = os.umask(0)
    os.umask(umask)
    return mode & ~umask


# beginnings of a cell that spreadsheets compute, also after quotes: OWASP's list, "CSV Injection", and their wide forms
FORMULA = re.compile("'*[=+\\-@\\t\\r\\n\uff1d\uff0b\uff0d\uff20]")


@contextmanager
def atomic_write(path: PathLike, mode: str = 'w', summed: bool = False) -> Iterator[Any]:
    """An open file that takes the place of `path` when all is written, and leaves it alone after an error.

    Args:
        path: File to write.
        mode: 'w' or 'wb'.
        summed: Keep its digest in SHA256SUMS beside it.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, mode, **({} if 'b' in mode else TEXT)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if summed:
            _replace_summed(temporary, path)
        else:
            os.replace(temporary, path)
    except BaseException as e:
        with suppress(FileNotFoundError):
            temporary.unlink()
        if isinstance(e, OSError) and e.errno in DISK_ERRORS and e.filename is None:
            raise OSError(e.errno, os.strerror(e.errno), str(path)) from e
        raise


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(2 ** 20):
            digest.update(block)
    return digest.hexdigest()


def _read_sums(folder: Path) -> Sums:
    """The digests of SHA256SUMS, none where there is no such file; lines of another form are passed over."""
    sums: Sums = {}
    if (folder / SUMS).is_file():
        with open(folder / SUMS, **TEXT) as file:
            for digest, name in re.findall(r'^([0-9a-f]{64}) [ *](.+)$', file.read(), re.MULTILINE):
                sums.setdefault(name, []).append(digest)
    return sums


def _write_sums(folder: Path, sums: Sums) -> None:
    with atomic_write(folder / SUMS) as file:
        file.writelines(f'{digest}  {name}\n' for name in sorted(sums) for digest in dict.fromkeys(sums[name]))
    _sync_folder(folder)


def _replace_summed(temporary: Path, path: Path) -> None:
    """Rename a file to its place, whose digest SHA256SUMS lists before and after, that of the old one before only."""
    sums, new = _read_sums(path.parent), _digest(temporary)
    before = sums.get(path.name, [])
    if path.exists() and not before:
        before = [_digest(path)]
    _write_sums(path.parent, {**sums, path.name: [*before, new]})
    os.replace(temporary, path)
    _sync_folder(path.parent)
    _write_sums(path.parent, {**sums, path.name: [new]})


def add_sums(folder: PathLike, *names: str) -> None:
    """List files of a folder in its SHA256SUMS, as they are now; those that are not there are left out."""
    folder = Path(folder)
    sums = {**_read_sums(folder), **{name: [_digest(folder / name)] for name in names if (folder / name).is_file()}}
    if sums:
        _write_sums(folder, sums)


def check_sums(folder: PathLike, *names: str) -> List[str]:
    """Are the files of a folder as they were written, as far as its SHA256SUMS lists them?

    Args:
        folder: The folder. One without SHA256SUMS passes: it is of an earlier version, or of other software.
        names: Files to look at; none for all that are listed and there.

    Returns:
        Those that are listed and there.

    Raises:
        ValueError: if one is not; it is named.
    """
    folder = Path(folder)
    sums = _read_sums(folder)
    checked = [name for name in names or sums if name in sums and (folder / name).is_file()]
    for name in checked:
        path = folder / name
        if _digest(path) not in sums[name]:
            raise ValueError(
                f"'{path}' is damaged, or was edited: it is not as it was written (its sha256 is not the one in"
                f" '{folder / SUMS}'). Restore it from a copy; if you edited it on purpose, delete its line there.")
    return checked


@contextmanager
def new_folder(folder: PathLike) -> Iterator[Path]:
    """A temporary folder beside `folder`, renamed to it at the end or removed on an error.

    Raises:
        FileExistsError: if `folder` exists and is not empty.
    """
    folder = Path(folder)
    exists = FileExistsError(f"'{folder}' exists already: choose another folder, nothing is overwritten.")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise exists
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f'.{folder.name}-', dir=folder.parent))
    try:
        yield temporary
        for path in (temporary, *temporary.rglob('*')):  # mkdtemp's and safetensors' are for their owner alone
            if not path.is_symlink():
                path.chmod(_user_mode(0o777 if path.is_dir() else 0o666))
        try:
            os.replace(temporary, folder)
        except OSError as e:
            if e.errno in TAKEN_ERRORS:  # by another process, meanwhile
                raise exists from e
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def with_free_name(path: PathLike, create: Callable[[Path], T]) -> T:
    """Call `create` with `path` or, if that is taken, with NAME-2, NAME-3, ... until one is free; return its result.

    `create` must raise FileExistsError if the name is taken: two processes may try the same one at the same moment.
    """
    path = Path(path)
    for i in itertools.count(1):
        try:
            return create(path if i == 1 else path.with_name(f'{path.name}-{i}'))
        except FileExistsError:
            if not path.parent.is_dir():  # no other name helps, the parent is in the way: a link to nowhere
                raise


def _is_formula(text: str) -> bool:
    """Would a spreadsheet compute a cell with this text, once the quotes before it are taken away?"""
    if FORMULA.match(text) is None:
        return False
    try:
        float(text.lstrip("'"))  # -0.5 is a number and stays one
    except ValueError:
        return True
    return False


def safe_cell(value: Any) -> Any:
    """A value of a CSV file so that no spreadsheet takes its text for a formula (=, +, -, @, a tab or a new line at
    its beginning): with a single quote before it, which `raw_cell` takes away. Numbers stay as they are.

    A text that begins so after quotes of its own gets one more, so that each text comes back as it was.
    """
    return f"'{value}" if isinstance(value, str) and _is_formula(value) else value


def raw_cell(value: Any) -> Any:
    """What `safe_cell` was given."""
    return value[1:] if isinstance(value, str) and value.startswith("'") and _is_formula(value) else value


def iterate_rows(path: PathLike) -> Iterator[Dict[str, str]]:
    """The rows of a CSV file that `write_rows` wrote, one after the other.

    Raises:
        OSError: if it cannot be read.
        ValueError: if a row has more or fewer cells than the first line, or two columns have one name.
    """
    with open(path, **TEXT) as file:
        lines = csv.reader(file, strict=True)
        try:
            columns = [raw_cell(name) for name in next(lines, [])]
            if len(set(columns)) < len(columns):
                raise ValueError(f"two columns are named '{max(columns, key=columns.count)}'")
            for line in lines:
                if len(line) != len(columns):
                    raise ValueError(f'line {lines.line_num}: {len(line)} cells, expected {len(columns)}')
                yield dict(zip(columns, map(raw_cell, line)))
        except (csv.Error, ValueError) as e:
            raise ValueError(f"'{path}' is damaged ({e}).") from e


def read_rows(path: PathLike) -> List[Dict[str, str]]:
    """The rows of a CSV file that `write_rows` wrote; see `iterate_rows`."""
    return list(iterate_rows(path))


def write_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], path: PathLike, summed: bool = False) -> None:
    """Write a CSV file of rows as they come, a cell a column: of a generator, none is kept; see `atomic_write`.

    Its cells are those of `safe_cell`, so that it can be opened in a spreadsheet; `read_rows` gives back what was
    written.
    """
    with atomic_write(path, summed=summed) as file:
        writer = csv.writer(file)
        writer.writerow(map(safe_cell, columns))
        writer.writerows(map(safe_cell, row) for row in rows)


def write_rows(
        rows: List[Dict[str, Any]],
        path: PathLike,
        columns: Sequence[str] = (),
        summed: bool = False,
) -> None:
    """Write a CSV file with these columns, and those of all rows, see `write_table`."""
    columns = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    write_table(columns, ([row.get(name, '') for name in columns] for row in rows), path, summed)


def write_json(values: Dict[str, Any], path: PathLike, summed: bool = False) -> None:
    """Write a JSON file, see `atomic_write`. JSON has no NaN: what is undefined is null."""
    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items()}
        if isinstance(value, list):
            return [clean(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    with atomic_write(path, summed=summed) as file:
        file.write(json.dumps(clean(values), indent=2, allow_nan=False) + '\n')
