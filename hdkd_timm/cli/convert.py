"""`hdkd convert`: a model folder for timm from a checkpoint of the published code."""

import argparse

from .parser import CommandParser, add_checkpoint_arguments


def add_arguments(parser: CommandParser) -> None:
    parser.usage = 'hdkd convert CHECKPOINT OUT_DIR [OPTION ...]'
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='file with a state dict')
    parser.add_argument('out_dir', metavar='OUT_DIR', help='folder to write: config.json and model.safetensors')
    add_checkpoint_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from ..models.checkpoint import convert_checkpoint, read_model_config

    name, model_args = convert_checkpoint(
        args.checkpoint,
        args.out_dir,
        args.model,
        label_names=args.label_names,
        use_ema=args.use_ema,
        **args.model_kwargs,
    )
    print(f"{name} with {model_args['num_classes']} classes written to '{args.out_dir}'")
    shown = ', '.join(f'{k}={v}' for k, v in model_args.items())
    print(f'({shown}), load it with')
    print(f"timm.create_model('local-dir:{args.out_dir}', pretrained=True)")
    names = read_model_config(args.out_dir).get('label_names')
    print(
        f'Its classes are {", ".join(names)}.'
        if names
        else (
            'It has no class names; --label-names NAME ... sets them, by index. Without names their order is a guess if'
            ' trainers may sort them differently.'
        )
    )
