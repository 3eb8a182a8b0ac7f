"""Temperature scaling of probabilities that are over- or underconfident (Guo et al. 2017, arXiv 1706.04599)."""

import logging
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np
from scipy.special import chdtri  # scipy.stats takes a second to import

from ..utils.files import PathLike, check_sums, write_json
from ..utils.parsing import read_json
from ..utils.run_files import CALIBRATION_FILE
from .intervals import effective_sample_size
from .metrics import expected_calibration_error

TEMPERATURE_RANGE = (0.05, 20.0)  # search range

_logger = logging.getLogger(__name__)


def apply_temperature(probs: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities after dividing the logits by a temperature. Above 1 they are less confident; labels don't change.

    Args:
        probs: Uncalibrated probabilities (N, K).
        temperature: Above 0.
    """
    logits = np.log(probs.astype(np.float64).clip(np.finfo(np.float64).tiny)) / temperature
    scaled = np.exp(logits - logits.max(axis=1, keepdims=True))
    return scaled / scaled.sum(axis=1, keepdims=True)


def _log_losses(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Log loss of each image, (N,)."""
    return -np.log(probs[np.arange(len(targets)), targets].clip(np.finfo(np.float64).tiny))


def _log_loss(probs: np.ndarray, targets: np.ndarray) -> float:
    return float(_log_losses(probs, targets).mean())


def fit_temperature(probs: np.ndarray, targets: np.ndarray, what: str = 'images') -> float:
    """The temperature that minimises the log loss.

    Args:
        probs: Probabilities (N, K) of images that the network was not trained on.
        targets: Class indices (N,).
        what: What is classified, for errors.

    Raises:
        ValueError: if there are no images, or the shapes don't match; if no temperature within `TEMPERATURE_RANGE` is
            optimal, for example because all images are classified correctly, or no better than by chance.
    """
    from scipy.optimize import minimize_scalar  # here, for a quick --help

    if probs.ndim != 2 or targets.shape != probs.shape[:1] or not len(targets):
        raise ValueError(f'Expected (N, K) probabilities and (N,) targets, got {probs.shape} and {targets.shape}.')
    found = minimize_scalar(
        lambda log_t: _log_loss(apply_temperature(probs, np.exp(log_t)), targets),
        bounds=np.log(TEMPERATURE_RANGE),
        method='bounded',
        options=dict(xatol=1e-6),
    )
    if found.fun > min(_log_loss(apply_temperature(probs, end), targets) for end in TEMPERATURE_RANGE) - 1e-9:
        accuracy = float((probs.argmax(axis=1) == targets).mean())
        low, high = TEMPERATURE_RANGE
        raise ValueError(
            f'Cannot fit a temperature to these {len(targets)} {what}, {accuracy:.1%} of which are classified'
            f' correctly: the log loss is smallest at the end of the search range, {low} to {high}. Use more images,'
            ' including misclassified ones.'
        )
    return float(np.exp(found.x))


def temperature_interval(
    probs: np.ndarray,
    targets: np.ndarray,
    temperature: float,
    groups: Optional[np.ndarray] = None,
    confidence: float = 0.95,
) -> List[float]:
    """Likelihood-ratio confidence interval of the temperature, [low, high].

    The likelihood ratio is that of the `effective_sample_size`, based on the contribution of each image to its slope.
    Ends outside `TEMPERATURE_RANGE` are clipped to it.

    Args:
        probs: Uncalibrated probabilities (N, K).
        targets: Class indices (N,).
        temperature: The optimum found by `fit_temperature`.
        groups: Group of each image, (N,).
        confidence: Confidence level.
    """
    from scipy.optimize import brentq

    def losses(log_t: float) -> np.ndarray:
        return _log_losses(apply_temperature(probs, np.exp(log_t)), targets)

    best = np.log(temperature)
    slopes = losses(best + 1e-4) - losses(best - 1e-4)
    number = effective_sample_size(slopes / (np.abs(slopes).max() or 1), groups, confidence=confidence)
    allowed = chdtri(1, 1 - confidence) / 2 / number  # quantile of the chi-squared distribution

    def excess(log_t: float) -> float:
        return float(losses(log_t).mean() - losses(best).mean()) - allowed

    ends = [brentq(excess, end, best) if excess(end) > 0 else end for end in np.log(TEMPERATURE_RANGE)]
    return np.exp(ends).tolist()


def summarize_calibration(probs: np.ndarray, targets: np.ndarray, temperature: float) -> Dict[str, Any]:
    """Number of 'images', and 'log_loss' and 'ece' (calibration error) 'before' and 'after' temperature scaling."""
    scaled = apply_temperature(probs, temperature)
    return {
        'images': len(targets),
        'log_loss': {'before': _log_loss(probs, targets), 'after': _log_loss(scaled, targets)},
        'ece': {
            'before': expected_calibration_error(probs, targets),
            'after': expected_calibration_error(scaled, targets),
        },
    }


def write_temperature(
    folder: PathLike, temperature: float, results: Dict[str, Dict[str, Any]], tta: Optional[str] = None
) -> None:
    """Write calibration.json into a model folder: the temperature, the test-time augmentation of the probabilities that
    it was fitted to, and split -> `summarize_calibration`."""
    write_json({'temperature': temperature, 'tta': tta, **results}, Path(folder) / CALIBRATION_FILE, summed=True)


def read_temperature(folder: PathLike, tta: Optional[str] = None) -> Optional[float]:
    """The temperature of a model folder, None if it is not calibrated.

    Args:
        folder: The model folder.
        tta: Test-time augmentation of the probabilities that are to be scaled: a warning if it was fitted to others.

    Raises:
        ValueError: if the file is damaged.
    """
    path = Path(folder) / CALIBRATION_FILE
    if not path.is_file():
        return None
    check_sums(folder, CALIBRATION_FILE)
    try:
        calibration = read_json(path)
        temperature = float(calibration['temperature'])
        if not 0 < temperature < np.inf:
            raise ValueError(temperature)
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(
            f"'{path}' has no valid temperature ({type(e).__name__}: {e}): run `hdkd calibrate` again."
        ) from e
    fitted = calibration.get('tta', tta)  # files of earlier versions don't tell
    if fitted != tta:
        used, of_fit = (f'with --tta {name}' if name else 'without --tta' for name in (tta, fitted))
        _logger.warning(
            f"The temperature of '{path}' was fitted to probabilities {of_fit}, and is applied to those {used}: run"
            f' `hdkd calibrate` {used} for one of their own.'
        )
    return temperature
