"""Settings as dataclasses, and their command-line flags.

A field is a flag of the same name with dashes, its metadata are argparse's words (help, choices, metavar, flags).
"""
import argparse
import dataclasses
import typing
from typing import Any, Type, TypeVar

ConfigT = TypeVar('ConfigT')


def setting(default: Any = dataclasses.MISSING, help: str = '', **kwargs: Any) -> Any:
    """A field of a settings dataclass with its help text and other words for argparse."""
    return dataclasses.field(default=default, metadata=dict(kwargs, help=help))


def add_arguments(parser: argparse.ArgumentParser, config_cls: Type[Any], **defaults: Any) -> None:
    """Add a flag for each field of a settings dataclass. `defaults` win over the fields' own."""
    types = typing.get_type_hints(config_cls)
    for field in dataclasses.fields(config_cls):
        words = dict(field.metadata)
        flags = [*words.pop('flags', ()), '--' + field.name.replace('_', '-')]
        required = field.default is dataclasses.MISSING and field.name not in defaults
        default = None if required else defaults.get(field.name, field.default)
        kind = types[field.name]
        inner = [t for t in typing.get_args(kind) if t is not type(None)]
        if kind is bool:
            parser.add_argument(*flags, action=argparse.BooleanOptionalAction, default=default, **words)
            continue
        if typing.get_origin(kind) is tuple:
            words['nargs'] = '+' if inner[-1] is Ellipsis else len(inner)
        if default is not None and default != '':
            shown = ' '.join(map(str, default)) if isinstance(default, tuple) else default
            words['help'] += f' (default: {shown})'
        parser.add_argument(
            *flags, type=inner[0] if inner else kind, required=required, default=default, **words)


def from_arguments(config_cls: Type[ConfigT], args: argparse.Namespace) -> ConfigT:
    """The settings from parsed flags."""
    values = {field.name: getattr(args, field.name) for field in dataclasses.fields(config_cls)}
    return config_cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
