"""`hdkd predict`: the class probabilities of images."""

import argparse
from pathlib import Path

from ..evaluation.classifier import InferenceConfig, load_classifier
from ..evaluation.predict import find_images, predict_files
from ..utils.csv_files import check_table_file
from .parser import MODEL, CommandParser, add_image_arguments, read_settings


def add_arguments(parser: CommandParser) -> None:
    parser.usage = 'hdkd predict MODEL PATH [PATH ...] [OPTION ...]'
    parser.add_argument('checkpoint', metavar='MODEL', help=f'{MODEL}, or exported file (.onnx, .xml)')
    add_image_arguments(parser)
    parser.add_argument(
        '--out',
        default='predictions.csv',
        metavar='FILE',
        help='file to write, CSV or, with suffix .jsonl, JSON lines: path, label, probability of each class'
        ' (default: %(default)s)',
    )
    parser.add_settings(InferenceConfig)


def run(args: argparse.Namespace) -> None:
    from ..evaluation.predictions import write_predictions

    check_table_file(args.out, '--out', ('.jsonl',))
    config = read_settings(InferenceConfig, args, takes_run=True)
    files = find_images(args.paths, args.on_bad_image)  # before a model is loaded, or downloaded
    classifier = load_classifier(args.checkpoint, config)
    files, probs, classes = predict_files(classifier, files, config, args.on_bad_image)
    write_predictions(
        Path(args.out), files, probs, classes, problem=classifier.problem, thresholds=classifier.thresholds
    )
    print(f"{len(files):,} image{'s' * (len(files) != 1)} labelled, see '{args.out}'.")
