"""Class names of a network by index: which it has, whether they fit the data's, and a head in the data's order."""

import logging
from typing import Any, List, Optional, Sequence

import torch
from torch import nn

_logger = logging.getLogger(__name__)

__all__ = ['describe_orders', 'has_ambiguous_order', 'match_classes', 'match_label_names']


def match_label_names(model: nn.Module, given: Optional[Sequence[str]], what: str) -> Optional[List[str]]:
    """Class names of a model by index: its own, else the given ones, else None.

    Args:
        model: A timm model; its own names are the `label_names` of its `pretrained_cfg`.
        given: Names from the user.
        what: Description of the model for messages.

    Raises:
        ValueError: if the names are not unique, if their number is not the number of classes, or if the model's own
            names differ from the given ones.
    """
    own = model.pretrained_cfg.get('label_names') or None
    if given:
        given = _check_label_names(list(given), model.num_classes, f'{what}, names given')
    if own:
        try:
            own = _check_label_names(own, model.num_classes, what)
        except ValueError as e:
            if not given:
                raise ValueError(f'{e} Specify its classes by index, --label-names NAME ...') from e
            _logger.warning(f'{e} Using the names given.')
            return given
    if given and own and given != own:
        raise ValueError(
            f'{what} has its own class names, {", ".join(own)}, which differ from the given ones, {", ".join(given)}:'
            ' omit these.'
        )
    return own or given or None


def _check_label_names(names: Any, num_classes: int, what: str) -> List[str]:
    """Class names by index, as a list.

    Raises:
        ValueError: if they are not unique strings, one per class.
    """
    if isinstance(names, dict):  # index -> name, which timm accepts too
        keys = [str(i) for i in range(len(names))]
        by_key = {str(key): name for key, name in names.items()}
        names = [by_key[key] for key in keys] if set(by_key) == set(keys) else names
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f'{what}: label_names must be a list of names, got {str(names)[:80]}.')
    if len(names) != num_classes:
        raise ValueError(f'{what}: {len(names)} label names for the {num_classes} classes of the model.')
    repeated = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if repeated is not None:
        raise ValueError(f"{what}: duplicate label name '{repeated}'.")
    return list(names)


def match_classes(
    model: nn.Module,
    classes: Sequence[str],
    label_names: Optional[Sequence[str]] = None,
    what: str = 'Teacher',
) -> None:
    """Check that a teacher has the classes of the data, and bring its head, in place, into their order.

    A model with class names of its own must have the same names in the same order. Without them only the number of
    classes can be compared; that is enough where every trainer sorts the names alike, otherwise `label_names` are
    required.

    Args:
        model: A timm model.
        classes: Class names of the data by index.
        label_names: Class names of the model by index. Where their order differs from the data's, the head is
            reordered.
        what: Description of the model for messages.

    Raises:
        ValueError: if the classes differ, if their order is ambiguous, or if the head cannot be reordered.
    """
    classes = list(classes)
    names = match_label_names(model, label_names, what)
    if names and names != classes:
        different = [name for name in names if name not in classes] or [name for name in classes if name not in names]
        if different or not label_names:
            reason = (
                f"class '{different[0]}' is not in both"
                if different
                else ('the order differs (repeat its names with --teacher-label-names to reorder its head)')
            )
            raise ValueError(
                f'{what}: its classes ({", ".join(names)}) are not those of the data ({", ".join(classes)}): {reason}.'
            )
        _reorder_classes(model, [names.index(name) for name in classes], what)
    if model.num_classes != len(classes):
        raise ValueError(
            f'{what} has {model.num_classes} classes, the data {len(classes)}: train it on them first, or distil its'
            ' features alone (hdkd distill --method fitnet, infonce, ...).'
        )
    if not names and has_ambiguous_order(classes):
        raise ValueError(
            f'{what} has no class names, and their order is ambiguous: {describe_orders(classes)}. Specify them by'
            ' index, --teacher-label-names NAME ...'
        )
    if label_names:
        model.pretrained_cfg = dict(model.pretrained_cfg, label_names=tuple(classes))


def _reorder_classes(model: nn.Module, order: Sequence[int], what: str) -> None:
    """Reorder the outputs of a model's classifiers: new index i is old index `order[i]`.

    Raises:
        ValueError: if a classifier is not a linear layer.
    """
    heads = model.get_classifier()
    heads = heads if isinstance(heads, (tuple, list)) else [heads]
    if not all(isinstance(head, nn.Linear) and head.out_features == len(order) for head in heads):
        raise ValueError(
            f'{what} has a head whose classes cannot be reordered: use a model with the class order of the data.'
        )
    with torch.no_grad():
        for head in heads:
            for parameter in head.parameters():
                parameter.copy_(parameter[list(order)].clone())


def has_ambiguous_order(classes: Sequence[str]) -> bool:
    """Whether trainers that sort class names as plain text index them differently from timm's natural order."""
    return list(classes) != sorted(classes)


def describe_orders(classes: Sequence[str]) -> str:
    """Both possible orders of class names, for a message."""
    return (
        f"the data has {', '.join(classes)}; a trainer that uses torchvision's ImageFolder, such as the published code,"
        f' has {", ".join(sorted(classes))}'
    )
