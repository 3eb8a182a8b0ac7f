import pytest
import torch
from torch import nn

from hdkd_timm.layers.patch_embed import PatchEmbed


def without_norms(*args, **kwargs):
    """A layer that returns its patch vectors."""
    layer = PatchEmbed(*args, **kwargs)
    layer.norm1 = layer.proj = layer.norm2 = nn.Identity()
    return layer


def test_order_within_a_patch():
    x = torch.randn(2, 3, 4, 6)
    patches = without_norms(3, 12, (2, 2), (4, 6))(x)
    assert patches.shape == (2, 2, 3, 12)
    patch = x[1, :, 2:4, 4:6]  # (C, ph, pw)
    assert torch.equal(patches[1, 1, 2], torch.cat([patch[:, 0, 0], patch[:, 0, 1], patch[:, 1, 0], patch[:, 1, 1]]))


@pytest.mark.parametrize('dynamic_size', [False, True])
def test_map_that_is_not_a_whole_number_of_patches(dynamic_size):
    x = torch.randn(1, 3, 5, 7)
    padded = without_norms(3, 12, (2, 2), (5, 7), dynamic_size=dynamic_size)(x)
    cropped = without_norms(3, 12, (2, 2), (5, 7), dynamic_size=dynamic_size, pad=False)(x)
    assert padded.shape == (1, 3, 4, 12)
    assert cropped.shape == (1, 2, 3, 12)
    assert torch.equal(padded[:, :2, :3], cropped)
    assert torch.equal(padded[0, 2, 3, :3], x[0, :, 4, 6])  # the corner
    assert padded[0, 2, 3, 3:].eq(0).all()


def test_nominal_size_can_change():
    layer = without_norms(3, 12, (2, 2), (4, 4))
    layer.set_feat_size((5, 8))
    assert layer.grid_size == layer.get_grid_size((5, 8)) == (3, 4)
    assert layer(torch.randn(1, 3, 5, 8)).shape == (1, 3, 4, 12)
