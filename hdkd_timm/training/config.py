"""The settings of `train` and `distill`."""
import dataclasses
import importlib.resources
import math
from typing import Any, Dict, List, Optional, Tuple, Type, TypeVar

from ..data.augment import AugmentConfig
from ..data.cache import CACHES
from ..data.config import DataConfig
from ..distillation.losses import KD_TYPES, REDUCTIONS
from ..evaluation.metrics import METRICS
from ..models.hdkd import MIN_IMG_SIZE
from ..utils.config import KeyValues, check_settings, check_values, flag, read_yaml, setting
from .logger import LOGS

ConfigT = TypeVar('ConfigT')


@dataclasses.dataclass
class TrainConfig(DataConfig, AugmentConfig):
    """Settings of `train`, named as in timm's train.py. The defaults are the recipe 'default'."""
    model: str = setting('hdkd_student', 'network to train, any of timm\'s (also local-dir:FOLDER, hf-hub:NAME)')
    pretrained: bool = setting(False, 'start from pretrained weights')
    model_kwargs: Dict[str, Any] = setting(
        {}, 'other arguments of the network', nargs='*', action=KeyValues, metavar='NAME=VALUE')
    teacher_checkpoint: Optional[str] = setting(
        None, "trained teacher: a model folder, or a checkpoint file of an HDKD network")
    teacher_label_names: Optional[Tuple[str, ...]] = setting(
        None, 'class names of --teacher-checkpoint by index, where it tells none or has another order than the data',
        metavar='NAME')
    img_size: int = setting(224, 'height and width in pixels that images are resized to', at_least=MIN_IMG_SIZE)
    drop: Optional[float] = setting(None, 'dropout rate', at_least=0, below=1)
    drop_path: Optional[float] = setting(None, 'stochastic depth rate', at_least=0, below=1)
    freeze_stages: int = setting(
        0, 'keep so many of the first stages, and what comes before them, as they are', at_least=0)

    alpha: float = setting(0.5, "weight of the teacher's soft labels in the logit loss", at_least=0, at_most=1)
    tau: float = setting(1., 'temperature of the soft labels', above=0)

    epochs: int = setting(100, 'epochs of training', at_least=1)
    batch_size: int = setting(16, 'images a training step and process', flags=('-b',), at_least=1)
    grad_accum_steps: int = setting(1, 'batches an optimiser step', at_least=1)
    opt: str = setting('adamw', "optimiser, one of timm's")
    lr: float = setting(1e-3, 'learning rate', above=0)
    weight_decay: float = setting(0.05, 'weight decay, not of one-dimensional parameters', at_least=0)
    decay_tokens: bool = setting(False, 'decay tokens and position embedding too, as published')
    layer_decay: Optional[float] = setting(
        None, 'learning rate of each layer as a multiple of the next one\'s', above=0, at_most=1)
    sched: str = setting('cosine', "learning-rate schedule, one of timm's, or 'none' for constant")
    sched_on_updates: bool = setting(False, 'step the schedule at each optimiser step instead of each epoch')
    decay_epochs: Optional[int] = setting(
        None, "epochs between two steps of the schedule 'step' (default: a third)", at_least=1)
    decay_milestones: Tuple[int, ...] = setting(
        (), "epochs of the steps of the schedule 'multistep' (default: at one and two thirds)", at_least=1)
    decay_rate: float = setting(
        0.1, "factor of each step of the schedules 'step', 'multistep' and 'plateau'", above=0, at_most=1)
    patience_epochs: int = setting(10, "epochs without a better one that the schedule 'plateau' waits for", at_least=0)
    warmup_epochs: Optional[int] = setting(
        None, 'epochs of warm-up (default: 5, at most a fifth of the epochs)', at_least=0)
    warmup_lr: float = setting(1e-5, 'learning rate that the warm-up starts from', at_least=0)
    min_lr: float = setting(1e-5, 'lowest learning rate of the schedule', at_least=0)
    clip_grad: Optional[float] = setting(None, 'clip gradients to this', above=0)
    clip_mode: str = setting('norm', 'its meaning', choices=('norm', 'value', 'agc'))
    model_ema: bool = setting(False, 'evaluate and keep the moving average of the weights')
    model_ema_decay: float = setting(0.998, 'decay of the moving average, at most', at_least=0, below=1)
    model_ema_warmup: bool = setting(
        True, 'let its decay grow with the updates, so that it forgets the first weights')
    class_weights: Optional[str] = setting(
        None, "weights of the classes in the cross entropy: 'balanced', 'effective' or a JSON file",
        metavar='balanced|effective|FILE')
    sampler: Optional[str] = setting(None, 'draw the images of all classes alike often', choices=('balanced',))
    smote: Optional[str] = setting(
        None, 'oversample by SMOTE to the numbers of images in this JSON file, as published', metavar='FILE')

    select_metric: str = setting('balanced_accuracy', 'metric on val that chooses the epoch', choices=METRICS)
    early_stopping: Optional[int] = setting(None, 'end after so many epochs without a better one on val', at_least=1)
    bootstrap: int = setting(1000, 'resamples for the 95 %% intervals of the test metrics, 0 for none', at_least=0)

    amp: bool = setting(False, 'mixed precision')
    amp_dtype: str = setting('float16', 'its lower precision', choices=('float16', 'bfloat16'))
    channels_last: bool = setting(False, 'use the channels-last memory layout')
    torchcompile: Optional[str] = setting(
        None, 'compile the networks, by this backend', nargs='?', const='inductor', metavar='BACKEND')
    cache: Optional[str] = setting(
        None, 'keep decoded images (resized, where that comes first) in memory or in a file', choices=CACHES)
    cache_dir: Optional[str] = setting(None, "folder of the files of --cache disk (default: .cache in --output)")
    workers: int = setting(2, 'loader processes', flags=('-j',), at_least=0)
    device: Optional[str] = setting(None, 'cpu, cuda, mps, ... (default: the best there is)')

    output: str = setting('runs', 'folder of the runs')
    experiment: Optional[str] = setting(None, 'name of the run (default: date, time and model)')
    recovery_interval: Optional[int] = setting(
        None, 'save the training state every so many steps, not each epoch only', at_least=1)
    log: Tuple[str, ...] = setting((), 'other logs', choices=LOGS)

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range; names the flag, the value and the range."""
        check_values(self)
        for name, most in (('scale', 1), ('ratio', math.inf)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most or math.isinf(high):
                words = '0 < MIN <= MAX' + (' <= 1' if most == 1 else '')
                raise ValueError(f'{flag(name)} must be {words}, got {low} {high}.')
        if self.aa and self.aug != 'timm':
            raise ValueError(f"--aa '{self.aa}' is a part of --aug timm, not of --aug {self.aug}.")
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
    model: str = setting('hdkd_student', 'student, a timm model with a distillation head')
    teacher: str = setting('hdkd_teacher', 'teacher to train, a timm model; or what a checkpoint file of it holds')
    student_alone: bool = setting(False, 'also train the student without distillation, to compare')

    kd_type: str = setting('soft', 'distillation of the logits', choices=KD_TYPES)
    alpha: float = setting(0.5, 'weight of the distillation in the logit loss', at_least=0, at_most=1)
    tau: float = setting(1., 'temperature of the soft distillation', above=0)
    reduction: str = setting(
        'mean', 'of the soft distillation: over images and classes as published, or over images', choices=REDUCTIONS)
    feature_weight: float = setting(10., 'weight of the feature loss (lambda)', at_least=0)
    stages: Tuple[int, ...] = setting((1, 2, 3), 'stages whose maps are compared')
    stage_exponent: float = setting(1., 'the i-th of these stages weighs i^EXPONENT (gamma)', at_least=0)

    teacher_pretrained: bool = setting(False, 'start the teacher from pretrained weights')
    teacher_kwargs: Dict[str, Any] = setting(
        {}, 'other arguments of the teacher', nargs='*', action=KeyValues, metavar='NAME=VALUE')
    teacher_epochs: Optional[int] = setting(None, "epochs of the teacher (default: the student's)", at_least=1)
    teacher_opt: str = setting('adamw', "the teacher's optimiser")
    teacher_lr: float = setting(1e-3, "the teacher's learning rate", above=0)
    teacher_weight_decay: float = setting(0.05, "the teacher's weight decay", at_least=0)
    teacher_sched: str = setting('cosine', "the teacher's learning-rate schedule")


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
