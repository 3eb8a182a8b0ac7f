"""`hdkd explain`: heat maps of what predictions rest on."""

import argparse

from ..evaluation.classifier import ModelConfig
from ..utils.files import check_output_folder
from .parser import MODEL, CommandParser, add_image_arguments, read_settings


def add_arguments(parser: CommandParser) -> None:
    parser.usage = 'hdkd explain MODEL PATH [PATH ...] [OPTION ...]'
    parser.add_argument('checkpoint', metavar='MODEL', help=MODEL)
    add_image_arguments(parser)
    parser.add_argument('--out', default='explained', metavar='DIR', help='folder to write (default: %(default)s)')
    parser.add_argument('--label', metavar='CLASS', help='class to explain (default: the most probable one)')
    parser.add_argument('--layer', metavar='NAME', help='module to explain (default: the last stage with feature maps)')
    parser.add_settings(ModelConfig)


def run(args: argparse.Namespace) -> None:
    from ..analysis.explain import explain, write_explanations

    check_output_folder(args.out, '--out')
    config = read_settings(ModelConfig, args, takes_run=True)
    explanations = explain(args.checkpoint, args.paths, config, args.label, args.layer, args.on_bad_image)
    number = write_explanations(explanations, args.out)
    print(f"{number} images explained, see '{args.out}/sheet.png' and the overlays next to it.")
