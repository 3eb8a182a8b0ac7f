"""MGD: the teacher's map is generated from the student's with some of its channels masked."""

from typing import Any, Dict, Optional, Sequence

import torch
from torch import nn

from ..networks import Pair
from ..outputs import Needs, Outputs
from .base import Method, check_number


def draw_keep_mask(features: torch.Tensor, mask_ratio: float) -> torch.Tensor:
    """0 for a channel of an image with probability `mask_ratio`, else 1: (B, C, H, W) -> (B, C, 1, 1)."""
    return (torch.rand(*features.shape[:2], 1, 1, device=features.device) >= mask_ratio).to(features.dtype)


def mgd_loss(generated_map: torch.Tensor, teacher_map: torch.Tensor) -> torch.Tensor:
    """Sum of the squared differences of two maps for each image, averaged over the images.

    Computed in float32. Source: arXiv 2205.01529, without its factor alpha.

    Args:
        generated_map: (B, C, H, W).
        teacher_map: (B, C, H, W).

    Returns:
        Scalar loss.

    Raises:
        ValueError: if the shapes differ.
    """
    if generated_map.shape != teacher_map.shape:
        raise ValueError(
            f"mgd: the generated map is {tuple(generated_map.shape)}, the teacher's {tuple(teacher_map.shape)}: choose"
            ' other stages, mgd.stages=STUDENT:TEACHER.'
        )
    with torch.autocast(generated_map.device.type, enabled=False):
        return (generated_map.float() - teacher_map.float()).square().sum() / len(teacher_map)


class MGD(Method):
    """The student's map, brought to the teacher's channels by a 1x1 convolution where they differ, then masked, must
    generate the teacher's by two 3x3 convolutions. As for classification, whole channels are masked.

    The loss is a sum over channels and positions, so that the same weight means more on a larger map: `describe` states
    it per entry of the map, the weight of a mean squared error. The default is 1.76 at the 512 x 7 x 7 of a
    ResNet-34, and 10.5 at the 192 x 28 x 28 of HDKD's stage 3.

    Args:
        pair: The networks.
        weight: alpha, weight of the loss.
        mask_ratio: lambda, probability that a channel is masked.
        stages: One 'S:T', the stages that are compared; the last that have the same stride if empty.

    Raises:
        ValueError: for a setting out of range, or if the two maps differ in size.
    """

    name = 'mgd'
    source = 'Yang et al. 2022, arXiv 2205.01529; compared with yzd-v/MGD at 2c9da0b'

    def __init__(self, pair: Pair, *, weight: float = 7e-5, mask_ratio: float = 0.15, stages: Sequence[str] = ()):
        of_student, of_teacher = self.stages = pair.match_one_stage(self.name, stages, same_stride=True)
        super().__init__(weight, Needs(stages=(of_student,)), Needs(stages=(of_teacher,)))
        self.mask_ratio = check_number(self.name, 'mask_ratio', mask_ratio, at_least=0, at_most=1)
        s, t = pair.student.stage(of_student), pair.teacher.stage(of_teacher)
        if s.size != t.size:
            raise pair.error(
                self.name,
                f'the maps of stages {of_student} and {of_teacher} are of {s.size[0]} x {s.size[1]} and'
                f' {t.size[0]} x {t.size[1]} positions: name stages of one size, mgd.stages=STUDENT:TEACHER, or choose'
                " a method that takes any sizes, such as 'ickd'.",
            )
        self.entries = t.channels * t.size[0] * t.size[1]
        self.align = nn.Conv2d(s.channels, t.channels, 1) if s.channels != t.channels else nn.Identity()
        self.generate = nn.Sequential(
            nn.Conv2d(t.channels, t.channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(t.channels, t.channels, 3, padding=1),
        )

    def describe(self) -> Dict[str, Any]:
        return {'stages': '{}:{}'.format(*self.stages), 'weight per entry': f'{self.weight * self.entries:.3g}'}

    def forward(
        self, student: Outputs, teacher: Outputs, target: torch.Tensor, index: Optional[torch.Tensor] = None
    ) -> Dict[str, torch.Tensor]:
        of_student, of_teacher = self.stages
        features = self.align(student.maps[of_student])
        generated = self.generate(features * draw_keep_mask(features, self.mask_ratio))
        return {'loss': mgd_loss(generated, teacher.maps[of_teacher])}
