"""Trained classifiers ready for inference: `load_classifier` reads a saved model, in PyTorch or as an exported file."""

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError
from torch import nn

from ..data.image_io import IMG_MODES
from ..models.checkpoint import SOURCE_PREFIXES, download, find_model_folder, load_model
from ..models.labels import match_label_names
from ..models.pretrained import find_folder, find_packaged, full_name
from ..utils.config import KeyValues, check_values, setting
from ..utils.distributed import pick_device
from ..utils.files import PathLike
from ..utils.image_size import (
    ImageSize,
    format_image_size,
    parse_image_size,
    simplify_image_size,
    to_height_width,
)
from ..utils.run_files import CALIBRATION_FILE
from .exported import EXPORTED, find_exported
from .multi_label import DEFAULT_THRESHOLD
from .problem import MULTI_LABEL, Problem, SingleLabel, find_problem
from .temperature import read_temperature

_logger = logging.getLogger(__name__)


@dataclasses.dataclass
class ModelConfig:
    """Settings for loading a saved model."""

    model: Optional[str] = setting(
        None, 'architecture of a checkpoint file, if its keys fit more than one (hdkd_student_s4)', group='model'
    )
    model_kwargs: Dict[str, Any] = setting(
        {},
        'further model arguments of a checkpoint file, if its keys leave them open',
        nargs='*',
        action=KeyValues,
        metavar='NAME=VALUE',
    )
    img_size: Optional[ImageSize] = setting(
        None,
        "height and width in pixels to which images are resized, one number for both, or two (default: the model's)",
        type=parse_image_size,
        at_least=1,
        common=True,
    )
    use_ema: bool = setting(True, 'prefer the moving average of the weights in a checkpoint file that has both')
    label_names: Optional[Tuple[str, ...]] = setting(
        None, 'class names by index, of a model without class names', common=True
    )
    device: Optional[str] = setting(
        None, 'cpu, cuda, mps, ... (default: the best available)', group='device and speed', common=True
    )
    calibrated: bool = setting(
        False, 'scale the probabilities with the temperature of `hdkd calibrate`', group='model', common=True
    )

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range, naming the flag, the value and the range."""
        if self.img_size is not None:
            self.img_size = simplify_image_size(self.img_size, '--img-size')
        check_values(self)
        if self.img_size is not None and 'img_size' in self.model_kwargs:
            raise ValueError(
                f'--img-size {format_image_size(self.img_size)} and --model-kwargs'
                f' img_size={self.model_kwargs["img_size"]}: give only one of them.'
            )


@dataclasses.dataclass
class InferenceConfig(ModelConfig):
    """Settings for running a saved model on images."""

    tta: Optional[str] = setting(
        None,
        'test-time augmentation: mean probabilities of 2 views (hflip), 4 (flips) or 8 (dihedral: flips and turns)',
        choices=('hflip', 'flips', 'dihedral'),
        group='model',
        common=True,
    )
    batch_size: int = setting(64, 'batch size', flags=('-b',), at_least=1, group='device and speed', common=True)
    amp: bool = setting(False, 'mixed precision')
    amp_dtype: str = setting('float16', 'autocast dtype', choices=('float16', 'bfloat16'))
    channels_last: Optional[bool] = setting(
        None, 'channels-last memory layout (default: on the CPU, where it is faster)'
    )
    workers: int = setting(2, 'loader processes', flags=('-j',), at_least=0, common=True)


@dataclasses.dataclass
class Classifier:
    """A model with what is needed to run it.

    Args:
        model: The network, in eval mode and on the device.
        classes: Class names by index; None if the model has none.
        data_config: Preprocessing, as returned by timm's `resolve_data_config`.
        device: Device of the model.
        temperature: Temperature to scale the logits by; None if they are not calibrated.
        problem: Whether an image has one class or any number of labels.
        thresholds: Probability from which on an image is given a label, (K,), of the calibrated probabilities if they
            are; None if an image has one class.
    """

    model: nn.Module
    classes: Optional[List[str]]
    data_config: Dict[str, Any]
    device: torch.device
    temperature: Optional[float] = None
    problem: Problem = SingleLabel
    thresholds: Optional[np.ndarray] = None

    @property
    def is_multi_label(self) -> bool:
        return self.problem is not SingleLabel

    @property
    def in_chans(self) -> int:
        return self.data_config['input_size'][0]

    @property
    def img_mode(self) -> str:
        """Pillow mode of the images."""
        if self.in_chans not in IMG_MODES:
            raise ValueError(f'Image files can be read with 1 or 3 channels, the model expects {self.in_chans}.')
        return IMG_MODES[self.in_chans]


def _download_temperature(name: str) -> Optional[Path]:
    """Folder of the Hub's cache with the temperature of 'hf-hub:ORG/NAME'; None if the model is not calibrated."""
    try:
        return download(name, CALIBRATION_FILE).parent
    except EntryNotFoundError:
        return None


def _load_temperature(name: str, tta: Optional[str]) -> float:
    name = find_packaged(name).removeprefix('local-dir:')
    if name.startswith(SOURCE_PREFIXES):
        folder = _download_temperature(name)
    else:
        name = name.removesuffix('/model.safetensors')
        folder = find_model_folder(name) if os.path.isdir(name) else find_folder(full_name(name) or '')
    temperature = read_temperature(folder, tta) if folder is not None else None
    if temperature is None:
        raise ValueError(f"Model '{name}' is not calibrated: run `hdkd calibrate`, or omit --calibrated.")
    return temperature


def _load_exported(name: str, config: InferenceConfig) -> Classifier:
    kind = find_exported(name)
    what = kind.what
    if config.calibrated:
        raise ValueError(f"'{name}' is an {what}, which has no temperature: omit --calibrated.")
    if config.amp or config.channels_last:
        flag = 'amp' if config.amp else 'channels-last'
        raise ValueError(f"'{name}' is an {what}, which does not support --{flag}: omit it, or use --no-{flag}.")
    device = pick_device(config.device)
    if config.device is None and not kind.supports(device):
        device = torch.device('cpu')
    model = kind(name, device)
    data_config = {k: tuple(v) if isinstance(v, list) else v for k, v in model.metadata['data_config'].items()}
    height, width = data_config['input_size'][-2:]
    if config.img_size is not None and (height, width) != to_height_width(config.img_size):
        wanted = ' '.join(map(str, to_height_width(config.img_size)))
        raise ValueError(
            f"'{name}' expects images of {height} x {width} pixels, not --img-size {wanted}: omit it, or export the"
            f' model with --img-size {wanted}.'
        )
    labels = match_label_names(model, config.label_names, f"{what} '{name}'")
    return _add_problem(name, Classifier(model.eval(), labels, data_config, device), model.metadata.get('thresholds'))


def load_classifier(name: PathLike, config: Optional[ModelConfig] = None) -> Classifier:
    """Load a saved model for inference.

    Args:
        name: A model as accepted by `load_model`, or a file of `export_model`: ONNX (.onnx) or OpenVINO (.xml).
        config: Image size, class names of a model without any, device and memory layout.

    Raises:
        FileNotFoundError: if there is no such model.
        ImportError: for an exported file, if its runtime is not installed.
        ValueError: if the given class names differ from those of the model in name or number; for an exported file, if
            it is damaged or its image size differs, or if mixed precision or a memory layout is requested.
    """
    name = str(name)
    if not isinstance(config, InferenceConfig):
        config = InferenceConfig(**vars(config or ModelConfig()))
    if name.endswith(tuple(EXPORTED)) and not (os.path.isdir(name) or name.startswith(SOURCE_PREFIXES)):
        return _load_exported(name, config)
    if name.endswith('.pt2') and os.path.isfile(name):
        raise ValueError(
            f"'{name}' is a torch.export program, and loading it can execute code that it contains: use an .onnx or"
            ' .xml file, or the model that it was exported from.'
        )
    if name.endswith('.bin') and os.path.isfile(Path(name).with_suffix('.xml')):
        raise ValueError(f"'{name}' has the weights of an OpenVINO file: give '{Path(name).with_suffix('.xml')}'.")
    device = pick_device(config.device)
    model, _ = load_model(name, config.model, config.img_size, use_ema=config.use_ema, model_kwargs=config.model_kwargs)
    args = {} if config.img_size is None else dict(input_size=(model.in_chans, *to_height_width(config.img_size)))
    data_config = timm.data.resolve_data_config(args, model=model)
    labels = match_label_names(model, config.label_names, f"Model '{name}'")
    layout = torch.channels_last if config.channels_last else torch.preserve_format
    classifier = Classifier(
        model.eval().to(device=device, memory_format=layout),
        labels,
        dict(data_config, input_size=(model.in_chans, *data_config['input_size'][-2:])),
        device,
        _load_temperature(name, config.tta) if config.calibrated else None,
    )
    return _add_problem(name, classifier, model.pretrained_cfg.get('thresholds'))


def match_thresholds(
    thresholds: Optional[Mapping[str, float]], classes: Optional[Sequence[str]], num_classes: int, what: str
) -> np.ndarray:
    """Probability from which on a model gives an image each label, (K,); 0.5, with a warning, if it does not say.

    Args:
        thresholds: Label -> threshold.
        classes: The model's labels by index, if it has names.
        num_classes: Number of its labels.
        what: The model, for messages.

    Raises:
        ValueError: if the thresholds are of other labels.
    """
    if not thresholds:
        _logger.warning(f"{what} has no thresholds, which validation images choose: each label's is 0.5.")
        return np.full(num_classes, DEFAULT_THRESHOLD)
    missing = [label for label in classes or () if label not in thresholds]
    if missing or classes is None:
        raise ValueError(
            f'{what}: its thresholds are of the labels {", ".join(thresholds)}, not of'
            f' {", ".join(missing) or "named ones"}: train it again, or remove them from its config.json.'
        )
    return np.array([float(thresholds[label]) for label in classes])


def _add_problem(name: str, classifier: Classifier, thresholds: Optional[Mapping[str, float]]) -> Classifier:
    """The classifier with what its model says of the images: whether they have several labels, and from which
    probabilities on."""
    problem = find_problem(classifier.model.pretrained_cfg.get('problem_type') == MULTI_LABEL)
    if problem is SingleLabel:
        return classifier
    limits = match_thresholds(thresholds, classifier.classes, classifier.model.num_classes, f"Model '{name}'")
    if classifier.temperature is not None:
        limits = problem.scale(limits[None], classifier.temperature)[0]
    return dataclasses.replace(classifier, problem=problem, thresholds=limits)
