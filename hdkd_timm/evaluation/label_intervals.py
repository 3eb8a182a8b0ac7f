"""Confidence intervals of the metrics of images with any number of labels.

Bootstrap percentiles, but at least as wide as mistakes that were not observed imply, as for images of one class
(`bootstrap.minimum_margins`). Each image and label is a decision, and those of an image, or of its group, are a group.
Shapes: N images, K labels, B resamples.
"""

from types import SimpleNamespace
from typing import TYPE_CHECKING, Dict, List, Optional, Sequence

import numpy as np

from .bootstrap import accuracy_intervals, interval_margins
from .intervals import (
    Interval,
    effective_sample_size,
    extend_interval,
    group_indices,
    percentile_interval,
    proportion_interval,
    skewed_mean_interval,
)
from .metrics import METRIC_RANGES

if TYPE_CHECKING:
    from .multi_label import WeightedLabels


def per_label_intervals(
    images: 'WeightedLabels',
    classes: Sequence[str],
    groups: Optional[np.ndarray] = None,
    confidence: float = 0.95,
) -> Dict[str, Dict[str, Optional[List[float]]]]:
    """Label -> 'precision_95', 'recall_95' and 'specificity_95', [low, high], None where they are undefined.

    Each is the `proportion_interval` of the images that it is a share of, their number the `effective_sample_size`.

    Args:
        images: The outputs of a network.
        classes: Names of the K labels.
        groups: Group (patient) of each image, (N,).
        confidence: Confidence level.
    """
    given, positive = images.predicted, images.targets
    group_of = group_indices(groups)

    def interval(correct: np.ndarray, of: np.ndarray) -> Optional[List[float]]:
        if not of.any():
            return None
        values = correct[of].astype(np.float64)
        number = effective_sample_size(values, None if group_of is None else group_of[of], confidence=confidence)
        return list(proportion_interval(float(values.mean()), number, confidence))

    return {
        name: {
            'precision_95': interval(positive[:, k], given[:, k]),
            'recall_95': interval(given[:, k], positive[:, k]),
            'specificity_95': interval(~given[:, k], ~positive[:, k]),
        }
        for k, name in enumerate(classes)
    }


def label_metric_intervals(
    images: 'WeightedLabels',
    resampled: Dict[str, np.ndarray],
    groups: Optional[np.ndarray] = None,
    confidence: float = 0.95,
) -> Dict[str, List[float]]:
    """Metric -> [low, high]; of the exact match the `proportion_interval`, of the others percentiles with margins.

    Args:
        images: The outputs of a network.
        resampled: Its metrics in the resamples of a bootstrap, (B,) each.
        groups: Group (patient) of each image, (N,).
        confidence: Confidence level.
    """
    estimates = {name: float(value[0]) for name, value in images.metrics(np.ones((images.num_images, 1))).items()}
    decisions = list_decisions(images, groups)
    found = accuracy_intervals(
        decisions.correct, decisions.targets, 2 * images.num_classes, decisions.groups, confidence
    )
    accuracies = decision_accuracies(decisions)
    wrong = images.predicted != images.targets
    margins = minimum_label_margins(
        [images],
        wrong if wrong.mean() <= 0.5 else ~wrong,
        *(interval_margins(found[name], accuracies[name]) for name in ('accuracy', 'balanced_accuracy')),
    )
    margins['log_loss'] = widest(margins['log_loss'], images.losses, estimates['log_loss'], groups, confidence)
    intervals = {name: percentile_interval(values, confidence) for name, values in resampled.items()}
    for name in margins:
        intervals[name] = extend_interval(intervals[name], estimates[name], margins[name], METRIC_RANGES[name])
    exact = (~wrong).all(axis=1).astype(np.float64)
    number = effective_sample_size(exact, group_indices(groups), confidence=confidence)
    intervals['exact_match'] = list(proportion_interval(estimates['exact_match'], number, confidence))
    return intervals


def list_decisions(images: 'WeightedLabels', groups: Optional[np.ndarray]) -> SimpleNamespace:
    """Every image and label: whether it is 'correct', its stratum (2 k without label k, 2 k + 1 with it) as 'targets',
    and its group, (N * K,) each."""
    strata = 2 * np.arange(images.num_classes) + images.targets
    of_images = np.arange(images.num_images) if groups is None else group_indices(groups)
    return SimpleNamespace(
        num_images=strata.size,
        correct=(images.predicted == images.targets).reshape(-1),
        targets=strata.reshape(-1),
        groups=of_images.repeat(images.num_classes),
    )


def decision_accuracies(decisions: SimpleNamespace) -> Dict[str, float]:
    """Share of correct decisions, and its mean over the strata."""
    sizes, hits = np.bincount(decisions.targets), np.bincount(decisions.targets, decisions.correct)
    return dict(
        accuracy=float(decisions.correct.mean()), balanced_accuracy=float((hits[sizes > 0] / sizes[sizes > 0]).mean())
    )


def minimum_label_margins(
    networks: 'Sequence[WeightedLabels]', changed: np.ndarray, accuracy: Interval, balanced: Interval
) -> Dict[str, Interval]:
    """Smallest margins below and above the metrics, given those of the accuracies of decisions.

    AUROC and log loss: as `bootstrap.minimum_margins`. F1 is 2 TP / (given + positive), so that a wrong decision lowers
    it by about one part of the given and positive images: a share of the decisions, for micro F1 of all labels
    together, for macro F1 of each. A rule of our own, checked by `tests/simulate_intervals.py --labels`.

    Args:
        networks: One network, or two whose metrics are subtracted.
        changed: The decisions, (N, K) of bool, with the rarer outcome, or that only one network has right.
        accuracy, balanced: Margins of the accuracy and balanced accuracy of decisions, below and above.
    """
    ranks, log_odds, sizes = np.zeros(2), np.zeros(2), np.zeros(changed.shape[1])
    for network in networks:
        eps = np.finfo(network.probs.dtype).eps
        probs = network.probs.astype(np.float64).clip(eps, 1 - eps)
        odds = np.abs(np.log(probs / (1 - probs)))
        log_odds += odds.mean() + odds[changed].sum(), 1 + changed.sum()
        lost = 1 - network.placements()[changed]
        lost = lost[np.isfinite(lost)]
        ranks += 2 * (0.5 + lost.sum()), 1 + len(lost)
        sizes += (network.predicted.mean(axis=0) + network.targets.mean(axis=0)) / len(networks)
    present = sizes[sizes > 0]

    def scaled(margins: Interval, factor: float) -> Interval:
        return margins[0] * factor, margins[1] * factor

    micro_f1 = float(len(sizes) / present.sum()) if len(present) else 0.0
    macro_f1 = max(micro_f1, float((1 / present).mean())) if len(present) else 0.0
    return {
        'macro_auroc': scaled(balanced, ranks[0] / ranks[1]),
        'mean_ap': scaled(accuracy, macro_f1),
        'macro_f1': scaled(accuracy, macro_f1),
        'micro_f1': scaled(accuracy, micro_f1),
        'log_loss': scaled(accuracy[::-1], log_odds[0] / log_odds[1]),
    }


def widest(
    margins: Interval, losses: np.ndarray, loss: float, groups: Optional[np.ndarray], confidence: float
) -> Interval:
    """Margins of the log loss, at least those of the `skewed_mean_interval` of the losses of the images, (N,)."""
    low, high = np.fmax(margins, interval_margins(skewed_mean_interval(losses, groups, confidence), loss))
    return float(low), float(high)  # of a single image or group NaN, which fmax ignores
