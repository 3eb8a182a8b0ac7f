"""Image files as a person sees them: 8 bits a channel, upright, nothing clipped in silence.

Pillow decodes; this adds what its `convert` leaves out. 16-bit grey is scaled, not clipped; transparency lies on black;
the rotation that EXIF tells is done. DICOM files (.dcm) are read by pydicom, the extra `dicom`.
"""
import hashlib
import io
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
from PIL import ExifTags, Image, ImageOps

ImageFile = Union[str, Path, BinaryIO, bytes]

# Suffixes of the formats in which images of data sets are kept. Not among them is what Pillow reads by another program
# (.eps, .wmf), what holds documents, icons or textures (.psd, .ico, .dds) and what astronomers use (.fits)
DICOM_EXTENSIONS = ('.dcm', '.dicom')
IMG_EXTENSIONS = (
    '.png', '.apng', '.jpg', '.jpeg', '.jpe', '.jfif', '.mpo', '.webp', '.bmp', '.dib', '.tif', '.tiff', '.gif',
    '.jp2', '.j2k', '.jpc', '.jpf', '.jpx', '.j2c', '.avif', '.ppm', '.pgm', '.pbm', '.pnm', '.pfm', '.tga', '.pcx',
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

PHOTOMETRIC = 262  # TIFF's tag, 0 is WhiteIsZero


def _scale_to_bytes(pixels: np.ndarray, low: float, high: float) -> Image.Image:
    """Map low..high to black..white, (H, W) or (H, W, 3). A negative slope of DICOM makes low the greater one."""
    scaled = (pixels.astype(np.float64) - low) / ((high - low) or 1)
    return Image.fromarray((scaled.clip(0, 1) * 255).round().astype(np.uint8))


def _convert_deep(image: Image.Image, white_is_zero: bool) -> Image.Image:
    """Images of more than 8 bits as grey ones of 8 bits."""
    pixels = np.asarray(image)
    low, high = pixels.min(), pixels.max()
    if image.mode.startswith('I') and low >= 0 and high <= 65535:
        if 'transparency' in image.info:  # of a PNG, the grey that is transparent
            pixels = np.where(pixels == image.info['transparency'], 0, pixels)
        return _scale_to_bytes(pixels, *((65535, 0) if white_is_zero else (0, 65535)))
    if image.mode == 'F' and low >= 0 and high <= 1:
        return _scale_to_bytes(pixels, 0, 1)
    expected = '0 to 1' if image.mode == 'F' else '0 to 65535'
    raise ValueError(
        f"pixels of mode '{image.mode}' from {low:g} to {high:g}, expected {expected}: save it with 8 or 16 bits")


def _read_dicom(file: Union[str, Path, BinaryIO]) -> Image.Image:
    """A DICOM file's image after modality and VOI transforms (window), MONOCHROME1 inverted, as viewers show it."""
    try:
        import pydicom
        from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut
    except ImportError as e:
        raise ImportError("DICOM files need pydicom: pip install 'hdkd-timm[dicom]'.") from e
    dataset = pydicom.dcmread(file)
    pixels = dataset.pixel_array  # YBR comes as RGB
    frames = int(dataset.get('NumberOfFrames') or 1)
    if frames > 1:
        raise ValueError(f'{frames} frames, expected one image')
    interpretation = dataset.PhotometricInterpretation
    if interpretation == 'PALETTE COLOR':
        pixels = apply_color_lut(pixels, dataset)
    if pixels.ndim == 3:
        bits = 8 * pixels.dtype.itemsize if interpretation == 'PALETTE COLOR' else dataset.BitsStored
        return _scale_to_bytes(pixels, 0, 2 ** bits - 1)
    values = apply_modality_lut(pixels, dataset)
    has_window = dataset.get('WindowWidth') not in (None, '') and dataset.get('WindowCenter') not in (None, '')
    if dataset.get('VOILUTSequence'):
        bits = dataset.VOILUTSequence[0].LUTDescriptor[2]
        low, high = 0, 2 ** bits - 1
        values = apply_voi_lut(values, dataset)
    elif has_window:
        with np.errstate(over='ignore'):
            low, high = apply_voi_lut(np.array([-1e12, 1e12]), dataset)  # ends of the window's output
        values = apply_voi_lut(values, dataset)
    else:
        low, high = values.min(), values.max()
    image = _scale_to_bytes(values, low, high)
    return ImageOps.invert(image) if interpretation == 'MONOCHROME1' else image


class StoredValues(NamedTuple):
    """How a file stores its values, and which of them it uses.

    Args:
        mode: Pillow's mode, or 'DICOM'.
        bits: Bits a channel.
        low, high: Least and greatest value of its pixels.
        white: The greatest value that there could be, which is shown white.
    """
    mode: str
    bits: int
    low: float
    high: float
    white: float


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
        dark += [i for i in indices if 0 < values[i].high <= share * values[i].white]
    if not dark:
        return ''
    first = min(dark)
    like = [i for i in dark if (values[i].mode, values[i].white) == (values[first].mode, values[first].white)]
    low, high, white = min(values[i].low for i in like), max(values[i].high for i in like), values[first].white
    return (
        f'{len(dark):,} of {len(values):,} images use a small part of their range and are read nearly black:'
        f" {f'{len(like):,} have ' if len(like) < len(dark) else ''}values {low:g} to {high:g} of 0 to {white:g}"
        f" ({values[first].bits} bit), e.g. '{names[first]}'. If their white is not {white:g}, save them with their"
        f' values multiplied by {white:g} / WHITE, e.g. by {white / high:.4g}, the same for all.')


def is_side_file(name: str) -> bool:
    """Is this the name of a file, or folder, that is no image of a data set: hidden, of a system, a table, a text?"""
    name = os.path.basename(name).lower()
    return name.startswith('.') or name in SIDE_NAMES or name.endswith(SIDE_EXTENSIONS)


def is_dicom(file: ImageFile, name: Optional[str] = None) -> bool:
    """Is this a DICOM file, by its suffix or by its preamble (128 bytes, then 'DICM')?"""
    name = _name_of(file, name)
    if name.lower().endswith(DICOM_EXTENSIONS):
        return True
    if isinstance(file, bytes):
        return file[128:132] == b'DICM'
    if isinstance(file, (str, Path)):
        with open_image_file(file) as opened:
            return is_dicom(opened, name)
    place = file.tell()
    head = file.read(132)
    file.seek(place)
    return head[128:] == b'DICM'


def is_image_file(path: Union[str, Path]) -> bool:
    """Is this an image file, by its suffix, or a DICOM file by its content?"""
    return str(path).lower().endswith(IMG_EXTENSIONS) or is_dicom(path)


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


def _name_of(file: ImageFile, name: Optional[str]) -> str:
    return str(name or (file if isinstance(file, (str, Path)) else getattr(file, 'name', '')))


def inspect_image(file: Union[ImageFile, Image.Image], mode: str = 'RGB', name: Optional[str] = None) -> ImageRecord:
    """Read an image file once, for its hash and for what it holds.

    Args:
        file: Path, open binary file, bytes; or an image that is decoded already.
        mode: As `read_image`.
        name: As `read_image`.
    """
    size, digest = 0, ''
    try:
        if isinstance(file, Image.Image):
            convert_image(file, mode)
        elif isinstance(file, (str, Path)):
            with open_image_file(file) as opened:
                return inspect_image(opened, mode, _name_of(file, name))
        else:
            data = file if isinstance(file, bytes) else file.read()
            size, digest = len(data), hashlib.sha256(data).hexdigest()
            read_image(io.BytesIO(data), mode, _name_of(file, name))
    except Exception as e:  # Pillow's plugins raise errors of many types on broken files
        return ImageRecord(f'{type(e).__name__}: {e}', size, digest)
    return ImageRecord('', size, digest)


def inspect_images(paths: Sequence[str], mode: str = 'RGB') -> List[ImageRecord]:
    """Read every image once, in a Pillow mode. Returns what each tells, in their order."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(partial(inspect_image, mode=mode), paths))


def find_bad_images(paths: Sequence[str], mode: str = 'RGB') -> Dict[str, str]:
    """Read every image once, in a Pillow mode. Returns path -> reason for those that cannot be read."""
    return {path: record.error for path, record in zip(paths, inspect_images(paths, mode)) if record.error}


def read_image(file: Union[str, Path, BinaryIO], mode: str = 'RGB', name: Optional[str] = None) -> Image.Image:
    """Read an image file.

    Args:
        file: Path, or an open binary file.
        mode: Pillow mode of the result, 'RGB' or 'L' (grey).
        name: File name of an open file, for its extension.

    Returns:
        Image of 8 bits a channel. 16-bit grey: 65535 is white. Transparent parts are black.

    Raises:
        ImportError: for DICOM files without pydicom.
        OSError, ValueError and others of Pillow's and pydicom's: if it cannot be read as one image of finite pixels.
    """
    name = str(name or (file if isinstance(file, (str, Path)) else getattr(file, 'name', '')))
    if is_dicom(file, name):
        return _read_dicom(file).convert(mode)
    with Image.open(file) as image:
        return convert_image(image, mode)


def image_size(file: Union[str, Path, BinaryIO], name: Optional[str] = None) -> Tuple[int, int]:
    """Width and height that `read_image` gives, from the file's header alone."""
    name = str(name or (file if isinstance(file, (str, Path)) else getattr(file, 'name', '')))
    if is_dicom(file, name):
        import pydicom
        dataset = pydicom.dcmread(file, stop_before_pixels=True)
        return dataset.Columns, dataset.Rows
    with Image.open(file) as image:
        return upright_size(image)


def upright_size(image: Image.Image) -> Tuple[int, int]:
    """Width and height of an image after the rotation that EXIF tells."""
    width, height = image.size
    return (height, width) if image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8) else (width, height)


def convert_image(image: Image.Image, mode: str = 'RGB') -> Image.Image:
    """An image as Pillow decodes it, as a person sees it; see `read_image`.

    Raises:
        ValueError: if it is not one image of finite pixels.
    """
    frames = getattr(image, 'n_frames', 1)
    if frames > 1 and image.format != 'MPO':  # a photograph and its preview
        raise ValueError(f'{frames} frames, expected one image')
    image.load()
    white_is_zero = image.format == 'TIFF' and image.tag_v2.get(PHOTOMETRIC) == 0  # Pillow inverts 8 bits alone
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(('I', 'F')):
        image = _convert_deep(image, white_is_zero)
    elif image.mode in ('RGBA', 'LA', 'PA', 'RGBa', 'La') or 'transparency' in image.info:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'black'), image)
    if mode == 'L' and image.mode not in ('L', '1'):
        image = image.convert('RGB')  # some modes have no direct way to grey
    return image.convert(mode)
