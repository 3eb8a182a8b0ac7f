"""DistillationTask: frozen teachers are distilled into a student by any methods, as a `timm.task.TrainingTask`."""

import functools
import logging
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import nn

from .._compat import image_size
from .methods import Method, create_methods, split_teacher
from .networks import NetworkInfo, Pair
from .outputs import Needs, has_distillation_head
from .student import StudentModule
from .teacher import Teachers

_logger = logging.getLogger(__name__)

TEACHERS = ('average', 'separate')  # what several teachers are to the methods


class DistillationTask(TrainingTask):
    """Distil a frozen teacher, or several, into a student by one or several methods, beside the cross entropy.

        loss = ce_weight * cross_entropy + sum over the methods of weight * loss

    Of several teachers either the class probabilities are averaged, `teachers='average'`: the methods see one teacher
    whose logits are the logarithm of the mean, and can have nothing else of it. Or every method is there once for each
    of M teachers with weight / M and layers of its own, 'separate'; it is then named NAME_1, NAME_2, ... A method of
    one of them, 'NAME:2', has its whole weight.

    A step takes one forward pass of each network, whatever the methods need of it. Student and teacher may be any timm
    models with the same input channels and, if a method compares logits, the same classes. The logit methods act on the
    distillation head of a student that has one, which returns a pair of logits only inside the task, and their mean
    everywhere else.

    Args:
        student_model: The model to train.
        teacher_model: The trained teacher, or several. The task keeps a copy that is optimised for inference:
            BatchNorms folded (if the model supports it), channels-last, frozen, always in eval mode. Or `StoredLogits`
            in place of one teacher or several, for methods that need nothing but logits.
        methods: Names of methods (`hdkd_timm.distillation.methods.METHODS`), NAME:N for the N-th of separate teachers
            alone, or what makes one of a `Pair`: a class of your own or a `functools.partial` of one.
        method_args: Name -> settings of this method.
        ce_weight: Weight of the cross entropy; None for the one that the first method was published with.
        class_weight: Weights of the classes in the cross entropy, (K,).
        label_smoothing: Label smoothing of the cross entropy.
        input_size: Height and width of the student's images; None for the size that it was built for.
        teacher_size: Height and width to which they are resized for the teachers; None for no resizing, unless a
            teacher takes one size only.
        train_targets: Class index of each training image, (N,), for methods with a memory of them.
        teachers: What several teachers are to the methods, 'average' or 'separate'.
        multi_label: Whether an image has any number of labels: targets are 0 or 1 for each, (B, K), the cross entropy
            is the binary one, class weights are those of the images that have the label.
        device: Device of the task's buffers and of the methods.
        dtype: Dtype of the task's buffers and of the methods.
        verbose: Log the settings.

    Raises:
        ValueError: if a method is unknown, a setting is out of range, this pair cannot have the method, or it needs
            more than logits where there is nothing else.
    """

    def __init__(
        self,
        student_model: nn.Module,
        teacher_model: Union[nn.Module, Sequence[nn.Module]],
        methods: Sequence[Union[str, Callable[..., Method]]] = ('hdkd',),
        method_args: Mapping[str, Mapping[str, Any]] = {},
        *,
        ce_weight: Optional[float] = None,
        class_weight: Optional[torch.Tensor] = None,
        label_smoothing: float = 0.0,
        input_size: Optional[Tuple[int, int]] = None,
        teacher_size: Optional[Tuple[int, int]] = None,
        train_targets: Optional[torch.Tensor] = None,
        teachers: str = 'average',
        multi_label: bool = False,
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
        verbose: bool = True,
    ):
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        if teachers not in TEACHERS:
            raise ValueError(f"teachers must be one of {', '.join(TEACHERS)}, got '{teachers}'.")
        student, input_size = unwrap_model(student_model), input_size or image_size(unwrap_model(student_model))
        dd: Dict[str, Any] = {'device': self.device, 'dtype': self.dtype}
        self.epoch = 0
        self.multi_label = multi_label
        averages = teachers == 'average'
        self.teachers = Teachers(student, teacher_model, input_size, teacher_size, averages, multi_label, **dd)
        info = NetworkInfo.of(student, 'student', input_size)
        pairs = [Pair(info, teacher, train_targets, multi_label) for teacher in self.teachers.infos]
        if self.teachers.is_averaged:
            pairs = pairs[:1]
            _check_of_all(methods)
        built = [[method.to(**dd) for method in of_one] for of_one in create_methods(methods, pairs, method_args)]
        number = split_teacher(methods[0])[1] if isinstance(methods[0], str) else None
        first = built[(number or 1) - 1][0]  # as they are given, not by teacher
        weight = None if class_weight is None else torch.as_tensor(class_weight).to(**dd)
        self.register_buffer('class_weight', weight, persistent=False)
        self._set_up_methods(student, built, first.ce_weight if ce_weight is None else ce_weight, label_smoothing)
        self.register_state_dict_post_hook(_leave_out_teachers)
        self.register_load_state_dict_pre_hook(_keep_teachers)
        if self.verbose:
            self.log_settings(info.name)

    def _set_up_methods(
        self,
        student: nn.Module,
        methods: Sequence[Sequence[Method]],
        ce_weight: float,
        label_smoothing: float,
    ) -> None:
        """The trained module of student and methods, those of each teacher or of all at once."""
        every = [method for of_teacher in methods for method in of_teacher]
        for method in every:
            self.teachers.check_needs(method.name, method.teacher_needs)
        self.teachers.set_needs(
            [functools.reduce(Needs.__or__, (m.teacher_needs for m in of_teacher), Needs()) for of_teacher in methods]
        )
        self.needs_index = self.teachers.is_stored or any(method.needs_index for method in every)
        self.ce_weight = ce_weight
        if not self.ce_weight and (self.class_weight is not None or label_smoothing):
            _logger.warning(
                'The cross entropy has weight 0, so that class weights and label smoothing have no effect: set a weight'
                ' (ce_weight, --ce-weight).'
            )
        self.trainable_module: nn.Module = StudentModule(
            student, methods, self.ce_weight, label_smoothing, self.multi_label
        )
        # only where a loss acts on the logits is the distillation head trained apart
        self.distilled = has_distillation_head(student) and any(method.student_needs.logits for method in every)
        if not self.ce_weight and self.distilled:
            _logger.warning(
                'The cross entropy has weight 0, which leaves the class head untrained, and inference averages it in:'
                ' set a weight (ce_weight, --ce-weight; alpha below 1), or use a student with one head'
                ' (hdkd_student_plain).'
            )

    @property
    def teacher(self) -> nn.Module:
        """The frozen teacher, or a `ModuleList` of several."""
        models = self.teachers.models
        return models[0] if len(models) == 1 else models

    def __setattr__(self, name: str, value: Any) -> None:
        """Raises AttributeError for 'teacher': the task was built for the one that it has."""
        if name == 'teacher':
            raise AttributeError("A task's teacher cannot be replaced: create a task of the other one.")
        super().__setattr__(name, value)

    @property
    def views(self) -> Optional[int]:
        """Number of the fixed views that the training images must have; None for an augmentation as usual."""
        return self.teachers.views

    def log_settings(self, student: str) -> None:
        """Log what follows from the networks: matched stages, weights, another size of the teachers' images."""
        trainable = unwrap_model(self.trainable_module)
        words = [f'{name} (weight {m.weight:g}{_describe(m)})' for name, m in trainable.methods.items()]
        sizes = {prepare.size: None for prepare in self.teachers.inputs if prepare.size}
        size = (
            f'; images are resized to {" and ".join(f"{h} x {w}" for h, w in sizes)} for the teacher' if sizes else ''
        )
        _logger.info(
            f'Distillation of {self.teachers.describe()} into {student}: {", ".join(words)}, cross entropy (weight'
            f' {trainable.ce_weight:g}){size}.'
        )

    def set_epoch(self, epoch: int, epochs: int) -> None:
        """Tell the methods, and stored logits, how many epochs are done of how many; call it before each."""
        self.epoch = epoch
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
        self.teachers.compile(**compile_kwargs)
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

    def forward(
        self, input: torch.Tensor, target: torch.Tensor, index: Optional[torch.Tensor] = None
    ) -> Dict[str, torch.Tensor]:
        """Loss of a training step.

        Args:
            input: Images (B, C, H, W), normalised for the student.
            target: Class indices (B,), or class probabilities (B, K); with `multi_label` labels, 0 or 1, (B, K).
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
            what = 'The logits are stored by' if self.teachers.is_stored else 'These methods remember the'
            raise ValueError(f'{what} training images: pass their numbers as `index`.')
        teachers = self.teachers(input, index, self.epoch)
        if self.distilled:
            student.set_distilled_training(True)
        try:
            return self.trainable_module(input, target, teachers, self.class_weight, index)
        finally:
            if self.distilled:
                student.set_distilled_training(False)


def _unwrap_student_module(module: nn.Module) -> Any:
    """The `StudentModule` in DDP, a compiled module or a moving average."""
    while not isinstance(module, StudentModule):
        module = unwrap_model(module.module if hasattr(module, 'module') else module)
    return module


def _leave_out_teachers(task: nn.Module, state: Dict[str, Any], prefix: str, local_metadata: Any) -> None:
    """A state dict has no teachers: they are frozen, and given anew."""
    for name in [name for name in state if name.startswith(f'{prefix}teachers.')]:
        del state[name]


def _keep_teachers(task: Any, state: Dict[str, Any], prefix: str, *args: Any) -> None:
    """Loading a state dict leaves the teachers as they are; those of earlier releases had them."""
    for name in [name for name in state if name.startswith(f'{prefix}teacher.')]:
        del state[name]
    state.update(task.teachers.state_dict(prefix=f'{prefix}teachers.'))


def _check_of_all(methods: Sequence[Any]) -> None:
    """Raise ValueError if a method is of one teacher, where all are averaged."""
    for method in methods:
        if isinstance(method, str) and ':' in method:
            raise ValueError(
                f"Distillation method '{method}' is of one teacher, but the teachers are averaged: drop the number, or"
                " use each teacher by itself, teachers='separate' (--teachers separate)."
            )


def _describe(method: Method) -> str:
    return ''.join(f', {name} {value}' for name, value in method.describe().items())
