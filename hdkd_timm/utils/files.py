"""Files and directories that are written completely or not at all, and checksums that detect later damage.

`SHA256SUMS` beside the files can be checked with `sha256sum -c SHA256SUMS`. While a file is being replaced it lists the
digests of both the old and the new one, so a process killed at any moment leaves a file that matches its checksum.
"""

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
from typing import Any, Callable, Dict, Iterator, List, TypeVar, Union

PathLike = Union[str, Path]
T = TypeVar('T')

# how text is read and written; file names that are not UTF-8 survive the round trip
TEXT = dict(newline='', encoding='utf-8', errors='surrogateescape')
SUMS = 'SHA256SUMS'
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # Python does not name the file in these
TAKEN_ERRORS = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)  # of a directory renamed to an existing name

Sums = Dict[str, List[str]]  # file name -> digests that it may have


# -- files -------------------------------------------------------------------------------------------------------------


@contextmanager
def atomic_write(path: PathLike, mode: str = 'w', summed: bool = False) -> Iterator[Any]:
    """An open file that replaces `path` once it is written completely, and leaves `path` unchanged on an error.

    Args:
        path: File to write.
        mode: 'w' or 'wb'.
        summed: Update its digest in the SHA256SUMS beside it.
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


def write_json(values: Dict[str, Any], path: PathLike, summed: bool = False) -> None:
    """Write a JSON file, see `atomic_write`. Numbers that are not finite become null: JSON has no NaN."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items()}
        if isinstance(value, list):
            return [clean(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    with atomic_write(path, summed=summed) as file:
        file.write(json.dumps(clean(values), indent=2, allow_nan=False) + '\n')


# -- directories -------------------------------------------------------------------------------------------------------


def _sync_folder(folder: Path) -> None:
    """Flush the entries of a directory to disk, in case of a power failure."""
    with suppress(OSError):  # not every system can open directories
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _apply_umask(mode: int) -> int:
    """A file mode without the permissions that the user's umask removes."""
    umask = os.umask(0)
    os.umask(umask)
    return mode & ~umask


@contextmanager
def new_folder(folder: PathLike) -> Iterator[Path]:
    """A temporary directory beside `folder` that is renamed to it at the end, or removed on an error.

    Raises:
        FileExistsError: if `folder` exists and is not empty.
    """
    folder = Path(folder)
    exists = FileExistsError(f"'{folder}' already exists: choose another directory, nothing is overwritten.")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise exists
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f'.{folder.name}-', dir=folder.parent))
    try:
        yield temporary
        for path in (temporary, *temporary.rglob('*')):  # mkdtemp and safetensors give permissions to the owner only
            if not path.is_symlink():
                path.chmod(_apply_umask(0o777 if path.is_dir() else 0o666))
        try:
            os.replace(temporary, folder)
        except OSError as e:
            if e.errno in TAKEN_ERRORS:  # another process created it meanwhile
                raise exists from e
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def check_output_file(path: PathLike, flag: str) -> None:
    """Check that a file can be written without replacing another.

    Raises:
        FileExistsError: if it already exists.
        FileNotFoundError: if its directory does not exist.
    """
    path = Path(path)
    check_output_folder(path, flag)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Directory '{path.parent}' of {flag} does not exist.")


def check_output_folder(path: PathLike, flag: str) -> None:
    """Check that a folder, which is made where it is missing, does not exist yet.

    Raises:
        FileExistsError: if it already exists.
    """
    if Path(path).exists():
        raise FileExistsError(f"'{path}' already exists: choose another {flag}, nothing is overwritten.")


def with_free_name(path: PathLike, create: Callable[[Path], T]) -> T:
    """Call `create` with `path`, or with NAME-2, NAME-3, ... if that exists already, and return its result.

    `create` must raise FileExistsError if the name exists: two processes may try the same one at the same moment.
    """
    path = Path(path)
    for i in itertools.count(1):
        try:
            return create(path if i == 1 else path.with_name(f'{path.name}-{i}'))
        except FileExistsError:
            if not path.parent.is_dir():  # the parent is the problem (a broken link), no other name helps
                raise


# -- checksums ---------------------------------------------------------------------------------------------------------


def add_sums(folder: PathLike, *names: str) -> None:
    """Add the current digests of files to the SHA256SUMS of their directory; files that do not exist are omitted."""
    folder = Path(folder)
    sums = {**_read_sums(folder), **{name: [_digest(folder / name)] for name in names if (folder / name).is_file()}}
    if sums:
        _write_sums(folder, sums)


def check_sums(folder: PathLike, *names: str) -> List[str]:
    """Check that files are unchanged since they were written, as far as the SHA256SUMS of their directory lists them.

    Args:
        folder: The directory. Without SHA256SUMS (earlier versions, other software) nothing is checked.
        names: Files to check; by default all that are listed and exist.

    Returns:
        The files that were checked: those that are listed and exist.

    Raises:
        ValueError: if a file has changed; names it.
    """
    folder = Path(folder)
    sums = _read_sums(folder)
    checked = [name for name in names or sums if name in sums and (folder / name).is_file()]
    for name in checked:
        path = folder / name
        if _digest(path) not in sums[name]:
            raise ValueError(
                f"'{path}' is damaged, or was edited: its SHA-256 is not the one in '{folder / SUMS}'. Restore it from"
                ' a copy; if you edited it on purpose, delete its line there.'
            )
    return checked


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _read_sums(folder: Path) -> Sums:
    """The digests in SHA256SUMS, empty without such a file; malformed lines are ignored."""
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
    """Rename a file to its final name. SHA256SUMS lists its digest before and after, the old file's only before."""
    sums, new = _read_sums(path.parent), _digest(temporary)
    before = sums.get(path.name, [])
    if path.exists() and not before:
        before = [_digest(path)]
    _write_sums(path.parent, {**sums, path.name: [*before, new]})
    os.replace(temporary, path)
    _sync_folder(path.parent)
    _write_sums(path.parent, {**sums, path.name: [new]})
