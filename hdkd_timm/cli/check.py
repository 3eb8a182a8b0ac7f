"""`hdkd check`: what a data set contains, and whether its splits leak into each other."""

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any, Dict

from ..analysis import data_check
from ..evaluation.run_results import count_per_split
from ..utils.config import flag
from ..utils.csv_files import check_table_file
from ..utils.files import check_output_folder, with_free_name
from .parser import CommandParser, read_settings


def add_arguments(parser: CommandParser) -> None:
    parser.usage = 'hdkd check DATA [OPTION ...]'
    parser.add_argument('data', nargs='?', metavar='DATA', help='data folder or CSV file (--data-dir, --data-csv)')
    parser.add_argument('--out', metavar='DIR', help='folder to write the results to (default: runs/DATE-TIME-check)')
    parser.add_argument(
        '--write-split',
        metavar='FILE',
        help=('CSV file to write: splits of the same sizes, without a duplicate or a group in two of them'),
    )
    parser.add_argument('--strict', action='store_true', help='exit with code 1 if two splits share images or groups')
    parser.add_settings(data_check.CheckConfig)


def run(args: argparse.Namespace) -> int:
    _check_outputs(args)
    config = read_settings(data_check.CheckConfig, args, takes_run=True)
    if args.data:
        config = _with_data(config, args.data)
    checked = data_check.check_data(config, only_files=bool(args.write_split))
    summary = data_check.summarize(checked)
    print(data_check.format_check(summary))

    def write(folder: Path) -> Path:
        data_check.write_check(checked, folder)
        return folder

    out = write(Path(args.out)) if args.out else with_free_name(time.strftime('runs/%Y%m%d-%H%M%S-check'), write)
    print(
        f"The results are in '{out}': summary.json, images.csv, duplicates.csv"
        + (', pairs.png.' if (out / 'pairs.png').exists() else '.')
    )
    if args.write_split:
        from ..analysis.clean_split import write_split

        counts = write_split(checked, args.write_split, config.seed)
        sizes = count_per_split(Path(args.write_split))
        print(format_split(counts, sizes, summary, args.write_split))
    return int(args.strict and data_check.has_leak(summary))


def _with_data(config: data_check.CheckConfig, data: str) -> data_check.CheckConfig:
    """The settings with DATA as their data folder or CSV file."""
    given = [name for name in ('data_dir', 'data_csv', 'dataset') if getattr(config, name)]
    if data.lower().endswith('.csv') and 'data_csv' not in given:
        return dataclasses.replace(config, data_csv=data)
    if given:
        raise ValueError(f"'{data}' and {flag(given[0])} both name the images: give one.")
    return dataclasses.replace(config, data_dir=data)


def _check_outputs(args: argparse.Namespace) -> None:
    if args.out:
        check_output_folder(args.out, '--out')
    if args.write_split:
        check_table_file(args.write_split, '--write-split')


def format_split(counts: Dict[str, Dict[str, int]], sizes: Dict[str, int], summary: Dict[str, Any], path: str) -> str:
    """The sizes of the written splits, and the classes whose size changed.

    Args:
        counts: Split -> class -> number of images written.
        sizes: Split -> number of all images written.
        summary: That of the check, with the images as they were.
        path: CSV file that was written.
    """
    shown = ', '.join(f'{split} {number:,}' for split, number in sizes.items())
    lines = [f"'{path}' is a split without leaks ({shown}), for --data-csv."]
    changed = [
        f'{split} {label}: {summary["images"][split][label]} -> {number}'
        for split, of_class in counts.items()
        for label, number in of_class.items()
        if number != summary['images'][split][label]
    ]
    if changed:
        lines.append(f'Sizes that changed: {", ".join(changed)}.')
    return '\n'.join(lines)
