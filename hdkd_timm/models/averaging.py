"""The average of the weights of networks that were fine-tuned from the same start.

Between a network and its fine-tuned copies, or between several of these, averages of the weights can be better than
the ends, and cost no more to run: WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903) and model soups (Wortsman et al.
2022, arXiv 2203.05482). Networks that started from different random weights have no such average.
"""

import logging
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

import torch
from torch import nn

from .._compat import image_size
from ..utils.files import PathLike
from .architecture import is_same_argument
from .checkpoint import find_label_settings, load_model
from .labels import match_label_names

_logger = logging.getLogger(__name__)

__all__ = ['Averageable', 'average_weights', 'check_shares', 'load_averageable']


class Averageable(NamedTuple):
    """Networks that differ in their weights only.

    Args:
        model: The first of them, which says how all were built.
        model_args: The arguments that rebuild it.
        label_names: Their class names by index; None if they have none.
        problem: What their config.json says of images with any number of labels, see `save_model`.
        state_dicts: The weights of each.
    """

    model: nn.Module
    model_args: Dict[str, Any]
    label_names: Optional[List[str]]
    problem: Dict[str, Any]
    state_dicts: List[Dict[str, torch.Tensor]]


def check_shares(shares: Sequence[float], number: int) -> List[float]:
    """Shares of so many networks in an average, checked.

    Raises:
        ValueError: if they are not one each, from 0 to 1, with a sum of 1.
    """
    if len(shares) != number or not all(0 <= share <= 1 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        given = ', '.join(f'{share:g}' for share in shares)
        raise ValueError(f'Shares must be {number} numbers from 0 to 1 with a sum of 1, one per model, got {given}.')
    return list(shares)


def average_weights(
    state_dicts: Sequence[Mapping[str, torch.Tensor]], shares: Sequence[float]
) -> Dict[str, torch.Tensor]:
    """Weighted mean of the tensors of several networks.

    BatchNorm's running means and variances are averaged as well; integers, such as its count of batches, are the
    first network's.

    Args:
        state_dicts: Name -> tensor, the same names and shapes in each.
        shares: Weight of each network in the mean; see `check_shares`.

    Raises:
        ValueError: if the shares are not valid, or names or shapes differ.
    """
    shares = check_shares(shares, len(state_dicts))
    first = state_dicts[0]
    for other in state_dicts[1:]:
        _check_shapes(first, other)
    return {
        name: sum(share * each[name].double() for share, each in zip(shares, state_dicts)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in first.items()
    }


def _check_finite(model: nn.Module, name: PathLike) -> None:
    for key, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"'{name}' has weights that are not finite: '{key}'.")


def _check_shapes(first: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    for name in {**first, **other}:
        if _shape(first, name) != _shape(other, name):
            raise ValueError(
                f"Only networks of one architecture have an average: '{name}' is {_shape(first, name)} in the first,"
                f' {_shape(other, name)} in another.'
            )


def _shape(state_dict: Mapping[str, torch.Tensor], name: str) -> str:
    return ' x '.join(map(str, state_dict[name].shape)) or 'a number' if name in state_dict else 'missing'


def load_averageable(
    names: Sequence[PathLike], label_names: Optional[Sequence[str]] = None, **options: Any
) -> Averageable:
    """Load trained networks that are to be averaged.

    Args:
        names: Two or more, each as `load_model` accepts it.
        label_names: Class names by index, of networks without class names.
        options: Of `load_model`.

    Raises:
        FileNotFoundError, ValueError: as `load_model`; if there are fewer than two, or if their architecture, classes,
            image size, preprocessing or licence differ (named), or weights are not finite.
    """
    if len(names) < 2:
        raise ValueError(f'An average needs two models or more, got {", ".join(map(str, names)) or "none"}.')
    model, args = load_model(names[0], **options)
    _check_finite(model, names[0])
    labels = match_label_names(model, label_names, f"Model '{names[0]}'")
    found, state_dicts = _describe(model, labels), [{name: t.clone() for name, t in model.state_dict().items()}]
    for name in names[1:]:
        other, other_args = load_model(name, **options)
        _check_finite(other, name)
        described = _describe(other, match_label_names(other, label_names, f"Model '{name}'"))
        for key, value in found.items():
            if not is_same_argument(value, described[key]):
                raise ValueError(
                    f"'{names[0]}' and '{name}' have no average: {key} {_show(value)} and {_show(described[key])}."
                )
        state_dicts.append(other.state_dict())
        _check_shapes(state_dicts[0], state_dicts[-1])
        if not _computes_the_same(model, other):
            raise ValueError(
                f"'{names[0]}' and '{name}' have no average: with the same weights their outputs differ, so they were"
                f' built with other arguments, {args} and {other_args}.'
            )
    problem = find_label_settings(model)
    if problem.get('thresholds'):
        _logger.warning(
            f"The thresholds of the labels are those of '{names[0]}', which were not chosen for the average."
        )
    return Averageable(model, args, labels, problem, state_dicts)


@torch.inference_mode()
def _computes_the_same(model: nn.Module, other: nn.Module) -> bool:
    """Whether a network has the outputs of another one once it has its weights, which are loaded into it."""
    noise = torch.randn(1, model.in_chans, *image_size(model), generator=torch.Generator().manual_seed(0))
    model.load_state_dict(other.state_dict())
    return torch.allclose(model.eval()(noise), other.eval()(noise))


def _describe(model: nn.Module, labels: Optional[List[str]]) -> Dict[str, Any]:
    """What networks with an average have in common."""
    cfg = model.pretrained_cfg
    return {
        'architecture': cfg['architecture'],
        'number of classes': model.num_classes,
        'order of classes': labels,
        'image size': image_size(model),
        **{key: cfg.get(key) for key in ('mean', 'std', 'crop_pct', 'crop_mode', 'interpolation', 'problem_type')},
        'licence': cfg.get('license'),
    }


def _show(value: Any) -> str:
    return f'({", ".join(map(str, value))})' if isinstance(value, (list, tuple)) else str(value)
