"""Image files as a person sees them: 8 bits a channel, upright, nothing clipped in silence.

Pillow decodes; this adds what its `convert` leaves out. Grey of 9 to 16 bits is scaled, not clipped; transparency lies
on black; the rotation that EXIF tells is done. DICOM files are read by pydicom, the extra `dicom`. Of an animation
(GIF, APNG, WebP, AVIF) the first frame is the image; several pages of a TIFF file or frames of a DICOM file are an
error.

Files are not trusted: formats that Pillow hands to other programs are not read, nor what is no regular file. Sizes are
compared with Pillow's limit (`PIL.Image.MAX_IMAGE_PIXELS`) before anything is decoded, and deep images are converted in
strips.
"""
import hashlib
import io
import math
import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageOps, TiffImagePlugin, UnidentifiedImageError

from ..utils.memory import available_memory
from .dicom import read_dicom, read_dicom_header
from .pixels import (
    MemoryBudget,
    Reserve,
    StoredValues,
    check_pixels,
    check_size,
    find_limit,
    read_head,
    scale,
    split_rows,
)

ImageFile = Union[str, Path, BinaryIO, bytes]

# The formats in which images of data sets are kept, and their suffixes. Not among them is what Pillow reads by another
# program (EPS, WMF), what holds documents, icons or textures (PSD, ICO, DDS) and what astronomers use (FITS)
FORMATS = ('PNG', 'JPEG', 'TIFF', 'WEBP', 'BMP', 'DIB', 'GIF', 'JPEG2000', 'AVIF', 'PPM', 'PCX', 'TGA')
DICOM_EXTENSIONS = ('.dcm', '.dicom')
IMG_EXTENSIONS = (
    '.png', '.apng', '.jpg', '.jpeg', '.jpe', '.jfif', '.mpo', '.tif', '.tiff', '.webp', '.bmp', '.dib', '.gif',
    '.jp2', '.j2k', '.jpc', '.jpf', '.jpx', '.j2c', '.avif', '.ppm', '.pgm', '.pbm', '.pnm', '.pfm', '.pcx', '.tga',
    *DICOM_EXTENSIONS)

# Files that lie beside images and are none, and folders of systems and programs
SIDE_EXTENSIONS = (
    '.csv', '.tsv', '.txt', '.json', '.jsonl', '.xml', '.yaml', '.yml', '.toml', '.md', '.rst', '.html', '.htm', '.pdf',
    '.xlsx', '.xls', '.ods', '.doc', '.docx', '.db', '.ini', '.log', '.py', '.ipynb', '.sh', '.md5', '.sha256', '.bib')
SIDE_NAMES = ('thumbs.db', 'desktop.ini', '__macosx', 'license', 'licence', 'readme', 'dicomdir')

# An image whose greatest value is at most this share of white is read nearly black; and one of a data set in which all
# are that dark
DARK, DARK_SET = 1 / 8, 1 / 4

IMG_MODES = {1: 'L', 3: 'RGB'}  # Pillow mode by number of channels


class ImageRecord(NamedTuple):
    """What one reading of an image file tells.

    Args:
        error: Why it cannot be read, '' if it can.
        size: Bytes of the file; 0 where there is none, but a decoded image.
        digest: SHA-256 of these bytes, in hexadecimal digits; '' where there are none.
        values: How its values are stored, None if it cannot be read.
    """
    error: str = ''
    size: int = 0
    digest: str = ''
    values: Optional[StoredValues] = None


# -- files -------------------------------------------------------------------------------------------------------------

def is_side_file(name: str) -> bool:
    """Is this the name of a file, or folder, that is no image of a data set: hidden, of a system, a table, a text?"""
    name = os.path.basename(name).lower()
    return name.startswith('.') or name in SIDE_NAMES or name.endswith(SIDE_EXTENSIONS)


def is_image_file(path: Union[str, Path]) -> bool:
    """Is this an image file, by its suffix, or a DICOM file by its content?"""
    return str(path).lower().endswith(IMG_EXTENSIONS) or is_dicom(path)


def is_dicom(file: ImageFile, name: Optional[str] = None) -> bool:
    """Is this a DICOM file, by its suffix or by its preamble (128 bytes, then 'DICM')?"""
    if _name_of(file, name).lower().endswith(DICOM_EXTENSIONS):
        return True
    with _opened(file) as opened:
        return read_head(opened, 132)[128:] == b'DICM'


def open_image_file(path: Union[str, Path]) -> BinaryIO:
    """Open a file to read it.

    Raises:
        OSError: if it cannot be read; if it is a pipe, socket or device, which could block or never end.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # open() tells of folders
        kind = next((kind for is_kind, kind in (
            (stat.S_ISFIFO, 'named pipe'), (stat.S_ISSOCK, 'socket'), (stat.S_ISCHR, 'device'),
            (stat.S_ISBLK, 'device')) if is_kind(mode)), 'special file')
        raise OSError(f"'{path}' is a {kind}, expected an image file")
    return open(path, 'rb')


@contextmanager
def _opened(file: ImageFile) -> Iterator[BinaryIO]:
    """The file as one that is open and can be read again from its start."""
    if isinstance(file, (str, Path)):
        with open_image_file(file) as opened:
            yield opened
    elif isinstance(file, bytes):
        yield io.BytesIO(file)
    else:
        yield file if getattr(file, 'seekable', lambda: True)() else io.BytesIO(file.read())


def _name_of(file: ImageFile, name: Optional[str]) -> str:
    return str(name or (file if isinstance(file, (str, Path)) else getattr(file, 'name', '')))


# -- Pillow ------------------------------------------------------------------------------------------------------------

@lru_cache
def _list_formats() -> Tuple[str, ...]:
    """Those of `FORMATS` that this Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _find_webp_size(head: bytes) -> Optional[Tuple[int, int]]:
    """Width and height of a WebP file by its first 30 bytes, None of others. Pillow takes its memory on opening one."""
    if head[:4] != b'RIFF' or head[8:12] != b'WEBP' or len(head) < 30:
        return None

    def number(start: int, end: int) -> int:
        return int.from_bytes(head[start:end], 'little')

    return {
        b'VP8X': (1 + number(24, 27), 1 + number(27, 30)),
        b'VP8L': (1 + (number(21, 25) & 0x3fff), 1 + (number(21, 25) >> 14 & 0x3fff)),
        b'VP8 ': (number(26, 28) & 0x3fff, number(28, 30) & 0x3fff),
    }.get(head[12:16])


def _describe_tiff(file: BinaryIO) -> str:
    """What Pillow cannot read of a TIFF file, as far as that can be told."""
    try:
        head = read_head(file, 16)
        tags = TiffImagePlugin.ImageFileDirectory_v2(head if head[2] == 43 else head[:8])
        file.seek(tags.next)
        tags.load(file)
        bits = '/'.join(map(str, tags[TiffImagePlugin.BITSPERSAMPLE]))
    except Exception:  # of the many that broken files give
        return ''
    kind = {1: '', 2: ' signed', 3: ' floating-point'}.get(tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0], '')
    return (
        f'a TIFF file of {bits}{kind} bits a pixel (photometric interpretation'
        f' {tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION)}) that Pillow cannot read: save it with 8 or 16 bits')


@contextmanager
def open_image(file: BinaryIO, reserve: Reserve = nullcontext) -> Iterator[Image.Image]:
    """An image file as Pillow opens it, not decoded yet, of a size within the limit."""
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
            reason = _describe_tiff(file) or f"no image of a format that is read ({', '.join(_list_formats())}, DICOM)"
            raise UnidentifiedImageError(reason) from e
        number = check_size(*image.size)
        if not webp_size:
            stack.enter_context(reserve(number))
        yield image


def _by_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image], mode: str) -> Image.Image:
    """An image converted strip by strip, where the whole would take several copies of it."""
    strips = split_rows(*image.size)
    if len(strips) == 1:
        return convert(image).convert(mode)
    result = Image.new(mode, image.size)
    for top, bottom in strips:
        result.paste(convert(image.crop((0, top, image.width, bottom))).convert(mode), (0, top))
    return result


@lru_cache(16)
def _scale_table(low: float, high: float) -> np.ndarray:
    """`scale` of each value of 16 bits."""
    return scale(np.arange(2 ** 16), low, high)


def _tiff_tag(image: Image.Image, tag: int, default: int) -> int:
    """A tag of a TIFF file, of its first channel; the default of other images."""
    value = image.tag_v2.get(tag, default) if image.format == 'TIFF' and hasattr(image, 'tag_v2') else default
    return value[0] if isinstance(value, tuple) else value


def _find_white(image: Image.Image) -> Tuple[int, float]:
    """Bits of a channel, and the value that is white."""
    if image.mode == '1':
        return 1, 255
    if image.mode == 'F':
        return 32, 1
    if not image.mode.startswith('I'):
        return 8, 255
    bits = _tiff_tag(image, TiffImagePlugin.BITSPERSAMPLE, 32 if image.mode == 'I' else 16)
    if 8 < bits < 16:
        return bits, 2 ** bits - 1
    is_signed = bits == 16 and _tiff_tag(image, TiffImagePlugin.SAMPLEFORMAT, 1) == 2
    return bits, 2 ** 15 - 1 if is_signed else 2 ** 16 - 1


def _convert_deep(
        image: Image.Image,
        mode: str,
        bits: int,
        white: float,
        white_is_zero: bool,
) -> Tuple[Image.Image, StoredValues]:
    """An image of more than 8 bits as one of 8 bits, and its values."""
    ends = [(pixels.min(), pixels.max()) for pixels in (
        np.asarray(image.crop((0, top, image.width, bottom))) for top, bottom in split_rows(*image.size))]
    low, high = np.min(ends), np.max(ends)  # NaN if one is
    if not (low >= 0 and high <= white):
        raise ValueError(
            f"pixels of mode '{image.mode}' from {low:g} to {high:g}, expected 0 to {white:g}: save it with 8 or 16"
            ' bits')
    black, full = (white, 0) if white_is_zero else (0, white)
    key = image.info.get('transparency')  # of a PNG, the grey that is transparent

    def convert(strip: Image.Image) -> Image.Image:
        pixels = np.asarray(strip)
        shown = scale(pixels, black, full) if image.mode == 'F' else _scale_table(black, full)[pixels]
        return Image.fromarray(shown if key is None else np.where(pixels == key, np.uint8(0), shown))

    return _by_strips(image, convert, mode), StoredValues(image.mode, bits, float(low), float(high), white)


def _lay_on_black(image: Image.Image) -> Image.Image:
    image = image.convert('RGBA')
    return Image.alpha_composite(Image.new('RGBA', image.size, 'black'), image)


def _find_raw_mode(image: Image.Image) -> str:
    """How the pixels of a PNG file lie in it, '' once it was decoded."""
    return image.tile[0][3] if image.format == 'PNG' and getattr(image, 'tile', None) else ''


def _prepare_key(image: Image.Image) -> Optional[Image.Image]:
    """Make the transparent colour of a PNG file, which Pillow gives as it is stored, one of 8 bits as the pixels are.

    Of 3 x 16 bits Pillow keeps the upper halves, in which other colours are like it: it is taken out of the image's
    `info`, and returned is the mask of those pixels whose lower halves are its own, read in the other byte order.
    """
    key, raw_mode = image.info.get('transparency'), _find_raw_mode(image)
    if image.mode == 'L' and isinstance(key, int):
        bits = {'L;2': 2, 'L;4': 4}.get(raw_mode, 8)
        image.info['transparency'] = (key & 2 ** bits - 1) * 255 // (2 ** bits - 1)
    if image.mode != 'RGB' or not isinstance(key, tuple):
        return None
    if raw_mode != 'RGB;16B':
        is_deep = max(key) > 255  # of one that was decoded before, whose lower halves are lost
        image.info['transparency'] = tuple(value >> 8 if is_deep else value for value in key)
        return None
    lower = Image.open(image.fp, formats=('PNG',))
    codec, extents, offset, _ = lower.tile[0]
    lower.tile = [(codec, extents, offset, 'RGB;16L')]
    del lower.info['transparency']
    lower.load()
    return _by_strips(lower, partial(_find_colour, colour=np.array(key) & 255), '1')


def _find_colour(image: Image.Image, colour: np.ndarray) -> Image.Image:
    """Mask of the pixels of a colour."""
    return Image.fromarray((np.asarray(image) == colour).all(axis=-1))


def _load(image: Image.Image) -> Image.Image:
    """An opened image, decoded and upright.

    Raises:
        ValueError: if it is too large or not one image.
    """
    if image.format == 'TIFF' and getattr(image, 'is_animated', False):  # of an animation the first frame is taken
        raise ValueError('several pages, expected one image')
    check_size(*image.size)
    key = image.info.get('transparency')
    lower_mask = _prepare_key(image)
    image.load()
    if lower_mask is not None:
        del image.info['transparency']
        upper_mask = _by_strips(image, partial(_find_colour, colour=np.array(key) >> 8), '1')
        image.paste(0, mask=ImageChops.logical_and(lower_mask, upper_mask))
    is_signed = image.mode == 'L' and _tiff_tag(image, TiffImagePlugin.SAMPLEFORMAT, 1) == 2
    if is_signed and image.getextrema()[1] > 127:  # Pillow reads -1 as 255
        raise ValueError('negative pixels (signed, 8 bit), expected 0 to 127: save it with 8 or 16 bits')
    return ImageOps.exif_transpose(image) if _orientation(image) in range(2, 9) else image  # it would copy others


def _orientation(image: Image.Image) -> int:
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _convert(image: Image.Image, mode: str) -> Tuple[Image.Image, StoredValues]:
    """An opened image as a person sees it, and its values; of those of 8 bits what they reach is not measured (NaN)."""
    upright = _load(image)
    bits, white = _find_white(image)
    if image.mode.startswith(('I', 'F')):
        # Pillow inverts 8 bits alone. A file without the tag is taken as it takes it
        white_is_zero = image.format == 'TIFF' and not _tiff_tag(image, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0)
        return _convert_deep(upright, mode, bits, white, white_is_zero)
    values = StoredValues(image.mode, bits, np.nan, np.nan, white)
    if image.mode in ('RGBA', 'LA', 'PA', 'RGBa', 'La') or 'transparency' in image.info:
        return _by_strips(upright, _lay_on_black, mode), values
    if mode == 'L' and image.mode not in ('L', '1'):  # some modes have no direct way to grey
        return _by_strips(upright, lambda strip: strip.convert('RGB'), mode), values
    return upright.convert(mode), values


# -- reading -----------------------------------------------------------------------------------------------------------

def _read(file: BinaryIO, mode: str, name: str, reserve: Reserve = nullcontext) -> Tuple[Image.Image, StoredValues]:
    if is_dicom(file, name):
        return read_dicom(file, mode, reserve)
    with open_image(file, reserve) as image:
        return _convert(image, mode)


def _find_ends(image: Image.Image) -> Tuple[int, int]:
    """Least and greatest value of an image of 8 bits, of any channel."""
    ends = image.getextrema()
    flat = ends if len(image.getbands()) == 1 else sum(ends, ())
    return min(flat), max(flat)


def _measure(image: Image.Image, values: StoredValues) -> StoredValues:
    """What values of 8 bits reach, in the image as it is read; a sample of pixels if these show that it is not dark."""
    if not math.isnan(values.low):
        return values
    low, high = _find_ends(image.resize((32, 32), Image.Resampling.NEAREST))
    if high <= DARK_SET * values.white:
        low, high = _find_ends(image)  # of all images it would take a fifth of the time of reading them
    return values._replace(low=float(low), high=float(high))


def read_image(file: ImageFile, mode: str = 'RGB', name: Optional[str] = None) -> Image.Image:
    """Read an image file.

    Args:
        file: Path, open binary file, or bytes.
        mode: Pillow mode of the result, 'RGB' or 'L' (grey).
        name: File name of an open file, for its extension.

    Returns:
        Image of 8 bits a channel. Of deep grey the greatest value that the file could hold is white: 65535, 4095 of a
        TIFF file of 12 bits, 1 of floating-point ones. Transparent parts are black.

    Raises:
        ImportError: for DICOM files without pydicom.
        OSError, ValueError and others of Pillow's and pydicom's: if it cannot be read as one image of finite pixels
            within the limit of `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    with _opened(file) as opened:
        return _read(opened, mode, _name_of(file, name))[0]


def read_with_values(
        file: Union[ImageFile, Image.Image],
        mode: str = 'RGB',
        name: Optional[str] = None,
        reserve: Reserve = nullcontext,
) -> Tuple[Image.Image, StoredValues]:
    """As `read_image` (or, of an image that Pillow opened, `convert_image`), and how its values are stored."""
    if isinstance(file, Image.Image):
        image, values = _convert(file, mode)
    else:
        with _opened(file) as opened:
            image, values = _read(opened, mode, _name_of(file, name), reserve)
    return image, _measure(image, values)


def image_size(file: ImageFile, name: Optional[str] = None) -> Tuple[int, int]:
    """Width and height that `read_image` gives, from the file's header alone."""
    with _opened(file) as opened:
        if is_dicom(opened, _name_of(file, name)):
            header = read_dicom_header(opened)
            return header.Columns, header.Rows
        with open_image(opened) as image:
            return upright_size(image)


def upright_size(image: Image.Image) -> Tuple[int, int]:
    """Width and height of an image after the rotation that EXIF tells."""
    orientation = _orientation(image)
    if orientation not in (5, 6, 7, 8):
        return image.size
    # of a TIFF file Pillow tells a size that is upright already, or is not, by where it found the orientation
    width = _tiff_tag(image, TiffImagePlugin.IMAGEWIDTH, image.width)
    return _tiff_tag(image, TiffImagePlugin.IMAGELENGTH, image.height), width


def convert_image(image: Image.Image, mode: str = 'RGB') -> Image.Image:
    """An image as Pillow opens or decodes it, as a person sees it; see `read_image`.

    Raises:
        ValueError: if it is not one image of finite pixels within the limit.
    """
    return _convert(image, mode)[0]


def hash_file(file: BinaryIO) -> Tuple[int, str]:
    """Number of bytes of an open file, and their SHA-256 in hexadecimal digits."""
    file.seek(0)
    digest, size = hashlib.sha256(), 0
    while block := file.read(2 ** 16):
        digest.update(block)
        size += len(block)
    file.seek(0)
    return size, digest.hexdigest()


def inspect_image(
        file: Union[ImageFile, Image.Image],
        mode: str = 'RGB',
        name: Optional[str] = None,
        reserve: Reserve = nullcontext,
) -> ImageRecord:
    """Read an image file once, for its hash and for what it holds.

    Args:
        file: Path, open binary file, bytes; or an image that is decoded already.
        mode: As `read_image`.
        name: As `read_image`.
        reserve: Context manager that waits for the memory for so many pixels.
    """
    size, digest = 0, ''
    try:
        if isinstance(file, Image.Image):
            return ImageRecord(values=read_with_values(file, mode)[1])
        with _opened(file) as opened:
            size, digest = hash_file(opened)
            return ImageRecord('', size, digest, read_with_values(opened, mode, _name_of(file, name), reserve)[1])
    except Exception as e:  # Pillow's plugins raise errors of many types on broken files
        return ImageRecord(f'{type(e).__name__}: {e}', size, digest)


def inspect_images(paths: Sequence[str], mode: str = 'RGB') -> List[ImageRecord]:
    """Read every image once, in a Pillow mode. Returns what each tells, in their order.

    As many are read at once as half of the available memory holds.
    """
    budget = MemoryBudget(available_memory() // 2)
    with ThreadPoolExecutor() as pool:
        return list(pool.map(partial(inspect_image, mode=mode, reserve=budget.reserve), paths))


def describe_ranges(values: Sequence[Optional[StoredValues]], names: Sequence[str]) -> str:
    """A warning of images that use so small a part of their range that they are read nearly black, '' if there are
    none.

    Args:
        values: Of each image, (N,); None of those that cannot be read.
        names: Their names, (N,).
    """
    kinds: Dict[Tuple[str, float], List[int]] = {}
    for i, stored in enumerate(values):
        if stored is not None:
            kinds.setdefault((stored.mode, stored.white), []).append(i)
    dark: List[int] = []
    for indices in kinds.values():
        # a single dark image may be one; of a whole data set none is expected to be even as bright as that
        share = DARK if max(values[i].high for i in indices) > DARK_SET * values[indices[0]].white else DARK_SET
        # one of a single value is blank, whatever its range
        dark += [i for i in indices if values[i].low < values[i].high <= share * values[i].white]
    if not dark:
        return ''
    first = min(dark)
    like = [i for i in dark if (values[i].mode, values[i].white) == (values[first].mode, values[first].white)]
    low, high, white = min(values[i].low for i in like), max(values[i].high for i in like), values[first].white
    return (
        f'{len(dark):,} of {len(values):,} images use so small a part of their range that they are read nearly black:'
        f" {f'{len(like):,} of them have ' if len(like) < len(dark) else ''}values {low:g} to {high:g} of 0 to"
        f" {white:g} ({values[first].mode}, {values[first].bits} bit), as '{names[first]}'. If that is not how they"
        f' should look, multiply the values of all images by the same factor ({white / high:.4g} at most) and save them'
        ' anew.')
