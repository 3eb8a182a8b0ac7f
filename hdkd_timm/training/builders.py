"""Network, task, optimiser and schedule of a training, built from its settings by timm's factories."""

import logging
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import timm
import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_layer_decay, param_groups_weight_decay
from timm.task import ClassificationTask, LogitDistillationTask, TrainingTask
from torch import nn

from .._compat import create_scheduler, reset_classifier
from ..distillation.hdkd_task import HDKDTask
from ..distillation.losses import label_loss, to_float32
from ..distillation.methods import METHODS, convert_settings, split_teacher
from ..distillation.task import DistillationTask
from ..distillation.teacher import StoredLogits, find_teacher_size
from ..evaluation.metrics import LOWER_IS_BETTER
from ..evaluation.problem import MULTI_LABEL
from ..models.checkpoint import SOURCE_PREFIXES, is_checkpoint_file, load_model
from ..models.labels import match_classes, match_label_names
from ..models.preprocessing import adapt_stats
from ..utils.config import flag
from ..utils.image_size import ImageSize, format_image_size, to_height_width
from .config import HDKD_FLAGS, DistillConfig, TrainConfig, find_warmup_epochs

_logger = logging.getLogger(__name__)


def create_network(
    name: str,
    config: TrainConfig,
    classes: Sequence[str],
    /,
    **kwargs: Any,
) -> Tuple[nn.Module, Dict[str, Any]]:
    """A timm model for the data, and its arguments. The image size goes to those that take one.

    Pretrained weights of the same classes keep their head; for others it is new, which is logged if they are as many.
    So is another image size than theirs.

    Args:
        name: Model name, 'local-dir:FOLDER' or 'hf-hub:NAME'.
        config: Image size, channels, drop rates, and whether it starts from pretrained weights.
        classes: Class names of the data by index.
        kwargs: Other arguments of the model.

    Raises:
        ValueError: if there is no such model, or it cannot be built with these arguments.
    """
    for key in ('num_classes', 'in_chans', 'img_size', 'pretrained'):
        if key in kwargs:
            raise ValueError(
                f"'{key}' of '{name}' cannot be set by --model-kwargs: it follows from the data and the other flags."
            )
    kwargs.update(in_chans=config.in_chans)
    rates = dict(drop_rate=config.drop, drop_path_rate=config.drop_path)
    kwargs.update({key: value for key, value in rates.items() if value is not None})
    num_classes = len(classes)
    if name.startswith(SOURCE_PREFIXES):
        model, kwargs = load_model(name, img_size=config.img_size, num_classes=num_classes, model_kwargs=kwargs)
        _fit_weights(model, name, config, classes)
        adapt_stats(model)
        _set_crop(model, name, config)
        return model, kwargs
    kwargs.update(num_classes=num_classes)
    if not timm.is_model(name.split('.')[0]):
        close = timm.list_models('hdkd_*')
        raise ValueError(f"Unknown model '{name}': choose from {', '.join(close)} or any other of timm's.")
    try:
        cfg = timm.get_pretrained_cfg(name)
        if name.startswith('hdkd_') or (cfg is not None and cfg.fixed_input_size):
            kwargs.update(img_size=config.img_size)
        model = timm.create_model(name, pretrained=config.pretrained, **kwargs)
        if config.pretrained and model.pretrained_cfg.get('num_classes') != num_classes:
            _shrink_new_head(model)
    except Exception as e:  # other packages' networks can raise anything
        reason = ' '.join(str(e).split()) or type(e).__name__
        raise ValueError(f"Cannot build '{name}' with {kwargs}: {reason}") from e
    if config.pretrained:
        _fit_weights(model, name, config, classes)
    adapt_stats(model)
    _set_crop(model, name, config)
    return model, kwargs


def _fit_weights(model: nn.Module, name: str, config: TrainConfig, classes: Sequence[str]) -> None:
    """A new head, in place, for pretrained weights of other classes; logs it, and another image size than theirs."""
    names = model.pretrained_cfg.get('label_names')  # none if their number differed, for which the head is new already
    names = list(names.values() if isinstance(names, dict) else names or ())
    if len(names) == len(classes) and names != list(classes):
        _logger.info(f"'{name}' starts with a new head: its weights know {', '.join(names)}.")
        reset_classifier(model, len(classes))
        _shrink_new_head(model)
    elif not names and model.pretrained_cfg.get('num_classes') == len(classes):
        _logger.info(f"'{name}' keeps the head of its weights, which do not say what their {len(classes)} classes are.")
    size, trained = to_height_width(config.img_size), tuple(model.pretrained_cfg['input_size'][1:])
    if size != trained:
        _logger.info(
            f"'{name}' starts from weights for images of {format_image_size(trained)} pixels, and is trained at"
            f' {format_image_size(size)} (--img-size).'
        )


def _set_crop(model: nn.Module, name: str, config: TrainConfig) -> None:
    """Record in a network's `pretrained_cfg` which part of an image it is to see in validation, test and prediction;
    logs it, if that is not all."""
    given = {key: getattr(config, key) for key in ('crop_pct', 'crop_mode') if getattr(config, key) is not None}
    model.pretrained_cfg = dict(model.pretrained_cfg, **given)
    data_config = timm.data.resolve_data_config({}, model=model)
    if data_config['crop_pct'] < 1 or data_config['crop_mode'] == 'center':
        pct, mode = data_config['crop_pct'], data_config['crop_mode']
        side = 'each side' if mode == 'squash' else 'the shorter side'
        _logger.info(
            f"Of validation and test images '{name}' sees only the centre, {pct:.1%} of {side} (crop_pct, crop_mode"
            f' {mode}): for whole images give --crop-pct 1 --crop-mode squash.'
        )


class GivenTeacher(NamedTuple):
    """A teacher that was trained before, and the arguments that it was built with.

    Args:
        model: The network.
        model_args: Its arguments.
        has_classes: Whether its classes are those of the data in their order; else no method compares its logits.
    """

    model: nn.Module
    model_args: Dict[str, Any]
    has_classes: bool = True


def compares_logits(config: TrainConfig, number: int) -> bool:
    """Whether the logits of the N-th teacher, from 1, are compared, so that it must have the classes of the data. Those
    of a method that does not exist are, until its name is refused."""
    if not isinstance(config, DistillConfig):
        return True
    names = {name for name, own in map(split_teacher, config.method) if own in (None, number)} - {'none'}
    if config.kd_type == 'none':
        names -= {'hdkd'}
    return any(name not in METHODS or METHODS[name].compares_logits for name in names)


def create_teacher(
    name: str,
    config: TrainConfig,
    classes: List[str],
    model_name: Optional[str] = None,
    number: int = 1,
) -> GivenTeacher:
    """A trained teacher, with the classes of the data in their order if its logits are compared.

    Args:
        name: As `load_model` takes it.
        config: The teacher's class names, and the channels of the student's images.
        classes: Class names of the data by index.
        model_name: Model name of a checkpoint file, where its keys leave a choice (`_s4`).
        number: Which of several teachers it is, from 1.

    Raises:
        FileNotFoundError, ValueError: as `load_model` and `match_classes`; if it takes other channels.
    """
    try:
        model, model_args = load_model(name, model_name)
    except ValueError as e:
        if not Path(name).is_file():
            raise
        raise ValueError(
            f'{e} For a teacher, convert it with these settings, `hdkd convert {name} FOLDER`, and use FOLDER as the'
            ' teacher.'
        ) from e
    label_names = config.teacher_label_names
    if len(config.teacher_checkpoint or ()) > 1:  # no flag could tell the names of each: their own order them
        label_names = model.pretrained_cfg.get('label_names')
    difference = _describe_difference(model, classes, config.multi_label)
    has_classes = not difference or compares_logits(config, number) or bool(config.teacher_label_names)
    if has_classes:
        _match_problem(model, name, config)
        match_classes(model, classes, label_names, f"Teacher '{name}'")
    else:
        _logger.warning(
            f"Teacher '{name}' {difference}: no method compares its logits, so it teaches all the same, and is neither"
            ' tested nor saved with the run.'
        )
    if model.in_chans != config.in_chans:
        raise ValueError(f"Teacher '{name}' takes {model.in_chans} channels, the student {config.in_chans}.")
    adapt_stats(model)
    _warn_of_teacher_size(model, name, config)
    return GivenTeacher(model, model_args, has_classes)


def _describe_difference(teacher: nn.Module, classes: Sequence[str], is_multi_label: bool) -> str:
    """How a teacher's classes differ from those of the data, whatever their order; '' if they do not."""
    if (teacher.pretrained_cfg.get('problem_type') == MULTI_LABEL) != is_multi_label:
        return f'gives an image {"one class" if is_multi_label else "any number of labels"}, unlike the data'
    if teacher.num_classes != len(classes):
        return f'has {teacher.num_classes} classes, the data {len(classes)}'
    names = match_label_names(teacher, None, 'Teacher') or classes
    others = [name for name in names if name not in classes]
    return f"has other classes than the data, such as '{others[0]}'" if others else ''


def _match_problem(teacher: nn.Module, name: str, config: TrainConfig) -> None:
    """Raise ValueError if a teacher gives an image one class and the data any number of labels, or the reverse."""
    is_multi_label = teacher.pretrained_cfg.get('problem_type') == MULTI_LABEL
    if is_multi_label != config.multi_label:
        raise ValueError(
            f"Teacher '{name}' gives an image {'any number of labels' if is_multi_label else 'one class'}, the data"
            f' {"one class" if is_multi_label else "any number of labels"}: use a teacher of such images. If its'
            f' config.json does not say so, add "problem_type": "{MULTI_LABEL}".'
        )


def _warn_of_teacher_size(teacher: nn.Module, name: str, config: TrainConfig) -> None:
    """Warn if a teacher gets images of another size than its config says; a checkpoint file says none."""
    given = getattr(config, 'teacher_img_size', None) or config.img_size
    size, trained = to_height_width(given), tuple(teacher.pretrained_cfg['input_size'][1:])
    if is_checkpoint_file(Path(name)) or size == trained or find_teacher_size(teacher, size) is not None:
        return
    known = ' '.join(map(str, trained if trained[0] != trained[1] else trained[:1]))
    way = f', or --teacher-img-size {known} to resize them for it' * isinstance(config, DistillConfig)
    _logger.warning(
        f"Teacher '{name}' is for images of {format_image_size(trained)} pixels, as its config says, and gets"
        f' {format_image_size(size)}, on which it may be less accurate: use --img-size {known}{way}.'
    )


def _shrink_new_head(model: nn.Module) -> None:
    """Initialise a new classifier again where its weights are larger than PyTorch's default.

    timm scales the linear layers of EfficientNet, MobileNet and the like by the number of classes, not of features: on
    pretrained features the logits of seven classes have a standard deviation of 4, so training starts from confident
    and wrong answers.
    """
    heads = model.get_classifier() if hasattr(model, 'get_classifier') else ()
    for head in heads if isinstance(heads, (tuple, list)) else (heads,):
        for layer in head.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.weight.shape[0] == model.num_classes:
                default = (3 * layer.weight[0].numel()) ** -0.5  # standard deviation
                if layer.weight.square().mean().sqrt() > 2 * default:
                    layer.reset_parameters()


def _return_float32(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
    return to_float32(output)


class LabelLoss(nn.Module):
    """`label_loss` as a module: logits (B, K), target (B,) or (B, K) -> scalar.

    Args:
        class_weight, smoothing, multi_label: As in `label_loss`.
    """

    class_weight: Optional[torch.Tensor]

    def __init__(self, class_weight: Optional[torch.Tensor], smoothing: float, multi_label: bool):
        super().__init__()
        self.register_buffer('class_weight', class_weight, persistent=False)
        self.smoothing = smoothing
        self.multi_label = multi_label

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return label_loss(logits, target, self.class_weight, self.smoothing, self.multi_label)


def create_task(
    model: nn.Module,
    config: TrainConfig,
    class_weight: Optional[torch.Tensor] = None,
    teacher: Optional[nn.Module] = None,
) -> TrainingTask:
    """What computes the loss of a network: cross entropy, with a teacher also its soft labels, or with the settings of
    `distill` the losses of its methods.

    Args:
        model: The network to train.
        config: Its settings; those of `distill` and a teacher make it the student.
        class_weight: Weights of the classes in the cross entropy, (K,).
        teacher: The trained teacher.

    Raises:
        ValueError: as `create_distillation_task`.
    """
    if config.multi_label and teacher is not None and not isinstance(config, DistillConfig):
        raise ValueError('--multi-label with a teacher is for hdkd distill --method kd, not for hdkd train.')
    criterion = LabelLoss(class_weight, config.loss_smoothing, config.multi_label)
    if teacher is None:
        return ClassificationTask(model, criterion, verbose=False)
    if isinstance(config, DistillConfig):
        return create_distillation_task(model, teacher, config, class_weight)
    for network in (model, teacher):  # a CPU's autocast leaves the softmax of timm's task in bfloat16
        network.register_forward_hook(_return_float32)
    return LogitDistillationTask(
        model,
        teacher.requires_grad_(False),
        criterion,
        task_loss_weight=1 - config.alpha,
        temperature=config.tau,
        verbose=False,
    )


def create_distillation_task(
    student: nn.Module,
    teacher: Union[nn.Module, Sequence[nn.Module]],
    config: DistillConfig,
    class_weight: Optional[torch.Tensor] = None,
    train_targets: Optional[np.ndarray] = None,
    teacher_img_size: Optional[ImageSize] = None,
    verbose: bool = False,
) -> TrainingTask:
    """The task of the methods; HDKD's own where that is the only one, whose losses have their published names.

    Args:
        student: The network to train.
        teacher: The trained teacher, several of them, or their `StoredLogits`.
        config: Settings of the distillation.
        class_weight: Weights of the classes in the cross entropy, (K,).
        train_targets: Class index of each training image, (N,), for methods with a memory of them.
        teacher_img_size: Height and width of the teachers' images; None for those of the student's, unless a teacher
            takes one size only.
        verbose: Log what the methods found out of the pair.

    Raises:
        ValueError: if the pair cannot have a method, or for a wrong setting of one.
    """
    if config.method == ('none',):
        return create_task(student, config, class_weight)
    shared: Dict[str, Any] = dict(
        class_weight=class_weight,
        label_smoothing=config.loss_smoothing,
        multi_label=config.multi_label,
        verbose=verbose,
    )
    size = teacher_img_size or config.img_size
    teacher_size = None if size == config.img_size else to_height_width(size)
    method_args = dict(config.method_args)
    if 'hdkd' in config.method_names:
        method_args['hdkd'] = hdkd_settings(config)
    shared.update(ce_weight=config.ce_weight, input_size=config.input_size[1:], teacher_size=teacher_size)
    if config.method == ('hdkd',) and isinstance(teacher, nn.Module) and not isinstance(teacher, StoredLogits):
        kind = method_args['hdkd'].pop('kd_type')
        return HDKDTask(student, teacher, kind=kind, **method_args['hdkd'], **shared)
    if 'hdkd' not in config.method_names and verbose:
        _warn_of_hdkd_settings(config)
    return DistillationTask(
        student,
        teacher,
        config.method,
        method_args,
        train_targets=None if train_targets is None else torch.as_tensor(train_targets),
        teachers=config.teachers,
        **shared,
    )


def _warn_of_hdkd_settings(config: DistillConfig) -> None:
    """Warn of settings in a file that belong to a method which is not used; as flags they are refused."""
    changed = [name for name in HDKD_FLAGS if getattr(config, name) != getattr(DistillConfig, name)]
    if changed:
        _logger.warning(
            f"{', '.join(f'{name} {getattr(config, name)}' for name in changed)}: of the method 'hdkd', without effect"
            f' on {" ".join(config.method)}.'
        )


def hdkd_settings(config: DistillConfig) -> Dict[str, Any]:
    """The settings of the method 'hdkd': those that have flags, and the others among the settings of the methods.

    Raises:
        ValueError: if one that has a flag is given among the others, or the method does not have it.
    """
    settings = dict(config.method_args.get('hdkd', {}))
    for name in HDKD_FLAGS:
        if name in settings:
            raise ValueError(f'--method-args hdkd.{name}={settings[name]}: use its flag, {flag(name)}.')
        settings[name] = getattr(config, name)
    return convert_settings('hdkd', METHODS['hdkd'], settings)


def example_batch(
    task: TrainingTask, config: TrainConfig, num_classes: int, number: int, device: torch.device
) -> Tuple[torch.Tensor, ...]:
    """A batch that a training step of the task takes: random images (B, C, H, W), targets as those of the settings, and
    numbers of images (B,) if the task needs them.

    Args:
        task: The task.
        config: Its settings.
        num_classes: Number of classes K.
        number: Number of images B, at most as many as there are for training.
        device: Device of the batch.
    """
    images = torch.randn(number, *config.input_size)
    target = torch.arange(number) % num_classes
    if config.multi_label or config.mixup or config.cutmix:
        target = nn.functional.one_hot(target, num_classes).float()
    index = (torch.arange(number),) if getattr(task, 'needs_index', False) else ()
    return tuple(tensor.to(device) for tensor in (images, target, *index))


def freeze_stages(model: nn.Module, number: int) -> List[nn.Module]:
    """Freeze the first stages of a timm model and all before them, including tokens and position embedding where they
    are added there. Returns the frozen modules.

    Raises:
        ValueError: if the model has fewer stages.
    """
    stages = [info['module'] for info in getattr(model, 'feature_info', [])]
    if not 0 <= number <= len(stages):
        raise ValueError(
            f'--freeze-stages must be 0 to {len(stages)}, the number of stages of {type(model).__name__}, got {number}.'
        )
    if not number:
        return []
    last = stages[number - 1]
    frozen = []
    for name, module in model.named_modules():
        if name and not last.startswith(f'{name}.'):  # not a module that contains the last frozen stage
            frozen.append(module)
        if name == last:
            frozen.extend(m for n, m in model.named_modules() if n.startswith(f'{last}.'))
            break
    for module in frozen:
        module.requires_grad_(False)
    if hasattr(model, 'group_matcher'):  # its layers include the model's own parameters, which are in no module
        layers = group_parameters(model, model.group_matcher(), reverse=True)
        end = max((layers[name] for name in layers if name.startswith(f'{last}.')), default=-1)
        for name, parameter in model.named_parameters():
            if '.' not in name and layers[name] <= end:
                parameter.requires_grad_(False)
    return frozen


def create_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """timm's optimiser for the trainable parameters of a network.

    Raises:
        ValueError: if timm does not have it, or it needs a GPU or a package that is missing.
    """
    if config.opt.lower().removeprefix('lookahead_') not in list_optimizers():
        raise ValueError(f"Unknown optimiser '{config.opt}': choose one of timm's (adamw, sgd, lion, ...).")
    args: Dict[str, Any] = dict(opt=config.opt, lr=config.lr)
    params: Any = model
    if not config.decay_tokens:
        args.update(weight_decay=config.weight_decay, layer_decay=config.layer_decay)
    elif config.layer_decay:
        params = param_groups_layer_decay(model, config.weight_decay, layer_decay=config.layer_decay)
    else:
        params = param_groups_weight_decay(model, config.weight_decay)
    try:
        optimizer = create_optimizer_v2(params, **args)
    except (AssertionError, ImportError) as e:  # a GPU or a package is missing
        raise ValueError(f"Optimiser '{config.opt}' cannot be used here: {e}.") from e
    if config.sched == 'none':  # otherwise the schedule applies the layers' scales
        for group in optimizer.param_groups:
            group['lr'] *= group.get('lr_scale', 1.0)
    return optimizer


def create_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig, updates_per_epoch: int) -> Optional[Any]:
    """timm's learning-rate schedule, None for a constant rate.

    Raises:
        ValueError: if timm does not have it.
    """
    if config.sched == 'none':
        return None
    third = max(1, config.epochs // 3)
    milestones = config.decay_milestones or (third, 2 * third)
    warmup_epochs = find_warmup_epochs(config.warmup_epochs, config.epochs)
    try:
        return create_scheduler(
            optimizer,
            sched=config.sched,
            num_epochs=config.epochs,
            warmup_epochs=warmup_epochs,
            warmup_lr=config.warmup_lr,
            min_lr=config.min_lr,
            step_on_epochs=not config.sched_on_updates,
            decay_epochs=config.decay_epochs or third,
            decay_milestones=list(milestones),
            decay_rate=config.decay_rate,
            patience_epochs=config.patience_epochs,
            updates_per_epoch=updates_per_epoch,
            plateau_mode='min' if config.select_metric in LOWER_IS_BETTER else 'max',
        )
    except ValueError as e:
        raise ValueError(
            f"Unknown schedule '{config.sched}': choose one of timm's (cosine, step, plateau, ...) or none."
        ) from e
