"""Settings that are out of range are refused by their flag, value and range."""

import dataclasses
import math
import re

import pytest

from hdkd_timm.evaluation.classifier import InferenceConfig
from hdkd_timm.evaluation.evaluate import EvalConfig
from hdkd_timm.evaluation.metrics import METRICS, MULTI_LABEL_METRICS
from hdkd_timm.training.config import DistillConfig, TrainConfig

ONE, SOME, SHARE, POSITIVE = '1 or more', '0 or more', '0 or more and at most 1', 'above 0'
FRACTION, PART = 'above 0 and at most 1', '0 or more and below 1'
# name, range, values just within, values just out of it
RANGES = [
    ('img_size', '28 or more', (28, 1000), (27, 0, -28)),
    ('teacher_img_size', '28 or more', (28, None), (27, 0)),
    ('ce_weight', SOME, (0.0, 10.0, None), (-0.1,)),
    ('train_fraction', FRACTION, (1e-6, 1.0), (0.0, 1.01, -0.5)),
    ('crop_pct', FRACTION, (0.01, 1.0, None), (0.0, 1.1)),
    ('layer_decay', FRACTION, (0.01, 1.0, None), (0.0, 1.1)),
    ('decay_rate', FRACTION, (0.01, 1.0), (0.0, 1.1)),
    ('decay_milestones', ONE, ((), (1, 2)), ((0,),)),
    ('scale', '0 < MIN <= MAX <= 1', ((0.5, 0.5), (0.01, 1.0)), ((0.0, 1.0), (0.6, 0.5), (0.5, 1.1))),
    ('ratio', '0 < MIN <= MAX', ((2.0, 3.0), (1.0, 1.0)), ((0.0, 1.0), (1.5, 1.0))),
    ('folds', '2 or more', (2, None), (1, 0)),
    ('num_classes', '2 or more', (2, None), (1, -1)),
    *((name, ONE, (1,), (0, -1)) for name in ('epochs', 'batch_size', 'grad_accum_steps', 'recount')),
    *(
        (name, ONE, (1, None), (0, -1))
        for name in ('teacher_epochs', 'early_stopping', 'recovery_interval', 'decay_epochs', 'load_size')
    ),
    *((name, PART, (0.0, 0.99), (1.0, -0.1)) for name in ('val_fraction', 'smoothing', 'model_ema_decay')),
    *((name, PART, (0.0, 0.99, None), (1.0, -0.1)) for name in ('drop', 'drop_path')),
    *(
        (name, SHARE, (0.0, 1.0), (-0.1, 1.1))
        for name in ('alpha', 'hflip', 'vflip', 'reprob', 'mixup_prob', 'mixup_switch_prob')
    ),
    *((name, POSITIVE, (1e-9, 10.0), (0.0, -1.0)) for name in ('tau', 'lr', 'teacher_lr')),
    ('clip_grad', POSITIVE, (1e-9, None), (0.0, -1.0)),
    *(
        (name, SOME, (0.0, 10.0), (-0.1,))
        for name in (
            'feature_weight',
            'stage_exponent',
            'weight_decay',
            'teacher_weight_decay',
            'warmup_lr',
            'min_lr',
            'color_jitter',
            'mixup',
            'cutmix',
        )
    ),
    *(
        (name, SOME, (0, 10), (-1,))
        for name in (
            'warmup_epochs',
            'seed',
            'split_seed',
            'workers',
            'mixup_off_epoch',
            'freeze_stages',
            'fold',
            'bootstrap',
            'patience_epochs',
        )
    ),
]


@pytest.mark.parametrize(('name', 'words', 'good', 'bad'), RANGES, ids=[name for name, *_ in RANGES])
def test_range(name, words, good, bad):
    for value in good:
        config = DistillConfig(**{'sched': 'none', 'teacher_sched': 'none', name: value})  # which compares rates
        assert getattr(config, name) == value
    if isinstance(good[0], float):
        bad = (*bad, math.nan, math.inf)
    elif name in ('scale', 'ratio'):
        bad = (*bad, (math.nan, 1.0), (0.5, math.inf))
    for value in bad:
        shown = ' '.join(map(str, value)) if isinstance(value, tuple) else value
        message = re.escape(f'--{name.replace("_", "-")} must be {words}, got {shown}.')
        with pytest.raises(ValueError, match=f'^{message}$'):
            DistillConfig(**{name: value})


def test_every_number_has_a_range():
    numbers = {
        field.name
        for field in dataclasses.fields(DistillConfig)
        if any(kind in str(field.type) for kind in ('int', 'float')) and field.name not in ('in_chans', 'stages')
    }
    assert numbers == {name for name, *_ in RANGES}  # those two are checked where they are used


DTYPES = 'one of float16, bfloat16'


@pytest.mark.parametrize(
    ('config_cls', 'name', 'value', 'words'),
    [
        (TrainConfig, 'aug', 'papre', 'one of timm, paper, none'),
        (TrainConfig, 'remode', 'noise', 'one of const, rand, pixel'),
        (TrainConfig, 'on_bad_image', 'ignore', 'one of error, skip'),
        (TrainConfig, 'clip_mode', 'max', 'one of norm, value, agc'),
        (TrainConfig, 'sampler', 'even', 'one of balanced'),
        (TrainConfig, 'select_metric', 'auroc', f'one of {", ".join(dict.fromkeys(METRICS + MULTI_LABEL_METRICS))}'),
        (TrainConfig, 'amp_dtype', 'float8', DTYPES),
        (TrainConfig, 'log', ('tensorboard', 'os'), 'one of tensorboard, wandb'),
        (TrainConfig, 'cache', 'tape', 'one of ram, disk'),
        (DistillConfig, 'kd_type', 'warm', 'one of soft, hard, none'),
        (DistillConfig, 'reduction', 'sum', 'one of mean, batchmean'),
        (EvalConfig, 'split', 'all', 'one of train, val, test'),
        (EvalConfig, 'bootstrap', -1, SOME),
        (EvalConfig, 'folds', 1, '2 or more'),
        (EvalConfig, 'amp_dtype', 'float8', DTYPES),
        (InferenceConfig, 'batch_size', 0, ONE),
        (InferenceConfig, 'img_size', 0, ONE),
        (InferenceConfig, 'workers', -1, SOME),
    ],
)
def test_values_are_checked_without_the_command_line(config_cls, name, value, words):
    shown = value[-1] if isinstance(value, tuple) else value
    message = re.escape(f'--{name.replace("_", "-")} must be {words}, got {shown!r}.')
    with pytest.raises(ValueError, match=f'^{message}$'):
        config_cls(**{name: value})
    with pytest.raises(ValueError, match=f'^{message}$'):
        dataclasses.replace(config_cls(), **{name: value})


@pytest.mark.parametrize('cache', ['ram', None])
def test_folder_of_a_cache_is_for_files(cache):
    with pytest.raises(ValueError, match="--cache-dir 'x' is for --cache disk alone"):
        TrainConfig(cache=cache, cache_dir='x')


@pytest.mark.parametrize('aug', ['timm', 'none'])
def test_augmentation_on_the_device_is_the_published_one(aug):
    with pytest.raises(ValueError, match=f'--aug-device is for --aug paper, not for --aug {aug}'):
        TrainConfig(aug_device=True, aug=aug)


@pytest.mark.parametrize('aug', ['paper', 'none'])
def test_automatic_augmentation_is_a_part_of_timm_s(aug):
    with pytest.raises(ValueError, match=f"--aa 'rand-m6' is a part of --aug timm, not of --aug {aug}"):
        TrainConfig(aa='rand-m6', aug=aug)
    assert TrainConfig(aa='rand-m6').aug == 'timm'


def test_batches_of_mixup_are_even():
    for name in ('mixup', 'cutmix'):
        with pytest.raises(ValueError, match='--batch-size must be even with mixup or cutmix, got 5'):
            TrainConfig(batch_size=5, **{name: 0.2})
    assert TrainConfig(batch_size=5).batch_size == 5


def test_settings_of_train_are_those_of_distill():
    train, distill = vars(TrainConfig()), vars(DistillConfig())
    assert {name: distill[name] for name in train} == train
    with pytest.raises(ValueError, match='--lr must be above 0, got 0'):
        TrainConfig(lr=0)
    with pytest.raises(TypeError, match='kd_type'):
        TrainConfig(kd_type='soft')


def test_recipes():
    assert DistillConfig.from_recipe('default') == DistillConfig()
    config = DistillConfig.from_recipe('paper', epochs=30)
    assert (config.lr, config.teacher_opt, config.aug, config.epochs) == (5e-5, 'adam', 'paper', 30)
    config = TrainConfig.from_recipe('paper')  # the part that it has
    assert (type(config), config.lr, config.decay_tokens) == (TrainConfig, 5e-5, True)
    for config_cls in (TrainConfig, DistillConfig):
        with pytest.raises(ValueError, match="Unknown recipe 'papre', choose from default, paper, paper-teacher"):
            config_cls.from_recipe('papre')
        with pytest.raises(ValueError, match='--tau must be above 0, got 0'):
            config_cls.from_recipe('paper', tau=0)
    with pytest.raises(TypeError, match='teacher_lr'):
        TrainConfig.from_recipe('paper', teacher_lr=1e-3)


@pytest.mark.parametrize(
    ('config_cls', 'settings', 'match'),
    [
        (
            TrainConfig,
            dict(lr=5e-6),
            '--warmup-lr 1e-05 is above --lr 5e-06, which the learning rate would exceed',
        ),
        (TrainConfig, dict(lr=5e-6, epochs=4), r'--min-lr 1e-05 is above --lr 5e-06, .* --min-lr too, such as 5e-08'),
        (TrainConfig, dict(lr=5e-6, sched='step'), '--warmup-lr 1e-05 is above --lr'),
        (
            TrainConfig,
            dict(epochs=5, warmup_epochs=10),
            '--warmup-epochs 10 of 5 epochs never reach --lr 0.001',
        ),
        (DistillConfig, dict(teacher_lr=1e-6, teacher_epochs=4), '--min-lr 1e-05 is above --teacher-lr 1e-06'),
        (
            DistillConfig,
            dict(teacher_epochs=3, warmup_epochs=3),
            '--warmup-epochs 3 of 3 epochs never reach --teacher',
        ),
    ],
)
def test_schedules_that_exceed_or_never_reach_the_learning_rate(config_cls, settings, match):
    with pytest.raises(ValueError, match=match):
        config_cls(**settings)


def test_learning_rates_that_no_schedule_changes():
    TrainConfig(lr=1e-6, sched='none')
    TrainConfig(lr=1e-6, sched='step', epochs=4)  # no warm-up, and timm's has no smallest one
    TrainConfig(lr=1e-5)
    DistillConfig(teacher_lr=1e-6, teacher_sched='none')
    DistillConfig(teacher_lr=1e-6, teacher_checkpoint=('teacher',))
