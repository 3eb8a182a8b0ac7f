"""Image sizes among the settings: one number for squares, or height and width."""

import argparse
import os
import re
from numbers import Integral
from typing import Sequence, Tuple, Union

ImageSize = Union[int, Tuple[int, int]]


def parse_image_size(text: str) -> ImageSize:
    """A size as on the command line, '224' or '192x256'.

    Raises:
        argparse.ArgumentTypeError: if it is neither.
    """
    found = re.fullmatch(r'(\d+)(?:x(\d+))?', text.strip())
    if not found:
        raise argparse.ArgumentTypeError(f'expected one number, or height and width (192 256), got {text!r}')
    return simplify_image_size((int(found[1]), int(found[2] or found[1])), 'The image size')


def simplify_image_size(size: Union[int, Sequence[int]], name: str) -> ImageSize:
    """A size with one number for a square.

    Args:
        size: One number, or height and width.
        name: What it is the size of, for the error.

    Raises:
        ValueError: if it is something else.
    """
    values = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(values) != 2 or not all(isinstance(value, Integral) and not isinstance(value, bool) for value in values):
        raise ValueError(
            f'{name} must be one whole number, or height and width, such as 224 or (192, 256), got {size!r}.'
        )
    height, width = map(int, values)
    return height if height == width else (height, width)


def to_height_width(size: ImageSize) -> Tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def format_image_size(size: Union[int, Sequence[int]]) -> str:
    """Such as '224', and '192 x 256' of height 192 and width 256."""
    return str(size) if isinstance(size, int) else ' x '.join(map(str, size))


def join_image_sizes(arguments: Sequence[str], flags: Sequence[str]) -> Sequence[str]:
    """Arguments of a command whose sizes of two numbers, `--img-size 192 256`, are one argument, `--img-size 192x256`.

    A parser could not tell how many arguments belong to the flag: paths may follow. A second number that is the name of
    a file or folder is such a path.
    """
    joined, rest = [], list(arguments)
    while rest:
        joined.append(rest.pop(0))
        if joined[-1] == '--':
            return [*joined, *rest]
        is_pair = len(rest) > 1 and all(value.isdecimal() for value in rest[:2]) and not os.path.exists(rest[1])
        if joined[-1] in flags and is_pair:
            joined.append(f'{rest.pop(0)}x{rest.pop(0)}')
    return joined
