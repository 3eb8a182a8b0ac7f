import io
import struct
import sys

import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin

from hdkd_timm.images import IMG_EXTENSIONS, find_bad_images, read_image

# left to right, top to bottom
CORNERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)


def pixels(path, mode='RGB'):
    image = read_image(path, mode)
    assert image.mode == mode
    return np.asarray(image).astype(int)


def blocks(values, size=16):
    """Each value as a block of pixels, so that lossy formats keep it."""
    return values.repeat(size, 0).repeat(size, 1)


def dicom(path, values, interpretation='MONOCHROME2', **tags):
    """A DICOM file of unsigned pixels, or signed ones."""
    import pydicom
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    values = np.asarray(values)
    bits = 8 * values.dtype.itemsize
    colour = interpretation == 'RGB'
    dataset.SamplesPerPixel = 3 if colour else 1
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = interpretation
    dataset.Rows, dataset.Columns = values.shape[:2] if colour else values.shape[-2:]
    if values.ndim == 3 and not colour:
        dataset.NumberOfFrames = len(values)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(values.dtype.kind == 'i')
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.PixelData = values.tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_extensions():
    assert {'.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff', '.dcm'} <= set(IMG_EXTENSIONS)


@pytest.mark.parametrize(('suffix', 'tolerance'), [
    ('.jpg', 6), ('.jpeg', 6), ('.png', 0), ('.webp', 6), ('.bmp', 0), ('.tif', 0), ('.TIFF', 0)])
def test_formats(tmp_path, suffix, tolerance):
    path = tmp_path / f'x{suffix}'
    Image.fromarray(blocks(CORNERS)).save(path)
    read = pixels(path)[8::16, 8::16]  # the middle of each block
    assert abs(read - CORNERS).max() <= tolerance
    # ITU-R 601: 0.299 R + 0.587 G + 0.114 B
    assert abs(pixels(path, 'L')[8::16, 8::16] - [[76, 150], [29, 255]]).max() <= tolerance + 1


def test_open_files(tmp_path):
    Image.fromarray(CORNERS).save(tmp_path / 'x.png')
    with open(tmp_path / 'x.png', 'rb') as file:
        assert (np.asarray(read_image(file)) == CORNERS).all()
    file = io.BytesIO((tmp_path / 'x.png').read_bytes())
    assert (np.asarray(read_image(file)) == CORNERS).all()


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
@pytest.mark.parametrize(('values', 'expected'), [
    (np.array([[0, 128, 255]], np.uint8), [0, 128, 255]),
    (np.array([[0, 257, 30000, 32896, 65535]], np.uint16), [0, 1, 117, 128, 255]),
], ids=['8 bit', '16 bit'])
def test_grey(tmp_path, suffix, values, expected):
    path = tmp_path / f'x{suffix}'
    Image.fromarray(values).save(path)
    assert pixels(path, 'L').tolist() == [expected]
    assert pixels(path).tolist() == [[[v] * 3 for v in expected]]


def test_sixteen_bits_in_other_layouts(tmp_path):
    values = np.array([[0, 30000, 65535]])
    Image.fromarray(values.astype(np.int32)).save(tmp_path / 'i.tif')
    with Image.open(tmp_path / 'i.tif') as image:
        assert image.mode == 'I'
    assert pixels(tmp_path / 'i.tif', 'L').tolist() == [[0, 117, 255]]
    # big-endian
    Image.frombytes('I;16B', (3, 1), values.astype('>u2').tobytes()).save(tmp_path / 'b.tif')
    with Image.open(tmp_path / 'b.tif') as image:
        assert image.mode == 'I;16B'
    assert pixels(tmp_path / 'b.tif', 'L').tolist() == [[0, 117, 255]]


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_tiff_whose_zero_is_white(tmp_path, dtype):
    values = np.array([[0, 51, 128, 255]], dtype) * dtype(np.iinfo(dtype).max // 255)
    Image.fromarray(values).save(tmp_path / 'black.tif')
    black, white = (struct.pack('<HHIH', TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 3, 1, v) for v in (1, 0))
    content = (tmp_path / 'black.tif').read_bytes()
    assert content.count(black) == 1
    (tmp_path / 'white.tif').write_bytes(content.replace(black, white))
    assert pixels(tmp_path / 'black.tif', 'L').tolist() == [[0, 51, 128, 255]]
    assert pixels(tmp_path / 'white.tif', 'L').tolist() == [[255, 204, 127, 0]]
    assert pixels(tmp_path / 'white.tif').tolist() == [[[v] * 3 for v in (255, 204, 127, 0)]]


def test_floats(tmp_path):
    path = tmp_path / 'x.tif'
    Image.fromarray(np.array([[0, 0.25, 1]], np.float32)).save(path)
    assert pixels(path, 'L').tolist() == [[0, 64, 255]]
    # the range of the values is 0 to 1, not from their least to their greatest
    Image.fromarray(np.array([[0.2, 0.4]], np.float32)).save(path)
    assert pixels(path, 'L').tolist() == [[51, 102]]


@pytest.mark.parametrize(('values', 'match'), [
    (np.array([[0, 255]], np.float32), r"mode 'F' from 0 to 255, expected 0 to 1: save it with 8 or 16 bits"),
    (np.array([[-0.5, 0.5]], np.float32), "mode 'F' from -0.5 to 0.5"),
    (np.array([[np.nan, 0.5]], np.float32), "mode 'F' from nan to nan"),
    (np.array([[-1000, 400]], np.int32), "mode 'I' from -1000 to 400, expected 0 to 65535"),
    (np.array([[0, 65536]], np.int32), "mode 'I' from 0 to 65536"),
])
def test_deep_values_out_of_range(tmp_path, values, match):
    Image.fromarray(values).save(tmp_path / 'x.tif')
    with pytest.raises(ValueError, match=match):
        read_image(tmp_path / 'x.tif')


def test_palette(tmp_path):
    image = Image.frombytes('P', (3, 1), bytes([0, 1, 2]))
    image.putpalette([10, 20, 30, 255, 0, 0, 0, 0, 255])
    image.save(tmp_path / 'x.png')
    assert pixels(tmp_path / 'x.png').tolist() == [[[10, 20, 30], [255, 0, 0], [0, 0, 255]]]
    assert pixels(tmp_path / 'x.png', 'L').tolist() == [[18, 76, 29]]
    for transparency in (1, bytes([255, 0, 255])):
        image.save(tmp_path / 'x.png', transparency=transparency)
        assert pixels(tmp_path / 'x.png').tolist() == [[[10, 20, 30], [0, 0, 0], [0, 0, 255]]]
        assert pixels(tmp_path / 'x.png', 'L').tolist() == [[18, 0, 29]]


@pytest.mark.parametrize('suffix', ['.png', '.tif', '.webp'])
def test_transparent_parts_are_black(tmp_path, suffix):
    values = np.array([[[200, 100, 50, 255], [200, 100, 50, 0], [200, 100, 50, 51]]], np.uint8)
    args = dict(lossless=True, exact=True) if suffix == '.webp' else {}
    Image.fromarray(values).save(tmp_path / f'x{suffix}', **args)
    with Image.open(tmp_path / f'x{suffix}') as image:
        assert image.mode == 'RGBA'
    assert pixels(tmp_path / f'x{suffix}').tolist() == [[[200, 100, 50], [0, 0, 0], [40, 20, 10]]]
    assert pixels(tmp_path / f'x{suffix}', 'L').tolist() == [[124, 0, 25]]


def test_transparent_grey_and_key_colours(tmp_path):
    path = tmp_path / 'x.png'
    Image.fromarray(np.array([[[200, 255], [200, 0], [200, 51]]], np.uint8), 'LA').save(path)
    assert pixels(path, 'L').tolist() == [[200, 0, 40]]
    assert pixels(path).tolist() == [[[200] * 3, [0] * 3, [40] * 3]]
    # a colour that is transparent, chunk tRNS
    Image.fromarray(CORNERS).save(path, transparency=(0, 255, 0))
    with Image.open(path) as image:
        assert image.mode == 'RGB'
    assert pixels(path).tolist() == [[[255, 0, 0], [0, 0, 0]], [[0, 0, 255], [255, 255, 255]]]
    Image.fromarray(np.array([[200, 100]], np.uint8)).save(path, transparency=200)
    assert pixels(path, 'L').tolist() == [[0, 100]]
    Image.fromarray(np.array([[257, 30000, 65535]], np.uint16)).save(path, transparency=30000)
    with Image.open(path) as image:
        assert image.mode == 'I;16'
    assert pixels(path, 'L').tolist() == [[1, 0, 255]]
    assert pixels(path).tolist() == [[[1] * 3, [0] * 3, [255] * 3]]


@pytest.mark.parametrize('suffix', ['.jpg', '.tif'])
def test_cmyk(tmp_path, suffix):
    # no ink is white, full cyan lacks red, full black is black
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0]], [[0, 0, 0, 255], [0, 0, 255, 0]]], np.uint8)
    Image.fromarray(blocks(inks), 'CMYK').save(tmp_path / f'x{suffix}')
    read = pixels(tmp_path / f'x{suffix}')[8::16, 8::16]
    assert abs(read - [[[255, 255, 255], [0, 255, 255]], [[0, 0, 0], [255, 255, 0]]]).max() <= 6
    assert abs(pixels(tmp_path / f'x{suffix}', 'L')[8::16, 8::16] - [[255, 179], [0, 226]]).max() <= 6


@pytest.mark.parametrize('suffix', ['.png', '.tif', '.bmp'])
def test_one_bit(tmp_path, suffix):
    Image.fromarray(np.array([[True, False, True]])).save(tmp_path / f'x{suffix}')
    with Image.open(tmp_path / f'x{suffix}') as image:
        assert image.mode == '1'
    assert pixels(tmp_path / f'x{suffix}', 'L').tolist() == [[255, 0, 255]]
    assert pixels(tmp_path / f'x{suffix}').tolist() == [[[255] * 3, [0] * 3, [255] * 3]]


def test_lab(tmp_path):
    colours = Image.fromarray(np.array([[[0, 0, 0], [120, 120, 120], [255, 255, 255]]], np.uint8))
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB'), 'RGB', 'LAB')
    ImageCms.applyTransform(colours, to_lab).save(tmp_path / 'x.tif')
    with Image.open(tmp_path / 'x.tif') as image:
        assert image.mode == 'LAB'
    assert abs(pixels(tmp_path / 'x.tif', 'L') - [[0, 120, 255]]).max() <= 2
    assert abs(pixels(tmp_path / 'x.tif') - [[[0] * 3, [120] * 3, [255] * 3]]).max() <= 3


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.webp', '.tif'])
@pytest.mark.parametrize(('orientation', 'turn'), [
    (2, np.fliplr), (3, lambda x: np.rot90(x, 2)), (6, lambda x: np.rot90(x, -1)), (8, np.rot90)])
def test_images_are_upright(tmp_path, suffix, orientation, turn):
    corners = np.concatenate([CORNERS, CORNERS[:1, ::-1]])  # 2 wide, 3 high
    exif = Image.Exif()
    exif[0x0112] = orientation
    args = dict(exif=exif)
    if suffix == '.tif':
        args = dict(tiffinfo=TiffImagePlugin.ImageFileDirectory_v2())
        args['tiffinfo'][0x0112] = orientation
    Image.fromarray(blocks(corners)).save(tmp_path / f'x{suffix}', **args)
    read = pixels(tmp_path / f'x{suffix}')
    expected = turn(corners).astype(int)
    assert read.shape == (16 * expected.shape[0], 16 * expected.shape[1], 3)
    assert abs(read[8::16, 8::16] - expected).max() <= 6


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.webp', '.bmp', '.tif'])
def test_truncated_files(tmp_path, suffix):
    path, whole = tmp_path / f'x{suffix}', tmp_path / f'whole{suffix}'
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(whole)
    path.write_bytes(whole.read_bytes()[:whole.stat().st_size // 2])
    with pytest.raises((OSError, ValueError, SyntaxError)):
        read_image(path)
    assert list(find_bad_images([str(whole), str(path)])) == [str(path)]


def test_bad_images_have_reasons(tmp_path):
    Image.fromarray(CORNERS).save(tmp_path / 'good.png')
    (tmp_path / 'text.png').write_text('no image')
    (tmp_path / 'empty.jpg').touch()
    Image.fromarray(np.array([[7.5]], np.float32)).save(tmp_path / 'deep.tif')
    names = ['good.png', 'text.png', 'empty.jpg', 'deep.tif', 'missing.png']
    bad = find_bad_images([str(tmp_path / name) for name in names])
    assert [path.rsplit('/', 1)[1] for path in bad] == names[1:]
    reasons = list(bad.values())
    assert reasons[0].startswith('UnidentifiedImageError: ')
    assert reasons[2].startswith("ValueError: pixels of mode 'F' from 7.5 to 7.5")
    assert reasons[3].startswith('FileNotFoundError: ')


def test_dicom_window(tmp_path):
    path = dicom(
        tmp_path / 'x.dcm', np.array([[0, 100, 150, 200, 4000]], np.uint16), WindowCenter=150.5, WindowWidth=101,
        BitsStored=12, HighBit=11)
    # the window goes from 100 to 200
    assert pixels(path, 'L').tolist() == [[0, 0, 128, 255, 255]]
    assert pixels(path).tolist() == [[[v] * 3 for v in (0, 0, 128, 255, 255)]]
    # the first of several windows
    path = dicom(
        tmp_path / 'X.DCM', np.array([[0, 100, 150, 200, 4000]], np.uint16), WindowCenter=[150.5, 2000],
        WindowWidth=[101, 4000])
    assert pixels(path, 'L').tolist() == [[0, 0, 128, 255, 255]]


def test_dicom_without_window_goes_from_its_least_to_its_greatest_value(tmp_path):
    path = dicom(tmp_path / 'x.dcm', np.array([[1000, 1050, 1100]], np.uint16))
    assert pixels(path, 'L').tolist() == [[0, 128, 255]]
    path = dicom(tmp_path / 'x.dcm', np.array([[-1000, 0, 3000]], np.int16))
    assert pixels(path, 'L').tolist() == [[0, 64, 255]]
    path = dicom(tmp_path / 'x.dcm', np.array([[7, 7]], np.uint16))
    assert pixels(path, 'L').tolist() == [[0, 0]]


def test_dicom_inverted(tmp_path):
    path = dicom(tmp_path / 'x.dcm', np.array([[0, 51, 255]], np.uint8), 'MONOCHROME1')
    assert pixels(path, 'L').tolist() == [[255, 204, 0]]
    path = dicom(
        tmp_path / 'x.dcm', np.array([[0, 100, 150, 200]], np.uint16), 'MONOCHROME1', WindowCenter=150.5,
        WindowWidth=101)
    assert pixels(path, 'L').tolist() == [[255, 255, 127, 0]]


def test_dicom_rescale(tmp_path):
    # Hounsfield units -1024, 0, 40, 80, 1000 in a window from 0 to 80
    path = dicom(
        tmp_path / 'x.dcm', np.array([[0, 512, 532, 552, 1012]], np.uint16), RescaleSlope=2, RescaleIntercept=-1024,
        WindowCenter=40.5, WindowWidth=81)
    assert pixels(path, 'L').tolist() == [[0, 0, 128, 255, 255]]
    # the window tells values after the rescaling: greater ones are brighter
    path = dicom(
        tmp_path / 'x.dcm', np.array([[0, 20, 40, 80]], np.uint16), RescaleSlope=-1, RescaleIntercept=80,
        WindowCenter=40.5, WindowWidth=81)
    assert pixels(path, 'L').tolist() == [[255, 191, 128, 0]]
    path = dicom(tmp_path / 'x.dcm', np.array([[0, 20, 80]], np.uint16), RescaleSlope=-1, RescaleIntercept=80)
    assert pixels(path, 'L').tolist() == [[255, 191, 0]]


def test_dicom_voi_lut(tmp_path):
    import pydicom
    table = pydicom.Dataset()
    table.add_new('LUTDescriptor', 'US', [4, 10, 16])  # 4 entries from value 10 on, of 16 bits
    table.add_new('LUTData', 'US', [65535, 0, 32896, 257])
    # it goes before a window
    path = dicom(
        tmp_path / 'x.dcm', np.array([[0, 10, 11, 12, 13, 99]], np.uint16), VOILUTSequence=[table], WindowCenter=5,
        WindowWidth=3)
    assert pixels(path, 'L').tolist() == [[255, 255, 0, 128, 1, 1]]


def test_dicom_colours(tmp_path):
    path = dicom(tmp_path / 'x.dcm', CORNERS, 'RGB')
    assert (pixels(path) == CORNERS).all()
    assert pixels(path, 'L').tolist() == [[76, 150], [29, 255]]
    dim = CORNERS // 5  # is not stretched to white
    assert (pixels(dicom(tmp_path / 'x.dcm', dim, 'RGB')) == dim).all()


@pytest.mark.parametrize('bits', [8, 16])
def test_dicom_palette(tmp_path, bits):
    tags = {}
    for name, values in (('Red', [255, 0, 10, 0]), ('Green', [0, 255, 20, 0]), ('Blue', [0, 0, 30, 0])):
        tags[f'{name}PaletteColorLookupTableDescriptor'] = [4, 0, bits]
        values = np.array(values) * (1 if bits == 8 else 257)
        tags[f'{name}PaletteColorLookupTableData'] = values.astype(np.uint8 if bits == 8 else '<u2').tobytes()
    path = dicom(tmp_path / 'x.dcm', np.array([[2, 1, 0, 1]], np.uint8), 'PALETTE COLOR', **tags)
    assert pixels(path).tolist() == [[[10, 20, 30], [0, 255, 0], [255, 0, 0], [0, 255, 0]]]


def test_dicom_of_frames_is_refused(tmp_path):
    path = dicom(tmp_path / 'x.dcm', np.zeros((5, 2, 3), np.uint8))
    with pytest.raises(ValueError, match='5 frames, expected one image'):
        read_image(path)
    path = dicom(tmp_path / 'x.dcm', np.array([[0, 255]], np.uint8), NumberOfFrames=1)
    assert pixels(path, 'L').tolist() == [[0, 255]]


def test_dicom_in_open_files(tmp_path):
    path = dicom(tmp_path / 'x.dcm', np.array([[0, 51, 255]], np.uint8))
    file = io.BytesIO(path.read_bytes())
    assert np.asarray(read_image(file, 'L', name='some/x.dcm')).tolist() == [[0, 51, 255]]
    with open(path, 'rb') as file:  # tells its own name
        assert np.asarray(read_image(file, 'L')).tolist() == [[0, 51, 255]]


def test_broken_dicom(tmp_path):
    path = dicom(tmp_path / 'x.dcm', np.zeros((32, 32), np.uint8))
    (tmp_path / 'text.dcm').write_text('no image')
    (tmp_path / 'cut.dcm').write_bytes(path.read_bytes()[:-500])
    paths = [str(tmp_path / name) for name in ('x.dcm', 'text.dcm', 'cut.dcm')]
    assert list(find_bad_images(paths)) == paths[1:]


def test_dicom_without_pydicom(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pydicom', None)
    (tmp_path / 'x.dcm').touch()
    with pytest.raises(ImportError, match=r"DICOM files need pydicom: pip install 'hdkd-timm\[dicom\]'"):
        read_image(tmp_path / 'x.dcm')
    Image.fromarray(CORNERS).save(tmp_path / 'x.png')
    assert (pixels(tmp_path / 'x.png') == CORNERS).all()
