"""`hdkd average`: the average of the weights of several models, in shares chosen by validation images."""

import argparse

from ..evaluation.average import average_models
from ..evaluation.candidates import format_candidates, format_numbers
from ..evaluation.evaluate import EvalConfig
from ..evaluation.metrics import METRICS, MULTI_LABEL_METRICS
from .parser import LOADING, MODEL, CommandParser, read_settings, refuse_given

DEFAULTS = dict(split='val')


def add_arguments(parser: CommandParser) -> None:
    parser.usage = 'hdkd average MODEL MODEL [MODEL ...] --out-dir DIR [OPTION ...]'
    parser.add_argument('models', nargs='+', metavar='MODEL', help=MODEL)
    parser.add_argument('--out-dir', required=True, metavar='DIR', help='model folder to write')
    parser.add_argument(
        '--shares',
        nargs='+',
        type=float,
        metavar='SHARE',
        help='share of each model, with a sum of 1 (default: chosen by the images; equal if none are given)',
    )
    parser.add_argument(
        '--select-metric',
        choices=tuple(dict.fromkeys(METRICS + MULTI_LABEL_METRICS)),
        help='metric of the images that chooses the shares (default: balanced_accuracy; macro_auroc of several labels)',
    )
    parser.add_settings(EvalConfig, exclude=('calibrated', 'bootstrap'), **DEFAULTS)


def run(args: argparse.Namespace) -> None:
    config = read_settings(EvalConfig, args, takes_run=True, **DEFAULTS)
    if not (config.data_dir or config.data_csv or config.dataset):
        refuse_given(args, EvalConfig, 'without images: add --data-dir or --data-csv', but=LOADING)
    result = average_models(args.models, args.out_dir, args.shares, config, args.select_metric)
    if 'candidates' in result:
        print(format_candidates(result['candidates'], 'shares', result['shares'], result['select_metric']))
    print(f"shares {format_numbers(result['shares'])}, written to '{args.out_dir}', load it with")
    print(f"timm.create_model('local-dir:{args.out_dir}', pretrained=True)")
