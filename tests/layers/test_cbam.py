import pytest
import torch

from hdkd_timm.layers.cbam import Cbam, ChannelAttention, SpatialAttention


def test_gates_by_hand():
    x = torch.randn(2, 16, 5, 6)
    channel, spatial = ChannelAttention(16), SpatialAttention()

    def mlp(pooled):
        return channel.fc2(channel.act(channel.fc1(pooled)))

    expected = (mlp(x.mean((2, 3), keepdim=True)) + mlp(x.amax((2, 3), keepdim=True))).sigmoid()
    torch.testing.assert_close(channel(x), expected)
    expected = spatial.conv(torch.stack([x.mean(1), x.amax(1)], dim=1)).sigmoid()
    torch.testing.assert_close(spatial(x), expected)
    cbam = Cbam(16)
    y = x * cbam.channel(x)
    torch.testing.assert_close(cbam(x), x + y * cbam.spatial(y))


def test_too_few_channels():
    with pytest.raises(ValueError, match='at least 16 hidden channels .*, got 15'):
        Cbam(15)


def test_symbolic_tracing():
    cbam, x = Cbam(16), torch.randn(2, 16, 5, 6)
    traced = torch.fx.symbolic_trace(cbam)
    assert [node.name for node in traced.graph.nodes if node.op == 'call_function' and 'mean_max' in node.name]
    torch.testing.assert_close(traced(x), cbam(x))


def test_compiled_gradient_under_autocast():
    """Kernels compute x anew, unrounded, for the backward pass: no x may equal the rounded maximum that was kept."""
    model, again = Cbam(16), Cbam(16)
    again.load_state_dict(model.state_dict())
    x = torch.randn(4, 16, 16, 16)
    for forward in (model, torch.compile(again, fullgraph=True)):
        with torch.autocast('cpu', torch.bfloat16):
            loss = forward(x).float().square().mean()
        loss.backward()
    gradients = [torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (model, again)]
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.99
