"""A constant added to the logits of a network, in its classifier's bias, so that every loader and export has it."""

from typing import List, Sequence

import torch
from torch import nn

from .._compat import image_size

__all__ = ['add_logit_bias']


@torch.no_grad()
def add_logit_bias(model: nn.Module, bias: Sequence[float], what: str = 'The model') -> None:
    """Add a constant to each logit of a network, in place. Where the logits are the mean of several classifiers, such
    as the two of a distilled network, each of them gets it.

    Args:
        model: A timm model, which is in eval mode afterwards.
        bias: What is added, one number per class, (K,).
        what: Description of the model for messages.

    Raises:
        ValueError: if its classifier has no bias per class, or one that is not added to the logits.
    """
    shift = torch.tensor([float(value) for value in bias])
    biases = _find_biases(model, len(shift))
    noise = torch.randn(2, model.in_chans, *image_size(model), generator=torch.Generator().manual_seed(0))
    before = model.eval()(noise) if biases else noise
    for own in biases:
        own += shift
    if not biases or not torch.allclose(model(noise), before + shift, atol=1e-3, rtol=1e-4):
        for own in biases:
            own -= shift
        raise ValueError(
            f'{what} has a classifier without a bias that is added to its {len(shift)} logits'
            f' ({type(model.get_classifier()).__name__}), so they cannot be shifted.'
        )


def _find_biases(model: nn.Module, num_classes: int) -> List[torch.Tensor]:
    """The biases of the layers of the classifier, or classifiers, that have one per class."""
    heads = model.get_classifier()
    heads = heads if isinstance(heads, (tuple, list)) else [heads]
    layers = [layer for head in heads for layer in head.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    return [layer.bias for layer in layers if layer.bias is not None and layer.bias.shape == (num_classes,)]
