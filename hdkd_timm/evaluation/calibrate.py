"""Calibration of a saved model by temperature scaling on its validation images."""

import dataclasses
import logging
from typing import Any, Dict, Optional, Tuple

import numpy as np

from ..data.samples import SplitNotFoundError
from ..data.targets import is_multi_label
from ..models.checkpoint import find_model_folder
from ..utils.files import PathLike
from .evaluate import EvalConfig, evaluate_model
from .multi_label import flatten_labels
from .temperature import fit_temperature, summarize_calibration, temperature_interval, write_temperature

_logger = logging.getLogger(__name__)


def _evaluate_split(name: PathLike, config: EvalConfig, split: str) -> Dict[str, Any]:
    """Uncalibrated probabilities and targets of a split, as from `evaluate_model`."""
    report, images = evaluate_model(str(name), dataclasses.replace(config, split=split, calibrated=False, bootstrap=0))
    if report.get('classes_guessed'):
        raise ValueError(
            f"Model '{name}' has no class names, and with a guessed class order it cannot be calibrated: name the"
            ' classes in index order, --label-names NAME ...'
        )
    return images


def _decisions(images: Dict[str, Any]) -> Tuple[np.ndarray, np.ndarray, Optional[np.ndarray]]:
    """Probabilities, class indices and groups of the decisions that the temperature is fitted to: the images or, of
    images with any number of labels, each label of each image."""
    if is_multi_label(images['targets']):
        return flatten_labels(images['probs'], images['targets'], images['groups'])
    return images['probs'], images['targets'], images['groups']


def _summarize(images: Dict[str, Any], temperature: float) -> Dict[str, Any]:
    probs, targets, _ = _decisions(images)
    return dict(summarize_calibration(probs, targets, temperature), images=len(images['targets']))


def calibrate_model(name: PathLike, config: EvalConfig) -> Dict[str, Any]:
    """Fit the temperature of a saved model on its validation images, and write it next to the model.

    Args:
        name: Model folder, folder of a network in a run, or run of a single network.
        config: Data and inference settings; the temperature is fitted on the split `split`.

    Returns:
        'temperature', and split -> `summarize_calibration`: for the split of the fit, which also has 'temperature_95',
        [low, high], and for the test split if it has other images.

    Raises:
        FileNotFoundError, ValueError: as `evaluate_model` and `find_model_folder`.
    """
    folder = find_model_folder(name)
    try:
        images = _evaluate_split(name, config, config.split)
    except SplitNotFoundError as e:
        raise SplitNotFoundError(
            f'{e} The temperature is fitted on images that the network was not trained on: train with --val-fraction,'
            ' or specify such images with --data-dir or --data-csv (and --split).'
        ) from e
    probs, targets, groups = _decisions(images)
    what = 'labels of images' if is_multi_label(images['targets']) else 'images'
    temperature = fit_temperature(probs, targets, what)
    results = {config.split: _summarize(images, temperature)}
    low, high = temperature_interval(probs, targets, temperature, groups)
    results[config.split]['temperature_95'] = [low, high]
    if low <= 1 <= high:
        _logger.warning(
            f"With the {len(images['targets'])} images of split '{config.split}' the temperature does not differ"
            f' significantly from 1, which has no effect (95 % interval {low:.2f} to {high:.2f}): use more images, or'
            ' omit --calibrated.'
        )
    if config.split != 'test':
        results.update(_check_on_test(name, config, images, temperature))
    write_temperature(folder, temperature, results, config.tta)
    return dict(temperature=temperature, **results)


def _check_on_test(
    name: PathLike,
    config: EvalConfig,
    fitted: Dict[str, Any],
    temperature: float,
) -> Dict[str, Dict[str, Any]]:
    """'test' -> `summarize_calibration`; empty if there are no test images other than those of the fit."""
    try:
        tested = _evaluate_split(name, config, 'test')
    except SplitNotFoundError:
        return {}
    if tested['names'] == fitted['names'] and np.array_equal(tested['probs'], fitted['probs']):
        return {}
    summary = _summarize(tested, temperature)
    before, after = summary['log_loss'].values()
    if after > before:
        _logger.warning(
            f'The log loss of the test images increases from {before:.4f} to {after:.4f}: split'
            f" '{config.split}' has too few images ({len(fitted['targets'])}), or they are of a different kind."
        )
    return {'test': summary}
