"""Image folders: <split>/<class>/*, or a tar file of class folders per split."""

import logging
import os
from pathlib import Path
from typing import Dict, List, Optional, Tuple, Union

import numpy as np

from ..image_files import IMG_EXTENSIONS
from ..samples import SPLITS, FileReader, Samples, SplitNotFoundError, check_same_classes
from .tars import TarReader
from .walk import (
    Seen,
    count_suffixes,
    folder_id,
    join_names,
    natural_order,
    parent_folders,
    scan_folder,
    sort_files,
    walk_folder,
    warn_ignored_files,
    warn_of_repeat,
)

_logger = logging.getLogger(__name__)


def read_folders(
    data_dir: Union[str, Path],
    only: Optional[str] = None,
) -> Tuple[Dict[str, Samples], List[str]]:
    """Read an image folder. A test or val split of images without class folders, whose labels nobody gave, is left out,
    and told.

    Args:
        data_dir: The folder.
        only: Read only this split; if it has no folder of its own, `data_dir` is taken as its class folders.

    Returns:
        Split -> samples, and the class names.

    Raises:
        FileNotFoundError, ValueError: as `find_splits` and `list_classes`; if the classes of two splits differ, or a
            tar file is damaged or contains no images.
    """
    places = _labelled(find_splits(data_dir)) if only is None else {only: _find_split(data_dir, only)}
    classes: Dict[str, List[str]] = {}
    readers: Dict[str, TarReader] = {}
    files: Dict[str, Dict[str, List[str]]] = {}
    ignored: List[str] = []
    for split, place in places.items():
        if place.is_dir():
            files[split], others = list_classes(place)
            classes[split] = list(files[split])
            ignored += others
        else:
            readers[split] = TarReader(str(place))
            classes[split] = readers[split].classes
    names = check_same_classes(classes, places)
    samples = {
        split: _sort_samples(files[split], names)
        if split in files
        else Samples(readers[split], np.arange(len(readers[split])), np.array(readers[split].targets))
        for split in places
    }
    if Path(data_dir) not in places.values():
        ignored += _warn_outside_splits(str(data_dir))
    warn_ignored_files([os.path.relpath(path, data_dir) for path in ignored], str(data_dir))
    _warn_of_shared_folders(places, names)
    return samples, names


def _sort_samples(files: Dict[str, List[str]], classes: List[str]) -> Samples:
    """Samples of image files by class, in natural order of their paths."""
    found = sorted(
        ((path, i) for i, name in enumerate(classes) for path in files[name]),
        key=lambda sample: natural_order(sample[0]),
    )
    return Samples(FileReader(found), np.arange(len(found)), np.array([target for _, target in found]))


# -- splits ------------------------------------------------------------------------------------------------------------


def find_splits(data_dir: Union[str, Path], required: str = 'train') -> Dict[str, Path]:
    """Find the folders, or tar files, of the splits.

    Their names are train or training, test or testing, and val, valid or validation, in upper or lower case.

    Args:
        data_dir: The image folder.
        required: Split that must exist.

    Returns:
        Split -> its folder or tar file, for those that exist.

    Raises:
        FileNotFoundError: if the folder or its required split does not exist.
        ValueError: if two folders or files are the same split.
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise FileNotFoundError(f"Data folder '{data_dir}' does not exist or is not a directory.")
    folders, files = scan_folder(str(data_dir))
    entries = sorted([*folders, *(name for name in files if _is_tar(data_dir / name))])
    splits = {}
    for split, names in SPLITS.items():
        found = [entry for entry in entries if entry.lower().removesuffix('.tar') in names]
        if len(found) > 1:
            raise ValueError(f"'{found[0]}' and '{found[1]}' in '{data_dir}' are both the {split} split: remove one.")
        if found:
            splits[split] = data_dir / found[0]
    if required not in splits:
        raise SplitNotFoundError(
            f"'{data_dir}' has no folder '{required}' (folders found: {', '.join(entries) or 'none'}); expected"
            " 'train/<class>/*' and 'test/<class>/*'."
        )
    return splits


def _find_split(data_dir: Union[str, Path], split: str) -> Path:
    """The folder or tar file of a split, or `data_dir` itself if it has no training split: then it has no splits."""
    try:
        return find_splits(data_dir, split)[split]
    except FileNotFoundError:
        if not Path(data_dir).is_dir() or any(f.name.lower() in SPLITS['train'] for f in Path(data_dir).iterdir()):
            raise
        return Path(data_dir)


def _labelled(splits: Dict[str, Path]) -> Dict[str, Path]:
    """The splits without those beside the training images that have images but no class folders, with a warning."""
    kept = {}
    for split, place in splits.items():
        if split != 'train' and place.is_dir():
            folders, files = scan_folder(str(place))
            images, _ = sort_files(os.path.join(place, name) for name in files)
            if images and not folders:
                number = f'{len(images):,} image{"s" * (len(images) > 1)}'
                _logger.warning(
                    f"Left out '{place}': {number} without class folders, so without labels. hdkd predict classifies"
                    ' them.'
                )
                continue
        kept[split] = place
    return kept


def _is_tar(path: Path) -> bool:
    return path.name.lower().endswith('.tar') and path.is_file()


def _warn_outside_splits(data_dir: str) -> List[str]:
    """Warn about folders and images beside the splits. Returns the files that are neither images nor side files."""
    known = {name for names in SPLITS.values() for name in names}
    folders, files = scan_folder(data_dir)
    folders = [name for name in folders if name.lower().removesuffix('.tar') not in known]
    files = [
        name for name in files if not (name.lower().removesuffix('.tar') in known and _is_tar(Path(data_dir, name)))
    ]
    images, others = sort_files(os.path.join(data_dir, name) for name in files)
    if folders:
        _logger.warning(
            f"Ignored {len(folders):,} folder{'s' * (len(folders) > 1)} in '{data_dir}' beside its splits:"
            f' {join_names(sorted(folders, key=natural_order))}.'
        )
    if images:
        names = sorted((os.path.basename(path) for path in images), key=natural_order)
        _logger.warning(
            f"Ignored {len(images):,} image{'s' * (len(images) > 1)} in '{data_dir}' outside its splits:"
            f' {join_names(names)}.'
        )
    return others


def _warn_of_shared_folders(places: Dict[str, Path], classes: List[str]) -> None:
    """Warn about a folder that is linked into two splits."""
    first: Seen = {}
    for place in places.values():
        for path in [place, *(place / name for name in classes if place.is_dir())]:
            other = first.setdefault(folder_id(str(path)), str(path))
            if other != str(path):
                _logger.warning(
                    f"'{other}' and '{path}' are the same directory: its images are in both splits, so results are"
                    ' optimistically biased.'
                )
                break


# -- class folders -----------------------------------------------------------------------------------------------------


def list_classes(split_dir: Union[str, Path]) -> Tuple[Dict[str, List[str]], List[str]]:
    """List the images of class folders, `split_dir/<class>/*`.

    Returns:
        Class -> image files, in timm's (natural) order of the classes; and the files that are neither images nor known
        side files.

    Raises:
        FileNotFoundError: if the folder, its class folders or the images of a class are missing.
        OSError: if a folder cannot be read.
        ValueError: if images lie above or below the class folders, or two class folders are the same directory.
    """
    split_dir = str(split_dir)
    if not os.path.isdir(split_dir):
        raise FileNotFoundError(f"'{split_dir}' is not a directory.")
    names, files = scan_folder(split_dir)
    outside, ignored = sort_files(os.path.join(split_dir, name) for name in files)
    if outside:
        raise ValueError(f"'{split_dir}' contains images outside class folders; expected '{split_dir}/<class>/*'.")
    parents = {**parent_folders(split_dir), folder_id(split_dir): split_dir}
    folders = _find_class_folders(split_dir, names, parents)
    seen, classes = {**parents, **folders}, {}
    for identity, folder in folders.items():
        del seen[identity]  # the walk starts with it
        images, others = _list_class(folder, split_dir, seen)
        classes[os.path.basename(folder)] = images
        ignored += others
    return {name: classes[name] for name in sorted(classes, key=natural_order)}, ignored


def _find_class_folders(split_dir: str, names: List[str], parents: Seen) -> Seen:
    """The class folders of a split by identity, without links to its parents."""
    folders: Seen = {}
    for name in names:
        folder = os.path.join(split_dir, name)
        identity = folder_id(folder)
        if identity in parents:
            warn_of_repeat(folder, parents[identity])
        elif identity in folders:
            raise ValueError(
                f"Class folders '{folders[identity]}' and '{folder}' are the same directory, but an image has only one"
                ' class: remove one of them.'
            )
        else:
            folders[identity] = folder
    if not folders:
        raise FileNotFoundError(f"No class folders in '{split_dir}'; expected '{split_dir}/<class>/*'.")
    return folders


def _list_class(folder: str, split_dir: str, seen: Seen) -> Tuple[List[str], List[str]]:
    """Images of a class folder, and the files in it that are neither images nor known side files."""
    images: List[str] = []
    others: List[str] = []
    for inner, files in walk_folder(folder, seen):
        listing = sort_files(files)
        if listing.images and inner != folder:
            raise ValueError(f"'{inner}' contains images one level too deep; expected '{split_dir}/<class>/*'.")
        images += listing.images
        others += listing.others
    if not images:
        found = f'; found {count_suffixes(others)}' if others else ''
        raise FileNotFoundError(
            f"No images in class folder '{folder}' (looked for {' '.join(IMG_EXTENSIONS)}{found}): add images or remove"
            ' the folder.'
        )
    return images, others
