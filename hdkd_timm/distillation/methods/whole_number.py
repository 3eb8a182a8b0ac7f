"""Check of a setting of a method that counts something."""

from typing import Any

from .base import check_number


def check_whole_number(method: str, name: str, value: Any, at_least: int) -> int:
    """Return a setting of a method if it is a whole number, such as 3 or 3.0, that is large enough.

    Raises:
        ValueError: if not; names the setting, the value and the bound.
    """
    if check_number(method, name, value, at_least=at_least) != int(value):
        raise ValueError(f'{method}.{name} must be a whole number, got {value!r}.')
    return int(value)
