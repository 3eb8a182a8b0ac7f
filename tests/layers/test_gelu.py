import pytest
import torch
import torch.nn.functional as F
from torch import fx

from hdkd_timm.layers.gelu import Gelu

LAYOUTS = {
    'contiguous': torch.contiguous_format,
    'channels-last': torch.channels_last,
}


def images(layout, shape=(2, 3, 4, 5), dtype=torch.float64):
    torch.manual_seed(0)
    return (3 * torch.randn(shape, dtype=dtype)).to(memory_format=LAYOUTS[layout]).requires_grad_()


@pytest.mark.parametrize('layout', LAYOUTS)
def test_gelu(layout):
    gelu, x = Gelu(), images(layout)
    weights = torch.randn_like(x)
    actual, expected = gelu(x), F.gelu(x)
    torch.testing.assert_close(actual, expected)
    assert actual.stride() == x.stride()
    gradients = [torch.autograd.grad((weights * y).sum(), x)[0] for y in (actual, expected)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].stride() == x.stride()
    assert torch.autograd.gradcheck(gelu, x)
    assert torch.autograd.gradgradcheck(gelu, x)


def test_parts_of_a_larger_tensor():
    x = images('channels-last', (2, 6, 8, 8))
    for part in (x[:, 1:4], x[:, :, ::2], x[1:], x[:, :1], x[..., :0]):
        torch.testing.assert_close(Gelu()(part), F.gelu(part))
    for x in (torch.randn(2, 3), torch.randn(2, 5, 3), torch.tensor(2.0)):
        torch.testing.assert_close(Gelu()(x), F.gelu(x))


@pytest.mark.parametrize('layout', LAYOUTS)
def test_transforms(layout):
    gelu, x = Gelu(), images(layout).detach()
    expected = F.gelu(x)
    torch.testing.assert_close(torch.func.vmap(gelu)(x), expected)
    torch.testing.assert_close(torch.func.jvp(gelu, (x,), (x,))[1], torch.func.jvp(F.gelu, (x,), (x,))[1])
    torch.testing.assert_close(torch.compile(gelu, backend='aot_eager', fullgraph=True)(x), expected)
    torch.testing.assert_close(torch.jit.script(gelu)(x), expected)
    torch.testing.assert_close(torch.jit.trace(gelu, images('contiguous').detach())(x), expected)
    torch.testing.assert_close(torch.export.export(gelu, (x,)).module()(x), expected)
    torch.testing.assert_close(fx.symbolic_trace(gelu)(x), expected)
    assert isinstance(gelu, torch.nn.GELU)


def test_contiguous_tensors_are_computed():
    """Those for which PyTorch calls oneDNN."""
    seen = []

    class Recorder(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is F.gelu:
                seen.append(args[0].is_contiguous())
            return func(*args, **(kwargs or {}))

    with Recorder():
        for layout in LAYOUTS:
            Gelu()(images(layout))
    assert seen == [True, True]
