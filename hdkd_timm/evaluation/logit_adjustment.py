"""Post-hoc logit adjustment for training images of which some classes are rare (Menon et al. 2021, arXiv 2007.07314).

A network trained on such images predicts the frequent classes too often for balanced accuracy. Its logits are lowered
by tau times the logarithm of the class's share of the training images: 0 leaves them as they are, 1 is for test images
with equally many of each class. Nothing is trained, and the adjusted network is an ordinary one.
"""

import dataclasses
import logging
import math
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from ..data.datasets import create_datasets
from ..data.imbalance import count_classes
from ..data.samples import SampleDataset
from ..models.checkpoint import load_model, save_model
from ..models.labels import match_label_names
from ..models.logit_bias import add_logit_bias
from ..utils.files import PathLike, check_output_folder, new_folder, write_json
from .candidates import Candidate, choose
from .evaluate import EvalConfig, evaluate_model
from .metrics import METRICS, classification_metrics

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
            tau is negative, or a metric is given beside it or is not one of `METRICS`.
    """
    check_output_folder(folder, '--out-dir')
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
    prior = _training_prior(config, model.in_chans, labels)
    record: Dict[str, Any] = {'model': str(name), 'tau': tau, 'prior': dict(zip(labels, prior.tolist()))}
    if tau is None:
        candidates = _try_taus(name, config, prior)
        record['tau'] = tau = choose(candidates, select_metric, lambda each: each['tau'])['tau']
        record.update(split=config.split, select_metric=select_metric, candidates=candidates)
    if not tau:
        _logger.warning('A tau of 0 changes nothing: the new model is the old one.')
    add_logit_bias(model, (-tau * np.log(prior)).tolist(), f"Model '{name}'")
    with new_folder(folder) as temporary:
        save_model(model, temporary, labels, model_args)
        write_json(record, temporary / ADJUSTMENT_FILE)
    return record


def _training_prior(config: EvalConfig, in_chans: int, labels: Sequence[str]) -> np.ndarray:
    """Share of each class of the model among the training images, (K,)."""
    source = dataclasses.replace(config, in_chans=in_chans, multi_label=False, check_images=False)
    datasets, classes = create_datasets(source, only='train')
    dataset = datasets['train']
    if not isinstance(dataset, SampleDataset):
        raise ValueError(
            f"The images of '{config.dataset}' are read one after another, and cannot be counted by class."
        )
    counts = count_classes(dataset.samples.targets, classes)
    unknown = [each for each in classes if each not in labels]
    missing = [each for each in labels if not counts.get(each)]
    if unknown or missing:
        raise ValueError(
            f"Class '{(unknown or missing)[0]}' is not in both the training images ({', '.join(classes)}) and the model"
            f' ({", ".join(labels)}).'
        )
    numbers = np.array([counts[each] for each in labels], np.float64)
    _logger.info('training images: ' + ', '.join(f'{each} {int(n)}' for each, n in zip(labels, numbers)))
    return numbers / numbers.sum()


def _try_taus(name: PathLike, config: EvalConfig, prior: np.ndarray) -> List[Candidate]:
    """Metrics of the images for each of `TAUS`."""
    _, images = evaluate_model(str(name), dataclasses.replace(config, bootstrap=0, calibrated=False))
    return [
        {'tau': tau, **classification_metrics(adjust_probs(images['probs'], prior, tau), images['targets'])}
        for tau in TAUS
    ]
