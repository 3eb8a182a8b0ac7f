"""Size limit, memory budget and 8-bit scaling, the same for all image formats."""

import os
import threading
from contextlib import AbstractContextManager, contextmanager
from typing import BinaryIO, Callable, Iterator, List, Optional, Tuple

import numpy as np
from PIL import Image

Reserve = Callable[[int], AbstractContextManager]  # waits until there is memory for that many pixels

MAX_PIXELS = 'HDKD_MAX_IMAGE_PIXELS'  # environment variable that sets Pillow's limit
STRIP = 2**20  # pixels converted at once
PEAK = 20  # most bytes per pixel while an image is read: WebP, whose decoder holds two images beside ours


def read_head(file: BinaryIO, number: int) -> bytes:
    """The first `number` bytes of an open file, fewer if it is shorter. Rewinds the file."""
    file.seek(0)
    head = file.read(number)
    file.seek(0)
    return head


def find_limit() -> Optional[int]:
    """The most pixels that an image may have, which is Pillow's limit; None if unlimited."""
    text = os.environ.get(MAX_PIXELS)
    if text:
        if not (text.isdecimal() and int(text)):
            raise ValueError(f"{MAX_PIXELS} must be a number of pixels, 1 or more, got '{text}'")
        Image.MAX_IMAGE_PIXELS = int(text)  # for Pillow's own checks
    return Image.MAX_IMAGE_PIXELS


def check_pixels(number: int, size: str = '') -> int:
    """Return the number of pixels.

    Raises:
        ValueError: if it exceeds the limit.
    """
    limit = find_limit()
    if limit is not None and number > limit:
        raise ValueError(
            f'{size or f"{number:,}"} pixels, more than the limit of {limit:,}: shrink the image, or raise the limit'
            f' with the environment variable {MAX_PIXELS} (in Python: PIL.Image.MAX_IMAGE_PIXELS)'
        )
    return number


def check_size(width: int, height: int) -> int:
    """As `check_pixels`, for an image of this size."""
    return check_pixels(width * height, f'{width} x {height}')


class MemoryBudget:
    """Memory shared by threads that read images. A thread waits until its share is free; an image that exceeds the
    budget is read alone.

    Args:
        total: Bytes.
    """

    def __init__(self, total: int):
        self.total = total
        self.taken = 0
        self.changed = threading.Condition()

    @contextmanager
    def reserve(self, pixels: int) -> Iterator[None]:
        """Hold the memory for reading an image of that many pixels."""
        needed = PEAK * pixels
        with self.changed:
            self.changed.wait_for(lambda: not self.taken or self.taken + needed <= self.total)
            self.taken += needed
        try:
            yield
        finally:
            with self.changed:
                self.taken -= needed
                self.changed.notify_all()


def split_rows(width: int, height: int) -> List[Tuple[int, int]]:
    """First row and end (exclusive) of each strip of an image."""
    rows = max(1, STRIP // max(width, 1))
    return [(top, min(top + rows, height)) for top in range(0, max(height, 1), rows)]


def scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map low..high to 0..255, uint8. `low` may be the greater one: DICOM allows negative slopes."""
    scaled = (values.astype(np.float64) - low) / ((high - low) or 1)
    return (scaled.clip(0, 1) * 255).round().astype(np.uint8)
