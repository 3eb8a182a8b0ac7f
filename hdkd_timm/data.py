"""Image folders for the trainer: `train/<class>/*`, `test/<class>/*` and optionally `val/<class>/*`.

On timm's readers, transforms and loaders. What timm passes over in silence ends in an error here: a class without
images, classes that differ between splits, images that sit in another folder level, and images that cannot be read
(timm would put a neighbour in their place).
"""
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset, create_loader, get_img_extensions
from timm.data.dataset import ImageDataset
from timm.utils import natural_key

_logger = logging.getLogger(__name__)

IMG_EXTENSIONS = tuple(dict.fromkeys((*get_img_extensions(), '.webp', '.bmp', '.tif', '.tiff')))
IMG_MODES = {1: 'L', 3: 'RGB'}  # Pillow mode by number of channels
SPLITS = {  # names of their folders, in lower case
    'train': ('train', 'training'),
    'val': ('val', 'valid', 'validation'),
    'test': ('test', 'testing'),
}


def _count_images(folder: Path) -> int:
    return sum(os.path.splitext(entry.name)[1].lower() in IMG_EXTENSIONS for entry in os.scandir(folder))


def find_classes(split_dir: Union[str, Path]) -> List[str]:
    """Class names of `split_dir/<class>/*`, in timm's (natural) order.

    Raises:
        FileNotFoundError: if the folder, its class folders or the images of a class are missing.
        ValueError: if there are images a level above or below the class folders.
    """
    split_dir = Path(split_dir)
    if not split_dir.is_dir():
        raise FileNotFoundError(f"'{split_dir}' is no folder.")
    if _count_images(split_dir):
        raise ValueError(f"'{split_dir}' holds images outside of class folders; expected '{split_dir}/<class>/*'.")
    folders = [Path(e.path) for e in os.scandir(split_dir) if e.is_dir() and not e.name.startswith('.')]
    if not folders:
        raise FileNotFoundError(f"No class folders in '{split_dir}'; expected '{split_dir}/<class>/*'.")
    for folder in sorted(folders):
        nested = [d for d, _, _ in os.walk(folder) if Path(d) != folder and _count_images(Path(d))]
        if nested:
            raise ValueError(f"'{nested[0]}' holds images a level too deep; expected '{split_dir}/<class>/*'.")
        if not _count_images(folder):
            raise FileNotFoundError(
                f"No images in class folder '{folder}' (looked for {' '.join(IMG_EXTENSIONS)}): add some, or remove"
                ' the folder.')
    return sorted((f.name for f in folders), key=natural_key)


def find_splits(data_dir: Union[str, Path]) -> Tuple[Dict[str, Path], List[str]]:
    """Folders of the splits that are there, and the class names, which all splits share.

    Folders are named train or training, test or testing, and val, valid or validation, in any case.

    Raises:
        FileNotFoundError: if the folder, its train or test folder or the images of a class are missing.
        ValueError: if the classes of two splits differ, if there are fewer than two, or as `find_classes`.
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise FileNotFoundError(f"Data folder '{data_dir}' does not exist, or is no folder.")
    folders = sorted(e.name for e in os.scandir(data_dir) if e.is_dir())
    splits = {}
    for split, names in SPLITS.items():
        found = [folder for folder in folders if folder.lower() in names]
        if len(found) > 1:
            raise ValueError(f"Folders '{found[0]}' and '{found[1]}' of '{data_dir}' are both the {split} split.")
        if found:
            splits[split] = data_dir / found[0]
        elif split != 'val':
            raise FileNotFoundError(
                f"'{data_dir}' has no folder '{split}' (folders found: {', '.join(folders) or 'none'}); expected"
                " 'train/<class>/*' and 'test/<class>/*'.")
    classes = find_classes(splits['train'])
    for split, folder in splits.items():
        difference = sorted(set(find_classes(folder)) ^ set(classes))
        if difference:
            name = difference[0]
            where, lacks = ('train', split) if name in classes else (split, 'train')
            raise ValueError(
                f"Class '{name}' is in '{splits[where]}' but not in '{splits[lacks]}': all splits need the same class"
                f" folders ({len(difference)} differ: {', '.join(difference)}).")
    if len(classes) < 2:
        raise ValueError(f"Only one class, '{classes[0]}', in '{data_dir}': nothing to tell apart.")
    return splits, classes


def draw_fraction(
        samples: Sequence[Tuple[str, int]],
        fraction: float,
        seed: int = 42,
) -> List[Tuple[str, int]]:
    """A seeded share of the samples of each class, at least one of each, in their order.

    Args:
        samples: Pairs of path and class index.
        fraction: Share to keep, above 0 and up to 1; the number of each class is rounded.
        seed: Seed of the draw.

    Raises:
        ValueError: if the fraction is not within its range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f'train_fraction must be above 0 and at most 1, got {fraction}.')
    rng = np.random.default_rng(seed)
    targets = np.array([target for _, target in samples])
    kept = []
    for target in np.unique(targets):
        indices = np.flatnonzero(targets == target)
        kept.extend(rng.permutation(indices)[:max(1, round(fraction * len(indices)))])
    return [samples[i] for i in sorted(kept)]


def _read_error(path: str, mode: str) -> Optional[str]:
    try:
        with Image.open(path) as img:
            img.load()
            if img.mode.startswith(('I', 'F')):  # Pillow would clip them to 8 bits, to white for the most part
                return f"pixels of mode '{img.mode}', more than 8 bits each, are not supported"
            img.convert(mode)
    except Exception as e:  # Pillow's plugins raise errors of many types on broken files
        return f'{type(e).__name__}: {e}'
    return None


def find_bad_images(paths: Sequence[str], mode: str = 'RGB') -> Dict[str, str]:
    """Read every image once, in a Pillow mode. Returns path -> reason for those that cannot be read."""
    with ThreadPoolExecutor() as pool:
        return {path: error for path, error in zip(paths, pool.map(partial(_read_error, mode=mode), paths)) if error}


def create_datasets(
        data_dir: Union[str, Path],
        in_chans: int = 3,
        train_fraction: float = 1.,
        seed: int = 42,
        on_bad_image: str = 'error',
) -> Tuple[Dict[str, ImageDataset], List[str]]:
    """timm datasets of the splits 'train', 'test' and, where there is one, 'val', all images read once.

    Args:
        data_dir: Folder with `train/<class>/*`, `test/<class>/*` and optionally `val/<class>/*`.
        in_chans: Channels to read, 3 (RGB) or 1 (grey).
        train_fraction: Share of the train split to keep, drawn per class.
        seed: Seed of that draw.
        on_bad_image: 'error', or 'skip' to leave unreadable images out with a warning.

    Returns:
        Split -> dataset, and the class names by index.

    Raises:
        FileNotFoundError, ValueError: as `find_splits`; if an image cannot be read (it is named), or if none is left.
    """
    if in_chans not in IMG_MODES:
        raise ValueError(f'Images can be read with 1 (grey) or 3 (RGB) channels, not with in_chans {in_chans}.')
    if on_bad_image not in ('error', 'skip'):
        raise ValueError(f"on_bad_image must be 'error' or 'skip', got {on_bad_image!r}.")
    splits, classes = find_splits(data_dir)
    class_to_idx = {name: i for i, name in enumerate(classes)}
    datasets = {}
    for split, folder in splits.items():
        dataset = create_dataset(
            '', root=str(folder), search_split=False, class_map=class_to_idx, input_key=';'.join(IMG_EXTENSIONS),
            input_img_mode=IMG_MODES[in_chans])
        samples = dataset.reader.samples
        if split == 'train':
            samples = draw_fraction(samples, train_fraction, seed)
        bad = find_bad_images([path for path, _ in samples], IMG_MODES[in_chans])
        if bad and on_bad_image == 'error':
            path, error = next(iter(bad.items()))
            raise ValueError(
                f"Cannot read image '{path}' ({error}); {len(bad)} such in '{folder}'. Mend or remove it, or leave such"
                ' images out with --on-bad-image skip.')
        for path, error in bad.items():
            _logger.warning(f"Left out image '{path}', cannot read it ({error})")
        samples = [sample for sample in samples if sample[0] not in bad]
        missing = set(range(len(classes))) - {target for _, target in samples}
        if missing:
            raise ValueError(f"No readable image of class '{classes[min(missing)]}' in '{folder}'.")
        dataset.reader.samples = samples
        datasets[split] = dataset
    return datasets, classes


def create_split_loader(
        dataset: ImageDataset,
        data_config: Dict[str, Any],
        batch_size: int,
        is_training: bool = False,
        num_workers: int = 2,
        device: torch.device = torch.device('cpu'),
        **aug_kwargs: Any,
) -> Any:
    """timm's loader: batches (B, C, H, W), normalised, and class indices (B,), on the device.

    Training batches are shuffled, augmented and all full; others come in order, resized only, the last one smaller.

    Args:
        dataset: Dataset of a split.
        data_config: input_size (C, H, W), mean, std, interpolation, crop_pct, crop_mode, as timm resolves them.
        batch_size: Images a batch.
        is_training: Shuffle and augment.
        num_workers: Loader processes, 0 for none.
        device: Where the batches go.
        aug_kwargs: Augmentation of `timm.data.create_loader` (scale, ratio, hflip, vflip, color_jitter, ...).

    Raises:
        ValueError: if there are fewer training images than a batch holds.
    """
    if is_training and len(dataset) < batch_size:
        raise ValueError(
            f'{len(dataset)} training images are fewer than a batch of {batch_size}: lower --batch-size.')
    return create_loader(
        dataset,
        input_size=data_config['input_size'],
        batch_size=batch_size,
        is_training=is_training,
        mean=data_config['mean'],
        std=data_config['std'],
        interpolation=data_config['interpolation'],
        crop_pct=data_config['crop_pct'],
        crop_mode=data_config['crop_mode'],
        num_workers=num_workers,
        device=device,
        pin_memory=device.type == 'cuda',
        **(aug_kwargs if is_training else {}),
    )
