"""`hdkd distill`: train a teacher, and distil it into a student."""

import argparse
import inspect
import sys
from typing import Any, Type, TypeVar

from ..training.config import HDKD_FLAGS, TRAINS_A_TEACHER, DistillConfig
from .parser import CommandParser, read_settings
from .training import add_run_arguments, print_results, refuse_unused, refuse_unused_of_training

ConfigT = TypeVar('ConfigT', bound=DistillConfig)

OF_A_TEACHER = ('teacher', 'teacher_img_size', 'teacher_label_names')


def add_arguments(parser: CommandParser) -> None:
    add_run_arguments(parser, DistillConfig)


def run(args: argparse.Namespace) -> None:
    if getattr(args, 'method', None) == ['list']:
        print_methods()
        return
    config = read_distill_settings(args)
    refuse_unused_of_training(args, config)
    _refuse_unused_of_hdkd(args, config)
    run_distillation(config, args)


def print_methods() -> None:
    """Print the distillation methods: what they compare, their source, and their settings with the defaults."""
    from ..distillation.methods import METHODS, method_settings

    for name, method in METHODS.items():
        summary = (inspect.getdoc(sys.modules[method.__module__]) or '').splitlines()[0].partition(': ')[2]
        settings = ', '.join(f'{key}={_show(value)}' for key, value in method_settings(method).items())
        print(f'{name}\n  {summary}\n  source    {method.source}\n  settings  {settings}\n')
    print('hdkd distill --method NAME [NAME ...] --method-args NAME.SETTING=VALUE ...')


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return ','.join(map(str, value)) or 'auto'
    return f'{value:.3g}' if isinstance(value, float) else str(value)


def read_distill_settings(
    args: argparse.Namespace, config_cls: Type[ConfigT] = DistillConfig, **defaults: Any
) -> ConfigT:
    """The settings of a distillation, without flags that have no effect; see `read_settings`."""
    config = read_settings(config_cls, args, **defaults)
    if 'hdkd' not in config.method_names:
        refuse_unused(args, HDKD_FLAGS, f"is a setting of the method 'hdkd', not of {' '.join(config.method)}")
    if config.method == ('none',):
        unused = ['ce_weight', 'method_args', 'teachers', 'teacher_logits']
        refuse_unused(args, unused, 'is for distillation methods, not for --method none')
    if len(config.teacher_checkpoint or ()) < 2 and not config.teacher_logits:
        refuse_unused(args, ['teachers'], 'is only used with several of --teacher-checkpoint')
    if config.teacher_logits:
        unused = (*TRAINS_A_TEACHER, *OF_A_TEACHER)
        refuse_unused(args, unused, 'is not used with --teacher-logits, instead of a teacher')
    elif config.teacher_checkpoint:
        refuse_unused(args, TRAINS_A_TEACHER, 'is not used with --teacher-checkpoint, which is a trained teacher')
    else:
        refuse_unused(args, ['teacher_label_names'], 'is only used with --teacher-checkpoint')
    return config


def _refuse_unused_of_hdkd(args: argparse.Namespace, config: DistillConfig) -> None:
    """As `refuse_unused`, for flags of the method 'hdkd' that need another one, and of a teacher where none is."""
    for is_unused, names, reason in (
        (config.kd_type != 'soft', ('tau', 'reduction'), f'is for --kd-type soft, not {config.kd_type}'),
        (config.kd_type == 'none', ('alpha',), 'has no effect with --kd-type none'),
        (not config.feature_weight, ('stages', 'stage_exponent'), 'has no effect with --feature-weight 0'),
        (
            not config.has_teacher,
            (*TRAINS_A_TEACHER, *OF_A_TEACHER, 'teacher_checkpoint'),
            'has no effect where no teacher takes part',
        ),
    ):
        if is_unused:
            refuse_unused(args, names, reason)


def run_distillation(config: DistillConfig, args: argparse.Namespace) -> None:
    """Distil, and print the results."""
    from ..training.distill import distill

    metrics = distill(config, args.resume, args.overwrite)
    print_results(
        metrics, f"Models (student/best, ...), summaries and metrics are in '{metrics['run']}'.", config, args
    )
