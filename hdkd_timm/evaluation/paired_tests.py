"""Two classifiers on the same images: is one better, or was it chance?"""
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np
from scipy.stats import binomtest

from .intervals import (
    class_reach,
    effective_number,
    group_indices,
    paired_interval,
    skewed_mean_interval,
    stratum_weights,
)
from .metrics import METRICS, RANGES, WeightedImages, bootstrap, least_reach, percentile_interval, widen


def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> Dict[str, Any]:
    """McNemar's exact test of the images that one classifier gets right and the other does not.

    Args:
        correct_a, correct_b: Is each image right? (N,) of bool each.

    Returns:
        'only_first' and 'only_second' (numbers of images), and 'p_value', two-sided; 1 if they never differ.

    Raises:
        ValueError: if the shapes differ.
    """
    correct_a, correct_b = np.asarray(correct_a, bool), np.asarray(correct_b, bool)
    if correct_a.shape != correct_b.shape:
        raise ValueError(f'Both need the same images, got {correct_a.shape} and {correct_b.shape}.')
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    p_value = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.
    return dict(only_first=only_a, only_second=only_b, p_value=float(p_value))


def _accuracy_intervals(
        networks: Sequence[WeightedImages],
        groups: Optional[np.ndarray],
        confidence: float,
) -> Dict[str, List[float]]:
    """Intervals of the differences of accuracy and balanced accuracy, second minus first."""
    first, second = networks
    only_a, only_b = first.correct & ~second.correct, second.correct & ~first.correct
    group_of = group_indices(groups)

    def interval_of(which: np.ndarray, strata: Optional[np.ndarray] = None) -> List[float]:
        """Of the images `which`, (N,) of bool."""
        a, b, of = (None if values is None else values[which] for values in (only_a, only_b, group_of))
        number = effective_number(b.astype(np.float64) - a, of, strata, confidence)
        weights = None if strata is None else stratum_weights(strata)
        shares = [np.average(only, weights=weights) for only in (a, b)]
        return list(paired_interval(shares[0] * number, shares[1] * number, number, confidence))

    everything = np.ones(first.number, bool)
    of_classes = [first.targets == k for k in np.unique(first.targets)]
    differences = np.array([second.correct[own].mean() - first.correct[own].mean() for own in of_classes])
    reach = class_reach(differences, np.array([interval_of(own) for own in of_classes]))
    return {
        'accuracy': interval_of(everything),
        'balanced_accuracy': widen(
            interval_of(everything, first.targets), float(differences.mean()), *reach, -1., 1.)}


def paired_bootstrap(
        probs_a: np.ndarray,
        probs_b: np.ndarray,
        targets: np.ndarray,
        groups: Optional[np.ndarray] = None,
        resamples: int = 1000,
        confidence: float = 0.95,
        seed: int = 42,
        stop_if_asked: Optional[Callable[[], None]] = None,
        progress: bool = True,
) -> Dict[str, Dict[str, Any]]:
    """Differences of all metrics, second minus first, with intervals for the same images.

    - Accuracy and balanced accuracy: `paired_interval`, of the `effective_number` of images in groups and classes; the
      balanced one at least as far as `class_reach` says.
    - The others: percentiles of the differences over the same draws of both, but at least the `least_reach` that the
      accuracies imply: that two networks are both right on twelve images does not show that they are equal; of the log
      loss also at least `skewed_mean_interval`.

    Two networks whose probabilities are all equal are the same one: all differences are [0, 0].

    Args:
        probs_a, probs_b: Probabilities (N, K) of each.
        targets: Class indices (N,).
        groups: Group of each image, (N,): then groups are drawn.
        resamples: Number of draws with replacement.
        confidence: How often an interval shall hold the true difference.
        seed: Seed of the draws.
        stop_if_asked, progress: See `bootstrap`.

    Returns:
        Metric -> 'difference' and 'interval', [low, high]; NaN if no draw defines it.

    Raises:
        ValueError: if the shapes differ.
    """
    if probs_a.shape != probs_b.shape:
        raise ValueError(f'Both need the same images and classes, got {probs_a.shape} and {probs_b.shape}.')
    networks = [WeightedImages(probs, targets) for probs in (probs_a, probs_b)]
    one = np.ones((len(targets), 1))
    a, b = (network.metrics(one) for network in networks)
    difference = {name: float(b[name][0] - a[name][0]) for name in METRICS}
    if np.array_equal(probs_a, probs_b):
        return {name: dict(difference=value, interval=[value, value]) for name, value in difference.items()}
    first, second = bootstrap(networks, groups, resamples, seed, stop_if_asked, progress)
    intervals = {name: percentile_interval(second[name] - first[name], confidence) for name in METRICS}
    intervals.update(_accuracy_intervals(networks, groups, confidence))
    reach = least_reach(networks, networks[0].correct != networks[1].correct, *(
        (difference[name] - intervals[name][0], intervals[name][1] - difference[name])
        for name in ('accuracy', 'balanced_accuracy')))
    low, high = skewed_mean_interval(networks[1].losses - networks[0].losses, groups, confidence)
    reach['log_loss'] = np.fmax(  # NaN is none
        reach['log_loss'], (difference['log_loss'] - low, high - difference['log_loss']))
    for name, distances in reach.items():
        most = RANGES[name][1] - RANGES[name][0]
        intervals[name] = widen(intervals[name], difference[name], *distances, -most, most)
    return {name: dict(difference=difference[name], interval=intervals[name]) for name in METRICS}
