"""`hdkd report`: an HTML page about a run, or comparing several."""

import argparse

from .parser import CommandParser


def add_arguments(parser: CommandParser) -> None:
    parser.usage = 'hdkd report RUN [RUN ...] [OPTION ...]'
    parser.add_argument('runs', nargs='+', metavar='RUN', help="runs, or networks' folders in them")
    parser.add_argument(
        '--out',
        metavar='DIR',
        help='folder for report.html and its pictures (default: that of the run, if there is one)',
    )
    parser.add_argument(
        '--mistakes',
        type=int,
        default=12,
        metavar='N',
        help='number of misclassified images to show per network (default: %(default)s)',
    )
    parser.add_argument(
        '--device', metavar='NAME', help='device for explaining the misclassified images (default: the best available)'
    )
    parser.add_argument(
        '--check', default=True, action=argparse.BooleanOptionalAction, help='look for duplicates among the images'
    )


def run(args: argparse.Namespace) -> None:
    from ..analysis.report import write_report

    page = write_report(args.runs, args.out, args.mistakes, args.check, args.device)
    print(f"The report is '{page}', its pictures are in '{page.parent}/report'.")
