"""The frozen teachers of a distillation, what they are given to see, and logits that stand in for them."""

import copy
import math
from typing import Any, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from timm.utils import reparameterize_model
from torch import nn

from .networks import image_size
from .outputs import get_channel_stats

__all__ = ['StoredLogits', 'TeacherInput', 'average_logits', 'find_teacher_size', 'freeze_teacher']


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


def average_logits(logits: torch.Tensor) -> torch.Tensor:
    """Logits of the mean of several teachers' class probabilities, in float32: its logarithm.

    Args:
        logits: (M, B, K), of M teachers.

    Returns:
        (B, K).
    """
    return F.log_softmax(logits.float(), dim=-1).logsumexp(dim=0) - math.log(len(logits))


class StoredLogits(nn.Module):
    """Logits that teachers computed before the training, in their place: a step runs no teacher.

    The student must see the views that the teachers saw, "consistent teaching" of Beyer et al., arXiv 2106.05237. Epoch
    e has view e mod V. `SplitLoader` with `views` augments the images so.

    Args:
        logits: (M, V, N, K): M teachers, V views, N training images, K classes. Kept as they are, usually in float16.
        names: Names of the M teachers.
        is_same_view: Whether the student sees the views; False where it is augmented anew in each epoch, and thus sees
            another image than the teachers did.

    Raises:
        ValueError: if the logits have another shape, or there are not as many names as teachers.
    """

    logits: torch.Tensor

    def __init__(self, logits: torch.Tensor, names: Sequence[str] = (), is_same_view: bool = True):
        super().__init__()
        if logits.ndim != 4 or not logits.numel():
            raise ValueError(f'Stored logits must be (teachers, views, images, classes), got {tuple(logits.shape)}.')
        self.num_teachers, self.num_views, self.num_images, self.num_classes = logits.shape
        self.names = list(names) or [f'stored logits {i + 1}' for i in range(self.num_teachers)]
        if len(self.names) != self.num_teachers:
            raise ValueError(f'{self.num_teachers} teachers have stored logits, got {len(self.names)} names for them.')
        self.views = self.num_views if is_same_view else None
        # not a part of checkpoints; three dimensions, which a channels-last layout leaves alone
        self.register_buffer('logits', logits.flatten(1, 2), persistent=False)

    def forward(self, index: torch.Tensor, epoch: int) -> torch.Tensor:
        """Logits of a batch, (M, B, K), float32.

        Args:
            index: Number of each image in the training data, (B,).
            epoch: Epochs done.
        """
        return self.logits[:, (epoch % self.num_views) * self.num_images + index].float()
