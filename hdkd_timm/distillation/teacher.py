"""The frozen teachers of a distillation, what they are given to see, and logits that stand in for them."""

import copy
import dataclasses
import math
from typing import Any, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from timm.utils import reparameterize_model, unwrap_model
from torch import nn

from .._compat import image_size
from .networks import NetworkInfo
from .outputs import Needs, Outputs, forward_outputs, get_channel_stats

__all__ = ['StoredLogits', 'TeacherInput', 'Teachers', 'average_logits', 'find_teacher_size', 'freeze_teacher']


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


def average_logits(logits: torch.Tensor, multi_label: bool = False) -> torch.Tensor:
    """Logits of the mean of several teachers' class probabilities, in float32: its logarithm; of images with any number
    of labels, the log odds of the mean probability of each label.

    Args:
        logits: (M, B, K), of M teachers.
        multi_label: Whether images have any number of labels.

    Returns:
        (B, K).
    """
    if multi_label:
        yes, no = (F.logsigmoid(sign * logits.float()).logsumexp(dim=0) for sign in (1, -1))
        return yes - no
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


class Teachers(nn.Module):
    """The frozen teachers of a student, one or several, or the logits stored of them.

    Args:
        student: The student.
        teachers: The trained teacher, or several; a copy of each is kept, see `freeze_teacher`. Or `StoredLogits`.
        input_size: Height and width of the student's images.
        teacher_size: Height and width to which they are resized; None for no resizing, unless a teacher takes one size
            only.
        average: Whether several teachers are one, whose logits are those of their mean class probabilities.
        multi_label: Whether images have any number of labels.

    Raises:
        ValueError: if there is no teacher, stored logits are one of several, or a teacher has not the student's input
            channels.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Union[nn.Module, Sequence[nn.Module]],
        input_size: Tuple[int, int],
        teacher_size: Optional[Tuple[int, int]] = None,
        average: bool = True,
        multi_label: bool = False,
        **dd: Any,
    ):
        super().__init__()
        self.multi_label = multi_label
        given = _list_teachers(teachers)
        for teacher in given:
            if not isinstance(teacher, StoredLogits):
                _check_same('in_chans', *(getattr(model, 'in_chans', None) for model in (student, teacher)))
        self.num_classes = getattr(student, 'num_classes', None)
        self.models, self.inputs = nn.ModuleList(), nn.ModuleList()
        self.infos: List[NetworkInfo] = []
        self.is_stored = isinstance(given[0], StoredLogits)
        for teacher in given:
            if isinstance(teacher, StoredLogits):
                self.models.append(teacher)
                # with the student's stages: every method can be built, and `check_needs` names what is missing
                info = NetworkInfo.of(student, 'teacher', input_size)
                self.infos += [dataclasses.replace(info, name=name) for name in teacher.names]
            else:
                size = teacher_size or find_teacher_size(teacher, input_size)
                self.models.append(freeze_teacher(teacher))
                self.inputs.append(TeacherInput(student, teacher, size, **dd))
                self.infos.append(NetworkInfo.of(teacher, 'teacher', size or input_size))
        self.is_averaged = average and len(self.infos) > 1
        self.needs = [Needs()] * len(self.infos)

    @property
    def views(self) -> Optional[int]:
        """Number of the fixed views that the training images must have; None for an augmentation as usual."""
        return self.models[0].views if self.is_stored else None

    @property
    def names(self) -> str:
        return ', '.join(info.name for info in self.infos)

    def describe(self) -> str:
        """How their names stand in the log."""
        return f'{"the mean of " if self.is_averaged else ""}{self.names}{" (stored logits)" if self.is_stored else ""}'

    def check_needs(self, method: str, needs: Needs) -> None:
        """Raise ValueError if a method needs more than logits, where there is nothing else."""
        what = needs.beyond_logits()
        if not what or not (self.is_stored or self.is_averaged):
            return
        if self.is_stored:
            place, way_out = f'stored logits of {self.names} do', 'let the teacher run (--teacher-checkpoint)'
        else:
            place = f'the mean of {len(self.infos)} teachers ({self.names}) does'
            way_out = "use each teacher by itself, teachers='separate' (--teachers separate)"
        raise ValueError(
            f"Method '{method}' needs {what} of the teacher, which {place} not have: {way_out}, or"
            ' choose a method of the logits, such as kd (or hdkd with a feature_weight of 0).'
        )

    def set_needs(self, needs: Sequence[Needs]) -> None:
        """What is computed: of each teacher, or of every one if there is one entry.

        Raises:
            ValueError: if logits, or nothing but them, are needed of a teacher that has not the student's classes.
        """
        self.needs = list(needs) * (len(self.infos) // len(needs))
        for teacher, of_teacher in zip(self.models, self.needs):
            if of_teacher.logits or not of_teacher.beyond_logits():
                _check_same('num_classes', self.num_classes, getattr(teacher, 'num_classes', None))

    def compile(self, **kwargs: Any) -> None:
        """Compile the pass of all teachers as one."""
        self._forward = torch.compile(self._forward, **kwargs)  # type: ignore[method-assign]

    def train(self, mode: bool = True) -> 'Teachers':
        """They stay in eval mode."""
        return super().train(False)

    def _forward(self, inputs: Sequence[torch.Tensor]) -> List[Outputs]:
        return [forward_outputs(*args) for args in zip(self.models, inputs, self.needs)]

    @torch.no_grad()
    def forward(self, images: torch.Tensor, index: Optional[torch.Tensor] = None, epoch: int = 0) -> List[Outputs]:
        """What the methods see of each teacher; of the mean of all if they are averaged.

        Args:
            images: (B, C, H, W), normalised for the student.
            index: Number of each image in the training data, (B,), for stored logits.
            epoch: Epochs done, for stored logits.
        """
        if self.is_stored:
            outputs = [Outputs(logits) for logits in self.models[0](index, epoch)]
        else:
            outputs = self._forward([prepare(images) for prepare in self.inputs])
        if self.is_averaged:
            logits = torch.stack([output.logits for output in outputs])
            outputs = [Outputs(average_logits(logits, self.multi_label))]
        return outputs


def _list_teachers(given: Union[nn.Module, Sequence[nn.Module]]) -> List[nn.Module]:
    teachers = [unwrap_model(teacher) for teacher in ([given] if isinstance(given, nn.Module) else given)]
    if not teachers:
        raise ValueError('A distillation needs at least one teacher.')
    if len(teachers) > 1 and any(isinstance(teacher, StoredLogits) for teacher in teachers):
        raise ValueError('Stored logits cannot be one of several teachers: store the logits of all of them.')
    return teachers


def _check_same(name: str, of_student: Any, of_teacher: Any) -> None:
    if of_student != of_teacher:
        way_out = ': choose methods of features, such as fitnet' if name == 'num_classes' else ''
        raise ValueError(f'{name} of student and teacher differ: {of_student} and {of_teacher}{way_out}.')
