"""Settings as dataclasses: their command-line flags, and YAML files of them.

A field is a flag of the same name with dashes, its metadata are argparse's words (help, choices, metavar, flags) and
bounds of its value.
"""
import argparse
import ast
import dataclasses
import math
import operator
import typing
from pathlib import Path
from typing import Any, Dict, Iterable, Tuple, Type, TypeVar, Union

from .parsing import MAX_YAML, parse_yaml
from .parsing import to_yaml as values_to_yaml

ConfigT = TypeVar('ConfigT')

BOUNDS = {  # keyword of `setting` -> test and words
    'above': (operator.gt, 'above {}'), 'at_least': (operator.ge, '{} or more'),
    'below': (operator.lt, 'below {}'), 'at_most': (operator.le, 'at most {}')}


def setting(default: Any = dataclasses.MISSING, help: str = '', **kwargs: Any) -> Any:
    """A field of a settings dataclass with its help text, bounds (see `BOUNDS`) and other words for argparse."""
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=dict(kwargs, help=help))
    return dataclasses.field(default=default, metadata=dict(kwargs, help=help))


class KeyValues(argparse.Action):
    """Flags of the form NAME=VALUE, Python literals or strings, as a dict (as timm's ParseKwargs, but checked)."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        pairs = {}
        for pair in values:
            name, equals, value = pair.partition('=')
            if not name or not equals:
                parser.error(f'argument {option_string}: expected NAME=VALUE, got {pair}')
            if name in pairs:
                parser.error(f'argument {option_string}: {name} is there twice, keep one of them')
            try:
                pairs[name] = ast.literal_eval(value)
            except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # the last two: nested too deep
                pairs[name] = value
        setattr(namespace, self.dest, pairs)


def flag(name: str) -> str:
    """The flag of a field."""
    return '--' + name.replace('_', '-')


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _kind(hint: Any) -> Tuple[Any, bool]:
    """A field's type without Optional, and whether it was Optional."""
    inner = [t for t in typing.get_args(hint) if t is not type(None)]
    optional = typing.get_origin(hint) is Union
    return (inner[0] if optional else hint), optional


def add_arguments(parser: argparse.ArgumentParser, config_cls: Type[Any], **defaults: Any) -> None:
    """Add a flag for each field of a settings dataclass. `defaults` win over the fields' own."""
    types = typing.get_type_hints(config_cls)
    for field in dataclasses.fields(config_cls):
        words = {name: word for name, word in field.metadata.items() if name not in BOUNDS}
        flags = [*words.pop('flags', ()), flag(field.name)]
        required = _default(field) is dataclasses.MISSING and field.name not in defaults
        default = None if required else defaults.get(field.name, _default(field))
        kind, _ = _kind(types[field.name])
        if kind is bool:
            parser.add_argument(*flags, action=argparse.BooleanOptionalAction, default=default, **words)
            continue
        inner = typing.get_args(kind)
        if typing.get_origin(kind) is tuple:
            words.setdefault('nargs', '+' if inner[-1] is Ellipsis else len(inner))
            kind = inner[0]
        elif typing.get_origin(kind) is dict:  # NAME=VALUE by an action of its own
            kind = None
        if default not in (None, '', (), {}):
            shown = ' '.join(map(str, default)) if isinstance(default, tuple) else default
            words['help'] += f' (default: {shown})'
        parser.add_argument(*flags, default=default, required=required, **({'type': kind} if kind else {}), **words)


def from_arguments(config_cls: Type[ConfigT], args: argparse.Namespace) -> ConfigT:
    """The settings from parsed flags."""
    values = {field.name: getattr(args, field.name) for field in dataclasses.fields(config_cls)}
    return config_cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _convert(value: Any, hint: Any) -> Any:
    """A value of a YAML file as a field's type, or TypeError."""
    kind, optional = _kind(hint)
    if value is None and optional:
        return None
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        values = value if isinstance(value, (list, tuple)) else [value]
        if inner[-1] is not Ellipsis and len(values) != len(inner):
            raise TypeError
        return tuple(_convert(v, inner[0]) for v in values)
    if typing.get_origin(kind) is dict:
        kind = dict
    if kind is float and not isinstance(value, bool) and isinstance(value, (int, str)):
        try:
            return float(value)  # YAML 1.1 takes 1e-3 for a string
        except ValueError:
            raise TypeError from None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError
    return value


def check_values(config: Any) -> None:
    """Is each value of a settings dataclass among its choices and within its bounds?

    Raises:
        ValueError: if not; names the flag, the value and what it must be.
    """
    for field in dataclasses.fields(config):
        value, words = getattr(config, field.name), field.metadata
        for v in value if isinstance(value, tuple) else (value,):
            choices = words.get('choices')
            if choices and v is not None and v not in choices:
                raise ValueError(f"{flag(field.name)} must be one of {', '.join(map(str, choices))}, got {v!r}.")
            bounds = [(bound, words[bound]) for bound in BOUNDS if bound in words]
            if bounds and v is not None and not (
                    math.isfinite(v) and all(BOUNDS[bound][0](v, limit) for bound, limit in bounds)):
                said = ' and '.join(BOUNDS[bound][1].format(limit) for bound, limit in bounds)
                raise ValueError(f'{flag(field.name)} must be {said}, got {v}.')


def check_settings(values: Dict[str, Any], config_classes: Iterable[Type[Any]], source: str) -> Dict[str, Any]:
    """Settings of a file, with the types of the fields of these dataclasses.

    Raises:
        ValueError: if a name is no field of them, or a value is not of its type or not among its choices.
    """
    hints: Dict[str, Any] = {}
    choices: Dict[str, Any] = {}
    for config_cls in config_classes:
        hints.update(typing.get_type_hints(config_cls))
        choices.update({f.name: f.metadata.get('choices') for f in dataclasses.fields(config_cls)})
    checked = {}
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"Unknown setting '{name}' in {source}.")
        try:
            checked[name] = _convert(value, hints[name])
        except TypeError:
            words = str(hints[name]).replace('typing.', '').replace("<class '", '').replace("'>", '')
            is_text = _kind(hints[name])[0] is str and isinstance(value, (bool, int, float))
            hint = ': put it in quotes' + ' (yes, no, on and off without are true or false)' * isinstance(value, bool)
            shown = repr(value) if len(repr(value)) <= 100 else f'{repr(value)[:99]}…'
            raise ValueError(f"Setting '{name}' in {source} must be {words}, got {shown}{hint * is_text}.") from None
        if choices[name] and checked[name] is not None:
            for v in checked[name] if isinstance(checked[name], tuple) else (checked[name],):
                if v not in choices[name]:
                    raise ValueError(
                        f"Setting '{name}' in {source} must be one of {', '.join(choices[name])}, got {v!r}.")
    return checked


def read_yaml(path: Union[str, Path]) -> Dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no YAML file of names and values, each there once; see `parse_yaml`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Config file '{path}' does not exist, or is no file.")
    try:
        with path.open(encoding='utf-8-sig') as file:
            text = file.read(MAX_YAML + 1)
    except UnicodeDecodeError as e:
        raise ValueError(f"'{path}' is no YAML file ({e}).") from e
    values = parse_yaml(text, f"'{path}'")
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"'{path}' must hold settings, NAME: VALUE in each line.")
    return {name.replace('-', '_'): value for name, value in values.items()}


def to_yaml(config: Any) -> str:
    """All settings of a dataclass as YAML."""
    values = dataclasses.asdict(config)
    return values_to_yaml({k: list(v) if isinstance(v, tuple) else v for k, v in values.items()})
