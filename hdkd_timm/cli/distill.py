"""`hdkd distill`: train a teacher, and distil it into a student."""

import argparse
from typing import Any

from ..training.config import DistillConfig
from .parser import CommandParser, read_settings
from .training import add_run_arguments, print_results, refuse_unused

TRAINS_A_TEACHER = (  # settings of the teacher's training
    'teacher_pretrained',
    'teacher_kwargs',
    'teacher_epochs',
    'teacher_opt',
    'teacher_lr',
    'teacher_weight_decay',
    'teacher_sched',
)


def add_arguments(parser: CommandParser) -> None:
    add_run_arguments(parser, DistillConfig)


def run(args: argparse.Namespace) -> None:
    run_distillation(read_distill_settings(args), args)


def read_distill_settings(args: argparse.Namespace, **defaults: Any) -> DistillConfig:
    """The settings of a distillation, without flags that have no effect; see `read_settings`."""
    config = read_settings(DistillConfig, args, **defaults)
    if config.teacher_checkpoint:
        refuse_unused(args, TRAINS_A_TEACHER, 'is not used with --teacher-checkpoint, which is a trained teacher')
    else:
        refuse_unused(args, ['teacher_label_names'], 'is only used with --teacher-checkpoint')
    return config


def run_distillation(config: DistillConfig, args: argparse.Namespace) -> None:
    """Distil, and print the results."""
    from ..training.distill import distill

    metrics = distill(config, args.resume, args.overwrite)
    print_results(
        metrics, f"Models (student/best, ...), summaries and metrics are in '{metrics['run']}'.", config, args
    )
