"""All results of a classifier whose images have one class each."""

import math
from typing import Any, Callable, Dict, Optional, Sequence

import numpy as np

from .bootstrap import bootstrap_intervals, class_intervals
from .metrics import classification_metrics, per_class_metrics


def single_label_report(
    probs: np.ndarray,
    targets: np.ndarray,
    classes: Sequence[str],
    groups: Optional[np.ndarray] = None,
    resamples: int = 1000,
    seed: int = 42,
    stop_if_asked: Optional[Callable[[], None]] = None,
    progress: bool = True,
) -> Dict[str, Any]:
    """All results of a split, as written into metrics.json.

    Args:
        probs: Probabilities (N, K).
        targets: Class indices (N,).
        classes: Names of the K classes.
        groups, resamples, seed, stop_if_asked, progress: See `bootstrap_intervals`; no intervals if `resamples` is 0.

    Returns:
        'images' (their number), `classification_metrics`, 'intervals_95', 'per_class' and 'confusion_matrix' (rows
        true, columns predicted). With intervals, each class also has 'precision_95' and 'recall_95', [low, high], see
        `class_intervals`; None for a class that was never predicted, or has no images.
    """
    from sklearn.metrics import confusion_matrix  # here, for a quick --help

    report: Dict[str, Any] = {'images': len(targets), **classification_metrics(probs, targets)}
    per_class: Dict[str, Dict[str, Any]] = per_class_metrics(probs, targets, classes)
    predicted = probs.argmax(axis=1)
    if resamples:
        report['intervals_95'] = bootstrap_intervals(
            probs, targets, groups, resamples, seed=seed, stop_if_asked=stop_if_asked, progress=progress
        )
        for name, class_of in (('precision_95', predicted), ('recall_95', targets)):
            _, limits = class_intervals(predicted == targets, class_of, len(classes), groups)
            for scores, interval in zip(per_class.values(), limits.tolist()):
                scores[name] = interval if math.isfinite(interval[0]) else None
    report['per_class'] = per_class
    report['confusion_matrix'] = confusion_matrix(targets, predicted, labels=np.arange(len(classes))).tolist()
    return report
