"""CBAM, convolutional block attention, in the form of the published code.

Paper: `CBAM: Convolutional Block Attention Module` - https://arxiv.org/abs/1807.06521
"""

from functools import partial
from typing import Any, Optional, Tuple

import torch
import torch.fx
import torch.nn.functional as F
from timm.layers import is_exportable
from torch import nn

from .gelu import Gelu
from .mean_max import mean_max, mean_max_exportable
from .recompute import is_pointwise, pointwise_backward, runs_plain

__all__ = ['Cbam', 'ChannelAttention', 'SpatialAttention', 'cbam_conv']

torch.fx.wrap('mean_max')


class ChannelAttention(nn.Module):
    """Channel gate: mean and maximum of each channel through one shared MLP.  (B, C, H, W) -> (B, C, 1, 1)"""

    def __init__(self, chs: int, rd_ratio: int = 16, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.exportable = is_exportable()
        self.fc1 = nn.Conv2d(chs, chs // rd_ratio, 1, bias=False, **dd)
        self.act = Gelu()
        self.fc2 = nn.Conv2d(chs // rd_ratio, chs, 1, bias=False, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = mean_max_exportable(x, [2, 3]) if self.exportable else mean_max(x, [2, 3])
        x = torch.cat(pooled, dim=2)  # (B, C, 2, 1)
        x = self.act(self.fc1(x)).sum(2, keepdim=True)  # fc2 is linear: summing before it is equivalent, and cheaper
        return self.fc2(x).sigmoid()


class SpatialAttention(nn.Module):
    """Spatial gate: a convolution over the mean and the maximum of all channels.  (B, C, H, W) -> (B, 1, H, W)"""

    def __init__(self, kernel_size: int = 7, dilation: int = 1, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.exportable = is_exportable()
        padding = dilation * (kernel_size // 2)
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=padding, dilation=dilation, bias=False, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = mean_max_exportable(x, [1]) if self.exportable else mean_max(x, [1])
        x = torch.cat(pooled, dim=1)  # (B, 2, H, W)
        return self.conv(x).sigmoid()


def _find_spatial_gate(
    y: torch.Tensor, weight: torch.Tensor, padding: Tuple[int, int], dilation: Tuple[int, int]
) -> Tuple[torch.Tensor, torch.Tensor]:
    """The pools of `SpatialAttention`, (B, 2, H, W), and its gate, (B, 1, H, W)."""
    pooled = torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], dim=1)
    return pooled, F.conv2d(pooled, weight.to(pooled.dtype), padding=padding, dilation=dilation).sigmoid()


class _GatedSum(torch.autograd.Function):
    """x + y * spatial(y), where y = x * gate, and a 1x1 convolution of it if there is `conv_weight`. Of these maps only
    x is kept, the others are computed again in the backward pass.

    x (B, C, H, W), gate (B, C, 1, 1), weight of the spatial gate (1, 2, K, K), of the convolution (O, C, 1, 1) or None
    -> (B, C, H, W) or (B, O, H, W), and what `_find_spatial_gate` returns, not differentiable. Equal maxima share the
    gradient, as in `amax`.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: torch.Tensor,
        gate: torch.Tensor,
        weight: torch.Tensor,
        conv_weight: Optional[torch.Tensor],
        padding: Tuple[int, int],
        dilation: Tuple[int, int],
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        y = x * gate
        pooled, spatial_gate = _find_spatial_gate(y, weight, padding, dilation)
        y = torch.addcmul(x, y, spatial_gate)
        return y if conv_weight is None else F.conv2d(y, conv_weight), pooled, spatial_gate

    @staticmethod
    def setup_context(ctx: Any, inputs: Tuple, output: Tuple) -> None:
        x, gate, weight, conv_weight, ctx.padding, ctx.dilation = inputs
        _, pooled, spatial_gate = output
        ctx.mark_non_differentiable(pooled, spatial_gate)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, gate, weight, conv_weight, pooled, spatial_gate)

    @staticmethod
    def backward(ctx: Any, grad: Optional[torch.Tensor], *_: Any) -> Tuple[Optional[torch.Tensor], ...]:
        x, gate, weight, conv_weight, pooled, spatial_gate = ctx.saved_tensors
        if grad is None:
            return (None,) * 6
        if torch.is_grad_enabled():  # the gradient is to be differentiated again
            function = partial(_gated_sum, padding=ctx.padding, dilation=ctx.dilation)
            weights = (weight,) if conv_weight is None else (weight, conv_weight)
            grads = torch.func.vjp(function, x, gate, *weights)[1](grad)
            return *grads, *(None,) * (6 - len(grads))
        y = x * gate
        grad_conv = None
        if conv_weight is not None:
            needs_conv = ctx.needs_input_grad[3]
            z = torch.addcmul(x, y, spatial_gate) if needs_conv else x
            grad, grad_conv = pointwise_backward(grad, z, conv_weight, (1, 1), needs_conv)
            del z
        grad_pooled, grad_weight, _ = torch.ops.aten.convolution_backward(
            torch.ops.aten.sigmoid_backward((grad * y).sum(1, keepdim=True), spatial_gate),
            pooled,
            weight.to(pooled.dtype),
            None,
            [1, 1],
            ctx.padding,
            ctx.dilation,
            False,
            [0, 0],
            1,
            [True, True, False],
        )
        grad_mean, grad_max = grad_pooled.split(1, dim=1)
        is_max = y.sub_(pooled[:, 1:]).sign_().add_(1)  # 1 or 0
        grad_y = is_max * (grad_max / is_max.sum(1, keepdim=True))
        del y, is_max
        grad_y = grad_y.add_(grad_mean / x.shape[1]).addcmul_(grad, spatial_gate)
        grad_x = torch.addcmul(grad, grad_y, gate)
        grad_gate = grad_y.mul_(x).sum([2, 3], keepdim=True)
        return grad_x, grad_gate, grad_weight.to(weight.dtype), grad_conv, None, None


def _gated_sum(
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    conv_weight: Optional[torch.Tensor] = None,
    *,
    padding: Tuple[int, int],
    dilation: Tuple[int, int],
) -> torch.Tensor:
    """What `_GatedSum` computes, in operators that can be differentiated any number of times."""
    y = x * gate
    y = torch.addcmul(x, y, _find_spatial_gate(y, weight, padding, dilation)[1])
    return y if conv_weight is None else F.conv2d(y, conv_weight.to(y.dtype))


def _is_published(spatial: nn.Module) -> bool:
    """Whether `_GatedSum` does what a module does: nothing in it was replaced, by an adapter or a quantised layer."""
    if type(spatial) is not SpatialAttention or type(spatial.conv) is not nn.Conv2d:
        return False
    conv = spatial.conv
    has_padding = not isinstance(conv.padding, str) and conv.padding_mode == 'zeros'
    return conv.bias is None and conv.stride == (1, 1) and conv.groups == 1 and has_padding


class Cbam(nn.Module):
    """CBAM with a residual connection around it, as published: x + y * spatial(y), where y = x * channel(x).

    Raises:
        ValueError: if there are fewer than 16 channels, the reduction of the channel gate.
    """

    def __init__(self, chs: int, dilation: int = 1, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        if chs < 16:
            raise ValueError(f"attn='cbam' needs at least 16 hidden channels (dims of 4 or more), got {chs}.")
        self.channel = ChannelAttention(chs, **dd)
        self.spatial = SpatialAttention(dilation=dilation, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gate(x, self.channel(x))

    def gate(self, x: torch.Tensor, channel_gate: torch.Tensor) -> torch.Tensor:
        """What follows the channel gate (B, C, 1, 1)."""
        if not torch.jit.is_scripting():  # noqa: SIM102, TorchScript skips the branch in this form only
            if _is_published(self.spatial) and not runs_plain(x, self.spatial) and x.dtype == channel_gate.dtype:
                conv = self.spatial.conv
                return _GatedSum.apply(x, channel_gate, conv.weight, None, conv.padding, conv.dilation)[0]
        y = x * channel_gate
        gate = self.spatial(y)
        if not torch.jit.is_scripting():  # noqa: SIM102, TorchScript skips the branch in this form only
            if torch.jit.is_tracing() or torch.compiler.is_exporting():
                return x + y * gate  # the same; Core ML has no addcmul
        return torch.addcmul(x, y, gate)


def cbam_conv(x: torch.Tensor, attn: nn.Module, conv: nn.Module) -> torch.Tensor:
    """`conv(attn(x))`. When a CBAM and a 1x1 convolution are trained on a CPU, the output of the former is not kept for
    the backward pass but computed again.

    (B, C, H, W) -> (B, O, H, W). The modules are called as such where something may depend on it, see `runs_plain`.
    """
    is_pair = type(attn) is Cbam and _is_published(attn.spatial) and is_pointwise(conv) and conv.stride == (1, 1)
    if not is_pair or runs_plain(x, attn, conv):
        return conv(attn(x))
    gate, spatial = attn.channel(x), attn.spatial.conv
    if x.dtype != gate.dtype:
        return conv(attn.gate(x, gate))
    return _GatedSum.apply(x, gate, spatial.weight, conv.weight, spatial.padding, spatial.dilation)[0]
