"""Testing a classifier on a split: `evaluate` runs a network, `evaluate_model` tests a saved model."""

import dataclasses
import logging
import math
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from timm.utils import reparameterize_model
from torch import nn

from ..data.config import DataConfig
from ..data.datasets import create_datasets
from ..data.loader import SplitLoader
from ..data.samples import SampleDataset
from ..data.sources.walk import join_names, natural_order
from ..models.labels import has_ambiguous_order
from ..utils.config import setting
from ..utils.distributed import World
from ..utils.memory import kept_memory
from ..utils.precision import warn_of_slow_autocast
from ..utils.signals import Signals
from .classifier import Classifier, InferenceConfig, load_classifier
from .exported import ExportedModel
from .metrics import METRIC_NAMES, METRICS, defined_scores
from .problem import MULTI_LABEL, Problem, SingleLabel
from .tta import TestTimeAugmentation

_logger = logging.getLogger(__name__)


@dataclasses.dataclass
class EvalConfig(InferenceConfig, DataConfig):
    """Settings of `evaluate_model`."""

    in_chans: Optional[int] = setting(  # type: ignore[assignment]  # the model's own by default
        None, "image channels, 3 (RGB) or 1 (greyscale) (default: the model's)", group='data'
    )
    multi_label: Optional[bool] = setting(  # type: ignore[assignment]  # the model's own by default
        None, "an image of --data-csv has any number of labels (default: as the model's)", common=True
    )
    split: str = setting(
        'test', 'split to evaluate on', choices=('train', 'val', 'test'), group='evaluation', common=True
    )
    bootstrap: int = setting(
        1000, 'bootstrap resamples for the 95 %% intervals, 0 for no intervals', at_least=0, common=True
    )

    def __post_init__(self) -> None:
        """As those of `InferenceConfig` and `DataConfig`."""
        super().__post_init__()
        DataConfig.__post_init__(self)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: SplitLoader,
    world: World,
    amp_dtype: Optional[torch.dtype] = None,
    channels_last: bool = False,
    signals: Optional[Signals] = None,
    problem: Problem = SingleLabel,
) -> Optional[Tuple[np.ndarray, np.ndarray]]:
    """Run a network on a split: probabilities (N, K) and targets of its images, in order: class indices (N,), or labels
    (N, K).

    In distributed evaluation, each process returns the images of all processes.

    Args:
        model: The network.
        loader: Batches of the split.
        world: The processes.
        amp_dtype: Autocast dtype; None for no mixed precision.
        channels_last: Use the channels-last memory layout.
        signals: Signals that stop the evaluation, unless it is distributed.
        problem: How logits become probabilities.

    Returns:
        None if a signal was received.

    Raises:
        FloatingPointError: if an output is not finite.
    """
    model.eval()
    probs, targets = [], []
    autocast = torch.autocast(world.device.type, amp_dtype, enabled=amp_dtype is not None)
    if world.is_distributed:  # other processes would wait for this one
        signals = None
    for input, target in loader if signals is None else signals.watch(loader):
        if channels_last:
            input = input.contiguous(memory_format=torch.channels_last)
        with autocast:
            output = model(input)
        probs.append(problem.to_probs(output.float().cpu().double()))
        targets.append(target.cpu())
    if signals is not None and signals.received:
        return None
    gathered = world.gather((torch.cat(probs), torch.cat(targets)) if probs else None)
    all_probs, all_targets = _merge_shares([share for share in gathered if share is not None], loader.iterable)
    if not torch.isfinite(all_probs).all():
        raise FloatingPointError('The outputs of the network became non-finite: try a lower learning rate.')
    return all_probs.numpy(), all_targets.numpy()


def _merge_shares(
    shares: Sequence[Tuple[torch.Tensor, torch.Tensor]],
    is_iterable: bool,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and targets of all processes in the order of the images."""
    if is_iterable:
        probs, targets = (torch.cat(parts) for parts in zip(*shares))
        return probs, targets
    total = sum(len(targets) for _, targets in shares)
    all_probs, all_targets = (part.new_empty(total, *part.shape[1:]) for part in shares[0])
    for rank, (probs, targets) in enumerate(shares):  # image i was assigned to process i % size
        all_probs[rank :: len(shares)], all_targets[rank :: len(shares)] = probs, targets
    return all_probs, all_targets


def _fastest_form(classifier: Classifier, channels_last: Optional[bool]) -> Tuple[nn.Module, bool]:
    """The network as it is run: in its deploy form if it has one (HDKD's have their BatchNorms folded) and, on the CPU
    unless that is not wanted, channels-last.

    Logits differ from those of the original, which stays as it is, by rounding only.

    Returns:
        The network, which is the classifier's own where it is an exported file, and whether it is channels-last.
    """
    if isinstance(classifier.model, ExportedModel):
        return classifier.model, False
    channels_last = classifier.device.type == 'cpu' if channels_last is None else channels_last
    layout = torch.channels_last if channels_last else torch.preserve_format
    return reparameterize_model(classifier.model).to(memory_format=layout), channels_last


def classify(classifier: Classifier, dataset: Any, config: InferenceConfig) -> Tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, K) and targets (N,), or (N, K), of a dataset by a loaded model: with test-time augmentation the
    mean over views, then calibrated if the model is."""
    temperature, problem = classifier.temperature, classifier.problem
    model, channels_last = _fastest_form(classifier, config.channels_last)
    amp_dtype: Optional[torch.dtype] = getattr(torch, config.amp_dtype) if config.amp else None
    if amp_dtype is not None:
        warn_of_slow_autocast(classifier.device, amp_dtype)
    if config.tta:
        model = TestTimeAugmentation(model, config.tta, problem)
    loader = SplitLoader(
        dataset, classifier.data_config, config.batch_size, num_workers=config.workers, device=classifier.device
    )
    with kept_memory(classifier.device):
        probs, targets = evaluate(
            model,
            loader,
            World(classifier.device),
            amp_dtype,
            channels_last,
            problem=problem,
        )
    return probs if temperature is None else problem.scale(probs, temperature), targets


def _order_classes(classifier: Classifier, classes: List[str], name: str) -> List[str]:
    """Class names of the model by index: its own, otherwise those of the data in the more likely of two orders.

    Raises:
        ValueError: if the model has no class names, and another number of classes than the data.
    """
    if classifier.classes is not None:
        return classifier.classes
    if len(classes) != classifier.model.num_classes:
        raise ValueError(
            f"Model '{name}' has {classifier.model.num_classes} classes without names, the data has {len(classes)}."
        )
    # trainers that store no class names usually sort them as text; an order given by the data set is kept
    return sorted(classes) if classes == sorted(classes, key=natural_order) else classes


def _match_classes(names: List[str], classes: List[str], model: str) -> List[int]:
    """Index in the model, whose class names are `names`, of each class of the data."""
    unknown = [label for label in classes if label not in names]
    if unknown:
        raise ValueError(f"Class '{unknown[0]}' of the data is not a class of model '{model}' ({', '.join(names)}).")
    return [names.index(label) for label in classes]


def _warn_of_order(
    model: str,
    assumed: List[str],
    classes: List[str],
    predicted: np.ndarray,
    targets: np.ndarray,
) -> None:
    """Report the order assumed for the classes of a model without names, and the accuracy with the other one.

    Args:
        model: Name of the model.
        assumed: Assumed class names by index.
        classes: Class names of the data by index.
        predicted: Class indices in the model, (N,).
        targets: Class indices in the data, (N,).
    """
    orders = {'sorted as text like torchvision.ImageFolder': sorted(classes), 'of the data': classes}
    (first, accuracy), (second, other) = (
        (f'{order} ({", ".join(names)})', np.mean(np.array(names)[predicted] == np.array(classes)[targets]))
        for order, names in sorted(orders.items(), key=lambda item: item[1] != assumed)
    )
    _logger.warning(
        f"Model '{model}' has no class names, their order is a guess. Assumed order: {first}, accuracy {accuracy:.1%}."
        f' Other order: {second}, accuracy {other:.1%}. Give the class names in index order: --label-names NAME ...'
    )


def _warn_of_missing_classes(model: str, report: Dict[str, Any]) -> None:
    """Name the classes of a model that no image has, and what their absence does to the metrics."""
    missing = {label: scores for label, scores in defined_scores(report).items() if not scores['support']}
    if not missing:
        return
    plural = 'es' * (len(missing) > 1)
    text = f"No image has the class{plural} {join_names(list(missing))} of model '{model}', which the means leave out"
    predicted = [label for label, scores in missing.items() if scores['f1'] is not None]
    if predicted:
        text += f'; macro F1 alone counts those that are predicted ({join_names(predicted)}), as 0'
    undefined = [METRIC_NAMES[name] for name in METRICS if math.isnan(report[name])]
    if undefined:
        text += f'. With images of one class, {" and ".join(undefined)} cannot be computed'
    _logger.warning(f'{text}.')


def _spread(targets: np.ndarray, index_of: np.ndarray, number: int) -> np.ndarray:
    """Targets (N, K) with the columns `index_of` of all (N, number), the others 0."""
    spread = np.zeros((len(targets), number), targets.dtype)
    spread[:, index_of] = targets
    return spread


def _check_problem(name: str, classifier: Classifier, config: EvalConfig) -> None:
    """Raise ValueError if the model is not of the kind asked for, or a model of labels has no names for them."""
    if config.multi_label and not classifier.is_multi_label:
        raise ValueError(
            f"Model '{name}' gives each image one class: drop --multi-label, or train a model with it. If it was"
            f' trained elsewhere, write "problem_type": "{MULTI_LABEL}" into its config.json.'
        )
    if classifier.is_multi_label and config.multi_label is False:
        raise ValueError(
            f"Model '{name}' gives each image any number of labels: drop --no-multi-label, or multi_label: false in the"
            ' file of --config.'
        )
    if classifier.is_multi_label and classifier.classes is None:
        raise ValueError(f"Model '{name}' has no label names: give them in index order, --label-names NAME ...")


def evaluate_model(name: str, config: EvalConfig) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """Test a saved model on a split. The classes of the data may be a subset of the model's.

    Args:
        name: A model as accepted by `load_classifier`.
        config: Data, split and inference settings.

    Returns:
        The results: `Problem.report` with 'model', 'split', 'classes' (by index in the model), 'tta' if it is used and,
        for a model without class names whose order is ambiguous, 'classes_guessed' (also logged as a warning). And the
        images: 'names', 'probs' (N, K), 'targets' (N,), or (N, K) of several labels, and 'groups' (N,), None without.

    Raises:
        FileNotFoundError, ValueError: as `load_classifier` and `create_datasets`; if a class of the data is not a class
            of the model, or the images have another number of channels.
    """
    classifier = load_classifier(name, config)
    if config.in_chans not in (None, classifier.in_chans):
        raise ValueError(f"Model '{name}' expects {classifier.in_chans} channels, not --in-chans {config.in_chans}.")
    _check_problem(name, classifier, config)
    config = dataclasses.replace(config, in_chans=classifier.in_chans, multi_label=classifier.is_multi_label)
    datasets, data_classes = create_datasets(config, config.batch_size, only=config.split)
    dataset = datasets[config.split]
    classes = _order_classes(classifier, data_classes, name)
    index_of = np.array(_match_classes(classes, data_classes, name), int)
    probs, targets = classify(classifier, dataset, config)
    is_guess = classifier.classes is None and has_ambiguous_order(data_classes) and not classifier.is_multi_label
    if is_guess:
        _warn_of_order(name, classes, data_classes, probs.argmax(axis=1), targets)
    thresholds = classifier.thresholds
    if thresholds is not None:  # labels, and the data may not say whether an image has the model's other labels
        others = [label for label in classes if label not in data_classes]
        columns = [column.strip() for column in config.label_column]
        if len(columns) == 1 and data_classes != columns:  # a list of all labels that an image has
            targets = _spread(targets, index_of, len(classes))
            if others:
                _logger.warning(f"No image has the labels {', '.join(others)} of model '{name}'.")
        else:
            if others:
                _logger.warning(
                    f"The data has no column of the labels {', '.join(others)} of model '{name}', which are left out."
                )
            probs, thresholds, classes = probs[:, index_of], thresholds[index_of], data_classes
    else:
        targets = index_of[targets]
    has_samples = isinstance(dataset, SampleDataset)
    groups = dataset.samples.groups if has_samples else None
    names = dataset.samples.filenames() if has_samples else [str(i) for i in range(len(targets))]
    report = classifier.problem.report(
        probs,
        targets,
        classes,
        groups=groups,
        resamples=config.bootstrap,
        seed=config.seed,
        thresholds=thresholds,
    )
    if not classifier.is_multi_label:
        _warn_of_missing_classes(name, report)
    guessed: Dict[str, Any] = dict(classes_guessed=True) if is_guess else {}
    if classifier.is_multi_label:
        guessed.update(problem_type=classifier.problem.type)
    augmented = dict(tta=config.tta) if config.tta else {}
    return (
        dict(model=name, split=config.split, classes=classes, **guessed, **augmented, **report),
        dict(names=names, probs=probs, targets=targets, groups=groups, thresholds=thresholds),
    )
