"""Tables of images, CSV files: their cells as they are written, and what in them may not be meant."""
import csv
import itertools
import logging
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Dict, Iterable, List, NamedTuple, Sequence

from ...utils.files import TEXT, raw_cell

_logger = logging.getLogger(__name__)

# what programs write for a missing value (pandas, numpy, Excel), and what may be one or a name, in lower case
MISSING = ('', 'nan', '-nan', '<na>', 'nat', '#n/a')
DOUBTFUL = ('na', 'n/a', 'null', 'none', '-', '?')


class Table(NamedTuple):
    """A CSV file.

    Args:
        path: The file.
        columns: Their names.
        rows: Cells of each row.
        lines: Number of the (last) line of each row.
    """
    path: Path
    columns: List[str]
    rows: List[List[str]]
    lines: List[int]

    def column(self, name: str) -> List[str]:
        """The cells of a column."""
        index = self.columns.index(name)
        return [row[index] for row in self.rows]


def read_table(path: Path, needed: Sequence[str] = ()) -> Table:
    """Read a CSV file in UTF-8 whose rows all have the cells that its header names.

    Args:
        path: The file.
        needed: Columns without an empty cell.

    Raises:
        ValueError: if it is no CSV file, lacks a needed column, two columns have one name, or a row has more or fewer
            cells than the header or lacks one that is needed.
    """
    try:
        with path.open(**{**TEXT, 'encoding': 'utf-8-sig'}) as file:
            reader = csv.reader(file, strict=True)  # else an open quote swallows the rows that follow
            rows, lines = [], []
            for row in reader:
                if row:
                    rows.append([raw_cell(cell) for cell in row])
                    lines.append(reader.line_num)
    except csv.Error as e:
        raise ValueError(f"'{path}' is no CSV file in UTF-8 (line {reader.line_num}: {e}).") from e
    columns = rows.pop(0) if rows else []
    lines = lines[1:]
    table = Table(path, columns, rows, lines)
    twice = next((name for name in columns if name and columns.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"'{path}' line 1: two columns are called '{twice}': rename or remove one.")
    for name in needed:
        require_column(table, name)
    complete = set(map(len, rows)) <= {len(columns)}
    if not complete or not all(all(map(str.strip, table.column(name))) for name in needed):
        for line, row in zip(lines, rows):
            _check_row(table, line, row, needed)
    return table


def _check_row(table: Table, line: int, row: List[str], needed: Sequence[str]) -> None:
    """Cut empty cells off the end of a row that is too long.

    Raises:
        ValueError: if the row does not fit the header, or lacks a cell that is needed.
    """
    number = len(table.columns)
    for name in needed:
        if not ''.join(row[table.columns.index(name):][:1]).strip():
            raise ValueError(f"'{table.path}' line {line}: no {name}.")
    if any(row[number:]) or len(row) < number:
        hint = ': put text that holds a comma in double quotes' if len(row) > number else ''
        raise ValueError(f"'{table.path}' line {line}: {len(row)} cells, the header has {number}{hint}.")
    del row[number:]


def read_first_rows(path: Path, number: int) -> List[Dict[str, str]]:
    """Column -> cell of the first rows of a table, fewer where it has fewer or is no table."""
    try:
        with path.open(**{**TEXT, 'encoding': 'utf-8-sig'}) as file:
            rows = itertools.islice(csv.DictReader(file), number)
            return [{name: raw_cell(cell) for name, cell in row.items()} for row in rows]
    except (OSError, csv.Error):  # told when it is read
        return []


def require_column(table: Table, name: str) -> None:
    """Raises ValueError if there is no such column; names those that there are."""
    if name in table.columns:
        return
    header = table.columns[0] if len(table.columns) == 1 else ''
    separator = next((c for c in ';\t|' if c in header), None)
    hint = f' Its cells seem to be separated by {separator!r}: save it with commas.' if separator else ''
    raise ValueError(
        f"'{table.path}' has no column '{name}' (columns found: {', '.join(table.columns) or 'none'}).{hint}")


def warn_of_similar_column(table: Table, name: str, flag: str) -> None:
    """Tell of a column that differs from one that may be there only in case or blanks."""
    similar = next((column for column in table.columns if column.strip().lower() == name), None)
    if similar is not None and name not in table.columns:
        _logger.warning(
            f"Column '{similar}' of '{table.path}' is not used, its name is not '{name}': give it that name, or name it"
            f' with {flag}.')


def _refuse_line_breaks(table: Table, cells: Sequence[str], what: str) -> None:
    broken = {cell for cell in set(cells) if len(cell.splitlines()) > 1}
    if broken:
        i = min(map(cells.index, broken))
        raise ValueError(
            f"'{table.path}' line {table.lines[i]}: a {what} of {len(cells[i].splitlines())} lines, {cells[i][:40]!r}"
            f"{'...' * (len(cells[i]) > 40)}: rows are lost in it if a quote is missing or one too many.")


def check_labels(table: Table, labels: Sequence[str]) -> None:
    """Raises ValueError for a label of several lines, or that stands for a missing value; warns of those that may.

    Args:
        table: The table.
        labels: Label of each row, (N,).
    """
    _refuse_line_breaks(table, labels, 'label')
    counts = Counter(labels)
    missing = [label for label in counts if label.lower() in MISSING]
    if missing:
        i = min(labels.index(label) for label in missing)
        raise ValueError(
            f"'{table.path}' line {table.lines[i]}: label '{labels[i]}' is how a missing value is written"
            f' ({sum(counts[label] for label in missing):,} such rows): add the label, or remove the row. If it is a'
            ' class, give that another name.')
    _warn_of_doubtful(counts, 'label', 'remove these rows', table.path)


def own_groups(table: Table, groups: Sequence[str], paths: Sequence[str]) -> List[str]:
    """Group of each row, (N,); a row without one is its own. Tells of values that stand for a missing one, or may.

    Args:
        table: The table.
        groups: Cell of each row, (N,).
        paths: Path of each row, (N,).

    Raises:
        ValueError: if a group has several lines.
    """
    _refuse_line_breaks(table, groups, 'group')
    counts = Counter(groups)
    missing = [group for group in counts if group and group.lower() in MISSING]
    if missing:
        i = min(groups.index(group) for group in missing)
        _logger.warning(
            f"{sum(counts[group] for group in missing):,} images of '{table.path}' have the group '{groups[i]}' (the"
            f' first in line {table.lines[i]}), a missing value: each is a group of its own.')
    _warn_of_doubtful({k: n for k, n in counts.items() if n > 1}, 'group', 'leave the cell empty', table.path)
    warn_of_similar_names(counts, 'groups', str(table.path))
    if not any(group.lower() in MISSING for group in counts):
        return list(groups)
    return [f'path {path}' if group.lower() in MISSING else group for group, path in zip(groups, paths)]


def _warn_of_doubtful(counts: Dict[str, int], what: str, way_out: str, path: Path) -> None:
    for value in sorted(counts):
        if value.lower() in DOUBTFUL:
            _logger.warning(
                f"{counts[value]:,} images of '{path}' have the {what} '{value}', taken as a name: if it stands for a"
                f' missing value, {way_out}.')


def warn_of_similar_names(names: Iterable[str], what: str, where: str) -> None:
    """Tell of names that differ only in case, white space or the form of their Unicode characters."""
    first: Dict[str, str] = {}
    similar = []
    for name in sorted(names):
        other = first.setdefault(' '.join(unicodedata.normalize('NFKC', name).casefold().split()), name)
        if other != name:
            similar.append(f'{other!r} and {name!r}')
    if similar:
        _logger.warning(
            f"{len(similar):,} {what} of '{where}' differ from others only in case, white space or Unicode form, and"
            f" are taken as different: {', '.join(similar[:5])}{', ...' * (len(similar) > 5)}.")
