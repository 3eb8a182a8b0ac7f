"""`create_datasets`: from the settings of the data to a dataset per split, checked before anything is trained.

What timm ignores silently is an error here: a class without images, classes that differ between splits, images at
another folder level, and images that cannot be read (timm would return a neighbour instead).
"""

import logging
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from .config import DataConfig, SourceConfig
from .image_io import IMG_MODES
from .inspection import check_images, warn_of_ranges
from .samples import SampleDataset, Samples, SplitNotFoundError, record_sizes
from .sources.csv_file import warn_of_similar_names
from .sources.folders import read_folders
from .sources.tables import check_first_files, read_csv
from .sources.timm_datasets import is_iterable, open_iterable, read_timm_dataset
from .splits import draw_fraction, hold_out, warn_of_leaks
from .targets import to_indicators
from .value_range import StoredValues

_logger = logging.getLogger(__name__)


def read_samples(config: SourceConfig, only: Optional[str] = None) -> Tuple[Dict[str, Samples], List[str]]:
    """Read the labels of a source with random access, not its images.

    Args:
        config: The source.
        only: Read only this split.

    Returns:
        Split -> samples, and the class names.

    Raises:
        FileNotFoundError, ValueError: as `read_folders`, `read_csv` and `read_timm_dataset`; if no source is specified.
    """
    if config.dataset and config.data_csv:
        raise ValueError('Give either --dataset or --data-csv, not both.')
    if config.multi_label and not config.data_csv:
        source = config.dataset or config.data_dir
        raise ValueError(
            f"--multi-label needs a table of the labels, --data-csv: '{source}' has one class for each image."
        )
    if config.dataset:
        samples, classes = read_timm_dataset(config, only)
    elif config.data_csv:
        samples, classes = read_csv(
            config.data_csv,
            config.data_dir,
            config.split_column,
            config.group_column,
            only,
            config.path_column,
            config.label_column,
            config.multi_label,
        )
    elif config.data_dir:
        samples, classes = read_folders(config.data_dir, only)
    else:
        raise ValueError('No images given: specify --data-dir, --data-csv or --dataset.')
    warn_of_similar_names(classes, 'classes', config.dataset or config.data_csv or config.data_dir)
    return samples, classes


def create_datasets(
    config: DataConfig,
    batch_size: int = 1,
    only: Optional[str] = None,
) -> Tuple[Dict[str, Any], List[str]]:
    """Create the datasets of the splits that exist, reading all images once (see `check_images`).

    Args:
        config: What to read and how to split it. The training fraction is drawn first; a fold and a validation split
            are held out from it.
        batch_size: Hint for datasets without random access (wds/, tfds/, hfids/).
        only: The one split that is wanted; the others may be missing.

    Returns:
        Split ('train', 'val', 'test') -> dataset: `SampleDataset`, or timm's own without random access. And the class
        names by index.

    Raises:
        SplitNotFoundError: if `only` does not exist.
        FileNotFoundError, ValueError: as `read_samples` and `hold_out`; if an image cannot be read (names it), or
            no readable image of a class is left.
    """
    _check_settings(config)
    if is_iterable(config):
        datasets, classes = open_iterable(config, batch_size, only)
        _check_num_classes(config, classes)
        return datasets, classes
    samples, classes = read_splits(config, only)
    samples = _check_contents(samples, classes, config)
    return {split: SampleDataset(part, IMG_MODES[config.in_chans]) for split, part in samples.items()}, classes


def _check_settings(config: DataConfig) -> None:
    if config.in_chans not in IMG_MODES:
        raise ValueError(
            f'Images can be read with 1 (greyscale) or 3 (RGB) channels, not with in_chans {config.in_chans}.'
        )
    if config.on_bad_image not in ('error', 'skip'):
        raise ValueError(f"on_bad_image must be 'error' or 'skip', got {config.on_bad_image!r}.")
    if config.fold and not config.folds:
        _logger.warning(f'fold {config.fold} has no effect without folds: no fold is held out.')


def _check_num_classes(config: DataConfig, classes: Sequence[str]) -> None:
    if config.num_classes and config.num_classes != len(classes):
        raise ValueError(
            f'--num-classes is {config.num_classes}, but the data has {len(classes)} classes: {", ".join(classes)}.'
        )


def read_splits(config: DataConfig, only: Optional[str] = None) -> Tuple[Dict[str, Samples], List[str]]:
    """As `read_samples`, after all settings of splitting: of the splits, or of the only one that is wanted.

    Raises:
        SplitNotFoundError: if `only` does not exist.
        FileNotFoundError, ValueError: as `read_samples` and `hold_out`.
    """
    needed = None if config.folds or config.val_fraction else only  # splits held out depend on the training split
    if config.data_csv and not config.dataset and config.check_images and config.on_bad_image == 'error':
        check_first_files(config, needed)
    samples, classes = read_samples(config, needed)
    _check_num_classes(config, classes)
    seed = config.seed if config.split_seed is None else config.split_seed
    if 'train' in samples:
        train = samples['train']
        samples['train'] = train.take(draw_fraction(train.targets, config.train_fraction, seed, train.groups))
    if needed is None:
        if len(classes) < 2 and not config.multi_label:
            raise ValueError(f"The data has only one class, '{classes[0]}': at least two classes are required.")
        samples = hold_out(samples, config.folds, config.fold, config.val_fraction, seed)
        if config.multi_label:
            _check_labels(samples['train'], classes)
        warn_of_leaks(samples)
    if only is not None:
        if only not in samples:
            raise SplitNotFoundError(f"The data has no split '{only}' (found: {', '.join(samples)}).")
        samples = {only: samples[only]}
    return samples, classes


def _check_labels(train: Samples, classes: Sequence[str]) -> None:
    """Raise ValueError if the splits left no training image with a label."""
    missing = np.flatnonzero(~to_indicators(train.targets, len(classes)).any(axis=0))
    if len(missing):
        raise ValueError(
            f"No training image with '{classes[missing[0]]}' is left by --train-fraction, --val-fraction or --folds:"
            ' use another --split-seed, or more images.'
        )


def _check_contents(samples: Dict[str, Samples], classes: List[str], config: DataConfig) -> Dict[str, Samples]:
    """The samples that can be read, with their contents; only the sizes of files with --no-check-images."""
    if not config.check_images:
        return {split: record_sizes(part, split) for split, part in samples.items()}
    checked: Dict[str, Samples] = {}
    values: List[StoredValues] = []
    for split, part in samples.items():
        checked[split], found = check_images(part, split, classes, IMG_MODES[config.in_chans], config.on_bad_image)
        values += found
    warn_of_ranges(values, checked.values())
    return checked
