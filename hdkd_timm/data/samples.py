"""The images of a training: where they come from, their classes, and their splits 'train', 'val' and 'test'.

On timm's readers. What timm passes over in silence ends in an error here: a class without images, classes that differ
between splits, images that sit in another folder level, and images that cannot be read (timm would put a neighbour in
their place).
"""
import dataclasses
import functools
import hashlib
import logging
import math
import os
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from timm.data import create_dataset
from timm.data.readers.reader import Reader

from ..utils.config import setting
from .image_io import (
    DARK_SET,
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
from .sources.folders import (
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
from .sources.tables import (
    Table,
    check_labels,
    own_groups,
    read_first_rows,
    read_table,
    require_column,
    warn_of_similar_column,
    warn_of_similar_names,
)
from .sources.tars import TarReader

_logger = logging.getLogger(__name__)

SPLITS = {  # their names in folders and tables, in lower case
    'train': ('train', 'training'),
    'val': ('val', 'valid', 'validation'),
    'test': ('test', 'testing'),
}
CONTENTS = ('bytes', 'sha256')  # columns of images.csv that tell what was read
FIRST_ROWS = 100  # of a table, whose images are looked for before the rest is read
CHUNK = 1000  # images that are read at a time, before it is decided whether to go on
MOST_BAD = 20  # images that cannot be read, after which no more are looked for where the first ends the run
ITERABLE = ('wds', 'tfds', 'hfids')  # timm's datasets without random access


class SplitNotFoundError(ValueError, FileNotFoundError):
    """The data has no such split."""


@dataclasses.dataclass
class SourceConfig:
    """Where labelled images come from, named as in timm's train.py."""
    data_dir: Optional[str] = setting(
        None, 'folder with train/<class>/*, test/<class>/* and optionally val/<class>/*, or with train.tar, test.tar',
        metavar='DIR', group='data', common=True)
    data_csv: Optional[str] = setting(
        None, "CSV file instead: columns path (relative to --data-dir, else to the file's folder), label, split, group",
        metavar='FILE', common=True)
    split_column: str = setting('split', 'CSV column with the split of an image: train, val or test')
    group_column: Optional[str] = setting(
        None, "CSV column of groups (patients, lesions) that splits keep together (default: 'group', if present)")
    dataset: Optional[str] = setting(
        None, "dataset of timm's create_dataset instead (hfds/NAME, wds/NAME, torch/NAME), with root --data-dir")
    train_split: str = setting('train', 'training split of --dataset')
    val_split: str = setting('', 'validation split of --dataset, empty for none')
    test_split: str = setting('test', 'test split of --dataset, empty for none')
    dataset_download: bool = setting(False, 'allow --dataset to be downloaded')
    class_map: Optional[str] = setting(
        None, 'class map of --dataset, a text file with one class per line', metavar='FILE')
    input_key: Optional[str] = setting(None, 'image field of --dataset')
    target_key: Optional[str] = setting(None, 'label field of --dataset')
    seed: int = setting(42, 'random seed', at_least=0)


@dataclasses.dataclass
class DataConfig(SourceConfig):
    """Settings of `create_datasets`."""
    num_classes: Optional[int] = setting(
        None, 'number of classes, for datasets that do not provide it', at_least=2, group='data')
    in_chans: int = setting(3, 'image channels, 3 (RGB) or 1 (greyscale)')
    train_fraction: float = setting(
        1., 'fraction of the training images to use, sampled per class with --seed', above=0, at_most=1)
    val_fraction: float = setting(
        0., 'fraction of the training images to hold out for validation if there is no val split, stratified by class'
        ' and grouped', at_least=0, below=1)
    folds: Optional[int] = setting(
        None, 'cross-validation: number of folds of the training images, stratified by class and grouped, of which one'
        ' is held out, as val if there is a test split, else as test', at_least=2)
    fold: int = setting(0, 'fold that is held out, from 0', at_least=0)
    on_bad_image: str = setting('error', 'stop at images that cannot be read, or skip them', choices=('error', 'skip'))
    check_images: bool = setting(
        True, 'read every image once before training; without this check, a resumed run compares the sizes of its image'
        ' files, not their contents')


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


def _is_tar(path: Path) -> bool:
    return path.name.lower().endswith('.tar') and path.is_file()


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
    entries = sorted([*folders, *(name for name in files if _is_tar(data_dir / name))])
    splits = {}
    for split, names in SPLITS.items():
        found = [entry for entry in entries if entry.lower().removesuffix('.tar') in names]
        if len(found) > 1:
            raise ValueError(f"'{found[0]}' and '{found[1]}' of '{data_dir}' are both the {split} split.")
        if found:
            splits[split] = data_dir / found[0]
    if required not in splits:
        raise SplitNotFoundError(
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
    files = [
        name for name in files if not (name.lower().removesuffix('.tar') in known and _is_tar(Path(data_dir, name)))]
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


def _refuse_missing_files(config: SourceConfig, only: Optional[str]) -> None:
    """Raises ValueError if none of the first images of a long table exist: that needs no reading of all of it.

    Rows of other splits may tell of images that are elsewhere: with one of them among the first, all are read.
    """
    path = Path(config.data_csv)
    root = Path(config.data_dir or path.parent)
    wanted = {name for split, names in SPLITS.items() if only in (None, split) for name in names}
    paths = [
        row['path'] for row in read_first_rows(path, FIRST_ROWS)
        if row.get('path') and (row.get(config.split_column, only or 'train') or '').strip().lower() in wanted]
    if len(paths) == FIRST_ROWS and not any(os.path.exists(root / name) for name in paths):
        raise ValueError(
            f"Cannot read image '{root / paths[0]}' (FileNotFoundError), and none of the first {FIRST_ROWS} images of"
            f" '{path}' exists: its paths are relative to '{root}', name another folder with --data-dir.")


def _refuse_other_encodings(table: Table, root: Path) -> None:
    if _is_utf8(''.join(map(''.join, [table.columns, *table.rows]))):
        return
    for line, row in [(1, table.columns), *zip(table.lines, table.rows)]:
        if not _is_utf8(''.join(row)):
            for name, value in zip(table.columns, row):
                # a name that is no UTF-8 may be that of a file, anything else is of a table in another encoding
                if not _is_utf8(value) and not (name == 'path' and line > 1 and (root / value).exists()):
                    raise ValueError(
                        f"'{table.path}' line {line}: {value!r} is not UTF-8: save the table as 'CSV UTF-8'.")


def _find_files(table: Table, root: Path) -> List[str]:
    """Path of each row's image, (N,).

    Raises:
        ValueError: if one is there twice.
    """
    base = '' if str(root) == '.' else str(root)
    files = [
        # what pathlib leaves out of a path is seldom there
        str(root / path) if './' in path or '//' in path or path.endswith(('/', '.')) else os.path.join(base, path)
        for path in table.column('path')]
    places = [os.path.abspath(file) for file in files]
    if len(set(places)) < len(places):
        first: Dict[str, int] = {}
        for line, path, place in zip(table.lines, table.column('path'), places):
            if first.setdefault(place, line) != line:
                raise ValueError(f"'{table.path}' line {line}: image '{path}' is in line {first[place]} already.")
    return files


def _find_splits_of_rows(table: Table, split_column: str, default: str) -> np.ndarray:
    """Split of each row, '' for none, (N,).

    Raises:
        ValueError: if one is unknown.
    """
    if split_column not in table.columns:
        return np.full(len(table.rows), default)
    splits = [split.strip().lower() for split in table.column(split_column)]
    synonyms = {'': '', **{name: split for split, names in SPLITS.items() for name in names}}
    unknown = set(splits) - set(synonyms)
    if unknown:
        i = min(map(splits.index, unknown))
        raise ValueError(
            f"'{table.path}' line {table.lines[i]}: split '{splits[i]}' is none of"
            f" {', '.join(name for name in synonyms if name)}.")
    without = [line for line, split in zip(table.lines, splits) if not split]
    if without:
        _logger.warning(
            f"Left out {len(without)} rows of '{table.path}' without a split"
            f" (line{'s' * (len(without) > 1)} {name_some([str(line) for line in without])}).")
    return np.array([synonyms[split] for split in splits], str)


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
    table = read_table(path, ('path', 'label'))
    _refuse_other_encodings(table, root)
    if split_column != 'split':
        require_column(table, split_column)
    else:
        warn_of_similar_column(table, 'split', '--split-column')
    if group_column is not None:
        require_column(table, group_column)
    else:
        warn_of_similar_column(table, 'group', '--group-column')
    group_column = group_column or 'group'
    labels = [label.strip() for label in table.column('label')]
    check_labels(table, labels)
    files = _find_files(table, root)
    of_row = _find_splits_of_rows(table, split_column, only or 'train')
    groups = listed = None
    if group_column in table.columns:
        groups = np.array(own_groups(
            table, [group.strip() for group in table.column(group_column)], table.column('path')))
    if all(name in table.columns for name in CONTENTS):
        listed = np.array([table.column(name) for name in CONTENTS], object).T
    rows_of = {
        split: np.flatnonzero(of_row == split) for split in dict.fromkeys(of_row.tolist())
        if split and only in (None, split)}
    if (only or 'train') not in rows_of:
        raise SplitNotFoundError(f"'{path}' has no row of split '{only or 'train'}' (column '{split_column}').")
    classes = {split: sorted({labels[i] for i in rows}, key=natural_order) for split, rows in rows_of.items()}
    names = _check_classes(classes, {split: f'{path}, split {split}' for split in rows_of})
    index_of = {name: i for i, name in enumerate(names)}
    samples = {}
    for split, rows in rows_of.items():
        found = [(files[i], index_of[labels[i]]) for i in rows]
        samples[split] = Samples(
            FileReader(found), np.arange(len(found)), np.array([t for _, t in found]),
            None if groups is None else groups[rows], listed=None if listed is None else listed[rows])
    return samples, names


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
        if not all(isinstance(label, int) for label in labels):
            raise ValueError(
                f"Labels {where} are neither text nor whole numbers ({labels[0]!r}): name another --target-key.")
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
        raise SplitNotFoundError(
            f"No split '{only or 'train'}' of dataset '{config.dataset}' is named: see --train-split, --val-split and"
            ' --test-split.')
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


def assign_folds(samples: Samples, folds: int, seed: int = 42) -> np.ndarray:
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
    """Mask of the samples that make a val split, (N,): some of the stratified folds of `assign_folds`, of 20 or more.

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


def warn_of_ranges(values: Sequence[Optional[StoredValues]], parts: Iterable[Samples]) -> None:
    """Tell of images that are read nearly black, once for a data set: by the values of all of its parts' samples."""
    if any(v is not None and v.high <= DARK_SET * v.white for v in values):  # names may have to be read
        told = describe_ranges(values, [name for part in parts for name in part.filenames()])
        if told:
            _logger.warning(told)


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


def find_changed(samples: Samples) -> np.ndarray:
    """Mask of the images that are not as their table lists them, (N,)."""
    if samples.listed is None or samples.contents is None:
        return np.zeros(len(samples), bool)
    return find_changes(samples.listed, samples.contents)


def warn_of_changes(samples: Samples, split: str) -> None:
    """Tell of images that are not as their table lists them."""
    changed = np.flatnonzero(find_changed(samples))
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
        raise SplitNotFoundError(
            f"No split '{lacking}' of dataset '{config.dataset}' is named: see --train-split, --val-split and"
            ' --test-split.')
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
        samples, classes = read_named(config, only)
    elif config.data_csv:
        samples, classes = read_csv(
            config.data_csv, config.data_dir, config.split_column, config.group_column, only)
    elif config.data_dir:
        samples, classes = read_folders(config.data_dir, only)
    else:
        raise ValueError('No images given: name them with --data-dir, --data-csv or --dataset.')
    warn_of_similar_names(classes, 'classes', config.dataset or config.data_csv or config.data_dir)
    return samples, classes


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
        SplitNotFoundError: if `only` is not there.
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
    if config.data_csv and not config.dataset and config.check_images and config.on_bad_image == 'error':
        _refuse_missing_files(config, wanted)
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
            raise SplitNotFoundError(f"The data has no split '{only}' (found: {', '.join(samples)}).")
        samples = {only: samples[only]}
    if config.check_images:
        values: List[StoredValues] = []
        for split, part in samples.items():
            samples[split], found = _check_images(part, split, classes, config)
            values += found
        warn_of_ranges(values, samples.values())
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
        held_out = assign_folds(train, config.folds, config.seed) == config.fold
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
