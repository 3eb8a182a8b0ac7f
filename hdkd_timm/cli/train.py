"""`hdkd train`: train one network."""

import argparse

from ..training.config import TrainConfig
from .parser import CommandParser, read_settings
from .training import add_run_arguments, print_results, refuse_unused, refuse_unused_of_training

USED_WITH_A_TEACHER = ('alpha', 'tau', 'teacher_label_names')


def add_arguments(parser: CommandParser) -> None:
    add_run_arguments(parser, TrainConfig)


def run(args: argparse.Namespace) -> None:
    from ..training.train import train

    config = read_settings(TrainConfig, args)
    if not config.teacher_checkpoint:
        refuse_unused(args, USED_WITH_A_TEACHER, 'is only used with --teacher-checkpoint')
    refuse_unused_of_training(args, config)
    metrics = train(config, args.resume, args.overwrite)
    print_results(metrics, f"The model is in '{metrics['run']}/best'.", config, args)
