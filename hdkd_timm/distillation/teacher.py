"""The frozen teacher of a distillation, and what it is given to see."""

import copy
from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F
from timm.utils import reparameterize_model
from torch import nn

from .networks import image_size
from .outputs import get_channel_stats

__all__ = ['TeacherInput', 'find_teacher_size', 'freeze_teacher']


def freeze_teacher(teacher: nn.Module) -> nn.Module:
    """A copy of a network for inference: frozen, in eval mode, channels-last, BatchNorms folded if it supports that."""
    frozen = reparameterize_model(copy.deepcopy(teacher).eval(), inplace=True).requires_grad_(False)
    param = next(teacher.parameters())  # timm fuses some layers into new ones on the CPU, in float32
    return frozen.to(param.device, param.dtype, memory_format=torch.channels_last)


def find_teacher_size(teacher: nn.Module, input_size: Tuple[int, int]) -> Optional[Tuple[int, int]]:
    """The only image size that a teacher takes, if that is not `input_size`; None where no resizing is needed."""
    cfg = getattr(teacher, 'pretrained_cfg', None) or {}
    is_fixed = cfg.get('fixed_input_size') and not getattr(teacher, 'dynamic_img_size', False)
    size = image_size(teacher)
    return size if is_fixed and size != input_size else None


class TeacherInput(nn.Module):
    """Turns images that are normalised for the student into the teacher's: its mean and deviation, its size.

    Args:
        student: The student.
        teacher: The teacher.
        size: Height and width that the teacher takes; None for those of the student's images.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, size: Optional[Tuple[int, int]], **dd: Any):
        super().__init__()
        (mean_s, std_s), (mean_t, std_t) = get_channel_stats(student), get_channel_stats(teacher)
        self.renormalize = not (torch.equal(mean_s, mean_t) and torch.equal(std_s, std_t))
        self.size = size
        self.register_buffer('scale', (std_s / std_t).to(**dd), persistent=False)
        self.register_buffer('shift', ((mean_s - mean_t) / std_t).to(**dd), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.renormalize:
            x = x * self.scale + self.shift
        if self.size is not None and self.size != tuple(x.shape[-2:]):
            x = F.interpolate(x, self.size, mode='bilinear', antialias=True, align_corners=False)
        return x.contiguous(memory_format=torch.channels_last)
