"""`hdkd adjust`: a model's logits adjusted for classes that are rare among its training images."""

import argparse
import dataclasses

from ..evaluation.candidates import format_candidates, format_numbers
from ..evaluation.evaluate import EvalConfig
from ..evaluation.logit_adjustment import adjust_model
from ..evaluation.metrics import METRICS
from ..evaluation.run_results import find_run_data
from .parser import MODEL, CommandParser, read_settings

DEFAULTS = dict(split='val')


def add_arguments(parser: CommandParser) -> None:
    parser.usage = 'hdkd adjust MODEL --out-dir DIR [OPTION ...]'
    parser.add_argument('checkpoint', metavar='MODEL', help=MODEL)
    parser.add_argument('--out-dir', required=True, metavar='DIR', help='model folder to write')
    parser.add_argument(
        '--tau',
        type=float,
        metavar='FLOAT',
        help='strength, 0 for none, 1 for test images with equally many of each class (default: chosen by the images)',
    )
    parser.add_argument(
        '--select-metric',
        choices=METRICS,
        help='metric of the images that chooses tau (default: balanced_accuracy)',
    )
    parser.add_settings(EvalConfig, exclude=('calibrated', 'bootstrap', 'multi_label'), **DEFAULTS)


def run(args: argparse.Namespace) -> None:
    config = read_settings(EvalConfig, args, takes_run=True, **DEFAULTS)
    if not (config.data_dir or config.data_csv or config.dataset):
        config = dataclasses.replace(config, **find_run_data(args.checkpoint))
    result = adjust_model(args.checkpoint, args.out_dir, config, args.tau, args.select_metric)
    if 'candidates' in result:
        print(format_candidates(result['candidates'], 'tau', result['tau'], result['select_metric']))
    print(f"tau {format_numbers(result['tau'])}, written to '{args.out_dir}', load it with")
    print(f"timm.create_model('local-dir:{args.out_dir}', pretrained=True)")
