"""A constant added to the logits of a network, in its classifier's bias, so that every loader and export has it."""

from typing import Sequence

import torch
from torch import nn

__all__ = ['add_logit_bias']


def add_logit_bias(model: nn.Module, bias: Sequence[float], what: str = 'The model') -> None:
    """Add a constant to each logit of a network, in place. Both heads of a distilled network get it, and so their mean.

    Args:
        model: A timm model.
        bias: What is added, one number per class, (K,).
        what: Description of the model for messages.

    Raises:
        ValueError: if a classifier is not a layer with one bias per class.
    """
    heads = model.get_classifier()
    heads = heads if isinstance(heads, (tuple, list)) else [heads]
    for head in heads:
        own = getattr(head, 'bias', None)
        if not isinstance(own, torch.Tensor) or own.shape != (len(bias),):
            raise ValueError(
                f'{what} has a classifier without one bias per class ({type(head).__name__}, {len(bias)} classes), so'
                ' its logits cannot be shifted.'
            )
    with torch.no_grad():
        for head in heads:
            head.bias += head.bias.new_tensor(list(bias))
