"""Comparison of two classifiers on the same images: McNemar's test, and intervals of metric differences."""

from types import SimpleNamespace
from typing import Any, Callable, Dict, List, Optional, Sequence, Union

import numpy as np
from scipy.stats import binomtest

from .bootstrap import bootstrap, interval_margins, margins_of_metrics
from .intervals import (
    effective_sample_size,
    extend_interval,
    group_indices,
    paired_interval,
    percentile_interval,
    single_class_margins,
    stratum_weights,
)
from .label_intervals import decision_accuracies, list_decisions, minimum_label_margins, widest
from .metrics import METRIC_RANGES, METRICS, WeightedImages
from .multi_label import WeightedLabels


def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> Dict[str, Any]:
    """McNemar's exact test on the images that only one of two classifiers classifies correctly.

    Args:
        correct_a, correct_b: Whether each image is classified correctly, (N,) of bool each.

    Returns:
        'only_first' and 'only_second' (numbers of images), and the two-sided 'p_value'; 1 without discordant images.

    Raises:
        ValueError: if the shapes differ.
    """
    correct_a, correct_b = np.asarray(correct_a, bool), np.asarray(correct_b, bool)
    if correct_a.shape != correct_b.shape:
        raise ValueError(f'Both classifiers need the same images, got {correct_a.shape} and {correct_b.shape}.')
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    p_value = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return dict(only_first=only_a, only_second=only_b, p_value=float(p_value))


def _accuracy_intervals(
    networks: Sequence[Union[WeightedImages, SimpleNamespace]],
    groups: Optional[np.ndarray],
    confidence: float,
) -> Dict[str, List[float]]:
    """Intervals of the differences of accuracy and balanced accuracy, second minus first.

    Args:
        networks: 'correct', 'targets' (of both the same) and 'num_images' of the two.
        groups: Group of each image, (N,).
        confidence: Confidence level.
    """
    first, second = networks
    only_a, only_b = first.correct & ~second.correct, second.correct & ~first.correct
    group_of = group_indices(groups)

    def interval_of(which: np.ndarray, strata: Optional[np.ndarray] = None) -> List[float]:
        """Interval over the images `which`, (N,) of bool."""
        a, b = only_a[which], only_b[which]
        own_groups = None if group_of is None else group_of[which]
        number = effective_sample_size(b.astype(np.float64) - a, own_groups, strata, confidence)
        weights = None if strata is None else stratum_weights(strata)
        shares = [np.average(only, weights=weights) for only in (a, b)]
        return list(paired_interval(shares[0] * number, shares[1] * number, number, confidence))

    everything = np.ones(first.num_images, bool)
    of_classes = [first.targets == k for k in np.unique(first.targets)]
    differences = np.array([second.correct[own].mean() - first.correct[own].mean() for own in of_classes])
    margins = single_class_margins(differences, np.array([interval_of(own) for own in of_classes]))
    return {
        'accuracy': interval_of(everything),
        'balanced_accuracy': extend_interval(
            interval_of(everything, first.targets), float(differences.mean()), margins, (-1.0, 1.0)
        ),
    }


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
    """Differences of all metrics, second minus first, with intervals over the same images.

    - Accuracy and balanced accuracy: `paired_interval` with the `effective_sample_size` over groups and classes; the
      interval of the balanced accuracy has at least the `single_class_margins`.
    - The others: percentiles of the differences over the same resamples, but with at least the `minimum_margins` that
      the accuracies imply: two networks that both classify twelve images correctly are not thereby equal; for the log
      loss also at least the `skewed_mean_interval`.

    Two networks with identical probabilities are considered the same: all differences are 0 with interval [0, 0].

    Args:
        probs_a, probs_b: Probabilities (N, K) of the first and the second network.
        targets: Class indices (N,).
        groups: Group of each image, (N,); groups are drawn instead of images.
        resamples: Number of resamples.
        confidence: Confidence level.
        seed: Seed of the resampling.
        stop_if_asked, progress: See `bootstrap`.

    Returns:
        Metric -> 'difference' and 'interval', [low, high]; NaN if it is undefined in all resamples.

    Raises:
        ValueError: if the shapes differ.
    """
    if probs_a.shape != probs_b.shape:
        raise ValueError(f'Both networks need the same images and classes, got {probs_a.shape} and {probs_b.shape}.')
    networks = [WeightedImages(probs, targets) for probs in (probs_a, probs_b)]
    a, b = (network.metrics(np.ones((len(targets), 1))) for network in networks)
    difference = {name: float(b[name][0] - a[name][0]) for name in METRICS}
    if np.array_equal(probs_a, probs_b):
        return {name: dict(difference=value, interval=[value, value]) for name, value in difference.items()}
    first, second = bootstrap(networks, groups, resamples, seed, stop_if_asked, progress)
    intervals = {name: percentile_interval(second[name] - first[name], confidence) for name in METRICS}
    intervals.update(_accuracy_intervals(networks, groups, confidence))
    discordant = networks[0].correct != networks[1].correct
    margins = margins_of_metrics(
        networks, discordant, networks[1].losses - networks[0].losses, difference, intervals, groups, confidence
    )
    for name in margins:
        largest = METRIC_RANGES[name][1] - METRIC_RANGES[name][0]
        intervals[name] = extend_interval(intervals[name], difference[name], margins[name], (-largest, largest))
    return {name: dict(difference=difference[name], interval=intervals[name]) for name in METRICS}


def paired_label_bootstrap(
    networks: Sequence[WeightedLabels],
    groups: Optional[np.ndarray] = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 42,
) -> Dict[str, Dict[str, Any]]:
    """As `paired_bootstrap`, of two networks for images with any number of labels.

    The exact match has a `paired_interval`; the others percentiles with at least the `minimum_label_margins`.

    Args:
        networks: Their outputs for the same images.
        groups: Group of each image, (N,); groups are drawn instead of images.
        resamples: Number of resamples.
        confidence: Confidence level.
        seed: Seed of the resampling.

    Returns:
        Metric -> 'difference' and 'interval', [low, high]; NaN if it is undefined in all resamples.
    """
    a, b = (network.metrics(np.ones((network.num_images, 1))) for network in networks)
    difference = {name: float(b[name][0] - a[name][0]) for name in a}
    right = [network.predicted == network.targets for network in networks]
    if np.array_equal(networks[0].probs, networks[1].probs) and np.array_equal(*right):
        return {name: dict(difference=value, interval=[value, value]) for name, value in difference.items()}
    first, second = bootstrap(networks, groups, resamples, seed)
    intervals = {name: percentile_interval(second[name] - first[name], confidence) for name in a}
    decisions = [list_decisions(network, groups) for network in networks]
    found = _accuracy_intervals(decisions, decisions[0].groups, confidence)
    accuracies = [decision_accuracies(part) for part in decisions]
    margins = minimum_label_margins(
        networks,
        right[0] != right[1],
        *(
            interval_margins(found[name], accuracies[1][name] - accuracies[0][name])
            for name in ('accuracy', 'balanced_accuracy')
        ),
    )
    losses = networks[1].losses - networks[0].losses
    margins['log_loss'] = widest(margins['log_loss'], losses, difference['log_loss'], groups, confidence)
    for name in margins:
        largest = METRIC_RANGES[name][1] - METRIC_RANGES[name][0]
        intervals[name] = extend_interval(intervals[name], difference[name], margins[name], (-largest, largest))
    exact = [
        SimpleNamespace(correct=part.all(axis=1), targets=np.zeros(len(part), int), num_images=len(part))
        for part in right
    ]
    intervals['exact_match'] = _accuracy_intervals(exact, groups, confidence)['accuracy']
    return {name: dict(difference=difference[name], interval=intervals[name]) for name in a}
