"""Comparison of two classifiers on the same images: McNemar's test, and intervals of metric differences."""

from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np
from scipy.stats import binomtest

from .bootstrap import bootstrap, interval_margins, margins_of_metrics
from .intervals import (
    Interval,
    effective_sample_size,
    extend_interval,
    group_indices,
    paired_interval,
    percentile_interval,
    single_class_margins,
    stratum_weights,
)
from .label_intervals import decision_accuracies, list_decisions, minimum_label_margins, widest
from .metrics import METRIC_RANGES, WeightedImages
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
    differences: np.ndarray, targets: np.ndarray, groups: Optional[np.ndarray], confidence: float
) -> Dict[str, List[float]]:
    """Intervals of the differences of accuracy and balanced accuracy.

    Each is a `paired_interval`. It takes an image whose difference is 1/3, because one of three pairs disagrees, for a
    third of a discordant image, which would have three times the variance. The number of images is therefore scaled by
    the ratio of these variances, estimated with one more image on which all pairs disagree: as long as few images are
    discordant, that is what another one may be. For a single pair the ratio is 1, and this is Tango's interval. The
    scaling to the variance is that of an effective sample size (Korn and Graubard, Survey Methodology 24, 1998,
    193-201), its use here a rule of our own.

    Args:
        differences: How much more often each image is classified correctly, second minus first, the mean over the pairs
            of networks, -1 to 1, (N,).
        targets: Class of each image, (N,).
        groups: Group of each image, (N,).
        confidence: Confidence level.
    """
    group_of = group_indices(groups)

    def interval_of(which: np.ndarray, strata: Optional[np.ndarray] = None) -> List[float]:
        """Interval over the images `which`, (N,) of bool."""
        own = differences[which]
        own_groups = None if group_of is None else group_of[which]
        weights = None if strata is None else stratum_weights(strata)
        worse, better, square = (np.average(v, weights=weights) for v in ((-own).clip(0), own.clip(0), own**2))
        assumed, actual = (len(own) * (share - (better - worse) ** 2) for share in (worse + better, square))
        number = effective_sample_size(own, own_groups, strata, confidence) * (assumed + 1) / (actual + 1)
        return list(paired_interval(worse * number, better * number, number, confidence))

    everything = np.ones(len(targets), bool)
    of_classes = [targets == k for k in np.unique(targets)]
    means = np.array([differences[own].mean() for own in of_classes])
    margins = single_class_margins(means, np.array([interval_of(own) for own in of_classes]))
    return {
        'accuracy': interval_of(everything),
        'balanced_accuracy': extend_interval(
            interval_of(everything, targets), float(means.mean()), margins, (-1.0, 1.0)
        ),
    }


def _mean_of(networks: Sequence[Any], attribute: str) -> np.ndarray:
    """Mean of an array over networks."""
    return np.mean([np.asarray(getattr(network, attribute), np.float64) for network in networks], axis=0)


def _find_margins(
    first: Sequence[WeightedImages],
    second: Sequence[WeightedImages],
    difference: Dict[str, float],
    intervals: Dict[str, List[float]],
    groups: Optional[np.ndarray],
    confidence: float,
) -> Dict[str, Interval]:
    """Smallest margins of the metrics of images of one class; the intervals of the accuracies, which are entered."""
    differences = _mean_of(second, 'correct') - _mean_of(first, 'correct')
    intervals.update(_accuracy_intervals(differences, first[0].targets, groups, confidence))
    losses = _mean_of(second, 'losses') - _mean_of(first, 'losses')
    return margins_of_metrics([*first, *second], differences != 0, losses, difference, intervals, groups, confidence)


def _find_label_margins(
    first: Sequence[WeightedLabels],
    second: Sequence[WeightedLabels],
    difference: Dict[str, float],
    intervals: Dict[str, List[float]],
    groups: Optional[np.ndarray],
    confidence: float,
) -> Dict[str, Interval]:
    """Smallest margins of the metrics of images with any number of labels; the interval of the exact match, which is
    entered."""
    before, after = ([list_decisions(network, groups) for network in part] for part in (first, second))
    differences = _mean_of(after, 'correct') - _mean_of(before, 'correct')
    found = _accuracy_intervals(differences, before[0].targets, before[0].groups, confidence)
    accuracies = [[decision_accuracies(decisions) for decisions in part] for part in (before, after)]
    margins = minimum_label_margins(
        [*first, *second],
        differences.reshape(first[0].targets.shape) != 0,
        *(
            interval_margins(found[name], float(np.mean([b[name] - a[name] for a, b in zip(*accuracies)])))
            for name in ('accuracy', 'balanced_accuracy')
        ),
    )
    losses = _mean_of(second, 'losses') - _mean_of(first, 'losses')
    margins['log_loss'] = widest(margins['log_loss'], losses, difference['log_loss'], groups, confidence)
    exact = np.mean(
        [
            (b.predicted == b.targets).all(axis=1) - (a.predicted == a.targets).all(axis=1).astype(np.float64)
            for a, b in zip(first, second)
        ],
        axis=0,
    )
    one_class = np.zeros(len(exact), int)
    intervals['exact_match'] = _accuracy_intervals(exact, one_class, groups, confidence)['accuracy']
    return margins


def _is_same(first: Any, second: Any) -> bool:
    """Whether two networks have the same probabilities, and give the same labels."""
    return np.array_equal(first.probs, second.probs) and (
        isinstance(first, WeightedImages) or np.array_equal(first.predicted, second.predicted)
    )


def mean_differences(
    first: Sequence[Any],
    second: Sequence[Any],
    groups: Optional[np.ndarray] = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 42,
    stop_if_asked: Optional[Callable[[], None]] = None,
    progress: bool = True,
) -> Dict[str, Dict[str, Any]]:
    """Differences of all metrics, second minus first, averaged over pairs of networks, such as those of several seeds.

    The intervals tell how certain the mean difference of these networks is on other images. For one class per image:

    - Accuracy and balanced accuracy: `paired_interval` with the `effective_sample_size` over groups and classes; the
      interval of the balanced accuracy has at least the `single_class_margins`. See `_accuracy_intervals` for the mean
      of several pairs.
    - The others: percentiles of the differences over the same resamples, but with at least the `minimum_margins` that
      the accuracies imply: two networks that both classify twelve images correctly are not thereby equal; for the log
      loss also at least the `skewed_mean_interval`.

    With any number of labels, the exact match has a `paired_interval`; the others percentiles with at least the
    `minimum_label_margins`. Pairs of networks with identical probabilities are considered the same: all differences are
    0 with interval [0, 0].

    Args:
        first: Outputs of the first network of each pair, `WeightedImages` or `WeightedLabels` of the same images.
        second: Those of the second one.
        groups: Group of each image, (N,); groups are drawn instead of images.
        resamples: Number of resamples.
        confidence: Confidence level.
        seed: Seed of the resampling.
        stop_if_asked, progress: See `bootstrap`.

    Returns:
        Metric -> 'difference' and 'interval', [low, high]; NaN if it is undefined in all resamples.
    """
    ones = np.ones((first[0].num_images, 1))
    before, after = ([network.metrics(ones) for network in part] for part in (first, second))
    difference = {
        name: float(np.mean([b[name][0] - a[name][0] for a, b in zip(before, after)])) for name in first[0].names
    }
    intervals = {name: [value, value] for name, value in difference.items()}
    if not all(map(_is_same, first, second)):
        drawn = bootstrap([*first, *second], groups, resamples, seed, stop_if_asked, progress)
        for name in intervals:
            low, high = (
                np.mean([draw[name] for draw in part], 0) for part in (drawn[: len(first)], drawn[len(first) :])
            )
            intervals[name] = percentile_interval(high - low, confidence)
        find = _find_margins if isinstance(first[0], WeightedImages) else _find_label_margins
        for name, margins in find(first, second, difference, intervals, groups, confidence).items():
            largest = METRIC_RANGES[name][1] - METRIC_RANGES[name][0]
            intervals[name] = extend_interval(intervals[name], difference[name], margins, (-largest, largest))
    return {name: dict(difference=difference[name], interval=intervals[name]) for name in difference}


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
    """The `mean_differences` of a single pair of networks for images of one class.

    Args:
        probs_a, probs_b: Probabilities (N, K) of the first and the second network.
        targets: Class indices (N,).
        groups, resamples, confidence, seed, stop_if_asked, progress: See `mean_differences`.

    Raises:
        ValueError: if the shapes differ.
    """
    if probs_a.shape != probs_b.shape:
        raise ValueError(f'Both networks need the same images and classes, got {probs_a.shape} and {probs_b.shape}.')
    first, second = ([WeightedImages(probs, targets)] for probs in (probs_a, probs_b))
    return mean_differences(first, second, groups, resamples, confidence, seed, stop_if_asked, progress)


def paired_label_bootstrap(
    networks: Sequence[WeightedLabels],
    groups: Optional[np.ndarray] = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 42,
) -> Dict[str, Dict[str, Any]]:
    """The `mean_differences` of a single pair of networks for images with any number of labels.

    Args:
        networks: Their outputs for the same images.
        groups, resamples, confidence, seed: See `mean_differences`.
    """
    first, second = networks
    return mean_differences([first], [second], groups, resamples, confidence, seed)
