"""`hdkd export`: a trained model as an ONNX, OpenVINO or torch.export file."""

import argparse
from typing import Any, Dict

from ..utils.image_size import parse_image_size
from .parser import MODEL, CommandParser, add_checkpoint_arguments


def add_arguments(parser: CommandParser) -> None:
    parser.usage = 'hdkd export MODEL --out FILE [OPTION ...]'
    parser.add_argument('checkpoint', metavar='MODEL', help=MODEL)
    parser.add_argument(
        '--out', required=True, metavar='FILE', help='file to write, .onnx, .xml (openvino) or .pt2 (torch-export)'
    )
    parser.add_argument(
        '--format',
        default='onnx',
        choices=('onnx', 'openvino', 'torch-export'),
        help='file format (default: %(default)s)',
    )
    parser.add_argument('--opset', type=int, metavar='N', help="ONNX opset version (default: PyTorch's choice)")
    parser.add_argument(
        '--images',
        nargs='+',
        default=(),
        metavar='PATH',
        help='image files or folders on which to compare the file with the model',
    )
    parser.add_argument('--int8', action='store_true', help='quantise the ONNX or OpenVINO file to int8')
    parser.add_argument(
        '--calibration',
        nargs='+',
        default=(),
        metavar='PATH',
        help='images for the ranges of --int8, some of the training images: files, folders, or tables such as the'
        ' images.csv of a run',
    )
    parser.add_argument(
        '--calibration-images',
        type=int,
        default=200,
        metavar='N',
        help='maximum number of calibration images, evenly spaced (default: %(default)s)',
    )
    parser.add_argument(
        '--img-size',
        type=parse_image_size,
        metavar='N',
        help="height and width in pixels, one number for both, or two (default: the model's)",
    )
    add_checkpoint_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from ..sharing.export import export_model, list_files

    report = export_model(
        args.checkpoint,
        args.out,
        args.format,
        args.opset,
        args.images,
        args.int8,
        args.calibration,
        args.calibration_images,
        args.img_size,
        args.model,
        args.model_kwargs,
        args.use_ema,
        args.label_names,
    )
    compared = f'{report["images"]} images and random ones' if report['images'] else 'random images'
    print(
        f"Largest difference from PyTorch's logits on {compared}: {report['difference']:.2g} (largest logit"
        f' {report["largest_logit"]:.3g})'
    )
    if args.int8:
        print(format_quantisation(report))
    written = ' and '.join(f"'{path}'" for path in list_files(args.out))
    print(f'{report["bytes"] / 1e6:.1f} MB written to {written}.')


def format_quantisation(report: Dict[str, Any]) -> str:
    """How int8 compares with float32 on the calibration images."""
    from ..evaluation.metrics import format_metric

    lines = [f'int8 and float32 on the {report["calibration_images"]} calibration images:']
    if 'accuracy_int8' in report:
        lines.append(f'accuracy float32 {report["accuracy_float32"]:.4f}, int8 {report["accuracy_int8"]:.4f}')
    agreement = format_metric('accuracy', report['agreement']).replace(' ', '')
    lines.append(
        f'same label for {agreement}, largest difference of probabilities {report["prob_difference"]:.4f};'
        f' {report["bytes_float32"] / 1e6:.1f} MB in float32'
    )
    return '\n'.join(lines)
