"""Patches of a feature map to tokens, without a convolution."""

import math
from typing import Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ['PatchEmbed']


class PatchEmbed(nn.Module):
    """Patches of a feature map to tokens: LayerNorm -> linear -> LayerNorm.

    The vector of a patch lists its positions row by row, with all channels of a position together.

    (B, in_chs, H, W) -> (B, H / patch_size, W / patch_size, embed_dim), rounded up with `pad`, otherwise down;
    (B, H, W, embed_dim) with `overlap`.

    Args:
        in_chs: Channels of the map.
        embed_dim: Width of the tokens.
        patch_size: Positions of a patch along height and width.
        feat_size: Nominal size of the map, (H, W).
        dynamic_size: Accept maps of any size, not just the nominal one.
        pad: Pad a map with zeros to a whole number of patches; otherwise crop it.
        overlap: A patch begins at every position, of a map padded with zeros at the bottom and at the right.
        dilation: Distance of the positions of an overlapping patch.
    """

    dynamic_size: torch.jit.Final[bool]
    pad: torch.jit.Final[bool]
    overlap: torch.jit.Final[bool]

    def __init__(
        self,
        in_chs: int,
        embed_dim: int,
        patch_size: Tuple[int, int],
        feat_size: Tuple[int, int],
        dynamic_size: bool = False,
        pad: bool = True,
        overlap: bool = False,
        dilation: int = 1,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.patch_size = patch_size
        self.dynamic_size = dynamic_size
        self.pad = pad
        self.overlap = overlap
        self.dilation = dilation
        self.set_feat_size(feat_size)
        patch_dim = in_chs * patch_size[0] * patch_size[1]
        self.norm1 = nn.LayerNorm(patch_dim, **dd)
        self.proj = nn.Linear(patch_dim, embed_dim, **dd)
        self.norm2 = nn.LayerNorm(embed_dim, **dd)

    def set_feat_size(self, feat_size: Tuple[int, int]) -> None:
        """Set the nominal size of the map."""
        self.grid_size = self.get_grid_size(feat_size)
        # rows and columns to add to a map of the nominal size (negative: to crop from it)
        self.edge = tuple(g * p - s for g, p, s in zip(self.grid_size, self.patch_size, feat_size))

    def get_grid_size(self, feat_size: Sequence[int]) -> Tuple[int, int]:
        """Number of patches along height and width of a map of `feat_size` positions."""
        if self.overlap:
            return feat_size[0], feat_size[1]
        round_fn = math.ceil if self.pad else math.floor
        height, width = (round_fn(s / p) for s, p in zip(feat_size, self.patch_size))
        return height, width

    def _overlapping_patches(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, H, W, ph * pw * C)"""
        ph, pw = self.patch_size
        B, C, H, W = x.shape
        x = F.pad(x, (0, self.dilation * (pw - 1), 0, self.dilation * (ph - 1)))
        positions = []
        for i in range(ph):
            for j in range(pw):
                top, left = self.dilation * i, self.dilation * j
                positions.append(x[:, :, top : top + H, left : left + W])
        return torch.cat(positions, dim=1).permute(0, 2, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.overlap:
            return self.norm2(self.proj(self.norm1(self._overlapping_patches(x))))
        ph, pw = self.patch_size
        B, C, H, W = x.shape
        if self.dynamic_size:
            edge_h, edge_w = -(H % ph), -(W % pw)
            if self.pad:
                edge_h, edge_w = (ph + edge_h) % ph, (pw + edge_w) % pw
            x = F.pad(x, (0, edge_w, 0, edge_h))
            h, w = (H + edge_h) // ph, (W + edge_w) // pw
        else:
            h, w = self.grid_size
            edge_h, edge_w = self.edge
            if edge_h != 0 or edge_w != 0:
                x = F.pad(x, (0, edge_w, 0, edge_h))
        x = x.reshape(B, C, h, ph, w, pw).permute(0, 2, 4, 3, 5, 1)  # (B, h, w, ph, pw, C)
        x = x.flatten(3)  # no arithmetic of sizes, which Core ML cannot convert from a trace
        return self.norm2(self.proj(self.norm1(x)))
