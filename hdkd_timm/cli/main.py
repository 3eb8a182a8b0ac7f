"""The command `hdkd`, also `python -m hdkd_timm`: finds the command, runs it, and turns errors into one line."""

import argparse
import contextlib
import logging
import os
import sys
import warnings
from importlib import import_module
from types import ModuleType
from typing import Any, Optional, Sequence, Type

from ..utils.text import PrintableFormatter, PrintableStream, printable
from ..version import __version__
from .parser import CommandParser

_logger = logging.getLogger(__name__)

COMMANDS = {  # heading -> command -> its help; a command is the module of its name
    'train': {
        'train': 'train or fine-tune a timm model on labelled images',
        'distill': 'train a teacher on labelled images and distil it into a student',
        'cache-logits': "store trained teachers' logits for the training images, so that no teacher runs in distill",
        'study': 'compare networks and distillation methods over seeds, with one teacher',
        'demo': 'try distill at 64 px, on synthetic phantom images or on your own',
    },
    'use a trained model': {
        'eval': 'evaluate a model on a split',
        'predict': 'classify images',
        'average': 'average the weights of several models, in shares that validation images choose',
        'adjust': 'adjust the logits of a model for classes that are rare in training',
        'calibrate': 'fit the temperature of a model on validation images',
        'explain': 'show which parts of an image a prediction rests on',
        'report': 'write an HTML page about a run, or comparing several',
    },
    'check the data': {
        'check': 'inspect a data set: images, classes, duplicates, leaks',
    },
    'convert and share': {
        'convert': 'convert a checkpoint file, such as one of the published code, to a model folder for timm',
        'export': 'export a model to ONNX, OpenVINO or torch.export, and compare it with PyTorch',
        'push': 'upload a model to the Hugging Face Hub, with a model card made from its run',
    },
    'benchmark and scripts': {
        'bench': 'time training steps, inference and epochs, next to alternatives',
        'run': "run a Python script, such as timm's validate.py, with the models registered",
    },
}
HELP = {name: text for commands in COMMANDS.values() for name, text in commands.items()}


def create_main_parser() -> argparse.ArgumentParser:
    """The parser of all before a command's own arguments."""
    lines = []
    for heading, commands in COMMANDS.items():
        lines += [f'{heading}:', *(f'  {name:<14}{text}' for name, text in commands.items()), '']
    parser = argparse.ArgumentParser(
        prog='hdkd',
        usage='hdkd COMMAND ...',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description='HDKD (arXiv 2407.07516) for timm: train a CNN teacher and distil it into a small hybrid student.',
        epilog='\n'.join([*lines, "'hdkd COMMAND --help' shows the options of a command."]),
    )
    parser.add_argument('--version', action='version', version=f'hdkd_timm {__version__}')
    parser.add_argument('command', choices=list(HELP), metavar='COMMAND', help=argparse.SUPPRESS)
    return parser


def load_command(name: str) -> ModuleType:
    """The module of a command, with `add_arguments` and `run`."""
    return import_module(f'.{name.replace("-", "_")}', __package__)


def create_parser(name: str) -> CommandParser:
    """The parser of a command's arguments."""
    parser = CommandParser(name, HELP[name])
    if name != 'run':
        parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
    load_command(name).add_arguments(parser)
    return parser


def is_primary() -> bool:
    """Is this the process of a distributed run that prints?"""
    return int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', 0))) == 0


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run a command. Errors end in one line on stderr and exit code 1; `--debug` shows their traceback."""
    argv = list(sys.argv[1:] if argv is None else argv)
    name = create_main_parser().parse_args(argv[:1] or ['--help']).command
    parser = create_parser(name)
    if name == 'run':  # the script's arguments, output and errors are its own
        return load_command(name).run(parser, argv[1:])
    args, unknown = parser.parse_known_args(argv[1:])
    if unknown:
        parser.error(f'unrecognized arguments: {" ".join(unknown)}{_find_flags(name, unknown)}')
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter('%(message)s'))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger('hdkd_timm').setLevel(logging.INFO if is_primary() else logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(PrintableStream(sys.stdout)):
        warnings.filterwarnings('ignore', 'Image size .* exceeds limit')  # Pillow's, which our error repeats
        warnings.showwarning = _show_warning
        return _run_command(name, args)


def _show_warning(message: Any, category: Type[Warning], *place: Any, **more: Any) -> None:
    """As `warnings.showwarning`, in one line, without the place in the code, which tells a user of commands nothing."""
    text = ' '.join(str(message).split())
    _logger.warning(text if category is UserWarning else f'{text} ({category.__name__})')


def _find_flags(name: str, arguments: Sequence[str]) -> str:
    """Which commands for the same work have the flags that a command lacks, in words."""
    related = next(commands for commands in COMMANDS.values() if name in commands)
    parsers = {other: create_parser(other) for other in related if other not in (name, 'run')}
    words = []
    for flag in dict.fromkeys(argument.split('=')[0] for argument in arguments if argument.startswith('--')):
        having = [f'hdkd {other}' for other, parser in parsers.items() if parser.has_flag(flag)]
        if having:
            words.append(f'{flag} is an option of {", ".join(having)}')
    return f' ({"; ".join(words)})' if words else ''


def _run_command(name: str, args: argparse.Namespace) -> int:
    from ..utils.cgroups import limit_threads
    from ..utils.signals import Interrupted

    try:
        limit_threads()
        code = load_command(name).run(args) or 0
        sys.stdout.flush()
        return code
    except Interrupted as e:
        if not e.is_saved:
            print(f'hdkd {name}: {e}.', file=sys.stderr)
            return 128 + e.signum
        command, resume = ('distill' if name == 'demo' else name), ('' if name == 'study' else ' --resume')
        print(
            f'hdkd {name}: {e.signal_name}, the state is saved. Resume with: hdkd {command} --config'
            f" '{printable(str(e.folder))}/config.yaml'{resume}",
            file=sys.stderr,
        )
        return 128 + e.signum
    except KeyboardInterrupt:
        print(f'hdkd {name}: interrupted.', file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
        return 128 + 13  # SIGPIPE
    except Exception as e:
        if args.debug:
            raise
        expected = isinstance(e, (ValueError, OSError, FloatingPointError, ImportError, MemoryError))
        message = ' '.join(str(e).split()) or type(e).__name__
        hint = '' if expected else f' ({type(e).__name__}; --debug shows where)'
        print(f'hdkd {name}: error: {printable(message)}{hint}', file=sys.stderr)
        return 1
