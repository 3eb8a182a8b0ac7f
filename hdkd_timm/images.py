"""Image files as a person sees them: 8 bits a channel, upright, nothing clipped in silence.

Pillow decodes; this adds what its `convert` leaves out. 16-bit grey is scaled, not clipped; transparency lies on black;
the rotation that EXIF tells is done. DICOM files (.dcm) are read by pydicom, the extra `dicom`.
"""
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, Dict, Optional, Sequence, Tuple, Union

import numpy as np
from PIL import ExifTags, Image, ImageOps
from timm.data import get_img_extensions

IMG_EXTENSIONS = tuple(dict.fromkeys((*get_img_extensions(), '.webp', '.bmp', '.tif', '.tiff', '.dcm')))
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
    if name.lower().endswith('.dcm'):
        return _read_dicom(file).convert(mode)
    with Image.open(file) as image:
        return convert_image(image, mode)


def image_size(file: Union[str, Path, BinaryIO], name: Optional[str] = None) -> Tuple[int, int]:
    """Width and height that `read_image` gives, from the file's header alone."""
    name = str(name or (file if isinstance(file, (str, Path)) else getattr(file, 'name', '')))
    if name.lower().endswith('.dcm'):
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


def _read_error(path: str, mode: str) -> Optional[str]:
    try:
        read_image(path, mode)
    except Exception as e:  # Pillow's plugins raise errors of many types on broken files
        return f'{type(e).__name__}: {e}'
    return None


def find_bad_images(paths: Sequence[str], mode: str = 'RGB') -> Dict[str, str]:
    """Read every image once, in a Pillow mode. Returns path -> reason for those that cannot be read."""
    with ThreadPoolExecutor() as pool:
        return {path: error for path, error in zip(paths, pool.map(partial(_read_error, mode=mode), paths)) if error}
