"""Class imbalance: class weights of the loss, sampling weights, and the published SMOTE oversampling."""

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from PIL import Image
from timm.data.transforms import str_to_pil_interp

from ..utils.memory import available_memory
from ..utils.parsing import read_json
from .samples import SampleDataset
from .targets import is_multi_label, to_indicators

EFFECTIVE_BETA = 0.999


def read_class_file(path: str, classes: Sequence[str], what: str) -> List[float]:
    """Read a number per class from a JSON file, {"class": number, ...}.

    Args:
        path: The file.
        classes: Class names by index.
        what: What the numbers are, for errors.

    Returns:
        The numbers in the order of the classes.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not such a JSON file, a class is missing or unknown, or a number is not above 0.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"File of {what} '{path}' does not exist or is not a regular file.")
    numbers = read_json(path)
    if not isinstance(numbers, dict):
        raise ValueError(f'\'{path}\' must contain {what} by class name, {{"{classes[0]}": number, ...}}.')
    difference = sorted(set(numbers) ^ set(classes))
    if difference:
        where = 'not in the data' if difference[0] in numbers else 'missing'
        raise ValueError(f"'{path}': class '{difference[0]}' is {where} (the data has {', '.join(classes)}).")
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 < number < float('inf'):
            raise ValueError(f"'{path}': {what} of class '{name}' must be a number above 0, got {number!r}.")
    return [float(numbers[name]) for name in classes]


def class_weights(kind: str, targets: Optional[np.ndarray], classes: Sequence[str]) -> np.ndarray:
    """Class weights of the cross-entropy, (K,).

    Args:
        kind: 'balanced' (N / (K * n_k), scikit-learn's), 'effective' (the inverse effective number of images,
            (1 - beta) / (1 - beta^n_k) with beta 0.999, mean 1; Cui et al., arXiv 1901.05555), or a JSON file of
            weights by class name.
        targets: Class indices of the training images, (N,); unused with a file, which streamed datasets can have too.
            Of images with any number of labels, (N, K), 'balanced' is the number of images without a label over that
            with it, by which the latter are weighted in the binary cross entropy.
        classes: Class names by index.

    Raises:
        FileNotFoundError, ValueError: as `read_class_file`; if a class without images needs a weight.
    """
    if kind not in ('balanced', 'effective'):
        return np.array(read_class_file(kind, classes, 'class weights'))
    counts = to_indicators(targets, len(classes)).sum(axis=0)
    if not counts.all():
        raise ValueError(
            f"Class '{classes[counts.argmin()]}' has no training images, so --class-weights {kind} cannot compute its"
            ' weight: use a file of weights.'
        )
    if is_multi_label(targets):
        if (counts == len(targets)).any():
            raise ValueError(
                f"All training images have the label '{classes[counts.argmax()]}', so --class-weights {kind} would give"
                ' it the weight 0: leave the label out, or use a file of weights.'
            )
        return (len(targets) - counts) / counts
    if kind == 'balanced':
        from sklearn.utils.class_weight import compute_class_weight

        return compute_class_weight('balanced', classes=np.arange(len(classes)), y=targets)
    weights = (1 - EFFECTIVE_BETA) / (1 - EFFECTIVE_BETA**counts)
    return weights / weights.mean()


def sample_weights(kind: Optional[str], targets: np.ndarray) -> Optional[np.ndarray]:
    """Sampling weight of each image, (N,): 'balanced' draws all classes equally often; None for no weights."""
    return None if kind is None else 1.0 / np.bincount(targets)[targets]


class SmoteDataset(SampleDataset):
    """A dataset followed by synthetic images.

    Args:
        dataset: The real images.
        images: Synthetic images, (M, H, W) or (M, H, W, 3), uint8.
        targets: Class indices of the synthetic images, (M,).
    """

    def __init__(self, dataset: SampleDataset, images: np.ndarray, targets: np.ndarray):
        super().__init__(dataset.samples, dataset.img_mode, dataset.transform)
        self.images = images
        self.targets = np.concatenate([dataset.targets, targets])

    def __len__(self) -> int:
        return len(self.samples) + len(self.images)

    def __getitem__(self, index: int) -> Tuple[Any, int]:
        if index < len(self.samples):
            return super().__getitem__(index)
        image = Image.fromarray(self.images[index - len(self.samples)])
        return image if self.transform is None else self.transform(image), self.target(index)


def _read_counts(path: str, targets: np.ndarray, classes: Sequence[str]) -> Dict[int, int]:
    """Class index -> number of images after SMOTE, from a JSON file; see `smote` for the errors."""
    counts = dict(enumerate(read_class_file(path, classes, 'number of images')))
    for k, name in enumerate(classes):
        number = int((targets == k).sum())
        if counts[k] != int(counts[k]) or counts[k] < number:
            raise ValueError(
                f"'{path}': number of images of class '{name}' must be an integer of at least {number}, its number of"
                f' real images, got {counts[k]:g}.'
            )
        if counts[k] > number and number < 6:
            raise ValueError(f"SMOTE needs at least 6 images per class, class '{name}' has {number}.")
    return {k: int(number) for k, number in counts.items()}


def _check_memory(number: int, total: int, values: int, img_size: Tuple[int, int]) -> None:
    """Raises MemoryError if SMOTE from `number` to `total` images of that many values does not fit into memory."""
    # float32: input, output and a copy of it; uint8: images
    needed = 4 * values * (number + 2 * total) + values * total
    available = available_memory()
    if needed > available:
        raise MemoryError(
            f'SMOTE to {total} images of {img_size[0]} x {img_size[1]} needs about {needed / 2**30:.1f} GiB of'
            f' memory, {available / 2**30:.1f} GiB are available: lower the counts or --img-size, or use --sampler'
            ' balanced.'
        )


def smote(
    dataset: SampleDataset,
    path: str,
    classes: Sequence[str],
    img_size: Tuple[int, int],
    interpolation: str = 'bilinear',
    seed: int = 42,
) -> SmoteDataset:
    """The published oversampling: SMOTE on the flattened pixels of the resized training images.

    Args:
        dataset: Training images.
        path: JSON file with the desired number of images of each class, {"class": count, ...}.
        classes: Class names by index.
        img_size: (H, W) that images are resized to; the aspect ratio is not kept.
        interpolation: Interpolation of the resizing.
        seed: Random seed of SMOTE.

    Raises:
        ImportError: without imbalanced-learn.
        FileNotFoundError, ValueError: as `read_class_file`; if a count is not an integer or below the number of real
            images, or a class that grows has fewer images than SMOTE needs for its neighbours (6).
        MemoryError: if it needs more memory than is available; names the estimate.
    """
    try:
        from imblearn.over_sampling import SMOTE
    except ImportError as e:
        raise ImportError("SMOTE needs imbalanced-learn: pip install 'hdkd-timm[smote]'.") from e
    targets = dataset.targets
    counts = _read_counts(path, targets, classes)
    shape = (*img_size, *((3,) if dataset.img_mode == 'RGB' else ()))
    values = int(np.prod(shape))
    _check_memory(len(targets), sum(counts.values()), values, img_size)
    pixels = np.empty((len(targets), values), np.float32)
    for i in range(len(targets)):
        image = dataset.read(i).resize(img_size[::-1], str_to_pil_interp(interpolation))
        pixels[i] = np.asarray(image, np.float32).ravel()
    pixels, labels = SMOTE(sampling_strategy=counts, random_state=seed).fit_resample(pixels, targets)
    synthetic = pixels[len(targets) :].round().clip(0, 255).astype(np.uint8).reshape(-1, *shape)
    return SmoteDataset(dataset, synthetic, labels[len(targets) :])


def count_classes(targets: np.ndarray, classes: Sequence[str]) -> Dict[str, int]:
    """Class name -> number of images."""
    return dict(zip(classes, to_indicators(targets, len(classes)).sum(axis=0).tolist()))
