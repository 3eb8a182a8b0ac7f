"""Slices of NIfTI volumes as viewers show them, read by nibabel, the extra `nifti`."""

import collections
import gzip
import logging
import math
import os
import threading
import zlib
from contextlib import contextmanager, nullcontext
from typing import Any, BinaryIO, DefaultDict, Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
from PIL import Image

from .image_files import NIFTI_EXTENSIONS, ImageFile, file_name, open_seekable, split_frame
from .pixels import Reserve, check_size, read_head, scale, split_rows
from .value_range import StoredValues

HEADER = 544  # bytes of the longer of the two headers, with the flag of its extensions
GZIP, NIFTI_1, NIFTI_2 = b'\x1f\x8b', b'n+1\0', b'n+2\0'  # the first bytes, and those at 344 and at 4

SEVERE = 40  # level of what nibabel finds wrong in a header that makes it useless
_QUIET = logging.Logger('nibabel', logging.CRITICAL + 1)  # it would repeat for every slice what does not matter here


class Volume(NamedTuple):
    """An open volume whose values are read slice by slice.

    Args:
        stream: The file, decompressed as it is read.
        slices: nibabel's proxy of its values, (X, Y, Z) as stored.
        transpose: Whether the columns of the displayed image are the second stored axis, not the first.
        flip: Whether the stored order is reversed along the displayed rows and columns.
        window: Least and greatest value to display, None if the file names none.
        bits: Bits of a stored value.
    """

    stream: BinaryIO
    slices: Any
    transpose: bool
    flip: Tuple[bool, bool]
    window: Optional[Tuple[float, float]]
    bits: int

    def size(self) -> Tuple[int, int]:
        """Width and height of a slice as displayed."""
        width, height = self.slices.shape[:2]
        return (height, width) if self.transpose else (width, height)

    def read(self, index: int) -> np.ndarray:
        """The values of a slice as stored, slope and intercept applied, (X, Y)."""
        values = np.asarray(self.slices[..., index])
        if values.dtype.kind == 'f' and not np.isfinite(values).all():
            raise ValueError(f'values that are not finite in slice {index}')
        return values

    def upright(self, values: np.ndarray) -> np.ndarray:
        """A slice as displayed, (H, W)."""
        values = values if self.transpose else values.T
        return values[:: -1 if self.flip[0] else 1, :: -1 if self.flip[1] else 1]


def is_nifti(file: ImageFile, name: Optional[str] = None) -> bool:
    """Whether this is a NIfTI file, by its suffix or its content."""
    if split_frame(file_name(file, name))[0].lower().endswith(NIFTI_EXTENSIONS):
        return True
    with open_seekable(file) as opened:
        head = read_head(opened, HEADER)
    if head[:2] == GZIP:
        try:
            head = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(head, HEADER)
        except zlib.error:
            return False
    return _has_magic(head)


def _has_magic(head: bytes) -> bool:
    return head[344:348] == NIFTI_1 or head[4:8] == NIFTI_2


def nifti_size(file: BinaryIO, index: Optional[int] = None) -> Tuple[int, int]:
    """Width and height of a slice as displayed, from the header.

    Raises:
        ImportError, ValueError and others raised by nibabel: as `read_nifti`.
    """
    with _open_volume(file) as volume:
        _select_slice(volume, index)
        return volume.size()


def read_nifti(
    file: BinaryIO, mode: str, reserve: Reserve, index: Optional[int] = None
) -> Tuple[Image.Image, StoredValues]:
    """Read a slice of a NIfTI volume as viewers show it.

    Slices are counted along the third stored axis. They are displayed by the axes that the file's affine names: the
    patient's right on the left of the image, anterior or superior at the top (in a sagittal slice, anterior on the
    left). White is the upper end of the file's display range (`cal_min`, `cal_max`), else the greatest value of the
    volume: slices of one volume can be compared.

    Args:
        file: The file, `.nii` or `.nii.gz`.
        mode: Pillow mode of the result, 'RGB' or 'L'.
        reserve: Context manager that waits for the memory for that many pixels.
        index: Slice, from 0; None for a volume of one.

    Returns:
        The image, and how its values are stored; `low` and `high` are NaN (not measured).

    Raises:
        ImportError: without nibabel.
        ValueError and others raised by nibabel: if it is not a grey volume of finite values, has no such slice, or the
            slice exceeds the size limit.
    """
    with _open_volume(file) as volume:
        index = _select_slice(volume, index)
        width, height = volume.size()
        with reserve(check_size(width, height)):
            low, high = _find_display_range(file, volume)
            values = volume.upright(volume.read(index))
            result = Image.new(mode, (width, height))
            for first, last in split_rows(width, height):
                result.paste(Image.fromarray(scale(values[first:last], low, high)).convert(mode), (0, first))
    return result, StoredValues('NIfTI', volume.bits, np.nan, np.nan, 255)


# -- opening -----------------------------------------------------------------------------------------------------------


@contextmanager
def _open_volume(file: BinaryIO) -> Iterator[Volume]:
    """The volume of an open file. It is decompressed as it is read, never as a whole."""
    try:
        import nibabel
        from nibabel.arrayproxy import ArrayProxy
    except ImportError as e:
        raise ImportError("NIfTI files need nibabel: pip install 'hdkd-timm[nifti]'.") from e
    is_compressed = read_head(file, 2) == GZIP
    with gzip.GzipFile(fileobj=file) if is_compressed else nullcontext(file) as opened:
        head = opened.read(HEADER)
        if not _has_magic(head):
            raise ValueError('not a NIfTI file of one part (.nii, .nii.gz): nibabel.save converts others')
        kind = nibabel.Nifti1Header if head[344:348] == NIFTI_1 else nibabel.Nifti2Header
        header = kind(head[: kind.sizeof_hdr], check=False)
        header.check_fix(_QUIET, error_level=SEVERE)
        if header.get_data_offset() < kind.sizeof_hdr + 4:
            raise ValueError(f'its voxels begin at byte {header.get_data_offset()}, within the header')
        transpose, flip = _find_axes(header)
        low, high = float(header['cal_min']), float(header['cal_max'])
        shape = _find_shape(header)
        check_size(*shape[:2])
        spec = (shape, header.get_data_dtype(), header.get_data_offset(), *_find_scaling(header))
        yield Volume(
            opened,
            ArrayProxy(opened, spec, mmap=False),
            transpose,
            flip,
            (low, high) if low < high and np.isfinite([low, high]).all() else None,
            8 * header.get_data_dtype().itemsize,
        )


def _find_shape(header: Any) -> Tuple[int, int, int]:
    """Shape of the volume, of which trailing axes of one element are left out.

    Raises:
        ValueError: if it is not a volume of grey values.
    """
    shape = list(map(int, header.get_data_shape()))
    if header.get_data_dtype().kind not in 'iuf':
        raise ValueError(f'values of type {header.get_data_dtype()}, expected one real number for each voxel')
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) > 3:
        way_out = ', nibabel.four_to_three saves its volumes one by one' if len(shape) == 4 else ''
        raise ValueError(f'{len(shape)} axes, {" x ".join(map(str, shape))}, expected three{way_out}')
    width, height, slices = shape + [1] * (3 - len(shape))
    if not (width and height and slices):
        raise ValueError(f'a volume without voxels, {width} x {height} x {slices}')
    return width, height, slices


def _find_scaling(header: Any) -> Tuple[float, float]:
    slope, intercept = header.get_slope_inter()
    return (1.0 if slope is None else slope), (0.0 if intercept is None else intercept)


def _find_axes(header: Any) -> Tuple[bool, Tuple[bool, bool]]:
    """`Volume.transpose` and `Volume.flip` from the axes that the affine names.

    Raises:
        ValueError: if the affine is singular.
    """
    from nibabel.orientations import io_orientation

    orientation = io_orientation(header.get_best_affine())  # of each stored axis: patient axis (R, A, S), direction
    if not np.isfinite(orientation).all():
        raise ValueError('its affine (qform, sform) is singular, so the axes are unknown: set one with nibabel')
    (first, first_sign), (second, second_sign) = orientation[:2]
    # rows are the later patient axis, columns the earlier one, and both run against it: to L, P and I
    transpose = bool(first > second)
    signs = (first_sign, second_sign) if transpose else (second_sign, first_sign)
    return transpose, (bool(signs[0] > 0), bool(signs[1] > 0))


def _select_slice(volume: Volume, index: Optional[int]) -> int:
    """The slice that is meant.

    Raises:
        ValueError: if there is none, or one of several is not named.
    """
    number = volume.slices.shape[2]
    if index is None and number > 1:
        raise ValueError(f'{number} slices, expected one image: name one as FILE#0, FILE#1, ...')
    if index is not None and index >= number:
        raise ValueError(f'no slice {index}, it has {number}, numbered from 0')
    return index or 0


# -- range of values ---------------------------------------------------------------------------------------------------

# least and greatest value of volumes on disk, which are read to their end for the first slice, by device, inode, time
# and size; a lock for each, so that threads do not all read it
_ranges: Dict[Tuple[int, ...], Tuple[float, float]] = {}
_locks: DefaultDict[Tuple[int, ...], threading.Lock] = collections.defaultdict(threading.Lock)


def _find_display_range(file: BinaryIO, volume: Volume) -> Tuple[float, float]:
    """Values of black and white: the window of the file, else the least and greatest value of the whole volume."""
    try:
        stat = os.fstat(file.fileno())
    except (AttributeError, OSError):  # a file in memory, or inside another one
        return _read_whole(volume)
    key = (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size)
    with _locks[key]:
        if key not in _ranges:
            _ranges[key] = _read_whole(volume)
        return _ranges[key]


def _read_whole(volume: Volume) -> Tuple[float, float]:
    """As `_find_display_range`; also reads a compressed file to its end, where the checksum is.

    Raises:
        ValueError: if the values are not finite, or their difference.
    """
    ends: List[float] = list(volume.window or ())
    for index in range(0 if volume.window else volume.slices.shape[2]):
        values = volume.read(index)
        ends += [float(values.min()), float(values.max())]
    if isinstance(volume.stream, gzip.GzipFile):
        while volume.stream.read(2**20):
            pass
    low, high = min(ends), max(ends)
    if not math.isfinite(high - low):
        raise ValueError(f'values from {low:g} to {high:g}, whose difference is not finite')
    return low, high
