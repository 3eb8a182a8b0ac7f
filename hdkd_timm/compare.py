"""Two classifiers on the same images: is one better, or was it chance?"""
from typing import Any, Dict, Optional

import numpy as np
from scipy.stats import binomtest

from .metrics import METRICS, classification_metrics, draw_resamples


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


def paired_bootstrap(
        probs_a: np.ndarray,
        probs_b: np.ndarray,
        targets: np.ndarray,
        groups: Optional[np.ndarray] = None,
        resamples: int = 1000,
        confidence: float = 0.95,
        seed: int = 42,
) -> Dict[str, Dict[str, Any]]:
    """Differences of all metrics, second minus first, with percentile intervals over the same draws of both.

    Args:
        probs_a, probs_b: Probabilities (N, K) of each.
        targets: Class indices (N,).
        groups: Group of each image, (N,): then groups are drawn.
        resamples: Number of draws with replacement.
        confidence: Share of the draws within the interval.
        seed: Seed of the draws.

    Returns:
        Metric -> 'difference' and 'interval', [low, high].

    Raises:
        ValueError: if the shapes differ.
    """
    if probs_a.shape != probs_b.shape:
        raise ValueError(f'Both need the same images and classes, got {probs_a.shape} and {probs_b.shape}.')
    a, b = (classification_metrics(probs, targets) for probs in (probs_a, probs_b))
    draws: Dict[str, list] = {name: [] for name in METRICS}
    for drawn in draw_resamples(len(targets), groups, resamples, seed):
        first, second = (classification_metrics(probs[drawn], targets[drawn]) for probs in (probs_a, probs_b))
        for name in METRICS:
            draws[name].append(second[name] - first[name])
    tail = 50 * (1 - confidence)
    result = {}
    for name, values in draws.items():
        defined = np.array(values)[np.isfinite(values)]
        interval = np.percentile(defined, [tail, 100 - tail]).tolist() if len(defined) else [float('nan')] * 2
        result[name] = dict(difference=b[name] - a[name], interval=interval)
    return result
