import copy

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from hdkd_timm.layers.batch_norm import norm_conv, norm_gelu
from hdkd_timm.layers.gelu import Gelu
from hdkd_timm.layers.recompute import pointwise_backward, runs_plain

LAYOUTS = [torch.contiguous_format, torch.channels_last]
AFTER = ['gelu', 'conv of stride 1', 'conv of stride 2']


class Normed(nn.Module):
    """A norm and a GELU or a convolution, called as such or at once."""

    def __init__(self, norm, after, plain=False):
        super().__init__()
        self.norm, self.after, self.plain = norm, after, plain

    def forward(self, x):
        if self.plain:
            return self.after(self.norm(x))
        return (norm_gelu if isinstance(self.after, Gelu) else norm_conv)(x, self.norm, self.after)


def make_after(name, chs, dtype):
    return Gelu() if name == 'gelu' else nn.Conv2d(chs, 5, 1, stride=int(name[-1]), bias=False, dtype=dtype)


def pair(after='gelu', dtype=torch.float64, chs=3, **kwargs):
    """The two modules called as such, and at once, with the same weights."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(chs, dtype=dtype, **kwargs)
    if kwargs.get('affine', True):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
    one = Normed(norm, make_after(after, chs, dtype))
    plain = copy.deepcopy(one)
    plain.plain = True
    return plain, one


def images(dtype=torch.float64, layout=torch.contiguous_format, shape=(2, 3, 4, 5)):
    torch.manual_seed(1)
    x = 3 * torch.randn(shape, dtype=torch.float64) + 2
    x[:, 1] = 0.5  # a channel of a single value
    return x.to(dtype).to(memory_format=layout).requires_grad_()


def is_one(output):
    return output.grad_fn.name().startswith('_Normed')


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize('momentum', [0.1, 0.0, None])
@pytest.mark.parametrize('after', AFTER)
def test_as_the_two_modules(layout, dtype, momentum, after):
    plain, one = pair(after, torch.float32 if dtype == torch.bfloat16 else dtype, momentum=momentum)
    for module in (plain, one):
        module.after.to(dtype)
    x = images(dtype, layout)
    for _ in range(2):  # the statistics of two batches
        outputs = [module(x) for module in (plain, one)]
        assert is_one(outputs[1])
        assert torch.equal(*outputs)
    assert outputs[0].stride() == outputs[1].stride()
    assert all(torch.equal(p, q) for p, q in zip(plain.buffers(), one.buffers()))
    weights = torch.randn_like(outputs[0])
    expected, actual = (
        torch.autograd.grad(y, (x, *module.parameters()), weights) for y, module in zip(outputs, (plain, one))
    )
    for p, q in zip(expected, actual):
        torch.testing.assert_close(q, p)
        assert q.stride() == p.stride()


@pytest.mark.parametrize('after', AFTER)
def test_less_is_kept(after):
    x = images()
    for module, number in zip(pair(after), (2, 1)):
        kept = {}

        def pack(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            module(x)
        assert sum(numel == x.numel() for numel in kept.values()) == number


@pytest.mark.parametrize(
    ('after', 'frozen'), [*((after, value) for after in AFTER for value in ('x', 'weight', 'bias')), (AFTER[1], 'conv')]
)
def test_what_is_frozen_has_no_gradient(after, frozen):
    x, (plain, one) = images(), pair(after)
    gradients = []
    for module in (plain, one):
        inputs = dict(x=x.detach().requires_grad_(frozen != 'x'), **dict(module.norm.named_parameters()))
        if after != 'gelu':
            inputs['conv'] = module.after.weight
        inputs[frozen].requires_grad_(False)
        output = module(inputs['x'])
        output.square().sum().backward()
        gradients.append([value.grad for value in inputs.values()])
    assert is_one(output) == (frozen != 'x')
    for p, q in zip(*gradients):
        torch.testing.assert_close(q, p)
    assert sum(value is None for value in gradients[1]) == 1


@pytest.mark.parametrize('after', AFTER)
def test_forward_over_reverse(after):
    """A product with the Hessian."""
    x, v = images().detach(), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    products = []
    for module in pair(after, track_running_stats=False):

        def loss(x, module=module):
            return module(x).pow(3).sum()

        products.append(torch.func.jvp(torch.func.grad(loss), (x,), (v,))[1])
    torch.testing.assert_close(*products)
    assert products[1].any()


def test_statistics_that_are_not_tracked_stay():
    plain, one = pair()
    for module in (plain, one):
        module.norm.track_running_stats = False  # afterwards, as users freeze them
    output = one(images())
    assert is_one(output)
    assert torch.equal(output, plain(images()))
    assert all(torch.equal(p, q) for p, q in zip(plain.buffers(), one.buffers()))
    assert one.norm.running_mean.eq(0).all()


@pytest.mark.parametrize(
    ('shape', 'message'),
    [((1, 3, 1, 1), 'Expected more than 1 value per channel'), ((2, 3, 4), 'expected 4D input')],
)
def test_the_checks_of_the_norm(shape, message):
    _, one = pair()
    with pytest.raises(ValueError, match=message):
        one(torch.randn(shape, dtype=torch.float64, requires_grad=True))
    assert one.norm.running_var.eq(1).all()


@pytest.mark.parametrize('x_dtype', [torch.float32, torch.bfloat16])
def test_the_same_under_autocast(x_dtype):
    plain, one = pair(AFTER[1], torch.float32)
    x, results = images(x_dtype), []
    for module in (plain, one):
        with torch.autocast('cpu', torch.bfloat16):
            output = module(x)
        results.append([output, *torch.autograd.grad(output.float().pow(3).sum(), (x, *module.parameters()))])
    assert is_one(output)
    for expected, actual in zip(*results):
        assert actual.dtype == expected.dtype
        assert (actual - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize(
    'conv',
    [
        nn.Conv2d(3, 5, 1),
        nn.Conv2d(3, 5, 3, bias=False),
        nn.Conv2d(3, 5, 1, padding=1, bias=False),
        nn.Conv2d(3, 3, 1, groups=3, bias=False),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 5, 1, bias=False)),
    ],
)
def test_other_convolutions_are_called(conv):
    plain, one = pair()
    plain.after = one.after = conv.double()
    output = one(images())
    assert not is_one(output)
    torch.testing.assert_close(output, plain(images()))


@pytest.mark.parametrize('after', AFTER)
def test_no_images(after):
    plain, one = pair(after)
    assert one(images()[:0]).shape == plain(images()[:0]).shape == (0, *plain(images()).shape[1:])


def test_frozen_convolution_needs_no_norm(monkeypatch):
    _, one = pair(AFTER[1])
    one.after.weight.requires_grad_(False)
    x, masks = images(), []

    def spy(*args):
        masks.append(args[-1])
        assert args[1].data_ptr() == x.data_ptr()
        return pointwise_backward(*args)

    monkeypatch.setattr('hdkd_timm.layers.batch_norm.pointwise_backward', spy)
    one(x).sum().backward()
    assert masks == [False]


@pytest.mark.parametrize('momentum', [0.1, None])
def test_norm_that_counts_no_batches(momentum):
    plain, one = pair(momentum=momentum)
    for module in (plain, one):
        module.norm.num_batches_tracked = None
    assert torch.equal(one(images()), plain(images()))
    assert all(torch.equal(p, q) for p, q in zip(plain.buffers(), one.buffers()))


@pytest.mark.parametrize('after', AFTER)
def test_derivatives_of_any_order(after):
    plain, one = pair(after, track_running_stats=False)
    x = images(shape=(2, 3, 3, 3)) + torch.randn(2, 3, 3, 3, dtype=torch.float64)
    weights = [value.detach().requires_grad_() for value in one.parameters()]

    def call(x, *weights, module=one):
        return torch.func.functional_call(module, dict(zip(dict(module.named_parameters()), weights)), (x,))

    x = x.detach().requires_grad_()
    assert is_one(call(x, *weights))
    assert torch.autograd.gradcheck(call, (x, *weights))
    assert torch.autograd.gradgradcheck(call, (x, *weights))
    hessians = []
    for module in (plain, one):

        def loss(weight, module=module):
            return call(x.detach(), weight, *weights[1:], module=module).square().sum()

        hessians.append(torch.func.jacrev(torch.func.grad(loss))(weights[0].detach()))
    torch.testing.assert_close(*hessians)
    batches = torch.randn(4, 2, 3, 3, 3, dtype=torch.float64)
    per_batch = [torch.func.vmap(torch.func.grad(lambda x, m=m: m(x).pow(3).sum()))(batches) for m in (plain, one)]
    torch.testing.assert_close(*per_batch)


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


@pytest.mark.parametrize('after', AFTER)
def test_no_gradient_arrives(after):
    _, one = pair(after)
    x = images()
    (gradient,) = torch.autograd.grad(NoGradient.apply(one(x)).sum() + x.sum(), x)
    assert gradient.eq(1).all()


def test_global_hooks():
    _, one = pair()
    calls = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: calls.append(type(module).__name__))
    try:
        assert not is_one(one(images()))
    finally:
        handle.remove()
    assert calls == ['BatchNorm2d', 'Gelu', 'Normed']
    assert is_one(one(images()))


def test_modules_are_called_where_something_may_depend_on_it():
    x = images()

    def changed(change):
        _, module = pair()
        change(module)
        return module

    calls = []
    for change in (
        lambda m: m.norm.register_forward_hook(lambda *_: calls.append('norm')) and None,
        lambda m: m.after.register_forward_pre_hook(lambda *_: calls.append('act')) and None,
        lambda m: m.after.register_full_backward_hook(lambda *_: calls.append('act backward')) and None,
        lambda m: setattr(m, 'after', nn.ReLU()),
        lambda m: setattr(m, 'norm', nn.GroupNorm(1, 3).double()),
        lambda m: setattr(m, 'norm', nn.BatchNorm2d(3, affine=False).double()),
        lambda m: setattr(
            m.norm, 'forward', lambda x: calls.append('norm again') or F.batch_norm(x, None, None, training=True)
        ),
        lambda m: m.eval(),
    ):
        module = changed(change)
        output = module(x)
        assert not is_one(output)
        output.sum().backward()
    assert calls == ['norm', 'act', 'act backward', 'norm again']
    _, module = pair()
    with torch.no_grad():
        assert module(x).grad_fn is None
    assert runs_plain(x.to('meta'), module)


@pytest.mark.parametrize('after', AFTER)
def test_transforms(after):
    x = images()
    plain, one = pair(after, track_running_stats=False)
    expected = plain(x)
    compiled = torch.compile(one, backend='aot_eager', fullgraph=True)(x)
    torch.testing.assert_close(compiled, expected)
    traced = torch.jit.trace(one, x)
    torch.testing.assert_close(traced(x), expected)
    assert 'PythonOp' not in str(traced.inlined_graph)
    assert '^_Normed' not in str(traced.inlined_graph)
    graph = fx.symbolic_trace(nn.Sequential(one))
    torch.testing.assert_close(graph(x), expected)
