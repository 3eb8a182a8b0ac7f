"""The distillation methods, one file each: `METHODS` has them by name."""

import inspect
from typing import Any, Callable, Dict, List, Mapping, Sequence, Type, Union

from ..networks import Pair
from .a2d import A2D
from .base import Method
from .c2vkd import C2VKD
from .crd import CRD
from .hdkd import HDKD
from .ickd import ICKD
from .infonce import InfoNCE
from .kd import KD
from .mgd import MGD
from .reviewkd import ReviewKD
from .sinkhorn import Sinkhorn

__all__ = ['METHODS', 'Method', 'create_methods', 'method_settings']

METHODS: Dict[str, Type[Method]] = {
    method.name: method for method in (HDKD, KD, ICKD, CRD, ReviewKD, MGD, A2D, C2VKD, InfoNCE, Sinkhorn)
}


def method_settings(method: Callable[..., Method]) -> Dict[str, Any]:
    """Names and defaults of the settings of a method."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(method).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


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
        method_cls = METHODS[method] if isinstance(method, str) else method
        settings = method_args.get(method, {}) if isinstance(method, str) else {}
        known = method_settings(method_cls)
        for name in settings:
            if name not in known:
                raise ValueError(f"Method '{method}' has no setting '{name}': its settings are {', '.join(known)}.")
        built.append(method_cls(pair, **settings))
    names = [method.name for method in built]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"Distillation method '{name}' is given twice.")
    for name in method_args:
        if name not in names:
            raise ValueError(f"Settings of method '{name}', which is not among the methods: {', '.join(names)}.")
    return built
