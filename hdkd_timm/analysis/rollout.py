"""Attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928): attention flow from patches to prefix tokens."""

import torch
import torch.nn.functional as F
from torch import nn

from ..layers.attention_maps import attention_layers, collect_attention
from .grad_cam import NoMapsError


@torch.inference_mode()
def attention_rollout(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Attention rollout: the product over the blocks of the mean attention of the heads and the residual, half each.

    Args:
        model: A timm model with `blocks` of attention, such as HDKD's students and vision transformers.
        images: (B, C, H, W), normalised.

    Returns:
        Maps (B, tokens, H, W) of the prefix tokens (class, then distillation), with values from 0 to 1, the maximum of
        each map.

    Raises:
        NoMapsError: if the model has no such blocks or tokens.
    """
    layers = attention_layers(model)
    prefix = getattr(model, 'num_prefix_tokens', 0)
    grid_size = getattr(model, '_get_grid_size', None) or getattr(
        getattr(model, 'patch_embed', None), 'dynamic_feat_size', None
    )
    reduction = model.feature_info[-1].get('reduction') if getattr(model, 'feature_info', None) else None
    if not layers or not prefix or grid_size is None or reduction is None:
        raise NoMapsError(f'{type(model).__name__} has no attention blocks with a class token.')
    rollout = None
    with collect_attention(layers) as attentions:
        model(images)
    for attention in attentions:
        mixed = attention.float().mean(dim=1)  # (B, tokens, tokens)
        mixed = (mixed + torch.eye(mixed.shape[-1], device=mixed.device)) / 2
        rollout = mixed if rollout is None else mixed @ rollout
    height, width = images.shape[-2:]
    maps = rollout[:, :prefix, prefix:].unflatten(2, grid_size((height, width)))  # (B, tokens, rows, columns)
    size = (maps.shape[2] * reduction, maps.shape[3] * reduction)  # larger or smaller than the image
    maps = F.interpolate(maps, size=size, mode='bilinear', align_corners=False)
    maps = F.pad(maps, (0, max(0, width - size[1]), 0, max(0, height - size[0])))[..., :height, :width]
    return maps / maps.amax(dim=(2, 3), keepdim=True)
