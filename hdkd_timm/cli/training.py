"""What `train`, `distill` and `demo` share: their options, and what they print after a run."""

import argparse
from typing import Any, Collection, Dict, Optional, Type

from ..training.config import DistillConfig, TrainConfig, recipe_names
from ..utils.config import flag
from .main import is_primary
from .parser import CommandParser

CHECKED_IMAGES = 20_000  # most images among which the report at the end of a run looks for duplicates


def add_run_arguments(parser: CommandParser, config_cls: Type[TrainConfig], **defaults: Any) -> None:
    """Add the options of a training. `defaults` replace those of the settings."""
    parser.usage = f'{parser.prog} --data-dir DIR [OPTION ...]'
    parser.add_argument(
        '--recipe',
        metavar='NAME',
        help=(
            f'settings of a recipe ({", ".join(recipe_names())}); --config and flags take precedence (default: default)'
        ),
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument('--resume', action='store_true', help='resume the run that --experiment or --config names')
    group.add_argument('--overwrite', action='store_true', help='replace the run that --experiment or --config names')
    parser.add_argument(
        '--report', default=True, action=argparse.BooleanOptionalAction, help='write report.html at the end'
    )
    parser.add_settings(config_cls, **defaults)


def refuse_unused(args: argparse.Namespace, names: Collection[str], reason: str) -> None:
    """Raise ValueError if a flag is given that has no effect; a setting of a file may be one of another run."""
    for name in names:
        if hasattr(args, name):  # flags that are not given are absent
            raise ValueError(f'{flag(name)} {reason}: drop it.')


def refuse_unused_of_training(args: argparse.Namespace, config: TrainConfig) -> None:
    """As `refuse_unused`, for the flags of a training that have an effect only beside another one."""
    trains_a_teacher = isinstance(config, DistillConfig) and config.has_teacher
    trains_a_teacher = trains_a_teacher and not (config.teacher_checkpoint or config.teacher_logits)
    scheds = {config.sched, *([config.teacher_sched] if trains_a_teacher else [])}
    is_mixed = config.mixup or config.cutmix
    for is_unused, names, reason in (
        (
            config.aug != 'timm',
            ('scale', 'ratio', 'hflip', 'vflip', 'color_jitter'),
            f'is a part of --aug timm, not of --aug {config.aug}',
        ),
        (config.aa, ('color_jitter',), 'is replaced by --aa'),
        (not config.reprob, ('remode', 'recount'), 'is only used with --reprob'),
        (not is_mixed, ('mixup_prob', 'mixup_off_epoch'), 'is only used with --mixup or --cutmix'),
        (not (config.mixup and config.cutmix), ('mixup_switch_prob',), 'is only used with both --mixup and --cutmix'),
        (not config.amp, ('amp_dtype',), 'is only used with --amp'),
        (config.clip_grad is None, ('clip_mode',), 'is only used with --clip-grad'),
        (not config.model_ema, ('model_ema_decay', 'model_ema_warmup'), 'is only used with --model-ema'),
        (
            scheds == {'none'},
            ('warmup_epochs', 'warmup_lr', 'min_lr', 'sched_on_updates'),
            'has no effect with --sched none',
        ),
        (not scheds & {'step', 'multistep', 'plateau'}, ('decay_rate',), 'is for --sched step, multistep or plateau'),
        ('step' not in scheds, ('decay_epochs',), 'is for --sched step'),
        ('multistep' not in scheds, ('decay_milestones',), 'is for --sched multistep'),
        ('plateau' not in scheds, ('patience_epochs',), 'is for --sched plateau'),
    ):
        if is_unused:
            refuse_unused(args, names, reason)


def print_results(metrics: Dict[str, Any], note: str, config: TrainConfig, args: argparse.Namespace) -> None:
    """Print the table of a finished run and where its files are, and write its report if that is wanted."""
    from ..evaluation.run_results import format_table

    if is_primary():
        print(format_table(metrics))
        print(note)
        if args.report:
            _write_report(metrics, config.device, args.debug)


def _write_report(metrics: Dict[str, Any], device: Optional[str], debug: bool) -> None:
    """Write the report of a finished run, which is complete without it."""
    run = metrics['run']
    try:
        from ..analysis.report import write_report

        is_quick = sum(metrics['images'].values()) <= CHECKED_IMAGES
        print(f"The report is '{write_report([run], check=is_quick, device=device)}'.")
    except Exception as e:
        if debug:
            raise
        reason = ' '.join(str(e).split()) or type(e).__name__
        print(f"No report was written ({reason}); hdkd report '{run}' tries again.")
