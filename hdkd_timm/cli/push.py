"""`hdkd push`: a trained model on the Hugging Face Hub."""

import argparse
from pathlib import Path

from .parser import CommandParser


def add_arguments(parser: CommandParser) -> None:
    parser.usage = 'hdkd push MODEL ORG/NAME [OPTION ...]'
    parser.add_argument(
        'checkpoint',
        metavar='MODEL',
        help=("model folder, a network's folder in a run, or released weights (hdkd_student.brain_mri)"),
    )
    parser.add_argument('repo_id', metavar='ORG/NAME', help='repository on the Hub, created if it does not exist')
    parser.add_argument('--private', action='store_true', help='make the repository private')
    parser.add_argument(
        '--license', metavar='NAME', help="licence of the weights, by the Hub's name for it, such as cc-by-nc-4.0"
    )
    parser.add_argument(
        '--data-card', metavar='FILE', help='Markdown about the data for the model card: source, licence, attribution'
    )
    parser.add_argument('--out', metavar='DIR', help='write the files to this folder instead of uploading them')


def run(args: argparse.Namespace) -> None:
    from ..sharing.hub import push, write_hub_folder

    data = Path(args.data_card).read_text(encoding='utf-8') if args.data_card else None
    if args.out:
        write_hub_folder(args.checkpoint, args.out, args.repo_id, args.license, data)
        print(f"The files for the Hub are in '{args.out}'.")
        return
    url = push(args.checkpoint, args.repo_id, args.private, args.license, data)
    print(f'Pushed to {url}. After `import hdkd_timm`, load it with')
    print(f"timm.create_model('hf-hub:{args.repo_id}', pretrained=True)")
