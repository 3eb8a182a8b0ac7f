"""ICKD: correlations between the channels of the last map."""

from typing import Any, Dict, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ..networks import Pair
from ..outputs import Needs, Outputs
from .base import Method


def channel_correlation(features: torch.Tensor) -> torch.Tensor:
    """Products of all pairs of channels, each row of them divided by its norm, (B, C, H, W) -> (B, C, C)."""
    features = features.flatten(2)  # (B, C, H * W)
    return F.normalize(features @ features.mT, dim=2, eps=1e-12)


def ickd_loss(student_map: torch.Tensor, teacher_map: torch.Tensor) -> torch.Tensor:
    """Squared difference of the correlations of channels: sum over B * C * C entries / (B * C).

    Computed in float32. Source: ICKD-C, Liu et al. ICCV 2021, as in its code for CIFAR, which does not depend on the
    size of the batch; its code for ImageNet divides by B * B * C.

    Args:
        student_map: (B, C, H_s, W_s).
        teacher_map: (B, C, H_t, W_t).

    Returns:
        Scalar loss.
    """
    with torch.autocast(student_map.device.type, enabled=False):
        s, t = channel_correlation(student_map.float()), channel_correlation(teacher_map.float())
        return (s - t).square().sum() / (s.shape[0] * s.shape[1])


class ICKD(Method):
    """The student's channels, mapped to the teacher's number by a 1x1 convolution and a BatchNorm, correlate as the
    teacher's do (ICKD-C). Positions are summed over, so the maps may differ in size.

    A map of C channels of the teacher takes B * C * C numbers.

    Args:
        pair: The networks.
        weight: Weight of the loss; 2.5 as published for CIFAR-100.
        stages: One 'S:T', the stages that are compared; the last of each network if empty.

    Raises:
        ValueError: for a setting out of range, or if a network has no stages.
    """

    name = 'ickd'
    source = 'Liu et al. 2021, ICCV; compared with ADLab-AutoDrive/ICKD at 403b8d3'

    def __init__(self, pair: Pair, *, weight: float = 2.5, stages: Sequence[str] = ()):
        self.stages = pair.match_one_stage(self.name, stages)
        super().__init__(weight, Needs(stages=self.stages[:1]), Needs(stages=self.stages[1:]))
        channels = pair.teacher.stage(self.stages[1]).channels
        self.embed = nn.Sequential(
            nn.Conv2d(pair.student.stage(self.stages[0]).channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )

    def describe(self) -> Dict[str, Any]:
        return {'stages': '{}:{}'.format(*self.stages)}

    def forward(
        self, student: Outputs, teacher: Outputs, target: torch.Tensor, index: Optional[torch.Tensor] = None
    ) -> Dict[str, torch.Tensor]:
        of_student, of_teacher = self.stages
        return {'loss': ickd_loss(self.embed(student.maps[of_student]), teacher.maps[of_teacher])}
