"""The distillation methods, one file each: `METHODS` has them by name."""

import difflib
import inspect
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Type, Union

from ..networks import Pair
from .a2d import A2D
from .at import AT
from .base import Method
from .c2vkd import C2VKD
from .crd import CRD
from .dist import DIST
from .dkd import DKD
from .fitnet import FitNet
from .hdkd import HDKD
from .ickd import ICKD
from .infonce import InfoNCE
from .kd import KD
from .mgd import MGD
from .ofa import OFA
from .reviewkd import ReviewKD
from .sinkhorn import Sinkhorn

__all__ = ['METHODS', 'Method', 'convert_settings', 'create_methods', 'method_settings', 'split_teacher']

METHODS: Dict[str, Type[Method]] = {
    method.name: method
    for method in (
        HDKD,
        KD,
        DKD,
        DIST,
        OFA,
        FitNet,
        AT,
        ICKD,
        CRD,
        ReviewKD,
        MGD,
        A2D,
        C2VKD,
        InfoNCE,
        Sinkhorn,
    )
}


def method_settings(method: Callable[..., Method]) -> Dict[str, Any]:
    """Names and defaults of the settings of a method."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(method).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def convert_settings(name: str, method: Callable[..., Method], settings: Mapping[str, Any]) -> Dict[str, Any]:
    """Settings as a method takes them: a list may be one value, or text with commas.

    Args:
        name: Name of the method, for errors.
        method: What makes it.
        settings: Setting -> value.

    Raises:
        ValueError: if the method has no such setting, or the value is not of its type.
    """
    known, converted = method_settings(method), dict(settings)
    for key, value in settings.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f'did you mean {close[0]}? ' if close else ''
            raise ValueError(f"Method '{name}' has no setting '{key}': {hint}Its settings are {', '.join(known)}.")
        default = known[key]
        if isinstance(default, bool) and not isinstance(value, bool):
            if str(value).lower() not in ('true', 'false'):
                raise ValueError(f'{name}.{key} must be true or false, got {value!r}.')
            converted[key] = str(value).lower() == 'true'
        if isinstance(default, tuple):
            values = value.split(',') if isinstance(value, str) else value
            converted[key] = tuple(values) if isinstance(values, (list, tuple)) else (values,)
    return converted


def split_teacher(method: str) -> Tuple[str, Optional[int]]:
    """A method's name and the number of its teacher, from 1: 'kd:2' is kd of the second. None if it is of every one.

    Raises:
        ValueError: if what follows the colon is no such number.
    """
    name, colon, number = method.partition(':')
    if colon and not (number.isdecimal() and int(number) > 0):
        raise ValueError(f"Distillation method '{method}': use NAME, or NAME:N for the N-th teacher alone.")
    return name, int(number) if colon else None


def create_methods(
    methods: Sequence[Union[str, Callable[..., Method]]],
    pairs: Sequence[Pair],
    method_args: Mapping[str, Mapping[str, Any]] = {},
) -> List[List[Method]]:
    """Build the methods of each teacher. Weights of a method that is there for M teachers are divided by M.

    Args:
        methods: Names, 'NAME:N' for the N-th teacher alone; or what makes a method of a pair: a class, or
            `functools.partial(MyMethod, weight=2)`.
        pairs: The student with each teacher.
        method_args: Name -> settings of this method.

    Raises:
        ValueError: for an unknown or repeated name, settings that the method does not have, a value out of range, a
            teacher that is not there or has no method, or if a pair cannot have the method.
    """
    if not methods:
        raise ValueError(f'At least one distillation method is needed: choose from {", ".join(METHODS)}.')
    found = [_find_method(method) for method in methods]
    names = [name for name, _, _ in found]
    for name in method_args:
        if name not in names:
            raise ValueError(f"Settings of method '{name}', which is not among the methods: {', '.join(names)}.")
    for name, _, number in found:
        if number is not None and number > len(pairs):
            raise ValueError(f"Distillation method '{name}:{number}': there is no teacher {number}, only {len(pairs)}.")
    built: List[List[Method]] = []
    for i, pair in enumerate(pairs, 1):
        own = {}
        for name, method_cls, number in found:
            if number not in (None, i):
                continue
            if name in own:
                raise ValueError(f"Distillation method '{name}' is given twice.")
            if pair.multi_label and getattr(getattr(method_cls, 'func', method_cls), 'needs_one_class', False):
                fitting = ', '.join(other for other, cls in METHODS.items() if not cls.needs_one_class)
                raise pair.error(
                    name, f'it needs images of one class each, not of several labels: choose from {fitting}.'
                )
            own[name] = method_cls(pair, **convert_settings(name, method_cls, method_args.get(name, {})))
            own[name].weight /= len(pairs) if number is None else 1
        if not own:
            raise ValueError(f'Teacher {i}, {pair.teacher.name}, has no distillation method: leave it out, or add one.')
        built.append(list(own.values()))
    return built


def _find_method(method: Union[str, Callable[..., Method]]) -> Tuple[str, Callable[..., Method], Optional[int]]:
    """Name, what makes it, and the number of its teacher."""
    if not isinstance(method, str):
        made: Any = getattr(method, 'func', method)  # a partial has no name
        return made.name, method, None
    name, number = split_teacher(method)
    if name not in METHODS:
        raise ValueError(f"Unknown distillation method '{name}': choose from {', '.join(METHODS)}.")
    return name, METHODS[name], number
