"""Confidence intervals of proportions that are honest at 0, at 1, for few images and for images in groups.

A bootstrap draws from what was seen: where all images are right, all draws are, and its interval has no width. The
intervals here follow from distributions instead. Shapes: N images; G groups (patients, lesions), whose images are not
independent.
"""
from typing import Callable, Optional, Tuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta, norm, t

Interval = Tuple[float, float]


def group_indices(groups: Optional[np.ndarray]) -> Optional[np.ndarray]:
    """Index of the group of each image, (N,), from 0 to G - 1; None if there are no groups."""
    return None if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)


def stratum_weights(strata: np.ndarray) -> np.ndarray:
    """Weights (N,) of the images in the mean of the means of strata (classes) (N,): balanced accuracy, of recalls."""
    sizes = np.bincount(strata)
    return 1 / (sizes[strata] * np.count_nonzero(sizes))


def effective_number(
        values: np.ndarray,
        groups: Optional[np.ndarray] = None,
        strata: Optional[np.ndarray] = None,
        confidence: float = 0.95,
) -> float:
    """As many independent images would tell as much of the mean as these images in groups and strata do.

    The variance of one image over that of the mean, which comes from the sums of the groups, corrected for the degrees
    of freedom of few groups (Korn and Graubard, Survey Methodology 24, 1998, 193-201). Rare values, such as the few
    mistakes of a good classifier, tell nothing of how they cluster: the variance is therefore averaged with that of
    groups of equal images, which weighs as one image. The number is at least that of groups of equal images (Kish), and
    at most that of independent images: N without strata.

    Args:
        values: A value of each image, such as whether it is right, (N,).
        groups: Group of each image, (N,); None: all are independent.
        strata: Class index of each image, (N,): then it is about the mean of the means of the classes.
        confidence: Of the interval that the number is for.
    """
    number = len(values)
    weights = np.full(number, 1 / max(number, 1)) if strata is None else stratum_weights(strata)
    most = 1 / float(weights @ weights) if number else 0.
    if not number or groups is None and strata is None:
        return float(number)
    group_of = np.arange(number) if groups is None else group_indices(groups)
    shares = np.bincount(group_of, weights)
    least = 1 / float(shares @ shares)
    mean = float(weights @ values)
    own_mean = mean if strata is None else (np.bincount(strata, values) / np.maximum(np.bincount(strata), 1))[strata]
    rest = values - own_mean
    variance_of_one = float(weights @ (values - mean) ** 2)
    told = float(rest @ rest)
    if not told or len(shares) == 1:
        return least
    ratio = float((np.bincount(group_of, weights * rest) ** 2).sum()) / variance_of_one
    few_groups = 1.
    if groups is not None:
        ratio *= len(shares) / (len(shares) - 1)
        quantile = (1 + confidence) / 2
        few_groups = (t.ppf(quantile, number - 1) / t.ppf(quantile, len(shares) - 1)) ** 2
    return float(np.clip(few_groups * (told + 1) / (told * ratio + 1 / least), least, most))


def proportion_interval(share: float, number: float, confidence: float = 0.95) -> Interval:
    """Clopper and Pearson's interval of a proportion: it holds the true one at least so often, whatever that is.

    Source: Clopper and Pearson, Biometrika 26, 1934, 404-413; of an `effective_number`, Korn and Graubard 1998.

    Args:
        share: The proportion that was found, 0 to 1.
        number: Of images, effective ones if in groups. Of none, the interval is NaN.
        confidence: How often it shall hold.
    """
    if not number:
        return float('nan'), float('nan')
    tail, hits, misses = (1 - confidence) / 2, share * number, (1 - share) * number
    return (
        float(beta.ppf(tail, hits, misses + 1)) if share > 0 else 0.,
        float(beta.ppf(1 - tail, hits + 1, misses)) if share < 1 else 1.)


def _solve(distance: Callable[[float], float], inner: float, outer: float) -> float:
    """Where a distance that is below 0 next to `inner` crosses 0 on the way to `outer`; `outer` if it does not."""
    inner += 1e-9 * (outer - inner)  # at `inner` itself it may be 0
    return float(brentq(distance, inner, outer)) if distance(outer) > 0 else outer


def paired_interval(only_first: float, only_second: float, number: float, confidence: float = 0.95) -> Interval:
    """Tango's score interval of a difference of two proportions of the same images, second minus first.

    It has a width even if no image is right by one alone. Source: Tango, Statistics in Medicine 17, 1998, 891-908.

    Args:
        only_first, only_second: Images that only the first or only the second gets right.
        number: Of all images. All three may be scaled to an `effective_number`. Of none, the interval is NaN.
        confidence: How often it shall hold the true difference.
    """
    if not number:
        return float('nan'), float('nan')
    z = norm.ppf((1 + confidence) / 2)
    found = (only_second - only_first) / number

    def distance(difference: float) -> float:
        """Of the found difference from this one, squared, over the squared error that this one implies."""
        b = -only_second - only_first + (2 * number - only_second + only_first) * difference
        c = -only_first * difference * (1 - difference)
        only_first_share = (np.sqrt(max(b * b - 8 * number * c, 0.)) - b) / (4 * number)
        variance = max(2 * only_first_share + difference * (1 - difference), 0.) / number
        return (found - difference) ** 2 - z ** 2 * variance

    return _solve(distance, found, -1.), _solve(distance, found, 1.)
