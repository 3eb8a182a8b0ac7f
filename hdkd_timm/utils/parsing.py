"""YAML and JSON from untrusted files: plain values within limits, or a one-line error.

What the parsers accept silently is an error here: duplicate keys (the last one would win), numbers that no setting
needs, and text that is small on disk but large in memory. NaN and Infinity are not JSON.
"""

import json
import math
import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

import yaml

MAX_YAML = 64 * 1024  # characters of a settings file with its aliases expanded; ours have 4,000
MAX_JSON = 64 * 1024 * 1024  # bytes; a confusion matrix of 2,000 classes takes 48 MB
MAX_DEPTH = 32
MAX_DIGITS = 20  # of an integer, enough for 64 bits

STR, INT, FLOAT, BOOL, NULL, MERGE = (
    f'tag:yaml.org,2002:{name}' for name in ('str', 'int', 'float', 'bool', 'null', 'merge')
)
EXPONENT = re.compile(r'[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+')  # 1e-3, which is text in YAML 1.1


class _Refused(ValueError):
    """Content that the parsers would accept silently.

    Args:
        problem: Description.
        mark: Position in YAML.
    """

    def __init__(self, problem: str, mark: Optional[yaml.Mark] = None):
        super().__init__(problem)
        self.place = f' line {mark.line + 1}' if mark is not None else ''


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with a depth limit, and without YAML 1.1's surprising conversions: 12:30 (750), 010 (8) and
    2026-01-31 (a date) stay text."""

    yaml_implicit_resolvers: Dict[str, List[Tuple[str, Any]]] = {}
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Refused(f'nested deeper than {MAX_DEPTH} levels', self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _tag, _pattern, _first in (
    (BOOL, 'yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF', 'yYnNtTfFoO'),
    (
        FLOAT,
        r'[-+]?\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|[-+]?\.\d[\d_]*([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)'
        r'|\.(nan|NaN|NAN)',
        '-+0123456789.',
    ),
    (INT, r'[-+]?(0|[1-9][\d_]*|0x[\da-fA-F]+)', '-+0123456789'),
    (NULL, '~|null|Null|NULL|', ['~', 'n', 'N', '']),
    (MERGE, '<<', '<'),
):
    _Loader.add_implicit_resolver(_tag, re.compile(f'({_pattern})$', re.ASCII), list(_first))


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper that quotes text which `parse_yaml` would read as a number, such as '1e-3'."""


_Dumper.add_implicit_resolver(FLOAT, re.compile(f'({EXPONENT.pattern})$', re.ASCII), list('-+0123456789.'))


def to_yaml(values: Dict[str, Any]) -> str:
    """Plain values as YAML in the same order, which `parse_yaml` reads back."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


def _check_node(node: yaml.Node, sizes: Dict[int, Optional[int]], depth: int = 0) -> int:
    """Check a node and count its characters with aliases expanded.

    Args:
        node: The parsed node.
        sizes: Characters of the nodes visited so far by id, None for unfinished ones, which must not occur again.
        depth: 1 for the settings of a file, more for nested values.

    Raises:
        _Refused: if there are too many characters, a duplicate key, or a number with too many digits.
    """
    if id(node) in sizes:
        if sizes[id(node)] is None:
            raise _Refused('an alias that contains itself', node.start_mark)
        return sizes[id(node)]
    sizes[id(node)] = None
    size = 2
    if isinstance(node, yaml.ScalarNode):
        size += len(node.value)
        if node.tag == STR and node.style is None and depth > 1 and EXPONENT.fullmatch(node.value):
            node.tag = FLOAT  # settings are converted to their types, nested values have none
        if node.tag == INT and len(node.value) > MAX_DIGITS:
            raise _Refused(f'an integer of {len(node.value)} digits, the maximum is {MAX_DIGITS}', node.start_mark)
    elif isinstance(node, yaml.MappingNode):
        lines: Dict[Tuple[str, str], int] = {}
        for key, value in node.value:
            size += _check_node(key, sizes, depth + 1) + _check_node(value, sizes, depth + 1)
            if isinstance(key, yaml.ScalarNode):
                name = key.value.replace('-', '_') if depth == 0 else key.value  # as in the flags
                if (key.tag, name) in lines:
                    raise _Refused(
                        f"duplicate key '{name}', first in line {lines[key.tag, name]}: keep one of them",
                        key.start_mark,
                    )
                lines[key.tag, name] = key.start_mark.line + 1
    else:
        size += sum(_check_node(value, sizes, depth + 1) for value in node.value)
    if size > MAX_YAML:
        raise _Refused(
            f'more than {MAX_YAML:,} characters with its aliases (*NAME) expanded: write it without them',
            node.start_mark,
        )
    sizes[id(node)] = size
    return size


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML of plain values. Numbers may have exponents in any form (1e-3); 12:30, 010 and dates are text.

    Args:
        text: One document.
        source: Its name in errors.

    Raises:
        ValueError: if it is not YAML of plain values, larger than `MAX_YAML` (aliases expanded), nested deeper than
            `MAX_DEPTH`, or has a duplicate key; names the line.
    """
    try:
        if len(text) > MAX_YAML:
            raise _Refused(f'more than {MAX_YAML:,} characters, too many for settings')
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_node(node, {})
        return loader.construct_document(node)
    except _Refused as e:
        raise ValueError(f'{source}{e.place}: {e}.') from None
    except (yaml.YAMLError, ValueError, TypeError) as e:  # the last two are raised by its constructors
        raise ValueError(f'{source} is not a YAML file ({" ".join(str(e).split())}).') from e


def _check_keys(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    values: Dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise _Refused(f"duplicate key '{name}': keep one of them")
        values[name] = value
    return values


def _parse_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _Refused(f'an integer of {len(digits)} digits, the maximum is {MAX_DIGITS}')
    return int(digits)


def _parse_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _Refused(f'{digits[:20]} is not a finite number')
    return value


def parse_json(text: Union[str, bytes], source: str) -> Any:
    """Parse JSON.

    Args:
        text: One document, bytes in UTF-8.
        source: Its name in errors.

    Raises:
        ValueError: if it is not JSON, contains NaN or Infinity, is larger than `MAX_JSON`, nested too deeply, or has a
            duplicate key.
    """
    try:
        if len(text) > MAX_JSON:
            raise _Refused(f'more than {MAX_JSON:,} bytes')
        text = text.decode('utf-8-sig') if isinstance(text, bytes) else text
        return json.loads(
            text,
            object_pairs_hook=_check_keys,
            parse_int=_parse_int,
            parse_float=_parse_float,
            parse_constant=_parse_float,
        )
    except _Refused as e:
        raise ValueError(f'{source}: {e}.') from None
    except RecursionError:
        raise ValueError(f'{source}: nested too deeply.') from None
    except ValueError as e:
        raise ValueError(f'{source} is not a JSON file ({" ".join(str(e).split())}).') from e


def read_json(path: Union[str, Path]) -> Any:
    """Read a JSON file.

    Raises:
        OSError: if it cannot be read.
        ValueError: as `parse_json`; names the file.
    """
    with open(path, 'rb') as file:
        return parse_json(file.read(MAX_JSON + 1), f"'{path}'")
