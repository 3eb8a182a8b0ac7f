import pytest
import torch
from helpers import randomize_batch_stats
from torch import nn

from hdkd_timm.layers.mbcsa import MbcsaBlock
from hdkd_timm.layers.reparam import fold_batch_norms, is_fused


@pytest.mark.parametrize(
    'kwargs', [dict(kernel_size=3, padding=1), dict(kernel_size=3, padding=1, groups=4), dict(kernel_size=1, stride=2)]
)
def test_norm_after_a_convolution(kwargs):
    conv, norm = nn.Conv2d(4, 8, bias=False, **kwargs), nn.BatchNorm2d(8)
    model, x = randomize_batch_stats(nn.Sequential(conv, norm)).eval(), torch.randn(2, 4, 6, 6)
    expected = model(x)
    fold_batch_norms(conv, norm)
    torch.testing.assert_close(conv(x), expected, rtol=1e-5, atol=1e-5)


def test_norms_around_a_convolution():
    pre_norm, conv, norm = nn.BatchNorm2d(4), nn.Conv2d(4, 8, 1, stride=2, bias=False), nn.BatchNorm2d(8)
    model, x = randomize_batch_stats(nn.Sequential(pre_norm, conv, norm)).eval(), torch.randn(2, 4, 6, 6)
    expected = model(x)
    fold_batch_norms(conv, norm, pre_norm)
    torch.testing.assert_close(conv(x), expected, rtol=1e-5, atol=1e-5)


def test_layer_is_folded_once():
    block, x = randomize_batch_stats(MbcsaBlock(8, 8)).train(), torch.randn(2, 8, 6, 6)
    expected = block.eval()(x)
    assert not is_fused(block)
    block.train().reparameterize()
    assert is_fused(nn.Sequential(block))
    assert not block.training
    once = block(x)
    torch.testing.assert_close(once, expected, rtol=1e-4, atol=1e-5)
    block.reparameterize()
    assert torch.equal(block(x), once)
    with pytest.raises(RuntimeError, match='fused for inference, its BatchNorms are folded away: call eval'):
        block.train()(x)
    with pytest.raises(RuntimeError, match='the model is fused .*, the state dict is not: load it into a new model'):
        block.load_state_dict(MbcsaBlock(8, 8).state_dict())
    with pytest.raises(RuntimeError, match='the state dict is fused .*, the model is not'):
        MbcsaBlock(8, 8).load_state_dict(block.state_dict())
