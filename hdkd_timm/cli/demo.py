"""`hdkd demo`: a distillation that takes a minute or two on a laptop, on images that it draws itself."""

import argparse
import contextlib
import dataclasses
from pathlib import Path

from ..training.config import DistillConfig
from .distill import read_distill_settings, run_distillation
from .parser import CommandParser
from .training import add_run_arguments

DEFAULTS = dict(img_size=64, epochs=6, student_alone=True, channels_last=True, color_jitter=0.2)


def add_arguments(parser: CommandParser) -> None:
    add_run_arguments(parser, DistillConfig, **DEFAULTS)
    parser.usage = 'hdkd demo [OPTION ...]'


def run(args: argparse.Namespace) -> None:
    defaults = {
        name: value for name, value in DEFAULTS.items() if name != 'channels_last' or not getattr(args, 'fast', None)
    }
    config = read_distill_settings(args, **defaults)
    if not (config.data_dir or config.data_csv or config.dataset):
        config = dataclasses.replace(config, data_dir=str(_draw_phantoms(Path(config.output) / 'phantoms')))
    run_distillation(config, args)


def _draw_phantoms(folder: Path) -> Path:
    from ..data.phantoms import write_phantoms

    if not folder.exists():
        with contextlib.suppress(FileExistsError):  # another demo drew the same ones in the meantime
            write_phantoms(folder)
            print(f"Drew phantom images in '{folder}'.")
    return folder
