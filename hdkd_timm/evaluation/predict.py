"""Labelling image files by a saved model."""

import functools
import logging
import os
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..data.image_files import IMG_EXTENSIONS, split_frame, split_suffix
from ..data.inspection import inspect_and_report, warn_of_ranges
from ..data.samples import FileReader, SampleDataset, Samples
from ..data.sources.walk import count_suffixes, natural_order, sort_files, walk_folder, warn_ignored_files
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
    """The files that can be read as images; the others are reported.

    Raises:
        ValueError: if a file cannot be read; with 'skip', if none can.
    """
    samples = file_samples(files)
    records = inspect_and_report(samples, img_mode, on_bad_image)
    readable = [path for path, record in zip(files, records) if not record.error]
    if not readable:
        raise ValueError(
            f"None of the {len(files):,} images can be read, the first is '{files[0]}' ({records[0].error})."
        )
    warn_of_ranges([record.values for record in records], [samples])
    return readable


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
    files = drop_bad_images(files, classifier.img_mode, on_bad_image)
    probs, _ = classify(classifier, SampleDataset(file_samples(files), classifier.img_mode), config)
    return files, probs, classifier.classes or [str(i) for i in range(probs.shape[1])]
