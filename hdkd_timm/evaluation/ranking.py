"""Areas under the curves of weighted images, for many weightings at once: `Ranking` sorts the scores once.

Shapes: N images, of which some have the label that the scores speak for; B weightings.
"""

import functools
from typing import TYPE_CHECKING, Tuple

import numpy as np

if TYPE_CHECKING:  # SciPy is imported where it is used: settings only need the names of metrics
    from scipy.sparse import csr_array


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Element-wise quotient, NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=denominator != 0)


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis, ignoring NaNs; NaN where all values are NaN (`np.nanmean` without its warning)."""
    defined = ~np.isnan(values)
    return divide(np.where(defined, values, 0).sum(axis=0), defined.sum(axis=0))


class Ranking:
    """The order of the images by their scores for one label.

    Memory is one int32 per image.

    Args:
        scores: Scores (N,).
        positive: Whether each image has the label, (N,) of bool.
    """

    def __init__(self, scores: np.ndarray, positive: np.ndarray):
        self.scores, self.positive = scores, positive

    @functools.cached_property
    def _steps(self) -> 'Tuple[csr_array, csr_array]':
        """Two matrices that sum weights by score: of all images, and of those with the label.

        If these have M distinct scores, the first has 2 M + 1 rows (below the first score, at it, between it and the
        second, ...) and the second M rows.
        """
        from scipy.sparse import csr_array

        number, positives = len(self.scores), np.flatnonzero(self.positive)
        edges, at = np.unique(self.scores[positives], return_inverse=True)
        step_of = np.searchsorted(edges, self.scores, 'left') + np.searchsorted(edges, self.scores, 'right')
        starts = np.concatenate([[0], np.bincount(step_of, minlength=2 * len(edges) + 1).cumsum()])
        order = np.argsort(step_of, kind='stable')
        ones = np.ones(number)
        return (
            csr_array((ones, order.astype(np.int32), starts.astype(np.int32)), shape=(len(starts) - 1, number)),
            csr_array((ones[: len(positives)], (at.reshape(-1), positives)), shape=(len(edges), number)),
        )

    def _sum(self, weights: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sums of weights (N, B) at the M distinct scores of the images with the label.

        Returns:
            The weight of these images at each score, (M, B); of the others below it plus half of those at it, (M, B);
            of all others, (B,).
        """
        all_steps, own_steps = self._steps
        own = own_steps @ weights
        others = all_steps @ weights  # (2 M + 1, B)
        others[1::2] -= own
        below = others.cumsum(axis=0)
        return own, below[1::2] - others[1::2] / 2, below[-1]

    def auroc(self, weights: np.ndarray) -> np.ndarray:
        """Areas under the ROC curve, (B,), for weights (N, B), by the Mann-Whitney U; a tie counts one half. NaN where
        no image, or every one, has the label."""
        own, below, others = self._sum(weights)
        return divide((own * below).sum(axis=0), own.sum(axis=0) * others)

    def average_precision(self, weights: np.ndarray) -> np.ndarray:
        """Average precision, (B,), for weights (N, B): the mean over the images with the label of the precision at
        their score, as scikit-learn's. NaN where no image has the label."""
        all_steps, own_steps = self._steps
        own = own_steps @ weights
        at_or_above = (all_steps @ weights)[::-1].cumsum(axis=0)[::-1][1::2]
        precision = divide(own[::-1].cumsum(axis=0)[::-1], at_or_above)
        return divide(np.where(own > 0, own * precision, 0).sum(axis=0), own.sum(axis=0))

    def placements(self) -> np.ndarray:
        """Share of the images without the label that score lower than each image with it, (N,); 0 for those without it,
        NaN if all have it."""
        _, below, others = self._sum(np.ones((len(self.scores), 1)))
        return self._steps[1].T @ divide(below, np.broadcast_to(others, below.shape))[:, 0]
