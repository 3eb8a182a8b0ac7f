"""What an image is classified as: one of the classes, or any number of labels. `find_problem` has what differs.

The two are named as transformers names them in a config.json, `problem_type`.
"""

from typing import Any, ClassVar, Dict, Optional, Sequence, Tuple, Type, Union

import numpy as np
import torch

from .metrics import METRICS, MULTI_LABEL_METRICS, WeightedImages, classification_metrics, per_class_metrics
from .multi_label import (
    WeightedLabels,
    assign_labels,
    multi_label_metrics,
    multi_label_report,
    per_label_metrics,
)
from .single_label import single_label_report
from .temperature import apply_temperature

__all__ = ['MULTI_LABEL', 'MultiLabel', 'Problem', 'SingleLabel', 'find_problem']

MULTI_LABEL = 'multi_label_classification'


class SingleLabel:
    """Each image has one of the classes: softmax, and class indices (N,) as targets."""

    type: ClassVar[str] = 'single_label_classification'
    metrics: ClassVar[Tuple[str, ...]] = METRICS
    shown: ClassVar[Tuple[str, ...]] = ('accuracy', 'balanced_accuracy', 'macro_auroc')  # in short tables
    select_metric: ClassVar[str] = 'balanced_accuracy'
    of_classes: ClassVar[Tuple[str, ...]] = ('precision', 'recall', 'f1', 'support')  # metrics of each class

    @staticmethod
    def to_probs(logits: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) -> probabilities (B, K)."""
        return logits.softmax(dim=-1)

    @staticmethod
    def to_logits(probs: torch.Tensor) -> torch.Tensor:
        """Probabilities (B, K) -> logits (B, K) with these probabilities."""
        return probs.log()

    @staticmethod
    def scale(probs: np.ndarray, temperature: float) -> np.ndarray:
        """Probabilities (N, K) after dividing the logits by a temperature."""
        return apply_temperature(probs, temperature)

    @staticmethod
    def scores(probs: np.ndarray, targets: np.ndarray) -> Dict[str, float]:
        """All metrics."""
        return classification_metrics(probs, targets)

    @staticmethod
    def per_class(probs: np.ndarray, targets: np.ndarray, classes: Sequence[str]) -> Dict[str, Dict[str, float]]:
        """Class -> its metrics."""
        return per_class_metrics(probs, targets, classes)

    @staticmethod
    def weigh(probs: np.ndarray, targets: np.ndarray, thresholds: Optional[np.ndarray] = None) -> WeightedImages:
        """The images for a bootstrap."""
        return WeightedImages(probs, targets)

    @staticmethod
    def report(probs: np.ndarray, targets: np.ndarray, classes: Sequence[str], **options: Any) -> Dict[str, Any]:
        """All results of a split."""
        options.pop('thresholds', None)
        return single_label_report(probs, targets, classes, **options)

    @staticmethod
    def predict(probs: np.ndarray, thresholds: Optional[np.ndarray] = None) -> np.ndarray:
        """The most probable class of each image, (N,)."""
        return probs.argmax(axis=1)


class MultiLabel:
    """Each image has any number of the classes, its labels: sigmoid, and 0 or 1 for each, (N, K), as targets."""

    type: ClassVar[str] = MULTI_LABEL
    metrics: ClassVar[Tuple[str, ...]] = MULTI_LABEL_METRICS
    shown: ClassVar[Tuple[str, ...]] = ('macro_auroc', 'mean_ap', 'macro_f1')
    select_metric: ClassVar[str] = 'macro_auroc'
    of_classes: ClassVar[Tuple[str, ...]] = (
        *('auroc', 'ap', 'precision', 'recall', 'specificity', 'f1'),
        *('threshold', 'support', 'predicted'),
    )

    @staticmethod
    def to_probs(logits: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) -> the probability of each label, (B, K)."""
        return logits.sigmoid()

    @staticmethod
    def to_logits(probs: torch.Tensor) -> torch.Tensor:
        """Probabilities (B, K) -> logits (B, K) with these probabilities."""
        return probs.logit()

    @staticmethod
    def scale(probs: np.ndarray, temperature: float) -> np.ndarray:
        """Probabilities (N, K) after dividing the logits by a temperature."""
        two = np.stack([1 - probs, probs], axis=-1)
        return apply_temperature(two.reshape(-1, 2), temperature)[:, 1].reshape(probs.shape)

    @staticmethod
    def scores(probs: np.ndarray, targets: np.ndarray) -> Dict[str, float]:
        """All metrics, at thresholds of 0.5."""
        return multi_label_metrics(probs, targets)

    @staticmethod
    def per_class(probs: np.ndarray, targets: np.ndarray, classes: Sequence[str]) -> Dict[str, Dict[str, float]]:
        """Label -> its metrics, at thresholds of 0.5."""
        return per_label_metrics(probs, targets, classes)

    @staticmethod
    def weigh(probs: np.ndarray, targets: np.ndarray, thresholds: Optional[np.ndarray] = None) -> WeightedLabels:
        """The images for a bootstrap."""
        return WeightedLabels(probs, targets, thresholds)

    @staticmethod
    def report(probs: np.ndarray, targets: np.ndarray, classes: Sequence[str], **options: Any) -> Dict[str, Any]:
        """All results of a split."""
        return multi_label_report(probs, targets, classes, **options)

    @staticmethod
    def predict(probs: np.ndarray, thresholds: Optional[np.ndarray] = None) -> np.ndarray:
        """Whether each image is given each label, (N, K) of bool: its probability is at least the threshold."""
        return assign_labels(probs, thresholds)


Problem = Union[Type[SingleLabel], Type[MultiLabel]]


def find_problem(is_multi_label: bool) -> Problem:
    """What differs between images of one class and images of any number of labels."""
    return MultiLabel if is_multi_label else SingleLabel
