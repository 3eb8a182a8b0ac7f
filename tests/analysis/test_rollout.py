"""Attention rollout of known attention, and of image sizes that are not multiples of the patch size."""

import pytest
import timm
import torch
from helpers import TINY_STUDENT, TINY_TEACHER
from torch import nn

import hdkd_timm  # noqa: F401
from hdkd_timm.analysis.rollout import attention_rollout


def test_rollout_of_known_attention():
    """In every block, the class token attends to one patch, and the distillation token to another one."""
    model = timm.create_model('hdkd_student', **TINY_STUDENT).eval()
    grid = model.patch_embed.grid_size
    tokens = 2 + grid[0] * grid[1]

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn_drop, self.fused_attn = nn.Identity(), False

        def forward(self, x):
            attention = torch.eye(tokens)[None, None].repeat(len(x), 1, 1, 1)
            attention[..., 0, :] = torch.eye(tokens)[2]  # the first patch
            attention[..., 1, :] = torch.eye(tokens)[tokens - 1]  # the last one
            self.attn_drop(attention)
            return x

    for block in model.blocks:
        block.attn = Fixed()
    maps = attention_rollout(model, torch.randn(3, 3, 32, 32))
    assert maps.shape == (3, 2, 32, 32)
    assert (maps[:, 0].flatten(1).argmax(1) < 32 * 8).all()
    assert (maps[:, 0, 24:, 24:] == 0).all()
    assert (maps[:, 1, :8, :8] == 0).all()
    assert maps[:, 1, -1, -1].min() == 1


@pytest.mark.parametrize('pad', [True, False])
def test_rollout_of_odd_sizes(pad):
    model = timm.create_model('hdkd_student', **{**TINY_STUDENT, 'img_size': (61, 40)}, dynamic_img_pad=pad).eval()
    maps = attention_rollout(model, torch.randn(2, 3, 61, 40))
    assert maps.shape == (2, 2, 61, 40)
    assert torch.isfinite(maps).all()
    assert (maps[..., 32:].max() == 0) == (not pad)  # what has no token
    assert model.blocks[0].attn.fused_attn == bool(timm.layers.use_fused_attn())
    vit = timm.create_model('deit_tiny_distilled_patch16_224', img_size=64).eval()
    assert attention_rollout(vit, torch.randn(1, 3, 64, 64)).shape == (1, 2, 64, 64)
    with pytest.raises(ValueError, match='no attention blocks'):
        attention_rollout(timm.create_model('hdkd_teacher', **TINY_TEACHER), torch.randn(1, 3, 32, 32))
