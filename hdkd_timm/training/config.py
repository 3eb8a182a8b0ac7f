"""The settings of `train` and `distill`."""

import dataclasses
import importlib.resources
import math
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple, Type, TypeVar

from ..data.augment import AugmentConfig
from ..data.cache import CACHES
from ..data.config import DataConfig
from ..distillation.losses import KD_TYPES, REDUCTIONS
from ..distillation.task import TEACHERS
from ..evaluation.metrics import METRICS, MULTI_LABEL_METRICS
from ..models.hdkd import MIN_IMG_SIZE
from ..utils.config import KeyValues, NestedKeyValues, check_settings, check_values, flag, read_yaml, setting
from ..utils.image_size import ImageSize, parse_image_size, simplify_image_size, to_height_width
from .logger import LOGS

if TYPE_CHECKING:
    from ..evaluation.problem import Problem

ConfigT = TypeVar('ConfigT')

# settings of the method 'hdkd' with flags of their own
HDKD_FLAGS = ('kd_type', 'alpha', 'tau', 'feature_weight', 'stages', 'stage_exponent', 'reduction')
TRAINS_A_TEACHER = (  # settings of the teacher's training
    'teacher_pretrained',
    'teacher_kwargs',
    'teacher_epochs',
    'teacher_opt',
    'teacher_lr',
    'teacher_weight_decay',
    'teacher_sched',
)


def find_warmup_epochs(given: Optional[int], epochs: int) -> int:
    """Epochs of the warm-up in a training of so many."""
    return min(5, epochs // 5) if given is None else given


def method_names(methods: Sequence[str]) -> Tuple[str, ...]:
    """Names of methods, as a setting has them, without the numbers of their teachers."""
    return tuple(name.partition(':')[0] for name in methods)


@dataclasses.dataclass
class TrainConfig(DataConfig, AugmentConfig):
    """Settings of `train`, named as in timm's train.py. The defaults are the recipe 'default'."""

    model: str = setting(
        'hdkd_student',
        "network to train, any of timm's (also local-dir:FOLDER, hf-hub:ORG/NAME)",
        group='model',
        common=True,
    )
    pretrained: bool = setting(False, 'start from pretrained weights', common=True)
    model_kwargs: Dict[str, Any] = setting(
        {}, 'further arguments of the network', nargs='*', action=KeyValues, metavar='NAME=VALUE'
    )
    teacher_checkpoint: Optional[Tuple[str, ...]] = setting(
        None,
        'trained teacher (distill: or several): model folder, such as runs/NAME/teacher, checkpoint file, or released'
        ' weights',
        group='distillation',
        metavar='PATH',
        common=True,
    )
    teacher_label_names: Optional[Tuple[str, ...]] = setting(
        None,
        'class names of --teacher-checkpoint by index, if it has none or a different order than the data; with one'
        ' teacher',
    )
    img_size: ImageSize = setting(
        224,
        'height and width in pixels to which images are resized, one number for both, or two',
        type=parse_image_size,
        at_least=MIN_IMG_SIZE,
        group='model',
        common=True,
    )
    drop: Optional[float] = setting(None, 'dropout rate', at_least=0, below=1)
    drop_path: Optional[float] = setting(None, 'stochastic depth rate', at_least=0, below=1)
    freeze_stages: int = setting(0, 'number of first stages to freeze, with all that precedes them', at_least=0)

    alpha: float = setting(
        0.5, "weight of the teacher's soft labels in the logit loss", at_least=0, at_most=1, group='distillation'
    )
    tau: float = setting(1.0, 'temperature of the soft labels', above=0)

    epochs: int = setting(100, 'number of training epochs', at_least=1, group='optimisation', common=True)
    batch_size: int = setting(16, 'batch size per process', flags=('-b',), at_least=1, common=True)
    grad_accum_steps: int = setting(1, 'gradient accumulation steps', at_least=1)
    opt: str = setting('adamw', "optimiser, one of timm's", common=True)
    lr: float = setting(1e-3, 'learning rate', above=0, common=True)
    weight_decay: float = setting(0.05, 'weight decay, except of one-dimensional parameters', at_least=0)
    decay_tokens: bool = setting(
        False, 'apply weight decay to tokens and position embedding too, like the published code'
    )
    layer_decay: Optional[float] = setting(
        None, 'layer-wise learning rate decay: factor from each layer to the one before it', above=0, at_most=1
    )
    sched: str = setting('cosine', "learning rate schedule, one of timm's, or 'none' for a constant learning rate")
    sched_on_updates: bool = setting(False, 'step the schedule per optimiser step instead of per epoch')
    decay_epochs: Optional[int] = setting(
        None, "epochs between two decays of the schedule 'step' (default: a third of the epochs)", at_least=1
    )
    decay_milestones: Tuple[int, ...] = setting(
        (), "epochs of the decays of the schedule 'multistep' (default: at one and two thirds)", at_least=1
    )
    decay_rate: float = setting(
        0.1, "factor of each decay of the schedules 'step', 'multistep' and 'plateau'", above=0, at_most=1
    )
    patience_epochs: int = setting(
        10, "epochs without improvement before the schedule 'plateau' decays the learning rate", at_least=0
    )
    warmup_epochs: Optional[int] = setting(
        None, 'warm-up epochs (default: 5, but at most a fifth of the epochs)', at_least=0
    )
    warmup_lr: float = setting(1e-5, 'initial learning rate of the warm-up', at_least=0)
    min_lr: float = setting(1e-5, 'minimum learning rate of the schedule', at_least=0)
    clip_grad: Optional[float] = setting(None, 'gradient clipping threshold (default: no clipping)', above=0)
    clip_mode: str = setting('norm', 'clipping mode', choices=('norm', 'value', 'agc'))
    model_ema: bool = setting(False, 'evaluate and save an exponential moving average of the weights')
    model_ema_decay: float = setting(0.998, 'maximum decay of the moving average', at_least=0, below=1)
    model_ema_warmup: bool = setting(
        True, 'let the decay grow with the number of updates, so that the initial weights are forgotten'
    )
    class_weights: Optional[str] = setting(
        None,
        "class weights of the cross entropy: 'balanced', 'effective' (number of samples) or a JSON file",
        metavar='balanced|effective|FILE',
        group='class imbalance',
    )
    sampler: Optional[str] = setting(None, 'draw images of all classes equally often', choices=('balanced',))
    smote: Optional[str] = setting(
        None,
        'oversample with SMOTE to the number of images per class in this JSON file, like the published code',
        metavar='FILE',
    )

    select_metric: Optional[str] = setting(
        None,
        'validation metric that selects the best epoch (default: balanced_accuracy; macro_auroc with --multi-label)',
        choices=tuple(dict.fromkeys(METRICS + MULTI_LABEL_METRICS)),
        group='evaluation',
    )
    early_stopping: Optional[int] = setting(None, 'stop after this many epochs without improvement on val', at_least=1)
    bootstrap: int = setting(
        1000, 'bootstrap resamples for the 95 %% intervals of the test metrics, 0 for no intervals', at_least=0
    )

    amp: bool = setting(False, 'mixed precision', group='device and speed', common=True)
    amp_dtype: str = setting('float16', 'autocast dtype', choices=('float16', 'bfloat16'))
    channels_last: bool = setting(False, 'channels-last memory layout')
    torchcompile: Optional[str] = setting(
        None,
        'compile the networks with this backend (inductor if none is named)',
        nargs='?',
        const='inductor',
        metavar='BACKEND',
    )
    fast: Optional[str] = setting(
        None,
        'try at the start of each training whether --channels-last and --torchcompile make its steps faster, and use'
        ' what does',
        choices=('auto',),
    )
    cache: Optional[str] = setting(
        None, 'cache decoded images (resized, if that comes first) in memory or in a file', choices=CACHES
    )
    cache_dir: Optional[str] = setting(
        None, 'folder for the files of --cache disk (default: .cache in --output)', metavar='DIR'
    )
    workers: int = setting(2, 'loader processes', flags=('-j',), at_least=0, common=True)
    device: Optional[str] = setting(None, 'cpu, cuda, mps, ... (default: the best available)', common=True)

    output: str = setting('runs', 'folder for runs', metavar='DIR', group='run')
    experiment: Optional[str] = setting(None, 'name of the run (default: date, time and model)', common=True)
    recovery_interval: Optional[int] = setting(
        None, 'save the training state every N optimiser steps, not only after each epoch', at_least=1
    )
    log: Tuple[str, ...] = setting((), 'additional loggers', choices=LOGS)

    @property
    def problem(self) -> 'Problem':
        """Whether an image has one class or any number of labels, and what follows from it."""
        from ..evaluation.problem import find_problem  # here, for a quick --help

        return find_problem(self.multi_label)

    @property
    def input_size(self) -> Tuple[int, int, int]:
        """Channels, height and width of the network's images."""
        return self.in_chans, *to_height_width(self.img_size)

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range; names the flag, the value and the range."""
        if isinstance(self.teacher_checkpoint, str):  # as in Python, and in files of earlier versions
            self.teacher_checkpoint = (self.teacher_checkpoint,)
        self.img_size = simplify_image_size(self.img_size, '--img-size')
        if self.select_metric is None:
            self.select_metric = 'macro_auroc' if self.multi_label else 'balanced_accuracy'
        check_values(self)
        super().__post_init__()
        _check_teachers(self)
        _check_problem(self)
        _check_rates(self)
        for name, most in (('scale', 1), ('ratio', math.inf)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most or math.isinf(high):
                words = '0 < MIN <= MAX' + (' <= 1' if most == 1 else '')
                raise ValueError(f'{flag(name)} must be {words}, got {low} {high}.')
        if self.aa and self.aug != 'timm':
            raise ValueError(f"--aa '{self.aa}' is a part of --aug timm, not of --aug {self.aug}.")
        for name in ('channels_last', 'torchcompile'):
            if self.fast and getattr(self, name):
                raise ValueError(
                    f'--fast {self.fast} finds out by itself whether to use {flag(name)}: drop one of them'
                    f'{" (--no-channels-last, if it was set elsewhere)" * (name == "channels_last")}.'
                )
        if self.cache_dir and self.cache != 'disk':
            raise ValueError(f"--cache-dir '{self.cache_dir}' is for --cache disk alone.")
        if self.aug_device and self.aug != 'paper':
            raise ValueError(f'--aug-device is for --aug paper, not for --aug {self.aug}.')
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ValueError(f'--batch-size must be even with mixup or cutmix, got {self.batch_size}.')

    @classmethod
    def from_recipe(cls: Type[ConfigT], name: str, **changes: Any) -> ConfigT:
        """The settings of a recipe in the package ('default', 'paper', 'paper-teacher'), and changes to them.

        Raises:
            ValueError: if there is no such recipe, or a value is out of range.
        """
        return cls(**{**recipe_settings(name, cls), **changes})


@dataclasses.dataclass
class DistillConfig(TrainConfig):
    """Settings of `distill`: those of the student, and of the teacher before it."""

    model: str = setting('hdkd_student', 'student, a timm model with a distillation head', group='model', common=True)
    teacher: str = setting(
        'hdkd_teacher',
        'teacher to train, a timm model; or the architecture of a checkpoint file',
        group='teacher',
        common=True,
    )
    student_alone: bool = setting(
        False, 'also train the student without distillation, for comparison', group='distillation', common=True
    )

    teachers: str = setting(
        'average',
        'what several teachers teach: the mean of their class probabilities (methods of the logits only), or each'
        ' method once for every teacher, with its share of the weight',
        choices=TEACHERS,
    )
    teacher_logits: Optional[str] = setting(
        None,
        "logits that 'hdkd cache-logits' stored, instead of a teacher: no teacher runs, and the student sees the views"
        ' that the teacher saw (of a file with --views 0 other images: the teacher saw them un-augmented)',
        metavar='FILE',
    )
    method: Tuple[str, ...] = setting(
        ('hdkd',),
        "distillation methods, NAME or NAME:N of the N-th of --teachers separate; 'list' prints them, 'none' trains by"
        ' cross entropy alone',
        common=True,
        metavar='NAME',
    )
    method_args: Dict[str, Any] = setting(
        {}, 'settings of the methods', nargs='+', action=NestedKeyValues, metavar='METHOD.NAME=VALUE', common=True
    )
    ce_weight: Optional[float] = setting(
        None,
        'weight of the cross entropy beside the methods (default: as the first method was published; hdkd: 1 - alpha)',
        at_least=0,
    )
    init_from_teacher: Optional[Tuple[str, ...]] = setting(
        None,
        "start the student's stages from layers of the teacher's: STAGE:LAYER,LAYER,... from 0, or, without a value,"
        ' layers at even distances in all stages that both have',
        nargs='*',
        metavar='STAGE:LAYERS',
        common=True,
    )
    kd_type: str = setting('soft', 'method hdkd: loss of the logits', choices=KD_TYPES, common=True)
    alpha: float = setting(
        0.5, 'method hdkd: weight of the distillation in the logit loss', at_least=0, at_most=1, common=True
    )
    tau: float = setting(1.0, 'method hdkd: temperature of the soft distillation', above=0, common=True)
    reduction: str = setting(
        'mean',
        'method hdkd, soft distillation: average over images and classes, like the published code, or over images',
        choices=REDUCTIONS,
    )
    feature_weight: float = setting(10.0, 'method hdkd: weight of the stage loss', at_least=0, common=True)
    stages: Tuple[int, ...] = setting((1, 2, 3), 'method hdkd: stages whose feature maps are distilled')
    stage_exponent: float = setting(1.0, 'method hdkd: weight of the i-th of these stages, i^X (gamma)', at_least=0)

    teacher_pretrained: bool = setting(False, 'start the teacher from pretrained weights', group='teacher')
    teacher_kwargs: Dict[str, Any] = setting(
        {}, 'further arguments of the teacher', nargs='*', action=KeyValues, metavar='NAME=VALUE'
    )
    teacher_img_size: Optional[ImageSize] = setting(
        None,
        "height and width of the teacher's images, to which those of the student are resized in distillation (default:"
        ' --img-size, or the only size that a given teacher takes)',
        type=parse_image_size,
        at_least=MIN_IMG_SIZE,
        metavar='N',
    )
    teacher_epochs: Optional[int] = setting(None, "training epochs of the teacher (default: the student's)", at_least=1)
    teacher_opt: str = setting('adamw', 'optimiser of the teacher')
    teacher_lr: float = setting(1e-3, 'learning rate of the teacher', above=0)
    teacher_weight_decay: float = setting(0.05, 'weight decay of the teacher', at_least=0)
    teacher_sched: str = setting('cosine', 'learning rate schedule of the teacher')

    def __post_init__(self) -> None:
        """As that of `TrainConfig`; also for settings of methods that are not used."""
        if self.teacher_img_size is not None:
            self.teacher_img_size = simplify_image_size(self.teacher_img_size, '--teacher-img-size')
        super().__post_init__()
        _check_methods(self)
        if self.has_teacher and not (self.teacher_checkpoint or self.teacher_logits):
            _check_rates(self, 'teacher_')
        if self.teacher_logits and self.teacher_checkpoint:
            raise ValueError(
                f"--teacher-logits '{self.teacher_logits}' is instead of a teacher: drop it, or --teacher-checkpoint."
            )
        if self.teacher_logits and self.init_from_teacher is not None:
            raise ValueError('--init-from-teacher needs a teacher, not --teacher-logits: give --teacher-checkpoint.')

    @property
    def method_names(self) -> Tuple[str, ...]:
        """The methods without the numbers of their teachers."""
        return method_names(self.method)

    @property
    def has_teacher(self) -> bool:
        """Whether a teacher takes part: not where cross entropy alone trains a student that starts from no teacher."""
        return self.method != ('none',) or self.init_from_teacher is not None


def _check_problem(config: TrainConfig) -> None:
    """Raise ValueError for settings that need images of one class each, and for a metric of the other problem."""
    metrics = MULTI_LABEL_METRICS if config.multi_label else METRICS
    if config.select_metric not in metrics:
        images = 'several labels' if config.multi_label else 'one class'
        raise ValueError(
            f'--select-metric {config.select_metric} is not defined for images of {images}: choose from'
            f' {", ".join(metrics)}.'
        )
    if not config.multi_label:
        return
    for name, value in (
        ('mixup', config.mixup),
        ('cutmix', config.cutmix),
        ('sampler', config.sampler),
        ('smote', config.smote),
        ('class_weights', config.class_weights == 'effective'),
    ):
        if value:
            shown = getattr(config, name)
            hint = ', or use --class-weights balanced' if name in ('sampler', 'smote', 'class_weights') else ''
            raise ValueError(
                f'{flag(name)} {shown} is for images of one class each, not for --multi-label: leave it out{hint}.'
            )


def _check_rates(config: TrainConfig, prefix: str = '') -> None:
    """Raise ValueError for a schedule that would raise the learning rate above the one that is given, or not reach it.

    Args:
        config: The settings.
        prefix: Of the settings of the network, 'teacher_' for those of the teacher.
    """
    lr, sched = getattr(config, f'{prefix}lr'), getattr(config, f'{prefix}sched')
    epochs = getattr(config, f'{prefix}epochs') or config.epochs
    warmup = find_warmup_epochs(config.warmup_epochs, epochs)
    if sched == 'none':
        return
    rates = [('warmup_lr', config.warmup_lr)] if warmup else []
    rates += [('min_lr', config.min_lr)] if sched not in ('step', 'multistep') else []
    for name, rate in rates:
        if rate > lr:
            raise ValueError(
                f'{flag(name)} {rate:g} is above {flag(f"{prefix}lr")} {lr:g}, which the learning rate would exceed:'
                f' give {flag(name)} too, such as {lr / 100:g}.'
            )
    if warmup >= epochs:
        raise ValueError(
            f'--warmup-epochs {warmup} of {epochs} epochs never reach {flag(f"{prefix}lr")} {lr:g}: use fewer.'
        )


def _check_teachers(config: TrainConfig) -> None:
    """Raise ValueError for teachers that are given twice, or class names for several of them."""
    given = config.teacher_checkpoint or ()
    for name in given:
        if given.count(name) > 1:
            raise ValueError(f"--teacher-checkpoint names '{name}' twice: keep one of them.")
    if len(given) > 1 and config.teacher_label_names:
        raise ValueError(
            f'--teacher-label-names is for one teacher, got {len(given)}: write the class names into each with hdkd'
            ' convert --label-names.'
        )


def _check_methods(config: 'DistillConfig') -> None:
    """Raise ValueError for settings of a method that is not among the methods."""
    if 'none' in config.method and len(config.method) > 1:
        raise ValueError(f'--method none is no distillation: drop it, or the others, got {" ".join(config.method)}.')
    for name, settings in config.method_args.items():
        if not isinstance(settings, dict) or not settings:
            raise ValueError(f'--method-args: the settings of {name} must be NAME: VALUE, got {settings!r}.')
        if name not in config.method_names:
            raise ValueError(
                f'--method-args {name}.{min(settings)}: {name} is not among --method {" ".join(config.method)}.'
            )


def recipe_settings(name: str, config_cls: Type[Any]) -> Dict[str, Any]:
    """Settings of a recipe in the package, those that the dataclass has: it speaks of `distill`, `train` has a part.

    Raises:
        ValueError: if there is no such recipe.
    """
    fields = {field.name for field in dataclasses.fields(config_cls)}
    values = check_settings(read_recipe(name), [DistillConfig], f"recipe '{name}'")
    return {key: value for key, value in values.items() if key in fields}


def recipe_names() -> List[str]:
    """Names of the recipes in the package."""
    folder = importlib.resources.files(__package__) / 'recipes'
    return sorted(f.name.removesuffix('.yaml') for f in folder.iterdir() if f.name.endswith('.yaml'))


def read_recipe(name: str) -> Dict[str, Any]:
    """Settings of a recipe in the package, `recipes/<name>.yaml`.

    Raises:
        ValueError: if there is no such recipe.
    """
    if name not in recipe_names():
        raise ValueError(f"Unknown recipe '{name}', choose from {', '.join(recipe_names())}.")
    with importlib.resources.as_file(importlib.resources.files(__package__) / 'recipes' / f'{name}.yaml') as path:
        return read_yaml(path)
