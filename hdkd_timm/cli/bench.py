"""`hdkd bench`: the speed of the networks next to alternatives."""

import argparse

from ..benchmark.config import BenchConfig
from .parser import CommandParser, read_settings


def add_arguments(parser: CommandParser) -> None:
    parser.usage = 'hdkd bench [OPTION ...]'
    parser.add_settings(BenchConfig)


def run(args: argparse.Namespace) -> None:
    from ..benchmark.benchmark import run_benchmark

    config = read_settings(BenchConfig, args)
    run_benchmark(config)
    print(f"\nThe results are in '{config.out}'.")
