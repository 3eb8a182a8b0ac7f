"""Read image files as a viewer shows them: 8 bits per channel, upright, nothing clipped silently.

Pillow decodes them, `convert` adds what its own conversion leaves out, pydicom reads DICOM files (the extra `dicom`)
and nibabel NIfTI volumes (the extra `nifti`). FILE#2 is the frame, page or slice 2 of a file, from 0. Without a number,
the first frame of an animation (GIF, APNG, WebP, AVIF) is the image; several pages of a TIFF file, frames of a DICOM
file or slices of a volume are an error.

Files are not trusted: formats that Pillow hands to other programs are not read, nor is anything but a regular file. The
size is compared with Pillow's limit (`PIL.Image.MAX_IMAGE_PIXELS`) before anything is decoded.
"""

import re
from contextlib import ExitStack, contextmanager, nullcontext
from functools import lru_cache
from typing import BinaryIO, Iterator, Optional, Tuple, Union

from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from .convert import convert_with_values, select_frame, upright_size
from .dicom import read_dicom, read_dicom_header
from .image_files import ImageFile, file_name, frame_of, is_dicom, open_seekable
from .nifti import is_nifti, nifti_size, read_nifti
from .pixels import Reserve, check_pixels, check_size, find_limit, read_head
from .value_range import StoredValues, measure_range

# Formats in which images of data sets are kept. Omitted are those that Pillow reads with another program (EPS, WMF),
# that hold documents, icons or textures (PSD, ICO, DDS), and that astronomers use (FITS)
FORMATS = ('PNG', 'JPEG', 'TIFF', 'WEBP', 'BMP', 'DIB', 'GIF', 'JPEG2000', 'AVIF', 'PPM', 'PCX', 'TGA')
IMG_MODES = {1: 'L', 3: 'RGB'}  # Pillow mode by number of channels


def read_image(file: ImageFile, mode: str = 'RGB', name: Optional[str] = None) -> Image.Image:
    """Read an image file.

    Args:
        file: Path, open binary file, or bytes.
        mode: Pillow mode of the result, 'RGB' or 'L' (greyscale).
        name: File name of an open file, for its extension.

    Returns:
        Image of 8 bits per channel. The greatest value that a deep image could hold is white: 65535, 4095 for a TIFF
        file of 12 bits, 1 for floating point. Transparent parts are black.

    Raises:
        ImportError: for DICOM files without pydicom, for NIfTI files without nibabel.
        OSError, ValueError and others raised by Pillow, pydicom and nibabel: if it cannot be read as a single image of
            finite pixels within the limit `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    with open_seekable(file) as opened:
        return _read(opened, mode, file_name(file, name))[0]


def convert_image(image: Image.Image, mode: str = 'RGB') -> Image.Image:
    """As `read_image`, from an image that Pillow opened or decoded.

    Raises:
        ValueError: if it is not a single image of finite pixels within the limit.
    """
    return convert_with_values(image, mode)[0]


def read_with_values(
    file: Union[ImageFile, Image.Image],
    mode: str = 'RGB',
    name: Optional[str] = None,
    reserve: Reserve = nullcontext,
) -> Tuple[Image.Image, StoredValues]:
    """As `read_image`, or `convert_image` for an image that Pillow opened; also returns how its values are stored."""
    if isinstance(file, Image.Image):
        image, values = convert_with_values(file, mode)
    else:
        with open_seekable(file) as opened:
            image, values = _read(opened, mode, file_name(file, name), reserve)
    return image, measure_range(image, values)


def image_size(file: ImageFile, name: Optional[str] = None) -> Tuple[int, int]:
    """Width and height of the image that `read_image` returns, from the header of the file alone."""
    with open_seekable(file) as opened:
        if is_dicom(opened, file_name(file, name)):
            header = read_dicom_header(opened, frame_of(opened))
            return header.Columns, header.Rows
        if is_nifti(opened, file_name(file, name)):
            return nifti_size(opened, frame_of(opened))
        with open_image(opened) as image:
            select_frame(image, frame_of(opened))
            return upright_size(image)


def _read(file: BinaryIO, mode: str, name: str, reserve: Reserve = nullcontext) -> Tuple[Image.Image, StoredValues]:
    if is_dicom(file, name):
        return read_dicom(file, mode, reserve, frame_of(file))
    if is_nifti(file, name):
        return read_nifti(file, mode, reserve, frame_of(file))
    with open_image(file, reserve) as image:
        return convert_with_values(image, mode, frame_of(file))


@contextmanager
def open_image(file: BinaryIO, reserve: Reserve = nullcontext) -> Iterator[Image.Image]:
    """An image file as Pillow opens it, not decoded yet, and within the size limit."""
    with ExitStack() as stack:
        webp_size = _find_webp_size(read_head(file, 30))
        if webp_size:
            stack.enter_context(reserve(check_size(*webp_size)))
        find_limit()
        try:
            image = stack.enter_context(Image.open(file, formats=_list_formats()))
        except Image.DecompressionBombError as e:
            check_pixels(int(re.search(r'\d+', str(e)).group()))
            raise
        except UnidentifiedImageError as e:
            formats = ', '.join((*_list_formats(), 'DICOM', 'NIfTI'))
            reason = _describe_tiff(file) or f'not an image in a supported format ({formats})'
            raise UnidentifiedImageError(reason) from e
        number = check_size(*image.size)
        if not webp_size:
            stack.enter_context(reserve(number))
        yield image


@lru_cache
def _list_formats() -> Tuple[str, ...]:
    """Those of `FORMATS` that the installed Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _find_webp_size(head: bytes) -> Optional[Tuple[int, int]]:
    """Width and height of a WebP file from its first 30 bytes, None for other files. Pillow allocates on opening it."""
    if head[:4] != b'RIFF' or head[8:12] != b'WEBP' or len(head) < 30:
        return None

    def number(start: int, end: int) -> int:
        return int.from_bytes(head[start:end], 'little')

    return {
        b'VP8X': (1 + number(24, 27), 1 + number(27, 30)),
        b'VP8L': (1 + (number(21, 25) & 0x3FFF), 1 + (number(21, 25) >> 14 & 0x3FFF)),
        b'VP8 ': (number(26, 28) & 0x3FFF, number(28, 30) & 0x3FFF),
    }.get(head[12:16])


def _describe_tiff(file: BinaryIO) -> str:
    """Why Pillow cannot read a TIFF file, '' if unknown or not a TIFF file."""
    try:
        head = read_head(file, 16)
        tags = TiffImagePlugin.ImageFileDirectory_v2(head if head[2] == 43 else head[:8])
        file.seek(tags.next)
        tags.load(file)
        bits = '/'.join(map(str, tags[TiffImagePlugin.BITSPERSAMPLE]))
    except Exception:  # broken files raise errors of many types
        return ''
    kind = {1: '', 2: ' signed', 3: ' floating-point'}.get(tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0], '')
    return (
        f'a TIFF file of {bits}{kind} bits per pixel (photometric interpretation'
        f' {tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION)}) that Pillow cannot read: save it with 8 or 16 bits'
    )
