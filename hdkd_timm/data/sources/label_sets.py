"""Tables whose images have any number of labels: of one column, or of a column for each label."""

import logging
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import numpy as np

from ..targets import SEPARATOR
from .csv_file import DOUBTFUL, MISSING, Table, refuse_line_breaks, require_column
from .walk import natural_order

_logger = logging.getLogger(__name__)

NO_FINDING = 'no finding'  # of the chest X-ray sets: no label, in lower case
_VALUES = {'': False, '0': False, '0.0': False, 'false': False, '1': True, '1.0': True, 'true': True}
OTHER_SEPARATORS = (';', ',')


def read_label_sets(table: Table, columns: Sequence[str]) -> Tuple[List[List[str]], List[str]]:
    """The labels of each row, and all labels in natural order.

    Args:
        table: The table.
        columns: Name of its column of labels, separated by '|', whose labels are those that a row of it has; or of a
            column of 0 and 1 for each label, which may be one. 'No Finding' is no label.

    Raises:
        ValueError: if a column is missing, a label has several lines or denotes a missing value, or a cell of several
            columns is none of 0, 1 and empty.
    """
    for name in columns:
        require_column(table, name)
    cells = [cell.strip().lower() for cell in table.column(columns[0])]
    if len(columns) == 1 and not (set(cells) <= set(_VALUES) and set(cells) - {''}):
        sets = _split_cells(table, columns[0])
        names = sorted({name for labels in sets for name in labels}, key=natural_order)
    else:
        sets, names = _read_columns(table, columns)
    missing = next((name for name in names if name.lower() in MISSING), None)
    if missing is not None:
        raise ValueError(
            f"'{table.path}': label '{missing}' denotes a missing value: add the labels or remove the rows."
        )
    return sets, names


def _split_cells(table: Table, column: str) -> List[List[str]]:
    """The labels of each cell, without spaces around them, 'No Finding' and repetitions."""
    cells = table.column(column)
    refuse_line_breaks(table, cells, 'label')
    sets = []
    for cell in cells:
        labels = [label.strip() for label in cell.split(SEPARATOR)]
        sets.append([x for x in dict.fromkeys(labels) if x and x.lower() != NO_FINDING])
    return sets


def _read_columns(table: Table, columns: Sequence[str]) -> Tuple[List[List[str]], List[str]]:
    """The labels of each row, those whose columns are 1, and the names of all columns but 'No Finding'."""
    odd = next((name for name in columns if SEPARATOR in name), None)
    if odd is not None:
        raise ValueError(f"'{table.path}': a label may not contain '{SEPARATOR}', rename column '{odd}'.")
    kept = [name for name in columns if name.strip().lower() != NO_FINDING]
    if len(kept) < len(columns):
        _logger.info(f"'{table.path}': the column 'No Finding' is no label: images have none of the others.")
    cells_of = [table.column(name) for name in kept]
    empty = sum(not cell.strip() for column in cells_of for cell in column)
    sets, names = [], [name.strip() for name in kept]
    for line, *cells in zip(table.lines, *cells_of):
        values = [_VALUES.get(cell.strip().lower()) for cell in cells]
        if None in values:
            name, cell = names[values.index(None)], cells[values.index(None)]
            raise ValueError(
                f"'{table.path}' line {line}: {name} must be 0 or 1 (--label-column), got '{cell}': decide which it is,"
                ' or remove the row.'
            )
        sets.append([name for name, value in zip(names, values) if value])
    if empty:
        _logger.info(f"{empty:,} empty cells of the label columns of '{table.path}' are taken as 0.")
    return sets, sorted(names, key=natural_order)


def index_label_sets(
    path: Path, sets: Sequence[Sequence[str]], names: Sequence[str], rows_of: Dict[str, np.ndarray]
) -> np.ndarray:
    """0 or 1 for each label of each row, (N, K).

    Args:
        path: The table, for messages.
        sets: Labels of each row.
        names: The K labels.
        rows_of: Split -> its rows.

    Raises:
        ValueError: if the training images have none of a label, or no label at all.
    """
    index_of = {name: k for k, name in enumerate(names)}
    targets = np.zeros((len(sets), len(names)), np.uint8)
    for i, labels in enumerate(sets):
        targets[i, [index_of[name] for name in labels]] = 1
    for name in names:
        _warn_of_name(path, name, int(targets[:, index_of[name]].sum()))
    for split, rows in rows_of.items():
        _check_split(path, split, targets[rows], names)
    used = np.concatenate(list(rows_of.values()))
    without = int((~targets[used].any(axis=1)).sum())
    _logger.info(
        f"'{path}': {len(used):,} images with {targets[used].sum(axis=1).mean():.2f} labels each of {len(names)},"
        f' {without:,} of them without a label.'
    )
    return targets


def _warn_of_name(path: Path, name: str, number: int) -> None:
    separator = next((mark for mark in OTHER_SEPARATORS if mark in name), None)
    if separator:
        _logger.warning(
            f"'{path}': '{name}' is taken as one label of {number:,} images: several are separated by '{SEPARATOR}',"
            f" not by '{separator}'."
        )
    if name.lower() in DOUBTFUL:
        _logger.warning(
            f"{number:,} images of '{path}' have the label '{name}', which is used as a name: if it denotes no label,"
            ' leave the cell empty.'
        )


def _check_split(path: Path, split: str, targets: np.ndarray, names: Sequence[str]) -> None:
    """Raise ValueError if no training image has a label; warn if no image of another split has it."""
    missing = [name for name, number in zip(names, targets.sum(axis=0)) if not number]
    if split == 'train' and not names:
        raise ValueError(f"No image of '{path}' has a label.")
    if missing and split == 'train':
        raise ValueError(
            f"'{path}': no training image has the label '{missing[0]}', which cannot be learned: add some, or leave the"
            ' label out.'
        )
    if missing:
        threshold = ' A threshold that these images choose stays 0.5.' if split == 'val' else ''
        _logger.warning(
            f"'{path}': no image of split '{split}' has the label{'s' * (len(missing) > 1)} {', '.join(missing)}: their"
            f' AUROC and average precision are undefined, and left out of the means.{threshold}'
        )
