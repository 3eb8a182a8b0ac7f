"""Mean and maximum of the same dimensions in one pass, with a backward pass that writes one gradient."""

import math
from typing import List, Tuple

import torch
import torch.fx

__all__ = ['mean_max', 'mean_max_exportable']


class _MeanMax(torch.autograd.Function):
    """Mean and maximum whose backward pass writes one gradient, instead of one for each and their intermediates.

    Equal maxima share the gradient, as in `amax`.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, dims: Tuple[int, ...]) -> Tuple[torch.Tensor, torch.Tensor]:
        return x.mean(dims, keepdim=True), x.amax(dims, keepdim=True)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.dims = inputs[1]
        ctx.save_for_backward(inputs[0], output[1])

    @staticmethod
    def backward(ctx, grad_mean: torch.Tensor, grad_max: torch.Tensor) -> Tuple[torch.Tensor, None]:
        x, x_max = ctx.saved_tensors
        is_max = (x.detach() - x_max.detach()).sign_().add_(1)  # 1 or 0; half the time of a bool mask on a CPU
        grad_max = grad_max / is_max.sum(ctx.dims, keepdim=True)
        return (is_max * grad_max).add_(grad_mean * (x_max.numel() / x.numel())), None


class _MeanMaxIndex(torch.autograd.Function):
    """The same for a compiler, which recomputes x for the backward pass and may not get the same bits: no x may equal
    the maximum then (NaN under autocast). Hence the index of the (first) maximum is saved.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, dims: Tuple[int, ...]) -> Tuple[torch.Tensor, torch.Tensor]:
        mean = x.mean(dims, keepdim=True)
        x_max, index = x.flatten(dims[0], dims[-1]).max(dims[0], keepdim=True)
        index = index.view(mean.shape)
        ctx.shape = [size if i in dims else 1 for i, size in enumerate(x.shape)]
        ctx.save_for_backward(index)
        return mean, x_max.view(mean.shape)

    @staticmethod
    def backward(ctx, grad_mean: torch.Tensor, grad_max: torch.Tensor) -> Tuple[torch.Tensor, None]:
        (index,) = ctx.saved_tensors
        number = math.prod(ctx.shape)
        is_max = index == torch.arange(number, device=index.device).view(ctx.shape)
        return grad_mean / number + torch.where(is_max, grad_max, 0), None


@torch.fx.wrap
def mean_max(x: torch.Tensor, dims: List[int]) -> Tuple[torch.Tensor, torch.Tensor]:
    """Mean and maximum over consecutive dimensions, which are kept with size 1.

    A module that calls it needs `torch.fx.wrap('mean_max')` for symbolic tracing, which cannot follow its branches.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102, TorchScript skips the branch in this form only
        if x.requires_grad and not torch.jit.is_tracing():  # a trace cannot hold an autograd function
            function = _MeanMaxIndex if torch.compiler.is_compiling() else _MeanMax
            return function.apply(x, tuple(dims))
    return x.mean(dims, keepdim=True), x.amax(dims, keepdim=True)


def mean_max_exportable(x: torch.Tensor, dims: List[int]) -> Tuple[torch.Tensor, torch.Tensor]:
    """`mean_max` in operators that more exporters take, such as XNNPACK's, which has a maximum of rows or columns only.

    (B, C, H, W) over [1], or over [2, 3].
    """
    mean = x.mean(dims, keepdim=True)
    if len(dims) == 1:
        return mean, x.permute(0, 2, 3, 1).amax(3, keepdim=True).permute(0, 3, 1, 2)
    return mean, x.amax(2, keepdim=True).amax(3, keepdim=True)
