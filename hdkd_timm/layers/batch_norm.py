"""BatchNorm with a GELU or a 1x1 convolution after it, which keep one tensor for the backward pass instead of two."""

from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import nn

from .gelu import Gelu, gelu
from .recompute import is_pointwise, pointwise_backward, runs_plain

__all__ = ['norm_conv', 'norm_gelu']


class _Normed(torch.autograd.Function):
    """GELU of a BatchNorm in training mode, or a 1x1 convolution of it if there is `conv_weight`: the norm's output,
    which both need for their gradients, is computed again.

    (B, C, H, W) -> (B, C, H, W), or (B, O, ceil(H / stride), ceil(W / stride)), and mean and 1 / deviation of each
    channel, (C,), which are not differentiable.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        conv_weight: Optional[torch.Tensor],
        stride: Tuple[int, int],
        running_mean: Optional[torch.Tensor],
        running_var: Optional[torch.Tensor],
        momentum: float,
        eps: float,
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x, mean, rstd = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        return gelu(x) if conv_weight is None else F.conv2d(x, conv_weight, stride=stride), mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: Tuple, output: Tuple) -> None:
        x, weight, bias, conv_weight, ctx.stride, _, _, _, ctx.eps = inputs
        _, mean, rstd = output
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, conv_weight, mean, rstd)

    @staticmethod
    def backward(ctx: Any, grad: Optional[torch.Tensor], *_: Any) -> Tuple[Optional[torch.Tensor], ...]:
        x, weight, bias, conv_weight, mean, rstd = ctx.saved_tensors
        if grad is None:
            return (None,) * 9
        needs_conv = ctx.needs_input_grad[3]
        if conv_weight is not None and not needs_conv:
            normed = x  # only its shape counts
        elif torch.is_grad_enabled():  # the gradient is to be differentiated again
            normed = F.batch_norm(x, None, None, weight, bias, True, 0.0, ctx.eps)
        else:  # the same from what is known
            var = (rstd.double() ** -2 - ctx.eps).to(rstd.dtype)
            normed = F.batch_norm(x, mean, var, weight, bias, False, 0.0, ctx.eps)
        grad_conv = None
        if conv_weight is None:
            grad = _gelu_backward(grad, normed)
        else:
            grad, grad_conv = pointwise_backward(grad, normed, conv_weight, ctx.stride, needs_conv)
        del normed
        grads = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, None, None, mean, rstd, True, ctx.eps, ctx.needs_input_grad[:3]
        )
        return *grads, grad_conv, None, None, None, None, None


def _gelu_backward(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Gradient of `gelu`, with oneDNN's kernel as there."""
    if x.stride(1) == 1:
        grad, x = grad.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)
        return torch.ops.aten.gelu_backward(grad.contiguous(), x).permute(0, 3, 1, 2)
    return torch.ops.aten.gelu_backward(grad, x)


def norm_gelu(x: torch.Tensor, norm: nn.Module, act: nn.Module) -> torch.Tensor:
    """`act(norm(x))`. When a BatchNorm and a GELU are trained on a CPU, the output of the former is not kept for the
    backward pass but computed again, which adds about a tenth to the time of these two layers.

    (B, C, H, W) -> (B, C, H, W). The modules are called as such where something may depend on it, see `runs_plain`.
    """
    if type(act) is not Gelu or not _can_recompute(x, norm, act):
        return act(norm(x))
    return _apply(x, norm, None, (1, 1))


def norm_conv(x: torch.Tensor, norm: nn.Module, conv: nn.Module) -> torch.Tensor:
    """`conv(norm(x))`, a BatchNorm and a 1x1 convolution, as `norm_gelu`; the norm's bias is kept too, and must not be
    changed before the backward pass.

    (B, C, H, W) -> (B, O, ceil(H / stride), ceil(W / stride))
    """
    if not is_pointwise(conv) or not _can_recompute(x, norm, conv):
        return conv(norm(x))
    return _apply(x, norm, conv.weight, conv.stride)


def _apply(
    x: torch.Tensor, norm: nn.BatchNorm2d, conv_weight: Optional[torch.Tensor], stride: Tuple[int, int]
) -> torch.Tensor:
    """`_Normed` with the statistics of a BatchNorm, which it updates."""
    statistics, momentum = (None, None), norm.momentum or 0.0
    if norm.track_running_stats:
        statistics = norm.running_mean, norm.running_var
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            momentum = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    return _Normed.apply(x, norm.weight, norm.bias, conv_weight, stride, *statistics, momentum, norm.eps)[0]


def _can_recompute(x: torch.Tensor, norm: nn.Module, after: nn.Module) -> bool:
    """Whether `_Normed` does what a norm and the module after it do."""
    return type(norm) is nn.BatchNorm2d and not runs_plain(x, norm, after) and _is_trained(norm) and _has_statistics(x)


def _is_trained(norm: nn.BatchNorm2d) -> bool:
    """Whether a BatchNorm is in training mode, with weights of enough precision to undo 1 / deviation."""
    return norm.training and norm.weight is not None and norm.weight.dtype in (torch.float32, torch.float64)


def _has_statistics(x: torch.Tensor) -> bool:
    """Whether there are several values of each channel; of others it is the BatchNorm that says what is wrong."""
    return x.dim() == 4 and x.numel() > x.shape[1]
