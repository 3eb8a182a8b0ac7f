"""CBAM, convolutional block attention, in the form of the published code.

Paper: `CBAM: Convolutional Block Attention Module` - https://arxiv.org/abs/1807.06521
"""

import torch
import torch.fx
from timm.layers import is_exportable
from torch import nn

from .gelu import Gelu
from .mean_max import mean_max, mean_max_exportable

__all__ = ['Cbam', 'ChannelAttention', 'SpatialAttention']

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
        y = x * self.channel(x)
        gate = self.spatial(y)
        if not torch.jit.is_scripting():  # noqa: SIM102, TorchScript skips the branch in this form only
            if torch.jit.is_tracing() or torch.compiler.is_exporting():
                return x + y * gate  # the same; Core ML has no addcmul
        return torch.addcmul(x, y, gate)
