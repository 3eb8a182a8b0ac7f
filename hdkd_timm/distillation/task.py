"""Distillation of a frozen teacher into a student as a `timm.task.TrainingTask`: any methods, or HDKD's."""

import functools
import logging
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import nn

from .checks import check_pair
from .methods import Method, create_methods
from .methods.hdkd import HDKD
from .networks import NetworkInfo, Pair, image_size
from .outputs import Needs, Outputs, forward_outputs, has_distillation_head
from .student import StudentModule
from .teacher import TeacherInput, find_teacher_size, freeze_teacher

_logger = logging.getLogger(__name__)


class DistillationTask(TrainingTask):
    """Distil a frozen teacher into a student by one or several methods, beside the cross entropy.

        loss = ce_weight * cross_entropy + sum over the methods of weight * loss

    A step takes one forward pass of each network, whatever the methods need of it. Student and teacher may be any timm
    models with the same classes and input channels. The logit methods act on the distillation head of a student that
    has one, which returns a pair of logits only inside the task, and their mean everywhere else.

    Args:
        student_model: The model to train.
        teacher_model: The trained teacher. The task keeps a copy that is optimised for inference: BatchNorms folded (if
            the model supports it), channels-last, frozen, always in eval mode.
        methods: Names of methods (`hdkd_timm.distillation.methods.METHODS`), or what makes one of a `Pair`: a class of
            your own or a `functools.partial` of one.
        method_args: Name -> settings of this method.
        ce_weight: Weight of the cross entropy; None for the one that the first method was published with.
        class_weight: Weights of the classes in the cross entropy, (K,).
        label_smoothing: Label smoothing of the cross entropy.
        input_size: Height and width of the student's images; None for the size that it was built for.
        teacher_size: Height and width to which they are resized for the teacher; None for no resizing, unless the
            teacher takes one size only.
        train_targets: Class index of each training image, (N,), for methods with a memory of them.
        device: Device of the task's buffers and of the methods.
        dtype: Dtype of the task's buffers and of the methods.
        verbose: Log the settings.

    Raises:
        ValueError: if a method is unknown, a setting is out of range, or this pair cannot have the method.
    """

    def __init__(
        self,
        student_model: nn.Module,
        teacher_model: nn.Module,
        methods: Sequence[Union[str, Callable[..., Method]]] = ('hdkd',),
        method_args: Mapping[str, Mapping[str, Any]] = {},
        *,
        ce_weight: Optional[float] = None,
        class_weight: Optional[torch.Tensor] = None,
        label_smoothing: float = 0.0,
        input_size: Optional[Tuple[int, int]] = None,
        teacher_size: Optional[Tuple[int, int]] = None,
        train_targets: Optional[torch.Tensor] = None,
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
        verbose: bool = True,
    ):
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        student, teacher = unwrap_model(student_model), unwrap_model(teacher_model)
        _check_classes(student, teacher)
        input_size = input_size or image_size(student)
        teacher_size = teacher_size or find_teacher_size(teacher, input_size)
        pair = Pair(
            NetworkInfo.of(student, 'student', input_size),
            NetworkInfo.of(teacher, 'teacher', teacher_size or input_size),
            train_targets,
        )
        dd: Dict[str, Any] = {'device': self.device, 'dtype': self.dtype}
        built = [method.to(**dd) for method in create_methods(methods, pair, method_args)]
        self.needs_index = any(method.needs_index for method in built)
        if ce_weight is None:
            ce_weight = built[0].ce_weight
        self.trainable_module: nn.Module = StudentModule(student, built, ce_weight, label_smoothing)
        self.teacher_needs = functools.reduce(Needs.__or__, (method.teacher_needs for method in built), Needs())
        # only where a loss acts on the logits is the distillation head trained apart
        self.distilled = has_distillation_head(student) and any(method.student_needs.logits for method in built)
        self.teacher = freeze_teacher(teacher)
        self.teacher_input = TeacherInput(student, teacher, teacher_size, **dd)
        weight = None if class_weight is None else torch.as_tensor(class_weight).to(**dd)
        self.register_buffer('class_weight', weight, persistent=False)
        if self.verbose:
            self.log_settings(pair, teacher_size)

    def log_settings(self, pair: Pair, teacher_size: Optional[Tuple[int, int]]) -> None:
        """Log what follows from the pair: matched stages, weights, another size of the teacher's images."""
        trainable = unwrap_model(self.trainable_module)
        words = [
            f'{method.name} (weight {method.weight:g}{_describe(method)})' for method in trainable.methods.values()
        ]
        size = f'; images are resized to {teacher_size[0]} x {teacher_size[1]} for the teacher' if teacher_size else ''
        _logger.info(
            f'Distillation of {pair.teacher.name} into {pair.student.name}: {", ".join(words)}, cross entropy (weight'
            f' {trainable.ce_weight:g}){size}.'
        )

    def train(self, mode: bool = True) -> 'DistillationTask':
        super().train(mode)
        self.teacher.eval()
        return self

    def set_epoch(self, epoch: int, epochs: int) -> None:
        """Tell the methods how many epochs are done of how many; call it before each."""
        for module in (self.trainable_module, getattr(self, 'trainable_module_ema', None)):
            if module is not None:
                for method in _unwrap_student_module(module).methods.values():
                    method.set_epoch(epoch, epochs)

    def prepare_distributed(self, device_ids: Optional[list] = None, **ddp_kwargs: Any) -> 'DistillationTask':
        """Wrap the student and the methods in DistributedDataParallel, not the frozen teacher."""
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
        """All trained parameters; without those of the student's heads if `exclude_head`, as for adaptive clipping."""
        trainable = unwrap_model(self.trainable_module)
        student = trainable.student
        heads = (student.pretrained_cfg.get('classifier') or ()) if exclude_head else ()
        heads = tuple(f'{name}.' for name in ((heads,) if isinstance(heads, str) else heads))
        kept = [p for name, p in student.named_parameters() if not name.startswith(heads or ('/',))]
        return kept + list(trainable.methods.parameters())

    def get_task_state(self, module: Optional[nn.Module] = None, ema: bool = False) -> Dict[str, Any]:
        """What the methods learned and remember; empty if they do neither."""
        module = module if module is not None else self.get_trainable_module(ema=ema)
        state = {} if module is None else _unwrap_student_module(module).methods.state_dict()
        return {'methods': state} if state else {}

    def load_task_state(
        self,
        state: Optional[Dict[str, Any]],
        strict: bool = True,
        module: Optional[nn.Module] = None,
        ema: bool = False,
    ) -> None:
        """Restore what `get_task_state` returned.

        Raises:
            RuntimeError: if it is not that of these methods.
        """
        module = module if module is not None else self.get_trainable_module(ema=ema)
        if module is None:
            raise RuntimeError('The moving average has no state to load before setup_ema().')
        _unwrap_student_module(module).methods.load_state_dict((state or {}).get('methods', {}), strict=strict)

    def _teacher_forward(self, x: torch.Tensor) -> Outputs:
        return forward_outputs(self.teacher, x, self.teacher_needs)

    def forward(
        self, input: torch.Tensor, target: torch.Tensor, index: Optional[torch.Tensor] = None
    ) -> Dict[str, torch.Tensor]:
        """Loss of a training step.

        Args:
            input: Images (B, C, H, W), normalised for the student.
            target: Class indices (B,), or class probabilities (B, K).
            index: Number of each image in the training data, (B,), where `needs_index`.

        Returns:
            'loss', 'output' (logits (B, K) as at inference), 'ce_loss' and, of each method, 'NAME_loss' and its parts.

        Raises:
            ValueError: if the student is in eval mode, in which it does not return a pair of logits, or if the index
                is needed and missing.
        """
        student = unwrap_model(self.trainable_module).student
        if self.distilled and not student.training:
            raise ValueError('The student is in eval mode: call task.train() before a step.')
        if self.needs_index and index is None:
            raise ValueError('These methods remember the training images: pass their numbers as `index`.')
        with torch.no_grad():
            teacher = self._teacher_forward(self.teacher_input(input))
        if self.distilled:
            student.set_distilled_training(True)
        try:
            return self.trainable_module(input, target, teacher, self.class_weight, index)
        finally:
            if self.distilled:
                student.set_distilled_training(False)


def _unwrap_student_module(module: nn.Module) -> Any:
    """The `StudentModule` in DDP, a compiled module or a moving average."""
    while not isinstance(module, StudentModule):
        module = unwrap_model(module.module if hasattr(module, 'module') else module)
    return module


def _check_classes(student: nn.Module, teacher: nn.Module) -> None:
    for name in ('num_classes', 'in_chans'):
        of_student, of_teacher = getattr(student, name, None), getattr(teacher, name, None)
        if of_student != of_teacher:
            raise ValueError(f'{name} of student and teacher differ: {of_student} and {of_teacher}.')


def _describe(method: Method) -> str:
    return ''.join(f', {name} {value}' for name, value in method.describe().items())


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
        )
        if kind == 'none' and self.distilled:
            _logger.warning(
                "kind='none' leaves the distillation head untrained, and inference averages it in: use a student"
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
        result['logit_loss'] = result['ce_loss']
        if self.kind != 'none':
            result['logit_loss'] = (1 - self.alpha) * result['ce_loss'] + self.alpha * result['kd_loss']
        return result
