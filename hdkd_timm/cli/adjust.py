"""`hdkd adjust`: a model's logits adjusted for classes that are rare among its training images."""

import argparse
import dataclasses
from pathlib import Path

from ..data.config import DataConfig
from ..evaluation.candidates import format_candidates, format_numbers
from ..evaluation.evaluate import EvalConfig
from ..evaluation.logit_adjustment import adjust_model
from ..evaluation.metrics import METRICS
from ..evaluation.run_results import find_run_data
from .parser import LOADING, MODEL, CommandParser, read_settings, refuse_given

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
    parser.add_settings(EvalConfig, exclude=('calibrated', 'bootstrap', 'multi_label', 'tta'), **DEFAULTS)


def run(args: argparse.Namespace) -> None:
    config = read_settings(EvalConfig, args, takes_run=True, **DEFAULTS)
    if args.tau is not None:
        data = [field.name for field in dataclasses.fields(DataConfig)]
        refuse_given(args, EvalConfig, 'with --tau: no image is evaluated', but=[*LOADING, *data])
    if not (config.data_dir or config.data_csv or config.dataset):
        if not Path(args.checkpoint).exists():
            raise FileNotFoundError(
                f"'{args.checkpoint}' is not a folder or file of a run, whose images would be taken: give the images"
                ' that it was trained on, in splits, with --data-dir or --data-csv.'
            )
        config = dataclasses.replace(config, **find_run_data(args.checkpoint))
    result = adjust_model(args.checkpoint, args.out_dir, config, args.tau, args.select_metric)
    if 'candidates' in result:
        print(format_candidates(result['candidates'], 'tau', result['tau'], result['select_metric']))
    print(f"tau {format_numbers(result['tau'])}, written to '{args.out_dir}', load it with")
    print(f"timm.create_model('local-dir:{args.out_dir}', pretrained=True)")
