"""Temperature scaling: probabilities that are as sure as they should be (Guo et al. 2017, arXiv 1706.04599)."""
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import chi2

from ..utils.files import PathLike, check_sums, write_json
from ..utils.parsing import read_json
from .intervals import effective_number
from .metrics import expected_calibration_error

CALIBRATION = 'calibration.json'  # beside a model's config.json
RANGE = (0.05, 20.)  # temperatures that are looked at


def scale(probs: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities of logits that are divided by a temperature: above 1 less sure, below 1 surer, the same labels.

    Args:
        probs: Probabilities (N, K), of the logits as they are.
        temperature: Above 0.
    """
    logits = np.log(probs.astype(np.float64).clip(np.finfo(np.float64).tiny)) / temperature
    scaled = np.exp(logits - logits.max(axis=1, keepdims=True))
    return scaled / scaled.sum(axis=1, keepdims=True)


def _log_loss(probs: np.ndarray, targets: np.ndarray) -> float:
    return float(-np.log(probs[np.arange(len(targets)), targets].clip(np.finfo(np.float64).tiny)).mean())


def fit_temperature(probs: np.ndarray, targets: np.ndarray) -> float:
    """The temperature of the least log loss.

    Args:
        probs: Probabilities (N, K) of images that the network was not trained on.
        targets: Class indices (N,).

    Raises:
        ValueError: if there are no images, or the shapes don't fit; if no temperature within `RANGE` is best, as of
            images that are all labelled right, or by chance.
    """
    if probs.ndim != 2 or targets.shape != probs.shape[:1] or not len(targets):
        raise ValueError(f'Expected (N, K) probabilities and (N,) targets, got {probs.shape} and {targets.shape}.')
    found = minimize_scalar(
        lambda log_t: _log_loss(scale(probs, np.exp(log_t)), targets), bounds=np.log(RANGE), method='bounded',
        options=dict(xatol=1e-6))
    if found.fun > min(_log_loss(scale(probs, end), targets) for end in RANGE) - 1e-9:
        right = float((probs.argmax(axis=1) == targets).mean())
        raise ValueError(
            f'No temperature can be told from these {len(targets)} images, of which {right:.1%} are labelled right: the'
            f' log loss is least at the end of what is looked at, {RANGE[0]} to {RANGE[1]}. Take more images, with some'
            ' mistakes among them.')
    return float(np.exp(found.x))


def temperature_interval(
        probs: np.ndarray,
        targets: np.ndarray,
        temperature: float,
        groups: Optional[np.ndarray] = None,
        confidence: float = 0.95,
) -> List[float]:
    """Temperatures that these images do not rule out, [low, high]: those whose likelihood is near the greatest.

    The likelihood ratio is that of the `effective_number` of images, by their shares in its slope. An end that is
    beyond `RANGE` is that of `RANGE`.

    Args:
        probs: Probabilities (N, K) as they are.
        targets: Class indices (N,).
        temperature: The best, of `fit_temperature`.
        groups: Group of each image, (N,).
        confidence: How often it shall hold the temperature of all images.
    """
    def losses(log_t: float) -> np.ndarray:
        return -np.log(scale(probs, np.exp(log_t))[np.arange(len(targets)), targets].clip(np.finfo(np.float64).tiny))

    best = np.log(temperature)
    slopes = losses(best + 1e-4) - losses(best - 1e-4)
    number = effective_number(slopes / (np.abs(slopes).max() or 1), groups, confidence=confidence)
    allowed = chi2.ppf(confidence, 1) / 2 / number

    def excess(log_t: float) -> float:
        return float(losses(log_t).mean() - losses(best).mean()) - allowed

    ends = [brentq(excess, end, best) if excess(end) > 0 else end for end in np.log(RANGE)]
    return np.exp(ends).tolist()


def describe(probs: np.ndarray, targets: np.ndarray, temperature: float) -> Dict[str, Any]:
    """Images, and log loss and expected calibration error before and after the scaling."""
    after = scale(probs, temperature)
    return {
        'images': len(targets),
        'log_loss': {'before': _log_loss(probs, targets), 'after': _log_loss(after, targets)},
        'ece': {'before': expected_calibration_error(probs, targets),
                'after': expected_calibration_error(after, targets)}}


def write_temperature(folder: PathLike, temperature: float, results: Dict[str, Dict[str, Any]]) -> None:
    """Write calibration.json beside a model: the temperature, and split -> what `describe` returns."""
    write_json({'temperature': temperature, **results}, Path(folder) / CALIBRATION, summed=True)


def read_temperature(folder: PathLike) -> Optional[float]:
    """The temperature of a model folder, None if it has none.

    Raises:
        ValueError: if the file is damaged.
    """
    path = Path(folder) / CALIBRATION
    if not path.is_file():
        return None
    check_sums(folder, CALIBRATION)
    try:
        temperature = float(read_json(path)['temperature'])
        if not 0 < temperature < np.inf:
            raise ValueError(temperature)
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"'{path}' tells no temperature ({type(e).__name__}: {e}): run `hdkd calibrate` again.") from e
    return temperature
