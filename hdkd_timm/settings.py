"""The settings of `train` and `distill`."""
import dataclasses
import math
from typing import Any, Dict, Optional, Tuple

from .augment import AugmentConfig
from .config import KeyValues, flag, setting
from .data import DataConfig
from .log import LOGS
from .losses import KD_KINDS, REDUCTIONS
from .metrics import METRICS
from .models.hdkd import MIN_IMG_SIZE


@dataclasses.dataclass
class TrainConfig(DataConfig, AugmentConfig):
    """Settings of `train`, named as in timm's train.py. The defaults are the recipe 'default'."""
    model: str = setting('hdkd_student', 'network to train, any of timm\'s (also local-dir:FOLDER, hf-hub:NAME)')
    pretrained: bool = setting(False, 'start from pretrained weights')
    model_kwargs: Dict[str, Any] = setting(
        {}, 'other arguments of the network', nargs='*', action=KeyValues, metavar='NAME=VALUE')
    teacher_checkpoint: Optional[str] = setting(
        None, "trained teacher: a model folder, or a checkpoint file of an HDKD network")
    img_size: int = setting(224, 'height and width in pixels that images are resized to')
    drop: Optional[float] = setting(None, 'dropout rate')
    drop_path: Optional[float] = setting(None, 'stochastic depth rate')
    freeze_stages: int = setting(0, 'keep so many of the first stages, and what comes before them, as they are')

    alpha: float = setting(0.5, "weight of the teacher's soft labels in the logit loss")
    tau: float = setting(1., 'temperature of the soft labels')

    epochs: int = setting(100, 'epochs of training')
    batch_size: int = setting(16, 'images a training step and process', flags=('-b',))
    grad_accum_steps: int = setting(1, 'batches an optimiser step')
    opt: str = setting('adamw', "optimiser, one of timm's")
    lr: float = setting(1e-3, 'learning rate')
    weight_decay: float = setting(0.05, 'weight decay, not of one-dimensional parameters')
    decay_tokens: bool = setting(False, 'decay tokens and position embedding too, as published')
    layer_decay: Optional[float] = setting(None, 'learning rate of each layer as a multiple of the next one\'s')
    sched: str = setting('cosine', "learning-rate schedule, one of timm's, or 'none' for constant")
    sched_on_updates: bool = setting(False, 'step the schedule at each optimiser step instead of each epoch')
    warmup_epochs: Optional[int] = setting(None, 'epochs of warm-up (default: 5, at most a fifth of the epochs)')
    warmup_lr: float = setting(1e-5, 'learning rate that the warm-up starts from')
    min_lr: float = setting(1e-5, 'lowest learning rate of the schedule')
    clip_grad: Optional[float] = setting(None, 'clip gradients to this')
    clip_mode: str = setting('norm', 'its meaning', choices=('norm', 'value', 'agc'))
    model_ema: bool = setting(False, 'evaluate and keep the moving average of the weights')
    model_ema_decay: float = setting(0.998, 'decay of the moving average')
    model_ema_warmup: bool = setting(False, 'let its decay grow at first')
    class_weights: Optional[str] = setting(
        None, "weights of the classes in the cross entropy: 'balanced', 'effective' or a JSON file",
        metavar='balanced|effective|FILE')
    sampler: Optional[str] = setting(None, 'draw the images of all classes alike often', choices=('balanced',))
    smote: Optional[str] = setting(
        None, 'oversample by SMOTE to the numbers of images in this JSON file, as published', metavar='FILE')

    select_metric: str = setting('balanced_accuracy', 'metric on val that chooses the epoch', choices=METRICS)
    early_stopping: Optional[int] = setting(None, 'end after so many epochs without a better one on val')
    bootstrap: int = setting(1000, 'resamples for the 95 %% intervals of the test metrics, 0 for none')

    amp: bool = setting(False, 'mixed precision')
    amp_dtype: str = setting('float16', 'its lower precision', choices=('float16', 'bfloat16'))
    channels_last: bool = setting(False, 'use the channels-last memory layout')
    torchcompile: Optional[str] = setting(
        None, 'compile the networks, by this backend', nargs='?', const='inductor', metavar='BACKEND')
    workers: int = setting(2, 'loader processes', flags=('-j',))
    device: Optional[str] = setting(None, 'cpu, cuda, mps, ... (default: the best there is)')

    output: str = setting('runs', 'folder of the runs')
    experiment: Optional[str] = setting(None, 'name of the run (default: date, time and model)')
    recovery_interval: Optional[int] = setting(None, 'save the training state every so many steps, not each epoch only')
    log: Tuple[str, ...] = setting((), 'other logs', choices=LOGS)

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range; names the flag, the value and the range."""
        one, some, share, positive = '1 or more', '0 or more', 'between 0 and 1', 'above 0'
        tests = {
            one: lambda v: v >= 1, some: lambda v: v >= 0, share: lambda v: 0 <= v <= 1, positive: lambda v: v > 0,
            'above 0 and at most 1': lambda v: 0 < v <= 1, '0 or more and below 1': lambda v: 0 <= v < 1,
            f'{MIN_IMG_SIZE} or more': lambda v: v >= MIN_IMG_SIZE, '2 or more': lambda v: v >= 2,
            '0 < MIN <= MAX <= 1': lambda v: 0 < v[0] <= v[1] <= 1, '0 < MIN <= MAX': lambda v: 0 < v[0] <= v[1]}
        ranges = {
            f'{MIN_IMG_SIZE} or more': ('img_size',),
            'above 0 and at most 1': ('train_fraction', 'layer_decay'),
            '0 < MIN <= MAX <= 1': ('scale',),
            '0 < MIN <= MAX': ('ratio',),
            '2 or more': ('folds', 'num_classes'),
            one: ('epochs', 'teacher_epochs', 'batch_size', 'grad_accum_steps', 'early_stopping', 'recount',
                  'recovery_interval'),
            '0 or more and below 1': ('val_fraction', 'drop', 'drop_path', 'smoothing', 'model_ema_decay'),
            share: ('alpha', 'hflip', 'vflip', 'reprob', 'mixup_prob', 'mixup_switch_prob'),
            positive: ('tau', 'lr', 'teacher_lr', 'clip_grad'),
            some: ('feature_weight', 'stage_exponent', 'weight_decay', 'teacher_weight_decay', 'warmup_epochs',
                   'warmup_lr', 'min_lr', 'color_jitter', 'seed', 'workers', 'mixup', 'cutmix', 'mixup_off_epoch',
                   'freeze_stages', 'fold', 'bootstrap'),
        }
        for words, names in ranges.items():
            for name in names:
                value = getattr(self, name, None)
                values = value if isinstance(value, tuple) else (value,)
                if value is not None and not (all(map(math.isfinite, values)) and tests[words](value)):
                    raise ValueError(f"{flag(name)} must be {words}, got {' '.join(map(str, values))}.")
        if self.aug == 'timm' and (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ValueError(f'--batch-size must be even with mixup or cutmix, got {self.batch_size}.')


@dataclasses.dataclass
class DistillConfig(TrainConfig):
    """Settings of `distill`: those of the student, and of the teacher before it."""
    model: str = setting('hdkd_student', 'student, a timm model with a distillation head')
    teacher: str = setting('hdkd_teacher', 'teacher to train, a timm model; or what a checkpoint file of it holds')
    student_alone: bool = setting(False, 'also train the student without distillation, to compare')

    kd_type: str = setting('soft', 'distillation of the logits', choices=KD_KINDS)
    alpha: float = setting(0.5, 'weight of the distillation in the logit loss')
    tau: float = setting(1., 'temperature of the soft distillation')
    reduction: str = setting(
        'mean', 'of the soft distillation: over images and classes as published, or over images', choices=REDUCTIONS)
    feature_weight: float = setting(10., 'weight of the feature loss (lambda)')
    stages: Tuple[int, ...] = setting((1, 2, 3), 'stages whose maps are compared')
    stage_exponent: float = setting(1., 'the i-th of these stages weighs i^EXPONENT (gamma)')

    teacher_kwargs: Dict[str, Any] = setting(
        {}, 'other arguments of the teacher', nargs='*', action=KeyValues, metavar='NAME=VALUE')
    teacher_epochs: Optional[int] = setting(None, "epochs of the teacher (default: the student's)")
    teacher_opt: str = setting('adamw', "the teacher's optimiser")
    teacher_lr: float = setting(1e-3, "the teacher's learning rate")
    teacher_weight_decay: float = setting(0.05, "the teacher's weight decay")
    teacher_sched: str = setting('cosine', "the teacher's learning-rate schedule")
