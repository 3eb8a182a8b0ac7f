"""The attention matrices of a network's blocks, which timm's layers do not return."""

import contextlib
from typing import Any, Iterator, List

import torch
from torch import nn

__all__ = ['attention_layers', 'collect_attention']


def attention_layers(model: nn.Module) -> List[nn.Module]:
    """The attention layers of the blocks of a vision transformer or an HDKD student, in their order; may be empty."""
    layers = [getattr(block, 'attn', None) for block in getattr(model, 'blocks', ())]
    return [layer for layer in layers if hasattr(layer, 'attn_drop') and hasattr(layer, 'fused_attn')]


@contextlib.contextmanager
def collect_attention(layers: List[Any]) -> Iterator[List[torch.Tensor]]:
    """While it is open, each pass through one of the layers adds its attention after the softmax to a list.

    Args:
        layers: Those of `attention_layers`. They compute the whole matrix meanwhile, not with a fused kernel.

    Yields:
        The list, matrices (B, heads, N, N) in the order of the passes; N counts prefix tokens too.
    """
    attentions: List[torch.Tensor] = []
    with contextlib.ExitStack() as stack:
        for layer in layers:
            handle = layer.attn_drop.register_forward_pre_hook(lambda module, args: attentions.append(args[0]))
            stack.callback(handle.remove)
            stack.callback(setattr, layer, 'fused_attn', layer.fused_attn)
            layer.fused_attn = False
        yield attentions
