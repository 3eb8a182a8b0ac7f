"""The command `hdkd`, the same as `python -m hdkd_timm`: it parses and calls, the work is done elsewhere."""
import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Optional, Sequence

from .run import run_script
from .version import __version__

# settings of `hdkd demo`: small enough for a minute or two on a laptop
DEMO = dict(img_size=64, epochs=6, lr=1e-3, student_alone=True, channels_last=True, color_jitter=0.2)


def _distill(args: argparse.Namespace) -> None:
    from .config import from_arguments
    from .train import DistillConfig, distill, format_table
    metrics = distill(from_arguments(DistillConfig, args))
    print(format_table(metrics))
    print(f"Models, summary.csv and metrics.json are in '{metrics['run']}'.")


def _demo(args: argparse.Namespace) -> None:
    if args.data_dir is None:
        from .config import from_arguments
        from .phantoms import write_phantoms
        from .train import DistillConfig
        from_arguments(DistillConfig, args)  # checks the settings before anything is drawn
        folder = Path(args.output) / 'phantoms'
        if not folder.exists():
            write_phantoms(folder)
            print(f"Drew phantom images into '{folder}'.")
        args.data_dir = str(folder)
    _distill(args)


def _convert(args: argparse.Namespace) -> None:
    from .checkpoint import convert_checkpoint
    name, model_args = convert_checkpoint(
        args.checkpoint, args.out_dir, args.model, label_names=args.label_names, **args.model_kwargs)
    print(f"{name} with {model_args['num_classes']} classes written to '{args.out_dir}'")
    shown = ', '.join(f'{k}={v}' for k, v in model_args.items())
    print(f'({shown}), load it with')
    print(f"timm.create_model('local-dir:{args.out_dir}', pretrained=True)")


def create_parser() -> argparse.ArgumentParser:
    from timm.utils import ParseKwargs

    from .config import add_arguments
    from .train import DistillConfig

    parser = argparse.ArgumentParser(prog='hdkd', description='HDKD (arXiv 2407.07516) for timm.')
    parser.add_argument('--version', action='version', version=f'hdkd_timm {__version__}')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

    class ModelKwargs(ParseKwargs):
        def __call__(self, parser, namespace, values, option_string=None):
            if not all('=' in value for value in values):
                parser.error(f"argument {option_string}: expected NAME=VALUE, got {' '.join(values)}")
            super().__call__(parser, namespace, values, option_string)

    def add_command(name, func, help):
        command = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + '.')
        command.set_defaults(func=func)
        if func is not None:
            command.add_argument('--debug', action='store_true', help='show the traceback of an error')
        return command

    command = add_command('distill', _distill, 'train a teacher on an image folder and distil it into a student')
    add_arguments(command, DistillConfig)

    command = add_command('demo', _demo, 'run distill on phantom images that it draws itself, or on a folder, at 64 px')
    add_arguments(command, DistillConfig, data_dir=None, **DEMO)

    command = add_command('convert', _convert, "write a model folder for timm from a checkpoint of the published code")
    command.add_argument('checkpoint', help='file with a state dict')
    command.add_argument('out_dir', help='folder to write, config.json and model.safetensors')
    command.add_argument('--model', help='model name, where the keys leave a choice (hdkd_student_s4)')
    command.add_argument(
        '--model-kwargs', nargs='*', default={}, action=ModelKwargs, metavar='NAME=VALUE',
        help='model arguments, where the keys leave a choice (num_heads=8 head_dim=32 img_size=224)')
    command.add_argument('--label-names', nargs='+', metavar='NAME', help='class names by index')

    # for its help: main() hands a script's arguments on before argparse could read them
    command = add_command('run', None, "run a Python script, such as timm's validate.py, with the models registered")
    command.add_argument('script', help='Python file')
    command.add_argument('args', nargs='*', help='its arguments, all that follow')
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run a command. Errors end in one line on stderr and exit code 1, with `--debug` in a traceback."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:2] == ['run', '--']:
        del argv[1]
    if len(argv) > 1 and argv[0] == 'run' and not argv[1].startswith('-'):
        script, *script_args = argv[1:]
        if not os.path.isfile(script):
            print(f"hdkd run: error: script '{script}' does not exist, or is no file.", file=sys.stderr)
            return 1
        run_script(script, script_args)
        return 0

    args = create_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    logging.getLogger('hdkd_timm').setLevel(logging.INFO)
    try:
        args.func(args)
    except KeyboardInterrupt:
        print(f'hdkd {args.command}: interrupted.', file=sys.stderr)
        return 130
    except Exception as e:
        if args.debug:
            raise
        expected = isinstance(e, (ValueError, OSError, FloatingPointError))
        message = ' '.join(str(e).split()) or type(e).__name__
        hint = '' if expected else f' ({type(e).__name__}; --debug shows where)'
        print(f'hdkd {args.command}: error: {message}{hint}', file=sys.stderr)
        return 1
    return 0
