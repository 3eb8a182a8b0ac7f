"""BatchNorm and GELU that keep one tensor for the backward pass instead of two."""

from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import nn

from .gelu import Gelu, gelu
from .recompute import runs_plain

__all__ = ['norm_gelu']


class _NormGelu(torch.autograd.Function):
    """GELU of a BatchNorm in training mode: the norm's output, which GELU needs for its gradient, is computed again.

    (B, C, H, W) -> (B, C, H, W), and mean and 1 / deviation of each channel, (C,), which are not differentiable.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        running_mean: Optional[torch.Tensor],
        running_var: Optional[torch.Tensor],
        momentum: float,
        eps: float,
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x, mean, rstd = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        return gelu(x), mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: Tuple, output: Tuple) -> None:
        x, weight, bias, _, _, _, ctx.eps = inputs
        _, mean, rstd = output
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, mean, rstd)

    @staticmethod
    def backward(ctx: Any, grad: Optional[torch.Tensor], *_: Any) -> Tuple[Optional[torch.Tensor], ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        if grad is None:
            return (None,) * 7
        if torch.is_grad_enabled():  # the gradient is to be differentiated again
            normed = F.batch_norm(x, None, None, weight, bias, True, 0.0, ctx.eps)
        else:  # the same from what is known
            var = (rstd.double() ** -2 - ctx.eps).to(rstd.dtype)
            normed = F.batch_norm(x, mean, var, weight, bias, False, 0.0, ctx.eps)
        grad = _gelu_backward(grad, normed)
        del normed
        grads = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, None, None, mean, rstd, True, ctx.eps, ctx.needs_input_grad[:3]
        )
        return *grads, None, None, None, None


def _gelu_backward(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Gradient of `gelu`, with oneDNN's kernel as there."""
    if x.stride(1) == 1:
        grad, x = grad.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)
        return torch.ops.aten.gelu_backward(grad.contiguous(), x).permute(0, 3, 1, 2)
    return torch.ops.aten.gelu_backward(grad, x)


def norm_gelu(x: torch.Tensor, norm: nn.Module, act: nn.Module) -> torch.Tensor:
    """`act(norm(x))`. When a BatchNorm and a GELU are trained on a CPU, the output of the former is not kept for the
    backward pass but computed again, which adds about a tenth to the time of the two layers.

    (B, C, H, W) -> (B, C, H, W). The modules are called as such where something may depend on it, see `runs_plain`.
    """
    is_pair = type(norm) is nn.BatchNorm2d and type(act) is Gelu
    if not is_pair or runs_plain(x, norm, act) or not _is_trained(norm) or not _has_statistics(x):
        return act(norm(x))
    statistics, momentum = (None, None), 0.0
    if norm.track_running_stats and norm.running_mean is not None:
        norm.num_batches_tracked.add_(1)
        statistics = norm.running_mean, norm.running_var
        momentum = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    return _NormGelu.apply(x, norm.weight, norm.bias, *statistics, momentum, norm.eps)[0]


def _is_trained(norm: nn.BatchNorm2d) -> bool:
    """Whether a BatchNorm is in training mode, with weights of enough precision to undo 1 / deviation."""
    return norm.training and norm.weight is not None and norm.weight.dtype in (torch.float32, torch.float64)


def _has_statistics(x: torch.Tensor) -> bool:
    """Whether there are several values of each channel; of others it is the BatchNorm that says what is wrong."""
    return x.dim() == 4 and x.numel() > x.shape[1]
