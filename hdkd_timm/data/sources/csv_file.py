"""CSV tables of images: their cells as text, and checks for values that are probably not intended."""

import codecs
import contextlib
import csv
import itertools
import logging
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Dict, Iterable, List, NamedTuple, Sequence

from ...utils.csv_files import raw_cell
from ...utils.files import TEXT
from .walk import join_names

_logger = logging.getLogger(__name__)

# what programs (pandas, NumPy, Excel) write for a missing value, and what may be one or a name; in lower case
DELIMITERS = (',', ';', '\t', '|')
MISSING = ('', 'nan', '-nan', '<na>', 'nat', '#n/a')
DOUBTFUL = ('na', 'n/a', 'null', 'none', '-', '?')


class Table(NamedTuple):
    """A CSV file.

    Args:
        path: The file.
        columns: Column names.
        rows: Cells of each row.
        lines: Line number of each row, the last one if it has several lines.
    """

    path: Path
    columns: List[str]
    rows: List[List[str]]
    lines: List[int]

    def column(self, name: str) -> List[str]:
        """The cells of a column."""
        index = self.columns.index(name)
        return [row[index] for row in self.rows]


def find_delimiter(path: Path, required: Sequence[str]) -> str:
    """What separates the cells of a table: a comma, or a semicolon, tab or | if the header has the required columns so.

    Args:
        path: The file.
        required: Columns that must exist.

    Raises:
        ValueError: if the file is in UTF-16.
    """
    with path.open('rb') as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise ValueError(f"'{path}' is in UTF-16, like Excel's 'Unicode Text': save the table as 'CSV UTF-8'.")
    with path.open(**{**TEXT, 'encoding': 'utf-8-sig'}) as file:
        first = file.readline()
    for delimiter in DELIMITERS:
        with contextlib.suppress(csv.Error):  # which read_table reports
            header = next(csv.reader([first], delimiter=delimiter), [])
            if set(required) <= {raw_cell(name) for name in header}:
                return delimiter
    return ','


def read_table(path: Path, required: Sequence[str] = ()) -> Table:
    """Read a CSV file in UTF-8, see `find_delimiter`.

    Args:
        path: The file.
        required: Columns that must exist and have no empty cells.

    Raises:
        ValueError: if it is not a CSV file in UTF-8, a required column or cell is missing, two columns have the same
            name, or a row has more or fewer cells than the header.
    """
    delimiter = find_delimiter(path, required)
    try:
        with path.open(**{**TEXT, 'encoding': 'utf-8-sig'}) as file:
            # strict, or an unclosed quote would swallow the following rows
            reader = csv.reader(file, strict=True, delimiter=delimiter)
            rows, lines = [], []
            for row in reader:
                if row:
                    rows.append([raw_cell(cell) for cell in row])
                    lines.append(reader.line_num)
    except csv.Error as e:
        raise ValueError(f"'{path}' is not a CSV file in UTF-8 (line {reader.line_num}: {e}).") from e
    if delimiter != ',':
        _logger.info(f"Cells of '{path}' are separated by {delimiter!r}.")
    columns = rows.pop(0) if rows else []
    lines = lines[1:]
    table = Table(path, columns, rows, lines)
    twice = next((name for name in columns if name and columns.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"'{path}' line 1: two columns are named '{twice}': rename or remove one.")
    for name in required:
        require_column(table, name)
    complete = set(map(len, rows)) <= {len(columns)}
    if not complete or not all(all(map(str.strip, table.column(name))) for name in required):
        for line, row in zip(lines, rows):
            _check_row(table, line, row, required)
    return table


def _check_row(table: Table, line: int, row: List[str], required: Sequence[str]) -> None:
    """Drop empty cells beyond the header from the end of a row.

    Raises:
        ValueError: if the row does not match the header, or a required cell is empty.
    """
    number = len(table.columns)
    for name in required:
        if not ''.join(row[table.columns.index(name) :][:1]).strip():
            raise ValueError(f"'{table.path}' line {line}: no {name}.")
    if any(row[number:]) or len(row) < number:
        hint = ': put text that contains a separator in double quotes' if len(row) > number else ''
        raise ValueError(f"'{table.path}' line {line}: {len(row)} cells, but the header has {number}{hint}.")
    del row[number:]


def read_first_rows(path: Path, number: int, required: Sequence[str] = ()) -> List[Dict[str, str]]:
    """Column -> cell of the first rows of a table; fewer or none if it has fewer or cannot be read."""
    try:
        delimiter = find_delimiter(path, required)
        with path.open(**{**TEXT, 'encoding': 'utf-8-sig'}) as file:
            rows = itertools.islice(csv.DictReader(file, delimiter=delimiter), number)
            return [{name: raw_cell(cell) for name, cell in row.items()} for row in rows]
    except (OSError, csv.Error):  # reported by read_table
        return []


def require_column(table: Table, name: str) -> None:
    """Raises ValueError if the column does not exist; names those that do."""
    if name in table.columns:
        return
    flag = {'path': ' --path-column names another one.', 'label': ' --label-column names another one.'}.get(name, '')
    found = ', '.join(f"'{column}'" for column in table.columns) or 'none'
    raise ValueError(f"'{table.path}' has no column '{name}' (columns found: {found}).{flag}")


def warn_of_similar_column(table: Table, name: str, flag: str) -> None:
    """Warn about a column whose name differs from an optional one only in case or spaces."""
    similar = next((column for column in table.columns if column.strip().lower() == name), None)
    if similar is not None and name not in table.columns:
        _logger.warning(
            f"Column '{similar}' of '{table.path}' is not used because its name is not '{name}': rename it, or specify"
            f' it with {flag}.'
        )


def refuse_line_breaks(table: Table, cells: Sequence[str], what: str) -> None:
    """Raises ValueError if a cell has several lines."""
    multiline = {cell for cell in set(cells) if len(cell.splitlines()) > 1}
    if multiline:
        i = min(map(cells.index, multiline))
        raise ValueError(
            f"'{table.path}' line {table.lines[i]}: a {what} of {len(cells[i].splitlines())} lines, {cells[i][:40]!r}"
            f'{"..." * (len(cells[i]) > 40)}: a missing or extra quote may have merged rows into it.'
        )


def check_labels(table: Table, labels: Sequence[str]) -> None:
    """Check the labels of a table; warns about labels that may denote a missing value.

    Args:
        table: The table.
        labels: Label of each row, (N,).

    Raises:
        ValueError: if a label has several lines or denotes a missing value.
    """
    refuse_line_breaks(table, labels, 'label')
    counts = Counter(labels)
    missing = [label for label in counts if label.lower() in MISSING]
    if missing:
        i = min(labels.index(label) for label in missing)
        raise ValueError(
            f"'{table.path}' line {table.lines[i]}: label '{labels[i]}' denotes a missing value"
            f' ({sum(counts[label] for label in missing):,} such rows): add the label or remove the row. If it is a'
            ' class, rename it.'
        )
    _warn_of_doubtful(counts, 'label', 'remove these rows', table.path)


def fill_groups(table: Table, groups: Sequence[str], paths: Sequence[str]) -> List[str]:
    """Give each row without a group one of its own; warns about values that denote, or may denote, a missing group.

    Args:
        table: The table.
        groups: Group cell of each row, (N,).
        paths: Path of each row, (N,).

    Returns:
        Group of each row, (N,).

    Raises:
        ValueError: if a group has several lines.
    """
    refuse_line_breaks(table, groups, 'group')
    counts = Counter(groups)
    missing = [group for group in counts if group and group.lower() in MISSING]
    if missing:
        i = min(groups.index(group) for group in missing)
        _logger.warning(
            f"{sum(counts[group] for group in missing):,} images of '{table.path}' have the group '{groups[i]}' (the"
            f' first in line {table.lines[i]}), which denotes a missing value: each becomes a group of its own.'
        )
    _warn_of_doubtful({k: n for k, n in counts.items() if n > 1}, 'group', 'leave the cell empty', table.path)
    warn_of_similar_names(counts, 'groups', str(table.path))
    if not any(group.lower() in MISSING for group in counts):
        return list(groups)
    return [f'path {path}' if group.lower() in MISSING else group for group, path in zip(groups, paths)]


def _warn_of_doubtful(counts: Dict[str, int], what: str, remedy: str, path: Path) -> None:
    for value in sorted(counts):
        if value.lower() in DOUBTFUL:
            _logger.warning(
                f"{counts[value]:,} images of '{path}' have the {what} '{value}', which is used as a name: if it"
                f' denotes a missing value, {remedy}.'
            )


def warn_of_similar_names(names: Iterable[str], what: str, where: str) -> None:
    """Warn about names that differ only in case, white space or Unicode normalisation."""
    first: Dict[str, str] = {}
    similar = []
    for name in sorted(names):
        other = first.setdefault(' '.join(unicodedata.normalize('NFKC', name).casefold().split()), name)
        if other != name:
            similar.append(f'{other!r} and {name!r}')
    if similar:
        _logger.warning(
            f"{len(similar):,} {what} of '{where}' differ from others only in case, white space or Unicode form, and"
            f' are treated as different: {join_names(similar)}.'
        )
