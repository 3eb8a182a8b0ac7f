"""One pass over the images of a data set: size, mode, hashes and thumbnail of each."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import BinaryIO, List, NamedTuple, Optional

import numpy as np
from PIL import Image

from ..data.image_io import read_with_values
from ..data.inspection import hash_file
from ..data.pixels import MemoryBudget, Reserve
from ..data.samples import FileReader, SampleDataset, Samples
from ..data.sources.tars import TarReader
from ..data.value_range import StoredValues
from ..utils.memory import available_memory
from .duplicates import make_thumbnail


class ImageSummary(NamedTuple):
    """Properties of an image; only `error` is set if it cannot be read.

    Args:
        error: Reason why it cannot be read.
        width, height: Size in pixels.
        mode: Pillow mode, 'DICOM' or 'NIfTI'.
        bits: Bits per channel.
        file_hash: SHA-256 of the file; empty for data sets of decoded images.
        pixel_hash: `hash_pixels` of the image, RGB.
        thumbnail: Of `make_thumbnail`.
        values: Range of the stored values.
    """

    error: str = ''
    width: int = 0
    height: int = 0
    mode: str = ''
    bits: int = 0
    file_hash: str = ''
    pixel_hash: str = ''
    thumbnail: Optional[np.ndarray] = None
    values: Optional[StoredValues] = None


def hash_pixels(image: Image.Image) -> str:
    """SHA-256 of size and pixels: equal for equal images in different files."""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def _summarize(image: Image.Image, values: StoredValues, file_hash: str = '') -> ImageSummary:
    return ImageSummary(
        '', *image.size, values.mode, values.bits, file_hash, hash_pixels(image), make_thumbnail(image), values
    )


def _summarize_decoded(image: Image.Image) -> ImageSummary:
    return _summarize(*read_with_values(image))


def _summarize_file(file: BinaryIO, name: str, reserve: Reserve = nullcontext) -> ImageSummary:
    _, file_hash = hash_file(file)
    return _summarize(*read_with_values(file, name=name, reserve=reserve), file_hash)


def summarize_images(samples: Samples) -> List[ImageSummary]:
    """Summary of each image, (N,); each is read once."""
    dataset = SampleDataset(samples)
    summarize_file = partial(_summarize_file, reserve=MemoryBudget(available_memory() // 2).reserve)

    def summarize(i: int) -> ImageSummary:
        try:
            return dataset.open(i, _summarize_decoded, summarize_file)
        except ValueError as e:
            return ImageSummary(error=f'{type(e.__cause__).__name__}: {e.__cause__}')

    if not isinstance(samples.reader, (FileReader, TarReader)):  # other readers are not thread-safe
        return [summarize(i) for i in range(len(samples))]
    with ThreadPoolExecutor() as pool:
        return list(pool.map(summarize, range(len(samples))))
