"""CSV tables of images: columns path and label, optionally split, group, and what a run lists of the files."""

import logging
import os
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from ..config import SourceConfig
from ..image_files import IMG_EXTENSIONS, split_frame, split_suffix
from ..samples import CONTENTS, SPLITS, FileReader, Samples, SplitNotFoundError, check_same_classes
from .csv_file import (
    Table,
    check_labels,
    fill_groups,
    read_first_rows,
    read_table,
    require_column,
    warn_of_similar_column,
)
from .label_sets import index_label_sets, read_label_sets
from .walk import join_names, natural_order, walk_folder

_logger = logging.getLogger(__name__)

_ONE_HOT = {'0': 0, '0.0': 0, 'false': 0, '1': 1, '1.0': 1, 'true': 1}
FIRST_ROWS = 100  # of a table, whose images are looked for before it is read as a whole


def read_csv(
    path: Union[str, Path],
    root: Optional[Union[str, Path]] = None,
    split_column: str = 'split',
    group_column: Optional[str] = None,
    only: Optional[str] = None,
    path_column: str = 'path',
    label_columns: Sequence[str] = ('label',),
    multi_label: bool = False,
) -> Tuple[Dict[str, Samples], List[str]]:
    """Read a table of images.

    Args:
        path: CSV file with the columns path and label, optionally split (else all rows are 'train'), group, and bytes
            and sha256 as in the images.csv of a run, which become `Samples.listed`. Rows with an empty split are
            ignored.
        root: Directory that the paths are relative to, by default that of the file.
        split_column: Name of the split column.
        group_column: Name of the group column, by default 'group' if it exists.
        only: Read only this split; without a split column it consists of all rows.
        path_column: Name of the path column. Cells without a suffix, such as 'ISIC_0027419', may name an image in the
            directory or below by what precedes its suffix.
        label_columns: Name of the label column, or of one column for each class, of which one is 1 and the others 0.
        multi_label: An image has any number of labels: those separated by '|' in its cell, of which an empty one and
            'No Finding' are none, or those of the columns that are 1; an empty cell of these is 0.

    Returns:
        Split -> samples, and the class names, or the labels that an image has, in natural order.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if a column is missing or there twice, a row has missing or extra cells, not one of several label
            columns is 1, a label denotes a missing value, or with `multi_label` no training image has it, a path occurs
            twice or names several images, a split is unknown, the classes of two splits differ, or text other than the
            name of an existing file is not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"CSV file '{path}' does not exist or is not a regular file.")
    root = Path(root) if root else path.parent
    if multi_label:
        table = read_table(path, (path_column,))
        label_sets, names = read_label_sets(table, label_columns)
        table = _name_columns(table, path_column, label_columns, ['|'.join(labels) for labels in label_sets])
    else:
        table = _name_columns(read_table(path, (path_column, *label_columns)), path_column, label_columns)
    _check_encoding(table, root)
    _check_optional_column(table, 'split', '--split-column', split_column if split_column != 'split' else None)
    _check_optional_column(table, 'group', '--group-column', group_column)
    labels = [label.strip() for label in table.column('label')]
    if not multi_label:
        check_labels(table, labels)
    files = _find_files(table, root)
    split_of = _read_splits(table, split_column, only or 'train')
    groups = _read_groups(table, group_column or 'group')
    listed = None
    if all(name in table.columns for name in CONTENTS):
        listed = np.array([table.column(name) for name in CONTENTS], object).T

    rows_of = {
        split: np.flatnonzero(split_of == split)
        for split in dict.fromkeys(split_of.tolist())
        if split and only in (None, split)
    }
    if (only or 'train') not in rows_of:
        raise SplitNotFoundError(f"'{path}' has no row of split '{only or 'train'}' (column '{split_column}').")
    if multi_label:
        targets = index_label_sets(path, label_sets, names, rows_of)
    else:
        classes = {split: sorted({labels[i] for i in rows}, key=natural_order) for split, rows in rows_of.items()}
        names = check_same_classes(classes, {split: f'{path}, split {split}' for split in rows_of})
        index_of = {name: i for i, name in enumerate(names)}
        targets = np.array([index_of.get(label, -1) for label in labels])  # -1: of other splits
    samples = {
        split: Samples(
            FileReader([(files[i], 0) for i in rows]),
            np.arange(len(rows)),
            targets[rows],
            None if groups is None else groups[rows],
            listed=None if listed is None else listed[rows],
        )
        for split, rows in rows_of.items()
    }
    return samples, names


def _name_columns(
    table: Table, path_column: str, label_columns: Sequence[str], labels: Optional[Sequence[str]] = None
) -> Table:
    """The table with its columns of files and classes, which may be given, called 'path' and 'label'; others of these
    names are left out."""
    if path_column == 'path' and tuple(label_columns) == ('label',) and labels is None:
        return table
    paths = table.column(path_column)
    if labels is None:
        labels = table.column(label_columns[0]) if len(label_columns) == 1 else _read_one_hot(table, label_columns)
    kept = [i for i, name in enumerate(table.columns) if name not in ('path', 'label')]
    return table._replace(
        columns=['path', 'label', *(table.columns[i] for i in kept)],
        rows=[[path, label, *(row[i] for i in kept)] for path, label, row in zip(paths, labels, table.rows)],
    )


def _read_one_hot(table: Table, names: Sequence[str]) -> List[str]:
    """Class of each row, of columns of which one is 1."""
    labels = []
    for line, *cells in zip(table.lines, *(table.column(name) for name in names)):
        values = [_ONE_HOT.get(cell.strip().lower()) for cell in cells]
        if None in values:
            name, cell = names[values.index(None)], cells[values.index(None)]
            raise ValueError(f"'{table.path}' line {line}: {name} must be 0 or 1 (--label-column), got '{cell}'.")
        if values.count(1) != 1:
            found = ', '.join(name for name, value in zip(names, values) if value) or 'none'
            raise ValueError(f"'{table.path}' line {line}: one of {', '.join(names)} must be 1, got {found}.")
        labels.append(names[values.index(1)])
    return labels


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # surrogates, by which undecodable bytes were read
        return False
    return True


def _check_encoding(table: Table, root: Path) -> None:
    """Raises ValueError if a cell is not UTF-8, unless it is the name of an existing file."""
    if _is_utf8(''.join(map(''.join, [table.columns, *table.rows]))):
        return
    for line, row in [(1, table.columns), *zip(table.lines, table.rows)]:
        for name, value in zip(table.columns, row):
            if not _is_utf8(value) and not (name == 'path' and line > 1 and (root / value).exists()):
                raise ValueError(f"'{table.path}' line {line}: {value!r} is not UTF-8: save the table as 'CSV UTF-8'.")


def _check_optional_column(table: Table, default: str, flag: str, name: Optional[str]) -> None:
    """Require a column that was named; without a name, warn if one is nearly called as the default."""
    if name is not None:
        require_column(table, name)
    else:
        warn_of_similar_column(table, default, flag)


def _find_files(table: Table, root: Path) -> List[str]:
    """Path of each row's image, (N,).

    Raises:
        ValueError: if an image occurs twice.
    """
    base = '' if str(root) == '.' else str(root)
    files = [
        # pathlib is slow, and only these paths need its normalisation
        str(root / path) if './' in path or '//' in path or path.endswith(('/', '.')) else os.path.join(base, path)
        for path in table.column('path')
    ]
    files = _add_suffixes(table, files, root)
    places = [os.path.abspath(file) for file in files]
    if len(set(places)) < len(places):
        first: Dict[str, int] = {}
        for line, path, place in zip(table.lines, table.column('path'), places):
            if first.setdefault(place, line) != line:
                raise ValueError(
                    f"'{table.path}' line {line}: image '{path}' is in line {first[place]} already: remove one."
                )
    return files


def _add_suffixes(table: Table, files: List[str], root: Path) -> List[str]:
    """Files of the images that are named without suffix, in their directory or below it.

    Raises:
        ValueError: if there are several of a name.
    """
    bare = {
        i
        for i, file in enumerate(split_frame(file)[0] for file in files)
        if not (file.lower().endswith(IMG_EXTENSIONS) or os.path.exists(file))  # a UID has dots, but no suffix
    }
    if not bare or not root.is_dir():
        return files
    found: Dict[str, List[str]] = {}
    for _, names in walk_folder(str(root)):
        for file in names:
            if file.lower().endswith(IMG_EXTENSIONS):
                stem, _ = split_suffix(file)
                for key in {os.path.relpath(stem, root), os.path.basename(stem)}:
                    found.setdefault(key, []).append(file)
    number, result = 0, list(files)
    for i, (line, path) in enumerate(zip(table.lines, table.column('path'))):
        stem, frame = split_frame(path)
        images = found.get(os.path.normpath(stem), []) if i in bare else []
        if len(images) > 1:
            raise ValueError(
                f"'{table.path}' line {line}: '{path}' may be {join_names(sorted(images))}: give the file's name."
            )
        if images:
            result[i], number = images[0] if frame is None else f'{images[0]}#{frame}', number + 1
    if number:
        _logger.info(f"{number:,} images of '{table.path}' are named without suffix, and found in '{root}'.")
    return result


def _read_splits(table: Table, split_column: str, default: str) -> np.ndarray:
    """Split of each row, '' for none, (N,).

    Raises:
        ValueError: if a split is unknown.
    """
    if split_column not in table.columns:
        return np.full(len(table.rows), default)
    splits = [split.strip().lower() for split in table.column(split_column)]
    synonyms = {'': '', **{name: split for split, names in SPLITS.items() for name in names}}
    unknown = set(splits) - set(synonyms)
    if unknown:
        i = min(map(splits.index, unknown))
        raise ValueError(
            f"'{table.path}' line {table.lines[i]}: unknown split '{splits[i]}', expected one of"
            f' {", ".join(name for name in synonyms if name)}.'
        )
    without = [line for line, split in zip(table.lines, splits) if not split]
    if without:
        _logger.warning(
            f"Ignored {len(without)} rows of '{table.path}' without a split"
            f' (line{"s" * (len(without) > 1)} {join_names([str(line) for line in without])}).'
        )
    return np.array([synonyms[split] for split in splits], str)


def _read_groups(table: Table, column: str) -> Optional[np.ndarray]:
    """Group of each row, (N,), None without such a column."""
    if column not in table.columns:
        return None
    return np.array(fill_groups(table, [group.strip() for group in table.column(column)], table.column('path')))


def check_first_files(config: SourceConfig, only: Optional[str]) -> None:
    """Fail early if none of the first images of a long table exists, before all of it is read.

    Images of other splits may be elsewhere: if a row of another split is among the first ones, nothing is checked.

    Raises:
        ValueError: if none exists.
    """
    path = Path(config.data_csv)
    root = Path(config.data_dir or path.parent)
    wanted = {name for split, names in SPLITS.items() if only in (None, split) for name in names}
    column = config.path_column
    paths = [
        row[column]
        for row in read_first_rows(path, FIRST_ROWS, (column, *config.label_column))
        if row.get(column) and (row.get(config.split_column, only or 'train') or '').strip().lower() in wanted
    ]
    if len(paths) == FIRST_ROWS and not any(
        os.path.exists(split_frame(root / name)[0]) or not split_suffix(name)[1] for name in paths
    ):
        raise ValueError(
            f"Cannot read image '{root / paths[0]}' (FileNotFoundError), and none of the first {FIRST_ROWS} images of"
            f" '{path}' exists: its paths are relative to '{root}', specify another directory with --data-dir."
        )
