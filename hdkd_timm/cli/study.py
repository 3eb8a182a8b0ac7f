"""`hdkd study`: compare networks and distillation methods over seeds."""

import argparse
from pathlib import Path

from ..study.config import StudyConfig, list_arms
from ..training.config import HDKD_FLAGS, method_names
from .distill import read_distill_settings
from .parser import CommandParser
from .training import refuse_unused

DEFAULTS = dict(experiment='study')


def add_arguments(parser: CommandParser) -> None:
    parser.allow_abbrev = False  # --seed would be taken for --seeds
    parser.usage = f'{parser.prog} --data-dir DIR --methods NAME [NAME ...] [OPTION ...]'
    parser.add_argument('--recipe', metavar='NAME', help='settings of a recipe; --config and flags take precedence')
    parser.add_settings(StudyConfig, ('arms', 'method', 'method_args', 'student_alone', 'seed'), **DEFAULTS)


def run(args: argparse.Namespace) -> int:
    from ..study.page import PAGE, TABLE, write_study
    from ..study.results import read_arms
    from ..study.runs import run_study

    config = read_distill_settings(args, StudyConfig, **DEFAULTS)
    if not any('hdkd' in method_names(values.get('method', ('hdkd',))) for values in list_arms(config).values()):
        refuse_unused(args, HDKD_FLAGS, "is a setting of the method 'hdkd', which no arm has")
    folder = Path(config.output, str(config.experiment))
    config, runs, failed = run_study(config)
    problems = [f'{name} failed: {error}' for name, error in failed.items()]
    print(write_study(config, folder, read_arms(runs), problems))
    print(f"The table is in '{folder / TABLE}', the page is '{folder / PAGE}'.")
    return 1 if failed else 0
