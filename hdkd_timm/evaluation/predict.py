"""Labelling image files by a saved model."""

import functools
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
from PIL import Image

from ..data.convert import upright_size
from ..data.image_files import IMG_EXTENSIONS, split_frame, split_suffix
from ..data.image_io import image_size, read_with_values
from ..data.inspection import ImageRecord, inspect_and_report, inspect_samples, report_unreadable, warn_of_ranges
from ..data.samples import FileReader, SampleDataset, Samples
from ..data.sources.walk import count_suffixes, natural_order, sort_files, walk_folder, warn_ignored_files
from ..data.value_range import pack_values, unpack_values
from .classifier import Classifier, InferenceConfig, load_classifier
from .evaluate import classify

_logger = logging.getLogger(__name__)


def find_images(paths: Sequence[str], on_bad_image: str = 'error') -> List[str]:
    """Image files among files and folders (searched recursively), each once, in natural order within a folder.

    Files that are named are used whatever their suffix; in folders, files that are neither images nor known side files
    are skipped with a warning.

    Args:
        paths: Files and folders.
        on_bad_image: 'skip' to skip folders that cannot be read.

    Raises:
        FileNotFoundError: if a path does not exist, or a folder has no images.
        OSError: if a folder cannot be read.
        ValueError: if a path is neither a file nor a folder.
    """
    found: Dict[str, str] = {}  # real path -> path
    real_folder = functools.lru_cache(maxsize=None)(os.path.realpath)
    number = 0
    for path in map(str, paths):
        files = _list_files(path, on_bad_image) if os.path.isdir(path) else [_check_file(path)]
        number += len(files)
        for file in files:
            found.setdefault(os.path.join(real_folder(os.path.dirname(file)), os.path.basename(file)), file)
    if number > len(found):
        _logger.warning(f'{number - len(found):,} images are named more than once: each is used once.')
    if len({split_suffix(file)[1].lower() for file in found}) > 1:
        _logger.info(f'{len(found):,} images, by suffix: {count_suffixes(found)}.')
    return list(found.values())


def _check_file(name: str) -> str:
    path, _ = split_frame(name)
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"'{path}' is a link to '{os.readlink(path)}', which does not exist."
            if os.path.islink(path)
            else f"'{path}' does not exist."
        )
    if not os.path.isfile(path):
        raise ValueError(f"'{path}' is neither a regular file nor a directory.")
    return name


def _list_files(folder: str, on_bad_image: str) -> List[str]:
    """Image files in a folder and its subfolders."""
    images: List[str] = []
    others: List[str] = []
    for _, files in walk_folder(folder, skip_unreadable=on_bad_image == 'skip'):
        listing = sort_files(files)
        images += listing.images
        others += listing.others
    warn_ignored_files([os.path.relpath(path, folder) for path in others], folder)
    if not images:
        raise FileNotFoundError(f"No images in directory '{folder}' (looked for {' '.join(IMG_EXTENSIONS)}).")
    return sorted(images, key=natural_order)


def file_samples(files: Sequence[str], targets: Optional[Sequence[int]] = None) -> Samples:
    """Image files as samples, with class indices (0 if none are given)."""
    indices = np.zeros(len(files), int) if targets is None else np.asarray(targets)
    return Samples(FileReader([(path, 0) for path in files]), np.arange(len(files)), indices)


def drop_bad_images(files: Sequence[str], img_mode: str, on_bad_image: str = 'error') -> List[str]:
    """The files that can be read as images, each of which is read for it; the others are reported.

    Raises:
        ValueError: if a file cannot be read; with 'skip', if none can.
    """
    samples = file_samples(files)
    readable = _report(samples, inspect_and_report(samples, img_mode, on_bad_image))
    return [files[i] for i in readable]


def _report(samples: Samples, records: Sequence[ImageRecord]) -> np.ndarray:
    """Positions of the images that can be read, after a warning of nearly black ones.

    Raises:
        ValueError: if none can.
    """
    readable = np.flatnonzero([not record.error for record in records])
    if not len(readable):
        raise ValueError(
            f"None of the {len(records):,} images can be read, the first is '{samples.filename(0)}'"
            f' ({records[0].error}).'
        )
    warn_of_ranges([record.values for record in records], [samples])
    return readable


class UnreadableImage(ValueError):
    """An image cannot be read."""


class FilesToLabel(SampleDataset):
    """Image files, read once: the targets are how their values are stored (see `pack_values`), by which the files are
    reported on when they have been labelled. With 'skip', one that cannot be read is a black image, its target zeros.

    Args:
        files: The files, (N,).
        img_mode: See `read_image`.
        on_bad_image: 'error' to raise an error for a file that cannot be read, or 'skip'.
    """

    def __init__(self, files: Sequence[str], img_mode: str, on_bad_image: str = 'error'):
        super().__init__(file_samples(files), img_mode)
        self.on_bad_image = on_bad_image

    def __getitem__(self, index: int) -> Tuple[Image.Image, np.ndarray]:
        try:
            image, values = self.open(
                index,
                lambda image: read_with_values(image, self.img_mode),
                lambda file, name: read_with_values(file, self.img_mode, name),
            )
        except ValueError as e:
            if self.on_bad_image == 'error':
                raise UnreadableImage(str(e)) from e
            return Image.new(self.img_mode, (1, 1)), pack_values(None)
        return image, pack_values(values)

    def check_headers(self) -> None:
        """Read the headers of all files.

        Raises:
            UnreadableImage: for the first that cannot be read.
        """

        def read_header(index: int) -> None:
            try:
                self.open(index, upright_size, image_size)
            except ValueError as e:
                raise UnreadableImage(str(e)) from e

        with ThreadPoolExecutor() as pool:
            for _ in pool.map(read_header, range(len(self))):
                pass

    def report(self, targets: np.ndarray) -> np.ndarray:
        """Positions of the images that were read, by their targets (N, 5); the others are reported.

        Raises:
            ValueError: if none was.
        """
        records = [ImageRecord(values=unpack_values(target)) for target in targets]
        unread = np.flatnonzero([record.values is None for record in records])
        for i, record in zip(unread, inspect_samples(self.samples.take(unread), self.img_mode)):  # why
            records[i] = ImageRecord(record.error or 'it could be read only the second time')
        report_unreadable(self.samples, records, self.on_bad_image)
        return _report(self.samples, records)


def predict(
    name: str,
    paths: Sequence[str],
    config: Optional[InferenceConfig] = None,
    on_bad_image: str = 'error',
) -> Tuple[List[str], np.ndarray, List[str]]:
    """Label images by a saved model.

    Args:
        name: A model as accepted by `load_classifier`.
        paths: Image files, and folders to search for them.
        config: Inference settings.
        on_bad_image: 'error', or 'skip' to skip images that cannot be read.

    Returns:
        Files (N), probabilities (N, K), and class names by index ('0', '1', ... for a model without class names).

    Raises:
        FileNotFoundError, ValueError: as `load_classifier` and `find_images`; if an image cannot be read.
    """
    config = config or InferenceConfig()
    files = find_images(paths, on_bad_image)  # before a model is loaded, or downloaded
    return predict_files(load_classifier(name, config), files, config, on_bad_image)


def predict_files(
    classifier: Classifier, files: Sequence[str], config: InferenceConfig, on_bad_image: str = 'error'
) -> Tuple[List[str], np.ndarray, List[str]]:
    """As `predict`, of files that `find_images` found, by a model that is loaded."""
    dataset = FilesToLabel(files, classifier.img_mode, on_bad_image)
    try:
        if on_bad_image == 'error':
            dataset.check_headers()  # finds most such files in a moment
        probs, targets = classify(classifier, dataset, config)
    except UnreadableImage as e:
        inspect_and_report(dataset.samples, classifier.img_mode, on_bad_image)  # says how many there are
        message = str(e).rpartition(f'{UnreadableImage.__name__}: ')[2].strip()  # a loader process sends its traceback
        raise UnreadableImage(message) from None
    readable = dataset.report(targets)
    return (
        [files[i] for i in readable],
        probs[readable],
        classifier.classes or [str(i) for i in range(probs.shape[1])],
    )
