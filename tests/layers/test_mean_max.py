import pytest
import torch

from hdkd_timm.layers.mean_max import mean_max


@pytest.mark.parametrize('dims', [[1], [2, 3]])
def test_mean_max_compiled(dims):
    compiled = torch.compile(mean_max, backend='aot_eager', fullgraph=True)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)  # no equal maxima
    weights = torch.randn(2, *x.amax(dims, keepdim=True).shape, dtype=x.dtype)
    gradients = []
    for pools in (mean_max(x, dims), compiled(x, dims)):
        assert torch.equal(pools[0], x.mean(dims, keepdim=True))
        assert torch.equal(pools[1], x.amax(dims, keepdim=True))
        gradients.append(torch.autograd.grad(sum((weights[i] * pools[i]).sum() for i in range(2)), x)[0])
    torch.testing.assert_close(*gradients)
    ones = torch.ones(2, 3, 4, 5, requires_grad=True)  # of equal maxima the first has all, as in the published code
    compiled(ones, dims)[1].sum().backward()
    assert ones.grad.flatten(dims[0], dims[-1]).movedim(dims[0], 0)[0].eq(1).all()
    assert ones.grad.sum() == compiled(ones, dims)[1].numel()


@pytest.mark.parametrize('dims', [[1], [2, 3]])
def test_mean_max(dims):
    x = torch.randint(4, (2, 3, 4, 5)).double()  # with equal maxima
    x.requires_grad_()
    weights = torch.randn(2, *x.amax(dims, keepdim=True).shape, dtype=x.dtype)

    def gradient(pools):
        return torch.autograd.grad(sum((weights[i] * pools[i]).sum() for i in range(2)), x)[0]

    expected = x.mean(dims, keepdim=True), x.amax(dims, keepdim=True)
    actual = mean_max(x, dims)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])
    torch.testing.assert_close(gradient(actual), gradient(expected))
    distinct = torch.randperm(60).double().view(1, 3, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mean_max(x, dims), distinct)
    assert torch.autograd.gradgradcheck(lambda x: mean_max(x, dims), distinct)
    per_image = torch.func.vmap(torch.func.grad(lambda x: sum(p.square().sum() for p in mean_max(x, dims))))
    torch.testing.assert_close(
        per_image(x[:, None]), torch.func.grad(lambda x: sum(p.square().sum() for p in mean_max(x, dims)))(x)[:, None]
    )
