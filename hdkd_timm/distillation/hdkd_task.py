"""HDKDTask: the distillation of HDKD as a `timm.task.TrainingTask`, its losses under their published names."""

import functools
import logging
from typing import Any, Dict, Optional, Sequence

import torch
from timm.utils import unwrap_model
from torch import nn

from .checks import check_pair
from .methods.hdkd import HDKD
from .outputs import has_distillation_head
from .task import DistillationTask

_logger = logging.getLogger(__name__)


class HDKDTask(DistillationTask):
    """Distil a frozen teacher into a student through its distillation token and the maps of shared stages.

    It is `DistillationTask` with the method 'hdkd', and names the parts of its loss as `hdkd_loss` does. Student and
    teacher may be any timm models whose chosen stages have maps of equal shapes; the student needs a distillation head
    (`set_distilled_training`) unless `kind` is 'none'.

    Args:
        student_model: The model to train.
        teacher_model: The trained teacher with the same classes; the task keeps a frozen copy, see `DistillationTask`.
        kind: Type of the logit distillation, 'soft', 'hard' or 'none' (cross entropy of the class head and feature
            loss only; the distillation head then stays untrained, and a student without one is the better choice).
        alpha: Weight of the distillation in the logit loss.
        tau: Temperature of the soft distillation.
        feature_weight: lambda, weight of the feature loss; with 0 the maps are not computed.
        stages: Stages whose maps are compared, from 1.
        stage_exponent: gamma, weights the i-th listed stage by i^gamma.
        reduction: Reduction of the soft distillation, 'mean' over B * K as published, or 'batchmean'.
        class_weight: Weights of the classes in the cross entropy, (K,).
        label_smoothing: Label smoothing of the cross entropy.
        device: Device of the task's buffers.
        dtype: Dtype of the task's buffers.
        verbose: Log the settings.
        feature_norm: Divide the feature loss by the teacher's variance in each channel; not published.
        feature_fade: Let the feature loss fade out over the training (call `set_epoch`); not published.
        task_args: Further arguments of `DistillationTask`, such as `ce_weight` in place of 1 - alpha.

    Raises:
        ValueError: if student and teacher do not match, see `check_pair`.
    """

    def __init__(
        self,
        student_model: nn.Module,
        teacher_model: nn.Module,
        kind: str = 'soft',
        alpha: float = 0.5,
        tau: float = 1.0,
        feature_weight: float = 10.0,
        stages: Sequence[int] = (1, 2, 3),
        stage_exponent: float = 1.0,
        reduction: str = 'mean',
        class_weight: Optional[torch.Tensor] = None,
        label_smoothing: float = 0.0,
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
        verbose: bool = True,
        feature_norm: bool = False,
        feature_fade: bool = False,
        **task_args: Any,
    ):
        student, teacher = unwrap_model(student_model), unwrap_model(teacher_model)
        check_pair(student, teacher, kind, stages if feature_weight else ())
        self.kind, self.alpha = kind, alpha
        method = functools.partial(
            HDKD,
            kd_type=kind,
            alpha=alpha,
            tau=tau,
            feature_weight=feature_weight,
            stages=stages,
            stage_exponent=stage_exponent,
            reduction=reduction,
            feature_norm=feature_norm,
            feature_fade=feature_fade,
        )
        super().__init__(
            student,
            teacher,
            [method],
            class_weight=class_weight,
            label_smoothing=label_smoothing,
            device=device,
            dtype=dtype,
            verbose=verbose,
            **task_args,
        )
        self.distilled = has_distillation_head(student)
        if (kind == 'none' or alpha == 0) and self.distilled:
            what = "kind='none'" if kind == 'none' else 'alpha 0'
            _logger.warning(
                f'{what} leaves the distillation head untrained, and inference averages it in: use a student'
                ' without one (hdkd_student_plain).'
            )

    def prepare_distributed(self, device_ids: Optional[list] = None, **ddp_kwargs: Any) -> 'DistillationTask':
        """Wrap the student in DistributedDataParallel, not the frozen teacher."""
        if self.kind == 'none' and self.distilled:
            ddp_kwargs.setdefault('find_unused_parameters', True)
        return super().prepare_distributed(device_ids, **ddp_kwargs)

    def forward(
        self, input: torch.Tensor, target: torch.Tensor, index: Optional[torch.Tensor] = None
    ) -> Dict[str, torch.Tensor]:
        """Loss of a training step: as `DistillationTask.forward`, with the parts that `hdkd_loss` returns."""
        result = super().forward(input, target, index)
        result.pop('hdkd_loss')
        result = {name.removeprefix('hdkd_'): value for name, value in result.items()}
        result['logit_loss'] = self.ce_weight * result['ce_loss']
        if self.kind != 'none':
            result['logit_loss'] = result['logit_loss'] + self.alpha * result['kd_loss']
        return result
