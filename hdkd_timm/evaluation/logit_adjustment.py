"""Post-hoc logit adjustment for training images of which some classes are rare (Menon et al. 2021, arXiv 2007.07314).

A network trained on such images predicts the frequent classes too often for balanced accuracy. Its logits are lowered
by tau times the logarithm of the class's share of the training images: 0 leaves them as they are, 1 is for test images
with equally many of each class. Nothing is trained, and the adjusted network is an ordinary one.
"""

import dataclasses
import logging
import math
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..data.datasets import create_datasets
from ..data.imbalance import count_classes
from ..data.samples import SampleDataset, Samples
from ..models.checkpoint import load_model, save_model
from ..models.labels import match_label_names
from ..models.logit_bias import add_logit_bias
from ..utils.config import read_yaml
from ..utils.files import PathLike, check_output_folder, new_folder, write_json
from ..utils.image_size import to_height_width
from ..utils.run_files import CONFIG_FILE
from .candidates import Candidate, choose
from .evaluate import EvalConfig, evaluate_model
from .metrics import METRICS, classification_metrics
from .model_sources import check_changeable, check_unseen, find_folder, find_run, same_images, warn_of_calibration

_logger = logging.getLogger(__name__)

ADJUSTMENT_FILE = 'adjustment.json'
TAUS = tuple(i / 8 for i in range(9))  # that are tried


def adjust_probs(probs: np.ndarray, prior: np.ndarray, tau: float) -> np.ndarray:
    """Probabilities after tau times the logarithm of the prior is taken off the logits.

    Args:
        probs: Probabilities (N, K).
        prior: Share of each class among the training images, above 0, (K,).
        tau: From 0, which changes nothing.
    """
    logits = np.log(probs.astype(np.float64).clip(np.finfo(np.float64).tiny)) - tau * np.log(prior)
    adjusted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return adjusted / adjusted.sum(axis=1, keepdims=True)


def adjust_model(
    name: PathLike,
    folder: PathLike,
    config: EvalConfig,
    tau: Optional[float] = None,
    select_metric: Optional[str] = None,
) -> Dict[str, Any]:
    """Write a model folder with the logit adjustment of a model in its bias, and adjustment.json, which says which.

    Args:
        name: A model, as `load_model` accepts it.
        folder: Output folder; must not exist.
        config: How to run the model, and the images: those of split 'train' are counted, those of `config.split`
            choose tau.
        tau: Strength of the adjustment, from 0; None to choose it from `TAUS` by the images of `config.split`.
        select_metric: Metric that chooses; None for balanced accuracy. Of equally good values the smallest is taken.

    Returns:
        What adjustment.json holds: 'model', 'tau', 'prior', class -> share of the training images, and, if images
        chose tau, 'split', 'select_metric' and 'candidates', a list of the values tried and their metrics.

    Raises:
        FileExistsError: if the folder exists.
        FileNotFoundError, ValueError: as `load_model`, `create_datasets`, `evaluate_model` and `add_logit_bias`; if
            images may have several labels, the source cannot be counted, a class of the model has no training image,
            an image that chooses tau is a training image, `config.tta` is set, tau is negative, or a metric is given
            beside it or is not one of `METRICS`.
    """
    check_output_folder(folder, '--out-dir')
    check_changeable([name])
    if config.tta:
        raise ValueError(
            f'--tta {config.tta} averages probabilities, which an adjustment of logits does not fit: omit it.'
        )
    if select_metric and tau is not None:
        raise ValueError(f'--select-metric {select_metric} has no effect with --tau: give only one of them.')
    select_metric = select_metric or 'balanced_accuracy'
    if select_metric not in METRICS:
        raise ValueError(f'--select-metric must be one of {", ".join(METRICS)}, got {select_metric!r}.')
    if tau is not None and not (tau >= 0 and math.isfinite(tau)):
        raise ValueError(f'--tau must be a number from 0, got {tau:g}.')
    model, model_args = load_model(
        name, config.model, config.img_size, use_ema=config.use_ema, model_kwargs=config.model_kwargs
    )
    labels = match_label_names(model, config.label_names, f"Model '{name}'")
    if model.pretrained_cfg.get('problem_type') or config.multi_label:
        raise ValueError(
            f"'{name}': logit adjustment is for images of one class each; of images with any number of labels, choose"
            " the labels' thresholds instead."
        )
    if labels is None:
        raise ValueError(f"Model '{name}' has no class names: name them in index order, --label-names NAME ...")
    if config.in_chans not in (None, model.in_chans):
        raise ValueError(f"Model '{name}' expects {model.in_chans} channels, not --in-chans {config.in_chans}.")
    train = _read_samples(config, model.in_chans, 'train')
    prior = _training_prior(*train, labels)
    _warn_of_other_adjustments(name)
    record: Dict[str, Any] = {'model': str(name), 'tau': tau, 'prior': dict(zip(labels, prior.tolist()))}
    if tau is None:
        _check_images(name, config, train[0], _read_samples(config, model.in_chans, config.split)[0])
        candidates = _try_taus(name, config, prior)
        record['tau'] = tau = choose(candidates, select_metric, lambda each: each['tau'])['tau']
        record.update(split=config.split, select_metric=select_metric, candidates=candidates)
    if not tau:
        _logger.warning('A tau of 0 changes nothing: the new model is the old one.')
    warn_of_calibration([name])
    add_logit_bias(model, (-tau * np.log(prior)).tolist(), f"Model '{name}'")
    size = None if config.img_size is None else (model.in_chans, *to_height_width(config.img_size))
    with new_folder(folder) as temporary:
        save_model(model, temporary, labels, model_args, size)
        write_json(record, temporary / ADJUSTMENT_FILE)
    return record


def _read_samples(config: EvalConfig, in_chans: int, split: str) -> Tuple[Samples, List[str]]:
    """Files and classes of a split, whose images are not read, and the class names."""
    source = dataclasses.replace(config, in_chans=in_chans, multi_label=False, check_images=False)
    datasets, classes = create_datasets(source, only=split)
    dataset = datasets[split]
    if not isinstance(dataset, SampleDataset):
        raise ValueError(f"The images of '{config.dataset}' are read in sequence, and cannot be counted by class.")
    return dataset.samples, classes


def _training_prior(train: Samples, classes: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Share of each class of the model among the training images, (K,)."""
    counts = count_classes(train.targets, classes)
    unknown = [each for each in classes if each not in labels]
    missing = [each for each in labels if not counts.get(each)]
    if unknown:
        raise ValueError(f"Class '{unknown[0]}' of the training images is none of the model's: {', '.join(labels)}.")
    if missing:
        raise ValueError(
            f"Class '{missing[0]}' of the model has no training image (found: {', '.join(classes)}): give the images"
            ' that the model was trained on.'
        )
    numbers = np.array([counts[each] for each in labels], np.float64)
    _logger.info('training images: ' + ', '.join(f'{each} {int(n)}' for each, n in zip(labels, numbers)))
    return numbers / numbers.sum()


def _check_images(name: PathLike, config: EvalConfig, train: Samples, chosen: Samples) -> None:
    """Raise ValueError if images that choose tau are ones that the model was trained on."""
    shared = sorted(same_images(chosen.filenames(), train.filenames()))
    if shared:
        raise ValueError(
            f"{len(shared)} images are in both split 'train' and split '{config.split}', such as '{shared[0]}': give"
            " images in splits, of which 'train' is the model's, or --tau."
        )
    check_unseen([name], chosen.filenames(), config.split)


def _warn_of_other_adjustments(name: PathLike) -> None:
    """Warn if the model was trained or changed in a way that already does what the adjustment is for."""
    run, folder = find_run(name), find_folder(name)
    settings = read_yaml(run / CONFIG_FILE) if run else {}
    used = next((key for key in ('class_weights', 'sampler', 'smote') if settings.get(key)), None)
    if used:
        _logger.warning(
            f"'{name}' was trained with {used} {settings[used]}, which makes up for rare classes already: the share of"
            ' a class among the training images is not what it has learned. A small tau may still help.'
        )
    if folder is not None and (folder / ADJUSTMENT_FILE).is_file():
        _logger.warning(f"'{name}' has been adjusted already: both adjustments add up.")


def _try_taus(name: PathLike, config: EvalConfig, prior: np.ndarray) -> List[Candidate]:
    """Metrics of the images for each of `TAUS`."""
    _, images = evaluate_model(str(name), dataclasses.replace(config, bootstrap=0, calibrated=False))
    return [
        {'tau': tau, **classification_metrics(adjust_probs(images['probs'], prior, tau), images['targets'])}
        for tau in TAUS
    ]
