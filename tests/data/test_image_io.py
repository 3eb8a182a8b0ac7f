import hashlib
import io
import os
import socket
import struct
import zlib

import numpy as np
import pytest
from helpers import write_dicom, write_images
from PIL import Image, ImageCms, TiffImagePlugin

from hdkd_timm.data import image_io as images
from hdkd_timm.data import pixels as pixels_module
from hdkd_timm.data.image_io import (
    IMG_EXTENSIONS,
    convert_image,
    describe_ranges,
    image_size,
    inspect_image,
    inspect_images,
    is_dicom,
    is_side_file,
    read_image,
    read_with_values,
)
from hdkd_timm.data.pixels import MemoryBudget, StoredValues
from hdkd_timm.data.samples import DataConfig, create_datasets
from hdkd_timm.evaluation.predict import drop_bad_images

# left to right, top to bottom
CORNERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)


def pixels(path, mode='RGB'):
    image = read_image(path, mode)
    assert image.mode == mode
    return np.asarray(image).astype(int)


def blocks(values, size=16):
    """Each value as a block of pixels, so that lossy formats keep it."""
    return values.repeat(size, 0).repeat(size, 1)


def tiff(path, values, bits, photometric=1, sample_format=1, order='<'):
    """A grey TIFF file whose pixels take so many bits each, rows filled up to whole bytes."""
    height, width = values.shape
    data = b''
    for row in values.tolist():
        text = ''.join(f'{value % 2 ** bits:0{bits}b}' for value in row)
        text += '0' * (-len(text) % 8)
        data += bytes(int(text[i:i + 8], 2) for i in range(0, len(text), 8))
    if bits == 16 and order == '<':
        data = values.astype('<i8').astype('<u2').tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 277: 1, 278: height, 279: len(data),
            273: 8 + 2 + 12 * 10 + 4, 339: sample_format}
    directory = b''.join(
        struct.pack(f'{order}HHI', tag, 4, 1) + struct.pack(f'{order}I', value) for tag, value in sorted(tags.items()))
    head = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(f'{order}IH', 8, len(tags))
    path.write_bytes(head + directory + bytes(4) + data)
    return path


def png(path, width, height, bits, kind, data, *chunks):
    """A PNG file of raw rows of bytes, with other chunks (name, data) between its head and its pixels."""
    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    path.write_bytes(b''.join([
        b'\x89PNG\r\n\x1a\n', chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, bits, kind, 0, 0, 0)),
        *(chunk(*c) for c in chunks), chunk(b'IDAT', zlib.compress(b''.join(b'\0' + row for row in data))),
        chunk(b'IEND', b'')]))
    return path


def test_extensions():
    assert {
        '.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff', '.dcm', '.dicom', '.jfif', '.jpe', '.gif',
    } <= set(IMG_EXTENSIONS)


def test_names_of_side_files():
    for name in ('.hidden.png', '._img.png', '.DS_Store', 'Thumbs.db', 'desktop.ini', '__MACOSX', '.ipynb_checkpoints',
                 'labels.CSV', 'notes.txt', 'LICENSE', 'a/b/.x'):
        assert is_side_file(name), name
    for name in ('a.png', 'scan', 'x.heic', 'a.csv.png', 'thumbs.png', 'b.unknown'):
        assert not is_side_file(name), name


@pytest.mark.parametrize('suffix', ['.jfif', '.jpe', '.jpg', '.gif', '.jp2', '.j2k', '.ppm', '.tga', '.pcx', '.dib',
                                    '.apng', '.avif'])
def test_formats_of_other_suffixes(tmp_path, suffix):
    if suffix == '.avif' and 'AVIF' not in images._list_formats():
        pytest.skip('this Pillow reads no AVIF')
    path = tmp_path / f'x{suffix}'
    Image.fromarray(blocks(CORNERS)).save(path, **({'format': 'JPEG'} if suffix == '.jpe' else {}))
    assert suffix in IMG_EXTENSIONS
    assert abs(pixels(path)[8::16, 8::16] - CORNERS).max() <= 8
    assert image_size(path) == (32, 32)


def test_of_animations_the_first_frame_is_read(tmp_path):
    frames = [Image.new('RGB', (8, 6), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    for suffix, args in (('.gif', {}), ('.png', {}), ('.webp', dict(lossless=True))):
        path = tmp_path / f'x{suffix}'
        frames[0].save(path, save_all=True, append_images=frames[1:], **args)
        with Image.open(path) as image:
            assert image.n_frames == 3
        assert abs(pixels(path) - [250, 0, 0]).max() <= 2, suffix
        assert not inspect_image(path).error


def test_pages_of_a_tiff_are_refused_and_not_counted(tmp_path, monkeypatch):
    pages = [Image.new('L', (2, 2), i) for i in range(3)]
    pages[0].save(tmp_path / 'x.tif', save_all=True, append_images=pages[1:])
    monkeypatch.setattr(  # it would read the directory of each of 20,000 pages
        TiffImagePlugin.TiffImageFile, 'n_frames', property(lambda image: pytest.fail('counted')))
    with pytest.raises(ValueError, match='several pages, expected one image'):
        read_image(tmp_path / 'x.tif')
    pages[2].save(tmp_path / 'x.tif')
    assert pixels(tmp_path / 'x.tif', 'L').tolist() == [[2, 2], [2, 2]]


def test_formats_that_other_programs_would_read_are_refused(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin
    monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', lambda *args, **kwargs: pytest.fail('started Ghostscript'))
    (tmp_path / 'x.png').write_bytes(
        b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n0 0 10 10 rectfill\nshowpage\n%%EOF\n')
    with pytest.raises(OSError, match=r'no image of a format that is read \(PNG, JPEG, TIFF, WEBP'):
        read_image(tmp_path / 'x.png')
    with pytest.raises(OSError, match='no image of a format that is read'):
        image_size(tmp_path / 'x.png')


def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path):
    os.mkfifo(tmp_path / 'pipe.png')
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / 'socket.png'))
    paths = [str(tmp_path / 'pipe.png'), '/dev/zero', str(tmp_path / 'socket.png'), str(tmp_path)]
    errors = [record.error for record in inspect_images(paths)]  # a pipe would block, /dev/zero never end
    server.close()
    assert errors[0] == f"OSError: '{paths[0]}' is a named pipe, expected an image file"
    assert errors[1] == "OSError: '/dev/zero' is a device, expected an image file"
    assert "is a socket, expected an image file" in errors[2]
    assert errors[3].startswith('IsADirectoryError: ')
    for read in (read_image, image_size, is_dicom):
        with pytest.raises(OSError, match='is a named pipe'):
            read(paths[0])


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
    assert (pixels(tmp_path / 'packed.tif', 'L') == (values / 65535 * 255).round()).all()  # its tag tells 16 bits now


@pytest.mark.parametrize(('bits', 'photometric', 'order'), [(10, 1, '<'), (14, 1, '<'), (12, 0, '<'), (12, 1, '>')])
def test_tiff_of_bits_that_pillow_does_not_read(tmp_path, bits, photometric, order):
    """If it reads them one day, by their own white; until then the error names them."""
    values = np.array([[0, 2 ** bits // 2, 2 ** bits - 1, 3]])
    path = tiff(tmp_path / 'x.tif', values, bits, photometric, order=order)
    try:
        Image.open(path)
    except OSError:
        match = f'TIFF file of {bits} bits a pixel .photometric interpretation {photometric}. that Pillow cannot read'
        with pytest.raises(OSError, match=match):
            read_image(path)
    else:
        expected = (values / (2 ** bits - 1) * 255).round()
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
    with pytest.raises(ValueError, match=r'negative pixels \(signed, 8 bit\)'):
        read_image(path)


def test_unsigned_tiff_of_32_bits(tmp_path):
    path = tiff(tmp_path / 'x.tif', np.array([[0x01000000, 0]]), 32)  # as bytes 1 0 0 0, little-endian 1
    assert inspect_image(path).values == StoredValues('I', 32, 0, 1, 65535)
    path = tiff(tmp_path / 'x.tif', np.array([[0x000000ff, 0]]), 32)
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


@pytest.mark.parametrize(('bits', 'scale'), [(1, 255), (2, 85), (4, 17), (8, 1)])
def test_key_greys_of_few_bits(tmp_path, bits, scale):
    """The key is a value of so many bits, Pillow scales the pixels alone."""
    top = 2 ** bits - 1
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
    """It is compared whole: of Pillow's upper halves others are equal to it."""
    key, near, other = (0x1234, 0xB678, 0x9ABC), (0x1234, 0xB679, 0x9ABC), (0x8080, 0, 0xFFFF)
    row = struct.pack('>9H', *key, *near, *other)
    path = png(tmp_path / 'x.png', 3, 2, 16, 2, [row, row], (b'tRNS', struct.pack('>3H', *key)))
    expected = [[0, 0, 0], [0x12, 0xB6, 0x9A], [0x80, 0, 0xFF]]
    assert pixels(path).tolist() == [expected] * 2
    assert pixels(path, 'L')[0, 0] == 0 < pixels(path, 'L')[0, 1]
    with open(path, 'rb') as file, Image.open(file) as image:
        assert np.asarray(convert_image(image)).tolist() == [expected] * 2
        assert np.asarray(convert_image(image)).tolist() == [expected] * 2
    # turned as EXIF tells, in strips
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
        tmp_path / 'x.png', 2, 1, 4, 3, [bytes([0x12])], (b'PLTE', bytes([0, 0, 0, 9, 8, 7, 100, 101, 102])),
        (b'tRNS', bytes([255, 0])))
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
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB'), 'RGB', 'LAB')
    ImageCms.applyTransform(colours, to_lab).save(tmp_path / 'x.tif')
    with Image.open(tmp_path / 'x.tif') as image:
        assert image.mode == 'LAB'
    assert abs(pixels(tmp_path / 'x.tif', 'L') - [[0, 120, 255]]).max() <= 2
    assert abs(pixels(tmp_path / 'x.tif') - [[[0] * 3, [120] * 3, [255] * 3]]).max() <= 3


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.webp', '.tif'])
@pytest.mark.parametrize(('orientation', 'turn'), [
    (1, lambda x: x), (2, np.fliplr), (3, lambda x: np.rot90(x, 2)), (4, np.flipud),
    (5, lambda x: x.transpose(1, 0, 2)), (6, lambda x: np.rot90(x, -1)),
    (7, lambda x: np.rot90(x, 2).transpose(1, 0, 2)), (8, np.rot90)])
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
    size = 16 * expected.shape[1], 16 * expected.shape[0]
    assert image_size(tmp_path / f'x{suffix}') == size
    with Image.open(tmp_path / f'x{suffix}') as image:
        assert images.upright_size(image) == size
        image.load()
        assert images.upright_size(image) == size  # of one that Pillow turned when it decoded it
        assert convert_image(image).size == size
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
    assert [bool(record.error) for record in inspect_images([str(whole), str(path)])] == [False, True]


def test_bad_images_have_reasons(tmp_path):
    Image.fromarray(CORNERS).save(tmp_path / 'good.png')
    (tmp_path / 'text.png').write_text('no image')
    (tmp_path / 'empty.jpg').touch()
    Image.fromarray(np.array([[7.5]], np.float32)).save(tmp_path / 'deep.tif')
    names = ['good.png', 'text.png', 'empty.jpg', 'deep.tif', 'missing.png']
    good, *reasons = [record.error for record in inspect_images([str(tmp_path / name) for name in names])]
    assert not good
    assert reasons[0].startswith('UnidentifiedImageError: ')
    assert reasons[2].startswith("ValueError: pixels of mode 'F' from 7.5 to 7.5")
    assert reasons[3].startswith('FileNotFoundError: ')


# -- strips: the same as the formula over the whole image --------------------------------------------------------------

def scale(values, low, high):
    return ((np.asarray(values, np.float64) - low) / (high - low)).clip(0, 1) * 255


@pytest.mark.parametrize('strip', [2 ** 20, 7, 100])
def test_deep_images_in_strips(tmp_path, monkeypatch, strip):
    monkeypatch.setattr(pixels_module, 'STRIP', strip)
    path = tmp_path / 'x.tif'
    every = np.arange(2 ** 16).astype(np.uint16).reshape(256, 256)
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
        image = colours.convert('L').convert(mode) if mode in ('LA', '1', 'L') else (
            colours if mode == 'RGBA' else colours.convert('RGB').convert(mode))
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


# -- limits ------------------------------------------------------------------------------------------------------------

def webp_bomb(path, kind='VP8L', side=16383):
    """A few bytes that tell a size, of one of three layouts."""
    width = side - 1
    data = {
        'VP8L': b'\x2f' + struct.pack('<I', width | width << 14 | 1 << 28) + b'\x07\x10\x11\x11\x88\x88\xfe\x07\0',
        'VP8X': bytes(4) + width.to_bytes(3, 'little') * 2 + bytes(2),
        'VP8 ': b'\0\0\0\x9d\x01\x2a' + struct.pack('<HH', side, side) + bytes(2),
    }[kind]
    path.write_bytes(
        b'RIFF' + struct.pack('<I', 12 + len(data)) + b'WEBP' + kind.encode() + struct.pack('<I', len(data)) + data)
    return path


@pytest.mark.parametrize('kind', ['VP8L', 'VP8X', 'VP8 '])
def test_webp_is_not_opened_to_learn_its_size(tmp_path, monkeypatch, kind):
    """Its decoder takes the memory of two images at once."""
    path = webp_bomb(tmp_path / 'x.webp', kind)
    monkeypatch.setattr(Image, 'open', lambda *args, **kwargs: pytest.fail('opened'))
    for read in (read_image, image_size):
        with pytest.raises(ValueError, match='16383 x 16383 pixels, more than the limit of 89,478,485: shrink'):
            read(path)
    assert inspect_image(path).error.startswith('ValueError: 16383 x 16383 pixels')
    assert inspect_image(path).digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize('lossless', [True, False])
@pytest.mark.parametrize('mode', ['RGB', 'RGBA'])
def test_size_of_webp(tmp_path, lossless, mode):
    Image.new(mode, (301, 77), 'red').save(tmp_path / 'x.webp', lossless=lossless)
    assert images._find_webp_size((tmp_path / 'x.webp').read_bytes()[:30]) == (301, 77)
    assert images._find_webp_size(b'RIFF') is None


@pytest.mark.parametrize('name', ['x.png', 'x.tif', 'x.gif', 'x.bmp', 'x.jpg', 'x.webp', 'x.jp2', 'x.ppm', 'x.dcm'])
def test_one_limit_for_all_formats(tmp_path, monkeypatch, name):
    path = tmp_path / name
    if name == 'x.dcm':
        write_dicom(path, np.zeros((40, 50), np.uint16), syntax='1.2.840.10008.1.2.1.99')
    else:
        Image.new('L', (50, 40)).save(path)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 2000)
    assert read_image(path).size == (50, 40)
    for limit in (1999, 900):  # Pillow warns from its limit on, and refuses twice as much
        monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', limit)
        error = inspect_image(path).error
        assert 'pixels, more than the limit of' in error, (limit, error)
        assert 'environment variable HDKD_MAX_IMAGE_PIXELS' in error
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', None)
    assert not inspect_image(path).error
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 900)
    monkeypatch.setenv('HDKD_MAX_IMAGE_PIXELS', '2000')
    assert not inspect_image(path).error
    monkeypatch.setenv('HDKD_MAX_IMAGE_PIXELS', 'many')
    assert inspect_image(path).error == (
        "ValueError: HDKD_MAX_IMAGE_PIXELS must be a number of pixels, 1 or more, got 'many'")


def test_opened_images_are_within_the_limit(tmp_path, monkeypatch):
    Image.new('L', (50, 40)).save(tmp_path / 'x.png')
    with Image.open(tmp_path / 'x.png') as image:
        monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1999)
        with pytest.raises(ValueError, match='50 x 40 pixels, more than the limit of 1,999'):
            convert_image(image)


def test_all_reading_threads_share_a_budget(tmp_path, monkeypatch):
    reserved = []
    reserve = MemoryBudget.reserve

    def noted(budget, pixels):
        reserved.append((budget.total, pixels))
        return reserve(budget, pixels)
    monkeypatch.setattr(MemoryBudget, 'reserve', noted)
    monkeypatch.setattr(images, 'available_memory', lambda: 3000)
    paths = [tmp_path / name for name in ('a.png', 'b.webp', 'c.tif')]
    for path in paths:
        Image.new('L', (5, 4)).save(path)
    paths.append(write_dicom(tmp_path / 'x.dcm', np.zeros((4, 5), np.uint16)))
    assert not any(record.error for record in inspect_images(list(map(str, paths))))
    assert reserved == [(1500, 20)] * 4


# -- what one reading tells --------------------------------------------------------------------------------------------

def test_records(tmp_path):
    Image.fromarray(CORNERS).save(tmp_path / 'x.png')
    (tmp_path / 'bad.png').write_bytes(b'no image')
    paths = [str(tmp_path / name) for name in ('x.png', 'bad.png', 'missing.png')]
    good, bad, missing = inspect_images(paths)
    data = (tmp_path / 'x.png').read_bytes()
    assert good == ('', len(data), hashlib.sha256(data).hexdigest(), StoredValues('RGB', 8, 0, 255, 255))
    assert bad.error.startswith('UnidentifiedImageError: no image of a format that is read')
    assert (bad.size, bad.digest, bad.values) == (8, hashlib.sha256(b'no image').hexdigest(), None)
    assert missing.error.startswith('FileNotFoundError: ')
    assert missing.size == 0
    with open(paths[0], 'rb') as file:
        assert inspect_image(file) == inspect_image(data) == good
        with Image.open(paths[0]) as image:
            assert inspect_image(image) == good._replace(size=0, digest='')


def values_of(tmp_path, array, suffix='.tif'):
    Image.fromarray(array).save(tmp_path / f'x{suffix}')
    return read_with_values(tmp_path / f'x{suffix}')[1]


@pytest.mark.parametrize(('array', 'text'), [
    (np.array([[0, 255]], np.int32), 'values 0 to 255 of 0 to 65535 (I, 32 bit)'),
    (np.array([[16, 4095]], np.uint16), 'values 16 to 4095 of 0 to 65535 (I;16, 16 bit)'),
    (np.array([[0, 0.01]], np.float32), 'values 0 to 0.01 of 0 to 1 (F, 32 bit)'),
    (np.array([[0, 1]], np.uint8), 'values 0 to 1 of 0 to 255 (L, 8 bit)'),  # a mask
    (np.array([[[3, 4, 5], [9, 15, 9]]], np.uint8), 'values 3 to 15 of 0 to 255 (RGB, 8 bit)'),
])
def test_dark_ranges_are_told(tmp_path, array, text):
    values = values_of(tmp_path, array)
    warning = describe_ranges([None, values], ['bad.tif', 'a.tif'])
    assert warning.startswith('1 of 2 images use so small a part of their range that they are read nearly black: ')
    assert f"{text}, as 'a.tif'" in warning
    assert f'by the same factor ({values.white / values.high:.4g} at most)' in warning


@pytest.mark.parametrize('array', [
    np.array([[0, 255]], np.uint8), np.array([[0, 60000]], np.uint16), np.array([[0, 0.9]], np.float32),
    np.zeros((2, 2), np.uint8), np.full((2, 2), 9, np.uint16),  # blank
    np.array([[True, False]]), np.array([[0, 20000]], np.uint16),
])
def test_other_ranges_are_not_told(tmp_path, array):
    assert describe_ranges([values_of(tmp_path, array)] * 3, list('abc')) == ''


def test_a_single_dark_image_is_less_suspicious_than_a_data_set():
    bright, dim, dark = (StoredValues('I;16', 16, 0, high, 65535) for high in (65535, 16383, 4095))
    assert describe_ranges([bright, dim], ['a', 'b']) == ''
    assert describe_ranges([dim, dim], ['a', 'b']).startswith('2 of 2 images')
    warning = describe_ranges([bright, dark, dim, None], ['a', 'b', 'c', 'd'])
    assert warning.startswith('1 of 4 images')
    assert "values 0 to 4095 of 0 to 65535 (I;16, 16 bit), as 'b'" in warning
    mask = StoredValues('L', 8, 0, 2, 255)
    warning = describe_ranges([mask, dark, mask], ['a', 'b', 'c'])
    assert '3 of 3 images' in warning
    assert '2 of them have values 0 to 2 of 0 to 255' in warning


def test_dark_dicom(tmp_path):
    for tags, is_dark in (
            (dict(), False),  # stretched
            (dict(WindowCenter=100, WindowWidth=200), False),
            (dict(WindowCenter=20000, WindowWidth=40000), True)):
        path = write_dicom(tmp_path / 'x.dcm', np.array([[0, 100, 200]], np.uint16), **tags)
        assert bool(describe_ranges([inspect_image(path).values], ['x'])) is is_dark
    path = write_dicom(tmp_path / 'x.dcm', np.arange(12, dtype=np.uint16).reshape(2, 2, 3), 'RGB')
    assert 'values 0 to 11 of 0 to 65535 (DICOM, 16 bit)' in describe_ranges([inspect_image(path).values], ['x'])


def test_a_small_bright_part_is_not_dark(tmp_path):
    """Which a sample of the pixels misses."""
    pixels = np.zeros((400, 300, 3), np.uint8)
    pixels[::7] = 20
    pixels[201, 100, 2] = 200
    Image.fromarray(pixels).save(tmp_path / 'x.png')
    values = inspect_image(tmp_path / 'x.png').values
    assert (values.low, values.high) == (0, 200)
    assert not describe_ranges([values], ['x'])


def test_trainer_and_predict_warn_once(tmp_path, caplog):
    for split in ('train', 'test'):
        write_images(tmp_path / split, 'ab', number=3)
    files = [str(path) for path in sorted(tmp_path.rglob('*.png'))]
    for path in files:
        Image.fromarray(np.asarray(Image.open(path).convert('L')).astype(np.uint16) << 4).save(path)
    for read in (lambda: create_datasets(DataConfig(data_dir=str(tmp_path))), lambda: drop_bad_images(files, 'RGB')):
        caplog.clear()
        read()
        told, = [record.getMessage() for record in caplog.records if 'nearly black' in record.getMessage()]
        assert told.startswith('12 of 12 images')
        assert 'of 0 to 65535 (I;16, 16 bit)' in told
