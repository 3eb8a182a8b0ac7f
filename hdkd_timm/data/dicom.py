"""DICOM files as viewers show them, read by pydicom, the extra `dicom`."""

import io
import zlib
from typing import Any, BinaryIO, Callable, Optional, Tuple

import numpy as np
from PIL import Image

from .pixels import Reserve, check_size, read_head, scale, split_rows
from .value_range import StoredValues

DICOM_HEADER = 2**24  # most bytes beside the pixels in a deflated DICOM file
DEFLATED = b'1.2.840.10008.1.2.1.99'  # the DICOM transfer syntax Deflated Explicit VR Little Endian
INFLATED = b'1.2.840.10008.1.2.1'  # Explicit VR Little Endian


def _import_pydicom() -> Any:
    try:
        import pydicom
        import pydicom.pixels
    except ImportError as e:
        raise ImportError("DICOM files need pydicom: pip install 'hdkd-timm[dicom]'.") from e
    return pydicom


def _inflate_dicom(file: BinaryIO, limit: int, is_whole: bool) -> BinaryIO:
    """Decompress a deflated DICOM file in memory; other DICOM files are returned unchanged.

    Args:
        file: The file.
        limit: Most bytes to decompress.
        is_whole: Whether all of it is needed: refuse a file that exceeds the limit, else cut it off there.

    Raises:
        ValueError: if all of it is needed and it exceeds the limit.
    """
    head = read_head(file, 144)  # preamble, 'DICM', and the first element: the length of the group that is not deflated
    if head[132:140] != b'\2\0\0\0UL\4\0':
        return file
    meta = read_head(file, 144 + min(int.from_bytes(head[140:], 'little'), DICOM_HEADER))
    if DEFLATED not in meta:
        return file
    inflated = io.BytesIO()
    inflated.write(meta.replace(DEFLATED, INFLATED.ljust(len(DEFLATED), b'\0')))
    file.seek(len(meta))
    decompressor, left = zlib.decompressobj(-zlib.MAX_WBITS), limit
    while left and not decompressor.eof:
        data = decompressor.unconsumed_tail or file.read(2**16)
        if not data:
            break
        left -= inflated.write(decompressor.decompress(data, left))
    if is_whole and not left:
        raise ValueError(f'its deflated part is larger than its pixels and {DICOM_HEADER:,} bytes of other elements')
    inflated.seek(0)
    return inflated


def read_dicom_header(file: BinaryIO, frame: Optional[int] = None) -> Any:
    """The elements of a DICOM file without its pixels.

    Args:
        file: The file.
        frame: Frame of a file of several, from 0.

    Raises:
        ValueError: if it is not a single image within the size limit, or has no such frame.
    """
    pydicom = _import_pydicom()
    header = pydicom.dcmread(_inflate_dicom(file, DICOM_HEADER, is_whole=False), stop_before_pixels=True)
    frames = int(header.get('NumberOfFrames') or 1)
    if frames > 1 and frame is None:
        raise ValueError(f'{frames} frames, expected one image: name one as FILE#0, FILE#1, ...')
    if frame is not None and frame >= frames:
        raise ValueError(f'no frame {frame}, it has {frames}, numbered from 0')
    if not (header.get('Rows') and header.get('Columns')):
        raise ValueError('a DICOM file without an image (no Rows and Columns)')
    check_size(header.Columns, header.Rows)
    file.seek(0)
    return header


def _find_padding(rows: np.ndarray, dataset: Any) -> np.ndarray:
    """Mask of the padding pixels of an image, by the DICOM elements Pixel Padding Value and Range Limit."""
    if rows.dtype.kind == 'f':
        value = dataset.get('FloatPixelPaddingValue', dataset.get('DoubleFloatPixelPaddingValue'))
        limit = dataset.get('FloatPixelPaddingRangeLimit', dataset.get('DoubleFloatPixelPaddingRangeLimit', value))
        if value is None:
            return np.zeros(rows.shape, bool)
        return (rows >= min(value, limit)) & (rows <= max(value, limit)) | np.isnan(rows) & np.isnan(value)
    bits = 8 * rows.dtype.itemsize

    def as_pixel(value: Any) -> Optional[int]:
        """The value as the pixels are stored: some files give it signed for unsigned pixels, or vice versa."""
        if value in (None, '', b''):
            return None
        value = int.from_bytes(value, 'little') if isinstance(value, bytes) else int(value)
        value %= 2**bits
        return value - 2**bits if rows.dtype.kind == 'i' and value >= 2 ** (bits - 1) else value

    value = as_pixel(dataset.get('PixelPaddingValue'))
    if value is None:
        return np.zeros(rows.shape, bool)
    limit = as_pixel(dataset.get('PixelPaddingRangeLimit'))
    limit = value if limit is None else limit
    return (rows >= min(value, limit)) & (rows <= max(value, limit))


def _colour_transform(pixels: np.ndarray, interpretation: str, dataset: Any) -> Callable[[np.ndarray], np.ndarray]:
    """The function that converts rows of a colour image to 8-bit RGB."""
    from pydicom.pixels import apply_color_lut, convert_color_space

    if interpretation == 'PALETTE COLOR':
        bits = 8 * apply_color_lut(pixels[:1], dataset).dtype.itemsize
        return lambda rows: scale(apply_color_lut(rows, dataset)[..., :3], 0, 2**bits - 1)
    white = 2**dataset.BitsStored - 1
    if interpretation in ('YBR_FULL', 'YBR_FULL_422'):
        return lambda rows: scale(convert_color_space(rows, 'YBR_FULL', 'RGB'), 0, white)
    return lambda rows: scale(rows, 0, white)


def _grey_transform(pixels: np.ndarray, dataset: Any) -> Callable[[np.ndarray], np.ndarray]:
    """The function that converts rows of a grey image to 8 bits.

    It applies the modality and VOI transforms (window). Without the latter, the range of the image without its padding
    is mapped to black..white.
    """
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    is_inverted = dataset.PhotometricInterpretation == 'MONOCHROME1'
    has_window = all(dataset.get(name) not in (None, '') for name in ('WindowWidth', 'WindowCenter'))
    if dataset.get('VOILUTSequence') or has_window:
        if dataset.get('VOILUTSequence'):
            low, high = 0, 2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
        else:
            with np.errstate(over='ignore'):
                low, high = apply_voi_lut(np.array([-1e12, 1e12]), dataset)  # the output range of the window

        def show(rows: np.ndarray) -> np.ndarray:
            _check_finite(rows)
            shown = scale(apply_voi_lut(apply_modality_lut(rows, dataset), dataset), low, high)
            return 255 - shown if is_inverted else shown

        return show

    ends = []
    for first, last in split_rows(pixels.shape[1], pixels.shape[0]):
        rows = pixels[first:last]
        values = apply_modality_lut(rows, dataset)[~_find_padding(rows, dataset)]
        _check_finite(values)
        ends += [values.min(), values.max()] if values.size else []
    low, high = (min(ends), max(ends)) if ends else (0, 0)

    def stretch(rows: np.ndarray) -> np.ndarray:
        padding = _find_padding(rows, dataset)
        shown = scale(np.where(padding, low, apply_modality_lut(rows, dataset)), low, high)
        return np.where(padding, 0, 255 - shown if is_inverted else shown).astype(np.uint8)

    return stretch


def _check_finite(values: np.ndarray) -> None:
    if values.dtype.kind == 'f' and not np.isfinite(values).all():
        raise ValueError('pixel values that are not finite')


def _flatten_groups(dataset: Any, frame: int) -> None:
    """Put the modality and VOI transforms of a frame, which files of several frames keep in functional groups, where
    those of other files are."""
    for groups, index in (('SharedFunctionalGroupsSequence', 0), ('PerFrameFunctionalGroupsSequence', frame)):
        for name in ('PixelValueTransformationSequence', 'FrameVOILUTSequence'):
            for item in (dataset.get(groups) or ())[index : index + 1]:
                for element in (item.get(name) or [()])[0]:
                    dataset.add(element)


def read_dicom(
    file: BinaryIO, mode: str, reserve: Reserve, frame: Optional[int] = None
) -> Tuple[Image.Image, StoredValues]:
    """Read a DICOM file as viewers show it, MONOCHROME1 inverted.

    Args:
        file: The file.
        mode: Pillow mode of the result, 'RGB' or 'L'.
        reserve: Context manager that waits for the memory for that many pixels.
        frame: Frame of a file of several, from 0.

    Returns:
        The image, and how its values are stored; `low` and `high` are measured for RGB only, else NaN.

    Raises:
        ImportError: without pydicom, or the package that decompresses the pixels.
        ValueError and others raised by pydicom: if it is not a single image of finite pixels within the size limit.
    """
    pydicom = _import_pydicom()
    header = read_dicom_header(file, frame)
    height, width = header.Rows, header.Columns
    samples, allocated = header.get('SamplesPerPixel') or 1, header.get('BitsAllocated') or 64
    with reserve(height * width):
        frames = int(header.get('NumberOfFrames') or 1)
        limit = frames * height * width * samples * -(-allocated // 8) + DICOM_HEADER
        stream = _inflate_dicom(file, limit, is_whole=True)
        dataset = pydicom.dcmread(stream)  # keeps a reference to the stream
        _flatten_groups(dataset, frame or 0)
        syntax = dataset.file_meta.TransferSyntaxUID
        decoder = pydicom.pixels.get_decoder(syntax)
        if not decoder.is_available:
            raise ImportError(f"DICOM files compressed as {syntax.name} need GDCM: pip install 'hdkd-timm[dicom]'.")
        pixels, found = decoder.as_array(
            dataset, raw=True, index=frame or 0, **pydicom.pixels.as_pixel_options(dataset)
        )
        for name in ('PixelData', 'FloatPixelData', 'DoubleFloatPixelData'):
            if name in dataset:
                del dataset[name]  # pixels holds them
        if stream is not file:
            stream.close()
        interpretation = str(found['photometric_interpretation'])
        is_grey = pixels.ndim == 2 and interpretation != 'PALETTE COLOR'
        show = _grey_transform(pixels, dataset) if is_grey else _colour_transform(pixels, interpretation, dataset)
        result = Image.new(mode, (width, height))
        for first, last in split_rows(width, height):
            result.paste(Image.fromarray(show(pixels[first:last])).convert(mode), (0, first))
        bits = dataset.get('BitsStored') or allocated
        if interpretation == 'RGB':
            return result, StoredValues('DICOM', bits, float(pixels.min()), float(pixels.max()), 2**bits - 1)
        return result, StoredValues('DICOM', bits, np.nan, np.nan, 255)
