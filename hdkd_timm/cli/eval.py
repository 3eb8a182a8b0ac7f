"""`hdkd eval`: the metrics of a trained model on a split."""

import argparse
import math
from typing import Any, Dict, Optional

from ..evaluation.evaluate import EvalConfig, evaluate_model
from ..evaluation.metrics import METRIC_NAMES, defined_scores
from ..utils.text import printable
from .parser import MODEL, CommandParser, read_settings

CLASS_COLUMNS = ('precision', 'recall', 'f1')


def add_arguments(parser: CommandParser) -> None:
    parser.usage = 'hdkd eval MODEL --data-dir DIR [OPTION ...]'
    parser.add_argument('checkpoint', metavar='MODEL', help=f'{MODEL}, or exported file (.onnx, .xml)')
    parser.add_argument('--out-dir', metavar='DIR', help='folder to write metrics.json and predictions.csv to')
    parser.add_settings(EvalConfig)


def run(args: argparse.Namespace) -> None:
    from ..evaluation.predictions import write_predictions
    from ..evaluation.run_results import read_problem
    from ..utils.files import check_output_folder, new_folder, write_json

    if args.out_dir:
        check_output_folder(args.out_dir, '--out-dir')
    report, images = evaluate_model(args.checkpoint, read_settings(EvalConfig, args, takes_run=True))
    print(format_report(report))
    if args.out_dir:
        with new_folder(args.out_dir) as folder:
            write_json(report, folder / 'metrics.json')
            write_predictions(
                folder / 'predictions.csv',
                images['names'],
                images['probs'],
                report['classes'],
                images['targets'],
                read_problem(report),
                images['thresholds'],
            )
        print(f"metrics.json and predictions.csv are in '{args.out_dir}'.")


def format_report(report: Dict[str, Any]) -> str:
    """The metrics of a split and of each class, with their intervals where there are any; undefined ones are '–'."""
    lines = [f"{report['images']} images of split '{report['split']}'"]
    intervals = report.get('intervals_95', {})
    for key, value in report.items():
        if isinstance(value, float):
            is_defined = math.isfinite(value) and key in intervals
            interval = '   95 % interval {:.4f} to {:.4f}'.format(*intervals[key]) if is_defined else ''
            lines.append(f'{METRIC_NAMES.get(key, key.replace("_", " ")):<24}{_format_score(value)}{interval}')
    is_multi_label = 'problem_type' in report
    keys = ('auroc', 'ap', 'precision', 'recall', 'specificity', 'f1', 'threshold') if is_multi_label else CLASS_COLUMNS
    lines.append(
        f'{"label" if is_multi_label else "class":<24}'
        + ''.join(f'{key:>{max(10, len(key) + 2)}}' for key in (*keys, 'support'))
        + (f'{"recall, 95 % interval":>24}' if intervals else '')
    )
    for name, scores in defined_scores(report).items():
        cells = ''.join(f'{_format_score(scores[key]):>{max(10, len(key) + 2)}}' for key in keys)
        interval = '{:.4f} to {:.4f}'.format(*scores['recall_95']) if scores.get('recall_95') else ''
        lines.append(f'{printable(name):<24}{cells}{scores["support"]:>10}{interval:>24}'.rstrip())
    return '\n'.join(lines)


def _format_score(value: Optional[float]) -> str:
    return '–' if value is None or not math.isfinite(value) else f'{value:.4f}'
