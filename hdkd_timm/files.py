"""Files and folders that are written whole or not at all."""
import csv
import json
import math
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Sequence, Union

PathLike = Union[str, Path]

# how text is written and read; names of files that are no UTF-8 come back as they were
TEXT = dict(newline='', encoding='utf-8', errors='surrogateescape')


@contextmanager
def whole_file(path: PathLike, mode: str = 'w') -> Iterator[Any]:
    """An open file that takes the place of `path` when all is written, and leaves it alone after an error."""
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, mode, **({} if 'b' in mode else TEXT)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise


@contextmanager
def new_folder(folder: PathLike) -> Iterator[Path]:
    """A temporary folder beside `folder`, renamed to it at the end or removed on an error.

    Raises:
        FileExistsError: if `folder` exists and is not empty.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"'{folder}' exists already: choose another folder, nothing is overwritten.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f'.{folder.name}-', dir=folder.parent))
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)  # mkdtemp's folders are for their owner alone
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], path: PathLike) -> None:
    """Write a CSV file of rows as they come, a cell a column: of a generator, none is kept."""
    with whole_file(path) as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def write_rows(rows: List[Dict[str, Any]], path: PathLike, columns: Sequence[str] = ()) -> None:
    """Write a CSV file with these columns, and those of all rows."""
    columns = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    write_table(columns, ([row.get(name, '') for name in columns] for row in rows), path)


def write_json(values: Dict[str, Any], path: PathLike) -> None:
    """JSON has no NaN: what is undefined is null."""
    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items()}
        if isinstance(value, list):
            return [clean(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    with whole_file(path) as file:
        file.write(json.dumps(clean(values), indent=2, allow_nan=False) + '\n')
