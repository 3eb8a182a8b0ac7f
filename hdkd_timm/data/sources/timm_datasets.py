"""Datasets of timm's `create_dataset`: with random access (hfds/, torch/), and without (wds/, tfds/, hfids/)."""

import logging
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
from PIL import Image
from timm.data import create_dataset
from timm.data.readers.reader import Reader

from ..config import DataConfig, SourceConfig
from ..image_files import IMG_EXTENSIONS
from ..image_io import IMG_MODES
from ..samples import Samples, SplitNotFoundError, check_same_classes
from .walk import natural_order

_logger = logging.getLogger(__name__)

ITERABLE = ('wds', 'tfds', 'hfids')  # prefixes of timm's datasets without random access


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


def read_timm_dataset(config: SourceConfig, only: Optional[str] = None) -> Tuple[Dict[str, Samples], List[str]]:
    """Read one of timm's datasets with random access.

    Args:
        config: The dataset and its splits.
        only: Read only this split.

    Returns:
        Split -> samples, and the class names.

    Raises:
        ValueError: if it is not such a dataset or cannot be opened, a label is missing or not in the class map, or the
            classes of two splits differ.
    """
    prefix = config.dataset.split('/')[0].lower()
    if prefix not in ('hfds', 'torch'):
        raise ValueError(
            f"Unknown dataset '{config.dataset}': expected hfds/NAME, torch/NAME, {'/NAME, '.join(ITERABLE)}/NAME."
        )
    if config.class_map and prefix == 'torch':
        raise ValueError(f"--class-map is not for '{config.dataset}', whose class indices come from torchvision.")
    read_split = _read_torchvision if prefix == 'torch' else _read_hub
    samples, classes, places = {}, {}, {}
    for split, name in _split_names(config, only).items():
        samples[split], classes[split] = read_split(config, split, name)
        places[split] = f'{config.dataset}, split {name}'
    if (only or 'train') not in samples:
        raise _no_split(config, only or 'train')
    names = check_same_classes(classes, places)
    if not names:
        names = [str(i) for i in range(max(int(s.targets.max()) for s in samples.values()) + 1)]
    return samples, names


def is_iterable(config: SourceConfig) -> bool:
    """Whether the source is one of timm's datasets without random access."""
    return bool(config.dataset) and not config.data_csv and config.dataset.split('/')[0].lower() in ITERABLE


def open_iterable(config: DataConfig, batch_size: int, only: Optional[str]) -> Tuple[Dict[str, Any], List[str]]:
    """Open one of timm's datasets without random access.

    Args:
        config: The dataset and its splits.
        batch_size: Hint for its readers.
        only: Open only this split.

    Returns:
        Split -> timm's dataset, and the class names.

    Raises:
        SplitNotFoundError: if a needed split is not named.
        ValueError: for settings that need random access, without class names or their number, or if it cannot be
            opened.
    """
    for name in ('train_fraction', 'val_fraction', 'folds'):
        if getattr(config, name) != DataConfig.__dataclass_fields__[name].default:
            raise ValueError(
                f"--{name.replace('_', '-')} needs a dataset with random access, '{config.dataset}' has none."
            )
    if not config.class_map and not config.num_classes:
        raise ValueError(f"Dataset '{config.dataset}' does not define its classes: give --num-classes or --class-map.")
    classes = _read_class_map(config.class_map) if config.class_map else [str(i) for i in range(config.num_classes)]
    splits = _split_names(config, only)
    if (only or 'train') not in splits or (only is None and len(splits) == 1):
        raise _no_split(config, only or ('test' if 'train' in splits else 'train'))
    # labels of wds/ are class indices already, which its reader would look up among the names
    class_map = '' if config.dataset.lower().startswith('wds/') else config.class_map or ''
    # TensorFlow decodes; images of the other readers are converted by the loader
    mode = IMG_MODES[config.in_chans] if config.dataset.lower().startswith('tfds/') else ''
    return {
        split: _open(config, name, split == 'train', batch_size, mode, class_map=class_map)
        for split, name in splits.items()
    }, classes


def _split_names(config: SourceConfig, only: Optional[str]) -> Dict[str, str]:
    """Split -> its name in the dataset, for those that are wanted and not empty."""
    splits = {'train': config.train_split, 'val': config.val_split, 'test': config.test_split}
    return {split: name for split, name in splits.items() if name and only in (None, split)}


def _no_split(config: SourceConfig, split: str) -> SplitNotFoundError:
    return SplitNotFoundError(
        f"No split '{split}' of dataset '{config.dataset}' is specified: see --train-split, --val-split and"
        ' --test-split.'
    )


def _open(
    config: SourceConfig,
    split: str,
    is_training: bool,
    batch_size: int = 1,
    mode: str = '',
    **kwargs: Any,
) -> Any:
    """A split of the dataset as timm opens it.

    Raises:
        ValueError: if it cannot be opened.
    """
    try:
        return create_dataset(
            config.dataset,
            root=_find_root(config),
            split=split,
            is_training=is_training,
            batch_size=batch_size,
            download=config.dataset_download,
            seed=config.seed,
            input_img_mode=mode,
            input_key=config.input_key,
            target_key=config.target_key,
            **kwargs,
        )
    except ImportError as e:
        raise ValueError(f"Dataset '{config.dataset}' needs another package ({e}).") from e
    except Exception as e:  # of a dozen libraries
        raise ValueError(
            f"Cannot open split '{split}' of dataset '{config.dataset}' ({_describe(e)}); see --train-split,"
            ' --val-split and --test-split, empty for none.'
        ) from e


def _describe(error: BaseException) -> str:
    """An error and those that caused it: `datasets` says what went wrong in the innermost."""
    chain: List[BaseException] = []
    cause: Optional[BaseException] = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return ', caused by '.join(f'{type(e).__name__}: {" ".join(str(e).split())}' for e in chain)


def _find_root(config: SourceConfig) -> Optional[str]:
    """--data-dir, where timm's readers find or put their files. That of `hfds` puts its cache there, so None, the cache
    of Hugging Face, if it is a folder of images, which is logged."""
    folder = config.data_dir
    if not folder or config.dataset.split('/')[0].lower() != 'hfds':
        return folder
    levels = (Path(folder).glob(pattern) for pattern in ('*', '*/*', '*/*/*'))
    if any(path.name.lower().endswith(IMG_EXTENSIONS) for level in levels for path in level):
        _logger.info(
            f"--data-dir '{folder}' holds images: the cache of {config.dataset} is that of Hugging Face instead."
        )
        return None
    return folder


def _read_torchvision(config: SourceConfig, split: str, name: str) -> Tuple[Samples, List[str]]:
    """Samples of a split of a torchvision dataset, and the class names, none if it has none."""
    dataset = _open(config, name, split == 'train')
    targets = np.asarray(getattr(dataset, 'targets', ()))
    if targets.shape != (len(dataset),):  # some have several labels per image, or none before it is read
        raise ValueError(
            f"Dataset '{config.dataset}' has no single class index per image: list its images in a --data-csv table."
        )
    reader = _TorchvisionReader(dataset)
    return Samples(reader, np.arange(len(reader)), targets), [str(label) for label in getattr(dataset, 'classes', ())]


def _read_hub(config: SourceConfig, split: str, name: str) -> Tuple[Samples, List[str]]:
    """Samples of a split of a Hugging Face dataset, and the class names, none if its labels are plain numbers."""
    # with a class map timm 1.0.29 does not look up class indices of labels that are text
    reader = _open(config, name, split == 'train', class_map={'': 0}).reader
    reader.remap_class = False
    targets, classes = _read_hub_labels(reader.dataset, config, name)
    return Samples(reader, np.arange(len(reader)), targets), classes


def _read_hub_labels(dataset: Any, config: SourceConfig, split: str) -> Tuple[np.ndarray, List[str]]:
    """Class indices (N,) of a split of a Hugging Face dataset, and the class names, none for plain numbers."""
    key = config.target_key or 'label'
    where = f"of split '{split}' of dataset '{config.dataset}'"
    if key not in dataset.column_names:
        raise ValueError(
            f"No field '{key}' {where} (found: {', '.join(dataset.column_names)}): specify it with --target-key."
        )
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
                f'Labels {where} are neither text nor integers ({labels[0]!r}): specify another field with'
                ' --target-key.'
            )
        return np.array(labels), []
    index_of = {name: i for i, name in enumerate(names)}
    unknown = [label for label in labels if label not in index_of]
    if unknown:
        raise ValueError(f"Class '{unknown[0]}' {where} is not in '{config.class_map}'.")
    return np.array([index_of[label] for label in labels]), names


def _read_class_map(path: str) -> List[str]:
    """The non-empty lines of a class map."""
    return [line.strip() for line in Path(path).read_text(encoding='utf-8').splitlines() if line.strip()]
