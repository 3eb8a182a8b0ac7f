"""HDKD: a CNN teacher and a hybrid convolution + transformer student that share their convolutional stages.

Paper: `HDKD: Hybrid Data-Efficient Knowledge Distillation Network for Medical Image Classification`
    - https://arxiv.org/abs/2407.07516

Published code (MIT): https://github.com/omarsherif200/HDKD at f7c7dae. With the same weights the networks here give the
same outputs, losses and gradients; `checkpoint_filter_fn` reads its checkpoints.

Both networks start with three convolutional stages whose maps have the same shapes, so that a plain MSE can pull the
student's maps towards the teacher's:

    image -> stage 1: stem layers, (B, 64, H/2, W/2)
          -> stage 2: MBCSA blocks, (B, 96, H/4, W/4)
          -> stage 3: MBCSA blocks, (B, 192, H/8, W/8)

The teacher pools stage 3 and classifies it. The student cuts it into patches of 2 x 2 positions and runs a small
transformer with a class and a distillation token on them.

Image sizes: every convolution rounds up, so an image of H x W pixels gives maps of ceil(H/2), ceil(H/4) and ceil(H/8)
rows. Where the student's stage 3 map is not a whole number of patches (H or W between two multiples of 16), it is
padded with zeros at the bottom and at the right; with `dynamic_img_pad=False` the last row or column gets no token
instead.
"""

from collections import OrderedDict
from functools import partial
import logging
import math
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple, Type, Union

import torch
from torch import nn

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import (
    Attention,
    DropPath,
    Mlp,
    SelectAdaptivePool2d,
    calculate_drop_path_rates,
    get_device_dtype,
    global_pool_nlc,
    resample_abs_pos_embed,
    to_2tuple,
)
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg
from .._compat import ADAPTS_FIRST_CONV, adapt_first_conv, record_model_args, update_model_input_size
from ..layers.batch_norm import norm_gelu
from ..layers.gelu import Gelu
from ..layers.mbcsa import MbcsaBlock
from ..layers.patch_embed import PatchEmbed
from ..layers.recompute import checkpoint_blocks
from ..layers.reparam import ReparamLayer, fold_batch_norms
from ..utils.image_size import simplify_image_size, to_height_width
from .pretrained import hub_id, release_overlay
from .published import convert_state_dict

_logger = logging.getLogger(__name__)

__all__ = ['HDKDTeacher', 'HDKDStudent']

MIN_IMG_SIZE = 28


class StemLayer(ReparamLayer):
    """Conv 3x3 -> BatchNorm -> GELU.  (B, in_chs, H, W) -> (B, out_chs, ceil(H / stride), ceil(W / stride))"""

    def __init__(self, in_chs: int, out_chs: int, stride: int = 1, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.conv = nn.Conv2d(in_chs, out_chs, 3, stride=stride, padding=1, bias=False, **dd)
        self.bn = nn.BatchNorm2d(out_chs, **dd)
        self.act = Gelu()

    @torch.jit.ignore
    def _fold(self) -> None:
        fold_batch_norms(self.conv, self.bn)
        self.bn = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._check_mode()
        if torch.jit.is_scripting():
            return self.act(self.bn(self.conv(x)))
        return norm_gelu(self.conv(x), self.bn, self.act)  # the same in less memory


class Block(nn.Module):
    """Transformer block, as published: the MLP has no norm before it.  (B, N, dim) -> (B, N, dim)"""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int,
        mlp_ratio: float = 4.0,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.norm = nn.LayerNorm(dim, **dd)
        self.attn = Attention(
            dim, num_heads=num_heads, attn_head_dim=head_dim, attn_drop=attn_drop, proj_drop=proj_drop, **dd
        )
        self.mlp = Mlp(dim, hidden_features=int(dim * mlp_ratio), drop=proj_drop, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path(self.attn(self.norm(x)))
        x = x + self.drop_path(self.mlp(x))
        return x


def _build_stages(
    in_chans: int,
    depths: Sequence[int],
    dims: Sequence[int],
    stem_stride: int,
    attn: str,
    drop_path_rates: Sequence[float],
    output_stride: int = 32,
    device=None,
    dtype=None,
) -> Tuple[nn.Sequential, List[Dict[str, Any]], int]:
    """The three convolutional stages of both networks, their feature_info, and the dilation of the last map."""
    dd = {'device': device, 'dtype': dtype}
    if len(dims) != 3 or any(d < 1 for d in depths[:3]):
        raise ValueError(f'The networks have three stages of at least one layer, got depths {depths} and dims {dims}.')
    if stem_stride not in (2, 4):
        raise ValueError(f'stem_stride must be 2 or 4, got {stem_stride}.')
    if output_stride not in (8, 16, 32):
        raise ValueError(f'output_stride must be 8, 16 or 32, got {output_stride}.')
    stages = [
        nn.Sequential(
            *[
                StemLayer(dims[0] if i else in_chans, dims[0], stride=1 if i else stem_stride, **dd)
                for i in range(depths[0])
            ]
        )
    ]
    rates = iter(drop_path_rates)
    reduction, dilation = stem_stride, 1
    feature_info = [dict(num_chs=dims[0], reduction=reduction, module='stages.0')]
    for stage, (in_chs, out_chs, depth) in enumerate(zip(dims[:-1], dims[1:], depths[1:]), 1):
        if 2 * reduction > output_stride:
            dilation = 2  # of the last stage alone: the others' strides are 8 at most
        else:
            reduction *= 2
        block_args = dict(attn=attn, dilation=dilation, **dd)
        stages.append(
            nn.Sequential(
                *[
                    MbcsaBlock(
                        out_chs if i else in_chs, out_chs, stride=1 if i else 2, drop_path=next(rates), **block_args
                    )
                    for i in range(depth)
                ]
            )
        )
        feature_info.append(dict(num_chs=out_chs, reduction=reduction, module=f'stages.{stage}'))
    return nn.Sequential(*stages), feature_info, dilation


def _check_img_size(img_size: Union[int, Tuple[int, int]]) -> Tuple[int, int]:
    height, width = to_height_width(simplify_image_size(img_size, 'img_size'))
    if min(height, width) < MIN_IMG_SIZE:
        raise ValueError(f'img_size {height} x {width} is too small, the networks need at least {MIN_IMG_SIZE} pixels.')
    return height, width


def _take_indices(num_features: int, indices: Optional[Union[int, Sequence[int]]]) -> List[int]:
    """Absolute indices of the features to take: all for None, the last n for an int, else those of a sequence."""
    if indices is None:
        indices = num_features
    if isinstance(indices, int):
        if not 0 < indices <= num_features:
            raise ValueError(f'Cannot take the last {indices} of {num_features} features.')
        return list(range(num_features - indices, num_features))
    for i in indices:
        if not -num_features <= i < num_features:
            raise ValueError(f'Feature index {i} is out of range for {num_features} features.')
    return [i % num_features for i in indices]


def _reset_parameters(module: nn.Module) -> None:
    """PyTorch's default initialisation of every layer, as published."""
    for m in module.modules():
        if hasattr(m, 'reset_parameters'):
            m.reset_parameters()


def _format_map(x: torch.Tensor, output_fmt: str) -> torch.Tensor:
    return x.flatten(2).transpose(1, 2) if output_fmt == 'NLC' else x


class HDKDTeacher(nn.Module):
    """HDKD teacher: three convolutional stages, average pooling, two linear layers without a nonlinearity between.

    Args:
        img_size: Nominal image size, recorded for timm's data config; the network accepts any size.
        in_chans: Number of image channels.
        num_classes: Number of classes, 0 for no classifier.
        global_pool: 'avg', 'max', 'avgmax' or '' (no pooling: logits for each position of the map, (B, classes, H, W)).
        depths: Numbers of stem layers and of blocks in stages 2 and 3.
        dims: Channels of the three stages.
        hidden_size: Width between the two linear layers of the head.
        stem_stride: Stride of the first stem layer, 2 or 4 (a quarter of the compute).
        attn: Attention in the blocks, 'cbam' (MBCSA) or 'se' (MBConv-SE).
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth rate of the last block, increasing linearly from 0 at the first.
        output_stride: 8 or 16, pixels of the image per position of the last map at the most: strides beyond it become
            dilation, for segmentation. 32 for the network's own: 16 with a stem of stride 4, otherwise 8.

    Raises:
        ValueError: if an argument is not among the values above.
    """

    def __init__(
        self,
        img_size: Union[int, Tuple[int, int]] = 224,
        in_chans: int = 3,
        num_classes: int = 7,
        global_pool: str = 'avg',
        depths: Sequence[int] = (6, 6, 9),
        dims: Sequence[int] = (64, 96, 192),
        hidden_size: int = 128,
        stem_stride: int = 2,
        attn: str = 'cbam',
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        output_stride: int = 32,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        if len(depths) != 3:
            raise ValueError(f'depths of a teacher are (stage 1, stage 2, stage 3), got {tuple(depths)}.')
        self.img_size = _check_img_size(img_size)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        drop_path_rates = calculate_drop_path_rates(drop_path_rate, sum(depths[1:]))
        self.stages, self.feature_info, _ = _build_stages(
            in_chans, depths, dims, stem_stride, attn, drop_path_rates, output_stride, **dd
        )
        self.num_features = dims[-1]
        self.head_hidden_size = hidden_size
        self._set_global_pool(global_pool)
        self.head_hidden = nn.Linear(self.num_features, hidden_size, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(hidden_size, num_classes, **dd) if num_classes > 0 else nn.Identity()

    def init_weights(self) -> None:
        """Initialise all weights as published, for example after `to_empty` of a model built on the meta device."""
        _reset_parameters(self)

    def _set_global_pool(self, global_pool: str) -> None:
        if global_pool not in ('', 'avg', 'max', 'avgmax'):
            raise ValueError(f"global_pool of a teacher must be 'avg', 'max', 'avgmax' or '', got {global_pool!r}.")
        self.unpooled = not global_pool
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=not self.unpooled)

    @torch.jit.ignore
    def no_weight_decay(self) -> Set[str]:
        return set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        return dict(
            stem=r'^stages\.0' if coarse else r'^stages\.0\.0',
            stages=r'^stages\.(\d+)' if coarse else r'^stages\.(\d+)\.(\d+)',
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def set_input_size(self, img_size: Union[int, Tuple[int, int]]) -> None:
        """Record another nominal image size; the network itself accepts any."""
        self.img_size = _check_img_size(img_size)
        update_model_input_size(self, self.img_size)

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Replace the classifier; device, dtype and mode stay the same."""
        dd = get_device_dtype(self)
        if global_pool is not None:
            self._set_global_pool(global_pool)
            self.global_pool.train(self.training)
        self.num_classes = num_classes
        self.head = nn.Linear(self.head_hidden_size, num_classes, **dd) if num_classes > 0 else nn.Identity()
        self.head.train(self.training)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: Optional[Union[int, List[int]]] = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> Union[List[torch.Tensor], Tuple[torch.Tensor, List[torch.Tensor]], Dict[str, Any]]:
        """Stage maps, and the features of `forward_features`, from one pass.

        Args:
            x: Images (B, in_chans, H, W).
            indices: Stages to return, from 0: the last n if int, all if None, the listed ones if a sequence.
            return_prefix_tokens: For compatibility with students; a teacher has no tokens and returns maps only.
            norm: For compatibility with students; a teacher has no final norm.
            stop_early: Stop after the last stage returned; the final features are then that stage's map.
            output_fmt: 'NCHW', or 'NLC' for (B, H * W, C).
            intermediates_only: Return the list of maps only.
            output_dict: Return {'image_intermediates': list, 'image_features': tensor}.
        """
        if output_fmt not in ('NCHW', 'NLC'):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', got {output_fmt!r}.")
        take_indices = _take_indices(len(self.stages), indices)
        stages = self.stages[: max(take_indices) + 1] if stop_early else self.stages
        intermediates = []
        for i, stage in enumerate(stages):
            x = checkpoint_blocks(stage, x) if self.grad_checkpointing else stage(x)
            if i in take_indices:
                intermediates.append(_format_map(x, output_fmt))

        if output_dict:
            result = {'image_intermediates': intermediates}
            return result if intermediates_only else dict(result, image_features=x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self,
        indices: Union[int, List[int]] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> List[int]:
        """Remove everything that the given intermediates do not depend on. Returns their absolute indices."""
        take_indices = _take_indices(len(self.stages), indices)
        max_index = max(take_indices)
        if prune_head or max_index < len(self.stages) - 1:
            self.num_features = self.head_hidden_size = self.feature_info[max_index]['num_chs']
            self.head_hidden = nn.Identity()
            self.reset_classifier(0, '')
        self.stages = self.stages[: max_index + 1]
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) -> (B, 192, ceil(H / 8), ceil(W / 8)), the map of the last stage."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            for stage in self.stages:
                x = checkpoint_blocks(stage, x)
        else:
            x = self.stages(x)
        return x

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(B, 192, H, W) -> (B, classes), or (B, 128) before the classifier. Without pooling, (B, ..., H, W)."""
        x = self.global_pool(x)
        if self.unpooled:
            x = x.permute(0, 2, 3, 1)
        x = self.head_drop(self.head_hidden(x))
        if not pre_logits:
            x = self.head(x)
        if self.unpooled:
            x = x.permute(0, 3, 1, 2)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.forward_features(x)
        x = self.forward_head(x)
        return x


class HDKDStudent(nn.Module):
    """HDKD student: three convolutional stages, then a transformer on patches of the third stage's map (DFLT).

    Args:
        img_size: Image size in pixels, at least 28, (H, W) or one number.
        in_chans: Number of image channels.
        num_classes: Number of classes, 0 for no classifier.
        global_pool: 'token' (class token, and distillation token if there is one), 'avg', 'max', 'avgmax' (over the
            patch tokens) or '' (no pooling: logits for each token, (B, N, classes)).
        depths: Numbers of stem layers, of blocks in stages 2 and 3, and of transformer blocks.
        dims: Channels of the three stages.
        embed_dim: Width of the transformer.
        patch_size: Patch size in positions of the stage 3 map.
        num_heads: Attention heads.
        head_dim: Width of a head.
        mlp_ratio: Hidden width of the transformer's MLPs divided by `embed_dim`.
        stem_stride: Stride of the first stem layer, 2 or 4 (a quarter of the compute).
        attn: Attention in the convolutional blocks, 'cbam' (MBCSA) or 'se' (MBConv-SE).
        distilled: Add a distillation token and a second head for it (the paper's HDKD).
        drop_rate: Dropout before the classifiers.
        pos_drop_rate: Dropout after the position embedding.
        proj_drop_rate: Dropout after the attention's projection and after both linear layers of the MLPs.
        attn_drop_rate: Dropout on the attention weights.
        drop_path_rate: Stochastic depth rate of the last block, increasing linearly from 0 at the first MBCSA block.
        dynamic_img_size: Accept images of any size of at least 28 pixels, resampling the position embedding on the fly.
        dynamic_img_pad: Pad the stage 3 map with zeros to a whole number of patches. Otherwise, positions at the bottom
            and at the right that do not fill a patch get no token.
        output_stride: 8 or 16, pixels of the image per patch token at the most: strides beyond it become dilation, and
            patches overlap, for segmentation. 32 for the network's own: 32 with a stem of stride 4, otherwise 16.

    Raises:
        ValueError: if an argument is not among the values above.
    """

    dynamic_img_size: torch.jit.Final[bool]

    def __init__(
        self,
        img_size: Union[int, Tuple[int, int]] = 224,
        in_chans: int = 3,
        num_classes: int = 7,
        global_pool: str = 'token',
        depths: Sequence[int] = (2, 2, 3, 3),
        dims: Sequence[int] = (64, 96, 192),
        embed_dim: int = 256,
        patch_size: Union[int, Tuple[int, int]] = 2,
        num_heads: int = 8,
        head_dim: int = 32,
        mlp_ratio: float = 4.0,
        stem_stride: int = 2,
        attn: str = 'cbam',
        distilled: bool = True,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        dynamic_img_size: bool = False,
        dynamic_img_pad: bool = True,
        output_stride: int = 32,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        if len(depths) != 4:
            raise ValueError(f'depths of a student are (stage 1, stage 2, stage 3, transformer), got {tuple(depths)}.')
        if num_heads < 1 or head_dim < 1:
            raise ValueError(f'num_heads and head_dim must be 1 or more, got {num_heads} and {head_dim}.')
        self.img_size = _check_img_size(img_size)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.num_prefix_tokens = 2 if distilled else 1
        self.distilled = distilled
        self.distilled_training = False  # set by set_distilled_training() to train with the distillation token
        self.dynamic_img_size = dynamic_img_size
        self.grad_checkpointing = False
        self._set_global_pool(global_pool)

        drop_path_rates = calculate_drop_path_rates(drop_path_rate, sum(depths[1:]))
        self.stages, self.feature_info, dilation = _build_stages(
            in_chans, depths, dims, stem_stride, attn, drop_path_rates, output_stride, **dd
        )
        reduction = self.feature_info[-1]['reduction']
        patch_size = to_2tuple(patch_size)
        overlap = reduction * max(patch_size) > output_stride < 32  # 32 is no limit
        token_reduction = reduction if overlap else reduction * max(patch_size)
        self.feature_info.append(dict(num_chs=embed_dim, reduction=token_reduction, module='blocks'))

        self.patch_embed = PatchEmbed(
            dims[-1],
            embed_dim,
            patch_size,
            self._get_feat_size(self.img_size),
            dynamic_size=dynamic_img_size,
            pad=dynamic_img_pad,
            overlap=overlap,
            dilation=dilation,
            **dd,
        )
        grid_size = self._get_grid_size(self.img_size)
        num_tokens = self.num_prefix_tokens + grid_size[0] * grid_size[1]
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim, **dd))
        self.dist_token = nn.Parameter(torch.empty(1, 1, embed_dim, **dd)) if distilled else None
        self.pos_embed = nn.Parameter(torch.empty(1, num_tokens, embed_dim, **dd))
        self.pos_drop = nn.Dropout(pos_drop_rate)
        block_args = dict(proj_drop=proj_drop_rate, attn_drop=attn_drop_rate, **dd)
        self.blocks = nn.Sequential(
            *[
                Block(embed_dim, num_heads, head_dim, mlp_ratio, drop_path=rate, **block_args)
                for rate in drop_path_rates[sum(depths[1:3]) :]
            ]
        )
        self.norm = nn.LayerNorm(embed_dim, **dd)

        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes, **dd) if num_classes > 0 else nn.Identity()
        if distilled:
            self.head_dist = nn.Linear(embed_dim, num_classes, **dd) if num_classes > 0 else nn.Identity()
        else:
            self.head_dist = None

        self._init_tokens()

    def _init_tokens(self) -> None:
        for token in (self.cls_token, self.dist_token, self.pos_embed):
            if token is not None:
                nn.init.normal_(token)

    def init_weights(self) -> None:
        """Initialise all weights as published, for example after `to_empty` of a model built on the meta device."""
        _reset_parameters(self)
        self._init_tokens()

    def _get_feat_size(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """Size of the stage 3 map."""
        height, width = (math.ceil(s / self.feature_info[2]['reduction']) for s in img_size)
        return height, width

    def _get_grid_size(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """Number of patches along height and width."""
        grid_size = self.patch_embed.get_grid_size(self._get_feat_size(img_size))
        if min(grid_size) < 1:
            raise ValueError(
                f'An image of {img_size} pixels is smaller than one patch of {self.patch_embed.patch_size} positions.'
            )
        return grid_size

    def _get_own_grid_size(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """Number of patches along height and width without `output_stride`, as checkpoints have them."""
        round_fn = math.ceil if self.patch_embed.pad else math.floor
        feat_size = (math.ceil(s / (4 * self.feature_info[0]['reduction'])) for s in img_size)
        height, width = (round_fn(s / p) for s, p in zip(feat_size, self.patch_embed.patch_size))
        return height, width

    def _set_global_pool(self, global_pool: str) -> None:
        if global_pool not in ('', 'token', 'avg', 'max', 'avgmax'):
            raise ValueError(
                f"global_pool of a student must be 'token', 'avg', 'max', 'avgmax' or '', got {global_pool!r}."
            )
        if global_pool == 'token' and self.num_prefix_tokens == 0:
            raise ValueError("The student is pruned to its stages, it has no class token for global_pool 'token'.")
        self.global_pool = global_pool

    @torch.jit.ignore
    def no_weight_decay(self) -> Set[str]:
        return {'pos_embed', 'cls_token', 'dist_token'}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        return dict(
            stem=r'^stages\.0' if coarse else r'^stages\.0\.0',
            stages=r'^stages\.(\d+)' if coarse else r'^stages\.(\d+)\.(\d+)',
            embed=r'^(?:cls_token|dist_token|pos_embed|patch_embed)',
            blocks=[(r'^blocks\.(\d+)', None), (r'^norm', (99999,))],  # the final norm belongs to the last block
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def set_distilled_training(self, enable: bool = True) -> None:
        """Return the pair (class logits, distillation logits) in training mode, for a distillation loss.

        Raises:
            ValueError: if the network has no distillation token.
        """
        if enable and not self.distilled:
            raise ValueError('This student has no distillation token (distilled=False): use hdkd_student.')
        self.distilled_training = enable

    @torch.jit.ignore
    def set_input_size(self, img_size: Union[int, Tuple[int, int]]) -> None:
        """Change the image size, resampling the position embedding of the patches.

        Raises:
            ValueError: if the image size is below 28 pixels.
        """
        img_size = _check_img_size(img_size)
        if self.patch_embed is not None:
            prev_grid_size, grid_size = self.patch_embed.grid_size, self._get_grid_size(img_size)
            if grid_size != prev_grid_size:
                pos_embed = resample_abs_pos_embed(
                    self.pos_embed.detach(),
                    new_size=grid_size,
                    old_size=prev_grid_size,
                    num_prefix_tokens=self.num_prefix_tokens,
                )
                self.pos_embed = nn.Parameter(pos_embed, requires_grad=self.pos_embed.requires_grad)
            self.patch_embed.set_feat_size(self._get_feat_size(img_size))
        self.img_size = img_size
        update_model_input_size(self, img_size)

    @torch.jit.ignore
    def get_classifier(self) -> Union[nn.Module, Tuple[nn.Module, nn.Module]]:
        return (self.head, self.head_dist) if self.distilled else self.head

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Replace the classifier (both heads); device, dtype and mode stay the same."""
        dd = get_device_dtype(self)
        if global_pool is not None:
            self._set_global_pool(global_pool)
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes, **dd) if num_classes > 0 else nn.Identity()
        self.head.train(self.training)
        if self.distilled:
            self.head_dist = nn.Linear(self.num_features, num_classes, **dd) if num_classes > 0 else nn.Identity()
            self.head_dist.train(self.training)

    def _pos_embed(self, x: torch.Tensor) -> torch.Tensor:
        """(B, h, w, D) -> (B, 2 + h * w, D), with prefix tokens and position embedding."""
        B, h, w, D = x.shape
        pos_embed = self.pos_embed
        if self.dynamic_img_size:
            pos_embed = resample_abs_pos_embed(
                pos_embed,
                new_size=[h, w],
                old_size=self.patch_embed.grid_size,
                num_prefix_tokens=self.num_prefix_tokens,
            )
        x = x.flatten(1, 2)
        tokens = [self.cls_token.expand_as(x[:, :1])]
        if self.dist_token is not None:
            tokens.append(self.dist_token.expand_as(x[:, :1]))
        tokens.append(x)
        return self.pos_drop(torch.cat(tokens, dim=1) + pos_embed)

    def _check_input(self, x: torch.Tensor) -> None:
        H, W = x.shape[-2:]
        if self.patch_embed is None:  # pruned to its convolutional stages, which accept any size
            pass
        elif self.dynamic_img_size:
            torch._assert(H >= 28, 'Images must be at least 28 pixels high.')
            torch._assert(W >= 28, 'Images must be at least 28 pixels wide.')
        else:
            height, width = self.img_size
            torch._assert(
                H == height,
                f"Image height ({H}) doesn't match the model's ({height}), see set_input_size() and dynamic_img_size.",
            )
            torch._assert(
                W == width,
                f"Image width ({W}) doesn't match the model's ({width}), see set_input_size() and dynamic_img_size.",
            )

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: Optional[Union[int, List[int]]] = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> Union[List[Any], Tuple[torch.Tensor, List[Any]], Dict[str, Any]]:
        """Maps of the three stages and of the patch tokens, and the features of `forward_features`, from one pass.

        Args:
            x: Images (B, in_chans, H, W).
            indices: Maps to return, 0 to 2 for the stages, 3 for the patch tokens after the last block: the last n if
                int, all if None, the listed ones if a sequence.
            return_prefix_tokens: Return pairs (map, prefix tokens); the stages have none, (B, 0, C).
            norm: Apply the final norm to the patch tokens.
            stop_early: Stop after the last map returned; if that is a stage's, it is the final features, too.
            output_fmt: 'NCHW', or 'NLC' for (B, H * W, C).
            intermediates_only: Return the list of maps only.
            output_dict: Return {'image_intermediates': list, 'image_features': tensor}, and
                'image_intermediates_prefix' with `return_prefix_tokens`.
        """
        if output_fmt not in ('NCHW', 'NLC'):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', got {output_fmt!r}.")
        take_indices = _take_indices(len(self.stages) + (self.patch_embed is not None), indices)
        last_index = max(take_indices) if stop_early else 3
        self._check_input(x)
        intermediates, prefix_tokens = [], []
        for i, stage in enumerate(self.stages[: last_index + 1]):
            x = checkpoint_blocks(stage, x) if self.grad_checkpointing else stage(x)
            if i in take_indices:
                intermediates.append(_format_map(x, output_fmt))
                prefix_tokens.append(x.new_empty(x.shape[0], 0, x.shape[1]))

        if self.patch_embed is not None and last_index == 3:
            x = self.patch_embed(x)
            B, h, w, D = x.shape
            x = self._pos_embed(x)
            x = checkpoint_blocks(self.blocks, x) if self.grad_checkpointing else self.blocks(x)
            x_norm = self.norm(x)
            if 3 in take_indices:
                tokens = x_norm if norm else x
                prefix_tokens.append(tokens[:, : self.num_prefix_tokens])
                tokens = tokens[:, self.num_prefix_tokens :]
                intermediates.append(tokens if output_fmt == 'NLC' else tokens.transpose(1, 2).reshape(B, D, h, w))
            x = x_norm

        if output_dict:
            result = {'image_intermediates': intermediates}
            if return_prefix_tokens:
                result['image_intermediates_prefix'] = prefix_tokens
            return result if intermediates_only else dict(result, image_features=x)
        if return_prefix_tokens:
            intermediates = list(zip(intermediates, prefix_tokens))
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self,
        indices: Union[int, List[int]] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> List[int]:
        """Remove everything that the given intermediates do not depend on. Returns their absolute indices."""
        take_indices = _take_indices(len(self.stages) + (self.patch_embed is not None), indices)
        max_index = max(take_indices)
        prune_transformer = max_index < 3
        if prune_transformer:
            self.stages = self.stages[: max_index + 1]
            self.patch_embed = self.cls_token = self.dist_token = self.pos_embed = self.head_dist = None
            self.blocks = nn.Sequential()
            self.distilled = self.distilled_training = False
            self.num_prefix_tokens = 0
            self.num_features = self.head_hidden_size = self.feature_info[max_index]['num_chs']
        if prune_transformer or prune_norm:
            self.norm = nn.Identity()
        if prune_transformer or prune_head:
            self.reset_classifier(0, '')
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) -> (B, 2 + N, 256): class, distillation and N patch tokens after the final norm.

        Without a distillation token (B, 1 + N, 256).
        """
        self._check_input(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            for stage in self.stages:
                x = checkpoint_blocks(stage, x)
        else:
            x = self.stages(x)
        if self.patch_embed is None:  # pruned
            return x
        x = self.patch_embed(x)
        x = self._pos_embed(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_blocks(self.blocks, x)
        else:
            x = self.blocks(x)
        return self.norm(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(B, 2 + N, 256) -> (B, classes), the mean of both heads' logits, or (B, 256) before the classifiers.

        In training mode after `set_distilled_training()` a pair of (B, classes). A student pruned to its stages takes
        maps and, without pooling, returns maps (B, ..., H, W).
        """
        if self.patch_embed is None:
            unpooled = self.global_pool == ''
            if unpooled:
                x = x.permute(0, 2, 3, 1)
            else:
                x = global_pool_nlc(x.flatten(2).transpose(1, 2), self.global_pool, 0)
            x = self.head_drop(x)
            if not pre_logits:
                x = self.head(x)
            return x.permute(0, 3, 1, 2) if unpooled else x
        x_dist = x
        if self.global_pool != '':
            if self.global_pool == 'token':
                x, x_dist = x[:, 0], x[:, 1]
            else:
                x = x_dist = global_pool_nlc(x, self.global_pool, self.num_prefix_tokens)
        x = self.head_drop(x)
        if self.head_dist is None:
            return x if pre_logits else self.head(x)
        x_dist = self.head_drop(x_dist)
        if pre_logits:
            return (x + x_dist) / 2
        x, x_dist = self.head(x), self.head_dist(x_dist)
        if self.distilled_training and self.training and not torch.jit.is_scripting():
            return x, x_dist
        return (x + x_dist) / 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.forward_features(x)
        x = self.forward_head(x)
        return x


def _resample_pos_embed(state_dict: Dict[str, torch.Tensor], model: HDKDStudent) -> torch.Tensor:
    """The state dict's position embedding, resampled to the model's grid of patches.

    Raises:
        ValueError: if only one of the two has a distillation token, or if the grid of the training is unknown.
    """
    pos_embed = state_dict['pos_embed']
    distilled = 'dist_token' in state_dict
    if distilled != model.distilled:
        has, setting = ('a', 'distilled=False') if distilled else ('no', 'distilled=True')
        raise ValueError(
            f'The checkpoint has {has} distillation token, the model is built with {setting}: use'
            f' {"hdkd_student" if distilled else "hdkd_student_plain"} for this checkpoint.'
        )
    num_patches = pos_embed.shape[1] - model.num_prefix_tokens
    side = math.isqrt(num_patches)
    # the grid of the checkpoint's image size or, where that was not recorded, the model's own grid or a square
    img_size = tuple(model.pretrained_cfg['input_size'][-2:])
    candidates = (
        model._get_grid_size(img_size),
        model._get_own_grid_size(img_size),
        model.patch_embed.grid_size,
        (side, side),
    )
    old_size = next((grid for grid in candidates if grid[0] * grid[1] == num_patches), None)
    if old_size is None:
        raise ValueError(
            f'The checkpoint has {num_patches} patch positions, which do not form a square: specify the image size of'
            ' its training, pretrained_cfg_overlay=dict(input_size=(channels, height, width)).'
        )
    return resample_abs_pos_embed(
        pos_embed, new_size=model.patch_embed.grid_size, old_size=old_size, num_prefix_tokens=model.num_prefix_tokens
    )


_FIRST_CONV = 'stages.0.0.conv'


def checkpoint_filter_fn(state_dict: Dict[str, Any], model: nn.Module) -> Dict[str, torch.Tensor]:
    """Adapt a checkpoint, ours or the published code's, to a model: keys, position embedding, first convolution."""
    state_dict = convert_state_dict(state_dict)
    # released weights are in half precision, what is derived from them is not
    state_dict = {
        k: v.float() if isinstance(v, torch.Tensor) and v.dtype == torch.float16 else v for k, v in state_dict.items()
    }
    if 'pos_embed' in state_dict and isinstance(model, HDKDStudent):
        state_dict = dict(state_dict, pos_embed=_resample_pos_embed(state_dict, model))
    if not ADAPTS_FIRST_CONV and f'{_FIRST_CONV}.weight' in state_dict:
        weight = adapt_first_conv(state_dict[f'{_FIRST_CONV}.weight'], model.in_chans)
        state_dict = dict(state_dict, **{f'{_FIRST_CONV}.weight': weight})
    return state_dict


def _cfg(url: str = '', **kwargs: Any) -> Dict[str, Any]:
    return {
        'url': url,
        'num_classes': 7,
        'input_size': (3, 224, 224),
        'min_input_size': (3, MIN_IMG_SIZE, MIN_IMG_SIZE),
        'pool_size': (28, 28),
        'crop_pct': 1.0,
        'crop_mode': 'squash',
        'interpolation': 'bilinear',
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        'first_conv': _FIRST_CONV,
        'classifier': 'head',
        'paper_ids': 'arXiv:2407.07516',
        'paper_name': 'HDKD: Hybrid Data-Efficient Knowledge Distillation Network for Medical Image Classification',
        'origin_url': 'https://github.com/omarsherif200/HDKD',
        **kwargs,
    }


# its features are tokens: a pool size would make other code treat them as a map
_student_cfg = partial(_cfg, pool_size=None, fixed_input_size=True)
_distilled_cfg = partial(_student_cfg, classifier=('head', 'head_dist'))

# data sets of the released weights
_brain_mri = dict(num_classes=4, label_names=('glioma', 'meningioma', 'notumor', 'pituitary'), license='cc0-1.0')
_ham10k = dict(num_classes=7, label_names=('akiec', 'bcc', 'bkl', 'df', 'mel', 'nv', 'vasc'), license='cc-by-nc-4.0')
_chest_xray = dict(num_classes=2, label_names=('normal', 'pneumonia'), license='cc-by-4.0')

default_cfgs = generate_default_cfgs(
    {
        'hdkd_teacher.brain_mri': _cfg(hf_hub_id=hub_id('hdkd_teacher.brain_mri'), **_brain_mri),
        'hdkd_teacher.brain_mri_64': _cfg(
            hf_hub_id=hub_id('hdkd_teacher.brain_mri_64'), input_size=(3, 64, 64), pool_size=(8, 8), **_brain_mri
        ),
        'hdkd_teacher.ham10k': _cfg(hf_hub_id=hub_id('hdkd_teacher.ham10k'), **_ham10k),
        'hdkd_student.brain_mri': _distilled_cfg(hf_hub_id=hub_id('hdkd_student.brain_mri'), **_brain_mri),
        'hdkd_student.brain_mri_64': _distilled_cfg(
            hf_hub_id=hub_id('hdkd_student.brain_mri_64'), input_size=(3, 64, 64), **_brain_mri
        ),
        'hdkd_student.ham10k': _distilled_cfg(
            hf_hub_id=hub_id('hdkd_student.ham10k'), input_size=(3, 128, 128), **_ham10k
        ),
        'hdkd_student.derm': _distilled_cfg(hf_hub_id=hub_id('hdkd_student.derm'), input_size=(3, 128, 128), **_ham10k),
        'hdkd_student.chest_xray': _distilled_cfg(hf_hub_id=hub_id('hdkd_student.chest_xray'), **_chest_xray),
        'hdkd_student_plain.untrained': _student_cfg(),
        'hdkd_teacher_s4.untrained': _cfg(pool_size=(14, 14)),
        'hdkd_student_s4.chest_xray': _distilled_cfg(hf_hub_id=hub_id('hdkd_student_s4.chest_xray'), **_chest_xray),
    }
)


def _take_getter(kwargs: Dict[str, Any]) -> None:
    """Let `forward_intermediates` extract a student's patch tokens as maps: timm's other extractors return tokens."""
    asked = kwargs.get('feature_cls')
    if asked in ('list', 'hook', 'dict', 'fx') and 3 in _take_indices(4, kwargs.get('out_indices')):
        _logger.info(
            f"feature_cls '{asked}' of a student with its patch tokens: 'getter' is used, which has their map."
        )
        kwargs['feature_cls'] = 'getter'


def _name_features(names: Sequence[str], model: nn.Module, args: Any, features: List[torch.Tensor]) -> Dict[str, Any]:
    """A forward hook: a dictionary in place of a list."""
    return OrderedDict(zip(names, features))


def _create_hdkd(
    model_cls: Type[nn.Module],
    variant: str,
    pretrained: bool = False,
    pretrained_cfg_overlay: Optional[Dict[str, Any]] = None,
    **kwargs: Any,
) -> nn.Module:
    pretrained_cfg_overlay = dict(pretrained_cfg_overlay or {})
    if model_cls is HDKDStudent:
        pretrained_cfg_overlay['classifier'] = ('head', 'head_dist') if kwargs.get('distilled', True) else 'head'
    cfg = resolve_pretrained_cfg(variant, kwargs.get('pretrained_cfg'), pretrained_cfg_overlay)
    if kwargs.get('num_classes') not in (None, cfg.num_classes):
        pretrained_cfg_overlay.setdefault('label_names', None)  # of other classes than the model's
    if pretrained_cfg_overlay.keys() & {'file', 'state_dict', 'url', 'hf_hub_id'}:  # other weights than the tag's
        pretrained_cfg_overlay = {'tag': '', 'label_names': None, 'license': None, **pretrained_cfg_overlay}
    pretrained_cfg_overlay = {**release_overlay(cfg, pretrained, kwargs.get('cache_dir')), **pretrained_cfg_overlay}
    if not ADAPTS_FIRST_CONV:
        pretrained_cfg_overlay['first_conv'] = None  # checkpoint_filter_fn adapts it instead of timm
    returns_dict = kwargs.get('feature_cls') == 'dict'
    if model_cls is HDKDStudent and kwargs.get('features_only'):
        _take_getter(kwargs)
    model = build_model_with_cfg(
        model_cls,
        variant,
        pretrained,
        pretrained_cfg_overlay=pretrained_cfg_overlay,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(
            out_indices=(0, 1, 2) if model_cls is HDKDTeacher else (0, 1, 2, 3),
            feature_cls='getter',
            flatten_sequential=True,
        ),
        **kwargs,
    )
    if returns_dict and kwargs.get('feature_cls') == 'getter':
        model.register_forward_hook(partial(_name_features, [str(i) for i in model.out_indices]))
    model.pretrained_cfg['first_conv'] = _FIRST_CONV
    record_model_args(model, model_cls, kwargs)
    return model


@register_model
def hdkd_teacher(pretrained: bool = False, **kwargs: Any) -> HDKDTeacher:
    """HDKD teacher: a CNN, 3.9 M parameters."""
    return _create_hdkd(HDKDTeacher, 'hdkd_teacher', pretrained=pretrained, **kwargs)


@register_model
def hdkd_student(pretrained: bool = False, **kwargs: Any) -> HDKDStudent:
    """HDKD student with class and distillation tokens (the paper's HDKD), 3.7 M parameters."""
    return _create_hdkd(HDKDStudent, 'hdkd_student', pretrained=pretrained, **kwargs)


@register_model
def hdkd_student_plain(pretrained: bool = False, **kwargs: Any) -> HDKDStudent:
    """HDKD student without a distillation token (the paper's baseline student)."""
    model_args = dict(distilled=False)
    return _create_hdkd(HDKDStudent, 'hdkd_student_plain', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def hdkd_teacher_s4(pretrained: bool = False, **kwargs: Any) -> HDKDTeacher:
    """HDKD teacher with stride 4 in the first stem layer, about a quarter of the compute."""
    model_args = dict(stem_stride=4)
    return _create_hdkd(HDKDTeacher, 'hdkd_teacher_s4', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def hdkd_student_s4(pretrained: bool = False, **kwargs: Any) -> HDKDStudent:
    """HDKD student with stride 4 in the first stem layer, about a quarter of the compute."""
    model_args = dict(stem_stride=4)
    return _create_hdkd(HDKDStudent, 'hdkd_student_s4', pretrained=pretrained, **dict(model_args, **kwargs))
