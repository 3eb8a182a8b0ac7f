"""Bootstrap of the metrics, and their confidence intervals.

Shapes: N images, K classes, B resamples; probabilities (N, K), targets (N,). Images of one group (patient, lesion) are
not independent: with groups (N,), whole groups are drawn.
"""

import sys
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
from tqdm import tqdm

from .intervals import (
    Interval,
    effective_sample_size,
    extend_interval,
    group_indices,
    percentile_interval,
    proportion_interval,
    single_class_margins,
    skewed_mean_interval,
)
from .metrics import METRIC_RANGES, WeightedImages

CHUNK_SIZE = 2**18  # weights per chunk of resamples: 2 MiB, which fit the cache of a processor


def _draw_weights(
    num_images: int,
    groups: Optional[np.ndarray],
    resamples: int,
    seed: int,
    chunk: int,
) -> Iterator[np.ndarray]:
    """Number of times that each image is in each resample, (N, B) per chunk of at most `chunk` resamples.

    A resample has as many images as the original, drawn with replacement, or as many groups.
    """
    rng = np.random.default_rng(seed)
    group_of = group_indices(groups)
    num_units = num_images if group_of is None else group_of.max() + 1
    for start in range(0, resamples, chunk):
        counts = np.empty((num_units, min(chunk, resamples - start)))
        for column in counts.T:
            column[:] = np.bincount(rng.integers(num_units, size=num_units), minlength=num_units)
        yield counts if group_of is None else counts[group_of]


def bootstrap(
    networks: Sequence[Any],
    groups: Optional[np.ndarray] = None,
    resamples: int = 1000,
    seed: int = 42,
    stop_if_asked: Optional[Callable[[], None]] = None,
    progress: bool = True,
) -> List[Dict[str, np.ndarray]]:
    """All metrics of each network, (resamples,) each, over the same resamples of images or groups.

    Args:
        networks: Their outputs for the same N images, each as `WeightedImages` or `WeightedLabels`.
        groups: Group (patient, lesion) of each image, (N,); groups are drawn instead of images.
        resamples: Number of resamples.
        seed: Seed of the resampling.
        stop_if_asked: Called about every second; an exception that it raises ends the bootstrap.
        progress: Show a progress bar on a terminal if it takes longer than a second.
    """
    num_images = networks[0].num_images
    chunk = max(16, CHUNK_SIZE // num_images)
    found: List[Dict[str, List[np.ndarray]]] = [{name: [] for name in network.names} for network in networks]
    with tqdm(
        desc='bootstrap',
        total=resamples,
        unit='resample',
        leave=False,
        file=sys.stderr,
        delay=1,
        disable=None if progress else True,
        dynamic_ncols=True,
    ) as bar:
        for weights in _draw_weights(num_images, groups, resamples, seed, chunk):
            for network, values_of in zip(networks, found):
                for name, values in network.metrics(weights).items():
                    values_of[name].append(values)
                if stop_if_asked is not None:
                    stop_if_asked()
            bar.update(weights.shape[1])
    return [{name: np.concatenate([[], *values]) for name, values in values_of.items()} for values_of in found]


def class_intervals(
    correct: np.ndarray,
    class_of: np.ndarray,
    num_classes: int,
    groups: Optional[np.ndarray] = None,
    confidence: float = 0.95,
) -> Tuple[np.ndarray, np.ndarray]:
    """Share of correct images per class, (K,), and its `proportion_interval`, (K, 2); NaN for classes without images.

    Args:
        correct: Whether each image is classified correctly, (N,).
        class_of: Class index of each image, (N,): of the targets for recall, of the predictions for precision.
        num_classes: K.
        groups: Group of each image, (N,).
        confidence: Confidence level.
    """
    group_of = group_indices(groups)
    shares, intervals = np.full(num_classes, np.nan), np.full((num_classes, 2), np.nan)
    for k in np.unique(class_of):
        own = class_of == k
        values = correct[own].astype(np.float64)
        shares[k] = values.mean()
        number = effective_sample_size(values, None if group_of is None else group_of[own], confidence=confidence)
        intervals[k] = proportion_interval(shares[k], number, confidence)
    return shares, intervals


def accuracy_intervals(
    correct: np.ndarray,
    targets: np.ndarray,
    num_classes: int,
    groups: Optional[np.ndarray] = None,
    confidence: float = 0.95,
) -> Dict[str, List[float]]:
    """`proportion_interval` of 'accuracy' and 'balanced_accuracy'.

    The number of images is the `effective_sample_size` over groups and classes; the interval of the balanced accuracy
    has at least the `single_class_margins`.

    Args:
        correct: Whether each image is classified correctly, (N,).
        targets: Class indices (N,).
        num_classes: K.
        groups: Group of each image, (N,).
        confidence: Confidence level.
    """
    correct = correct.astype(np.float64)
    recalls, limits = class_intervals(correct, targets, num_classes, groups, confidence)
    balanced = float(np.nanmean(recalls))
    accuracy, balanced_accuracy = (
        list(proportion_interval(mean, effective_sample_size(correct, groups, strata, confidence), confidence))
        for mean, strata in ((float(correct.mean()), None), (balanced, targets))
    )
    return {
        'accuracy': accuracy,
        'balanced_accuracy': extend_interval(
            balanced_accuracy, balanced, single_class_margins(recalls, limits), (0.0, 1.0)
        ),
    }


def minimum_margins(
    networks: Sequence[WeightedImages],
    changed: np.ndarray,
    accuracy: Interval,
    balanced: Interval,
) -> Dict[str, Interval]:
    """Smallest margins below and above the other metrics, given those of the accuracies: effect of unobserved mistakes.

    A rule of our own, not a published one, checked by `tests/simulate_intervals.py`.

    Macro F1 changes by as much as the balanced accuracy; Cohen's kappa as the accuracy does at the same chance
    agreement; the calibration error as the accuracy does at the same confidence. The log loss changes by the accuracy
    times the log odds of the confidence of images whose outcome changes. The AUROC changes by the balanced accuracy
    times the share of other images that such an image falls below. Both factors are means that include one additional
    image with the value expected without knowledge: the mean log odds, and the ranks of a guess.

    Args:
        networks: One network, or two whose metrics are subtracted.
        changed: The images, (N,) of bool, with the rarer outcome (correct or wrong), or that only one network
            classifies correctly.
        accuracy: Margins of the accuracy below and above.
        balanced: Margins of the balanced accuracy below and above.
    """
    ranks, log_odds = np.zeros(2), np.zeros(2)  # sum, and number of images
    for network in networks:
        eps = np.finfo(network.probs.dtype).eps
        confidence = network.confidence.clip(eps, 1 - eps)
        odds = np.log(confidence / (1 - confidence)).clip(0)
        log_odds += odds.mean() + odds[changed].sum(), 1 + changed.sum()
        present = len(np.unique(network.targets))
        if present > 1:
            lost = 1 - network.placements()[changed]
            ranks += np.array([0.5 + lost.sum(), 1 + changed.sum()]) * (present / (present - 1), 1)
    chance_agreement = min(float(np.mean([network.chance_agreement for network in networks])), 1 - 1e-9)

    def scaled(margins: Interval, factor: float) -> Interval:
        return margins[0] * factor, margins[1] * factor

    return {
        'macro_f1': balanced,
        'macro_auroc': scaled(balanced, ranks[0] / max(ranks[1], 1)),
        'kappa': scaled(accuracy, 1 / (1 - chance_agreement)),
        'log_loss': scaled(accuracy[::-1], log_odds[0] / log_odds[1]),
        'ece': (max(accuracy), max(accuracy)),
    }


def interval_margins(interval: Sequence[float], estimate: float) -> Interval:
    """Distances of the ends of an interval below and above the estimate."""
    return estimate - interval[0], interval[1] - estimate


def margins_of_metrics(
    networks: Sequence[WeightedImages],
    changed: np.ndarray,
    losses: np.ndarray,
    estimates: Dict[str, float],
    intervals: Dict[str, List[float]],
    groups: Optional[np.ndarray] = None,
    confidence: float = 0.95,
) -> Dict[str, Interval]:
    """`minimum_margins`, that of the log loss extended by the `skewed_mean_interval` of the losses.

    Args:
        networks, changed: As in `minimum_margins`.
        losses: Loss of each image, or its difference between two networks, (N,).
        estimates: Metric -> value, or difference of values.
        intervals: Metric -> [low, high], of accuracy and balanced accuracy.
        groups: Group of each image, (N,).
        confidence: Confidence level.
    """
    margins = minimum_margins(
        networks,
        changed,
        *(interval_margins(intervals[name], estimates[name]) for name in ('accuracy', 'balanced_accuracy')),
    )
    skewed = interval_margins(skewed_mean_interval(losses, groups, confidence), estimates['log_loss'])
    low, high = np.fmax(margins['log_loss'], skewed)  # ignores the NaN of a single image or group
    return {**margins, 'log_loss': (float(low), float(high))}


def metric_intervals(
    images: WeightedImages,
    resampled: Dict[str, np.ndarray],
    groups: Optional[np.ndarray] = None,
    confidence: float = 0.95,
) -> Dict[str, List[float]]:
    """The intervals described in `bootstrap_intervals`, given the metrics of the resamples."""
    estimates = {name: float(value[0]) for name, value in images.metrics(np.ones((images.num_images, 1))).items()}
    intervals = {name: percentile_interval(values, confidence) for name, values in resampled.items()}
    # few images bias the calibration error upwards, and their resamples by as much again
    intervals['ece'] = [max(2 * estimates['ece'] - value, 0.0) for value in reversed(intervals['ece'])]  # NaN stays

    intervals.update(accuracy_intervals(images.correct, images.targets, images.num_classes, groups, confidence))
    rarer = ~images.correct if estimates['accuracy'] >= 0.5 else images.correct
    margins = margins_of_metrics([images], rarer, images.losses, estimates, intervals, groups, confidence)
    low, high = intervals['accuracy']
    mean = float(images.confidence.mean())  # its distance from the accuracy is a lower bound of the calibration error
    margins['ece'] = interval_margins(
        (max(mean - high, low - mean, 0.0), max(abs(mean - low), abs(mean - high))), estimates['ece']
    )
    for name in margins:
        intervals[name] = extend_interval(intervals[name], estimates[name], margins[name], METRIC_RANGES[name])
    return intervals


def bootstrap_intervals(
    probs: np.ndarray,
    targets: np.ndarray,
    groups: Optional[np.ndarray] = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 42,
    stop_if_asked: Optional[Callable[[], None]] = None,
    progress: bool = True,
) -> Dict[str, List[float]]:
    """Confidence intervals of `classification_metrics` over images, or over whole groups of them.

    - Accuracy and balanced accuracy: `accuracy_intervals`, without resampling.
    - The others: bootstrap percentiles, but with at least the `minimum_margins` that the accuracies imply, because a
      bootstrap cannot account for mistakes that were not observed; for the log loss also at least the
      `skewed_mean_interval`.
    - Calibration error: the basic bootstrap, percentiles mirrored at the estimate, because few images bias it upwards
      and their resamples by as much again; the estimate may lie above its interval. The error is never less than the
      distance between mean confidence and accuracy, so its interval covers what the interval of the accuracy implies.

    `python tests/simulate_intervals.py` measures the coverage of the intervals.

    Args:
        probs: Probabilities (N, K).
        targets: Class indices (N,).
        groups: Group (patient, lesion) of each image, (N,); groups are drawn instead of images, because images of one
            group are not independent.
        resamples: Number of resamples; with 0, only accuracy and balanced accuracy have an interval.
        confidence: Confidence level.
        seed: Seed of the resampling.
        stop_if_asked, progress: See `bootstrap`.

    Returns:
        Metric -> [low, high], ignoring resamples in which it is undefined; NaN if it is undefined in all.
    """
    images = WeightedImages(probs, targets)
    (resampled,) = bootstrap([images], groups, resamples, seed, stop_if_asked, progress)
    return metric_intervals(images, resampled, groups, confidence)
