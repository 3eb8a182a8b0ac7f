import pytest
import torch

from hdkd_timm.layers.mbcsa import MbcsaBlock


@pytest.mark.parametrize('attn', ['cbam', 'se'])
def test_shapes(attn):
    x = torch.randn(2, 8, 7, 10)
    assert MbcsaBlock(8, 12, stride=2, attn=attn)(x).shape == (2, 12, 4, 5)
    assert MbcsaBlock(8, 8, attn=attn)(x).shape == x.shape


def test_shortcut():
    block, x = MbcsaBlock(8, 8).eval(), torch.randn(2, 8, 6, 6)
    torch.nn.init.zeros_(block.bn3.weight)
    torch.testing.assert_close(block(x), x)
    block = MbcsaBlock(8, 12, stride=2).eval()
    torch.nn.init.zeros_(block.bn3.weight)
    torch.testing.assert_close(block(x), block.shortcut.proj(block.shortcut.pool(x)))


def test_unknown_attention():
    with pytest.raises(ValueError, match="attn must be 'cbam' or 'se', got 'eca'"):
        MbcsaBlock(8, 8, attn='eca')


def test_what_is_kept_for_the_backward_pass():
    """Of the wide maps the inputs of two norms, of the depthwise convolution and of CBAM, of the narrow ones those of
    the first and the last norm."""
    block, x = MbcsaBlock(8, 8), torch.randn(2, 8, 8, 8, requires_grad=True)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        block(x)
    sizes = list(kept.values())
    assert (sizes.count(4 * x.numel()), sizes.count(x.numel())) == (4, 2)
