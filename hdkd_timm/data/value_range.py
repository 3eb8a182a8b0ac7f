"""The range of values that an image file can store, and the part of it that the image uses."""

import math
import struct
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from PIL import Image

# An image whose greatest value is at most DARK of white is nearly black. If no image of a data set exceeds DARK_SET of
# white, all of them count as nearly black
DARK, DARK_SET = 1 / 8, 1 / 4

# formats that say themselves which values are black and white, and what sets these
WAYS_OUT = {
    'DICOM': 'set the window of the files (WindowCenter, WindowWidth), or clip the values that few pixels have',
    'NIfTI': 'set the display range of the files (cal_min, cal_max), or clip the values that few voxels have',
}


class StoredValues(NamedTuple):
    """How a file stores its values, and which of them it uses.

    Args:
        mode: Pillow's mode, 'DICOM' or 'NIfTI'.
        bits: Bits per channel.
        low, high: Least and greatest pixel value: as stored if the image has more than 8 bits, else as displayed (and
            of a sample of the pixels if these are neither dark nor blank).
        white: The value that is displayed as white.
    """

    mode: str
    bits: int
    low: float
    high: float
    white: float


PACKED = '<8sqddd'  # StoredValues as a struct, of as many bytes as five integers of 64 bits


def pack_values(values: Optional[StoredValues]) -> np.ndarray:
    """Stored values as integers, (5,), which can be part of a loader's batch; zeros for None."""
    if values is None:
        return np.zeros(5, np.int64)
    mode, *numbers = values
    return np.frombuffer(struct.pack(PACKED, mode.encode(), *numbers), np.int64).copy()  # torch wants it writable


def unpack_values(packed: np.ndarray) -> Optional[StoredValues]:
    """Inverse of `pack_values`."""
    if not packed.any():
        return None
    mode, *numbers = struct.unpack(PACKED, packed.astype(np.int64).tobytes())
    return StoredValues(mode.rstrip(b'\0').decode(), *numbers)


def _find_extrema(image: Image.Image) -> Tuple[int, int]:
    """Least and greatest value of any channel of an 8-bit image."""
    extrema = image.getextrema()
    flat = extrema if len(image.getbands()) == 1 else sum(extrema, ())
    return min(flat), max(flat)


def measure_range(image: Image.Image, values: StoredValues) -> StoredValues:
    """Fill in the least and greatest value of an 8-bit image, from a sample of its pixels if that is neither dark nor
    blank."""
    if not math.isnan(values.low):
        return values
    low, high = _find_extrema(image.resize((32, 32), Image.Resampling.NEAREST))
    if high <= DARK_SET * values.white or low == high:
        low, high = _find_extrema(image)  # for all images this would take a fifth of the time of reading them
    return values._replace(low=float(low), high=float(high))


def _find_dark(values: Sequence[Optional[StoredValues]]) -> List[int]:
    """Indices of the images that are nearly black, in ascending order."""
    kinds: Dict[Tuple[str, float], List[int]] = {}
    for i, stored in enumerate(values):
        if stored is not None:
            kinds.setdefault((stored.mode, stored.white), []).append(i)
    dark: List[int] = []
    for indices in kinds.values():
        # a single image may well be dark; a whole data set is suspicious at a higher brightness already
        share = DARK if max(values[i].high for i in indices) > DARK_SET * values[indices[0]].white else DARK_SET
        # an image of a single value is blank, whatever its range: see `_describe_blank`
        dark += [i for i in indices if values[i].low < values[i].high <= share * values[i].white]
    return sorted(dark)


def is_suspicious(values: Optional[StoredValues]) -> bool:
    """Whether `describe_ranges` may have something to say about an image."""
    return values is not None and (values.high <= DARK_SET * values.white or values.low == values.high)


def describe_ranges(values: Sequence[Optional[StoredValues]], names: Sequence[str]) -> str:
    """A warning about images that use so little of their value range that they appear nearly black, or are blank.

    Args:
        values: Stored values of each image, None if it cannot be read, (N,).
        names: Names of the images, (N,).

    Returns:
        The warning, '' if there are no such images.
    """
    return ' '.join(filter(None, [_describe_dark(values, names), _describe_blank(values, names)]))


def _describe_blank(values: Sequence[Optional[StoredValues]], names: Sequence[str]) -> str:
    blank = [i for i, stored in enumerate(values) if stored is not None and stored.low == stored.high]
    if not blank:
        return ''
    return (
        f'{len(blank):,} of {len(values):,} images are blank, with one value in all pixels (fully transparent images'
        f" are black), for example '{names[blank[0]]}'."
    )


def _describe_dark(values: Sequence[Optional[StoredValues]], names: Sequence[str]) -> str:
    dark = _find_dark(values)
    if not dark:
        return ''
    first = values[dark[0]]
    same_kind = [values[i] for i in dark if (values[i].mode, values[i].white) == (first.mode, first.white)]
    low, high = min(v.low for v in same_kind), max(v.high for v in same_kind)
    way_out = WAYS_OUT.get(
        first.mode,
        f'multiply the values of all images by the same factor (at most {first.white / high:.4g}) and save them again',
    )
    subset = f'{len(same_kind):,} of them have ' if len(same_kind) < len(dark) else ''
    return (
        f'{len(dark):,} of {len(values):,} images use so little of their value range that they appear nearly black:'
        f' {subset}values {low:g} to {high:g} of 0 to {first.white:g} ({first.mode}, {first.bits} bit), for example'
        f" '{names[dark[0]]}'. If that is not intended, {way_out}."
    )
