"""Metrics of a classifier as pure functions of probabilities and class indices.

Shapes: N images, K classes; probabilities (N, K), targets (N,) from 0 to K - 1. A metric that is undefined for the
given images (AUROC with a single class) is NaN.
"""

import functools
import math
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..data.targets import to_indicators
from .ranking import Ranking, divide, mean_of_defined

if TYPE_CHECKING:  # SciPy and scikit-learn are imported where they are used: settings only need the names of metrics
    from scipy.sparse import csr_array

BINS = 15  # confidence bins of the calibration error
LOWER_IS_BETTER = ('log_loss', 'ece')
METRICS = ('accuracy', 'balanced_accuracy', 'macro_f1', 'macro_auroc', 'kappa', 'log_loss', 'ece')
MULTI_LABEL_METRICS = ('macro_auroc', 'mean_ap', 'macro_f1', 'micro_f1', 'exact_match', 'log_loss')  # see multi_label
METRIC_NAMES = {
    'accuracy': 'accuracy',
    'balanced_accuracy': 'balanced accuracy',
    'macro_f1': 'macro F1',
    'macro_auroc': 'macro AUROC',
    'kappa': "Cohen's kappa",
    'log_loss': 'log loss',
    'ece': 'calibration error (ECE)',
    'mean_ap': 'mean average precision',
    'micro_f1': 'micro F1',
    'exact_match': 'exact match',
}
IN_PER_CENT = ('accuracy', 'balanced_accuracy', 'exact_match')  # displayed as percentages
METRIC_RANGES = {
    'macro_f1': (0.0, 1.0),
    'micro_f1': (0.0, 1.0),
    'macro_auroc': (0.0, 1.0),
    'mean_ap': (0.0, 1.0),
    'kappa': (-1.0, 1.0),
    'log_loss': (0.0, math.inf),
    'ece': (0.0, 1.0),
}


def format_metric(name: str, value: Optional[float]) -> str:
    """A metric for display, as a percentage if it is in `IN_PER_CENT`.

    Digits are added where rounding would turn a value such as 99.96 % into 0 or 1; an undefined value is '–'.
    """
    if value is None or not math.isfinite(value):
        return '–'
    number, digits, ends, unit = (100 * value, 1, (0, 100), ' %') if name in IN_PER_CENT else (value, 3, (0, 1), '')
    while digits < 7 and any(round(number, digits) == end and abs(number - end) > 1e-9 for end in ends):
        digits += 1
    return f'{number:.{digits}f}{unit}'


def format_interval(name: str, interval: Optional[Sequence[Optional[float]]]) -> str:
    """An interval [low, high] of a metric for display, as in `format_metric`; empty if it is undefined."""
    if not interval or not all(end is not None and math.isfinite(end) for end in interval):
        return ''
    return f'{format_metric(name, interval[0])} to {format_metric(name, interval[1])}'


def _confidence_bins(probs: np.ndarray, bins: int = BINS) -> Tuple[np.ndarray, int]:
    """Bin index of each image, (N,), and the number of bins."""
    return np.clip(np.ceil(probs.max(axis=1) * bins).astype(int) - 1, 0, bins - 1), bins


def reliability(probs: np.ndarray, targets: np.ndarray, bins: int = BINS) -> Dict[str, np.ndarray]:
    """Images, confidence and accuracy in confidence bins of equal width: (0, 1/bins], (1/bins, 2/bins], ...

    Args:
        probs: Probabilities (N, K).
        targets: Class indices (N,).
        bins: Number of bins.

    Returns:
        'images', the number of images per bin, and 'confidence' and 'correct', sums over them; (bins,) each.
    """
    bin_of, bins = _confidence_bins(probs, bins)
    return {
        'images': np.bincount(bin_of, minlength=bins),
        'confidence': np.bincount(bin_of, probs.max(axis=1), minlength=bins),
        'correct': np.bincount(bin_of, probs.argmax(axis=1) == targets, minlength=bins),
    }


def expected_calibration_error(probs: np.ndarray, targets: np.ndarray, bins: int = BINS) -> float:
    """Mean absolute gap between confidence and accuracy over the bins of `reliability`, weighted by their images.

    Source: Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599, equation 3.

    Args:
        probs: Probabilities (N, K).
        targets: Class indices (N,).
        bins: Number of bins.
    """
    found = reliability(probs, targets, bins)
    return float(np.abs(found['correct'] - found['confidence']).sum() / len(targets))


def class_auroc(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """One-vs-rest area under the ROC curve of each class, (K,); NaN where the class or the rest has no images."""
    return WeightedImages(probs, targets).class_auroc(np.ones((len(targets), 1)))[:, 0]


def binary_aurocs(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each class, (K,), of class indices (N,) or labels (N, K); NaN where undefined."""
    has = to_indicators(targets, probs.shape[1])
    return np.concatenate([Ranking(*column).auroc(np.ones((len(probs), 1))) for column in zip(probs.T, has.T)])


def macro_auroc(probs: np.ndarray, targets: np.ndarray) -> float:
    """Mean of `class_auroc` over the classes for which it is defined."""
    return float(mean_of_defined(class_auroc(probs, targets)))


def check_finite(probs: np.ndarray) -> None:
    """Raises ValueError if a probability (N, K) is not finite; names the first such image."""
    finite = np.isfinite(probs).all(axis=1)
    if not finite.all():
        raise ValueError(
            f'{np.sum(~finite)} of {len(probs)} images have non-finite probabilities, the first is image'
            f' {np.argmin(finite)}.'
        )


class WeightedImages:
    """Metrics of weighted images, for many weightings at once.

    In a bootstrap, the weight of an image is the number of times it was drawn. Everything that does not depend on the
    weights, above all the order of the scores, is computed once, so that a resample costs only sums.

    Args:
        probs: Probabilities (N, K).
        targets: Class indices (N,).

    Raises:
        ValueError: if there are no images, the shapes don't match, or a probability is not finite.
    """

    names = METRICS

    def __init__(self, probs: np.ndarray, targets: np.ndarray):
        if probs.ndim != 2 or targets.shape != probs.shape[:1] or not len(targets):
            raise ValueError(f'Expected (N, K) probabilities and (N,) targets, got {probs.shape} and {targets.shape}.')
        check_finite(probs)
        self.num_images, self.num_classes = probs.shape
        self.probs, self.targets = probs, targets
        self.predicted = probs.argmax(axis=1)
        self.correct = self.predicted == targets
        self.confidence = probs.max(axis=1).astype(np.float64)
        eps = np.finfo(probs.dtype).eps
        self.losses = -np.log(probs[np.arange(self.num_images), targets].clip(eps, 1 - eps)).astype(np.float64)
        self._of_class = self._sums(targets, self.num_classes)
        self._hits = self._sums(targets, self.num_classes, self.correct)
        self._predicted = self._sums(self.predicted, self.num_classes)
        bin_of, bins = _confidence_bins(probs)
        self._gaps = self._sums(bin_of, bins, self.correct - self.confidence)

    def _sums(self, row_of: np.ndarray, rows: int, values: Optional[np.ndarray] = None) -> 'csr_array':
        """Sparse matrix (rows, N) whose product with weights (N, B) is the sum of weight times value (N,) per row."""
        from scipy.sparse import csr_array

        values = np.ones(self.num_images) if values is None else values.astype(np.float64)
        return csr_array((values, (row_of, np.arange(self.num_images))), shape=(rows, self.num_images))

    @functools.cached_property
    def rankings(self) -> List[Ranking]:
        """Of each class, by its probabilities."""
        return [Ranking(scores, self.targets == k) for k, scores in enumerate(self.probs.T)]

    def class_auroc(self, weights: np.ndarray) -> np.ndarray:
        """Areas under the ROC curves, one-vs-rest, (K, B), for weights (N, B)."""
        return np.stack([ranking.auroc(weights) for ranking in self.rankings])

    def placements(self) -> np.ndarray:
        """Placement values, (N,): the share of images of other classes that score lower for the class of an image.

        Their mean over the images of a class is its area under the ROC curve.
        """
        return np.sum([ranking.placements() for ranking in self.rankings], axis=0)

    @property
    def chance_agreement(self) -> float:
        """Agreement of predictions and targets expected by chance, as in Cohen's kappa."""
        of_class, predicted = (np.bincount(x, minlength=self.num_classes) for x in (self.targets, self.predicted))
        return float(of_class @ predicted) / self.num_images**2

    def metrics(self, weights: np.ndarray) -> Dict[str, np.ndarray]:
        """`METRICS`, (B,) each, for weights (N, B) of type float64."""
        number = weights.sum(axis=0)
        of_class, predicted, hits = self._of_class @ weights, self._predicted @ weights, self._hits @ weights
        chance_agreement = (of_class * predicted).sum(axis=0) / number**2
        accuracy = hits.sum(axis=0) / number
        return {
            'accuracy': accuracy,
            'balanced_accuracy': mean_of_defined(divide(hits, of_class)),
            'macro_f1': mean_of_defined(divide(2 * hits, of_class + predicted)),
            'macro_auroc': mean_of_defined(self.class_auroc(weights)),
            'kappa': divide(accuracy - chance_agreement, np.where(chance_agreement < 1, 1 - chance_agreement, 0)),
            'log_loss': self.losses @ weights / number,
            'ece': np.abs(self._gaps @ weights).sum(axis=0) / number,
        }


def classification_metrics(probs: np.ndarray, targets: np.ndarray) -> Dict[str, float]:
    """All of `METRICS`.

    Accuracy, balanced accuracy (mean recall over the classes that have images), macro F1 (over those and the predicted
    classes), macro AUROC (one-vs-rest), Cohen's kappa, log loss, expected calibration error.

    Args:
        probs: Probabilities (N, K).
        targets: Class indices (N,).

    Raises:
        ValueError: if there are no images, the shapes don't match, or a probability is not finite.
    """
    found = WeightedImages(probs, targets).metrics(np.ones((len(targets), 1)))
    return {name: float(value[0]) for name, value in found.items()}


def per_class_metrics(probs: np.ndarray, targets: np.ndarray, classes: Sequence[str]) -> Dict[str, Dict[str, float]]:
    """Class name -> precision, recall, f1 and support (number of images).

    Scores are 0 where they are undefined, as scikit-learn's; see `defined_scores`.
    """
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, support = precision_recall_fscore_support(
        targets, probs.argmax(axis=1), labels=np.arange(len(classes)), zero_division=0
    )
    return {
        name: {'precision': float(p), 'recall': float(r), 'f1': float(f), 'support': int(s)}
        for name, p, r, f, s in zip(classes, precision, recall, f1, support)
    }


def defined_scores(report: Dict[str, Any]) -> Dict[str, Dict[str, Any]]:
    """Class -> its scores in 'per_class' of a report, with None for those that are undefined and stored as 0.

    Without images of a class its recall is undefined, and, if it was never predicted, its precision and F1.
    """
    found = {}
    for k, (name, scores) in enumerate(report['per_class'].items()):
        undefined: Sequence[str] = ()
        if not scores['support']:
            of_label = scores.get('predicted')
            predicted = sum(row[k] for row in report['confusion_matrix']) if of_label is None else of_label
            undefined = ('recall',) if predicted else ('precision', 'recall', 'f1')
        found[name] = {**scores, **dict.fromkeys(undefined)}
    return found
