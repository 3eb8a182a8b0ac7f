import copy

import pytest
import torch
from torch import nn

from hdkd_timm.layers.recompute import checkpoint_blocks


@pytest.mark.parametrize('norm', [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_same_gradients_and_statistics(norm):
    blocks = nn.Sequential(*[nn.Sequential(nn.Conv2d(4, 4, 1), norm(4), nn.GELU()) for _ in range(2)])
    again, x = copy.deepcopy(blocks), torch.randn(3, 4, 5, 5)
    blocks(x).square().mean().backward()
    checkpoint_blocks(again, x).square().mean().backward()
    for p, q in zip(blocks.parameters(), again.parameters()):
        torch.testing.assert_close(q.grad, p.grad)
    for b, c in zip(blocks.buffers(), again.buffers()):
        torch.testing.assert_close(c, b)
    assert {m.momentum for m in again.modules() if isinstance(m, norm)} == {0.1}


def test_only_the_inputs_of_blocks_are_kept():
    blocks, x = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(3)]), torch.randn(2, 8)
    calls = []
    for block in blocks:
        block[0].register_forward_hook(lambda *_: calls.append(1))
    output = checkpoint_blocks(blocks, x)
    assert len(calls) == 3
    output.sum().backward()
    assert len(calls) == 6  # each block was computed a second time
