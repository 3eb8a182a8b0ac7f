"""Metrics of a classifier whose images have any number of labels, as pure functions of probabilities and 0/1 targets.

Shapes: N images, K labels; probabilities (N, K), each of its own, targets (N, K) of 0 and 1, thresholds (K,). A metric
that is undefined for the given images (AUROC of a label that none has) is NaN.
"""

import functools
import math
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from .bootstrap import bootstrap
from .label_intervals import label_metric_intervals, per_label_intervals
from .metrics import MULTI_LABEL_METRICS, check_finite
from .ranking import Ranking, divide, mean_of_defined

DEFAULT_THRESHOLD = 0.5


class WeightedLabels:
    """`MULTI_LABEL_METRICS` of weighted images, for many weightings at once; see `WeightedImages`.

    Args:
        probs: Probabilities (N, K).
        targets: 0 or 1 for each label, (N, K).
        thresholds: Probability from which on an image is given a label, (K,); 0.5 by default.

    Raises:
        ValueError: if there are no images, the shapes don't match, or a probability is not finite.
    """

    names = MULTI_LABEL_METRICS

    def __init__(self, probs: np.ndarray, targets: np.ndarray, thresholds: Optional[np.ndarray] = None):
        if probs.ndim != 2 or targets.shape != probs.shape or not len(targets):
            raise ValueError(f'Expected (N, K) probabilities and targets, got {probs.shape} and {targets.shape}.')
        check_finite(probs)
        self.num_images, self.num_classes = probs.shape
        self.probs, self.targets = probs, targets.astype(bool)
        self.predicted = assign_labels(probs, thresholds)
        eps = np.finfo(probs.dtype).eps
        clipped = probs.astype(np.float64).clip(eps, 1 - eps)
        self.losses = -np.where(self.targets, np.log(clipped), np.log1p(-clipped)).mean(axis=1)

    @functools.cached_property
    def rankings(self) -> List[Ranking]:
        """Of each label, by its probabilities."""
        return [Ranking(scores, positive) for scores, positive in zip(self.probs.T, self.targets.T)]

    def placements(self) -> np.ndarray:
        """Placement values, (N, K): for an image with the label the share of those without it that score lower, for one
        without it the share of those with it that score higher. The means of either are the label's AUROC."""
        with_label = [ranking.placements() for ranking in self.rankings]
        without = [Ranking(-ranking.scores, ~ranking.positive).placements() for ranking in self.rankings]
        return np.where(self.targets, np.stack(with_label, axis=1), np.stack(without, axis=1))

    def metrics(self, weights: np.ndarray) -> Dict[str, np.ndarray]:
        """`MULTI_LABEL_METRICS`, (B,) each, for weights (N, B) of type float64."""
        number = weights.sum(axis=0)
        hits, given, positive = (
            mask.T.astype(np.float64) @ weights
            for mask in (self.predicted & self.targets, self.predicted, self.targets)
        )  # (K, B)
        exact = (self.predicted == self.targets).all(axis=1).astype(np.float64)
        return {
            'macro_auroc': mean_of_defined(np.stack([ranking.auroc(weights) for ranking in self.rankings])),
            'mean_ap': mean_of_defined(np.stack([ranking.average_precision(weights) for ranking in self.rankings])),
            'macro_f1': mean_of_defined(divide(2 * hits, given + positive)),
            'micro_f1': divide(2 * hits.sum(axis=0), (given + positive).sum(axis=0)),
            'exact_match': exact @ weights / number,
            'log_loss': self.losses @ weights / number,
        }


def assign_labels(probs: np.ndarray, thresholds: Optional[np.ndarray] = None) -> np.ndarray:
    """Whether each image is given each label, (N, K) of bool: its probability is at least the threshold.

    Args:
        probs: Probabilities (N, K).
        thresholds: (K,); 0.5 by default.
    """
    return probs >= (DEFAULT_THRESHOLD if thresholds is None else np.asarray(thresholds))


def flatten_labels(
    probs: np.ndarray, targets: np.ndarray, groups: Optional[np.ndarray] = None
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each image and label as a decision between two classes, for what is defined for classes alone.

    Args:
        probs: Probabilities (N, K).
        targets: 0 or 1 for each label, (N, K).
        groups: Group of each image, (N,).

    Returns:
        Probabilities of no and yes (N * K, 2), targets (N * K,), and the group of each, (N * K,): that of the image,
        or the image itself.
    """
    of_images = np.arange(len(probs)) if groups is None else groups
    two = np.stack([1 - probs, probs], axis=2).reshape(-1, 2)
    return two, targets.reshape(-1).astype(int), np.repeat(of_images, probs.shape[1])


def choose_thresholds(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Thresholds (K,) with the largest F1 of each label on these images, which should be validation images.

    A threshold lies in the middle between two neighbouring probabilities; of several that are equally good it is the
    one next to 0.5. It is 0.5 for a label that no image has.

    Args:
        probs: Probabilities (N, K).
        targets: 0 or 1 for each label, (N, K).
    """
    thresholds = np.full(probs.shape[1], DEFAULT_THRESHOLD)
    for k, (scores, positive) in enumerate(zip(probs.T.astype(np.float64), targets.T.astype(bool))):
        if not positive.any():
            continue
        values, at = np.unique(scores, return_inverse=True)  # ascending
        at = at.reshape(-1)
        hits = np.bincount(at, positive, minlength=len(values))[::-1].cumsum()[::-1]  # with this threshold or above it
        given = np.bincount(at, minlength=len(values))[::-1].cumsum()[::-1]
        f1 = 2 * hits / (given + positive.sum())
        edges = np.concatenate([[values[0] / 2], (values[1:] + values[:-1]) / 2])
        best = np.flatnonzero(f1 >= f1.max() - 1e-12)
        thresholds[k] = edges[best[np.abs(edges[best] - DEFAULT_THRESHOLD).argmin()]]
    return thresholds


def multi_label_metrics(
    probs: np.ndarray, targets: np.ndarray, thresholds: Optional[np.ndarray] = None
) -> Dict[str, float]:
    """All of `MULTI_LABEL_METRICS`.

    Macro AUROC and mean average precision over the labels for which they are defined; macro F1 over the labels that an
    image has or is given, micro F1 over all decisions; the share of images whose labels are all right (exact match, or
    subset accuracy); the log loss, mean over images and labels.

    Args:
        probs: Probabilities (N, K).
        targets: 0 or 1 for each label, (N, K).
        thresholds: Of F1 and exact match, (K,); 0.5 by default.

    Raises:
        ValueError: if there are no images, the shapes don't match, or a probability is not finite.
    """
    found = WeightedLabels(probs, targets, thresholds).metrics(np.ones((len(targets), 1)))
    return {name: float(value[0]) for name, value in found.items()}


def per_label_metrics(
    probs: np.ndarray,
    targets: np.ndarray,
    classes: Sequence[str],
    thresholds: Optional[np.ndarray] = None,
) -> Dict[str, Dict[str, float]]:
    """Label -> auroc, ap (average precision), precision, recall, specificity, f1, threshold, support (images with it)
    and predicted (images that are given it).

    Precision, recall and F1 are 0 where they are undefined, as scikit-learn's; auroc, ap and specificity NaN.
    """
    images = WeightedLabels(probs, targets, thresholds)
    ones = np.ones((images.num_images, 1))
    limits = np.broadcast_to(DEFAULT_THRESHOLD if thresholds is None else np.asarray(thresholds), len(classes))
    found = {}
    for k, name in enumerate(classes):
        positive, given = images.targets[:, k], images.predicted[:, k]
        hits, support, number = int((positive & given).sum()), int(positive.sum()), int(given.sum())
        negatives = len(positive) - support
        found[name] = {
            'auroc': float(images.rankings[k].auroc(ones)[0]),
            'ap': float(images.rankings[k].average_precision(ones)[0]),
            'precision': hits / number if number else 0.0,
            'recall': hits / support if support else 0.0,
            'specificity': (negatives - (number - hits)) / negatives if negatives else math.nan,
            'f1': 2 * hits / (support + number) if support + number else 0.0,
            'threshold': float(limits[k]),
            'support': support,
            'predicted': number,
        }
    return found


def multi_label_report(
    probs: np.ndarray,
    targets: np.ndarray,
    classes: Sequence[str],
    groups: Optional[np.ndarray] = None,
    resamples: int = 1000,
    seed: int = 42,
    stop_if_asked: Optional[Callable[[], None]] = None,
    progress: bool = True,
    thresholds: Optional[np.ndarray] = None,
) -> Dict[str, Any]:
    """All results of a split, as written into metrics.json.

    Args:
        probs: Probabilities (N, K).
        targets: 0 or 1 for each label, (N, K).
        classes: Names of the K labels.
        groups: Group (patient) of each image, (N,), which are drawn instead of images.
        resamples: Bootstrap resamples; 0 for no intervals.
        seed: Seed of the resampling.
        stop_if_asked, progress: See `bootstrap`.
        thresholds: (K,); 0.5 by default.

    Returns:
        'images' (their number), `multi_label_metrics`, 'intervals_95' (`label_metric_intervals`) and 'per_class',
        `per_label_metrics` with `per_label_intervals`.
    """
    images = WeightedLabels(probs, targets, thresholds)
    report: Dict[str, Any] = {'images': len(targets), **multi_label_metrics(probs, targets, thresholds)}
    per_class: Dict[str, Dict[str, Any]] = per_label_metrics(probs, targets, classes, thresholds)
    if resamples:
        (draws,) = bootstrap([images], groups, resamples, seed, stop_if_asked, progress)
        report['intervals_95'] = label_metric_intervals(images, draws, groups)
        for name, intervals in per_label_intervals(images, classes, groups).items():
            per_class[name].update(intervals)
    report['per_class'] = per_class
    return report
