"""Files and folders that are written whole or not at all."""
import csv
import json
import math
import os
import re
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Union

PathLike = Union[str, Path]

# how text is written and read; names of files that are no UTF-8 come back as they were
TEXT = dict(newline='', encoding='utf-8', errors='surrogateescape')


# beginnings of a cell that spreadsheets compute, also after quotes: OWASP's list, "CSV Injection", and their wide forms
FORMULA = re.compile("'*[=+\\-@\\t\\r\\n\uff1d\uff0b\uff0d\uff20]")


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


def write_rows(rows: List[Dict[str, Any]], path: PathLike, columns: Sequence[str] = ()) -> None:
    """Write a CSV file with these columns, and those of all rows. Its cells are those of `safe_cell`, so that it can be
    opened in a spreadsheet; `read_rows` gives back what was written."""
    columns = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    with whole_file(path) as file:
        writer = csv.writer(file)
        writer.writerow(map(safe_cell, columns))
        writer.writerows([safe_cell(row.get(name, '')) for name in columns] for row in rows)


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
