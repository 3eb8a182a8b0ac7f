"""What a distillation method is: a module that compares what two networks computed for a batch."""

from typing import Any, ClassVar, Dict, Optional, Sequence

import torch
from torch import nn

from ..outputs import Needs, Outputs

__all__ = ['Method', 'check_choice', 'check_number', 'check_whole_number']


class Method(nn.Module):
    """Base of the distillation methods.

    A subclass sets the class attributes. Its constructor takes a `Pair` and its settings as keywords, and builds its
    layers from what the pair says of the networks. What it learns are its parameters, what it remembers its buffers:
    the task trains them with the student, saves and restores them, and leaves them out of the saved model.

    Args:
        weight: Weight of its loss.
        student_needs: What it takes of the student.
        teacher_needs: What it takes of the teacher.
    """

    name: ClassVar[str]
    """Its name in settings, in lower case."""
    source: ClassVar[str]
    """The paper, and the code that its tensors were compared with."""
    ce_weight: float = 1.0
    """Weight of the cross entropy beside it, as published."""
    schedule: ClassVar[str] = ''
    """The setting that makes its loss depend on the number of epochs of the training, unless it is 0 or False."""
    compares_logits: ClassVar[bool] = False
    """Whether it compares the teacher's logits, so that a teacher must have the classes of the data."""
    needs_index: bool = False
    """Whether it needs to know which training image is which."""
    needs_one_class: ClassVar[bool] = False
    """Whether it is defined for images of one class alone, not for those with any number of labels."""

    def __init__(self, weight: float = 1.0, student_needs: Needs = Needs(), teacher_needs: Needs = Needs()):
        super().__init__()
        self.weight = check_number(self.name, 'weight', weight, at_least=0)
        self.student_needs = student_needs
        self.teacher_needs = teacher_needs

    def forward(
        self, student: Outputs, teacher: Outputs, target: torch.Tensor, index: Optional[torch.Tensor] = None
    ) -> Dict[str, torch.Tensor]:
        """The method's loss.

        Args:
            student: What `student_needs` asks for.
            teacher: What `teacher_needs` asks for; constants.
            target: Class indices (B,), or class probabilities (B, K).
            index: Number of each image in the training data, (B,), if `needs_index`.

        Returns:
            'loss', a scalar that `weight` is not part of, and parts of it that are worth reporting.
        """
        raise NotImplementedError

    def set_epoch(self, epoch: int, epochs: int) -> None:
        """Called before each epoch.

        A schedule belongs into a buffer, so that a compiled step is not compiled again.

        Args:
            epoch: Epochs done.
            epochs: Epochs of the whole training.
        """

    def describe(self) -> Dict[str, Any]:
        """What the method found out by itself, such as matched stages, for the log."""
        return {}


def check_number(
    method: str,
    name: str,
    value: Any,
    above: Optional[float] = None,
    at_least: Optional[float] = None,
    at_most: Optional[float] = None,
) -> Any:
    """Return a setting of a method if it is a finite number within its bounds.

    Raises:
        ValueError: if not; names the setting, the value and the bounds.
    """
    bounds = {'above': above, 'at least': at_least, 'at most': at_most}
    wanted = ' and '.join(f'{words} {bound:g}' for words, bound in bounds.items() if bound is not None)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float('inf')
    if (
        not is_number
        or (above is not None and not value > above)
        or (at_least is not None and value < at_least)
        or (at_most is not None and value > at_most)
    ):
        raise ValueError(f'{method}.{name} must be a number{f" {wanted}" if wanted else ""}, got {value!r}.')
    return value


def check_choice(method: str, name: str, value: Any, choices: Sequence[str]) -> Any:
    """Return a setting of a method if it is one of these.

    Raises:
        ValueError: if not; names the setting, the value and the choices.
    """
    if value not in choices:
        raise ValueError(f'{method}.{name} must be one of {", ".join(choices)}, got {value!r}.')
    return value


def check_whole_number(method: str, name: str, value: Any, at_least: int) -> int:
    """Return a setting of a method if it is a whole number, such as 3 or 3.0, that is large enough.

    Raises:
        ValueError: if not; names the setting, the value and the bound.
    """
    if check_number(method, name, value, at_least=at_least) != int(value):
        raise ValueError(f'{method}.{name} must be a whole number, got {value!r}.')
    return int(value)
