"""ReviewKD: a fusion of the student's maps of a stage and all deeper ones is compared with the teacher's map."""

from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import nn

from ..networks import Pair
from ..outputs import Needs, Outputs
from .base import Method, check_number

LEVELS = (4, 2, 1)
MAX_CHANNELS = 512


def hierarchical_context_loss(student_map: torch.Tensor, teacher_map: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of two maps and of their averages in 4 x 4, 2 x 2 and 1 x 1 cells, (B, C, H, W) each.

    The i-th of the levels that are smaller than the map has weight 1 / 2^i, the map itself 1; the weighted sum is
    divided by the sum of the weights. Computed in float32.

    Source: HCL, arXiv 2104.09044, section 3.3. Maps need not be square: a side that is shorter than a level is kept.
    """
    height, width = teacher_map.shape[-2:]
    with torch.autocast(student_map.device.type, enabled=False):
        s, t = student_map.float(), teacher_map.float()
        loss, weight, total = F.mse_loss(s, t), 1.0, 1.0
        for level in LEVELS:
            if level < max(height, width):
                cells = (min(level, height), min(level, width))
                weight /= 2
                total += weight
                loss = loss + weight * F.mse_loss(F.adaptive_avg_pool2d(s, cells), F.adaptive_avg_pool2d(t, cells))
    return loss / total


class AttentionFusion(nn.Module):
    """Fuse a map of the student with what came from the deeper ones, weighted at each position (ABF).

    Args:
        in_channels: Channels of the student's map.
        mid_channels: Channels of the fused map.
        out_channels: Channels of the teacher's map.
        deepest: Whether there is nothing deeper to fuse with.
    """

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int, deepest: bool):
        super().__init__()
        self.reduce = _conv_norm(in_channels, mid_channels, 1)
        self.attention = None if deepest else nn.Conv2d(2 * mid_channels, 2, 1)
        self.expand = _conv_norm(mid_channels, out_channels, 3)

    def forward(
        self, x: torch.Tensor, deeper: Optional[torch.Tensor], size: Tuple[int, int]
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Fuse, and resize to the teacher's size.

        Args:
            x: The student's map, (B, C_in, H, W).
            deeper: The fused map of the next deeper one, (B, C_mid, h, w); None for the deepest.
            size: Height and width of the teacher's map.

        Returns:
            The map to compare with the teacher's, (B, C_out, *size), and the fused one, (B, C_mid, *size).
        """
        x = self.reduce(x)
        if self.attention is not None:
            deeper = F.interpolate(deeper, x.shape[-2:], mode='nearest')
            weights = self.attention(torch.cat([x, deeper], dim=1)).sigmoid()  # (B, 2, H, W)
            x = x * weights[:, :1] + deeper * weights[:, 1:]
        if x.shape[-2:] != size:
            x = F.interpolate(x, size, mode='nearest')
        return self.expand(x), x


def _conv_norm(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


class ReviewKD(Method):
    """From the deepest map to the first, the student's are fused, and compared with the teacher's at each stage by
    `hierarchical_context_loss`. The pooled features are the deepest map, of one position.

        loss = warm-up * sum over stages and pooled features

    The teacher's maps are those that timm returns, after the activation where a stage ends in one; the authors take
    them before it. The layers have BatchNorms over the pooled features: a batch needs two images at least.

    Args:
        pair: The networks.
        weight: Weight of the loss; 5 as published for ResNet-32x4 and ResNet-8x4 on CIFAR-100, 0.6 to 8 for other
            pairs, 1 on ImageNet.
        warmup: Fraction of the epochs over which the loss grows linearly, from 0 in the first; 20 of 240 as published.
        stages: 'S:T', stages that are compared; all of equal strides but a stem if empty.

    Raises:
        ValueError: for a setting out of range, if no stages match, or if a network does not return its pooled features.
    """

    name = 'reviewkd'
    source = 'Chen et al. 2021, arXiv 2104.09044; compared with dvlab-research/ReviewKD at cede6ea'
    schedule = 'warmup'

    def __init__(self, pair: Pair, *, weight: float = 5.0, warmup: float = 1 / 12, stages: Sequence[str] = ()):
        matched = pair.match_stages(self.name, stages)
        self.stages = sorted(matched if stages else _without_stems(pair, matched))
        of_student, of_teacher = (tuple(numbers) for numbers in zip(*self.stages))
        super().__init__(weight, Needs(stages=of_student, pooled=True), Needs(stages=of_teacher, pooled=True))
        self.warmup = check_number(self.name, 'warmup', warmup, at_least=0, at_most=1)
        pooled_s, pooled_t = pair.pooled_dims(self.name)
        s = [*(pair.student.stage(number).channels for number in of_student), pooled_s]
        t = [*(pair.teacher.stage(number).channels for number in of_teacher), pooled_t]
        mid = min(MAX_CHANNELS, pooled_s)
        self.fusions = nn.ModuleList(
            AttentionFusion(s[i], mid, t[i], deepest=i == len(s) - 1) for i in reversed(range(len(s)))
        )
        self.register_buffer('warm', torch.ones(()), persistent=False)

    def describe(self) -> Dict[str, Any]:
        return {'stages': ' '.join(f'{s}:{t}' for s, t in self.stages) + ' and pooled'}

    def set_epoch(self, epoch: int, epochs: int) -> None:
        length = self.warmup * epochs
        self.warm.fill_(min(1.0, epoch / length) if length >= 1 else 1.0)  # one shorter than an epoch is none

    def fuse(self, student_maps: Sequence[torch.Tensor], sizes: Sequence[Tuple[int, int]]) -> List[torch.Tensor]:
        """The student's maps to compare with the teacher's.

        Args:
            student_maps: The student's, first stage first, pooled features as a map last.
            sizes: Heights and widths of the teacher's.

        Returns:
            Maps of the teacher's shapes, first stage first.
        """
        fused: Optional[torch.Tensor] = None
        results = []
        for fusion, x, size in zip(self.fusions, reversed(student_maps), reversed(sizes)):
            result, fused = fusion(x, fused, size)
            results.append(result)
        return results[::-1]

    def forward(
        self, student: Outputs, teacher: Outputs, target: torch.Tensor, index: Optional[torch.Tensor] = None
    ) -> Dict[str, torch.Tensor]:
        s, t = _get_maps(student, [stage for stage, _ in self.stages]), _get_maps(teacher, [t for _, t in self.stages])
        fused = self.fuse(s, [x.shape[-2:] for x in t])
        return {'loss': self.warm * sum(hierarchical_context_loss(*maps) for maps in zip(fused, t))}


def _get_maps(outputs: Outputs, stages: Sequence[int]) -> List[torch.Tensor]:
    """Maps of these stages, and the pooled features as a map of one position."""
    pooled: Any = outputs.pooled
    return [*(outputs.maps[stage] for stage in stages), pooled[:, :, None, None]]


def _without_stems(pair: Pair, matched: List[Tuple[int, int]]) -> List[Tuple[int, int]]:
    """Leave out what timm counts as a stage but is the layer before the first: published are the groups of blocks."""
    modules = [(pair.student.stage(s).module, pair.teacher.stage(t).module) for s, t in matched]
    kept = [
        stages
        for stages, names in zip(matched, modules)
        if not any(name.startswith(('stem', 'conv1', 'act1')) for name in names)
    ]
    return kept or matched
