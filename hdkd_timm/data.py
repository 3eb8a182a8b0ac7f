"""The images of a training: where they come from, their classes, and their splits 'train', 'val' and 'test'.

On timm's readers. What timm passes over in silence ends in an error here: a class without images, classes that differ
between splits, images that sit in another folder level, and images that cannot be read (timm would put a neighbour in
their place).
"""
import csv
import dataclasses
import functools
import hashlib
import logging
import math
import os
import unicodedata
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from timm.data import create_dataset
from timm.data.readers.reader import Reader

from .config import setting
from .files import TEXT
from .folders import (
    Seen,
    count_suffixes,
    folder_id,
    folders_above,
    name_some,
    natural_order,
    scan_folder,
    sort_files,
    walk_folder,
    warn_left_out,
)
from .images import (
    IMG_EXTENSIONS,
    IMG_MODES,
    ImageRecord,
    StoredValues,
    convert_image,
    describe_ranges,
    image_size,
    inspect_image,
    inspect_images,
    open_image_file,
    read_image,
    upright_size,
)
from .tars import TarReader

_logger = logging.getLogger(__name__)

SPLITS = {  # their names in folders and tables, in lower case
    'train': ('train', 'training'),
    'val': ('val', 'valid', 'validation'),
    'test': ('test', 'testing'),
}
CONTENTS = ('bytes', 'sha256')  # columns of images.csv that tell what was read
# what programs write for a missing value (pandas, numpy, Excel), and what may be one or a name, in lower case
MISSING = ('', 'nan', '-nan', '<na>', 'nat', '#n/a')
DOUBTFUL = ('na', 'n/a', 'null', 'none', '-', '?')
CHUNK = 1000  # images that are read at a time, before it is decided whether to go on
MOST_BAD = 20  # images that cannot be read, after which no more are looked for where the first ends the run
ITERABLE = ('wds', 'tfds', 'hfids')  # timm's datasets without random access


class NoSplit(ValueError, FileNotFoundError):
    """The data has no such split."""


@dataclasses.dataclass
class SourceConfig:
    """Where labelled images come from, named as in timm's train.py."""
    data_dir: Optional[str] = setting(
        None, 'folder with train/<class>/*, test/<class>/* and optionally val/<class>/*, or with train.tar, test.tar')
    data_csv: Optional[str] = setting(
        None, "CSV file instead, columns path (relative to --data-dir, else to the file's folder), label, split, group",
        metavar='FILE')
    split_column: str = setting('split', 'CSV column that tells train, val or test')
    group_column: Optional[str] = setting(
        None, "CSV column of groups (patients, lesions) that no split may tear apart (default: 'group' if it is there)")
    dataset: Optional[str] = setting(
        None, "dataset of timm's create_dataset instead (hfds/NAME, wds/NAME, torch/NAME), root --data-dir")
    train_split: str = setting('train', "the --dataset's split to train on")
    val_split: str = setting('', "the --dataset's split to choose the epoch on, empty for none")
    test_split: str = setting('test', "the --dataset's split to test on, empty for none")
    dataset_download: bool = setting(False, 'let the --dataset be downloaded')
    class_map: Optional[str] = setting(None, "the --dataset's class map, a text file with a class a line")
    input_key: Optional[str] = setting(None, "the --dataset's image field")
    target_key: Optional[str] = setting(None, "the --dataset's label field")
    seed: int = setting(42, 'random seed', at_least=0)


@dataclasses.dataclass
class DataConfig(SourceConfig):
    """Settings of `create_datasets`."""
    num_classes: Optional[int] = setting(None, 'number of classes, for datasets that do not tell', at_least=2)
    in_chans: int = setting(3, 'image channels, 3 (RGB) or 1 (grey)')
    train_fraction: float = setting(
        1., 'share of the training images to use, drawn per class with the seed', above=0, at_most=1)
    val_fraction: float = setting(
        0., 'share of the training images to choose the epoch on where there is no val split, per class and by group',
        at_least=0, below=1)
    folds: Optional[int] = setting(
        None, 'cross-validation: cut the training images into so many folds, per class and by group, and hold one out,'
        ' as val where there is a test split, else as test', at_least=2)
    fold: int = setting(0, 'the fold held out, from 0', at_least=0)
    on_bad_image: str = setting(
        'error', 'images that cannot be read end the run, or are left out', choices=('error', 'skip'))
    check_images: bool = setting(
        True, 'read every image once before the training; without it, a run that is resumed compares the sizes of its'
        ' image files, not their contents')


@dataclasses.dataclass
class Samples:
    """Labelled images of a split, as indices into a timm reader.

    Args:
        reader: reader[index] is (open file or image, target).
        indices: Which of the reader's images, (N,).
        targets: Class indices, (N,).
        groups: Groups of images that belong together, (N,), or None.
        contents: Size in bytes and SHA-256 of each image as it was read, as text, '' where unknown, (N, 2), or None.
        listed: The same as the table of the images tells it, (N, 2), or None.
    """
    reader: Any
    indices: np.ndarray
    targets: np.ndarray
    groups: Optional[np.ndarray] = None
    contents: Optional[np.ndarray] = None
    listed: Optional[np.ndarray] = None

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, keep: np.ndarray) -> 'Samples':
        """The samples of these positions (or of this mask)."""
        of_each = {name: getattr(self, name) for name in ('indices', 'targets', 'groups', 'contents', 'listed')}
        return Samples(self.reader, **{
            name: None if values is None else values[keep] for name, values in of_each.items()})

    def filenames(self) -> List[str]:
        """Name of each image: the path of those that are files."""
        return [self.filename(i) for i in range(len(self))]

    def filename(self, i: int) -> str:
        """Name of the image in position i, its number in the reader if it has none."""
        index = int(self.indices[i])
        return str(self.reader.filename(index, absolute=isinstance(self.reader, FileReader)) or index)


class FileReader(Reader):
    """timm reader of image files: samples are pairs of path and class index."""

    def __init__(self, samples: Sequence[Tuple[str, int]]):
        super().__init__()
        self.samples = samples

    def __getitem__(self, index: int) -> Tuple[Any, int]:
        path, target = self.samples[index]
        return open_image_file(path), target

    def __len__(self) -> int:
        return len(self.samples)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        path = self.samples[index][0]
        return os.path.basename(path) if basename else path


class _TorchvisionReader(Reader):
    """timm reader of a torchvision dataset, whose images come decoded."""

    def __init__(self, dataset: Any):
        super().__init__()
        self.dataset = dataset

    def __getitem__(self, index: int) -> Tuple[Image.Image, int]:
        return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return str(index)


class SampleDataset(torch.utils.data.Dataset):
    """Images and class indices of `Samples`. An image that cannot be read raises, it is named."""

    def __init__(self, samples: Samples, img_mode: str = 'RGB', transform: Optional[Callable] = None):
        self.samples = samples
        self.targets = samples.targets
        self.img_mode = img_mode
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Tuple[Any, int]:
        image = self.read(index)
        return image if self.transform is None else self.transform(image), int(self.targets[index])

    def read(self, index: int) -> Image.Image:
        """The image itself.

        Raises:
            ValueError: if it cannot be read.
        """
        return self.open(index, lambda image: convert_image(image, self.img_mode),
                          lambda file, name: read_image(file, self.img_mode, name=name))

    @functools.cached_property
    def image_sizes(self) -> List[Tuple[int, int]]:
        """Width and height of each sample's image, from the header of the file.

        Raises:
            ValueError: if one cannot be read.
        """
        return [self.open(i, upright_size, image_size) for i in range(len(self.samples))]

    def open(self, index: int, of_image: Callable, of_file: Callable) -> Any:
        name = self.samples.filename(index)
        try:
            file = self.samples.reader[int(self.samples.indices[index])][0]
            if isinstance(file, Image.Image):
                return of_image(file)
            with file:
                return of_file(file, name)
        except Exception as e:  # Pillow's plugins raise errors of many types on broken files
            raise ValueError(f"Cannot read image '{name}' ({type(e).__name__}: {e}).") from e


def _same_folder(a: str, b: str) -> ValueError:
    return ValueError(f"Class folders '{a}' and '{b}' are the same folder: an image has one class, remove one of them.")


def list_classes(split_dir: Union[str, Path]) -> Tuple[Dict[str, List[str]], List[str]]:
    """Class -> image files of `split_dir/<class>/*`, classes in timm's (natural) order; and the files that are left
    out, neither images nor known side files.

    Raises:
        FileNotFoundError: if the folder, its class folders or the images of a class are missing.
        OSError: if a folder cannot be read.
        ValueError: if there are images a level above or below the class folders, or two of these are one folder.
    """
    split_dir = str(split_dir)
    if not os.path.isdir(split_dir):
        raise FileNotFoundError(f"'{split_dir}' is not a directory.")
    names, files = scan_folder(split_dir)
    outside, others = sort_files(os.path.join(split_dir, name) for name in files)
    if outside:
        raise ValueError(f"'{split_dir}' holds images outside of class folders; expected '{split_dir}/<class>/*'.")
    above = {**folders_above(split_dir), folder_id(split_dir): split_dir}
    folders: Seen = {}
    for name in names:
        folder = os.path.join(split_dir, name)
        identity = folder_id(folder)
        if identity in above:
            _logger.warning(f"Passed over '{folder}': it is the folder '{above[identity]}' again.")
        elif identity in folders:
            raise _same_folder(folders[identity], folder)
        else:
            folders[identity] = folder
    if not folders:
        raise FileNotFoundError(f"No class folders in '{split_dir}'; expected '{split_dir}/<class>/*'.")
    seen, classes = {**above, **folders}, {}
    for identity, folder in folders.items():
        del seen[identity]  # the walk begins with it
        images: List[str] = []
        left_out: List[str] = []
        for inner, files in walk_folder(folder, seen):
            listing = sort_files(files)
            if listing.images and inner != folder:
                raise ValueError(f"'{inner}' holds images a level too deep; expected '{split_dir}/<class>/*'.")
            images += listing.images
            left_out += listing.others
        if not images:
            found = f'; it holds {count_suffixes(left_out)}' if left_out else ''
            raise FileNotFoundError(
                f"No images in class folder '{folder}' (looked for {' '.join(IMG_EXTENSIONS)}{found}): add some, or"
                ' remove the folder.')
        classes[os.path.basename(folder)] = images
        others += left_out
    return {name: classes[name] for name in sorted(classes, key=natural_order)}, others


def find_splits(data_dir: Union[str, Path], required: str = 'train') -> Dict[str, Path]:
    """Folders, or tar files, of the splits that are there; the required one always is.

    They are named train or training, test or testing, and val, valid or validation, in any case.

    Raises:
        FileNotFoundError: if the folder or its required split is missing.
        ValueError: if two folders or files are the same split.
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise FileNotFoundError(f"Data folder '{data_dir}' does not exist, or is not a directory.")
    folders, files = scan_folder(str(data_dir))
    entries = sorted([*folders, *(name for name in files if name.lower().endswith('.tar'))])
    splits = {}
    for split, names in SPLITS.items():
        found = [entry for entry in entries if entry.lower().removesuffix('.tar') in names]
        if len(found) > 1:
            raise ValueError(f"'{found[0]}' and '{found[1]}' of '{data_dir}' are both the {split} split.")
        if found:
            splits[split] = data_dir / found[0]
    if required not in splits:
        raise NoSplit(
            f"'{data_dir}' has no folder '{required}' (folders found: {', '.join(entries) or 'none'}); expected"
            " 'train/<class>/*' and 'test/<class>/*'.")
    return splits


def _check_classes(classes: Dict[str, List[str]], places: Dict[str, Any]) -> List[str]:
    """The class names that all splits share."""
    first = 'train' if 'train' in classes else next(iter(classes))
    for split, names in classes.items():
        difference = sorted(set(names) ^ set(classes[first]))
        if difference:
            name = difference[0]
            where, lacks = (first, split) if name in classes[first] else (split, first)
            raise ValueError(
                f"Class '{name}' is in '{places[where]}' but not in '{places[lacks]}': all splits need the same"
                f" classes ({len(difference)} differ: {', '.join(difference)}).")
    return classes[first]


def read_folders(
        data_dir: Union[str, Path],
        only: Optional[str] = None,
) -> Tuple[Dict[str, Samples], List[str]]:
    """Samples of the splits of a data folder, in class folders or in tar files of class folders, and the class names.

    Args:
        data_dir: The folder.
        only: The one split that is wanted; without a folder of its own it is the class folders of `data_dir`.

    Raises:
        FileNotFoundError, ValueError: as `find_splits` and `find_classes`; if the classes of two splits differ, or a
            tar file is damaged or holds no images.
    """
    if only is None:
        places = find_splits(data_dir)
    else:
        try:
            places = {only: find_splits(data_dir, only)[only]}
        except FileNotFoundError:
            if not Path(data_dir).is_dir() or any(f.name.lower() in SPLITS['train'] for f in Path(data_dir).iterdir()):
                raise
            places = {only: Path(data_dir)}
    samples, classes = {}, {}
    files: Dict[str, Dict[str, List[str]]] = {}
    others: List[str] = []
    for split, place in places.items():
        if place.is_dir():
            files[split], left_out = list_classes(place)
            classes[split] = list(files[split])
            others += left_out
        else:
            reader = TarReader(str(place))
            classes[split] = reader.classes
            samples[split] = Samples(reader, np.arange(len(reader)), np.array(reader.targets))
    names = _check_classes(classes, places)
    for split, of_class in files.items():
        found = sorted(
            ((path, i) for i, name in enumerate(names) for path in of_class[name]),
            key=lambda sample: natural_order(sample[0]))
        samples[split] = Samples(FileReader(found), np.arange(len(found)), np.array([t for _, t in found]))
    if Path(data_dir) not in places.values():
        others += _find_strays(str(data_dir))
    warn_left_out([os.path.relpath(path, data_dir) for path in others], str(data_dir))
    _warn_of_shared_folders(places, names)
    return {split: samples[split] for split in places}, names


def _find_strays(data_dir: str) -> List[str]:
    """Tell of what lies beside the splits. Returns the files that are neither images nor known side files."""
    known = {name for names in SPLITS.values() for name in names}
    folders, files = scan_folder(data_dir)
    folders = [name for name in folders if name.lower().removesuffix('.tar') not in known]
    files = [name for name in files if not (name.lower().endswith('.tar') and name.lower()[:-4] in known)]
    images, others = sort_files(os.path.join(data_dir, name) for name in files)
    if folders:
        _logger.warning(
            f"Left out {len(folders):,} folder{'s' * (len(folders) > 1)} of '{data_dir}' beside its splits:"
            f' {name_some(sorted(folders, key=natural_order))}.')
    if images:
        names = sorted((os.path.basename(path) for path in images), key=natural_order)
        _logger.warning(
            f"Left out {len(images):,} image{'s' * (len(images) > 1)} of '{data_dir}' outside of its splits:"
            f' {name_some(names)}.')
    return others


def _warn_of_shared_folders(places: Dict[str, Path], classes: List[str]) -> None:
    """Tell of a folder that is linked into two splits."""
    first: Seen = {}
    for place in places.values():
        for path in [place, *(place / name for name in classes if place.is_dir())]:
            other = first.setdefault(folder_id(str(path)), str(path))
            if other != str(path):
                _logger.warning(f"'{other}' and '{path}' are the same: its images are in both splits, results flatter.")
                break


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_table(path: Path) -> Tuple[List[str], List[Tuple[int, List[str]]]]:
    """Column names of a CSV file, and its rows with the number of their (last) line.

    Raises:
        ValueError: if it is no CSV file, two columns have one name, or a row has more cells than the header.
    """
    try:
        with path.open(**{**TEXT, 'encoding': 'utf-8-sig'}) as file:
            reader = csv.reader(file, strict=True)  # else an open quote swallows the rows that follow
            rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as e:
        raise ValueError(f"'{path}' is no CSV file in UTF-8 (line {reader.line_num}: {e}).") from e
    columns = rows.pop(0)[1] if rows else []
    twice = next((name for name in columns if name and columns.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"'{path}' line 1: two columns are called '{twice}': rename or remove one.")
    for line, row in rows:
        if any(row[len(columns):]):
            raise ValueError(
                f"'{path}' line {line}: {len(row)} cells, the header has {len(columns)}: put text that holds a comma in"
                ' double quotes.')
    return columns, rows


def _refuse_other_encodings(path: Path, root: Path, columns: List[str], rows: List[Tuple[int, List[str]]]) -> None:
    for line, row in [(1, columns), *rows]:
        if not _is_utf8(''.join(row)):
            for name, value in zip(columns, row):
                # a name that is no UTF-8 may be that of a file, anything else is of a table in another encoding
                if not _is_utf8(value) and not (name == 'path' and line > 1 and (root / value).exists()):
                    raise ValueError(f"'{path}' line {line}: {value!r} is not UTF-8: save the table as 'CSV UTF-8'.")


def _find_columns(path: Path, columns: List[str], split_column: str, group_column: Optional[str]) -> Dict[str, int]:
    """Where path, label, split and group are, the last two if they are there.

    Raises:
        ValueError: if a column is missing that is needed or was asked for.
    """
    wanted = dict(path='path', label='label', split=split_column, group=group_column or 'group')
    asked = {'path', 'label', *(['split'] * (split_column != 'split')), *(['group'] * (group_column is not None))}
    for key, name in wanted.items():
        if name in columns:
            continue
        if key in asked:
            separator = next((c for c in ';\t|' if len(columns) == 1 and c in columns[0]), None)
            hint = f' The cells seem to be separated by {separator!r}: save the table with commas.' if separator else ''
            raise ValueError(
                f"'{path}' has no column '{name}' (columns found: {', '.join(columns) or 'none'}).{hint}")
        similar = next((column for column in columns if column.strip().lower() == name), None)
        if similar is not None:
            _logger.warning(
                f"Column '{similar}' of '{path}' is not used, its name is not '{name}': give it that name, or name it"
                f' with --{key}-column.')
    return {key: columns.index(name) for key, name in wanted.items() if name in columns}


def read_csv(
        path: Union[str, Path],
        root: Optional[Union[str, Path]] = None,
        split_column: str = 'split',
        group_column: Optional[str] = None,
        only: Optional[str] = None,
) -> Tuple[Dict[str, Samples], List[str]]:
    """Samples of a table of images, and the class names.

    Args:
        path: CSV file with the columns path and label, and optionally a split (without it all is 'train') and a group.
            Rows without a split are left out. Its columns bytes and sha256, of images.csv of a run, become `listed`.
        root: Folder that the paths are relative to, else that of the file.
        split_column: Name of the column that tells the split.
        group_column: Name of the column that tells the group, 'group' if it is there.
        only: The one split that is wanted; without a column of splits it is all rows.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a column is missing or there twice, a row lacks a cell or has too many, its label reads as a
            missing value, a path is there twice, a split is unknown, the classes of two splits differ, or the text is
            not UTF-8 (but for names of files that are so called).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"CSV file '{path}' does not exist, or is not a regular file.")
    root = Path(root) if root else path.parent
    columns, rows = _read_table(path)
    _refuse_other_encodings(path, root, columns, rows)
    where = _find_columns(path, columns, split_column, group_column)
    synonyms = {name: split for split, names in SPLITS.items() for name in names}
    by_split: Dict[str, List[_Row]] = {}
    lines: Dict[str, int] = {}
    left_out: List[int] = []
    for line, cells in rows:
        row = _read_row(path, line, cells, columns, where, only or 'train')
        file = str(root / row.path)
        first = lines.setdefault(os.path.abspath(file), line)
        if first != line:
            raise ValueError(f"'{path}' line {line}: image '{row.path}' is in line {first} already.")
        if row.split and row.split not in synonyms:
            raise ValueError(f"'{path}' line {line}: split '{row.split}' is none of {', '.join(synonyms)}.")
        if row.split:
            by_split.setdefault(synonyms[row.split], []).append(row._replace(path=file))
        else:
            left_out.append(line)
    if left_out:
        _logger.warning(
            f"Left out {len(left_out)} rows of '{path}' without a split (line"
            f"{'s' * (len(left_out) > 1)} {name_some([str(line) for line in left_out])}).")
    _warn_of_missing_values(path, [row for rows in by_split.values() for row in rows])
    by_split = {split: rows for split, rows in by_split.items() if only in (None, split)}
    if (only or 'train') not in by_split:
        raise NoSplit(f"'{path}' has no row of split '{only or 'train'}' (column '{split_column}').")
    classes = {
        split: sorted({row.label for row in rows}, key=natural_order) for split, rows in by_split.items()}
    names = _check_classes(classes, {split: f'{path}, split {split}' for split in by_split})
    index_of = {name: i for i, name in enumerate(names)}
    places = [columns.index(name) for name in CONTENTS if name in columns]
    samples = {}
    for split, rows in by_split.items():
        found = [(row.path, index_of[row.label]) for row in rows]
        groups = None
        if 'group' in where:  # an image without a group is its own
            groups = np.array([
                row.group if row.group.lower() not in MISSING else f"path {row.cells[where['path']]}" for row in rows])
        listed = np.array([[row.cells[i] for i in places] for row in rows]) if len(places) == len(CONTENTS) else None
        samples[split] = Samples(
            FileReader(found), np.arange(len(found)), np.array([t for _, t in found]), groups, listed=listed)
    return samples, names


class _Row(NamedTuple):
    """A row of a table of images: its cells, and those that tell of the image, blanks stripped."""
    line: int
    cells: List[str]
    path: str
    label: str
    split: str
    group: str


def _read_row(
        path: Path, line: int, cells: List[str], columns: List[str], where: Dict[str, int], split: str) -> _Row:
    """A row of the table.

    Args:
        path: The table.
        line: Number of the row's line.
        cells: Its cells.
        columns: Names of all columns.
        where: Which of them are which.
        split: Its split, if no column tells.

    Raises:
        ValueError: if the row lacks a cell, its path or label, or its label reads as a missing value.
    """
    def cell(key: str) -> str:
        return cells[where[key]] if key in where and where[key] < len(cells) else ''

    label = cell('label').strip()
    if not cell('path') or not label:
        raise ValueError(f"'{path}' line {line}: no {'label' if cell('path') else 'path'}.")
    if len(cells) < len(columns):
        raise ValueError(f"'{path}' line {line}: {len(cells)} cells, the header has {len(columns)}.")
    if label.lower() in MISSING:
        raise ValueError(
            f"'{path}' line {line}: label '{label}' is how a missing value is written: add the label, or remove the"
            ' row. If it is a class, give that another name.')
    return _Row(
        line, cells, cell('path'), label, cell('split').strip().lower() if 'split' in where else split,
        cell('group').strip())


def _warn_of_missing_values(path: Path, rows: List[_Row]) -> None:
    """Tell of groups that stand for none, and of labels and groups that may."""
    without = [row for row in rows if row.group and row.group.lower() in MISSING]
    if without:
        _logger.warning(
            f"{len(without):,} images of '{path}' have the group '{without[0].group}' (line {without[0].line}), a"
            ' missing value: each is a group of its own.')
    for key in ('label', 'group'):
        values = Counter(getattr(row, key) for row in rows)
        for value in sorted(values):
            if value.lower() in DOUBTFUL and (key == 'label' or values[value] > 1):
                way_out = 'remove these rows' if key == 'label' else 'leave the cell empty'
                _logger.warning(
                    f"{values[value]:,} images of '{path}' have the {key} '{value}', taken as a name: if it stands for"
                    f' a missing value, {way_out}.')
        if key == 'group':
            warn_of_similar_names(values, 'groups', str(path))


def warn_of_similar_names(names: Iterable[str], what: str, where: str) -> None:
    """Tell of names that differ only in case, white space or the form of their Unicode characters."""
    first: Dict[str, str] = {}
    for name in sorted(names):
        other = first.setdefault(' '.join(unicodedata.normalize('NFKC', name).casefold().split()), name)
        if other != name:
            _logger.warning(
                f"The {what} {other!r} and {name!r} of '{where}' differ only in case, white space or Unicode form: they"
                ' are taken as two.')


def _open_named(
        config: SourceConfig, split: str, is_training: bool, batch_size: int, mode: str = '', **kwargs: Any) -> Any:
    try:
        return create_dataset(
            config.dataset, root=config.data_dir, split=split, is_training=is_training, batch_size=batch_size,
            download=config.dataset_download, seed=config.seed, input_img_mode=mode, input_key=config.input_key,
            target_key=config.target_key, **kwargs)
    except ImportError as e:
        raise ValueError(f"Dataset '{config.dataset}' needs another package ({e}).") from e
    except Exception as e:  # of a dozen libraries
        raise ValueError(
            f"Cannot open split '{split}' of dataset '{config.dataset}' ({type(e).__name__}: {e}); see --train-split,"
            ' --val-split and --test-split, empty for none.') from e


def _read_class_map(path: str) -> List[str]:
    """The lines of a class map that are not empty."""
    return [line.strip() for line in Path(path).read_text(encoding='utf-8').splitlines() if line.strip()]


def _read_labels(dataset: Any, config: SourceConfig, split: str) -> Tuple[np.ndarray, List[str]]:
    """Class indices (N,) of a split of a Hugging Face dataset, and the class names, none if labels are mere numbers."""
    key = config.target_key or 'label'
    where = f"of split '{split}' of dataset '{config.dataset}'"
    if key not in dataset.column_names:
        raise ValueError(
            f"No field '{key}' {where} (found: {', '.join(dataset.column_names)}): name it with --target-key.")
    labels = list(dataset[key])
    names = list(getattr(dataset.features[key], 'names', None) or ())
    for i, label in enumerate(labels):
        if label is None or (not isinstance(label, str) and label < 0):  # a hidden test label is -1
            raise ValueError(f'Image {i} {where} has no label ({label}).')
    if names:
        labels = [names[label] for label in labels]
    if config.class_map:
        names = _read_class_map(config.class_map)
    elif not names and labels and isinstance(labels[0], str):
        names = sorted(set(labels), key=natural_order)
    if not names:
        return np.array(labels), []
    index_of = {name: i for i, name in enumerate(names)}
    unknown = [label for label in labels if label not in index_of]
    if unknown:
        raise ValueError(f"Class '{unknown[0]}' {where} is not in '{config.class_map}'.")
    return np.array([index_of[label] for label in labels]), names


def read_named(config: SourceConfig, only: Optional[str] = None) -> Tuple[Dict[str, Samples], List[str]]:
    """Samples of the splits (or of the only one that is wanted) of one of timm's datasets with random access (hfds/,
    torch/), and the class names.

    Raises:
        ValueError: if it is none of these or cannot be opened, a label is missing or not in the class map, or the
            classes of two splits differ.
    """
    prefix = config.dataset.split('/')[0].lower()
    if prefix not in ('hfds', 'torch'):
        raise ValueError(
            f"Unknown dataset '{config.dataset}': expected hfds/NAME, torch/NAME, {'/NAME, '.join(ITERABLE)}/NAME.")
    if config.class_map and prefix == 'torch':
        raise ValueError(f"--class-map is not for '{config.dataset}', whose class indices come from torchvision.")
    samples, classes, places = {}, {}, {}
    for split, theirs in (('train', config.train_split), ('val', config.val_split), ('test', config.test_split)):
        if not theirs or only not in (None, split):
            continue
        if prefix == 'torch':
            dataset = _open_named(config, theirs, split == 'train', 1)
            reader, targets = _TorchvisionReader(dataset), np.asarray(getattr(dataset, 'targets', ()))
            if targets.shape != (len(dataset),):  # some tell more than a class, or nothing before it is read
                raise ValueError(
                    f"Dataset '{config.dataset}' tells no class index of each image: list its images in a --data-csv.")
            classes[split] = [str(name) for name in getattr(dataset, 'classes', ())]
        else:
            # the class map keeps timm 1.0.29 from asking labels that are text for class indices
            reader = _open_named(config, theirs, split == 'train', 1, class_map={'': 0}).reader
            reader.remap_class = False
            targets, classes[split] = _read_labels(reader.dataset, config, theirs)
        samples[split] = Samples(reader, np.arange(len(reader)), targets)
        places[split] = f'{config.dataset}, split {theirs}'
    if (only or 'train') not in samples:
        raise NoSplit(f"No split '{only or 'train'}' of dataset '{config.dataset}' is named: see --train-split,"
                         ' --val-split and --test-split.')
    names = _check_classes(classes, places)
    if not names:
        names = [str(i) for i in range(max(int(s.targets.max()) for s in samples.values()) + 1)]
    return samples, names


def draw_fraction(targets: np.ndarray, fraction: float, seed: int = 42) -> np.ndarray:
    """Positions of a seeded share of each class, at least one of each, in ascending order.

    Args:
        targets: Class indices, (N,).
        fraction: Share to keep, above 0 and up to 1; the number of each class is rounded.
        seed: Seed of the draw.

    Raises:
        ValueError: if the fraction is not within its range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f'train_fraction must be above 0 and at most 1, got {fraction}.')
    rng = np.random.default_rng(seed)
    kept = []
    for target in np.unique(targets):
        positions = np.flatnonzero(targets == target)
        kept.extend(rng.permutation(positions)[:max(1, round(fraction * len(positions)))])
    return np.array(sorted(kept))


def _units(samples: Samples) -> Dict[int, int]:
    """How many images (or groups) of each class there are, the most folds that it can be cut into."""
    return {
        int(target): len(np.unique(samples.groups[samples.targets == target]))
        if samples.groups is not None else int((samples.targets == target).sum())
        for target in np.unique(samples.targets)}


def cut_folds(samples: Samples, folds: int, seed: int = 42) -> np.ndarray:
    """Fold of each sample, (N,): balanced per class, no group in two of them (scikit-learn's stratified folds).

    Raises:
        ValueError: if there are fewer than two folds, or more of them than images (or groups) of a class.
    """
    units = _units(samples)
    smallest = min(units, key=units.get)
    what = 'images' if samples.groups is None else 'groups'
    if not 2 <= folds <= units[smallest]:
        raise ValueError(
            f'Cannot cut the training images into {folds} folds: expected 2 to {units[smallest]}, the number of {what}'
            ' of the smallest class.')
    return _cut(samples, folds, seed)


def _cut(samples: Samples, folds: int, seed: int) -> np.ndarray:
    splitter = StratifiedKFold if samples.groups is None else StratifiedGroupKFold
    fold_of = np.empty(len(samples), int)
    splits = splitter(folds, shuffle=True, random_state=seed).split(samples.targets, samples.targets, samples.groups)
    for fold, (_, held_out) in enumerate(splits):
        fold_of[held_out] = fold
    return fold_of


def draw_val(samples: Samples, fraction: float, seed: int = 42) -> np.ndarray:
    """Mask of the samples that make a val split, (N,): some of the stratified folds of `cut_folds`, of 20 or more.

    Their share is as near the fraction as folds can be that leave images of each class on both sides.

    Raises:
        ValueError: if the fraction is not between 0 and 1, or no such split is found (a class has a single image, or
            group).
    """
    if not 0 < fraction < 1:
        raise ValueError(f'val_fraction must be above 0 and below 1, got {fraction}.')
    units = _units(samples)
    folds = max(20, math.ceil(1 / min(fraction, 1 - fraction)))
    most = min(folds, max(units.values())) if min(units.values()) > 1 else 1
    cuts: Dict[int, np.ndarray] = {}
    for _, folds, number in sorted((abs(k / n - fraction), n, k) for n in range(2, most + 1) for k in range(1, n)):
        if folds not in cuts:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore', UserWarning)  # of classes with fewer images than folds
                cuts[folds] = _cut(samples, folds, seed)
        for first in range(folds):
            held_out = (cuts[folds] - first) % folds < number
            if all(len(np.unique(samples.targets[side])) == len(units) for side in (held_out, ~held_out)):
                return held_out
    raise ValueError(
        'No val split with each class can be drawn: the smallest class has'
        f" {min(units.values())} training {'images' if samples.groups is None else 'groups'}.")


def _warn_of_leaks(samples: Dict[str, Samples]) -> None:
    for split in ('val', 'test'):
        if split in samples and samples[split].groups is not None:
            shared = np.isin(samples[split].groups, samples['train'].groups)
            if shared.any():
                _logger.warning(
                    f'{shared.sum()} of {len(shared)} {split} images share a group with training images: their results'
                    ' flatter.')


def inspect_samples(samples: Samples, img_mode: str, most_bad: Optional[int] = None) -> List[ImageRecord]:
    """Read every image once. Ends early when so many cannot be read, or a few more."""
    records: List[ImageRecord] = []
    bad = 0
    for start in range(0, len(samples), CHUNK):
        chunk = range(start, min(start + CHUNK, len(samples)))
        if isinstance(samples.reader, FileReader):
            records += inspect_images([samples.filename(i) for i in chunk], img_mode)
        else:
            dataset = SampleDataset(samples, img_mode)
            records += [_inspect_sample(dataset, i) for i in chunk]
        bad += sum(bool(record.error) for record in records[start:])
        if most_bad is not None and bad >= most_bad:
            break
    return records


def _inspect_sample(dataset: SampleDataset, index: int) -> ImageRecord:
    """What one reading tells of an image in a dataset. The digest of one that comes decoded is that of its pixels."""
    def inspect_decoded(image: Image.Image) -> ImageRecord:
        head = repr((image.mode, image.size, image.getpalette()))
        return inspect_image(image, dataset.img_mode)._replace(
            digest=hashlib.sha256(head.encode() + image.tobytes()).hexdigest())

    try:
        return dataset.open(index, inspect_decoded, lambda file, name: inspect_image(file, dataset.img_mode, name))
    except ValueError as e:
        return ImageRecord(error=f'{type(e.__cause__).__name__}: {e.__cause__}')


def _check_images(
        samples: Samples,
        split: str,
        classes: List[str],
        config: DataConfig,
) -> Tuple[Samples, List[StoredValues]]:
    """The samples that can be read, with what was read of them, and how their values are stored."""
    records = inspect_samples(
        samples, IMG_MODES[config.in_chans], MOST_BAD if config.on_bad_image == 'error' else None)
    bad = [i for i, record in enumerate(records) if record.error]
    if bad and config.on_bad_image == 'error':
        more = ' or more' if len(records) < len(samples) else ''
        raise ValueError(
            f"Cannot read image '{samples.filename(bad[0])}' ({records[bad[0]].error}); {len(bad)}{more} such in split"
            f" '{split}'. Mend or remove it, or leave such images out with --on-bad-image skip.")
    for i in bad:
        _logger.warning(f"Left out image '{samples.filename(i)}', cannot read it ({records[i].error})")
    if bad:
        _logger.warning(f"Left out {len(bad):,} of {len(samples):,} images of split '{split}', which cannot be read.")
    kept = np.array([not record.error for record in records], bool)
    missing = set(samples.targets.tolist()) - set(samples.targets[kept].tolist())
    if missing:
        raise ValueError(f"No readable image of class '{classes[min(missing)]}' in split '{split}'.")
    contents = np.array([(str(record.size or ''), record.digest) for record in records], object).reshape(-1, 2)
    samples = dataclasses.replace(samples, contents=contents).take(kept)
    warn_of_changes(samples, split)
    return samples, [record.values for record in records if not record.error]


def warn_of_dark_images(values: Sequence[StoredValues], names: Sequence[str]) -> None:
    """Tell of images that are read nearly black, by the values and names of all, (N,)."""
    warning = describe_ranges(values, names)
    if warning:
        _logger.warning(warning)


def _note_sizes(samples: Samples, split: str) -> Samples:
    """The samples with the sizes of those that are files, which are not read."""
    if isinstance(samples.reader, FileReader):
        sizes = [(_file_size(samples.filename(i)), '') for i in range(len(samples))]
        samples = dataclasses.replace(samples, contents=np.array(sizes, object).reshape(-1, 2))
        warn_of_changes(samples, split)
    return samples


def _file_size(path: str) -> str:
    try:
        return str(os.stat(path).st_size)
    except OSError:  # told when it is read
        return ''


def find_changes(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Which images have another size or SHA-256, (N,), among those of which both are known.

    Args:
        before, now: As `Samples.contents`, (N, 2).
    """
    return ((before != now) & (before != '') & (now != '')).any(axis=1)


def warn_of_changes(samples: Samples, split: str) -> None:
    """Tell of images that are not as their table lists them."""
    if samples.listed is None or samples.contents is None:
        return
    changed = np.flatnonzero(find_changes(samples.listed, samples.contents))
    if len(changed):
        _logger.warning(
            f"{len(changed):,} of {len(samples):,} images of split '{split}' have changed since they were listed (size"
            f" or SHA-256 differs), the first is '{samples.filename(changed[0])}'.")


def _create_iterable(
        config: DataConfig,
        batch_size: int,
        only: Optional[str],
) -> Tuple[Dict[str, Any], List[str]]:
    """timm's datasets without random access, as they are."""
    refused = [
        name for name in ('train_fraction', 'val_fraction', 'folds')
        if getattr(config, name) != DataConfig.__dataclass_fields__[name].default]
    if refused:
        raise ValueError(
            f"--{refused[0].replace('_', '-')} needs a dataset with random access, '{config.dataset}' has none.")
    if not config.class_map and not config.num_classes:
        raise ValueError(f"Dataset '{config.dataset}' tells no classes: give --num-classes or --class-map.")
    names = _read_class_map(config.class_map) if config.class_map else [str(i) for i in range(config.num_classes)]
    splits = {'train': config.train_split, 'val': config.val_split, 'test': config.test_split}
    splits = {split: theirs for split, theirs in splits.items() if theirs and only in (None, split)}
    if (only or 'train') not in splits or (only is None and len(splits) == 1):
        lacking = only or ('test' if 'train' in splits else 'train')
        raise NoSplit(f"No split '{lacking}' of dataset '{config.dataset}' is named: see --train-split, --val-split"
                         ' and --test-split.')
    # labels of wds/ are class indices, that its reader would look up among the names
    class_map = '' if config.dataset.lower().startswith('wds/') else config.class_map or ''
    # TensorFlow decodes; Pillow's images are converted later
    mode = IMG_MODES[config.in_chans] if config.dataset.lower().startswith('tfds/') else ''
    return {
        split: _open_named(config, theirs, split == 'train', batch_size, mode, class_map=class_map)
        for split, theirs in splits.items()}, names


def read_samples(config: SourceConfig, only: Optional[str] = None) -> Tuple[Dict[str, Samples], List[str]]:
    """Samples of the splits (or of the only one that is wanted) of a source with random access, and the class names.

    Raises:
        FileNotFoundError, ValueError: as `read_folders`, `read_csv` and `read_named`; if no source is given.
    """
    if config.dataset and config.data_csv:
        raise ValueError('Give either --dataset or --data-csv, not both.')
    if config.dataset:
        return read_named(config, only)
    if config.data_csv:
        return read_csv(config.data_csv, config.data_dir, config.split_column, config.group_column, only)
    if config.data_dir:
        return read_folders(config.data_dir, only)
    raise ValueError('No images given: name them with --data-dir, --data-csv or --dataset.')


def create_datasets(
        config: DataConfig,
        batch_size: int = 1,
        only: Optional[str] = None,
) -> Tuple[Dict[str, Any], List[str]]:
    """Datasets of the splits 'train', 'val' and 'test', as far as they are there, all images read once.

    Args:
        config: What to read and how to split it. The fraction is drawn first, a val split or a fold comes from it.
        batch_size: Hint for datasets without random access (wds/, tfds/, hfids/).
        only: The one split that is wanted: the others may be missing.

    Returns:
        Split -> dataset (`SampleDataset`; of those without random access timm's), and the class names by index.

    Raises:
        NoSplit: if `only` is not there.
        FileNotFoundError, ValueError: as the functions above; if an image cannot be read (it is named), none is left
            or none is given to test on.
    """
    if config.in_chans not in IMG_MODES:
        raise ValueError(f'Images can be read with 1 (grey) or 3 (RGB) channels, not with in_chans {config.in_chans}.')
    if config.on_bad_image not in ('error', 'skip'):
        raise ValueError(f"on_bad_image must be 'error' or 'skip', got {config.on_bad_image!r}.")
    if config.dataset and not config.data_csv and config.dataset.split('/')[0].lower() in ITERABLE:
        datasets, classes = _create_iterable(config, batch_size, only)
        _check_number(config, classes)
        return datasets, classes

    cuts = bool(config.folds or config.val_fraction)
    wanted = None if cuts else only  # a split that is cut from others needs these
    samples, classes = read_samples(config, wanted)
    _check_number(config, classes)
    if 'train' in samples:
        train = samples['train']
        samples['train'] = train.take(draw_fraction(train.targets, config.train_fraction, config.seed))
    if wanted is None:
        if len(classes) < 2:
            raise ValueError(f"Only one class, '{classes[0]}', in the data: nothing to tell apart.")
        samples = _cut_splits(samples, config)
        _warn_of_leaks(samples)
    if only is not None:
        if only not in samples:
            raise NoSplit(f"The data has no split '{only}' (found: {', '.join(samples)}).")
        samples = {only: samples[only]}
    if config.check_images:
        values: List[StoredValues] = []
        for split, part in samples.items():
            samples[split], found = _check_images(part, split, classes, config)
            values += found
        warn_of_dark_images(values, [name for part in samples.values() for name in part.filenames()])
    else:
        samples = {split: _note_sizes(part, split) for split, part in samples.items()}
    return {split: SampleDataset(part, IMG_MODES[config.in_chans]) for split, part in samples.items()}, classes


def name_image(samples: Samples, i: int) -> str:
    """What a run calls an image: the whole path of a file, else its name in the dataset."""
    name = samples.filename(i)
    return os.path.abspath(name) if isinstance(samples.reader, FileReader) else name


def list_images(datasets: Dict[str, Any], classes: List[str]) -> List[Dict[str, str]]:
    """Path, label, split (and group), size in bytes and SHA-256 as far as they are known, of each image of datasets
    with random access: rows that `read_csv` can read."""
    rows = []
    for split, dataset in datasets.items():
        samples = getattr(dataset, 'samples', None)
        for i in range(len(samples) if samples else 0):
            row = dict(path=name_image(samples, i), label=classes[samples.targets[i]], split=split)
            if samples.groups is not None:
                row['group'] = str(samples.groups[i])
            if samples.contents is not None:
                row.update(zip(CONTENTS, samples.contents[i]))
            rows.append(row)
    return rows


def _check_number(config: DataConfig, classes: List[str]) -> None:
    if config.num_classes and config.num_classes != len(classes):
        raise ValueError(f"--num-classes {config.num_classes}, but the data has {len(classes)}: {', '.join(classes)}.")


def _cut_splits(samples: Dict[str, Samples], config: DataConfig) -> Dict[str, Samples]:
    """A fold or a val split out of the training images, as the settings say."""
    train = samples['train']
    if config.folds:
        if 'val' in samples:
            raise ValueError('--folds cuts a val split from the training images, but the data has one already.')
        if not 0 <= config.fold < config.folds:
            raise ValueError(f'--fold must be 0 to {config.folds - 1}, got {config.fold}.')
        held_out = cut_folds(train, config.folds, config.seed) == config.fold
        samples = dict(samples, **{'val' if 'test' in samples else 'test': train.take(held_out)})
        train = train.take(~held_out)
    if config.val_fraction:
        if 'val' in samples:
            raise ValueError('--val-fraction is for data without a val split, this data has one.')
        held_out = draw_val(train, config.val_fraction, config.seed)
        samples, train = dict(samples, val=train.take(held_out)), train.take(~held_out)
    if len(samples) == 1:
        raise ValueError(
            "The data has no split 'test', nor 'val': add one, or hold training images out with --folds or"
            ' --val-fraction.')
    return dict(samples, train=train)
