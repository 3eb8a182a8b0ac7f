import copy

import pytest
import torch

from hdkd_timm.layers.cbam import Cbam, ChannelAttention, SpatialAttention, _gated_sum, _GatedSum


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


def pair(dtype, dilation=1):
    """Two with the same weights; a hook makes one of them run its parts as such."""
    torch.manual_seed(0)
    one = Cbam(32, dilation, dtype=dtype)
    plain = copy.deepcopy(one)
    plain.spatial.register_forward_hook(lambda *_: None)
    return plain, one


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('dilation', [1, 2])
def test_less_is_kept_for_the_same_gradients(layout, dtype, dilation):
    x = torch.randn(2, 32, 6, 7, dtype=torch.float64)
    x[0, :, 2] = x[0, 3, 2]  # equal maxima
    x = x.to(dtype).to(memory_format=layout).requires_grad_()
    weights, results, sizes = torch.randn_like(x), [], []
    for module in pair(dtype, dilation):
        kept = {}

        def pack(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = module(x)
        sizes.append(sum(numel == x.numel() for numel in kept.values()))
        results.append([output, *torch.autograd.grad(output, (x, *module.parameters()), weights)])
    assert output.grad_fn.name().startswith('_GatedSum')
    assert sizes == [2, 1]
    for expected, actual in zip(*results):
        torch.testing.assert_close(actual, expected)
        assert actual.stride() == expected.stride()


def test_the_same_under_autocast():
    x = torch.randn(2, 32, 6, 7).bfloat16().requires_grad_()
    results = []
    for module in pair(torch.float32):
        with torch.autocast('cpu', torch.bfloat16):
            output = module(x)
        results.append([output, *torch.autograd.grad(output.float().square().sum(), (x, *module.parameters()))])
    assert output.grad_fn.name().startswith('_GatedSum')
    for expected, actual in zip(*results):
        assert actual.dtype == expected.dtype
        assert (actual - expected).norm() < 0.01 * expected.norm()


def test_derivatives_of_any_order():
    torch.manual_seed(0)
    x, gate, weight = torch.randn(2, 4, 5, 5), torch.rand(2, 4, 1, 1), torch.randn(1, 2, 3, 3)
    inputs = [value.double().requires_grad_() for value in (x, gate, weight)]

    def one(*inputs):
        return _GatedSum.apply(*inputs, (1, 1), (1, 1))[0]

    def plain(*inputs):
        return _gated_sum(*inputs, (1, 1), (1, 1))

    assert torch.autograd.gradcheck(one, inputs)
    assert torch.autograd.gradgradcheck(one, inputs)
    x, gate, weight = (value.detach() for value in inputs)
    per_image = [
        torch.func.vmap(torch.func.grad(lambda x, f=f: f(x[None], gate[:1], weight).pow(3).sum()))(x)
        for f in (one, plain)
    ]
    torch.testing.assert_close(*per_image)
    x = torch.stack([x, x]).requires_grad_()[0]
    grads = torch.randn(3, 2, 4, 5, 5, dtype=torch.float64)
    batched = [torch.autograd.grad(f(x, gate, weight), x, grads, is_grads_batched=True)[0] for f in (one, plain)]
    torch.testing.assert_close(*batched)


def replaced(change):
    torch.manual_seed(0)
    cbam = Cbam(16)
    change(cbam.spatial)
    return cbam


class Adapter(torch.nn.Module):
    """Such as LoRA's, with the attributes of the layer that it wraps."""

    def __init__(self, conv):
        super().__init__()
        self.conv, self.scale = conv, torch.nn.Parameter(torch.tensor(2.0))
        self.weight, self.padding, self.dilation = conv.weight, conv.padding, conv.dilation

    def forward(self, x):
        return self.scale * self.conv(x)


@pytest.mark.parametrize(
    'change',
    [
        lambda spatial: setattr(spatial, 'conv', torch.nn.Conv2d(2, 1, 7, padding=3)),
        lambda spatial: setattr(spatial, 'conv', torch.nn.Conv2d(2, 1, 7, padding='same', bias=False)),
        lambda spatial: setattr(
            spatial, 'conv', torch.nn.Conv2d(2, 1, 7, padding=3, padding_mode='reflect', bias=False)
        ),
        lambda spatial: setattr(spatial, 'conv', Adapter(spatial.conv)),
    ],
)
def test_parts_that_were_replaced_are_run(change):
    cbam, x = replaced(change), torch.randn(2, 16, 8, 9)
    with torch.no_grad():
        expected = cbam(x)
    output = cbam(x.requires_grad_())
    torch.testing.assert_close(output, expected)
    output.square().sum().backward()
    assert all(p.grad is not None for p in cbam.parameters())


def test_spatial_gate_that_was_removed():
    cbam, x = Cbam(16), torch.randn(2, 16, 5, 6, requires_grad=True)
    cbam.spatial = torch.nn.Identity()
    y = x * cbam.channel(x)
    torch.testing.assert_close(cbam(x), x + y * y)


def test_forward_mode():
    cbam = Cbam(16).eval()
    x, v = torch.randn(2, 16, 5, 6).double(), torch.randn(2, 16, 5, 6).double()
    cbam = cbam.double()
    output, tangent = torch.func.jvp(cbam, (x,), (v,))
    step = 1e-6
    torch.testing.assert_close(tangent, (cbam(x + step * v) - cbam(x - step * v)) / (2 * step), rtol=1e-5, atol=1e-5)
