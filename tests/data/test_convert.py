"""Pixels of every mode and depth become 8 bits, nothing clipped; transparency becomes black."""

import struct
import zlib

import numpy as np
import pytest
from data_helpers import CORNERS, blocks, pixels
from helpers import write_dicom
from PIL import Image, ImageCms, TiffImagePlugin

from hdkd_timm.data import pixels as pixels_module
from hdkd_timm.data.image_io import convert_image, read_image
from hdkd_timm.data.inspection import inspect_image
from hdkd_timm.data.value_range import StoredValues


def tiff(path, values, bits, photometric=1, sample_format=1, order='<'):
    """A grey TIFF file with this number of bits per pixel, rows padded to whole bytes."""
    height, width = values.shape
    data = b''
    for row in values.tolist():
        text = ''.join(f'{value % 2**bits:0{bits}b}' for value in row)
        text += '0' * (-len(text) % 8)
        data += bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    if bits == 16 and order == '<':
        data = values.astype('<i8').astype('<u2').tobytes()
    tags = {
        256: width,
        257: height,
        258: bits,
        259: 1,
        262: photometric,
        277: 1,
        278: height,
        279: len(data),
        273: 8 + 2 + 12 * 10 + 4,
        339: sample_format,
    }
    directory = b''.join(
        struct.pack(f'{order}HHI', tag, 4, 1) + struct.pack(f'{order}I', value) for tag, value in sorted(tags.items())
    )
    head = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(f'{order}IH', 8, len(tags))
    path.write_bytes(head + directory + bytes(4) + data)
    return path


def png(path, width, height, bits, kind, data, *chunks):
    """A PNG file of raw rows of bytes, with other chunks (name, data) between its head and its pixels."""

    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

    path.write_bytes(
        b''.join(
            [
                b'\x89PNG\r\n\x1a\n',
                chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, bits, kind, 0, 0, 0)),
                *(chunk(*c) for c in chunks),
                chunk(b'IDAT', zlib.compress(b''.join(b'\0' + row for row in data))),
                chunk(b'IEND', b''),
            ]
        )
    )
    return path


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
@pytest.mark.parametrize(
    ('values', 'expected'),
    [
        (np.array([[0, 128, 255]], np.uint8), [0, 128, 255]),
        (np.array([[0, 257, 30000, 32896, 65535]], np.uint16), [0, 1, 117, 128, 255]),
    ],
    ids=['8 bit', '16 bit'],
)
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


def test_tiff_of_twelve_bits(tmp_path):
    values = np.array([[0, 16, 1000, 2048, 4095], [4095, 2048, 1000, 16, 0]])
    path = tiff(tmp_path / 'x.tif', values, 12)
    with Image.open(path) as image:
        assert (np.asarray(image) == values).all()
    expected = (values / 4095 * 255).round().astype(int)
    assert (pixels(path, 'L') == expected).all()
    assert (pixels(path) == expected[..., None]).all()
    assert inspect_image(path).values == StoredValues('I;16', 12, 0, 4095, 4095)
    # as libtiff unpacks it
    with Image.open(path) as image:
        image.save(tmp_path / 'packed.tif', compression='tiff_lzw')
    assert (pixels(tmp_path / 'packed.tif', 'L') == (values / 65535 * 255).round()).all()  # its tag says 16 bits now


@pytest.mark.parametrize(('bits', 'photometric', 'order'), [(10, 1, '<'), (14, 1, '<'), (12, 0, '<'), (12, 1, '>')])
def test_tiff_of_bits_that_pillow_does_not_read(tmp_path, bits, photometric, order):
    """If it reads them one day, by their own white; until then the error names them."""
    values = np.array([[0, 2**bits // 2, 2**bits - 1, 3]])
    path = tiff(tmp_path / 'x.tif', values, bits, photometric, order=order)
    try:
        Image.open(path)
    except OSError:
        match = f'TIFF file of {bits} bits per pixel .photometric interpretation {photometric}. that Pillow cannot read'
        with pytest.raises(OSError, match=match):
            read_image(path)
    else:
        expected = (values / (2**bits - 1) * 255).round()
        assert (pixels(path, 'L') == (expected if photometric else 255 - expected)).all()


@pytest.mark.parametrize('order', ['<', '>'])
def test_signed_tiff(tmp_path, order):
    path = tiff(tmp_path / 'x.tif', np.array([[0, 100, 16384, 32767]]), 16, sample_format=2, order=order)
    assert pixels(path, 'L').tolist() == [[0, 1, 128, 255]]  # white is the greatest that it could hold
    path = tiff(tmp_path / 'x.tif', np.array([[-1, 100]]), 16, sample_format=2, order=order)
    with pytest.raises(ValueError, match="mode 'I' from -1 to 100, expected 0 to 32767"):
        read_image(path)
    # Pillow reads -1 of 8 bits as 255
    path = tiff(tmp_path / 'x.tif', np.array([[0, 127]]), 8, sample_format=2, order=order)
    assert pixels(path, 'L').tolist() == [[0, 127]]
    path = tiff(tmp_path / 'x.tif', np.array([[-1, 127]]), 8, sample_format=2, order=order)
    with pytest.raises(ValueError, match=r'negative pixel values \(signed, 8 bit\)'):
        read_image(path)


def test_unsigned_tiff_of_32_bits(tmp_path):
    path = tiff(tmp_path / 'x.tif', np.array([[0x01000000, 0]]), 32)  # as bytes 1 0 0 0, little-endian 1
    assert inspect_image(path).values == StoredValues('I', 32, 0, 1, 65535)
    path = tiff(tmp_path / 'x.tif', np.array([[0x000000FF, 0]]), 32)
    with pytest.raises(ValueError, match=r"mode 'I' from -\d+.* expected 0 to 65535"):  # 0xff000000, signed in Pillow
        read_image(path)


def test_floats_whose_zero_is_white(tmp_path):
    values = np.array([[0, 0.25, 1]], np.float32)
    Image.fromarray(values).save(tmp_path / 'x.tif')
    black, white = (struct.pack('<HHIH', TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 3, 1, v) for v in (1, 0))
    content = (tmp_path / 'x.tif').read_bytes()
    assert content.count(black) == 1
    (tmp_path / 'x.tif').write_bytes(content.replace(black, white))
    assert pixels(tmp_path / 'x.tif', 'L').tolist() == [[255, 191, 0]]


def test_floats(tmp_path):
    path = tmp_path / 'x.tif'
    Image.fromarray(np.array([[0, 0.25, 1]], np.float32)).save(path)
    assert pixels(path, 'L').tolist() == [[0, 64, 255]]
    # the range of the values is 0 to 1, not from their least to their greatest
    Image.fromarray(np.array([[0.2, 0.4]], np.float32)).save(path)
    assert pixels(path, 'L').tolist() == [[51, 102]]


@pytest.mark.parametrize(
    ('values', 'match'),
    [
        (np.array([[0, 255]], np.float32), r"mode 'F' from 0 to 255, expected 0 to 1: save it with 8 or 16 bits"),
        (np.array([[-0.5, 0.5]], np.float32), "mode 'F' from -0.5 to 0.5"),
        (np.array([[np.nan, 0.5]], np.float32), "mode 'F' from nan to nan"),
        (np.array([[-1000, 400]], np.int32), "mode 'I' from -1000 to 400, expected 0 to 65535"),
        (np.array([[0, 65536]], np.int32), "mode 'I' from 0 to 65536"),
    ],
)
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


@pytest.mark.parametrize(('bits', 'scale'), [(1, 255), (2, 85), (4, 17), (8, 1)])
def test_key_greys_of_few_bits(tmp_path, bits, scale):
    """The transparent value is as stored, Pillow scales only the pixels."""
    top = 2**bits - 1
    values = [top, 0] if bits == 1 else [top, 1, 0, top - 1]
    text = ''.join(f'{value:0{bits}b}' for value in values)
    row = int(text.ljust(-(-len(text) // 8) * 8, '0'), 2).to_bytes(-(-len(text) // 8), 'big')
    for key in values:
        path = png(tmp_path / 'x.png', len(values), 1, bits, 0, [row], (b'tRNS', struct.pack('>H', key)))
        expected = [0 if value == key else value * scale for value in values]
        assert pixels(path, 'L').tolist() == [expected], key
        assert pixels(path).tolist() == [[[v] * 3 for v in expected]]
        with Image.open(path) as image:  # and again, of an image that was decoded
            assert np.asarray(convert_image(image, 'L')).tolist() == [expected]
            assert np.asarray(convert_image(image, 'L')).tolist() == [expected]


def test_key_colour_of_sixteen_bits(tmp_path):
    """It is compared at full depth: other colours share the upper bytes that Pillow keeps."""
    key, near, other = (0x1234, 0xB678, 0x9ABC), (0x1234, 0xB679, 0x9ABC), (0x8080, 0, 0xFFFF)
    row = struct.pack('>9H', *key, *near, *other)
    path = png(tmp_path / 'x.png', 3, 2, 16, 2, [row, row], (b'tRNS', struct.pack('>3H', *key)))
    expected = [[0, 0, 0], [0x12, 0xB6, 0x9A], [0x80, 0, 0xFF]]
    assert pixels(path).tolist() == [expected] * 2
    assert pixels(path, 'L')[0, 0] == 0 < pixels(path, 'L')[0, 1]
    with open(path, 'rb') as file, Image.open(file) as image:
        assert np.asarray(convert_image(image)).tolist() == [expected] * 2
        assert np.asarray(convert_image(image)).tolist() == [expected] * 2
    # rotated by EXIF
    exif = Image.Exif()
    exif[0x0112] = 6
    png(path, 3, 2, 16, 2, [row, row], (b'tRNS', struct.pack('>3H', *key)), (b'eXIf', exif.tobytes()[6:]))
    assert pixels(path).tolist() == [[colour] * 2 for colour in expected]
    # one of 8 bits is not taken for one of 16
    row = bytes([10, 20, 30, 40, 50, 60])
    path = png(tmp_path / 'x.png', 2, 1, 8, 2, [row], (b'tRNS', struct.pack('>3H', 10, 20, 30)))
    assert pixels(path).tolist() == [[[0, 0, 0], [40, 50, 60]]]


def test_key_colours_of_a_palette_of_few_bits(tmp_path):
    path = png(
        tmp_path / 'x.png',
        2,
        1,
        4,
        3,
        [bytes([0x12])],
        (b'PLTE', bytes([0, 0, 0, 9, 8, 7, 100, 101, 102])),
        (b'tRNS', bytes([255, 0])),
    )
    assert pixels(path).tolist() == [[[0, 0, 0], [100, 101, 102]]]


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
    to_lab = ImageCms.buildTransform(ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB'), 'RGB', 'LAB')
    ImageCms.applyTransform(colours, to_lab).save(tmp_path / 'x.tif')
    with Image.open(tmp_path / 'x.tif') as image:
        assert image.mode == 'LAB'
    assert abs(pixels(tmp_path / 'x.tif', 'L') - [[0, 120, 255]]).max() <= 2
    assert abs(pixels(tmp_path / 'x.tif') - [[[0] * 3, [120] * 3, [255] * 3]]).max() <= 3


def scale(values, low, high):
    return ((np.asarray(values, np.float64) - low) / (high - low)).clip(0, 1) * 255


@pytest.mark.parametrize('strip', [2**20, 7, 100])
def test_deep_images_in_strips(tmp_path, monkeypatch, strip):
    monkeypatch.setattr(pixels_module, 'STRIP', strip)
    path = tmp_path / 'x.tif'
    every = np.arange(2**16).astype(np.uint16).reshape(256, 256)
    for values in (every, every.astype(np.int32)):
        Image.fromarray(values).save(path)
        assert (pixels(path, 'L') == scale(values, 0, 65535).round()).all()
    Image.fromarray(every).save(tmp_path / 'x.png')
    assert (pixels(tmp_path / 'x.png') == scale(every, 0, 65535).round()[..., None]).all()
    floats = np.random.default_rng(0).random((37, 23), np.float32)
    Image.fromarray(floats).save(path)
    assert (pixels(path, 'L') == scale(floats, 0, 1).round()).all()
    floats[36, 22] = np.nan
    Image.fromarray(floats).save(path)
    with pytest.raises(ValueError, match='from nan to nan'):
        read_image(path)
    values = every[:100].astype(np.int16)
    path = write_dicom(tmp_path / 'x.dcm', values)
    assert (pixels(path, 'L') == scale(values, values.min(), values.max()).round()).all()
    window = write_dicom(tmp_path / 'x.dcm', values, WindowCenter=2000.5, WindowWidth=3001)
    low, high = 500, 3500
    assert abs(pixels(window, 'L') - scale(values, low, high).round()).max() <= 1


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'CMYK', 'P', '1', 'LAB', 'RGB', 'L'])
def test_shallow_images_in_strips(tmp_path, monkeypatch, mode):
    colours = Image.fromarray(np.random.default_rng(1).integers(0, 256, (31, 17, 4), np.uint8))
    if mode == 'LAB':
        image = Image.frombytes('LAB', colours.size, colours.convert('RGB').tobytes())
    else:
        image = (
            colours.convert('L').convert(mode)
            if mode in ('LA', '1', 'L')
            else (colours if mode == 'RGBA' else colours.convert('RGB').convert(mode))
        )
    if mode == 'LA':
        image.putalpha(colours.getchannel('A'))
    image.save(tmp_path / 'x.tif')
    expected = {}
    for to in ('RGB', 'L'):
        whole = image
        if mode in ('RGBA', 'LA'):
            whole = Image.alpha_composite(Image.new('RGBA', image.size, 'black'), image.convert('RGBA'))
        expected[to] = np.asarray(whole.convert('RGB').convert(to) if mode not in ('L', '1') else whole.convert(to))
        assert (pixels(tmp_path / 'x.tif', to) == expected[to]).all()
    monkeypatch.setattr(pixels_module, 'STRIP', 40)
    for to in ('RGB', 'L'):
        assert (pixels(tmp_path / 'x.tif', to) == expected[to]).all()
