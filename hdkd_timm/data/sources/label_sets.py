"""Tables whose images have any number of labels: of one column, or of a column for each label."""

import logging
from collections import Counter
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import numpy as np

from ..targets import SEPARATOR
from .csv_file import DOUBTFUL, MISSING, Table, require_column
from .walk import natural_order

_logger = logging.getLogger(__name__)

NO_FINDING = 'no finding'  # of the chest X-ray sets: no label, in lower case
_VALUES = {'': False, '0': False, '0.0': False, 'false': False, '1': True, '1.0': True, 'true': True}
OTHER_SEPARATORS = (';', ',')


def name_label_sets(table: Table, path_column: str, label_columns: Sequence[str]) -> Table:
    """The table with its column of files called 'path', and 'label' the labels of each image, separated by '|'.

    Args:
        table: The table.
        path_column: Name of its column of files.
        label_columns: Name of its column of labels, or of a column of 0 and 1 for each label.

    Raises:
        ValueError: if a column is missing, or a cell of several columns is none of 0, 1 and empty.
    """
    for name in label_columns:
        require_column(table, name)
    paths = table.column(path_column)
    labels = _split_cells(table, label_columns[0]) if len(label_columns) == 1 else _read_columns(table, label_columns)
    kept = [i for i, name in enumerate(table.columns) if name not in ('path', 'label')]
    return table._replace(
        columns=['path', 'label', *(table.columns[i] for i in kept)],
        rows=[[path, label, *(row[i] for i in kept)] for path, label, row in zip(paths, labels, table.rows)],
    )


def _split_cells(table: Table, column: str) -> List[str]:
    """The labels of each cell, without spaces around them, 'No Finding' and repetitions."""
    result = []
    for cell in table.column(column):
        labels = [label.strip() for label in cell.split(SEPARATOR)]
        result.append(SEPARATOR.join(dict.fromkeys(x for x in labels if x and x.lower() != NO_FINDING)))
    return result


def _read_columns(table: Table, names: Sequence[str]) -> List[str]:
    """The labels of each row, of whose columns they are 1."""
    odd = next((name for name in names if SEPARATOR in name), None)
    if odd is not None:
        raise ValueError(f"'{table.path}': a label may not contain '{SEPARATOR}', rename column '{odd}'.")
    columns = [table.column(name) for name in names]
    empty = sum(not cell.strip() for column in columns for cell in column)
    result = []
    for line, *cells in zip(table.lines, *columns):
        values = [_VALUES.get(cell.strip().lower()) for cell in cells]
        if None in values:
            name, cell = names[values.index(None)], cells[values.index(None)]
            raise ValueError(
                f"'{table.path}' line {line}: {name} must be 0 or 1 (--label-column), got '{cell}': decide which it is,"
                ' or remove the row.'
            )
        result.append(SEPARATOR.join(name for name, value in zip(names, values) if value))
    if empty:
        _logger.info(f"{empty:,} empty cells of the label columns of '{table.path}' are taken as 0.")
    return result


def index_label_sets(path: Path, labels: Sequence[str], rows_of: Dict[str, np.ndarray]) -> Tuple[np.ndarray, List[str]]:
    """0 or 1 for each label of each row, (N, K), and the K labels in natural order.

    Args:
        path: The table, for messages.
        labels: Labels of each row, separated by '|'.
        rows_of: Split -> its rows.

    Raises:
        ValueError: if there is no label, one denotes a missing value, or the training images have none of one.
    """
    sets = [label.split(SEPARATOR) if label else [] for label in labels]
    used = [i for rows in rows_of.values() for i in rows]
    counts = Counter(name for i in used for name in sets[i])
    names = sorted(counts, key=natural_order)
    if not names:
        raise ValueError(f"No image of '{path}' has a label.")
    missing = next((name for name in names if name.lower() in MISSING), None)
    if missing is not None:
        raise ValueError(f"'{path}': label '{missing}' denotes a missing value: add the labels or remove the rows.")
    for name in names:
        _warn_of_name(path, name, counts[name])
    index_of = {name: k for k, name in enumerate(names)}
    targets = np.zeros((len(labels), len(names)), np.uint8)
    for i in used:
        targets[i, [index_of[name] for name in sets[i]]] = 1
    for split, rows in rows_of.items():
        _check_split(path, split, targets[rows], names)
    without = int((~targets[used].any(axis=1)).sum())
    _logger.info(
        f"'{path}': {len(used):,} images with {targets[used].sum(axis=1).mean():.2f} labels each of {len(names)},"
        f' {without:,} of them without a label.'
    )
    return targets, names


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
    if missing and split == 'train':
        raise ValueError(
            f"'{path}': no training image has the label '{missing[0]}', which cannot be learned: add some, or leave the"
            ' label out.'
        )
    if missing:
        _logger.warning(
            f"'{path}': no image of split '{split}' has the label{'s' * (len(missing) > 1)} {', '.join(missing)}: their"
            ' AUROC and average precision are undefined, and left out of the means.'
        )
