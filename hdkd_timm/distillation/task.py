"""HDKDTask: the distillation of a frozen teacher into a student as a `timm.task.TrainingTask`."""
import copy
import logging
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.loader import adapt_to_chs
from timm.models import FeatureInfo
from timm.task import TrainingTask
from timm.utils import reparameterize_model, unwrap_model
from torch import nn

from .losses import KD_KINDS, feature_distillation_losses, hdkd_loss, stage_mismatch

_logger = logging.getLogger(__name__)


def _check_stages(student: nn.Module, teacher: nn.Module, stages: Sequence[int]) -> None:
    """Compare the maps of two timm models at the chosen stages by their `feature_info`."""
    infos = []
    for role, model in (('student', student), ('teacher', teacher)):
        if not hasattr(model, 'forward_intermediates'):
            raise ValueError(f'The {role} {type(model).__name__} has no forward_intermediates(), hence no stages.')
        infos.append(FeatureInfo(model.feature_info, tuple(range(len(model.feature_info)))))
        if not stages or min(stages) < 1 or max(stages) > len(model.feature_info):
            raise ValueError(
                f'stages must be among 1 to {len(model.feature_info)}, those of the {role} {type(model).__name__},'
                f' got {list(stages)}.')
    for stage in stages:
        shapes = []
        for info in infos:
            reduction = info.reduction(stage - 1)
            shapes.append(f'(B, {info.channels(stage - 1)}, H/{reduction}, W/{reduction})')
        if shapes[0] != shapes[1]:
            raise stage_mismatch(stage, *shapes)


def _channel_stats(model: nn.Module) -> Tuple[torch.Tensor, torch.Tensor]:
    """Mean and std that a model's input is normalised by, (1, C, 1, 1) each, as timm's loader adapts them."""
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    in_chans = getattr(model, 'in_chans', 3)
    mean, std = (
        torch.tensor(adapt_to_chs(cfg.get(key) or default, in_chans), dtype=torch.float64).view(1, -1, 1, 1)
        for key, default in (('mean', IMAGENET_DEFAULT_MEAN), ('std', IMAGENET_DEFAULT_STD)))
    return mean, std


def _forward_stages(model: nn.Module, x: torch.Tensor, stages: Sequence[int]) -> Tuple[Any, List[torch.Tensor]]:
    """Logits, and maps of the stages in the order given, of one forward pass."""
    if not stages:
        return model(x), []
    in_network_order = sorted(stages)
    features, maps = model.forward_intermediates(x, [stage - 1 for stage in in_network_order])
    return model.forward_head(features), [maps[in_network_order.index(stage)] for stage in stages]


def check_input(model: nn.Module, input_size: Tuple[int, int, int], stages: Sequence[int] = ()) -> List[torch.Tensor]:
    """Does a network take images of this size, (C, H, W)? Returns its maps of the stages, (1, C_i, H_i, W_i) each.

    Raises:
        ValueError: if not.
    """
    param = next(model.parameters())
    was_training = model.training
    try:
        with torch.no_grad():
            image = torch.zeros(1, *input_size, device=param.device, dtype=param.dtype)
            return _forward_stages(model.eval(), image, stages)[1]
    except (AssertionError, RuntimeError) as e:
        raise ValueError(f'{type(model).__name__} takes no image of {input_size}: {e}') from e
    finally:
        model.train(was_training)


def check_pair(
        student: nn.Module,
        teacher: nn.Module,
        kind: str = 'soft',
        stages: Sequence[int] = (1, 2, 3),
        input_size: Optional[Tuple[int, int, int]] = None,
) -> None:
    """Can this teacher be distilled into this student?

    Args:
        student: timm model.
        teacher: timm model.
        kind: Logit distillation, 'soft', 'hard' or 'none'.
        stages: Stages whose maps are to be compared, from 1; may be empty.
        input_size: (C, H, W) for a pass of an image of this size through both, on top of what the models tell.

    Raises:
        ValueError: if a network has no such stage or the two maps of a stage differ (the stage and both shapes are
            named), if the numbers of classes or input channels differ, if a network takes no such image, or if the
            student has no distillation head and kind is not 'none'.
    """
    if kind not in KD_KINDS:
        raise ValueError(f'kind must be one of {KD_KINDS}, got {kind!r}.')
    if len(set(stages)) < len(stages):
        raise ValueError(f'stages must differ, got {list(stages)}.')
    if stages:
        _check_stages(student, teacher, stages)
    for what in ('num_classes', 'in_chans'):
        ours, theirs = getattr(student, what, None), getattr(teacher, what, None)
        if ours != theirs:
            raise ValueError(f'{what} of student and teacher differ: {ours} and {theirs}.')
    if kind != 'none' and not _has_distillation_head(student):
        raise ValueError(
            f"{type(student).__name__} has no distillation head: take one that has (hdkd_student), or kind 'none'.")
    if input_size is not None:
        maps = [check_input(model, input_size, stages) for model in (student, teacher)]
        feature_distillation_losses(*maps, stages=stages)


def _has_distillation_head(model: nn.Module) -> bool:
    return getattr(model, 'distilled', hasattr(model, 'set_distilled_training'))


class StudentModule(nn.Module):
    """All of the student that is trained, and its loss, in one forward pass: DDP and the compiler see the whole of it.

    Images (B, C, H, W), class indices (B,) or probabilities (B, K), the teacher's logits (B, K) and its maps of the
    chosen stages, (B, C_i, H_i, W_i) each -> the logits as at inference, 'output' (B, K), and what `hdkd_loss` returns.
    The loss is computed where the maps are made, so that the compiler can fuse it with them.
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
        logits, maps = _forward_stages(self.student, x, self.stages)
        cls_logits, dist_logits = logits if isinstance(logits, tuple) else (logits, None)
        output = cls_logits if dist_logits is None else (cls_logits + dist_logits) / 2
        losses = hdkd_loss(
            cls_logits, dist_logits, teacher_logits, target, maps, teacher_maps, stages=self.stages,
            class_weight=class_weight, **self.loss_args)
        return {'output': output.detach(), **losses}


class HDKDTask(TrainingTask):
    """Distil a frozen teacher into a student by its distillation token and the maps of shared stages.

    One forward pass of each network a step. Any timm student and teacher whose chosen stages have maps of equal
    shape; the student needs a distillation head (`set_distilled_training`) unless `kind` is 'none'. The student
    returns the pair of logits inside the task only, everywhere else their mean.

    Args:
        student_model: The model to train.
        teacher_model: The trained teacher with the same classes. The task keeps a copy in the form that is fastest for
            inference: BatchNorms folded (where the model can do that), channels-last, frozen, always in eval mode.
        kind: Logit distillation, 'soft', 'hard' or 'none' (cross entropy of the class head and feature loss alone;
            the distillation head then stays untrained and a student without one is the better choice).
        alpha: Weight of the distillation in the logit loss.
        tau: Temperature of the soft distillation.
        feature_weight: lambda, weight of the feature loss; with 0 the maps are not compared.
        stages: Stages whose maps are compared, from 1.
        stage_exponent: gamma, weighs the i-th listed stage by i^gamma.
        reduction: Of the soft distillation, 'mean' over B * K as published or 'batchmean'.
        class_weight: Weights of the classes in the cross entropy, (K,).
        label_smoothing: Label smoothing of the cross entropy.
        device: Device of the task's buffers.
        dtype: Dtype of the task's buffers.
        verbose: Log the settings.

    Raises:
        ValueError: if student and teacher don't fit, see `check_pair`.
    """

    def __init__(
            self,
            student_model: nn.Module,
            teacher_model: nn.Module,
            kind: str = 'soft',
            alpha: float = 0.5,
            tau: float = 1.,
            feature_weight: float = 10.,
            stages: Sequence[int] = (1, 2, 3),
            stage_exponent: float = 1.,
            reduction: str = 'mean',
            class_weight: Optional[torch.Tensor] = None,
            label_smoothing: float = 0.,
            device: Optional[torch.device] = None,
            dtype: Optional[torch.dtype] = None,
            verbose: bool = True,
    ):
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        student, teacher = unwrap_model(student_model), unwrap_model(teacher_model)
        self.stages = list(stages) if feature_weight else []
        check_pair(student, teacher, kind, self.stages)
        self.distilled = _has_distillation_head(student)
        if kind == 'none' and self.distilled:
            _logger.warning(
                "kind='none' leaves the distillation head untrained, and inference averages it in: take a student"
                ' without one (hdkd_student_plain).')

        self.loss_args = dict(
            kind=kind, alpha=alpha, tau=tau, feature_weight=feature_weight, stage_exponent=stage_exponent,
            reduction=reduction, label_smoothing=label_smoothing)
        self.trainable_module = StudentModule(student_model, self.stages, **self.loss_args)
        self.teacher = reparameterize_model(copy.deepcopy(teacher).eval(), inplace=True)
        param = next(teacher.parameters())  # some of timm's layers are fused into new ones on the CPU, in float32
        self.teacher.requires_grad_(False).to(param.device, param.dtype, memory_format=torch.channels_last)

        # the input is normalised for the student, its pixel x * scale + shift is normalised for the teacher
        (mean_s, std_s), (mean_t, std_t) = _channel_stats(student), _channel_stats(teacher)
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

    def prepare_distributed(self, device_ids: Optional[list] = None, **ddp_kwargs) -> 'HDKDTask':
        """Wrap the student in DistributedDataParallel; the frozen teacher stays as it is."""
        if self.loss_args['kind'] == 'none' and self.distilled:
            ddp_kwargs.setdefault('find_unused_parameters', True)
        self.trainable_module = nn.parallel.DistributedDataParallel(
            self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def compile(self, backend: str = 'inductor', mode: Optional[str] = None, **compile_kwargs) -> nn.Module:
        """Compile the student's and the teacher's forward pass. Returns the compiled model for evaluation."""
        compile_kwargs.update(backend=backend, mode=mode)
        self.eval_model = torch.compile(unwrap_model(self.trainable_module).student, **compile_kwargs)
        self.trainable_module = torch.compile(self.trainable_module, **compile_kwargs)
        self._teacher_forward = torch.compile(self._teacher_forward, **compile_kwargs)
        return self.eval_model

    def get_eval_model(self, module: Optional[nn.Module] = None, ema: bool = False) -> Optional[nn.Module]:
        resolved = super().get_eval_model(module=module, ema=ema)
        unwrapped = unwrap_model(resolved) if resolved is not None else None
        return unwrapped.student if isinstance(unwrapped, StudentModule) else resolved

    def get_clip_parameters(self, exclude_head: bool = False) -> List[nn.Parameter]:
        """The student's parameters, without those of all its heads on demand (adaptive clipping leaves them out)."""
        student = unwrap_model(self.trainable_module).student
        heads = (student.pretrained_cfg.get('classifier') or ()) if exclude_head else ()
        heads = tuple(f'{name}.' for name in ((heads,) if isinstance(heads, str) else heads))
        return [p for name, p in student.named_parameters() if not name.startswith(heads or ('/',))]

    def _teacher_forward(self, x: torch.Tensor) -> Tuple[torch.Tensor, List[torch.Tensor]]:
        return _forward_stages(self.teacher, x, self.stages)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> Dict[str, torch.Tensor]:
        """One training step's loss.

        Args:
            input: Images (B, C, H, W), normalised for the student.
            target: Class indices (B,), or class probabilities (B, K).

        Returns:
            'loss', 'output' (logits (B, K) as at inference) and the parts that `hdkd_loss` returns.

        Raises:
            ValueError: if the student is in eval mode, where it returns no pair of logits.
        """
        student = unwrap_model(self.trainable_module).student
        if self.distilled and self.loss_args['kind'] != 'none' and not student.training:
            raise ValueError('The student is in eval mode: call task.train() before a step.')
        with torch.no_grad():
            teacher_input = input * self.teacher_scale + self.teacher_shift if self.renormalize else input
            teacher_logits, teacher_maps = self._teacher_forward(
                teacher_input.contiguous(memory_format=torch.channels_last))
        if self.distilled:
            student.set_distilled_training(True)
        try:
            return self.trainable_module(input, target, teacher_logits, teacher_maps, self.class_weight)
        finally:
            if self.distilled:
                student.set_distilled_training(False)
