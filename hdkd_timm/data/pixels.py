"""What holds for all image files, whoever decodes them: the limit of their size, memory for them, and their values as
8 bits."""
import os
import threading
from contextlib import AbstractContextManager, contextmanager
from typing import BinaryIO, Callable, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
from PIL import Image

Reserve = Callable[[int], AbstractContextManager]  # waits until there is memory for so many pixels

MAX_PIXELS = 'HDKD_MAX_IMAGE_PIXELS'  # environment variable that sets Pillow's limit
STRIP = 2 ** 20  # pixels that are converted at once
PEAK = 20  # bytes a pixel, at most, while an image is read: of WebP, whose decoder keeps two images beside ours


class StoredValues(NamedTuple):
    """How a file stores its values, and which of them it uses.

    Args:
        mode: Pillow's mode, or 'DICOM'.
        bits: Bits a channel.
        low, high: Least and greatest value of its pixels: as stored if it is deep, else as shown, and of a sample of
            pixels if these are not dark.
        white: The value that is shown white.
    """
    mode: str
    bits: int
    low: float
    high: float
    white: float


def read_head(file: BinaryIO, number: int) -> bytes:
    """The first bytes of an open file, so many or all; its position is its start."""
    file.seek(0)
    head = file.read(number)
    file.seek(0)
    return head


def find_limit() -> Optional[int]:
    """The most pixels of an image, Pillow's limit; None for none."""
    text = os.environ.get(MAX_PIXELS)
    if text:
        if not (text.isdecimal() and int(text)):
            raise ValueError(f"{MAX_PIXELS} must be a number of pixels, 1 or more, got '{text}'")
        Image.MAX_IMAGE_PIXELS = int(text)  # Pillow's own checks are to agree
    return Image.MAX_IMAGE_PIXELS


def check_pixels(number: int, size: str = '') -> int:
    """The number of pixels, if that is within the limit."""
    limit = find_limit()
    if limit is not None and number > limit:
        raise ValueError(
            f'{size or f"{number:,}"} pixels, more than the limit of {limit:,}: shrink the image, or raise the limit by'
            f' the environment variable {MAX_PIXELS} (in Python: PIL.Image.MAX_IMAGE_PIXELS)')
    return number


def check_size(width: int, height: int) -> int:
    return check_pixels(width * height, f'{width} x {height}')


class MemoryBudget:
    """Memory that threads share. What is asked for is waited for; more than there is goes alone.

    Args:
        total: Bytes.
    """

    def __init__(self, total: int):
        self.total = total
        self.taken = 0
        self.changed = threading.Condition()

    @contextmanager
    def reserve(self, pixels: int) -> Iterator[None]:
        """Memory to read an image of so many pixels in."""
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
    """First and last row (excluded) of the strips of an image."""
    rows = max(1, STRIP // max(width, 1))
    return [(top, min(top + rows, height)) for top in range(0, max(height, 1), rows)]


def scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map low..high to black..white, 0 to 255. A negative slope of DICOM makes low the greater one."""
    scaled = (values.astype(np.float64) - low) / ((high - low) or 1)
    return (scaled.clip(0, 1) * 255).round().astype(np.uint8)
