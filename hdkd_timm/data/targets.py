"""Targets of N images: class indices, (N,), or of images with any number of labels 0 or 1 for each label, (N, K)."""

from typing import List, Sequence

import numpy as np

SEPARATOR = '|'  # between the labels of an image in tables


def is_multi_label(targets: np.ndarray) -> bool:
    """Whether these are the targets of images with any number of labels."""
    return targets.ndim == 2


def to_indicators(targets: np.ndarray, num_classes: int) -> np.ndarray:
    """Whether each image has each class, (N, K) of bool."""
    return targets.astype(bool) if is_multi_label(targets) else targets[:, None] == np.arange(num_classes)


def name_targets(targets: np.ndarray, classes: Sequence[str]) -> List[str]:
    """The class of each image, (N,), or its labels, joined by '|'; '' for an image without a label."""
    if not is_multi_label(targets):
        return [classes[k] for k in targets]
    return [SEPARATOR.join(name for name, has in zip(classes, row) if has) for row in targets]


def find_strata(targets: np.ndarray) -> np.ndarray:
    """What a split is stratified by, (N,): the class of an image, or the rarest of its labels; K without a label."""
    if not is_multi_label(targets):
        return targets
    counts = targets.sum(axis=0)
    rarity = np.where(targets.astype(bool), counts, len(targets) + 1)
    return np.where(targets.any(axis=1), rarity.argmin(axis=1), targets.shape[1])
