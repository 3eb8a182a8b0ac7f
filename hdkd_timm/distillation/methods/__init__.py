"""The distillation methods, one file each: `METHODS` has them by name."""

import difflib
import inspect
from typing import Any, Callable, Dict, List, Mapping, Sequence, Type, Union

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

__all__ = ['METHODS', 'Method', 'convert_settings', 'create_methods', 'method_settings']

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


def create_methods(
    methods: Sequence[Union[str, Callable[..., Method]]],
    pair: Pair,
    method_args: Mapping[str, Mapping[str, Any]] = {},
) -> List[Method]:
    """Build methods for a pair of networks.

    Args:
        methods: Names, or what makes a method of a pair: a class, or `functools.partial(MyMethod, weight=2)`.
        pair: The networks.
        method_args: Name -> settings of this method.

    Raises:
        ValueError: for an unknown or repeated name, settings that the method does not have, a value out of range, or if
            the pair cannot have the method.
    """
    if not methods:
        raise ValueError(f'At least one distillation method is needed: choose from {", ".join(METHODS)}.')
    built: List[Method] = []
    for method in methods:
        if isinstance(method, str) and method not in METHODS:
            raise ValueError(f"Unknown distillation method '{method}': choose from {', '.join(METHODS)}.")
        method_cls: Callable[..., Method] = METHODS[method] if isinstance(method, str) else method
        made: Any = method if isinstance(method, str) else getattr(method, 'func', method)  # a partial has no name
        name = made if isinstance(made, str) else made.name
        built.append(method_cls(pair, **convert_settings(name, method_cls, method_args.get(name, {}))))
    names = [method.name for method in built]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"Distillation method '{name}' is given twice.")
    for name in method_args:
        if name not in names:
            raise ValueError(f"Settings of method '{name}', which is not among the methods: {', '.join(names)}.")
    return built
