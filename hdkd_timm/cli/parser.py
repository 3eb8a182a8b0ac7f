"""The parser of a command, and the settings that result from its flags, `--config` and `--recipe`."""

import argparse
import dataclasses
import sys
from typing import Any, Collection, Dict, List, Optional, Sequence, Tuple, Type, TypeVar

from ..utils.config import KeyValues, add_arguments, check_settings, flag, from_arguments, read_yaml
from ..utils.image_size import join_image_sizes, parse_image_size

ConfigT = TypeVar('ConfigT')

MODEL = 'model folder, run, checkpoint file, name of released weights (hdkd_student.brain_mri), hf-hub:ORG/NAME'
LOADING = ('model', 'model_kwargs', 'img_size', 'use_ema', 'label_names')  # settings that load a model, without images
TITLES = (  # order of the groups of options
    'data',
    'model',
    'distillation',
    'teacher',
    'optimisation',
    'augmentation',
    'class imbalance',
    'evaluation',
    'device and speed',
    'run',
)


class _HelpAll(argparse.Action):
    """`--help-all`: the help with all options."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any):
        super().__init__(option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, nargs=0, **kwargs)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Optional[str] = None) -> None:
        parser.print_help_all()
        parser.exit()


class CommandParser(argparse.ArgumentParser):
    """Parser of a command: `--help` lists the common options, `--help-all` all of them.

    Args:
        command: Name of the command.
        help: What it does.
    """

    def __init__(self, command: str, help: str):
        super().__init__(prog=f'hdkd {command}', description=f'{help[0].upper()}{help[1:]}.')
        self.uncommon: List[argparse.Action] = []
        self.add_argument('--help-all', action=_HelpAll, help='show all options and exit')

    def add_settings(self, config_cls: Type[Any], exclude: Collection[str] = (), **defaults: Any) -> None:
        """Add `--config` and the flags of a settings dataclass; see `add_arguments`."""
        self.add_argument('--config', metavar='FILE', help='YAML file of settings; flags take precedence')
        found = add_arguments(self, config_cls, exclude, TITLES, **defaults)
        common = {field.name for field in dataclasses.fields(config_cls) if field.metadata.get('common')}
        self.uncommon += [action for name, action in found.items() if name not in common]

    def parse_known_args(  # type: ignore[override]
        self, args: Optional[Sequence[str]] = None, namespace: Optional[argparse.Namespace] = None
    ) -> Tuple[argparse.Namespace, List[str]]:
        """As argparse's; an image size may be two numbers, height and width."""
        sizes = [flag for flag, action in self._option_string_actions.items() if action.type is parse_image_size]
        return super().parse_known_args(join_image_sizes(sys.argv[1:] if args is None else args, sizes), namespace)

    def has_flag(self, flag: str) -> bool:
        """Whether the command has this flag, such as '--epochs'."""
        return flag in self._option_string_actions

    def format_help(self) -> str:
        """The help without uncommon options."""
        texts = [action.help for action in self.uncommon]
        for action in self.uncommon:
            action.help = argparse.SUPPRESS
        if self.uncommon:
            self.epilog = f"These are the common options; '{self.prog} --help-all' also lists the other {len(texts)}."
        try:
            return super().format_help()
        finally:
            self.epilog = None
            for action, text in zip(self.uncommon, texts):
                action.help = text

    def print_help_all(self) -> None:
        """Print the help with all options."""
        print(super().format_help(), end='')


def add_image_arguments(parser: CommandParser) -> None:
    """Arguments of commands that read image files."""
    parser.add_argument('paths', nargs='+', metavar='PATH', help='image files, or folders that are searched for them')
    parser.add_argument(
        '--on-bad-image',
        default='error',
        choices=('error', 'skip'),
        help='stop at images that cannot be read, or skip them (default: %(default)s)',
    )


def add_checkpoint_arguments(parser: CommandParser) -> None:
    """Arguments of commands that read checkpoint files without a settings dataclass."""
    parser.add_argument(
        '--model',
        metavar='NAME',
        help='architecture of a checkpoint file, if its keys fit more than one (hdkd_student_s4)',
    )
    parser.add_argument(
        '--model-kwargs',
        nargs='*',
        default={},
        action=KeyValues,
        metavar='NAME=VALUE',
        help='further model arguments of a checkpoint file, if its keys leave them open (num_heads=8 head_dim=32)',
    )
    parser.add_argument(
        '--label-names', nargs='+', metavar='NAME', help='class names by index, of a model without class names'
    )
    parser.add_argument(
        '--use-ema',
        default=True,
        action=argparse.BooleanOptionalAction,
        help='prefer the moving average of the weights in a checkpoint file that has both',
    )


def read_settings(
    config_cls: Type[ConfigT],
    args: argparse.Namespace,
    takes_run: bool = False,
    **defaults: Any,
) -> ConfigT:
    """The settings of a command: flags take precedence over `--config`, that over `--recipe`, that over the defaults.

    Args:
        config_cls: Settings dataclass.
        args: Parsed flags.
        takes_run: Accept the config.yaml of a run for `--config`, and use the part of it that `config_cls` has.
        defaults: Defaults of the command that replace the fields' own.

    Raises:
        ValueError: for a wrong value, or a flag without an effect.
    """
    config = from_arguments(config_cls, args, **{**defaults, **_read_files(config_cls, args, takes_run)})
    if hasattr(args, 'fold') and not config.folds:
        raise ValueError(f'--fold {args.fold} has no effect without --folds: give the number of folds too.')
    return config


def refuse_given(args: argparse.Namespace, config_cls: Type[Any], why: str, but: Collection[str] = ()) -> None:
    """Raise ValueError for a flag of a settings dataclass that was given, other than some, since it has no effect."""
    names = {field.name for field in dataclasses.fields(config_cls)} - set(but)
    given = [name for name in vars(args) if name in names]
    if given:
        raise ValueError(f'{flag(given[0])} has no effect {why}.')


def _read_files(config_cls: Type[Any], args: argparse.Namespace, takes_run: bool) -> Dict[str, Any]:
    recipe = getattr(args, 'recipe', None)
    if not (recipe or args.config):
        return {}
    from ..training.config import DistillConfig, TrainConfig, recipe_settings

    values = recipe_settings(recipe, config_cls) if recipe else {}
    of_a_run = False
    if args.config:
        classes = [DistillConfig, config_cls] if takes_run else [config_cls]
        fields = {field.name for field in dataclasses.fields(config_cls)}
        given = read_yaml(args.config)
        others = {field.name for field in dataclasses.fields(DistillConfig)} - fields
        if config_cls is TrainConfig and others & given.keys():
            first = min(others & given.keys())
            raise ValueError(
                f"'{args.config}' has settings of hdkd distill, such as '{first}': use it with hdkd distill."
            )
        found = check_settings(given, classes, f"'{args.config}'")
        values.update({name: value for name, value in found.items() if name in fields})
        of_a_run = not found.keys() <= fields
    models = [args.checkpoint] if hasattr(args, 'checkpoint') else getattr(args, 'models', [])
    if takes_run and models:
        _drop_architecture(values, models, of_a_run)
    return values


def _drop_architecture(values: Dict[str, Any], models: Sequence[str], of_a_run: bool) -> None:
    """Remove the settings of a run's student from those of a file, unless a model is a checkpoint file: any other
    records its own architecture and image size, and may be the run's teacher."""
    from ..models.checkpoint import is_checkpoint_file

    if not any(map(is_checkpoint_file, models)):
        for name in ('model', 'model_kwargs', *(['img_size'] if of_a_run else [])):
            values.pop(name, None)
