"""Splits of the training images: a fraction of them, folds, a validation split. Seeded, by class and by group."""

import logging
import math
import warnings
from typing import Dict, Optional

import numpy as np

from .samples import Samples
from .targets import find_strata, to_indicators

_logger = logging.getLogger(__name__)

VAL_FOLDS = 20  # folds of which a validation split is composed, or more for a fraction that needs finer ones


def draw_fraction(
    targets: np.ndarray, fraction: float, seed: int = 42, groups: Optional[np.ndarray] = None
) -> np.ndarray:
    """Draw a fraction of each class, at least one image per class; of images with any number of labels, of each of
    `find_strata`. Groups are drawn whole, and a larger fraction has all images of a smaller one.

    Args:
        targets: Class indices, (N,), or labels, (N, K).
        fraction: Fraction to keep, above 0 and at most 1. The number of images of each class is rounded; with groups
            it is the nearest that whole groups give.
        seed: Random seed.
        groups: Group of each image, such as its patient, (N,), or None. One with images of several classes is drawn
            with the rarest of them.

    Returns:
        Positions of the drawn images in ascending order.

    Raises:
        ValueError: if the fraction is out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f'train_fraction must be above 0 and at most 1, got {fraction}.')
    rng = np.random.default_rng(seed)
    strata = find_strata(targets)
    units = _number_groups(groups) if groups is not None else np.arange(len(strata))
    stratum_of = np.empty(units.max(initial=-1) + 1, dtype=np.int64)
    for stratum in sorted(np.unique(strata), key=lambda k: -np.count_nonzero(strata == k)):  # the rarest last
        stratum_of[units[strata == stratum]] = stratum
    kept = np.zeros(len(stratum_of), dtype=bool)
    for stratum in np.unique(strata):
        having = np.unique(units[strata == stratum])
        own = having[stratum_of[having] == stratum]
        order = rng.permutation(own if len(own) else having)
        images = np.bincount(units[strata == stratum], minlength=len(stratum_of))[order].cumsum()
        nearest = np.abs(images - round(fraction * images[-1])).argmin()
        kept[order[: nearest + 1 if len(own) else 1]] = True
    return np.flatnonzero(kept[units])


def _number_groups(groups: np.ndarray) -> np.ndarray:
    """The group of each image as a number, (N,), in the order of their first images."""
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return first.argsort().argsort()[inverse]


def _count_units(samples: Samples) -> Dict[int, int]:
    """Class -> number of its images, or of its groups if there are any: the most folds that can all contain it."""
    has = to_indicators(samples.targets, int(samples.targets.max()) + 1)
    return {
        int(k): int(has[:, k].sum()) if samples.groups is None else len(np.unique(samples.groups[has[:, k]]))
        for k in np.flatnonzero(has.any(axis=0))
    }


def _unit_name(samples: Samples) -> str:
    return 'images' if samples.groups is None else 'groups'


def assign_folds(samples: Samples, folds: int, seed: int = 42) -> np.ndarray:
    """Fold of each sample, (N,): stratified by class (of images with any number of labels by `find_strata`), each group
    in a single fold (scikit-learn's stratified folds).

    Raises:
        ValueError: if there are fewer than two folds, or more than images (or groups) of a class.
    """
    smallest = min(_count_units(samples).values())
    if not 2 <= folds <= smallest:
        raise ValueError(
            f'Cannot split the training images into {folds} folds: expected 2 to {smallest}, the number of'
            f' {_unit_name(samples)} of the smallest class.'
        )
    return _stratify(samples, folds, seed)


def _stratify(samples: Samples, folds: int, seed: int) -> np.ndarray:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # here, for a quick --help

    splitter = StratifiedKFold if samples.groups is None else StratifiedGroupKFold
    fold_of = np.empty(len(samples), int)
    strata = find_strata(samples.targets)
    splits = splitter(folds, shuffle=True, random_state=seed).split(strata, strata, samples.groups)
    for fold, (_, held_out) in enumerate(splits):
        fold_of[held_out] = fold
    return fold_of


def draw_val(samples: Samples, fraction: float, seed: int = 42) -> np.ndarray:
    """Draw a validation split: consecutive stratified folds, as in `assign_folds`.

    The number of folds, and of those held out, is chosen to come as near the fraction as possible with images of each
    class on both sides. Large groups make folds uneven: of these the first is held out that has the fraction of each
    class, within a third of it, or the one that comes nearest.

    Args:
        samples: Training images, (N,).
        fraction: Fraction to hold out, above 0 and below 1.
        seed: Random seed.

    Returns:
        Mask of the images held out, (N,).

    Raises:
        ValueError: if the fraction is out of range, or there is no such split (a class has a single image or group).
    """
    if not 0 < fraction < 1:
        raise ValueError(f'val_fraction must be above 0 and below 1, got {fraction}.')
    units = _count_units(samples)
    most_folds = max(VAL_FOLDS, math.ceil(1 / min(fraction, 1 - fraction)))
    largest = int(np.unique(find_strata(samples.targets), return_counts=True)[1].max())
    most_folds = min(most_folds, max(units.values()), largest) if min(units.values()) > 1 else 1
    candidates = sorted(
        (abs(held / folds - fraction), folds, held) for folds in range(2, most_folds + 1) for held in range(1, folds)
    )
    has = to_indicators(samples.targets, int(samples.targets.max()) + 1)
    folds_of: Dict[int, np.ndarray] = {}  # number of folds -> fold of each sample
    for _, folds, held in candidates:
        if folds not in folds_of:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore', UserWarning)  # about classes with fewer images than folds
                folds_of[folds] = _stratify(samples, folds, seed)
        drawn = [(folds_of[folds] - first) % folds < held for first in range(folds)]
        fit = [m for m in drawn if all(has[side].any(axis=0).sum() == len(units) for side in (m, ~m))]
        if fit and samples.groups is None:
            return fit[0]
        errors = [np.abs(has[m].sum(axis=0) / has.sum(axis=0) - fraction).max() for m in fit]
        if fit:
            near = [m for m, error in zip(fit, errors) if error <= min(fraction, 1 - fraction) / 3 + 1e-9]
            return near[0] if near else fit[int(np.argmin(errors))]
    raise ValueError(
        'Cannot draw a val split with images of each class: the smallest class has'
        f' {min(units.values())} training {_unit_name(samples)}.'
    )


def hold_out(
    samples: Dict[str, Samples],
    folds: Optional[int],
    fold: int,
    val_fraction: float,
    seed: int,
) -> Dict[str, Samples]:
    """Hold a fold or a validation split out of the training images.

    Args:
        samples: Split -> samples, with 'train'.
        folds: Number of folds, None for no cross-validation.
        fold: Fold held out: as 'val' if there is a test split, else as 'test'.
        val_fraction: Fraction held out as 'val', 0 for none.
        seed: Random seed.

    Raises:
        ValueError: if the data has a val split already, the fold does not exist, a class has too few images, or nothing
            but training images is left.
    """
    train = samples['train']
    if folds:
        if 'val' in samples:
            raise ValueError('--folds holds out a val split, but the data already has one.')
        if not 0 <= fold < folds:
            raise ValueError(f'--fold must be 0 to {folds - 1}, got {fold}.')
        held_out = assign_folds(train, folds, seed) == fold
        samples = dict(samples, **{'val' if 'test' in samples else 'test': train.take(held_out)})
        train = train.take(~held_out)
    if val_fraction:
        if 'val' in samples:
            raise ValueError('--val-fraction is for data without a val split, but this data has one.')
        held_out = draw_val(train, val_fraction, seed)
        samples, train = dict(samples, val=train.take(held_out)), train.take(~held_out)
    if len(samples) == 1:
        raise ValueError(
            "The data has neither a split 'test' nor 'val': add one, or hold training images out with --folds or"
            ' --val-fraction.'
        )
    return dict(samples, train=train)


def warn_of_leaks(samples: Dict[str, Samples]) -> None:
    """Warn about groups with images in the training split and in another one."""
    for split in ('val', 'test'):
        if split in samples and samples[split].groups is not None:
            shared = np.isin(samples[split].groups, samples['train'].groups)
            if shared.any():
                _logger.warning(
                    f'{shared.sum()} of {len(shared)} {split} images share a group with training images: results on'
                    ' them are optimistically biased.'
                )
