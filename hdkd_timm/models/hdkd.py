""" HDKD: a CNN teacher and a hybrid convolution + transformer student that share their convolutional stages.

Paper: `HDKD: Hybrid Data-Efficient Knowledge Distillation Network for Medical Image Classification`
    - https://arxiv.org/abs/2407.07516

Published code (MIT): https://github.com/omarsherif200/HDKD at f7c7dae. The networks here give the same outputs, losses
and gradients from the same weights; `checkpoint_filter_fn` reads its checkpoints.

Both networks start with three convolutional stages whose maps have the same shape, so that the student's can be pulled
to the teacher's by a plain MSE:

    image -> stage 1: stem layers, (B, 64, H/2, W/2)
          -> stage 2: MBCSA blocks, (B, 96, H/4, W/4)
          -> stage 3: MBCSA blocks, (B, 192, H/8, W/8)

The teacher pools stage 3 and classifies it. The student cuts it into patches of 2 x 2 positions and runs a small
transformer with a class and a distillation token over them.

Image sizes: every convolution rounds up, an image of H x W pixels gives maps of ceil(H/2), ceil(H/4), ceil(H/8) rows.
Where the student's stage 3 map is no whole number of patches (H or W between two multiples of 16), it is padded with
zeros at the bottom and at the right; with `dynamic_img_pad=False` the last row or column gets no token instead.
"""
from contextlib import contextmanager, nullcontext
from functools import partial
import math
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple, Type, Union

import torch
from torch import nn
import torch.fx
import torch.nn.functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import Attention, DropPath, Mlp, SEModule, SelectAdaptivePool2d, calculate_drop_path_rates, \
    get_device_dtype, global_pool_nlc, resample_abs_pos_embed, to_2tuple
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model, \
    resolve_pretrained_cfg
from .._compat import ADAPTS_FIRST_CONV, adapt_first_conv, record_model_args, update_model_input_size
from .pretrained import hub_id, release_overlay
from .published import convert_state_dict

__all__ = ['HDKDTeacher', 'HDKDStudent']

MIN_IMG_SIZE = 28


def _fold_batch_norms(conv: nn.Conv2d, norm: nn.Module, pre_norm: Optional[nn.Module] = None) -> None:
    """ Give a convolution the weight and bias by which it does the work of the BatchNorms around it, too.

    Exact for a norm behind any convolution, and for one in front of a 1x1 convolution without padding.
    """
    weight, bias = conv.weight.detach().float(), None
    if pre_norm is not None:
        scale = pre_norm.weight.float() * torch.rsqrt(pre_norm.running_var.float() + pre_norm.eps)
        shift = pre_norm.bias.float() - pre_norm.running_mean.float() * scale
        bias = weight[:, :, 0, 0] @ shift
        weight = weight * scale[:, None, None]
    weight, bias = fuse_conv_bn_weights(
        weight, bias, norm.running_mean.float(), norm.running_var.float(), norm.eps, norm.weight.float(),
        norm.bias.float())
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=conv.weight.requires_grad)
    conv.weight.data = weight.to(conv.weight.dtype)


class ReparamLayer(nn.Module):
    """ A layer whose BatchNorms can be folded into its convolutions, for inference (timm's `reparameterize_model`)."""
    fused: bool

    def __init__(self):
        super().__init__()
        self.fused = False

    @torch.jit.ignore
    def _fold(self) -> None:
        raise NotImplementedError

    @torch.jit.ignore
    def reparameterize(self) -> None:
        """ Fold the BatchNorms, by their running statistics, in place. A second time it does nothing."""
        if not self.fused:
            with torch.no_grad():
                self._fold()
            self.fused = True
            self.eval()

    def _check_mode(self) -> None:
        if self.fused and self.training:
            raise RuntimeError(
                'This model is fused for inference, its BatchNorms are folded away: call eval(), or build it anew and'
                ' load its weights to train it.')

    def _load_from_state_dict(
            self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs):
        # the convolutions that take up a BatchNorm have a bias when they are fused, and only then
        convs = [name for name, m in self.named_children() if isinstance(m, nn.Conv2d)]
        has_weights = any(f'{prefix}{name}.weight' in state_dict for name in convs)
        if has_weights and self.fused != any(f'{prefix}{name}.bias' in state_dict for name in convs):
            message = 'the {} is fused (timm.utils.reparameterize_model), the {} is not: {}.'.format(*(
                ('model', 'state dict', 'load it into a new model, and fuse that') if self.fused else
                ('state dict', 'model', 'take the state dict of a model that is not')))
            if message not in error_msgs:
                error_msgs.append(message)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)


def is_fused(model: nn.Module) -> bool:
    """ Are BatchNorms of the model folded away by `timm.utils.reparameterize_model`?"""
    return any(getattr(m, 'fused', False) for m in model.modules())


class StemLayer(ReparamLayer):
    """ Conv 3x3 -> BatchNorm -> GELU.  (B, in_chs, H, W) -> (B, out_chs, ceil(H / stride), ceil(W / stride))"""

    def __init__(self, in_chs: int, out_chs: int, stride: int = 1, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.conv = nn.Conv2d(in_chs, out_chs, 3, stride=stride, padding=1, bias=False, **dd)
        self.bn = nn.BatchNorm2d(out_chs, **dd)
        self.act = nn.GELU()

    @torch.jit.ignore
    def _fold(self) -> None:
        _fold_batch_norms(self.conv, self.bn)
        self.bn = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._check_mode()
        return self.act(self.bn(self.conv(x)))


class _MeanMax(torch.autograd.Function):
    """ Mean and maximum over some dimensions, whose backward pass writes one gradient instead of two and their parts.

    Equal maxima share the gradient, as those of `amax`.
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
        is_max = (x.detach() - x_max.detach()).sign_().add_(1)  # 1 or 0; on a CPU half the time of a bool mask
        grad_max = grad_max / is_max.sum(ctx.dims, keepdim=True)
        return (is_max * grad_max).add_(grad_mean * (x_max.numel() / x.numel())), None


class _MeanMaxIndex(torch.autograd.Function):
    """ The same for a compiler, which computes x anew for the backward pass and need not get the same bits: there may
    be no x equal to the maximum then (NaN under autocast). So the place of the (first) maximum is kept.
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
        index, = ctx.saved_tensors
        number = math.prod(ctx.shape)
        is_max = index == torch.arange(number, device=index.device).view(ctx.shape)
        return grad_mean / number + torch.where(is_max, grad_max, 0), None


@torch.fx.wrap
def mean_max(x: torch.Tensor, dims: List[int]) -> Tuple[torch.Tensor, torch.Tensor]:
    """ Mean and maximum over dimensions that follow each other, which are kept with size 1."""
    if not torch.jit.is_scripting():  # noqa: SIM102, TorchScript reads no further in this form alone
        if x.requires_grad and not torch.jit.is_tracing():  # a trace has no place for it
            function = _MeanMaxIndex if torch.compiler.is_compiling() else _MeanMax
            return function.apply(x, tuple(dims))
    return x.mean(dims, keepdim=True), x.amax(dims, keepdim=True)


class ChannelAttention(nn.Module):
    """ CBAM channel gate: the average and the maximum of each channel go through one shared MLP, (B, C, 1, 1)"""

    def __init__(self, chs: int, rd_ratio: int = 16, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.fc1 = nn.Conv2d(chs, chs // rd_ratio, 1, bias=False, **dd)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(chs // rd_ratio, chs, 1, bias=False, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat(mean_max(x, [2, 3]), dim=2)  # (B, C, 2, 1)
        x = self.act(self.fc1(x)).sum(2, keepdim=True)  # fc2 is linear: of the sum it is the sum of both
        return self.fc2(x).sigmoid()


class SpatialAttention(nn.Module):
    """ CBAM spatial gate: a convolution over the mean and the maximum of all channels, (B, 1, H, W)"""

    def __init__(self, kernel_size: int = 7, device=None, dtype=None):
        super().__init__()
        self.conv = nn.Conv2d(
            2, 1, kernel_size, padding=kernel_size // 2, bias=False, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat(mean_max(x, [1]), dim=1)  # (B, 2, H, W)
        return self.conv(x).sigmoid()


class Cbam(nn.Module):
    """ Convolutional block attention with a residual around it, as published: x + y * spatial(y), y = x * channel(x)

    Raises:
        ValueError: if there are fewer than 16 channels, the reduction of the channel gate.
    """

    def __init__(self, chs: int, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        if chs < 16:
            raise ValueError(f"attn='cbam' needs at least 16 hidden channels (dims of 4 or more), got {chs}.")
        self.channel = ChannelAttention(chs, **dd)
        self.spatial = SpatialAttention(**dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * self.channel(x)
        return torch.addcmul(x, y, self.spatial(y))


class Downsample(nn.Module):
    """ Shortcut of the first block of a stage: max pool to half the size, then a 1x1 projection."""

    def __init__(self, in_chs: int, out_chs: int, device=None, dtype=None):
        super().__init__()
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.proj = nn.Conv2d(in_chs, out_chs, 1, bias=False, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(self.pool(x))


class MbcsaBlock(ReparamLayer):
    """ MBCSA, mobile channel-spatial attention: an inverted residual with CBAM between its depthwise and last conv.

    BN -> 1x1 (stride) -> BN -> GELU -> depthwise 3x3 -> BN -> GELU -> attention -> 1x1 -> BN, plus the shortcut.
    With `attn='se'` it is the paper's MBConv ablation, squeeze-and-excitation in CBAM's place.

    (B, in_chs, H, W) -> (B, out_chs, ceil(H / stride), ceil(W / stride))

    Args:
        in_chs: Input channels.
        out_chs: Output channels.
        stride: 2 in the first block of a stage, else 1 (then `in_chs` and `out_chs` must be equal).
        attn: 'cbam' or 'se'.
        drop_path: Stochastic depth rate of the residual branch.
    """

    def __init__(
            self,
            in_chs: int,
            out_chs: int,
            stride: int = 1,
            attn: str = 'cbam',
            drop_path: float = 0.,
            device=None,
            dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        mid_chs = 4 * in_chs
        self.pre_norm = nn.BatchNorm2d(in_chs, **dd)
        self.conv_pw = nn.Conv2d(in_chs, mid_chs, 1, stride=stride, bias=False, **dd)
        self.bn1 = nn.BatchNorm2d(mid_chs, **dd)
        self.act1 = nn.GELU()
        self.conv_dw = nn.Conv2d(mid_chs, mid_chs, 3, padding=1, groups=mid_chs, bias=False, **dd)
        self.bn2 = nn.BatchNorm2d(mid_chs, **dd)
        self.act2 = nn.GELU()
        if attn == 'cbam':
            self.attn = Cbam(mid_chs, **dd)
        elif attn == 'se':
            self.attn = SEModule(mid_chs, rd_channels=max(1, in_chs // 4), bias=False, act_layer=nn.GELU, **dd)
        else:
            raise ValueError(f"attn must be 'cbam' or 'se', got {attn!r}.")
        self.conv_pwl = nn.Conv2d(mid_chs, out_chs, 1, bias=False, **dd)
        self.bn3 = nn.BatchNorm2d(out_chs, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0. else nn.Identity()
        self.shortcut = Downsample(in_chs, out_chs, **dd) if stride == 2 else nn.Identity()

    @torch.jit.ignore
    def _fold(self) -> None:
        _fold_batch_norms(self.conv_pw, self.bn1, self.pre_norm)
        _fold_batch_norms(self.conv_dw, self.bn2)
        _fold_batch_norms(self.conv_pwl, self.bn3)
        self.pre_norm = self.bn1 = self.bn2 = self.bn3 = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._check_mode()
        shortcut = self.shortcut(x)
        x = self.pre_norm(x)
        x = self.act1(self.bn1(self.conv_pw(x)))
        x = self.act2(self.bn2(self.conv_dw(x)))
        x = self.attn(x)
        x = self.bn3(self.conv_pwl(x))
        return shortcut + self.drop_path(x)


class PatchEmbed(nn.Module):
    """ Patches of a feature map to tokens: LayerNorm -> linear -> LayerNorm.

    A patch vector lists its positions row by row, all channels of a position together.

    (B, in_chs, H, W) -> (B, H / patch_size, W / patch_size, embed_dim), rounded up where `pad` is set, else down.
    """
    dynamic_size: torch.jit.Final[bool]
    pad: torch.jit.Final[bool]

    def __init__(
            self,
            in_chs: int,
            embed_dim: int,
            patch_size: Tuple[int, int],
            feat_size: Tuple[int, int],
            dynamic_size: bool = False,
            pad: bool = True,
            device=None,
            dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.patch_size = patch_size
        self.dynamic_size = dynamic_size
        self.pad = pad
        self.set_feat_size(feat_size)
        patch_dim = in_chs * patch_size[0] * patch_size[1]
        self.norm1 = nn.LayerNorm(patch_dim, **dd)
        self.proj = nn.Linear(patch_dim, embed_dim, **dd)
        self.norm2 = nn.LayerNorm(embed_dim, **dd)

    def set_feat_size(self, feat_size: Tuple[int, int]) -> None:
        self.grid_size = self.get_grid_size(feat_size)
        # rows and columns to add to (or, below zero, to cut from) a map of the nominal size
        self.edge = tuple(g * p - s for g, p, s in zip(self.grid_size, self.patch_size, feat_size))

    def get_grid_size(self, feat_size: Sequence[int]) -> Tuple[int, int]:
        """ Patches along height and width of a map of `feat_size` positions."""
        round_fn = math.ceil if self.pad else math.floor
        height, width = (round_fn(s / p) for s, p in zip(feat_size, self.patch_size))
        return height, width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ph, pw = self.patch_size
        B, C, H, W = x.shape
        if self.dynamic_size:
            edge_h, edge_w = -(H % ph), -(W % pw)
            if self.pad:
                edge_h, edge_w = (ph + edge_h) % ph, (pw + edge_w) % pw
            x = F.pad(x, (0, edge_w, 0, edge_h))
        else:
            edge_h, edge_w = self.edge
            if edge_h != 0 or edge_w != 0:
                x = F.pad(x, (0, edge_w, 0, edge_h))
        h, w = (H + edge_h) // ph, (W + edge_w) // pw
        x = x.reshape(B, C, h, ph, w, pw).permute(0, 2, 4, 3, 5, 1)  # (B, h, w, ph, pw, C)
        x = x.reshape(B, h, w, ph * pw * C)
        return self.norm2(self.proj(self.norm1(x)))


class Block(nn.Module):
    """ Transformer block, as published: the MLP has no norm before it.  (B, N, dim) -> (B, N, dim)"""

    def __init__(
            self,
            dim: int,
            num_heads: int,
            head_dim: int,
            mlp_ratio: float = 4.,
            proj_drop: float = 0.,
            attn_drop: float = 0.,
            drop_path: float = 0.,
            device=None,
            dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.norm = nn.LayerNorm(dim, **dd)
        self.attn = Attention(
            dim, num_heads=num_heads, attn_head_dim=head_dim, attn_drop=attn_drop, proj_drop=proj_drop, **dd)
        self.mlp = Mlp(dim, hidden_features=int(dim * mlp_ratio), drop=proj_drop, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0. else nn.Identity()

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
        device=None,
        dtype=None,
) -> Tuple[nn.Sequential, List[Dict[str, Any]]]:
    """ The three convolutional stages that teacher and student share, and their feature_info."""
    dd = {'device': device, 'dtype': dtype}
    if len(dims) != 3 or any(d < 1 for d in depths[:3]):
        raise ValueError(f'The networks have three stages of one layer or more, got depths {depths} and dims {dims}.')
    if stem_stride not in (2, 4):
        raise ValueError(f'stem_stride must be 2 or 4, got {stem_stride}.')
    stages = [nn.Sequential(*[
        StemLayer(dims[0] if i else in_chans, dims[0], stride=1 if i else stem_stride, **dd)
        for i in range(depths[0])
    ])]
    rates = iter(drop_path_rates)
    for in_chs, out_chs, depth in zip(dims[:-1], dims[1:], depths[1:]):
        stages.append(nn.Sequential(*[
            MbcsaBlock(
                out_chs if i else in_chs, out_chs, stride=1 if i else 2, attn=attn, drop_path=next(rates), **dd)
            for i in range(depth)
        ]))
    feature_info = [
        dict(num_chs=dim, reduction=stem_stride * 2 ** i, module=f'stages.{i}') for i, dim in enumerate(dims)]
    return nn.Sequential(*stages), feature_info


def _check_img_size(img_size: Union[int, Tuple[int, int]]) -> Tuple[int, int]:
    height, width = to_2tuple(img_size)
    if min(height, width) < MIN_IMG_SIZE:
        raise ValueError(f'img_size {height} x {width} is too small, the networks take {MIN_IMG_SIZE} pixels and more.')
    return height, width


def _take_indices(num_features: int, indices: Optional[Union[int, Sequence[int]]]) -> List[int]:
    """ Absolute indices of the features to take: all for None, the last n for an int, else those of a sequence."""
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


@contextmanager
def _frozen_batch_stats(module: nn.Module) -> Iterator[None]:
    """ Leave the running statistics alone: a recomputed forward pass must not count its batch a second time."""
    norms = [  # SyncBatchNorm included
        m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    kept = [(m.momentum, m.num_batches_tracked) for m in norms]
    for m in norms:
        m.momentum, m.num_batches_tracked = 0., m.num_batches_tracked.clone()
    try:
        yield
    finally:
        for m, (momentum, num_batches_tracked) in zip(norms, kept):
            m.momentum, m.num_batches_tracked = momentum, num_batches_tracked


def _checkpoint_blocks(blocks: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    for block in blocks:
        if torch.compiler.is_compiling():
            x = checkpoint(block, x, use_reentrant=False)
        else:
            x = checkpoint(
                block, x, use_reentrant=False, context_fn=lambda b=block: (nullcontext(), _frozen_batch_stats(b)))
    return x


def _reset_parameters(module: nn.Module) -> None:
    """ PyTorch's default initialisation of every layer, as published."""
    for m in module.modules():
        if hasattr(m, 'reset_parameters'):
            m.reset_parameters()


def _format_map(x: torch.Tensor, output_fmt: str) -> torch.Tensor:
    return x.flatten(2).transpose(1, 2) if output_fmt == 'NLC' else x


class HDKDTeacher(nn.Module):
    """ HDKD teacher: three convolutional stages, average pool, two linear layers with nothing between them.

    Args:
        img_size: Nominal image size. The network takes any size, this one is recorded for timm's data config.
        in_chans: Number of image channels.
        num_classes: Number of classes, 0 for no classifier.
        global_pool: 'avg', 'max', 'avgmax' or '' (none: logits for each position of the map, (B, classes, H, W)).
        depths: Number of stem layers, and of blocks in stages 2 and 3.
        dims: Channels of the three stages.
        hidden_size: Width between the two linear layers of the head.
        stem_stride: Stride of the first stem layer, 2 or 4 (a quarter of the work).
        attn: Attention in the blocks, 'cbam' (MBCSA) or 'se' (MBConv-SE).
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth rate of the last block, growing linearly from 0 at the first.

    Raises:
        ValueError: if an image size, stage, pooling or attention is none of the above.
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
            drop_rate: float = 0.,
            drop_path_rate: float = 0.,
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

        self.stages, self.feature_info = _build_stages(
            in_chans, depths, dims, stem_stride, attn, calculate_drop_path_rates(drop_path_rate, sum(depths[1:])), **dd)
        self.num_features = dims[-1]
        self.head_hidden_size = hidden_size
        self._set_global_pool(global_pool)
        self.head_hidden = nn.Linear(self.num_features, hidden_size, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(hidden_size, num_classes, **dd) if num_classes > 0 else nn.Identity()

    def init_weights(self) -> None:
        """ Initialise all weights as published, e.g. after `to_empty` of a model made on the meta device."""
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
        """ Record another nominal image size; the network itself takes any."""
        self.img_size = _check_img_size(img_size)
        update_model_input_size(self, self.img_size)

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """ Replace the classifier, on the same device, with the same dtype and mode."""
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
        """ Stage maps, and the features of `forward_features`, of one pass.

        Args:
            x: Images (B, in_chans, H, W).
            indices: Stages to take, from 0: the last n if int, all if None, those listed if a sequence.
            return_prefix_tokens: For the students; a teacher has no tokens and returns maps alone.
            norm: For the students; a teacher has no last norm.
            stop_early: Stop after the last stage taken; the final features are then that stage's.
            output_fmt: 'NCHW', or 'NLC' for (B, H * W, C).
            intermediates_only: Return the list of maps alone.
            output_dict: Return {'image_intermediates': list, 'image_features': tensor}.
        """
        if output_fmt not in ('NCHW', 'NLC'):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', got {output_fmt!r}.")
        take_indices = _take_indices(len(self.stages), indices)
        stages = self.stages[:max(take_indices) + 1] if stop_early else self.stages
        intermediates = []
        for i, stage in enumerate(stages):
            x = _checkpoint_blocks(stage, x) if self.grad_checkpointing else stage(x)
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
        """ Remove all that the given intermediates do not need. Returns their absolute indices."""
        take_indices = _take_indices(len(self.stages), indices)
        max_index = max(take_indices)
        if prune_head or max_index < len(self.stages) - 1:
            self.num_features = self.head_hidden_size = self.feature_info[max_index]['num_chs']
            self.head_hidden = nn.Identity()
            self.reset_classifier(0, '')
        self.stages = self.stages[:max_index + 1]
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """ (B, in_chans, H, W) -> (B, 192, ceil(H / 8), ceil(W / 8)), the last stage's map."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            for stage in self.stages:
                x = _checkpoint_blocks(stage, x)
        else:
            x = self.stages(x)
        return x

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """ (B, 192, H, W) -> (B, classes), or (B, 128) before the classifier. Unpooled, (B, ..., H, W)."""
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
    """ HDKD student: three convolutional stages, then a transformer on patches of the third (DFLT).

    Args:
        img_size: Image size, (H, W) or one number, of 28 pixels and more.
        in_chans: Number of image channels.
        num_classes: Number of classes, 0 for no classifier.
        global_pool: 'token' (class token, and distillation token if there is one), 'avg', 'max', 'avgmax' (over the
            patch tokens) or '' (none: logits for each token, (B, N, classes)).
        depths: Number of stem layers, of blocks in stages 2 and 3, and of transformer blocks.
        dims: Channels of the three stages.
        embed_dim: Width of the transformer.
        patch_size: Patch size in positions of the stage 3 map.
        num_heads: Attention heads.
        head_dim: Width of a head.
        mlp_ratio: Hidden width of the transformer's MLP over `embed_dim`.
        stem_stride: Stride of the first stem layer, 2 or 4 (a quarter of the work).
        attn: Attention in the convolutional blocks, 'cbam' (MBCSA) or 'se' (MBConv-SE).
        distilled: Have a distillation token and a second head for it (the paper's HDKD).
        drop_rate: Dropout before the classifiers.
        pos_drop_rate: Dropout after the position embedding.
        proj_drop_rate: Dropout after the attention's projection and both linear layers of the transformer's MLPs.
        attn_drop_rate: Dropout on the attention weights.
        drop_path_rate: Stochastic depth rate of the last block, growing linearly from 0 at the first MBCSA block.
        dynamic_img_size: Take images of any size from 28 pixels up, resampling the position embedding on the fly.
        dynamic_img_pad: Pad the stage 3 map with zeros to whole patches. If not set, positions at the bottom and at
            the right that fill no patch get no token.

    Raises:
        ValueError: if an image size, stage, pooling or attention is none of the above.
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
            mlp_ratio: float = 4.,
            stem_stride: int = 2,
            attn: str = 'cbam',
            distilled: bool = True,
            drop_rate: float = 0.,
            pos_drop_rate: float = 0.,
            proj_drop_rate: float = 0.,
            attn_drop_rate: float = 0.,
            drop_path_rate: float = 0.,
            dynamic_img_size: bool = False,
            dynamic_img_pad: bool = True,
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
        self.stages, self.feature_info = _build_stages(
            in_chans, depths, dims, stem_stride, attn, drop_path_rates, **dd)
        reduction = self.feature_info[-1]['reduction']
        patch_size = to_2tuple(patch_size)
        self.feature_info.append(dict(num_chs=embed_dim, reduction=reduction * max(patch_size), module='blocks'))

        self.patch_embed = PatchEmbed(
            dims[-1], embed_dim, patch_size, self._get_feat_size(self.img_size),
            dynamic_size=dynamic_img_size, pad=dynamic_img_pad, **dd)
        grid_size = self._get_grid_size(self.img_size)
        num_tokens = self.num_prefix_tokens + grid_size[0] * grid_size[1]
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim, **dd))
        self.dist_token = nn.Parameter(torch.empty(1, 1, embed_dim, **dd)) if distilled else None
        self.pos_embed = nn.Parameter(torch.empty(1, num_tokens, embed_dim, **dd))
        self.pos_drop = nn.Dropout(pos_drop_rate)
        self.blocks = nn.Sequential(*[
            Block(
                embed_dim, num_heads, head_dim, mlp_ratio,
                proj_drop=proj_drop_rate, attn_drop=attn_drop_rate, drop_path=rate, **dd)
            for rate in drop_path_rates[sum(depths[1:3]):]
        ])
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
        """ Initialise all weights as published, e.g. after `to_empty` of a model made on the meta device."""
        _reset_parameters(self)
        self._init_tokens()

    def _get_feat_size(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """ Size of the stage 3 map."""
        height, width = (math.ceil(s / self.feature_info[2]['reduction']) for s in img_size)
        return height, width

    def _get_grid_size(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """ Number of patches along height and width."""
        grid_size = self.patch_embed.get_grid_size(self._get_feat_size(img_size))
        if min(grid_size) < 1:
            raise ValueError(
                f'An image of {img_size} pixels holds no patch of {self.patch_embed.patch_size} positions.')
        return grid_size

    def _set_global_pool(self, global_pool: str) -> None:
        if global_pool not in ('', 'token', 'avg', 'max', 'avgmax'):
            raise ValueError(
                f"global_pool of a student must be 'token', 'avg', 'max', 'avgmax' or '', got {global_pool!r}.")
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
            blocks=[(r'^blocks\.(\d+)', None), (r'^norm', (99999,))],  # the last norm goes with the last block
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def set_distilled_training(self, enable: bool = True) -> None:
        """ Return the pair (class logits, distillation logits) in training mode, for a distillation loss.

        Raises:
            ValueError: if the network has no distillation token.
        """
        if enable and not self.distilled:
            raise ValueError('This student has no distillation token (distilled=False), use hdkd_student for that.')
        self.distilled_training = enable

    @torch.jit.ignore
    def set_input_size(self, img_size: Union[int, Tuple[int, int]]) -> None:
        """ Change the image size, resampling the position embedding of the patches.

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
        """ Replace the classifier (both heads), on the same device, with the same dtype and mode."""
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
        """ (B, h, w, D) -> (B, 2 + h * w, D), prefix tokens and position embedding added."""
        B, h, w, D = x.shape
        pos_embed = self.pos_embed
        if self.dynamic_img_size:
            pos_embed = resample_abs_pos_embed(
                pos_embed,
                new_size=[h, w],
                old_size=self.patch_embed.grid_size,
                num_prefix_tokens=self.num_prefix_tokens,
            )
        tokens = [self.cls_token.expand(B, -1, -1)]
        if self.dist_token is not None:
            tokens.append(self.dist_token.expand(B, -1, -1))
        tokens.append(x.reshape(B, h * w, D))
        return self.pos_drop(torch.cat(tokens, dim=1) + pos_embed)

    def _check_input(self, x: torch.Tensor) -> None:
        H, W = x.shape[-2:]
        if self.patch_embed is None:  # pruned to its convolutional stages, which take any size
            pass
        elif self.dynamic_img_size:
            torch._assert(H >= 28, 'Images must be at least 28 pixels high.')
            torch._assert(W >= 28, 'Images must be at least 28 pixels wide.')
        else:
            height, width = self.img_size
            torch._assert(
                H == height,
                f"Image height ({H}) doesn't match the model's ({height}), see set_input_size() and dynamic_img_size.")
            torch._assert(
                W == width,
                f"Image width ({W}) doesn't match the model's ({width}), see set_input_size() and dynamic_img_size.")

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
        """ Maps of the three stages and of the patch tokens, and the features of `forward_features`, of one pass.

        Args:
            x: Images (B, in_chans, H, W).
            indices: Maps to take, 0 to 2 for the stages, 3 for the patch tokens after the last block: the last n if
                int, all if None, those listed if a sequence.
            return_prefix_tokens: Return pairs (map, prefix tokens); the stages have none, (B, 0, C).
            norm: Apply the last norm to the patch tokens.
            stop_early: Stop after the last map taken; if that is a stage, the final features are its map.
            output_fmt: 'NCHW', or 'NLC' for (B, H * W, C).
            intermediates_only: Return the list of maps alone.
            output_dict: Return {'image_intermediates': list, 'image_features': tensor}, and
                'image_intermediates_prefix' with `return_prefix_tokens`.
        """
        if output_fmt not in ('NCHW', 'NLC'):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', got {output_fmt!r}.")
        take_indices = _take_indices(len(self.stages) + (self.patch_embed is not None), indices)
        last_index = max(take_indices) if stop_early else 3
        self._check_input(x)
        intermediates, prefix_tokens = [], []
        for i, stage in enumerate(self.stages[:last_index + 1]):
            x = _checkpoint_blocks(stage, x) if self.grad_checkpointing else stage(x)
            if i in take_indices:
                intermediates.append(_format_map(x, output_fmt))
                prefix_tokens.append(x.new_empty(x.shape[0], 0, x.shape[1]))

        if self.patch_embed is not None and last_index == 3:
            x = self.patch_embed(x)
            B, h, w, D = x.shape
            x = self._pos_embed(x)
            x = _checkpoint_blocks(self.blocks, x) if self.grad_checkpointing else self.blocks(x)
            x_norm = self.norm(x)
            if 3 in take_indices:
                tokens = x_norm if norm else x
                prefix_tokens.append(tokens[:, :self.num_prefix_tokens])
                tokens = tokens[:, self.num_prefix_tokens:]
                intermediates.append(
                    tokens if output_fmt == 'NLC' else tokens.transpose(1, 2).reshape(B, D, h, w))
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
        """ Remove all that the given intermediates do not need. Returns their absolute indices."""
        take_indices = _take_indices(len(self.stages) + (self.patch_embed is not None), indices)
        max_index = max(take_indices)
        prune_transformer = max_index < 3
        if prune_transformer:
            self.stages = self.stages[:max_index + 1]
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
        """ (B, in_chans, H, W) -> (B, 2 + N, 256): class, distillation and N patch tokens after the last norm.

        Without distillation token (B, 1 + N, 256).
        """
        self._check_input(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            for stage in self.stages:
                x = _checkpoint_blocks(stage, x)
        else:
            x = self.stages(x)
        if self.patch_embed is None:  # pruned
            return x
        x = self.patch_embed(x)
        x = self._pos_embed(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = _checkpoint_blocks(self.blocks, x)
        else:
            x = self.blocks(x)
        return self.norm(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """ (B, 2 + N, 256) -> (B, classes), the mean of both heads' logits; (B, 256) before the classifiers.

        A pair of (B, classes) in training mode after `set_distilled_training()`. A student pruned to its stages takes
        and, unpooled, returns maps (B, ..., H, W).
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
    """ The state dict's position embedding for the model's grid of patches.

    Raises:
        ValueError: if only one of both has a distillation token, or if the grid that was trained cannot be told.
    """
    pos_embed = state_dict['pos_embed']
    distilled = 'dist_token' in state_dict
    if distilled != model.distilled:
        has, wants = ('a', 'distilled=False') if distilled else ('no', 'distilled=True')
        raise ValueError(
            f"The checkpoint has {has} distillation token and the model is built with {wants}: use"
            f" {'hdkd_student' if distilled else 'hdkd_student_plain'} for this checkpoint.")
    num_patches = pos_embed.shape[1] - model.num_prefix_tokens
    side = math.isqrt(num_patches)
    # the grid of the checkpoint's image size; where its size was not recorded, the model's own one or a square
    candidates = (
        model._get_grid_size(tuple(model.pretrained_cfg['input_size'][-2:])), model.patch_embed.grid_size, (side, side))
    old_size = next((grid for grid in candidates if grid[0] * grid[1] == num_patches), None)
    if old_size is None:
        raise ValueError(
            f'The checkpoint has {num_patches} patch positions, not a square: name the image size that it was trained'
            ' at, pretrained_cfg_overlay=dict(input_size=(channels, height, width)).')
    return resample_abs_pos_embed(
        pos_embed, new_size=model.patch_embed.grid_size, old_size=old_size, num_prefix_tokens=model.num_prefix_tokens)


_FIRST_CONV = 'stages.0.0.conv'


def checkpoint_filter_fn(state_dict: Dict[str, Any], model: nn.Module) -> Dict[str, torch.Tensor]:
    """ Fit a checkpoint, ours or the published code's, to a model: names, position embedding, first conv."""
    state_dict = convert_state_dict(state_dict)
    # released weights are of half precision, but not what is made of them
    state_dict = {
        k: v.float() if isinstance(v, torch.Tensor) and v.dtype == torch.float16 else v for k, v in state_dict.items()}
    if 'pos_embed' in state_dict and isinstance(model, HDKDStudent):
        state_dict = dict(state_dict, pos_embed=_resample_pos_embed(state_dict, model))
    if not ADAPTS_FIRST_CONV and f'{_FIRST_CONV}.weight' in state_dict:
        weight = adapt_first_conv(state_dict[f'{_FIRST_CONV}.weight'], model.in_chans)
        state_dict = dict(state_dict, **{f'{_FIRST_CONV}.weight': weight})
    return state_dict


def _cfg(url: str = '', **kwargs: Any) -> Dict[str, Any]:
    return {
        'url': url, 'num_classes': 7, 'input_size': (3, 224, 224), 'min_input_size': (3, MIN_IMG_SIZE, MIN_IMG_SIZE),
        'pool_size': (28, 28), 'crop_pct': 1.0, 'crop_mode': 'squash', 'interpolation': 'bilinear',
        'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD,
        'first_conv': _FIRST_CONV, 'classifier': 'head',
        'paper_ids': 'arXiv:2407.07516',
        'paper_name': 'HDKD: Hybrid Data-Efficient Knowledge Distillation Network for Medical Image Classification',
        'origin_url': 'https://github.com/omarsherif200/HDKD',
        **kwargs
    }


# its features are tokens: no pool size, which would tell other code that they are a map
_student_cfg = partial(_cfg, pool_size=None, fixed_input_size=True)

# the data that weights were released for
_brain_mri = dict(
    num_classes=4, label_names=('glioma', 'meningioma', 'notumor', 'pituitary'), license='cc0-1.0')
_ham10k = dict(
    num_classes=7, label_names=('akiec', 'bcc', 'bkl', 'df', 'mel', 'nv', 'vasc'), license='cc-by-nc-4.0')


default_cfgs = generate_default_cfgs({
    'hdkd_teacher.brain_mri': _cfg(hf_hub_id=hub_id('hdkd_teacher.brain_mri'), **_brain_mri),
    'hdkd_teacher.ham10k': _cfg(hf_hub_id=hub_id('hdkd_teacher.ham10k'), **_ham10k),
    'hdkd_student.brain_mri': _student_cfg(
        hf_hub_id=hub_id('hdkd_student.brain_mri'), classifier=('head', 'head_dist'), **_brain_mri),
    'hdkd_student.ham10k': _student_cfg(
        hf_hub_id=hub_id('hdkd_student.ham10k'), classifier=('head', 'head_dist'), **_ham10k),
    'hdkd_student_plain.untrained': _student_cfg(),
    'hdkd_teacher_s4.untrained': _cfg(pool_size=(14, 14)),
    'hdkd_student_s4.untrained': _student_cfg(classifier=('head', 'head_dist')),
})


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
        pretrained_cfg_overlay.setdefault('label_names', None)  # those of the weights are not the model's
    pretrained_cfg_overlay = {**release_overlay(cfg, pretrained, kwargs.get('cache_dir')), **pretrained_cfg_overlay}
    if not ADAPTS_FIRST_CONV:
        pretrained_cfg_overlay['first_conv'] = None  # checkpoint_filter_fn adapts it instead of timm
    model = build_model_with_cfg(
        model_cls, variant, pretrained,
        pretrained_cfg_overlay=pretrained_cfg_overlay,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(
            out_indices=(0, 1, 2) if model_cls is HDKDTeacher else (0, 1, 2, 3),
            feature_cls='getter',
            flatten_sequential=True,
        ),
        **kwargs,
    )
    model.pretrained_cfg['first_conv'] = _FIRST_CONV
    record_model_args(model, model_cls, kwargs)
    return model


@register_model
def hdkd_teacher(pretrained: bool = False, **kwargs: Any) -> HDKDTeacher:
    """ HDKD teacher: a CNN, 3.9 M parameters."""
    return _create_hdkd(HDKDTeacher, 'hdkd_teacher', pretrained=pretrained, **kwargs)


@register_model
def hdkd_student(pretrained: bool = False, **kwargs: Any) -> HDKDStudent:
    """ HDKD student with class and distillation token (the paper's HDKD), 3.7 M parameters."""
    return _create_hdkd(HDKDStudent, 'hdkd_student', pretrained=pretrained, **kwargs)


@register_model
def hdkd_student_plain(pretrained: bool = False, **kwargs: Any) -> HDKDStudent:
    """ HDKD student without distillation token (the paper's baseline student)."""
    model_args = dict(distilled=False)
    return _create_hdkd(HDKDStudent, 'hdkd_student_plain', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def hdkd_teacher_s4(pretrained: bool = False, **kwargs: Any) -> HDKDTeacher:
    """ HDKD teacher with stride 4 in the first stem layer, about a quarter of the work."""
    model_args = dict(stem_stride=4)
    return _create_hdkd(HDKDTeacher, 'hdkd_teacher_s4', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def hdkd_student_s4(pretrained: bool = False, **kwargs: Any) -> HDKDStudent:
    """ HDKD student with stride 4 in the first stem layer, about a quarter of the work."""
    model_args = dict(stem_stride=4)
    return _create_hdkd(HDKDStudent, 'hdkd_student_s4', pretrained=pretrained, **dict(model_args, **kwargs))
