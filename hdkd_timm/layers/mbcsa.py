"""MBCSA, the convolutional block that HDKD's teacher and student share."""

import torch
from timm.layers import DropPath, SEModule
from torch import nn

from .batch_norm import norm_conv, norm_gelu
from .cbam import Cbam, cbam_conv
from .gelu import Gelu
from .reparam import ReparamLayer, fold_batch_norms

__all__ = ['Downsample', 'MbcsaBlock']


class Downsample(nn.Module):
    """Shortcut of the first block of a stage: max pooling to half the size, then a 1x1 projection.

    (B, in_chs, H, W) -> (B, out_chs, ceil(H / 2), ceil(W / 2)), or the same size with stride 1.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int = 2, device=None, dtype=None):
        super().__init__()
        self.pool = nn.MaxPool2d(3, stride=stride, padding=1)
        self.proj = nn.Conv2d(in_chs, out_chs, 1, bias=False, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(self.pool(x))


class MbcsaBlock(ReparamLayer):
    """MBCSA, mobile channel-spatial attention: an inverted residual with CBAM before its last convolution.

    BN -> 1x1 (stride) -> BN -> GELU -> depthwise 3x3 -> BN -> GELU -> attention -> 1x1 -> BN, plus the shortcut.
    With `attn='se'` it is the MBConv of the paper's ablation, with squeeze-and-excitation instead of CBAM.

    (B, in_chs, H, W) -> (B, out_chs, ceil(H / stride), ceil(W / stride))

    Args:
        in_chs: Input channels.
        out_chs: Output channels.
        stride: 2 in the first block of a stage, otherwise 1 (`in_chs` and `out_chs` must then be equal).
        attn: 'cbam' or 'se'.
        drop_path: Stochastic depth rate of the residual branch.
        dilation: Distance of the positions that the convolutions see. 2 in a stage that keeps its size, also in its
            first block in spite of `stride`: every second position of the output is what the stride would give, but for
            the averages of the channel attention.

    Raises:
        ValueError: if `attn` is unknown, or CBAM has too few channels.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        stride: int = 1,
        attn: str = 'cbam',
        drop_path: float = 0.0,
        dilation: int = 1,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        mid_chs = 4 * in_chs
        is_first = stride == 2
        stride = 1 if dilation > 1 else stride
        self.pre_norm = nn.BatchNorm2d(in_chs, **dd)
        self.conv_pw = nn.Conv2d(in_chs, mid_chs, 1, stride=stride, bias=False, **dd)
        self.bn1 = nn.BatchNorm2d(mid_chs, **dd)
        self.act1 = Gelu()
        self.conv_dw = nn.Conv2d(
            mid_chs, mid_chs, 3, padding=dilation, dilation=dilation, groups=mid_chs, bias=False, **dd
        )
        self.bn2 = nn.BatchNorm2d(mid_chs, **dd)
        self.act2 = Gelu()
        if attn == 'cbam':
            self.attn = Cbam(mid_chs, dilation, **dd)
        elif attn == 'se':
            self.attn = SEModule(mid_chs, rd_channels=max(1, in_chs // 4), bias=False, act_layer=Gelu, **dd)
        else:
            raise ValueError(f"attn must be 'cbam' or 'se', got {attn!r}.")
        self.conv_pwl = nn.Conv2d(mid_chs, out_chs, 1, bias=False, **dd)
        self.bn3 = nn.BatchNorm2d(out_chs, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.shortcut = Downsample(in_chs, out_chs, stride, **dd) if is_first else nn.Identity()

    @torch.jit.ignore
    def _fold(self) -> None:
        fold_batch_norms(self.conv_pw, self.bn1, self.pre_norm)
        fold_batch_norms(self.conv_dw, self.bn2)
        fold_batch_norms(self.conv_pwl, self.bn3)
        self.pre_norm = self.bn1 = self.bn2 = self.bn3 = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._check_mode()
        shortcut = self.shortcut(x)
        if torch.jit.is_scripting():
            x = self.act1(self.bn1(self.conv_pw(self.pre_norm(x))))
            x = self.act2(self.bn2(self.conv_dw(x)))
            x = self.conv_pwl(self.attn(x))
        else:  # the same in less memory
            x = norm_gelu(norm_conv(x, self.pre_norm, self.conv_pw), self.bn1, self.act1)
            x = norm_gelu(self.conv_dw(x), self.bn2, self.act2)
            x = cbam_conv(x, self.attn, self.conv_pwl)
        return shortcut + self.drop_path(self.bn3(x))
