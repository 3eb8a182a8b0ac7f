"""Pillow images as a viewer shows them: 8 bits per channel, upright, transparency on black, nothing clipped silently.

Adds what Pillow's `convert` leaves out: 9 to 16 bits are scaled instead of clipped, transparent colours are compared at
full depth, and the EXIF orientation is applied. Large images are converted in strips, which bounds the memory.
"""

from functools import lru_cache, partial
from typing import Callable, Optional, Tuple

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageOps, TiffImagePlugin

from .pixels import check_size, scale, split_rows
from .value_range import StoredValues


def convert_with_values(image: Image.Image, mode: str, frame: Optional[int] = None) -> Tuple[Image.Image, StoredValues]:
    """Convert an image that Pillow opened or decoded.

    Args:
        image: The image, which is decoded if it is not yet.
        mode: Pillow mode of the result, 'RGB' or 'L' (greyscale).
        frame: Frame or page of a file of several, from 0.

    Returns:
        The converted image, and how its values are stored; `low` and `high` are NaN (not measured) for 8 bits.

    Raises:
        ValueError: if it is not a single image of finite pixels within the size limit.
    """
    select_frame(image, frame)
    upright = _load_upright(image)
    bits, white = _find_white(image)
    if image.mode.startswith(('I', 'F')):
        # Pillow inverts only 8 bits. A file without the tag is read as Pillow reads it
        white_is_zero = image.format == 'TIFF' and not _tiff_tag(image, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0)
        return _convert_deep(upright, mode, bits, white, white_is_zero)
    values = StoredValues(image.mode, bits, np.nan, np.nan, white)
    if image.mode in ('RGBA', 'LA', 'PA', 'RGBa', 'La') or 'transparency' in image.info:
        return _convert_strips(upright, _composite_on_black, mode), values
    if mode == 'L' and image.mode not in ('L', '1'):  # Pillow cannot convert every mode to grey directly
        return _convert_strips(upright, lambda strip: strip.convert('RGB'), mode), values
    return upright.convert(mode), values


def upright_size(image: Image.Image) -> Tuple[int, int]:
    """Width and height of an opened image after its EXIF orientation is applied."""
    if _exif_orientation(image) not in (5, 6, 7, 8):
        return image.size
    # for TIFF, whether Pillow's size is upright already depends on where it found the orientation
    width = _tiff_tag(image, TiffImagePlugin.IMAGEWIDTH, image.width)
    return _tiff_tag(image, TiffImagePlugin.IMAGELENGTH, image.height), width


# -- loading -----------------------------------------------------------------------------------------------------------


def select_frame(image: Image.Image, frame: Optional[int] = None) -> None:
    """Go to a frame or page of an opened file, from 0.

    Raises:
        ValueError: if there is no such frame, or none is named of a TIFF file of several pages.
    """
    if frame is not None:
        number = getattr(image, 'n_frames', 1)
        if frame >= number:
            raise ValueError(f'no frame {frame}, it has {number}, numbered from 0')
        image.seek(frame)
    elif image.format == 'TIFF' and getattr(image, 'is_animated', False):  # of animations, the first frame is read
        raise ValueError('several pages, expected one image: name one as FILE#0, FILE#1, ...')


def _load_upright(image: Image.Image) -> Image.Image:
    """Decode an opened image and apply its EXIF orientation.

    Raises:
        ValueError: if it is too large.
    """
    check_size(*image.size)
    key = image.info.get('transparency')
    lower_mask = _prepare_transparent_colour(image)
    image.load()
    if lower_mask is not None:
        del image.info['transparency']
        upper_mask = _convert_strips(image, partial(_mask_colour, colour=np.array(key) >> 8), '1')
        image.paste(0, mask=ImageChops.logical_and(lower_mask, upper_mask))
    is_signed = image.mode == 'L' and _tiff_tag(image, TiffImagePlugin.SAMPLEFORMAT, 1) == 2
    if is_signed and image.getextrema()[1] > 127:  # Pillow reads -1 as 255
        raise ValueError('negative pixel values (signed, 8 bit), expected 0 to 127: save it with 8 or 16 bits')
    # exif_transpose copies images that are upright
    return ImageOps.exif_transpose(image) if _exif_orientation(image) in range(2, 9) else image


def _exif_orientation(image: Image.Image) -> int:
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _tiff_tag(image: Image.Image, tag: int, default: int) -> int:
    """A tag of a TIFF file, for its first channel; the default for other formats."""
    value = image.tag_v2.get(tag, default) if image.format == 'TIFF' and hasattr(image, 'tag_v2') else default
    return value[0] if isinstance(value, tuple) else value


# -- conversion --------------------------------------------------------------------------------------------------------


def _convert_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image], mode: str) -> Image.Image:
    """Convert an image strip by strip: as a whole it would need several copies of itself."""
    strips = split_rows(*image.size)
    if len(strips) == 1:
        return convert(image).convert(mode)
    result = Image.new(mode, image.size)
    for top, bottom in strips:
        result.paste(convert(image.crop((0, top, image.width, bottom))).convert(mode), (0, top))
    return result


def _find_white(image: Image.Image) -> Tuple[int, float]:
    """Bits per channel, and the value that is white."""
    if image.mode == '1':
        return 1, 255
    if image.mode == 'F':
        return 32, 1
    if not image.mode.startswith('I'):
        return 8, 255
    bits = _tiff_tag(image, TiffImagePlugin.BITSPERSAMPLE, 32 if image.mode == 'I' else 16)
    if 8 < bits < 16:
        return bits, 2**bits - 1
    is_signed = bits == 16 and _tiff_tag(image, TiffImagePlugin.SAMPLEFORMAT, 1) == 2
    return bits, 2**15 - 1 if is_signed else 2**16 - 1


@lru_cache(16)
def _scale_table(low: float, high: float) -> np.ndarray:
    """`scale` of every 16-bit value."""
    return scale(np.arange(2**16), low, high)


def _convert_deep(
    image: Image.Image,
    mode: str,
    bits: int,
    white: float,
    white_is_zero: bool,
) -> Tuple[Image.Image, StoredValues]:
    """Scale an image of more than 8 bits per channel to 8 bits; also returns its stored values."""
    extrema = [
        (pixels.min(), pixels.max())
        for pixels in (np.asarray(image.crop((0, top, image.width, bottom))) for top, bottom in split_rows(*image.size))
    ]
    low, high = np.min(extrema), np.max(extrema)  # NaN if one is
    if not (low >= 0 and high <= white):
        raise ValueError(
            f"pixel values of mode '{image.mode}' from {low:g} to {high:g}, expected 0 to {white:g}: save it with 8 or"
            ' 16 bits'
        )
    black, full = (white, 0) if white_is_zero else (0, white)
    key = image.info.get('transparency')  # the transparent grey of a PNG file

    def convert(strip: Image.Image) -> Image.Image:
        pixels = np.asarray(strip)
        shown = scale(pixels, black, full) if image.mode == 'F' else _scale_table(black, full)[pixels]
        return Image.fromarray(shown if key is None else np.where(pixels == key, np.uint8(0), shown))

    return _convert_strips(image, convert, mode), StoredValues(image.mode, bits, float(low), float(high), white)


# -- transparency ------------------------------------------------------------------------------------------------------


def _composite_on_black(image: Image.Image) -> Image.Image:
    image = image.convert('RGBA')
    return Image.alpha_composite(Image.new('RGBA', image.size, 'black'), image)


def _find_raw_mode(image: Image.Image) -> str:
    """Layout of the pixels in a PNG file, '' once it is decoded."""
    return image.tile[0][3] if image.format == 'PNG' and getattr(image, 'tile', None) else ''


def _prepare_transparent_colour(image: Image.Image) -> Optional[Image.Image]:
    """Scale the transparent colour of a PNG file to 8 bits, as the pixels will be: Pillow gives it as it is stored.

    Of 3 x 16 bits Pillow keeps only the upper bytes, by which other colours equal the transparent one.

    Returns:
        For 3 x 16 bits, the mask of the pixels whose lower bytes match (found by reading them in the other byte order);
        the caller then removes the colour from the image's `info`. None in all other cases.
    """
    key, raw_mode = image.info.get('transparency'), _find_raw_mode(image)
    if image.mode == 'L' and isinstance(key, int):
        bits = {'L;2': 2, 'L;4': 4}.get(raw_mode, 8)
        image.info['transparency'] = (key & 2**bits - 1) * 255 // (2**bits - 1)
    if image.mode != 'RGB' or not isinstance(key, tuple):
        return None
    if raw_mode != 'RGB;16B':
        is_deep = max(key) > 255  # of an image decoded before, whose lower bytes are lost
        image.info['transparency'] = tuple(value >> 8 if is_deep else value for value in key)
        return None
    lower = Image.open(image.fp, formats=('PNG',))
    codec, extents, offset, _ = lower.tile[0]
    lower.tile = [(codec, extents, offset, 'RGB;16L')]
    del lower.info['transparency']
    lower.load()
    return _convert_strips(lower, partial(_mask_colour, colour=np.array(key) & 255), '1')


def _mask_colour(image: Image.Image, colour: np.ndarray) -> Image.Image:
    """Mask of the pixels of this colour, (3,)."""
    return Image.fromarray((np.asarray(image) == colour).all(axis=-1))
