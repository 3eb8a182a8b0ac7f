"""CSV files that spreadsheets can open safely, and that come back exactly as they were written."""

import csv
import re
from pathlib import Path
from typing import Any, Collection, Dict, Iterable, Iterator, List, Sequence

from .files import TEXT, PathLike, atomic_write, check_output_file

# how cells start that spreadsheets compute, also after quotes: OWASP's list, "CSV Injection", and full-width forms
FORMULA = re.compile("'*[=+\\-@\\t\\r\\n\uff1d\uff0b\uff0d\uff20]")
# endings that promise another format than CSV
OTHER_FORMATS = {
    *('.xls', '.xlsx', '.xlsm', '.xlsb', '.ods', '.tsv', '.tab', '.json', '.jsonl', '.ndjson', '.xml', '.yaml', '.yml'),
    *('.html', '.htm', '.md', '.pdf', '.parquet', '.feather', '.arrow', '.npy', '.npz', '.mat', '.pkl', '.pickle'),
    *('.pt', '.pth', '.h5', '.hdf5', '.db', '.sqlite', '.gz', '.bz2', '.xz', '.zst', '.zip'),
}


def _is_formula(text: str) -> bool:
    """Whether a spreadsheet would compute a cell with this text, once the quotes before it are removed."""
    if FORMULA.match(text) is None:
        return False
    try:
        float(text.lstrip("'"))  # -0.5 is a number and stays one
    except ValueError:
        return True
    return False


def safe_cell(value: Any) -> Any:
    """Escape a value of a CSV file so that no spreadsheet computes it.

    Text that starts with =, +, -, @, a tab or a newline gets a single quote before it, which `raw_cell` removes. Text
    that starts so after quotes of its own gets one more, so that every text comes back as it was. Numbers are not
    changed.
    """
    return f"'{value}" if isinstance(value, str) and _is_formula(value) else value


def raw_cell(value: Any) -> Any:
    """The value that `safe_cell` escaped."""
    return value[1:] if isinstance(value, str) and value.startswith("'") and _is_formula(value) else value


def iterate_rows(path: PathLike) -> Iterator[Dict[str, str]]:
    """Read the rows of a CSV file that `write_rows` wrote, one at a time.

    Raises:
        OSError: if it cannot be read.
        ValueError: if a row has more or fewer cells than the header, or two columns have the same name.
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
    """All rows of a CSV file that `write_rows` wrote, see `iterate_rows`."""
    return list(iterate_rows(path))


def check_table_file(path: PathLike, flag: str, others: Collection[str] = ()) -> None:
    """Check that a CSV file can be written without replacing another, and is not named as one of another format.

    Args:
        path: File to write.
        flag: The flag that gives it.
        others: Endings of further formats in which it can be written.

    Raises:
        FileExistsError, FileNotFoundError: as `check_output_file`.
        ValueError: for an ending of another format.
    """
    suffix = Path(path).suffix.lower()
    if suffix in OTHER_FORMATS and suffix not in others:
        raise ValueError(f"'{path}' of {flag} cannot be written as {suffix}: use {' or '.join(['.csv', *others])}.")
    check_output_file(path, flag)


def write_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], path: PathLike, summed: bool = False) -> None:
    """Write a CSV file, escaped with `safe_cell`, without holding the rows of a generator in memory.

    Args:
        columns: Column names.
        rows: Rows of one cell per column.
        path: File to write, see `atomic_write`.
        summed: See `atomic_write`.
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
    """Write a CSV file of these columns, followed by any others that the rows have; see `write_table`."""
    columns = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    write_table(columns, ([row.get(name, '') for name in columns] for row in rows), path, summed)
