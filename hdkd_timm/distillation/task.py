"""HDKDTask: the distillation of a frozen teacher into a student as a `timm.task.TrainingTask`."""

import copy
import logging
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from timm.task import TrainingTask
from timm.utils import reparameterize_model, unwrap_model
from torch import nn

from .checks import check_pair
from .losses import hdkd_loss
from .outputs import forward_stages, get_channel_stats, has_distillation_head

_logger = logging.getLogger(__name__)


class StudentModule(nn.Module):
    """The student and its loss in one forward pass, so that DDP and the compiler see everything that is trained.

    The compiler can fuse the loss with the layers that compute the maps.

    Args:
        student: The model to train.
        stages: Stages whose maps are compared, from 1.
        loss_args: Settings of `hdkd_loss`.
    """

    def __init__(self, student: nn.Module, stages: Sequence[int], **loss_args: Any):
        super().__init__()
        self.student = student
        self.stages = stages
        self.loss_args = loss_args

    def forward(
        self,
        x: torch.Tensor,
        target: torch.Tensor,
        teacher_logits: torch.Tensor,
        teacher_maps: Sequence[torch.Tensor],
        class_weight: Optional[torch.Tensor],
    ) -> Dict[str, torch.Tensor]:
        """Loss of a batch.

        Args:
            x: Images (B, C, H, W).
            target: Class indices (B,), or class probabilities (B, K).
            teacher_logits: Logits of the teacher (B, K).
            teacher_maps: The teacher's maps of the chosen stages, (B, C_i, H_i, W_i) each.
            class_weight: Weights of the classes in the cross entropy (K,).

        Returns:
            'output', the logits as at inference (B, K), and what `hdkd_loss` returns.
        """
        logits, maps = forward_stages(self.student, x, self.stages)
        cls_logits, dist_logits = logits if isinstance(logits, tuple) else (logits, None)
        output = cls_logits if dist_logits is None else (cls_logits + dist_logits) / 2
        losses = hdkd_loss(
            cls_logits,
            dist_logits,
            teacher_logits,
            target,
            maps,
            teacher_maps,
            stages=self.stages,
            class_weight=class_weight,
            **self.loss_args,
        )
        return {'output': output.detach(), **losses}


class HDKDTask(TrainingTask):
    """Distil a frozen teacher into a student through its distillation token and the maps of shared stages.

    A step takes one forward pass of each network. Student and teacher may be any timm models whose chosen stages have
    maps of equal shapes; the student needs a distillation head (`set_distilled_training`) unless `kind` is 'none'. It
    returns the pair of logits only inside the task, and their mean everywhere else.

    Args:
        student_model: The model to train.
        teacher_model: The trained teacher with the same classes. The task keeps a copy that is optimised for
            inference: BatchNorms folded (if the model supports it), channels-last, frozen, always in eval mode.
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
    ):
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        student, teacher = unwrap_model(student_model), unwrap_model(teacher_model)
        self.stages = list(stages) if feature_weight else []
        check_pair(student, teacher, kind, self.stages)
        self.distilled = has_distillation_head(student)
        if kind == 'none' and self.distilled:
            _logger.warning(
                "kind='none' leaves the distillation head untrained, and inference averages it in: use a student"
                ' without one (hdkd_student_plain).'
            )

        self.loss_args = dict(
            kind=kind,
            alpha=alpha,
            tau=tau,
            feature_weight=feature_weight,
            stage_exponent=stage_exponent,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
        self.trainable_module = StudentModule(student_model, self.stages, **self.loss_args)
        self.teacher = reparameterize_model(copy.deepcopy(teacher).eval(), inplace=True)
        param = next(teacher.parameters())  # timm fuses some layers into new ones on the CPU, in float32
        self.teacher.requires_grad_(False).to(param.device, param.dtype, memory_format=torch.channels_last)

        # inputs are normalised for the student; x * scale + shift is normalised for the teacher
        (mean_s, std_s), (mean_t, std_t) = get_channel_stats(student), get_channel_stats(teacher)
        self.renormalize = not (torch.equal(mean_s, mean_t) and torch.equal(std_s, std_t))
        dd = {'device': self.device, 'dtype': self.dtype}
        self.register_buffer('teacher_scale', (std_s / std_t).to(**dd), persistent=False)
        self.register_buffer('teacher_shift', ((mean_s - mean_t) / std_t).to(**dd), persistent=False)
        weight = None if class_weight is None else torch.as_tensor(class_weight).to(**dd)
        self.register_buffer('class_weight', weight, persistent=False)
        if self.verbose:
            _logger.info(f'HDKDTask: {dict(self.loss_args, stages=self.stages)}')

    def train(self, mode: bool = True) -> 'HDKDTask':
        super().train(mode)
        self.teacher.eval()
        return self

    def prepare_distributed(self, device_ids: Optional[list] = None, **ddp_kwargs: Any) -> 'HDKDTask':
        """Wrap the student in DistributedDataParallel, not the frozen teacher."""
        if self.loss_args['kind'] == 'none' and self.distilled:
            ddp_kwargs.setdefault('find_unused_parameters', True)
        self.trainable_module = nn.parallel.DistributedDataParallel(
            self.trainable_module, device_ids=device_ids, **ddp_kwargs
        )
        return self

    def compile(self, backend: str = 'inductor', mode: Optional[str] = None, **compile_kwargs: Any) -> nn.Module:
        """Compile the forward passes of student and teacher. Returns the compiled student for evaluation."""
        compile_kwargs.update(backend=backend, mode=mode)
        self.eval_model = torch.compile(unwrap_model(self.trainable_module).student, **compile_kwargs)
        self.trainable_module = torch.compile(self.trainable_module, **compile_kwargs)
        compiled = torch.compile(self._teacher_forward, **compile_kwargs)
        self._teacher_forward = compiled  # type: ignore[method-assign]
        return self.eval_model

    def get_eval_model(self, module: Optional[nn.Module] = None, ema: bool = False) -> Optional[nn.Module]:
        resolved = super().get_eval_model(module=module, ema=ema)
        unwrapped = unwrap_model(resolved) if resolved is not None else None
        return unwrapped.student if isinstance(unwrapped, StudentModule) else resolved

    def get_clip_parameters(self, exclude_head: bool = False) -> List[nn.Parameter]:
        """The student's parameters; without those of its heads if `exclude_head`, as for adaptive gradient clipping."""
        student = unwrap_model(self.trainable_module).student
        heads = (student.pretrained_cfg.get('classifier') or ()) if exclude_head else ()
        heads = tuple(f'{name}.' for name in ((heads,) if isinstance(heads, str) else heads))
        return [p for name, p in student.named_parameters() if not name.startswith(heads or ('/',))]

    def _teacher_forward(self, x: torch.Tensor) -> Tuple[torch.Tensor, List[torch.Tensor]]:
        return forward_stages(self.teacher, x, self.stages)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> Dict[str, torch.Tensor]:
        """Loss of a training step.

        Args:
            input: Images (B, C, H, W), normalised for the student.
            target: Class indices (B,), or class probabilities (B, K).

        Returns:
            'loss', 'output' (logits (B, K) as at inference) and the parts that `hdkd_loss` returns.

        Raises:
            ValueError: if the student is in eval mode, in which it does not return a pair of logits.
        """
        student = unwrap_model(self.trainable_module).student
        if self.distilled and self.loss_args['kind'] != 'none' and not student.training:
            raise ValueError('The student is in eval mode: call task.train() before a step.')
        with torch.no_grad():
            teacher_input = input * self.teacher_scale + self.teacher_shift if self.renormalize else input
            teacher_logits, teacher_maps = self._teacher_forward(
                teacher_input.contiguous(memory_format=torch.channels_last)
            )
        if self.distilled:
            student.set_distilled_training(True)
        try:
            return self.trainable_module(input, target, teacher_logits, teacher_maps, self.class_weight)
        finally:
            if self.distilled:
                student.set_distilled_training(False)
