"""Labelled images of a split, without their pixels (`Samples`), and as a dataset (`SampleDataset`)."""

import dataclasses
import functools
import logging
import os
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from PIL import Image
from timm.data.readers.reader import Reader

from .convert import upright_size
from .image_files import open_image_file, split_frame
from .image_io import convert_image, image_size, read_image
from .targets import name_targets

_logger = logging.getLogger(__name__)

SPLITS = {  # split -> its names in folders and tables, in lower case
    'train': ('train', 'training'),
    'val': ('val', 'valid', 'validation'),
    'test': ('test', 'testing'),
}
CONTENTS = ('bytes', 'sha256')  # columns of images.csv that describe the files


class SplitNotFoundError(ValueError, FileNotFoundError):
    """The data has no such split."""


@dataclasses.dataclass
class Samples:
    """Labelled images of a split, as indices into a timm reader.

    Args:
        reader: `reader[index]` is a pair of open file or decoded image, and target.
        indices: Indices of the images in the reader, (N,).
        targets: Class indices, (N,), or 0 or 1 for each label of an image, (N, K); see `targets.py`.
        groups: Group of each image, such as its patient, (N,), or None.
        contents: Size in bytes and SHA-256 of each image when it was read, as text, '' if unknown, (N, 2), or None.
        listed: The same as listed in the CSV table, (N, 2), or None.
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
        """The samples at these positions, or under this mask."""
        columns = {name: getattr(self, name) for name in ('indices', 'targets', 'groups', 'contents', 'listed')}
        return Samples(
            self.reader, **{name: None if column is None else column[keep] for name, column in columns.items()}
        )

    def filenames(self) -> List[str]:
        """Name of each image, see `filename`."""
        return [self.filename(i) for i in range(len(self))]

    def filename(self, i: int) -> str:
        """Path of the image at position i if it is a file, else its name in the reader, or its index there."""
        index = int(self.indices[i])
        return str(self.reader.filename(index, absolute=isinstance(self.reader, FileReader)) or index)


class FileReader(Reader):
    """timm reader of image files.

    Args:
        samples: Path and class index of each image.
    """

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


class SampleDataset(torch.utils.data.Dataset):
    """Images and targets of `Samples`.

    An image that cannot be read raises an error that names it; timm's datasets would return a neighbour instead.

    Args:
        samples: The images.
        img_mode: Pillow mode, 'RGB' or 'L'.
        transform: Applied to each image.
    """

    def __init__(self, samples: Samples, img_mode: str = 'RGB', transform: Optional[Callable] = None):
        self.samples = samples
        self.targets = samples.targets
        self.img_mode = img_mode
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Tuple[Any, Union[int, np.ndarray]]:
        image = self.read(index)
        return image if self.transform is None else self.transform(image), self.target(index)

    def target(self, index: int) -> Any:
        """The class index of an image, or 0 or 1 for each label, (K,)."""
        target = self.targets[index]
        return target if target.ndim else int(target)

    def read(self, index: int) -> Image.Image:
        """The image before the transform.

        Raises:
            ValueError: if it cannot be read.
        """
        return self.open(
            index,
            lambda image: convert_image(image, self.img_mode),
            lambda file, name: read_image(file, self.img_mode, name=name),
        )

    @functools.cached_property
    def image_sizes(self) -> List[Tuple[int, int]]:
        """Width and height of each image, from the header of its file.

        Raises:
            ValueError: if one cannot be read.
        """
        return [self.open(i, upright_size, image_size) for i in range(len(self.samples))]

    def open(
        self,
        index: int,
        from_image: Callable[[Image.Image], Any],
        from_file: Callable[[Any, str], Any],
    ) -> Any:
        """Apply a function to an image of the reader.

        Args:
            index: Position of the image.
            from_image: Applied to an image that comes decoded.
            from_file: Applied to an open file, which is closed afterwards, and its name.

        Raises:
            ValueError: if the image cannot be opened or the function fails; the cause is attached.
        """
        name = self.samples.filename(index)
        try:
            file = self.samples.reader[int(self.samples.indices[index])][0]
            if isinstance(file, Image.Image):
                return from_image(file)
            with file:
                return from_file(file, name)
        except Exception as e:  # Pillow's plugins raise errors of many types on broken files
            raise ValueError(f"Cannot read image '{name}' ({type(e).__name__}: {e}).") from e


def check_same_classes(classes: Dict[str, Sequence[str]], places: Dict[str, Any]) -> List[str]:
    """Check that all splits have the same classes.

    Args:
        classes: Split -> class names.
        places: Split -> where it is, for the error.

    Returns:
        The class names in the order of the training split, or of the first one.

    Raises:
        ValueError: if the classes of two splits differ.
    """
    first = 'train' if 'train' in classes else next(iter(classes))
    for split, names in classes.items():
        difference = sorted(set(names) ^ set(classes[first]))
        if difference:
            name = difference[0]
            present, absent = (first, split) if name in classes[first] else (split, first)
            raise ValueError(
                f"Class '{name}' is in '{places[present]}' but not in '{places[absent]}': all splits must have the same"
                f' classes ({len(difference)} differ: {", ".join(difference)}).'
            )
    return list(classes[first])


# -- the list of images of a run ---------------------------------------------------------------------------------------


def name_image(samples: Samples, i: int) -> str:
    """Name of an image in the files of a run: its absolute path, or its name in a dataset that is not of files."""
    name = samples.filename(i)
    return os.path.abspath(name) if isinstance(samples.reader, FileReader) else name


def list_images(datasets: Dict[str, Any], classes: List[str]) -> List[Dict[str, str]]:
    """One row per image of the datasets with random access, which `read_csv` can read again.

    Args:
        datasets: Split -> dataset.
        classes: Class names by index.

    Returns:
        Path, label, split, and as far as known group, size in bytes and SHA-256.
    """
    rows = []
    for split, dataset in datasets.items():
        samples = getattr(dataset, 'samples', None)
        labels = name_targets(samples.targets, classes) if samples else []
        for i, label in enumerate(labels):
            row = dict(path=name_image(samples, i), label=label, split=split)
            if samples.groups is not None:
                row['group'] = str(samples.groups[i])
            if samples.contents is not None:
                row.update(zip(CONTENTS, samples.contents[i]))
            rows.append(row)
    return rows


def find_changes(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Mask of the images whose size or SHA-256 changed, where both values are known, (N,).

    Args:
        before, now: As `Samples.contents`, (N, 2).
    """
    return ((before != now) & (before != '') & (now != '')).any(axis=1)


def find_changed(samples: Samples) -> np.ndarray:
    """Mask of the images that differ from what their table lists, (N,)."""
    if samples.listed is None or samples.contents is None:
        return np.zeros(len(samples), bool)
    return find_changes(samples.listed, samples.contents)


def warn_of_changes(samples: Samples, split: str) -> None:
    """Warn about images that differ from what their table lists."""
    changed = np.flatnonzero(find_changed(samples))
    if len(changed):
        _logger.warning(
            f"{len(changed):,} of {len(samples):,} images of split '{split}' have changed since they were listed (size"
            f" or SHA-256 differs), the first is '{samples.filename(changed[0])}'."
        )


def record_sizes(samples: Samples, split: str) -> Samples:
    """The samples with the sizes of their files as contents, without reading them; unchanged if they are not files."""
    if isinstance(samples.reader, FileReader):
        sizes = [(_file_size(samples.filename(i)), '') for i in range(len(samples))]
        samples = dataclasses.replace(samples, contents=np.array(sizes, object).reshape(-1, 2))
        warn_of_changes(samples, split)
    return samples


def _file_size(path: str) -> str:
    try:
        return str(os.stat(split_frame(path)[0]).st_size)
    except OSError:  # reported when it is read
        return ''
