"""DICOM files are read as viewers show them."""

import io
import sys
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from helpers import write_dicom
from PIL import Image
from processes import run

from hdkd_timm.data.image_files import is_dicom, is_image_file
from hdkd_timm.data.image_io import image_size, read_image
from hdkd_timm.data.inspection import inspect_image, inspect_images

# left to right, top to bottom
CORNERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)


def pixels(path, mode='RGB'):
    return np.asarray(read_image(path, mode)).astype(int)


def example(name):
    """A file that comes with pydicom."""
    return Path(pydicom.__file__).parent / 'data' / 'test_files' / name


@pytest.mark.parametrize(
    ('compressed', 'same'),
    [
        ('MR_small_jpeg_ls_lossless.dcm', 'MR_small.dcm'),
        ('MR_small_jp2klossless.dcm', 'MR_small.dcm'),
        ('MR_small_RLE.dcm', 'MR_small.dcm'),
        ('SC_rgb_jpeg_gdcm.dcm', 'SC_rgb_rle.dcm'),  # JPEG Lossless
    ],
)
def test_compressed_without_loss(compressed, same):
    assert np.ptp(pixels(example(same))) > 100
    np.testing.assert_array_equal(pixels(example(compressed)), pixels(example(same)))


def test_missing_decoder():
    """pydicom looks for its packages once, when it is imported."""
    code = (
        "import sys; sys.modules['gdcm'] = None; from hdkd_timm.data.image_io import read_image;"
        f'read_image({str(example("SC_rgb_jpeg_gdcm.dcm"))!r})'
    )
    error = run('-c', code).stderr.splitlines()[-1]
    assert error.startswith('ImportError: DICOM files compressed as JPEG Lossless, Non-Hierarchical')
    assert error.endswith("need GDCM: pip install 'hdkd-timm[dicom]'.")


def test_dicom_window(tmp_path):
    path = write_dicom(
        tmp_path / 'x.dcm',
        np.array([[0, 100, 150, 200, 4000]], np.uint16),
        WindowCenter=150.5,
        WindowWidth=101,
        BitsStored=12,
        HighBit=11,
    )
    # the window goes from 100 to 200
    assert pixels(path, 'L').tolist() == [[0, 0, 128, 255, 255]]
    assert pixels(path).tolist() == [[[v] * 3 for v in (0, 0, 128, 255, 255)]]
    # the first of several windows
    path = write_dicom(
        tmp_path / 'X.DCM',
        np.array([[0, 100, 150, 200, 4000]], np.uint16),
        WindowCenter=[150.5, 2000],
        WindowWidth=[101, 4000],
    )
    assert pixels(path, 'L').tolist() == [[0, 0, 128, 255, 255]]


def test_dicom_without_window_goes_from_its_least_to_its_greatest_value(tmp_path):
    path = write_dicom(tmp_path / 'x.dcm', np.array([[1000, 1050, 1100]], np.uint16))
    assert pixels(path, 'L').tolist() == [[0, 128, 255]]
    path = write_dicom(tmp_path / 'x.dcm', np.array([[-1000, 0, 3000]], np.int16))
    assert pixels(path, 'L').tolist() == [[0, 64, 255]]
    path = write_dicom(tmp_path / 'x.dcm', np.array([[7, 7]], np.uint16))
    assert pixels(path, 'L').tolist() == [[0, 0]]


@pytest.mark.parametrize('interpretation', ['MONOCHROME1', 'MONOCHROME2'])
@pytest.mark.parametrize(
    ('dtype', 'padding', 'limit', 'padded'),
    [
        (np.int16, -2000, None, [-2000]),
        (np.int16, 63536, None, [-2000]),  # given as an unsigned number
        (np.uint16, 65535, None, [65535]),
        (np.uint16, 0, 50, [0, 7, 50]),
        (np.uint16, 50, 0, [0, 7, 50]),
        (np.int16, -2000, -1500, [-2000, -1700, -1500]),
        (np.uint8, 255, None, [255]),
    ],
)
def test_dicom_padding_takes_no_part_in_the_range(tmp_path, interpretation, dtype, padding, limit, padded):
    values = np.array([[*padded, 100, 150, 200]], dtype)
    path = write_dicom(tmp_path / 'x.dcm', values, interpretation)
    assert pixels(path, 'L')[0, -3:].tolist() != [0, 128, 255]  # without the tag, it is part of the image
    import pydicom

    dataset = pydicom.dcmread(path)
    vr = 'SS' if padding < 0 or (limit or 0) < 0 else 'US'
    dataset.add_new('PixelPaddingValue', vr, padding)
    if limit is not None:
        dataset.add_new('PixelPaddingRangeLimit', vr, limit)
    dataset.save_as(path)
    shown = [0, 128, 255] if interpretation == 'MONOCHROME2' else [255, 127, 0]
    assert pixels(path, 'L').tolist() == [[0] * len(padded) + shown]  # padding is black either way
    # after the rescaling, too: the tag is in stored values
    dataset.RescaleSlope, dataset.RescaleIntercept = 2, -1000
    dataset.save_as(path)
    assert pixels(path, 'L').tolist() == [[0] * len(padded) + shown]
    # a window sets what is shown
    dataset.WindowCenter, dataset.WindowWidth = -699.5, 201
    dataset.save_as(path)
    assert pixels(path, 'L')[0, -3:].tolist() == shown


def test_dicom_of_padding_alone(tmp_path):
    path = write_dicom(tmp_path / 'x.dcm', np.array([[9, 9]], np.uint16), 'MONOCHROME1', PixelPaddingValue=9)
    assert pixels(path, 'L').tolist() == [[0, 0]]


def test_dicom_of_floats(tmp_path):
    import pydicom

    path = write_dicom(tmp_path / 'x.dcm', np.array([[1, 2]], np.uint16))
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    del dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    dataset.BitsAllocated, dataset.Columns = 32, 4

    def save(values, padding=None):
        dataset.FloatPixelData = np.array(values, '<f4').tobytes()
        if padding is not None:
            dataset.FloatPixelPaddingValue = padding
        dataset.save_as(path)

    save([-1, 0, 1, 3])
    assert pixels(path, 'L').tolist() == [[0, 64, 128, 255]]
    save([-1, 0, 1, np.nan])
    with pytest.raises(ValueError, match='pixel values that are not finite'):
        read_image(path)
    save([-1, 0, 1, np.nan], np.nan)
    assert pixels(path, 'L').tolist() == [[0, 128, 255, 0]]
    save([-1000, 0, 1, 2], -1000)
    assert pixels(path, 'L').tolist() == [[0, 0, 128, 255]]


def test_dicom_without_suffix(tmp_path):
    path = write_dicom(tmp_path / 'IM0001', np.array([[0, 51, 255]], np.uint8))
    (tmp_path / 'x.dicom').write_bytes(path.read_bytes())
    (tmp_path / 'other').write_bytes(bytes(200))
    for name in ('IM0001', 'x.dicom'):
        assert is_image_file(tmp_path / name)
        assert pixels(tmp_path / name, 'L').tolist() == [[0, 51, 255]]
        assert image_size(tmp_path / name) == (3, 1)
    assert is_dicom(path.read_bytes())
    assert not is_image_file(tmp_path / 'other')
    with open(path, 'rb') as file:
        assert is_dicom(file)
        assert np.asarray(read_image(file, 'L')).tolist() == [[0, 51, 255]]


def test_deflated_dicom(tmp_path):
    syntax = '1.2.840.10008.1.2.1.99'
    values = np.random.default_rng(0).integers(0, 4096, (300, 200)).astype(np.uint16)
    path = write_dicom(tmp_path / 'x.dcm', values, syntax=syntax)
    plain = write_dicom(tmp_path / 'plain.dcm', values)
    assert (pixels(path) == pixels(plain)).all()
    assert image_size(path) == (200, 300)
    assert inspect_image(path).values == inspect_image(plain).values
    # more in it than its pixels could be: it is not inflated to its end
    path = write_dicom(tmp_path / 'x.dcm', values, syntax=syntax, DataSetTrailingPadding=bytes(2**25))
    with pytest.raises(ValueError, match='its deflated part is larger than its pixels and 16,777,216 bytes'):
        read_image(path)


def test_dicom_that_holds_no_image(tmp_path):
    path = write_dicom(tmp_path / 'x.dcm', np.zeros((2, 2), np.uint8), Rows=0)
    with pytest.raises(ValueError, match='a DICOM file without an image'):
        read_image(path)


def test_dicom_inverted(tmp_path):
    path = write_dicom(tmp_path / 'x.dcm', np.array([[0, 51, 255]], np.uint8), 'MONOCHROME1')
    assert pixels(path, 'L').tolist() == [[255, 204, 0]]
    path = write_dicom(
        tmp_path / 'x.dcm',
        np.array([[0, 100, 150, 200]], np.uint16),
        'MONOCHROME1',
        WindowCenter=150.5,
        WindowWidth=101,
    )
    assert pixels(path, 'L').tolist() == [[255, 255, 127, 0]]


def test_dicom_rescale(tmp_path):
    # Hounsfield units -1024, 0, 40, 80, 1000 in a window from 0 to 80
    path = write_dicom(
        tmp_path / 'x.dcm',
        np.array([[0, 512, 532, 552, 1012]], np.uint16),
        RescaleSlope=2,
        RescaleIntercept=-1024,
        WindowCenter=40.5,
        WindowWidth=81,
    )
    assert pixels(path, 'L').tolist() == [[0, 0, 128, 255, 255]]
    # the window is in values after the rescaling: greater ones are brighter
    path = write_dicom(
        tmp_path / 'x.dcm',
        np.array([[0, 20, 40, 80]], np.uint16),
        RescaleSlope=-1,
        RescaleIntercept=80,
        WindowCenter=40.5,
        WindowWidth=81,
    )
    assert pixels(path, 'L').tolist() == [[255, 191, 128, 0]]
    path = write_dicom(tmp_path / 'x.dcm', np.array([[0, 20, 80]], np.uint16), RescaleSlope=-1, RescaleIntercept=80)
    assert pixels(path, 'L').tolist() == [[255, 191, 0]]


def test_dicom_voi_lut(tmp_path):
    import pydicom

    table = pydicom.Dataset()
    table.add_new('LUTDescriptor', 'US', [4, 10, 16])  # 4 entries from value 10 on, of 16 bits
    table.add_new('LUTData', 'US', [65535, 0, 32896, 257])
    # it goes before a window
    path = write_dicom(
        tmp_path / 'x.dcm',
        np.array([[0, 10, 11, 12, 13, 99]], np.uint16),
        VOILUTSequence=[table],
        WindowCenter=5,
        WindowWidth=3,
    )
    assert pixels(path, 'L').tolist() == [[255, 255, 0, 128, 1, 1]]


def test_dicom_colours(tmp_path):
    path = write_dicom(tmp_path / 'x.dcm', CORNERS, 'RGB')
    assert (pixels(path) == CORNERS).all()
    assert pixels(path, 'L').tolist() == [[76, 150], [29, 255]]
    dim = CORNERS // 5  # is not stretched to white
    assert (pixels(write_dicom(tmp_path / 'x.dcm', dim, 'RGB')) == dim).all()


def test_dicom_luminance_and_chrominance(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
    path = write_dicom(tmp_path / 'x.dcm', values, 'YBR_FULL')
    import pydicom

    expected = pydicom.dcmread(path).pixel_array
    assert abs(expected.astype(int) - values).max() > 50
    assert (pixels(path) == expected).all()


@pytest.mark.parametrize('bits', [8, 16])
def test_dicom_palette(tmp_path, bits):
    tags = {}
    for name, values in (('Red', [255, 0, 10, 0]), ('Green', [0, 255, 20, 0]), ('Blue', [0, 0, 30, 0])):
        tags[f'{name}PaletteColorLookupTableDescriptor'] = [4, 0, bits]
        values = np.array(values) * (1 if bits == 8 else 257)
        tags[f'{name}PaletteColorLookupTableData'] = values.astype(np.uint8 if bits == 8 else '<u2').tobytes()
    path = write_dicom(tmp_path / 'x.dcm', np.array([[2, 1, 0, 1]], np.uint8), 'PALETTE COLOR', **tags)
    assert pixels(path).tolist() == [[[10, 20, 30], [0, 255, 0], [255, 0, 0], [0, 255, 0]]]


def test_dicom_of_frames_is_refused(tmp_path):
    path = write_dicom(tmp_path / 'x.dcm', np.zeros((5, 2, 3), np.uint8))
    with pytest.raises(ValueError, match='5 frames, expected one image'):
        read_image(path)
    path = write_dicom(tmp_path / 'x.dcm', np.array([[0, 255]], np.uint8), NumberOfFrames=1)
    assert pixels(path, 'L').tolist() == [[0, 255]]


def test_dicom_in_open_files(tmp_path):
    path = write_dicom(tmp_path / 'x.dcm', np.array([[0, 51, 255]], np.uint8))
    file = io.BytesIO(path.read_bytes())
    assert np.asarray(read_image(file, 'L', name='some/x.dcm')).tolist() == [[0, 51, 255]]
    with open(path, 'rb') as file:  # has a name of its own
        assert np.asarray(read_image(file, 'L')).tolist() == [[0, 51, 255]]


def test_broken_dicom(tmp_path):
    path = write_dicom(tmp_path / 'x.dcm', np.zeros((32, 32), np.uint8))
    (tmp_path / 'text.dcm').write_text('no image')
    (tmp_path / 'cut.dcm').write_bytes(path.read_bytes()[:-500])
    paths = [str(tmp_path / name) for name in ('x.dcm', 'text.dcm', 'cut.dcm')]
    assert [bool(record.error) for record in inspect_images(paths)] == [False] + [True] * (len(paths) - 1)


def test_dicom_without_pydicom(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pydicom', None)
    (tmp_path / 'x.dcm').touch()
    with pytest.raises(ImportError, match=r"DICOM files need pydicom: pip install 'hdkd-timm\[dicom\]'"):
        read_image(tmp_path / 'x.dcm')
    Image.fromarray(CORNERS).save(tmp_path / 'x.png')
    assert (pixels(tmp_path / 'x.png') == CORNERS).all()


def test_large_dicom_is_not_inflated(tmp_path):
    import tracemalloc

    path = write_dicom(tmp_path / 'x.dcm', np.zeros((4, 4), np.uint16), syntax='1.2.840.10008.1.2.1.99')
    content = path.read_bytes()
    start = 144 + int.from_bytes(content[140:144], 'little')
    plain = zlib.decompress(content[start:], -15)
    rows = b'\x28\0\x10\0US\2\0'
    assert rows in plain
    plain = plain.replace(rows + b'\4\0', rows + b'\xff\xff').replace(
        rows.replace(b'\x10', b'\x11') + b'\4\0', rows.replace(b'\x10', b'\x11') + b'\xff\xff'
    )
    compressor = zlib.compressobj(wbits=-15)
    path.write_bytes(content[:start] + compressor.compress(plain + bytes(2**28)) + compressor.flush())
    tracemalloc.start()
    error = inspect_image(path).error
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.startswith('ValueError: 65535 x 65535 pixels, more than the limit of')
    assert peak < 2**27
