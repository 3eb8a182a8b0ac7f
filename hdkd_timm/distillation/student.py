"""What is trained in a distillation: the student and its methods, with the loss, as one module."""

import functools
from typing import Any, Callable, Dict, Optional, Sequence, Union

import torch
from timm.models import group_parameters
from torch import nn

from .losses import label_loss
from .methods import Method
from .outputs import Needs, Outputs, forward_outputs

__all__ = ['StudentModule']


class StudentModule(nn.Module):
    """The student, the methods and the loss in one forward pass, so that DDP, EMA, the compiler and the optimiser see
    everything that is trained, and the compiler can fuse the loss with the layers that compute the maps.

    Args:
        student: The model to train.
        methods: What is added to the cross entropy, for each teacher. With several they are named NAME_1, NAME_2, ...
        ce_weight: Weight of the cross entropy.
        label_smoothing: Label smoothing of the cross entropy.
        multi_label: Whether images have any number of labels.
    """

    def __init__(
        self,
        student: nn.Module,
        methods: Sequence[Sequence[Method]],
        ce_weight: float,
        label_smoothing: float,
        multi_label: bool = False,
    ):
        super().__init__()
        self.student = student
        self.methods = nn.ModuleDict()
        self.teacher_of: Dict[str, int] = {}
        for i, of_teacher in enumerate(methods):
            for method in of_teacher:
                name = f'{method.name}_{i + 1}' if len(methods) > 1 else method.name
                self.methods[name], self.teacher_of[name] = method, i
        self.ce_weight = ce_weight
        self.label_smoothing = label_smoothing
        self.multi_label = multi_label
        self.needs = functools.reduce(Needs.__or__, (m.student_needs for m in self.methods.values()), Needs())

    def no_weight_decay(self) -> set:
        names = self.student.no_weight_decay() if hasattr(self.student, 'no_weight_decay') else ()
        return {f'student.{name}' for name in names}

    def group_matcher(self, coarse: bool = False) -> Union[Dict[str, Any], Callable[[str], Any]]:
        """The student's groups; the methods' layers are in the last of them."""
        if not hasattr(self.student, 'group_matcher'):
            return {}
        layers = group_parameters(self.student, self.student.group_matcher(coarse=coarse), reverse=True)
        last = max(layers.values(), default=0)
        return lambda name: layers.get(name.removeprefix('student.'), last) if name.startswith('student.') else last

    def forward(
        self,
        x: torch.Tensor,
        target: torch.Tensor,
        teachers: Sequence[Outputs],
        class_weight: Optional[torch.Tensor] = None,
        index: Optional[torch.Tensor] = None,
    ) -> Dict[str, torch.Tensor]:
        """Loss of a batch.

        Args:
            x: Images (B, C, H, W).
            target: Class indices (B,), or class probabilities (B, K); labels (B, K) with `multi_label`.
            teachers: What the methods need of each teacher.
            class_weight: Weights of the classes in the cross entropy, (K,).
            index: Number of each image in the training data, (B,).

        Returns:
            'output', the logits as at inference (B, K), 'loss', 'ce_loss' and, of each method, 'NAME_loss' and its
            parts 'NAME_PART', all without their weights.
        """
        outputs = forward_outputs(self.student, x, self.needs)
        output = outputs.logits if outputs.dist_logits is None else (outputs.logits + outputs.dist_logits) / 2
        ce_loss = label_loss(outputs.logits, target, class_weight, self.label_smoothing, self.multi_label)
        loss, parts = self.ce_weight * ce_loss, {'ce_loss': ce_loss}
        for name, method in self.methods.items():
            losses = method(outputs, teachers[self.teacher_of[name]], target, index)
            loss = loss + method.weight * losses['loss']
            parts.update({f'{name}_{part}': value for part, value in losses.items()})
        return {'output': output.detach(), 'loss': loss, **parts}
