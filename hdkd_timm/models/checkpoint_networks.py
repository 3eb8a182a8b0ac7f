"""The HDKD networks in a checkpoint file.

They are found by their keys, wherever the file has them ('state_dict', 'model', 'net', ...) and under whatever prefix
('module.', Lightning's 'model.', 'student.' of a distillation).
"""

import logging
import re
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch

from ..utils.files import PathLike
from .checkpoint_file import abbreviate
from .published import convert_state_dict

__all__ = ['Network', 'choose_network', 'find_networks']

_logger = logging.getLogger(__name__)

# the first weight of every HDKD network, in our names and in the published ones
_FIRST_WEIGHTS = ('stages.0.0.conv.weight', 'stage1.0.0.weight')
_MAX_DEPTH = 3  # of nested dicts that are searched


class Network(NamedTuple):
    """A network in a checkpoint file.

    Args:
        location: Keys of the dicts around it and prefix of its own, such as "['state_dict'] module.*".
        state_dict: Its tensors, with our names.
        is_ema: Whether it is a moving average of the weights.
        other_keys: Keys of the same state dict that do not belong to any network.
    """

    location: str
    state_dict: Dict[str, Any]
    is_ema: bool
    other_keys: List[str]

    @property
    def model_name(self) -> str:
        """Name of the model with the same tokens."""
        if 'cls_token' not in self.state_dict:
            return 'hdkd_teacher'
        return 'hdkd_student' if 'dist_token' in self.state_dict else 'hdkd_student_plain'


def find_networks(checkpoint: Dict[str, Any]) -> List[Network]:
    """The HDKD networks in a checkpoint, ours or the published code's, without prefixes and with our names."""
    networks = []
    for location, values in _iterate_dicts(checkpoint):
        names = [name for name in values if isinstance(name, str)]
        prefixes = {
            name[: -len(first)]
            for name in names
            for first in _FIRST_WEIGHTS
            if name.endswith(first) and isinstance(values[name], torch.Tensor) and name[: -len(first)][-1:] in ('', '.')
        }
        other_keys = [name for name in names if not name.startswith(tuple(prefixes))]
        for prefix in sorted(prefixes):
            longer = tuple(p for p in prefixes if p != prefix and p.startswith(prefix))
            own = [name for name in names if name.startswith(prefix) and not name.startswith(longer or ('\0',))]
            networks.append(
                Network(
                    f'{location} {prefix}*'.strip() if prefix else location,
                    convert_state_dict({name[len(prefix) :]: values[name] for name in own}),
                    'ema' in re.split(r'\W|_', f'{location}.{prefix}'.lower()),
                    other_keys,
                )
            )
    return networks


def _iterate_dicts(
    values: Dict[Any, Any],
    location: str = '',
    depth: int = _MAX_DEPTH,
) -> Iterator[Tuple[str, Dict[str, Any]]]:
    """The dict itself and the dicts in it, with their locations."""
    yield location, values
    for key, value in values.items() if depth else ():
        if isinstance(value, dict):
            yield from _iterate_dicts(value, f'{location}[{key!r}]', depth - 1)


def choose_network(
    checkpoint: Dict[str, Any],
    path: PathLike,
    model_name: Optional[str] = None,
    use_ema: bool = True,
) -> Network:
    """The network of a checkpoint to load. Logs a warning about everything that is ignored.

    Args:
        checkpoint: As `read_checkpoint` returns it.
        path: Its file, for messages.
        model_name: Model name, to choose between a student and a teacher in the same file.
        use_ema: Prefer the moving average of the weights where there is one, as timm does, or the weights.

    Raises:
        ValueError: if there is none, or if there are several that differ.
    """
    networks = find_networks(checkpoint)
    if not networks:
        raise ValueError(
            f"Not a checkpoint of an HDKD network, '{path}' has no stage 1 and head ({_describe_keys(checkpoint)})."
        )
    if len(networks) > 1 and model_name is not None:
        name = model_name.removesuffix('_s4')
        networks = [network for network in networks if network.model_name == name] or networks
    networks = _select_ema(networks, path, use_ema)
    networks = [
        network
        for i, network in enumerate(networks)
        if not any(_is_same(network.state_dict, other.state_dict) for other in networks[:i])
    ]
    if len(networks) > 1:
        found = ', '.join(f'{network.location} ({network.model_name})' for network in networks)
        advice = 'Choose one with --model, or save' if len({n.model_name for n in networks}) > 1 else 'Save'
        raise ValueError(
            f"'{path}' holds several networks: {found}. {advice} its state dict alone, torch.save(STATE_DICT, FILE)."
        )
    (network,) = networks
    ignored = [name for name in network.other_keys if name != 'n_averaged']  # a counter of torch's AveragedModel
    if ignored:
        number = f'{len(ignored)} tensor{"s" if len(ignored) > 1 else ""}'
        _logger.warning(
            f"'{path}': ignoring {number} outside the network {network.location}: {abbreviate(ignored, 4)}."
        )
    return network


def _select_ema(networks: List[Network], path: PathLike, use_ema: bool) -> List[Network]:
    """Of weights and their moving averages, keep the ones asked for.

    Raises:
        ValueError: if the weights are asked for and there are averages only.
    """
    averages = [network for network in networks if network.is_ema]
    if averages and not use_ema and len(averages) == len(networks):
        raise ValueError(f"'{path}' holds only a moving average ({averages[0].location}): use --use-ema.")
    if not averages or len(averages) == len(networks):
        return networks
    selected = [network for network in networks if network.is_ema == use_ema]
    other = next(network for network in networks if network.is_ema != use_ema)
    _logger.warning(
        f"'{path}' holds weights and their moving average: using {selected[0].location}, not {other.location}"
        f' ({"--no-use-ema" if use_ema else "--use-ema"} selects that).'
    )
    return selected


def _describe_keys(checkpoint: Dict[str, Any]) -> str:
    """The keys of a file, and the first ones of the dicts in it."""
    inner = [
        f"those of '{key}': {abbreviate([str(k) for k in value], 4)}"
        for key, value in checkpoint.items()
        if isinstance(value, dict) and value
    ]
    return '; '.join([f'its keys: {abbreviate(list(checkpoint))}', *inner[:4]])


def _is_same(a: Dict[str, Any], b: Dict[str, Any]) -> bool:
    """Whether two state dicts hold the same tensors."""
    return a.keys() == b.keys() and all(
        isinstance(a[name], torch.Tensor)
        and isinstance(b[name], torch.Tensor)
        and a[name].dtype == b[name].dtype
        and torch.equal(a[name], b[name])
        for name in a
    )
