"""A checkpoint file as trainers write it: read without running its code, the networks in it, and what it says of them.

The networks are found by their keys, wherever they stand in the file ('state_dict', 'model', 'net', ...) and under
whatever prefix ('module.', Lightning's 'model.', 'student.' of a distillation).
"""
import argparse
import logging
import pickle
import re
import zipfile
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import safetensors.torch
import timm
import torch

from .hdkd import convert_state_dict
from ..utils.config import read_yaml
from ..utils.files import PathLike, check_sums
from ..utils.parsing import read_json

_logger = logging.getLogger(__name__)

# the first weight of every HDKD network, by our name and by the published one
_FIRST_WEIGHTS = ('stages.0.0.conv.weight', 'stage1.0.0.weight')
_DEPTH = 3  # how deep in a file's dicts networks are looked for
# where trainers keep their settings, and how they call what a network is built by
_SETTINGS = ('model_args', 'args', 'config', 'cfg', 'hyper_parameters', 'hparams')
_MODEL_NAMES = ('arch', 'architecture', 'model_name', 'model')
_ARGUMENTS = {'num_classes': 'num_classes', 'nb_classes': 'num_classes', 'in_chans': 'in_chans', 'img_size': 'img_size',
              'gp': 'global_pool'}
# how images are prepared, in a `pretrained_cfg`
_PREPROCESSING = ('mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')
_LABEL_NAMES = ('label_names', 'class_names', 'classes', 'class_to_idx', 'idx_to_class', 'id2label')


# -- reading -----------------------------------------------------------------------------------------------------------

class _NumpyDtype:
    """Stands for `numpy.dtype`, whose own `__setstate__` believes a file more than is safe."""

    def __init__(self, code: str, *_: Any):
        if not re.fullmatch(r'[biuf]\d', code):
            raise pickle.UnpicklingError(f'NumPy values of type {code!r} are not read.')
        self.code = code

    def __setstate__(self, state: Any) -> None:
        if state[1] in ('<', '>', '|', '='):
            self.code = state[1] + self.code


def _numpy_scalar(dtype: _NumpyDtype, data: bytes) -> Any:
    """Stands for NumPy's scalars, as a best accuracy often is: a Python number."""
    return np.frombuffer(data, dtype.code, count=1)[0].item()


def _path(*parts: str) -> str:
    """Stands for the paths of pathlib."""
    return str(PurePath(*parts))


# what checkpoints hold beside tensors, none of which can run code, and the names that they call it by. Namespace is
# what argparse makes: its attributes are set and nothing else
SAFE_GLOBALS: List[Tuple[Callable, str]] = [
    (argparse.Namespace, 'argparse.Namespace'),
    (_NumpyDtype, 'numpy.dtype'),
    *((_numpy_scalar, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core')),
    *((_path, f'{module}.{kind}Path') for module in ('pathlib', 'pathlib._local')
      for kind in ('Posix', 'Windows', 'PurePosix', 'PureWindows')),
]


def _find_damaged_record(path: Path) -> Optional[str]:
    """The first part of a checkpoint that is not as its checksum says, at which `torch.load` does not look."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as file:
        has_sums = any(info.CRC for info in file.infolist())  # torch.serialization.set_crc32_options leaves them out
        return file.testzip() if has_sums else None


def _find_unsafe_names(path: Path, error: Exception) -> List[str]:
    """What a checkpoint would call on loading, none where it is only damaged.

    Args:
        path: The file.
        error: What `torch.load` raised. It names the first one, and all that is known of files that are no zip files.
    """
    names = re.findall(r'GLOBAL (\w[\w.]*)', str(error))
    with suppress(Exception), torch.serialization.safe_globals(SAFE_GLOBALS):  # a damaged file can raise anything
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path) or names
    return sorted(set(names))


def read_checkpoint(path: PathLike) -> Dict[str, Any]:
    """Read a checkpoint file, .safetensors or torch.save, without running any code that it holds.

    Beside tensors and plain values it may hold argparse's Namespace, as those of timm's train.py do, NumPy numbers and
    paths; these become Python's numbers and strings.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file would execute code on loading, is not a checkpoint, or not as SHA256SUMS beside it says.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Checkpoint '{path}' does not exist, or is no file.")
    check_sums(path.parent, path.name)
    try:
        if path.suffix == '.safetensors':
            return safetensors.torch.load_file(path)
        damaged = _find_damaged_record(path)
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as e:
        with open(path, 'rb') as file:
            if not file.read(2).startswith((pickle.PROTO, b'PK')):  # a pickle, a zip file
                raise ValueError(f"'{path}' is no checkpoint: neither safetensors nor written by torch.save.") from e
        names = _find_unsafe_names(path, e)
        if not names:
            reason = str(e).partition('WeightsUnpickler error:')[2]
            reason = re.split('Check the documentation|Please use', reason)[0]
            raise ValueError(
                f"'{path}' is damaged, or holds what cannot be read safely ({' '.join(reason.split())}). Take"
                ' another copy, or write it again with torch.save(model.state_dict(), FILE).') from e
        raise ValueError(
            f"Refused '{path}': loading it would execute code, it holds {_shown(names)}. Where you trust it, load it"
            ' once with the code that wrote it and save its state dict, torch.save(model.state_dict(), FILE).') from e
    except Exception as e:  # a damaged file can raise anything
        raise ValueError(f"'{path}' is no checkpoint, or it is damaged ({type(e).__name__}).") from e
    if damaged:
        raise ValueError(f"'{path}' is damaged: the checksum of '{damaged}' in it is wrong. Take another copy.")
    if not isinstance(checkpoint, dict):
        raise ValueError(f"'{path}' holds a {type(checkpoint).__name__}, not a state dict.")
    if not all(isinstance(key, str) for key in checkpoint):
        raise ValueError(f"'{path}' is no state dict: its keys are no names.")
    return checkpoint


# -- the networks in it ------------------------------------------------------------------------------------------------

class Network(NamedTuple):
    """A network in a checkpoint file.

    Args:
        place: Where it stands, such as "['state_dict']", with its prefix.
        state_dict: Its tensors, by our names.
        is_ema: Is it a moving average of the weights?
        others: Keys of the same state dict that are not its own.
    """
    place: str
    state_dict: Dict[str, Any]
    is_ema: bool
    others: List[str]

    @property
    def kind(self) -> str:
        """Name of the model that its tokens tell."""
        if 'cls_token' not in self.state_dict:
            return 'hdkd_teacher'
        return 'hdkd_student' if 'dist_token' in self.state_dict else 'hdkd_student_plain'


def _find_dicts(values: Dict[Any, Any], place: str = '', depth: int = _DEPTH) -> Iterator[Tuple[str, Dict[str, Any]]]:
    """The dict itself and those in it, with their places."""
    yield place, values
    for key, value in values.items() if depth else ():
        if isinstance(value, dict):
            yield from _find_dicts(value, f'{place}[{key!r}]', depth - 1)


def find_networks(checkpoint: Dict[str, Any]) -> List[Network]:
    """The HDKD networks in a checkpoint, ours or the published code's, without prefixes and by our names."""
    networks = []
    for place, values in _find_dicts(checkpoint):
        names = [name for name in values if isinstance(name, str)]
        prefixes = {
            name[:-len(first)] for name in names for first in _FIRST_WEIGHTS
            if name.endswith(first) and isinstance(values[name], torch.Tensor) and name[:-len(first)][-1:] in ('', '.')}
        for prefix in sorted(prefixes):
            longer = tuple(p for p in prefixes if p != prefix and p.startswith(prefix))
            own = [name for name in names if name.startswith(prefix) and not name.startswith(longer or ('\0',))]
            words = re.split(r'\W|_', f'{place}.{prefix}'.lower())
            networks.append(Network(
                f'{place}{prefix and f" {prefix}*"}'.strip(),
                convert_state_dict({name[len(prefix):]: values[name] for name in own}), 'ema' in words,
                [name for name in names if not name.startswith(tuple(prefixes))]))
    return networks


def _shown(names: Sequence[str], number: int = 8) -> str:
    return ', '.join(list(names)[:number]) + (', ...' if len(names) > number else '') or 'none'


def _describe_keys(checkpoint: Dict[str, Any]) -> str:
    """The keys of a file, and the first ones of dicts in it."""
    inner = [
        f"those of '{key}': {_shown([str(k) for k in value], 4)}" for key, value in checkpoint.items()
        if isinstance(value, dict) and value]
    return '; '.join([f'its keys: {_shown(list(checkpoint))}', *inner[:4]])


def _is_same(a: Dict[str, Any], b: Dict[str, Any]) -> bool:
    """Do two state dicts hold the same tensors?"""
    return a.keys() == b.keys() and all(
        isinstance(a[name], torch.Tensor) and isinstance(b[name], torch.Tensor) and a[name].dtype == b[name].dtype
        and torch.equal(a[name], b[name]) for name in a)


def choose_network(
        checkpoint: Dict[str, Any],
        path: PathLike,
        model_name: Optional[str] = None,
        use_ema: bool = True,
) -> Network:
    """The network of a checkpoint that is meant. What is left aside is said.

    Args:
        checkpoint: As `read_checkpoint` returns it.
        path: Its file, for messages.
        model_name: Model name, which tells a student from a teacher where both are there.
        use_ema: Take the moving average of the weights where there is one, as timm does, else the weights.

    Raises:
        ValueError: if there is none, or several that differ.
    """
    networks = find_networks(checkpoint)
    if not networks:
        raise ValueError(
            f"Not a checkpoint of an HDKD network, '{path}' has no stage 1 and head ({_describe_keys(checkpoint)}).")
    if len(networks) > 1 and model_name is not None:
        kind = model_name.removesuffix('_s4')
        networks = [network for network in networks if network.kind == kind] or networks
    averages = [network for network in networks if network.is_ema]
    if averages and not use_ema and len(averages) == len(networks):
        raise ValueError(f"'{path}' holds nothing but a moving average ({averages[0].place}): take --use-ema.")
    if averages and len(averages) < len(networks):
        wanted = averages if use_ema else [network for network in networks if not network.is_ema]
        aside = next(network for network in networks if network.is_ema != use_ema)
        _logger.warning(
            f"'{path}' holds weights and their moving average: {wanted[0].place} is taken, not {aside.place}"
            f" ({'--no-use-ema' if use_ema else '--use-ema'} takes that).")
        networks = wanted
    networks = [
        network for i, network in enumerate(networks)
        if not any(_is_same(network.state_dict, other.state_dict) for other in networks[:i])]
    if len(networks) > 1:
        places = ', '.join(f'{network.place} ({network.kind})' for network in networks)
        named = 'Name the one that is meant by --model, or save' if len({n.kind for n in networks}) > 1 else 'Save'
        raise ValueError(
            f"'{path}' holds several networks: {places}. {named} its state dict alone, torch.save(STATE_DICT, FILE).")
    network, = networks
    others = [name for name in network.others if name != 'n_averaged']  # a counter of torch's AveragedModel
    if others:
        _logger.warning(
            f"'{path}' holds {len(others)} tensors beside the network {network.place}, left out: {_shown(others, 4)}.")
    return network


# -- what it says of them ----------------------------------------------------------------------------------------------

class Told(NamedTuple):
    """What a file says of the network in it.

    Args:
        model_name: Name of a timm model.
        model_args: Arguments of the network.
        label_names: Class names by index.
        cfg: How images are prepared, keys of a `pretrained_cfg`.
        source: Where it is said.
    """
    model_name: Optional[str] = None
    model_args: Dict[str, Any] = {}
    label_names: Optional[List[str]] = None
    cfg: Dict[str, Any] = {}
    source: str = ''


def _as_dict(value: Any) -> Dict[str, Any]:
    value = vars(value) if isinstance(value, argparse.Namespace) else value
    return value if isinstance(value, dict) else {}


def _size(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _read_label_names(values: Dict[str, Any]) -> Optional[List[str]]:
    """Class names by index, which a file has as a list, as name -> index or as index -> name."""
    for key in _LABEL_NAMES:
        names = values.get(key)
        if isinstance(names, dict) and names:
            pairs = [(index, name) if isinstance(name, str) else (name, index) for index, name in names.items()]
            by_index = {str(index): name for index, name in pairs}
            names = [by_index.get(str(index)) for index in range(len(names))]
            if None in names:
                _logger.warning(f"The classes of '{key}' are not numbered 0 to {len(names) - 1}: they are passed over.")
        if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
            return list(names)
    return None


def read_told(checkpoint: Dict[str, Any]) -> Told:
    """What a checkpoint says of its network: its 'arch', 'args' or 'config' as timm's, DeiT's and Lightning's trainers
    write them, and 'model_args' and 'label_names' as ours do."""
    told = Told()
    for place, values in [('', checkpoint), *((key, _as_dict(checkpoint.get(key))) for key in _SETTINGS)]:
        names = [values.get(key) for key in _MODEL_NAMES]
        name = next((n.split('.')[0] for n in names if isinstance(n, str) and timm.is_model(n.split('.')[0])), None)
        args = _read_args(place, values)
        if name or args:
            what = f"its '{place}'" if place else "its 'arch'"
            told = told._replace(
                model_name=told.model_name or name, model_args={**args, **told.model_args},
                source=f'{told.source} and {what}' if told.source else what)
        told = told._replace(label_names=told.label_names or _read_label_names(values))
    return told


def _read_args(place: str, values: Dict[str, Any]) -> Dict[str, Any]:
    """Arguments of a network in a trainer's settings, which stand in `place` of a checkpoint."""
    if not place:
        return {}
    args: Dict[str, Any] = dict(values) if place == 'model_args' else {}
    for key in ('model_kwargs', 'model_args'):
        args.update(_as_dict(values.get(key)))
    size = _size(values.get('input_size'))
    if isinstance(size, tuple) and len(size) == 3:  # as in timm, (C, H, W)
        args.setdefault('in_chans', size[0])
        args.setdefault('img_size', size[1:])
    elif isinstance(size, int):
        args.setdefault('img_size', size)
    for key, argument in _ARGUMENTS.items():
        if isinstance(values.get(key), (int, str, list, tuple)):
            args.setdefault(argument, values[key])
    return {key: _size(value) for key, value in args.items() if value is not None}


def read_told_beside(path: PathLike) -> Told:
    """What the run says of the network of which `path` is the training state: its best/config.json, or where none is
    saved yet the run's config.yaml."""
    folder = Path(path).absolute().parent
    saved = folder / 'best' / 'config.json'
    if saved.is_file():
        config = _as_dict(read_json(saved))
        cfg, args = (_as_dict(config.get(key)) for key in ('pretrained_cfg', 'model_args'))
        args = {key: _size(value) for key, value in args.items()}
        size = cfg.get('input_size')
        if isinstance(size, list) and len(size) == 3:
            args.setdefault('img_size', tuple(size[1:]))
        return Told(
            config.get('architecture'), args, _read_label_names(config),
            {key: _size(cfg[key]) for key in _PREPROCESSING if key in cfg}, f"'{saved}'")
    for place in (folder, folder.parent):
        if (place / 'config.yaml').is_file():
            settings = read_yaml(place / 'config.yaml')
            role = 'teacher' if place != folder and folder.name == 'teacher' else 'model'
            name = str(settings.get(role)).split('.')[0]
            args = dict(_as_dict(settings.get('teacher_kwargs' if role == 'teacher' else 'model_kwargs')))
            args.update({key: settings[key] for key in ('img_size', 'in_chans') if settings.get(key)})
            return Told(name if timm.is_model(name) else None, args, None, {}, f"'{place / 'config.yaml'}'")
    return Told()
