"""Metrics of a classifier as pure functions of probabilities and class indices.

Shapes: N images, K classes; probabilities (N, K), targets (N,) from 0 to K - 1. A metric that the images do not define
(an AUROC of one class alone) is NaN.
"""
import functools
import math
import sys
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
from scipy.sparse import csr_array
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from tqdm import tqdm

from .intervals import class_reach, effective_number, group_indices, proportion_interval, skewed_mean_interval

BINS = 15  # of the confidence
LOWER_IS_BETTER = ('log_loss', 'ece')
WEIGHTS_AT_ONCE = 2 ** 18  # images times draws: 2 MiB, which a processor's cache holds
METRICS = ('accuracy', 'balanced_accuracy', 'macro_f1', 'macro_auroc', 'kappa', 'log_loss', 'ece')
METRIC_NAMES = {
    'accuracy': 'accuracy', 'balanced_accuracy': 'balanced accuracy', 'macro_f1': 'macro F1',
    'macro_auroc': 'macro AUROC', 'kappa': "Cohen's kappa", 'log_loss': 'log loss', 'ece': 'calibration error (ECE)'}
IN_PER_CENT = ('accuracy', 'balanced_accuracy')
RANGES = {
    'macro_f1': (0., 1.), 'macro_auroc': (0., 1.), 'kappa': (-1., 1.), 'log_loss': (0., math.inf), 'ece': (0., 1.)}


def format_metric(name: str, value: Optional[float]) -> str:
    """A metric as a person reads it, in per cent if it is in `IN_PER_CENT`. It has more digits where few would make 0
    or 1 of what is neither, such as 99.96 %."""
    if value is None or not math.isfinite(value):
        return '–'
    number, digits, ends, unit = (100 * value, 1, (0, 100), ' %') if name in IN_PER_CENT else (value, 3, (0, 1), '')
    while digits < 7 and any(round(number, digits) == end and abs(number - end) > 1e-9 for end in ends):
        digits += 1
    return f'{number:.{digits}f}{unit}'


def format_interval(name: str, interval: Optional[Sequence[Optional[float]]]) -> str:
    """An interval [low, high] of a metric as `format_metric` has it; nothing if there is none."""
    if not interval or None in interval or not all(map(math.isfinite, interval)):
        return ''
    return f'{format_metric(name, interval[0])} to {format_metric(name, interval[1])}'


def _confidence_bins(probs: np.ndarray, bins: int = BINS) -> Tuple[np.ndarray, int]:
    """Index of the bin of each image, (N,), and the number of bins."""
    return np.clip(np.ceil(probs.max(axis=1) * bins).astype(int) - 1, 0, bins - 1), bins


def reliability(probs: np.ndarray, targets: np.ndarray, bins: int = BINS) -> Dict[str, np.ndarray]:
    """Images, confidence and accuracy in bins of equal width of the confidence, (0, 1/bins], (1/bins, 2/bins], ...

    Args:
        probs: Probabilities (N, K).
        targets: Class indices (N,).
        bins: Number of bins.

    Returns:
        'images', and the sums 'confidence' and 'correct' over them, (bins,) each.
    """
    bin_of, bins = _confidence_bins(probs, bins)
    return {
        'images': np.bincount(bin_of, minlength=bins),
        'confidence': np.bincount(bin_of, probs.max(axis=1), minlength=bins),
        'correct': np.bincount(bin_of, probs.argmax(axis=1) == targets, minlength=bins)}


def expected_calibration_error(probs: np.ndarray, targets: np.ndarray, bins: int = BINS) -> float:
    """Mean distance of confidence and accuracy over the bins of `reliability`, weighed by the images in them.

    Source: Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599, equation 3.

    Args:
        probs: Probabilities (N, K).
        targets: Class indices (N,).
        bins: Number of bins.
    """
    found = reliability(probs, targets, bins)
    return float(np.abs(found['correct'] - found['confidence']).sum() / len(targets))


def class_auroc(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each class against the rest, (K,); NaN where one of both has no images."""
    return WeightedImages(probs, targets).class_auroc(np.ones((len(targets), 1)))[:, 0]


def macro_auroc(probs: np.ndarray, targets: np.ndarray) -> float:
    """Mean of `class_auroc` over the classes that define it."""
    return float(_mean_of_defined(class_auroc(probs, targets)))


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=denominator != 0)


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis without the NaNs; NaN if there are only these."""
    defined = ~np.isnan(values)
    return _divide(np.where(defined, values, 0).sum(axis=0), defined.sum(axis=0))


class WeightedImages:
    """Metrics of images with weights, of many weightings at once.

    In a bootstrap an image's weight is how often it was drawn. What does not depend on the weights, the order of the
    scores above all, is found once, so that a draw costs sums alone.

    Args:
        probs: Probabilities (N, K).
        targets: Class indices (N,).

    Raises:
        ValueError: if there are no images, the shapes don't fit, or a probability is not finite.
    """

    def __init__(self, probs: np.ndarray, targets: np.ndarray):
        if probs.ndim != 2 or targets.shape != probs.shape[:1] or not len(targets):
            raise ValueError(f'Expected (N, K) probabilities and (N,) targets, got {probs.shape} and {targets.shape}.')
        finite = np.isfinite(probs).all(axis=1)
        if not finite.all():
            raise ValueError(
                f'{np.sum(~finite)} of {len(targets)} images have probabilities that are not finite, the first is image'
                f' {np.argmin(finite)}.')
        self.number, self.num_classes = probs.shape
        self.probs, self.targets = probs, targets
        self.predicted = probs.argmax(axis=1)
        self.correct = self.predicted == targets
        self.confidence = probs.max(axis=1).astype(np.float64)
        eps = np.finfo(probs.dtype).eps
        self.losses = -np.log(probs[np.arange(self.number), targets].clip(eps, 1 - eps)).astype(np.float64)
        self._of_class = self._sums(targets, self.num_classes)
        self._hits = self._sums(targets, self.num_classes, self.correct)
        self._predicted = self._sums(self.predicted, self.num_classes)
        bin_of, bins = _confidence_bins(probs)
        self._gaps = self._sums(bin_of, bins, self.correct - self.confidence)

    def _sums(self, row_of: np.ndarray, rows: int, values: Optional[np.ndarray] = None) -> csr_array:
        """A matrix (rows, N) whose product with weights (N, B) sums them by row, times values (N,)."""
        values = np.ones(self.number) if values is None else values.astype(np.float64)
        return csr_array((values, (row_of, np.arange(self.number))), shape=(rows, self.number))

    @functools.cached_property
    def _steps(self) -> List[Tuple[csr_array, csr_array]]:
        """Of each class, the matrices that sum weights between the scores of its images, and of its images alone.

        With M different scores of its images there are 2 M + 1 rows: below the first, at it, between it and the
        second, ...; the second matrix has rows for the M. An int32 an image and class is all that is kept.
        """
        steps = []
        ones = np.ones(self.number)
        for k, scores in enumerate(self.probs.T):
            positives = np.flatnonzero(self.targets == k)
            edges, at = np.unique(scores[positives], return_inverse=True)
            step_of = np.searchsorted(edges, scores, 'left') + np.searchsorted(edges, scores, 'right')
            starts = np.concatenate([[0], np.bincount(step_of, minlength=2 * len(edges) + 1).cumsum()])
            order = np.argsort(step_of, kind='stable')
            steps.append((
                csr_array((ones, order.astype(np.int32), starts.astype(np.int32)),
                          shape=(len(starts) - 1, self.number)),
                csr_array((ones[:len(positives)], (at.reshape(-1), positives)), shape=(len(edges), self.number))))
        return steps

    def _order(self, k: int, weights: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sums of weights (N, B) at the M different scores that the images of class k have: of these images, (M, B);
        of the others below, with half of those at the score, (M, B); of all others, (B,)."""
        all_steps, own_steps = self._steps[k]
        own = own_steps @ weights
        others = all_steps @ weights  # (2 M + 1, B)
        others[1::2] -= own
        below = others.cumsum(axis=0)
        return own, below[1::2] - others[1::2] / 2, below[-1]

    def class_auroc(self, weights: np.ndarray) -> np.ndarray:
        """Areas under the ROC curves, (K, B), of weights (N, B): Mann and Whitney's U, a tie is half a pair."""
        areas = np.full((self.num_classes, weights.shape[1]), np.nan)
        for k in range(self.num_classes):
            own, below, others = self._order(k, weights)
            areas[k] = _divide((own * below).sum(axis=0), own.sum(axis=0) * others)
        return areas

    def placements(self) -> np.ndarray:
        """Share of the images of other classes whose score for the class of an image is below its own, (N,); their
        mean over the images of a class is its area under the ROC curve."""
        ones, found = np.ones((self.number, 1)), np.zeros(self.number)
        for k in range(self.num_classes):
            _, below, others = self._order(k, ones)
            found += self._steps[k][1].T @ _divide(below, np.broadcast_to(others, below.shape))[:, 0]
        return found

    @property
    def by_chance(self) -> float:
        """Agreement of labels and targets by chance, as Cohen's kappa takes it."""
        of_class, predicted = (np.bincount(x, minlength=self.num_classes) for x in (self.targets, self.predicted))
        return float(of_class @ predicted) / self.number ** 2

    def metrics(self, weights: np.ndarray) -> Dict[str, np.ndarray]:
        """`METRICS`, (B,) each, of weights (N, B) of type float64."""
        number = weights.sum(axis=0)
        of_class, predicted, hits = self._of_class @ weights, self._predicted @ weights, self._hits @ weights
        by_chance = (of_class * predicted).sum(axis=0) / number ** 2
        accuracy = hits.sum(axis=0) / number
        return {
            'accuracy': accuracy,
            'balanced_accuracy': _mean_of_defined(_divide(hits, of_class)),
            'macro_f1': _mean_of_defined(_divide(2 * hits, of_class + predicted)),
            'macro_auroc': _mean_of_defined(self.class_auroc(weights)),
            'kappa': _divide(accuracy - by_chance, np.where(by_chance < 1, 1 - by_chance, 0)),
            'log_loss': self.losses @ weights / number,
            'ece': np.abs(self._gaps @ weights).sum(axis=0) / number,
        }


def classification_metrics(probs: np.ndarray, targets: np.ndarray) -> Dict[str, float]:
    """All of `METRICS`: accuracy, balanced accuracy (mean recall of the classes that there are), macro F1 (over these
    and the predicted ones), macro AUROC (one-vs-rest), Cohen's kappa, log loss, expected calibration error.

    Args:
        probs: Probabilities (N, K).
        targets: Class indices (N,).

    Raises:
        ValueError: if there are no images, the shapes don't fit, or a probability is not finite.
    """
    found = WeightedImages(probs, targets).metrics(np.ones((len(targets), 1)))
    return {name: float(value[0]) for name, value in found.items()}


def per_class_metrics(probs: np.ndarray, targets: np.ndarray, classes: Sequence[str]) -> Dict[str, Dict[str, float]]:
    """Class name -> precision, recall, f1 and support (the number of its images)."""
    precision, recall, f1, support = precision_recall_fscore_support(
        targets, probs.argmax(axis=1), labels=np.arange(len(classes)), zero_division=0)
    return {
        name: {'precision': float(p), 'recall': float(r), 'f1': float(f), 'support': int(s)}
        for name, p, r, f, s in zip(classes, precision, recall, f1, support)}


def draw_weights(
        number: int,
        groups: Optional[np.ndarray],
        resamples: int,
        seed: int,
        at_once: int,
) -> Iterator[np.ndarray]:
    """How often each image is in each draw with replacement of as many images as there are, or as many whole groups.

    Args:
        number: Of images, N.
        groups: Group of each image, (N,).
        resamples: Number of draws.
        seed: Seed of the draws.
        at_once: Draws that are yielded together, (N, B) each time.
    """
    rng = np.random.default_rng(seed)
    group_of = group_indices(groups)
    drawn_from = number if group_of is None else group_of.max() + 1
    for first in range(0, resamples, at_once):
        counts = np.empty((drawn_from, min(at_once, resamples - first)))
        for column in counts.T:
            column[:] = np.bincount(rng.integers(drawn_from, size=drawn_from), minlength=drawn_from)
        yield counts if group_of is None else counts[group_of]


def bootstrap(
        networks: Sequence[WeightedImages],
        groups: Optional[np.ndarray] = None,
        resamples: int = 1000,
        seed: int = 42,
        stop_if_asked: Optional[Callable[[], None]] = None,
        progress: bool = True,
) -> List[Dict[str, np.ndarray]]:
    """`METRICS` of each network, (resamples,) each, over the same draws of images, or of groups (N,) of them.

    Args:
        networks: Their outputs for the same N images.
        groups: Group (patient, lesion) of each image, (N,): then groups are drawn, not images.
        resamples: Number of draws with replacement.
        seed: Seed of the draws.
        stop_if_asked: Called every second or so; what it raises ends the bootstrap.
        progress: Show a bar on a terminal if it takes longer than a second.
    """
    number = networks[0].number
    at_once = max(16, WEIGHTS_AT_ONCE // number)
    draws: List[Dict[str, List[np.ndarray]]] = [{name: [] for name in METRICS} for _ in networks]
    with tqdm(desc='bootstrap', total=resamples, unit='draw', leave=False, file=sys.stderr, delay=1,
              disable=None if progress else True, dynamic_ncols=True) as bar:
        for weights in draw_weights(number, groups, resamples, seed, at_once):
            for network, found in zip(networks, draws):
                for name, values in network.metrics(weights).items():
                    found[name].append(values)
                if stop_if_asked is not None:
                    stop_if_asked()
            bar.update(weights.shape[1])
    return [{name: np.concatenate([[], *values]) for name, values in found.items()} for found in draws]


def percentile_interval(values: np.ndarray, confidence: float = 0.95) -> List[float]:
    """The middle share of values, without those that are NaN; NaN if all are."""
    defined = values[np.isfinite(values)]
    tail = 50 * (1 - confidence)
    return np.percentile(defined, [tail, 100 - tail]).tolist() if len(defined) else [float('nan')] * 2


def widen(
        interval: List[float],
        estimate: float,
        below: float,
        above: float,
        least: float,
        most: float,
) -> List[float]:
    """An interval that reaches so far below and above the estimate, at least, from `least` to `most`.

    What is NaN stays so: a metric that no draw defines.
    """
    if not all(map(math.isfinite, (*interval, estimate))):
        return [float('nan')] * 2
    low, high = min(interval[0], estimate - below), max(interval[1], estimate + above)
    return [float(max(low, least)), float(min(high, most))]


def class_intervals(
        correct: np.ndarray,
        class_of: np.ndarray,
        num_classes: int,
        groups: Optional[np.ndarray] = None,
        confidence: float = 0.95,
) -> Tuple[np.ndarray, np.ndarray]:
    """Share of right labels in each class, (K,), and its `proportion_interval`, (K, 2); NaN of classes without images.

    Args:
        correct: Is each image right? (N,).
        class_of: Target of each image, (N,): then the shares are recalls. Its label: then they are precisions.
        num_classes: K.
        groups: Group of each image, (N,).
        confidence: How often an interval shall hold.
    """
    group_of = group_indices(groups)
    shares, intervals = np.full(num_classes, np.nan), np.full((num_classes, 2), np.nan)
    for k in np.unique(class_of):
        own = class_of == k
        values = correct[own].astype(np.float64)
        shares[k] = values.mean()
        number = effective_number(values, None if group_of is None else group_of[own], confidence=confidence)
        intervals[k] = proportion_interval(shares[k], number, confidence)
    return shares, intervals


def accuracy_intervals(
        correct: np.ndarray,
        targets: np.ndarray,
        num_classes: int,
        groups: Optional[np.ndarray] = None,
        confidence: float = 0.95,
) -> Dict[str, List[float]]:
    """`proportion_interval` of 'accuracy' and 'balanced_accuracy', of the `effective_number` of images in groups and
    classes; the balanced one reaches at least as far as `class_reach` says.

    Args:
        correct: Is each image right? (N,).
        targets: Class indices (N,).
        num_classes: K.
        groups: Group of each image, (N,).
        confidence: How often an interval shall hold.
    """
    correct = correct.astype(np.float64)
    shares, limits = class_intervals(correct, targets, num_classes, groups, confidence)
    balanced = float(np.nanmean(shares))
    intervals = {
        name: list(proportion_interval(mean, effective_number(correct, groups, strata, confidence), confidence))
        for name, mean, strata in (
            ('accuracy', float(correct.mean()), None), ('balanced_accuracy', balanced, targets))}
    reach = class_reach(shares, limits)
    intervals['balanced_accuracy'] = widen(intervals['balanced_accuracy'], balanced, *reach, 0., 1.)
    return intervals


def least_reach(
        networks: Sequence[WeightedImages],
        changed: np.ndarray,
        accuracy: Tuple[float, float],
        balanced: Tuple[float, float],
) -> Dict[str, Tuple[float, float]]:
    """How far intervals reach below and above their metrics at least, if accuracies reach so far: what the mistakes do
    that were not seen.

    A rule of our own, not a published one, that `tests/simulate_intervals.py` checks.

    Macro F1 changes as the balanced accuracy does, Cohen's kappa as the accuracy does at the same agreement by chance,
    the calibration error as the accuracy does at the same confidence. The log loss changes as the accuracy, times the
    log odds of the confidence of images whose label changed. The AUROC changes as the balanced accuracy, times the
    share of other images that such an image falls below. Both of these are means with one more image, for which they
    are what they are without knowledge: the mean log odds, and the ranks of a guess.

    Args:
        networks: One, or two whose metrics are subtracted.
        changed: The images, (N,) of bool, that are of the rarer kind of right and wrong, or right by one network alone.
        accuracy: Reach of the interval of the accuracy below and above.
        balanced: That of the balanced accuracy.
    """
    ranks, log_odds = np.zeros(2), np.zeros(2)  # sums, and numbers of images
    for network in networks:
        eps = np.finfo(network.probs.dtype).eps
        confidence = network.confidence.clip(eps, 1 - eps)
        odds = np.log(confidence / (1 - confidence)).clip(0)
        log_odds += odds.mean() + odds[changed].sum(), 1 + changed.sum()
        present = len(np.unique(network.targets))
        if present > 1:
            lost = 1 - network.placements()[changed]
            ranks += np.array([0.5 + lost.sum(), 1 + changed.sum()]) * (present / (present - 1), 1)
    by_chance = min(np.mean([network.by_chance for network in networks]), 1 - 1e-9)

    def scale(reach: Tuple[float, float], factor: float) -> Tuple[float, float]:
        return reach[0] * factor, reach[1] * factor

    return {
        'macro_f1': balanced,
        'macro_auroc': scale(balanced, ranks[0] / max(ranks[1], 1)),
        'kappa': scale(accuracy, 1 / (1 - by_chance)),
        'log_loss': scale(accuracy[::-1], log_odds[0] / log_odds[1]),
        'ece': (max(accuracy), max(accuracy)),
    }


def intervals_of(
        images: WeightedImages,
        draws: Dict[str, np.ndarray],
        groups: Optional[np.ndarray] = None,
        confidence: float = 0.95,
) -> Dict[str, List[float]]:
    """The intervals that `bootstrap_intervals` describes, of the metrics of draws that were made."""
    found = {name: float(value[0]) for name, value in images.metrics(np.ones((images.number, 1))).items()}
    intervals = {name: percentile_interval(values, confidence) for name, values in draws.items()}
    # few images make the calibration error too high, and their resamples by as much again
    intervals['ece'] = [max(2 * found['ece'] - value, 0.) for value in reversed(intervals['ece'])]  # NaN stays

    intervals.update(accuracy_intervals(images.correct, images.targets, images.num_classes, groups, confidence))
    reaches = [(found[name] - intervals[name][0], intervals[name][1] - found[name])
               for name in ('accuracy', 'balanced_accuracy')]
    rarer = ~images.correct if found['accuracy'] >= 0.5 else images.correct
    reach = least_reach([images], rarer, *reaches)
    low, high = skewed_mean_interval(images.losses, groups, confidence)
    reach['log_loss'] = np.fmax(reach['log_loss'], (found['log_loss'] - low, high - found['log_loss']))  # NaN is none
    low, high = intervals['accuracy']
    mean = float(images.confidence.mean())  # its distance from the accuracy is the least calibration error
    reach['ece'] = (
        found['ece'] - max(mean - high, low - mean, 0.), max(abs(mean - low), abs(mean - high)) - found['ece'])
    for name, distances in reach.items():
        intervals[name] = widen(intervals[name], found[name], *distances, *RANGES[name])
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
    """Intervals of `classification_metrics` over images, or over whole groups of them.

    - Accuracy and balanced accuracy: `accuracy_intervals`. Neither is drawn.
    - The others: percentiles of a bootstrap, but at least the `least_reach` that the accuracies imply, as a bootstrap
      knows nothing of mistakes that were not seen; of the log loss also at least `skewed_mean_interval`.
    - Calibration error: the basic bootstrap, percentiles mirrored at the estimate, since few images make it too high,
      and their resamples by as much again; the estimate may lie above its interval. It is never less than the
      distance of mean confidence and accuracy, and so reaches as far as the interval of the accuracy takes that.

    `python tests/simulate_intervals.py` counts how often the intervals hold the true values.

    Args:
        probs: Probabilities (N, K).
        targets: Class indices (N,).
        groups: Group (patient, lesion) of each image, (N,): then groups are drawn, not images, as images of one group
            are not independent.
        resamples: Number of draws with replacement; 0: only accuracy and balanced accuracy have an interval.
        confidence: How often an interval shall hold the true value.
        seed: Seed of the draws.
        stop_if_asked, progress: See `bootstrap`.

    Returns:
        Metric -> [low, high], without the draws that leave it undefined; NaN if all do.
    """
    images = WeightedImages(probs, targets)
    draws, = bootstrap([images], groups, resamples, seed, stop_if_asked, progress)
    return intervals_of(images, draws, groups, confidence)


def full_report(
        probs: np.ndarray,
        targets: np.ndarray,
        classes: Sequence[str],
        groups: Optional[np.ndarray] = None,
        resamples: int = 1000,
        seed: int = 42,
        stop_if_asked: Optional[Callable[[], None]] = None,
        progress: bool = True,
) -> Dict[str, Any]:
    """Everything about a split: `classification_metrics`, their 'intervals_95', 'per_class', 'confusion_matrix' (rows
    true, columns predicted), 'images'.

    With intervals, the classes have 'precision_95' and 'recall_95', [low, high] each, too (see `class_intervals`); None
    where nothing is labelled so, or there are no images. Arguments as in `bootstrap_intervals`; there are no intervals
    if `resamples` is 0.
    """
    report: Dict[str, Any] = {'images': len(targets), **classification_metrics(probs, targets)}
    per_class: Dict[str, Dict[str, Any]] = per_class_metrics(probs, targets, classes)
    if resamples:
        report['intervals_95'] = bootstrap_intervals(
            probs, targets, groups, resamples, seed=seed, stop_if_asked=stop_if_asked, progress=progress)
        predicted = probs.argmax(axis=1)
        for name, class_of in (('precision_95', predicted), ('recall_95', targets)):
            _, limits = class_intervals(predicted == targets, class_of, len(classes), groups)
            for scores, interval in zip(per_class.values(), limits.tolist()):
                scores[name] = interval if math.isfinite(interval[0]) else None
    report['per_class'] = per_class
    report['confusion_matrix'] = confusion_matrix(
        targets, probs.argmax(axis=1), labels=np.arange(len(classes))).tolist()
    return report
