"""`hdkd calibrate`: the temperature of a trained model, from validation images."""

import argparse
import dataclasses
from typing import Any, Dict

from ..evaluation.calibrate import calibrate_model
from ..evaluation.evaluate import EvalConfig
from ..evaluation.run_results import find_run_data
from .parser import CommandParser, read_settings

DEFAULTS = dict(split='val')


def add_arguments(parser: CommandParser) -> None:
    parser.usage = 'hdkd calibrate MODEL [OPTION ...]'
    parser.add_argument(
        'checkpoint', metavar='MODEL', help="model folder, a network's folder in a run, or a run of one network"
    )
    parser.add_settings(EvalConfig, exclude=('calibrated', 'bootstrap'), **DEFAULTS)


def run(args: argparse.Namespace) -> None:
    config = read_settings(EvalConfig, args, takes_run=True, **DEFAULTS)
    if not (config.data_dir or config.data_csv or config.dataset):
        config = dataclasses.replace(config, **find_run_data(args.checkpoint))
    result = calibrate_model(args.checkpoint, config)
    temperature = result.pop('temperature')
    low, high = result[config.split]['temperature_95']
    print(
        f'temperature {temperature:.4f} (95 % interval {low:.2f} to {high:.2f}), saved with the model for --calibrated'
    )
    print(format_effect(result))


def format_effect(result: Dict[str, Any]) -> str:
    """Log loss and calibration error of each split before and after the scaling."""
    lines = [f'{"split":<8}{"images":>8}{"log loss":>20}{"calibration error":>22}']
    for split, report in result.items():
        log_loss, ece = ('{before:.4f} -> {after:.4f}'.format(**report[key]) for key in ('log_loss', 'ece'))
        lines.append(f'{split:<8}{report["images"]:>8,}{log_loss:>20}{ece:>22}')
    return '\n'.join(lines)
