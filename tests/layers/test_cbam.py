import copy

import pytest
import torch

from hdkd_timm.layers.cbam import Cbam, ChannelAttention, SpatialAttention, _gated_sum, _GatedSum, cbam_conv
from hdkd_timm.layers.recompute import pointwise_backward


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


class WithConv(torch.nn.Module):
    def __init__(self, dilation, dtype):
        super().__init__()
        self.attn = Cbam(32, dilation, dtype=dtype)
        self.conv = torch.nn.Conv2d(32, 5, 1, bias=False, dtype=dtype)

    def forward(self, x):
        return cbam_conv(x, self.attn, self.conv)


def pair(dtype, dilation=1, has_conv=False):
    """Two with the same weights; a hook makes one of them run its parts as such."""
    torch.manual_seed(0)
    one = WithConv(dilation, dtype) if has_conv else Cbam(32, dilation, dtype=dtype)
    plain = copy.deepcopy(one)
    (plain.attn if has_conv else plain).spatial.register_forward_hook(lambda *_: None)
    return plain, one


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('dilation', [1, 2])
@pytest.mark.parametrize('has_conv', [False, True])
def test_less_is_kept_for_the_same_gradients(layout, dtype, dilation, has_conv):
    x = torch.randn(2, 32, 6, 7, dtype=torch.float64)
    x[0, :, 2] = x[0, 3, 2]  # equal maxima
    x = x.to(dtype).to(memory_format=layout).requires_grad_()
    results, sizes = [], []
    for module in pair(dtype, dilation, has_conv):
        kept = {}

        def pack(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = module(x)
        sizes.append(sum(numel == x.numel() for numel in kept.values()))
        results.append([output, *torch.autograd.grad(output.pow(3).sum(), (x, *module.parameters()))])
    assert output.grad_fn.name().startswith('_GatedSum')
    assert sizes == [3 if has_conv else 2, 1]
    for expected, actual in zip(*results):
        torch.testing.assert_close(actual, expected)
        assert actual.stride() == expected.stride()


@pytest.mark.parametrize('has_conv', [False, True])
def test_as_precise_under_autocast(has_conv):
    torch.manual_seed(1)
    x = torch.randn(2, 32, 6, 7).bfloat16().requires_grad_()

    def run(module, x):
        output = module(x)
        return [output, *torch.autograd.grad(output.to(torch.float64).square().sum(), (x, *module.parameters()))]

    expected = run(pair(torch.float64, has_conv=has_conv)[0], x.detach().double().requires_grad_())
    with torch.autocast('cpu', torch.bfloat16):
        plain, one = (run(module.float(), x) for module in pair(torch.float64, has_conv=has_conv))
    assert one[0].grad_fn.name().startswith('_GatedSum')
    for p, q, value in zip(plain, one, expected):
        assert q.dtype == p.dtype
        assert (q - value).norm() < 1.2 * (p - value).norm() < 0.02 * value.norm()


@pytest.mark.parametrize('has_conv', [False, True])
def test_derivatives_of_any_order(has_conv):
    torch.manual_seed(0)
    x, gate, weight, conv = (
        torch.randn(2, 4, 5, 5),
        torch.rand(2, 4, 1, 1),
        torch.randn(1, 2, 3, 3),
        torch.randn(4, 4, 1, 1),
    )
    inputs = [value.double().requires_grad_() for value in (x, gate, weight, *([conv] if has_conv else []))]

    def one(x, gate, weight, conv=None):
        return _GatedSum.apply(x, gate, weight, conv, (1, 1), (1, 1))[0]

    def plain(*inputs):
        return _gated_sum(*inputs, padding=(1, 1), dilation=(1, 1))

    assert torch.autograd.gradcheck(one, inputs)
    assert torch.autograd.gradgradcheck(one, inputs)
    x, gate, *weights = (value.detach() for value in inputs)
    per_image = [
        torch.func.vmap(torch.func.grad(lambda x, f=f: f(x[None], gate[:1], *weights).pow(3).sum()))(x)
        for f in (one, plain)
    ]
    torch.testing.assert_close(*per_image)
    x = torch.stack([x, x]).requires_grad_()[0]
    grads = torch.randn(3, 2, 4, 5, 5, dtype=torch.float64)
    batched = [torch.autograd.grad(f(x, gate, *weights), x, grads, is_grads_batched=True)[0] for f in (one, plain)]
    torch.testing.assert_close(*batched)


def test_convolution_that_is_frozen(monkeypatch):
    plain, one = pair(torch.float64, has_conv=True)
    x, results = torch.randn(2, 32, 6, 7, dtype=torch.float64, requires_grad=True), []
    masks = []

    def spy(*args):
        masks.append(args[-1])
        assert args[1].untyped_storage().data_ptr() == x.untyped_storage().data_ptr()  # nothing was computed again
        return pointwise_backward(*args)

    monkeypatch.setattr('hdkd_timm.layers.cbam.pointwise_backward', spy)
    for module in (plain, one):
        module.conv.weight.requires_grad_(False)
        output = module(x)
        results.append(torch.autograd.grad(output.pow(3).sum(), (x, *module.attn.parameters())))
    assert output.grad_fn.name().startswith('_GatedSum')
    assert masks == [False]
    for expected, actual in zip(*results):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    'change',
    [
        lambda m: m.conv.register_forward_hook(lambda *_: None) and None,
        lambda m: m.attn.channel.fc1.register_forward_hook(lambda *_: None) and None,
        lambda m: setattr(m, 'conv', torch.nn.Conv2d(32, 5, 1, stride=2, bias=False)),
        lambda m: setattr(m, 'conv', torch.nn.Conv2d(32, 5, 1)),
        lambda m: setattr(m, 'attn', torch.nn.Sigmoid()),
        lambda m: setattr(m.attn.spatial, 'conv', torch.nn.Conv2d(2, 1, 7, padding=3)),
        lambda m: setattr(m.conv, 'forward', lambda x: m.conv._conv_forward(x, 2 * m.conv.weight, None)),
        lambda m: setattr(m.attn, 'forward', lambda x: x.sigmoid()),
    ],
)
def test_convolution_that_is_called(change):
    _, module = pair(torch.float32, has_conv=True)
    change(module)
    x = torch.randn(2, 32, 6, 7, requires_grad=True)
    output = module(x)
    assert output.grad_fn.name() == 'ConvolutionBackward0'
    torch.testing.assert_close(output, module.conv(module.attn(x)))


def test_gate_of_another_precision(monkeypatch):
    _, module = pair(torch.float32, has_conv=True)
    x, calls = torch.randn(2, 32, 6, 7, requires_grad=True), []
    forward = ChannelAttention.forward
    monkeypatch.setattr(ChannelAttention, 'forward', lambda self, x: calls.append(x.dtype) or forward(self, x))
    with torch.autocast('cpu', torch.bfloat16):
        output = module(x)
        assert calls == [torch.float32]  # once
        expected = module.conv(module.attn(x))
    assert not output.grad_fn.name().startswith('_GatedSum')
    torch.testing.assert_close(output, expected)


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
