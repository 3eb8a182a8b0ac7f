"""What a distillation method sees of a timm network: logits, maps of its stages, distillation head, normalisation."""

from typing import Any, List, Sequence, Tuple

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.loader import adapt_to_chs
from torch import nn

__all__ = ['forward_stages', 'get_channel_stats', 'has_distillation_head']


def forward_stages(model: nn.Module, x: torch.Tensor, stages: Sequence[int]) -> Tuple[Any, List[torch.Tensor]]:
    """Logits, and maps of the stages, from one forward pass.

    Args:
        model: A timm model; with `forward_intermediates` and `forward_head` if stages are given.
        x: Images (B, C, H, W).
        stages: Stages from 1, in any order; may be empty.

    Returns:
        What the model returns, logits (B, K) or in distilled training a pair of them, and the maps (B, C_i, H_i, W_i)
        in the order of `stages`.
    """
    if not stages:
        return model(x), []
    in_network_order = sorted(stages)
    features, maps = model.forward_intermediates(x, [stage - 1 for stage in in_network_order])
    return model.forward_head(features), [maps[in_network_order.index(stage)] for stage in stages]


def has_distillation_head(model: nn.Module) -> bool:
    """Whether a model returns the pair (class logits, distillation logits) after `set_distilled_training()`."""
    return getattr(model, 'distilled', hasattr(model, 'set_distilled_training'))


def get_channel_stats(model: nn.Module) -> Tuple[torch.Tensor, torch.Tensor]:
    """Mean and std that normalise a model's input, (1, C, 1, 1) each, adapted to its channels as timm's loader does."""
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    in_chans = getattr(model, 'in_chans', 3)
    mean, std = (
        torch.tensor(adapt_to_chs(cfg.get(key) or default, in_chans), dtype=torch.float64).view(1, -1, 1, 1)
        for key, default in (('mean', IMAGENET_DEFAULT_MEAN), ('std', IMAGENET_DEFAULT_STD))
    )
    return mean, std
