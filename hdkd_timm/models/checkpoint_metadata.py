"""What trainers record in a checkpoint file, beside the weights, about the network: name, arguments, classes."""

import argparse
import logging
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

import timm

from ..utils.config import read_yaml
from ..utils.files import PathLike
from ..utils.parsing import read_json

__all__ = ['CheckpointMetadata', 'read_metadata', 'read_run_metadata']

_logger = logging.getLogger(__name__)

# where trainers keep their settings, and their names for what a network is built by
_SETTINGS = ('model_args', 'args', 'config', 'cfg', 'hyper_parameters', 'hparams')
_MODEL_NAMES = ('arch', 'architecture', 'model_name', 'model')
_ARGUMENTS = {
    'num_classes': 'num_classes',
    'nb_classes': 'num_classes',
    'in_chans': 'in_chans',
    'img_size': 'img_size',
    'gp': 'global_pool',
}
_LABEL_NAMES = ('label_names', 'class_names', 'classes', 'class_to_idx', 'idx_to_class', 'id2label')
# how images are prepared, in a `pretrained_cfg`
_PREPROCESSING = ('mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')


class CheckpointMetadata(NamedTuple):
    """What a file records about the network in it.

    Args:
        model_name: Name of a timm model.
        model_args: Arguments of the network.
        label_names: Class names by index.
        preprocessing: How images are prepared, keys of a `pretrained_cfg`.
        source: Where the name and the arguments were found, for messages.
    """

    model_name: Optional[str] = None
    model_args: Dict[str, Any] = {}
    label_names: Optional[List[str]] = None
    preprocessing: Dict[str, Any] = {}
    source: str = ''


def read_metadata(checkpoint: Dict[str, Any]) -> CheckpointMetadata:
    """What a checkpoint records about its network: the 'arch', 'args' or 'config' that timm's, DeiT's and Lightning's
    trainers write, and the 'model_args' and 'label_names' that ours does."""
    metadata = CheckpointMetadata()
    for key, values in [('', checkpoint), *((key, _as_dict(checkpoint.get(key))) for key in _SETTINGS)]:
        names = [values.get(name_key) for name_key in _MODEL_NAMES]
        name = next((n.split('.')[0] for n in names if isinstance(n, str) and timm.is_model(n.split('.')[0])), None)
        args = _read_model_args(key, values) if key else {}
        if name or args:
            source = f"its '{key}'" if key else "its 'arch'"
            metadata = metadata._replace(
                model_name=metadata.model_name or name,
                model_args={**args, **metadata.model_args},
                source=f'{metadata.source} and {source}' if metadata.source else source,
            )
        metadata = metadata._replace(
            label_names=metadata.label_names or _read_label_names(values),
            preprocessing={**(_read_preprocessing(values) if key else {}), **metadata.preprocessing},
        )
    return metadata


def _read_model_args(key: str, values: Dict[str, Any]) -> Dict[str, Any]:
    """Arguments of a network in a trainer's settings, which the checkpoint has under `key`."""
    args: Dict[str, Any] = dict(values) if key == 'model_args' else {}
    for kwargs_key in ('model_kwargs', 'model_args'):
        args.update(_as_dict(values.get(kwargs_key)))
    size = _as_tuple(values.get('input_size'))
    if isinstance(size, tuple) and len(size) == 3:  # as in timm, (C, H, W)
        args.setdefault('in_chans', size[0])
        args.setdefault('img_size', size[1:])
    elif isinstance(size, int):
        args.setdefault('img_size', size)
    for setting, argument in _ARGUMENTS.items():
        if isinstance(values.get(setting), (int, str, list, tuple)):
            args.setdefault(argument, values[setting])
    return {argument: _as_tuple(value) for argument, value in args.items() if value is not None}


def _read_preprocessing(values: Dict[str, Any]) -> Dict[str, Any]:
    """How images are prepared by a trainer's settings, as timm names them; empty ones are the network's own."""
    found = {key: _as_tuple(values[key]) for key in _PREPROCESSING if values.get(key)}
    kinds = {'mean': tuple, 'std': tuple, 'crop_pct': (int, float)}  # elsewhere a 'std' may be something else
    return {key: value for key, value in found.items() if isinstance(value, kinds.get(key, str))}


def _read_label_names(values: Dict[str, Any]) -> Optional[List[str]]:
    """Class names by index, which a file holds as a list, as name -> index or as index -> name."""
    for key in _LABEL_NAMES:
        names = values.get(key)
        if isinstance(names, dict) and names:
            pairs = [(index, name) if isinstance(name, str) else (name, index) for index, name in names.items()]
            by_index = {str(index): name for index, name in pairs}
            names = [by_index.get(str(index)) for index in range(len(names))]
            if None in names:
                _logger.warning(f"The classes of '{key}' are not numbered 0 to {len(names) - 1}: ignoring them.")
        if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
            return list(names)
    return None


def read_run_metadata(path: PathLike) -> CheckpointMetadata:
    """What a run records about the network whose training state is `path`: its best/config.json or, if nothing has been
    saved there yet, the run's config.yaml."""
    folder = Path(path).absolute().parent
    if (folder / 'best' / 'config.json').is_file():
        return _read_model_config(folder / 'best' / 'config.json')
    for run in (folder, folder.parent):
        if (run / 'config.yaml').is_file():
            is_teacher = run != folder and folder.name == 'teacher'  # of several none is trained
            return _read_run_config(run / 'config.yaml', is_teacher)
    return CheckpointMetadata()


def _read_model_config(path: Path) -> CheckpointMetadata:
    config = _as_dict(read_json(path))
    cfg, args = (_as_dict(config.get(key)) for key in ('pretrained_cfg', 'model_args'))
    args = {key: _as_tuple(value) for key, value in args.items()}
    size = cfg.get('input_size')
    if isinstance(size, list) and len(size) == 3:
        args.setdefault('img_size', tuple(size[1:]))
    preprocessing = {key: _as_tuple(cfg[key]) for key in _PREPROCESSING if key in cfg}
    return CheckpointMetadata(config.get('architecture'), args, _read_label_names(config), preprocessing, f"'{path}'")


def _read_run_config(path: Path, is_teacher: bool) -> CheckpointMetadata:
    settings = read_yaml(path)
    name = str(settings.get('teacher' if is_teacher else 'model')).split('.')[0]
    args = dict(_as_dict(settings.get('teacher_kwargs' if is_teacher else 'model_kwargs')))
    args.update({key: _as_tuple(settings[key]) for key in ('img_size', 'in_chans') if settings.get(key)})
    return CheckpointMetadata(name if timm.is_model(name) else None, args, source=f"'{path}'")


def _as_dict(value: Any) -> Dict[str, Any]:
    value = vars(value) if isinstance(value, argparse.Namespace) else value
    return value if isinstance(value, dict) else {}


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value
