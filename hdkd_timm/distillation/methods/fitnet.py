"""FitNets: a map of the student is projected onto the teacher's and compared by its squared difference."""

import logging
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import nn

from ..losses import feature_distillation_losses
from ..networks import Pair, StageInfo
from ..outputs import Needs, Outputs
from .base import Method, check_choice

_logger = logging.getLogger(__name__)

PROJECTORS = ('conv_bn', 'conv')
MAX_KERNEL = 5  # of a convolution that only cuts a border off


def resize_map(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """A map in another size, (B, C, H, W) -> (B, C, *size): averages where it shrinks, else bilinear interpolation."""
    if list(x.shape[2:]) == list(size):
        return x
    if all(new <= old for new, old in zip(size, x.shape[2:])):
        return F.adaptive_avg_pool2d(x, list(size))
    return F.interpolate(x, list(size), mode='bilinear')


class Projector(nn.Module):
    """Projects a map of the student onto the shape of the teacher's.  (B, C_s, H_s, W_s) -> (B, C_t, *size)

    For equal shapes it is the identity. Otherwise, with H and W alike:

        'conv_bn'   H_s = 2 H_t:          conv 3x3 of stride 2     -> BatchNorm
                    2 H_s = H_t:          transposed conv 4x4 of stride 2 -> BatchNorm
                    H_s = H_t + 0 to 4:   conv of kernel 1 + H_s - H_t without padding -> BatchNorm
                    other sizes:          resize -> conv 1x1 -> BatchNorm
        'conv'      resize -> conv 1x1 without bias

    The published rule has a convolution of kernel 1 + H_s - H_t for larger differences too.

    Args:
        student: The student's stage.
        teacher: The teacher's.
        kind: 'conv_bn' or 'conv'.
        relu: Whether a ReLU ends it.
    """

    def __init__(self, student: StageInfo, teacher: StageInfo, kind: str = 'conv_bn', relu: bool = False):
        super().__init__()
        chs, sizes = (student.channels, teacher.channels), list(zip(student.size, teacher.size))
        self.is_identity = (student.channels, student.size) == (teacher.channels, teacher.size)
        self.conv: nn.Module = nn.Identity()
        self.bn: nn.Module = nn.Identity()
        self.act: nn.Module = nn.ReLU() if relu and not self.is_identity else nn.Identity()
        if self.is_identity:
            return
        if kind == 'conv':
            self.conv = nn.Conv2d(*chs, 1, bias=False)
            nn.init.kaiming_normal_(self.conv.weight, mode='fan_out', nonlinearity='relu')
            return
        self.conv = _create_conv(*chs, sizes)
        self.bn = nn.BatchNorm2d(teacher.channels)

    def forward(self, x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        if getattr(self.conv, 'kernel_size', (1, 1)) == (1, 1):
            x = resize_map(x, size)
        # the sizes that the layers were chosen for are those of the nominal image size
        return resize_map(self.act(self.bn(self.conv(x))), size)


def _create_conv(in_chs: int, out_chs: int, sizes: List[Tuple[int, int]]) -> nn.Module:
    """The convolution for sizes of student and teacher, a pair for each of H and W."""
    if all(s == 2 * t for s, t in sizes):
        return nn.Conv2d(in_chs, out_chs, 3, stride=2, padding=1)
    if all(2 * s == t for s, t in sizes):
        return nn.ConvTranspose2d(in_chs, out_chs, 4, stride=2, padding=1)
    kernel = [1 + s - t for s, t in sizes]
    return nn.Conv2d(in_chs, out_chs, tuple(kernel) if 1 <= min(kernel) <= max(kernel) <= MAX_KERNEL else 1)


class FitNet(Method):
    """Hints: the sum over the stages of the mean squared difference of the projected map and the teacher's.

    The hint is learned together with the labels, as in the code that is in use, not before them as in the paper. For
    maps of equal shape the loss is that of HDKD's stages.

    Args:
        pair: Networks with stages; channels and sizes of the maps may differ.
        weight: Weight of the loss. Published: 100 (CIFAR-100, mdistiller), 1 with 'conv' and all stages (OFAKD).
        stages: 'S:T', stages of student and teacher to compare, from 1, or 'S'; if empty, the middle one of the strides
            that both have.
        projector: What projects maps of unequal shape, 'conv_bn' or 'conv', see `Projector`.
        relu: Whether a ReLU ends the projector. Published: yes, for maps after a ReLU; those of timm's ConvNeXts, ViTs
            and of HDKD have both signs.

    Raises:
        ValueError: for a setting out of range, or if the pair has no such stages.
    """

    name = 'fitnet'
    source = 'Romero et al. 2015, arXiv 1412.6550; tensors of mdistiller (a08d46f) and OFAKD (f7bb896)'

    def __init__(
        self,
        pair: Pair,
        *,
        weight: float = 100.0,
        stages: Sequence[str] = (),
        projector: str = 'conv_bn',
        relu: bool = False,
    ):
        matched = pair.match_stages(self.name, stages)
        pairs = matched if stages else [matched[len(matched) // 2]]
        super().__init__(weight, *(Needs(stages=tuple(dict.fromkeys(numbers))) for numbers in zip(*pairs)))
        self.pairs = pairs
        check_choice(self.name, 'projector', projector, PROJECTORS)
        self.projectors = nn.ModuleDict(
            {str(s): Projector(pair.student.stage(s), pair.teacher.stage(t), projector, relu) for s, t in pairs}
        )
        if relu and all(p.is_identity for p in self.projectors.values()):
            _logger.warning("Method 'fitnet': maps of equal shape have no projector, so that fitnet.relu does nothing.")

    def describe(self) -> Dict[str, Any]:
        words = [f'{s}:{t}{" without projector" if self.projectors[str(s)].is_identity else ""}' for s, t in self.pairs]
        return {'stages': ' '.join(words)}

    def forward(
        self, student: Outputs, teacher: Outputs, target: torch.Tensor, index: Optional[torch.Tensor] = None
    ) -> Dict[str, torch.Tensor]:
        """As `Method.forward`; the parts are 'loss_STAGE', by the student's stage."""
        hints = [teacher.maps[t] for _, t in self.pairs]
        maps = [self.projectors[str(s)](student.maps[s], hint.shape[2:]) for (s, _), hint in zip(self.pairs, hints)]
        losses = feature_distillation_losses(maps, hints, [s for s, _ in self.pairs])
        return {'loss': torch.stack(list(losses.values())).sum(), **{f'loss_{s}': part for s, part in losses.items()}}
