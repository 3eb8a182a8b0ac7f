"""Metrics of a classifier as pure functions of probabilities and class indices.

Shapes: N images, K classes; probabilities (N, K), targets (N,) from 0 to K - 1. A metric that the images do not define
(an AUROC of one class alone) is NaN.
"""
from typing import Any, Dict, Iterator, List, Optional, Sequence

import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

LOWER_IS_BETTER = ('log_loss', 'ece')
METRICS = ('accuracy', 'balanced_accuracy', 'macro_f1', 'macro_auroc', 'kappa', 'log_loss', 'ece')


def reliability(probs: np.ndarray, targets: np.ndarray, bins: int = 15) -> Dict[str, np.ndarray]:
    """Images, confidence and accuracy in bins of equal width of the confidence, (0, 1/bins], (1/bins, 2/bins], ...

    Args:
        probs: Probabilities (N, K).
        targets: Class indices (N,).
        bins: Number of bins.

    Returns:
        'images', and the sums 'confidence' and 'correct' over them, (bins,) each.
    """
    confidence = probs.max(axis=1)
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return {
        'images': np.bincount(bin_of, minlength=bins),
        'confidence': np.bincount(bin_of, confidence, minlength=bins),
        'correct': np.bincount(bin_of, probs.argmax(axis=1) == targets, minlength=bins)}


def expected_calibration_error(probs: np.ndarray, targets: np.ndarray, bins: int = 15) -> float:
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
    positive = targets[:, None] == np.arange(probs.shape[1])
    numbers = positive.sum(axis=0)
    rank_sums = np.where(positive, rankdata(probs, axis=0), 0).sum(axis=0)  # the area is Mann and Whitney's U
    defined = (numbers > 0) & (numbers < len(targets))
    areas = np.full(probs.shape[1], np.nan)
    numbers, rank_sums = numbers[defined], rank_sums[defined]
    areas[defined] = (rank_sums - numbers * (numbers + 1) / 2) / (numbers * (len(targets) - numbers))
    return areas


def macro_auroc(probs: np.ndarray, targets: np.ndarray) -> float:
    """Mean of `class_auroc` over the classes that define it."""
    areas = class_auroc(probs, targets)
    defined = np.isfinite(areas)
    return float(areas[defined].mean()) if defined.any() else float('nan')


def classification_metrics(probs: np.ndarray, targets: np.ndarray) -> Dict[str, float]:
    """All of `METRICS`: accuracy, balanced accuracy (mean recall of the classes that there are), macro F1 (over these
    and the predicted ones), macro AUROC (one-vs-rest), Cohen's kappa, log loss, expected calibration error.

    Args:
        probs: Probabilities (N, K).
        targets: Class indices (N,).

    Raises:
        ValueError: if there are no images, or the shapes don't fit.
    """
    if probs.ndim != 2 or targets.shape != probs.shape[:1] or not len(targets):
        raise ValueError(f'Expected (N, K) probabilities and (N,) targets, got {probs.shape} and {targets.shape}.')
    number, classes = probs.shape
    eps = np.finfo(probs.dtype).eps
    # from the counts alone: scikit-learn's functions look at their input anew, five times as long over a bootstrap
    counts = np.bincount(targets * classes + probs.argmax(axis=1), minlength=classes ** 2).reshape(classes, classes)
    hits, of_class, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    present, either = of_class > 0, of_class + predicted > 0
    by_chance = float(of_class @ predicted) / number ** 2
    accuracy = float(hits.sum() / number)
    return {
        'accuracy': accuracy,
        'balanced_accuracy': float((hits[present] / of_class[present]).mean()),
        'macro_f1': float((2 * hits[either] / (of_class + predicted)[either]).mean()),
        'macro_auroc': macro_auroc(probs, targets),
        'kappa': (accuracy - by_chance) / (1 - by_chance) if by_chance < 1 else float('nan'),
        'log_loss': float(-np.log(probs[np.arange(number), targets].clip(eps, 1 - eps)).mean()),
        'ece': expected_calibration_error(probs, targets),
    }


def per_class_metrics(probs: np.ndarray, targets: np.ndarray, classes: Sequence[str]) -> Dict[str, Dict[str, float]]:
    """Class name -> precision, recall, f1 and support (the number of its images)."""
    precision, recall, f1, support = precision_recall_fscore_support(
        targets, probs.argmax(axis=1), labels=np.arange(len(classes)), zero_division=0)
    return {
        name: {'precision': float(p), 'recall': float(r), 'f1': float(f), 'support': int(s)}
        for name, p, r, f, s in zip(classes, precision, recall, f1, support)}


def draw_resamples(number: int, groups: Optional[np.ndarray], resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Indices of images drawn with replacement, as many as there are; of whole groups, (N,), if there are any."""
    rng = np.random.default_rng(seed)
    if groups is not None:
        _, group_of = np.unique(groups, return_inverse=True)
        members = np.split(np.argsort(group_of, kind='stable'), np.cumsum(np.bincount(group_of))[:-1])
    for _ in range(resamples):
        if groups is None:
            yield rng.integers(number, size=number)
        else:
            yield np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])


def bootstrap_intervals(
        probs: np.ndarray,
        targets: np.ndarray,
        groups: Optional[np.ndarray] = None,
        resamples: int = 1000,
        confidence: float = 0.95,
        seed: int = 42,
) -> Dict[str, List[float]]:
    """Percentile bootstrap intervals of `classification_metrics` over images, or over whole groups of them.

    Of the calibration error they are mirrored at the estimate (the basic bootstrap): few images make it too high, and
    their resamples by as much again, so that percentiles lie above the true value, and the estimate may itself lie
    above its interval. `python tests/simulate_intervals.py` counts how often the intervals hold the true values.

    Args:
        probs: Probabilities (N, K).
        targets: Class indices (N,).
        groups: Group (patient, lesion) of each image, (N,): then groups are drawn, not images, as images of one group
            are not independent.
        resamples: Number of draws with replacement.
        confidence: Share of the draws within the interval.
        seed: Seed of the draws.

    Returns:
        Metric -> [low, high], without the draws that leave it undefined.
    """
    draws: Dict[str, List[float]] = {name: [] for name in METRICS}
    for drawn in draw_resamples(len(targets), groups, resamples, seed):
        for name, value in classification_metrics(probs[drawn], targets[drawn]).items():
            draws[name].append(value)
    tail = 50 * (1 - confidence)
    intervals = {}
    for name, values in draws.items():
        defined = np.array(values)[np.isfinite(values)]
        intervals[name] = np.percentile(defined, [tail, 100 - tail]).tolist() if len(defined) else [float('nan')] * 2
    twice = 2 * expected_calibration_error(probs, targets)
    intervals['ece'] = [max(twice - value, 0.) for value in reversed(intervals['ece'])]  # NaN stays
    return intervals


def full_report(
        probs: np.ndarray,
        targets: np.ndarray,
        classes: Sequence[str],
        groups: Optional[np.ndarray] = None,
        resamples: int = 1000,
        seed: int = 42,
) -> Dict[str, Any]:
    """Everything about a split: `classification_metrics`, their 'intervals_95', 'per_class', 'confusion_matrix' (rows
    true, columns predicted), 'images'."""
    report: Dict[str, Any] = {'images': len(targets), **classification_metrics(probs, targets)}
    if resamples:
        report['intervals_95'] = bootstrap_intervals(probs, targets, groups, resamples, seed=seed)
    report['per_class'] = per_class_metrics(probs, targets, classes)
    report['confusion_matrix'] = confusion_matrix(
        targets, probs.argmax(axis=1), labels=np.arange(len(classes))).tolist()
    return report
