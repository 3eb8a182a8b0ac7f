"""Settings as dataclasses: their command-line flags and YAML files.

A field becomes a flag of the same name with dashes. Its metadata holds keywords for argparse (help, choices, metavar),
bounds of its value, and where the help lists it.
"""

import argparse
import ast
import dataclasses
import difflib
import inspect
import math
import operator
import typing
from pathlib import Path
from typing import Any, Collection, Dict, Iterable, Mapping, Sequence, Tuple, Type, TypeVar, Union

from .parsing import MAX_YAML, parse_yaml
from .parsing import to_yaml as values_to_yaml

ConfigT = TypeVar('ConfigT')

BOUNDS = {  # keyword of `setting` -> comparison and its description
    'above': (operator.gt, 'above {}'),
    'at_least': (operator.ge, '{} or more'),
    'below': (operator.lt, 'below {}'),
    'at_most': (operator.le, 'at most {}'),
}
METAVARS = {int: 'N', float: 'X', str: 'NAME'}


def setting(default: Any = dataclasses.MISSING, help: str = '', **kwargs: Any) -> Any:
    """A field of a settings dataclass.

    Args:
        default: Its default. Lists and dicts are copied for each instance.
        help: Its help text.
        kwargs: Bounds of its value (see `BOUNDS`); `flags`, further names of its flag; `group`, the heading under which
            the help lists it and the fields below it in its class; `common`, whether a short help lists it. All others
            are passed to argparse.
    """
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=dict(kwargs, help=help))
    return dataclasses.field(default=default, metadata=dict(kwargs, help=help))


class KeyValues(argparse.Action):
    """Flags of the form NAME=VALUE, Python literals or strings, as a dict (like timm's ParseKwargs, but checked)."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        pairs: Dict[str, Any] = self.given_before(namespace) if values else {}  # the flag alone: none
        for pair in values:
            name, equals, value = pair.partition('=')
            if not name or not equals:
                parser.error(f'argument {option_string}: expected NAME=VALUE, got {pair}')
            if name in pairs:
                parser.error(f'argument {option_string}: {name} is given twice, keep one of them')
            try:
                pairs[name] = ast.literal_eval(value)
            except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # the last two: nested too deep
                pairs[name] = value
        setattr(namespace, self.dest, pairs)

    def given_before(self, namespace: Any) -> Dict[str, Any]:
        """What the same flag said before, if it is repeated."""
        return dict(getattr(namespace, self.dest, None) or {})


class NestedKeyValues(KeyValues):
    """Flags of the form GROUP.NAME=VALUE, as a dict of dicts."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        super().__call__(parser, namespace, values, option_string)
        nested: Dict[str, Dict[str, Any]] = {}
        for name, value in getattr(namespace, self.dest).items():
            group, dot, key = name.partition('.')
            if not (group and dot and key):
                parser.error(f'argument {option_string}: expected {self.metavar}, got {name}={value}')
            nested.setdefault(group, {})[key] = value
        setattr(namespace, self.dest, nested)

    def given_before(self, namespace: Any) -> Dict[str, Any]:
        nested = super().given_before(namespace)
        return {f'{group}.{name}': value for group, values in nested.items() for name, value in values.items()}


def flag(name: str) -> str:
    """The flag of a field."""
    return '--' + name.replace('_', '-')


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _unwrap_optional(hint: Any) -> Tuple[Any, bool]:
    """A field's type without Optional, and whether it was Optional."""
    inner = [t for t in typing.get_args(hint) if t is not type(None)]
    optional = typing.get_origin(hint) is Union
    return (inner[0] if optional else hint), optional


def _group_titles(config_cls: Type[Any]) -> Dict[str, str]:
    """Field name -> heading in the help: the last `group` named at or above the field in the class that defines it."""
    titles = {}
    for cls in reversed(config_cls.__mro__):
        title = 'settings'
        for name in inspect.get_annotations(cls):
            if dataclasses.is_dataclass(cls) and name in cls.__dataclass_fields__:
                titles[name] = title = cls.__dataclass_fields__[name].metadata.get('group', title)
    return titles


def _argument_options(field: dataclasses.Field, hint: Any, default: Any) -> Dict[str, Any]:
    """Keywords of `add_argument` for a field of this type."""
    options = {key: value for key, value in field.metadata.items() if key not in (*BOUNDS, 'flags', 'group', 'common')}
    options.update(default=argparse.SUPPRESS, required=default is dataclasses.MISSING)
    kind, _ = _unwrap_optional(hint)
    if kind is bool:
        options['action'] = argparse.BooleanOptionalAction
    elif typing.get_origin(kind) is not dict:  # KeyValues converts those of a dict
        inner = typing.get_args(kind)
        if typing.get_origin(kind) is tuple:
            options.setdefault('nargs', '+' if inner[-1] is Ellipsis else len(inner))
            kind = inner[0]
        options.setdefault('type', kind)
        if 'choices' not in options:
            options.setdefault('metavar', METAVARS.get(kind))
    if default is not False and default not in (None, '', (), {}, dataclasses.MISSING):
        shown = ' '.join(map(str, default)) if isinstance(default, tuple) else default
        words = options['help'].partition(' (default:')[0]  # which may tell the default of None in words
        options['help'] = f'{words} (default: {shown})'
    return options


def add_arguments(
    parser: argparse.ArgumentParser,
    config_cls: Type[Any],
    exclude: Collection[str] = (),
    titles: Sequence[str] = (),
    **defaults: Any,
) -> Dict[str, argparse.Action]:
    """Add a flag for each field of a settings dataclass, in groups. Parsing leaves out the flags that are not given.

    Args:
        parser: Parser to add to.
        config_cls: Settings dataclass.
        exclude: Fields without a flag.
        titles: Order of the groups; others come after them.
        defaults: Defaults that replace the fields' own; pass them to `from_arguments` too.

    Returns:
        Field name -> argument.
    """
    hints, title_of = typing.get_type_hints(config_cls), _group_titles(config_cls)
    fields = [field for field in dataclasses.fields(config_cls) if field.name not in exclude]
    used = {title_of[field.name] for field in fields}
    groups = {title: parser.add_argument_group(title) for title in titles if title in used}
    arguments = {}
    for field in fields:
        title = title_of[field.name]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        default = defaults.get(field.name, _default(field))
        arguments[field.name] = groups[title].add_argument(
            *field.metadata.get('flags', ()), flag(field.name), **_argument_options(field, hints[field.name], default)
        )
    return arguments


def given_settings(config_cls: Type[Any], args: argparse.Namespace) -> Dict[str, Any]:
    """The settings whose flags were given."""
    found = {
        field.name: getattr(args, field.name) for field in dataclasses.fields(config_cls) if hasattr(args, field.name)
    }
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def from_arguments(config_cls: Type[ConfigT], args: argparse.Namespace, **values: Any) -> ConfigT:
    """The settings from parsed flags; where a flag is not given, `values` and then the fields' defaults apply."""
    return config_cls(**{**values, **given_settings(config_cls, args)})


def _convert(value: Any, hint: Any) -> Any:
    """A value of a YAML file as a field's type, or TypeError."""
    alternatives = typing.get_args(hint) if typing.get_origin(hint) is Union else (hint,)
    if value is None and type(None) in alternatives:
        return None
    *others, kind = (kind for kind in alternatives if kind is not type(None))
    for other in others:
        try:
            return _convert(value, other)
        except TypeError:
            pass
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
            return float(value)  # YAML 1.1 reads 1e-3 as a string
        except ValueError:
            raise TypeError from None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError
    return value


def _check_value(value: Any, metadata: Mapping[str, Any], name: str) -> None:
    """Raise ValueError, its message starting with `name`, if a value is not among its choices or within its bounds."""
    choices = metadata.get('choices')
    bounds = [(bound, metadata[bound]) for bound in BOUNDS if bound in metadata]
    for v in value if isinstance(value, (tuple, list)) else (value,):
        if v is None:
            continue
        if choices and v not in choices:
            raise ValueError(f'{name} must be one of {", ".join(map(str, choices))}, got {v!r}.')
        if bounds and not (math.isfinite(v) and all(BOUNDS[bound][0](v, limit) for bound, limit in bounds)):
            expected = ' and '.join(BOUNDS[bound][1].format(limit) for bound, limit in bounds)
            raise ValueError(f'{name} must be {expected}, got {v}.')


def check_values(config: Any) -> None:
    """Check that each value of a settings dataclass is among its choices and within its bounds.

    Raises:
        ValueError: if not; names the flag, the value and what it must be.
    """
    for field in dataclasses.fields(config):
        _check_value(getattr(config, field.name), field.metadata, flag(field.name))


def check_settings(values: Dict[str, Any], config_classes: Iterable[Type[Any]], source: str) -> Dict[str, Any]:
    """Settings of a file, converted to the types of the fields of these dataclasses.

    Raises:
        ValueError: if a name is not a field of them, or a value is not of its type, among its choices and within its
            bounds.
    """
    hints: Dict[str, Any] = {}
    metadata: Dict[str, Mapping[str, Any]] = {}
    for config_cls in config_classes:
        hints.update(typing.get_type_hints(config_cls))
        metadata.update({field.name: field.metadata for field in dataclasses.fields(config_cls)})
    checked = {}
    for name, value in values.items():
        if name not in hints:
            close = difflib.get_close_matches(str(name), hints, n=1, cutoff=0.75)
            raise ValueError(f"Unknown setting '{name}' in {source}{f': did you mean {close[0]}?' if close else '.'}")
        try:
            checked[name] = _convert(value, hints[name])
        except TypeError:
            expected = str(hints[name]).replace('typing.', '').replace("<class '", '').replace("'>", '')
            is_unquoted = _unwrap_optional(hints[name])[0] is str and isinstance(value, (bool, int, float))
            hint = ': put it in quotes' + ' (unquoted yes, no, on and off are booleans)' * isinstance(value, bool)
            shown = repr(value) if len(repr(value)) <= 100 else f'{repr(value)[:99]}…'
            raise ValueError(
                f"Setting '{name}' in {source} must be {expected}, got {shown}{hint * is_unquoted}."
            ) from None
        _check_value(checked[name], metadata[name], f"Setting '{name}' in {source}")
    return checked


def read_yaml(path: Union[str, Path]) -> Dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a YAML file of unique names and their values; see `parse_yaml`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Config file '{path}' does not exist, or is not a file.")
    try:
        with path.open(encoding='utf-8-sig') as file:
            text = file.read(MAX_YAML + 1)
    except UnicodeDecodeError as e:
        raise ValueError(f"'{path}' is not a YAML file ({e}).") from e
    values = parse_yaml(text, f"'{path}'")
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"'{path}' must hold settings, one NAME: VALUE per line.")
    return {name.replace('-', '_'): value for name, value in values.items()}


def to_yaml(config: Any) -> str:
    """All settings of a dataclass as YAML."""
    values = dataclasses.asdict(config)
    return values_to_yaml({k: list(v) if isinstance(v, tuple) else v for k, v in values.items()})
