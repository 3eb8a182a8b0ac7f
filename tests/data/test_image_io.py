"""Image files of all formats are read, or refused with a reason."""

import hashlib
import io
import struct

import numpy as np
import pytest
from data_helpers import CORNERS, blocks, pixels
from helpers import write_dicom
from PIL import Image, TiffImagePlugin

from hdkd_timm.data import image_io
from hdkd_timm.data.convert import upright_size
from hdkd_timm.data.image_files import IMG_EXTENSIONS
from hdkd_timm.data.image_io import convert_image, image_size, read_image
from hdkd_timm.data.inspection import inspect_image, inspect_images


@pytest.mark.parametrize(
    'suffix', ['.jfif', '.jpe', '.jpg', '.gif', '.jp2', '.j2k', '.ppm', '.tga', '.pcx', '.dib', '.apng', '.avif']
)
def test_formats_of_other_suffixes(tmp_path, suffix):
    if suffix == '.avif' and 'AVIF' not in image_io._list_formats():
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
        TiffImagePlugin.TiffImageFile, 'n_frames', property(lambda image: pytest.fail('counted'))
    )
    with pytest.raises(ValueError, match='several pages, expected one image'):
        read_image(tmp_path / 'x.tif')
    pages[2].save(tmp_path / 'x.tif')
    assert pixels(tmp_path / 'x.tif', 'L').tolist() == [[2, 2], [2, 2]]


def test_formats_that_other_programs_would_read_are_refused(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', lambda *args, **kwargs: pytest.fail('started Ghostscript'))
    (tmp_path / 'x.png').write_bytes(
        b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n0 0 10 10 rectfill\nshowpage\n%%EOF\n'
    )
    with pytest.raises(OSError, match=r'not an image in a supported format \(PNG, JPEG, TIFF, WEBP'):
        read_image(tmp_path / 'x.png')
    with pytest.raises(OSError, match='not an image in a supported format'):
        image_size(tmp_path / 'x.png')


@pytest.mark.parametrize(
    ('suffix', 'tolerance'),
    [('.jpg', 6), ('.jpeg', 6), ('.png', 0), ('.webp', 6), ('.bmp', 0), ('.tif', 0), ('.TIFF', 0)],
)
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


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.webp', '.tif'])
@pytest.mark.parametrize(
    ('orientation', 'turn'),
    [
        (1, lambda x: x),
        (2, np.fliplr),
        (3, lambda x: np.rot90(x, 2)),
        (4, np.flipud),
        (5, lambda x: x.transpose(1, 0, 2)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: np.rot90(x, 2).transpose(1, 0, 2)),
        (8, np.rot90),
    ],
)
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
        assert upright_size(image) == size
        image.load()
        assert upright_size(image) == size  # of one that Pillow turned when it decoded it
        assert convert_image(image).size == size
    assert read.shape == (16 * expected.shape[0], 16 * expected.shape[1], 3)
    assert abs(read[8::16, 8::16] - expected).max() <= 6


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.webp', '.bmp', '.tif'])
def test_truncated_files(tmp_path, suffix):
    path, whole = tmp_path / f'x{suffix}', tmp_path / f'whole{suffix}'
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(whole)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
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
    assert reasons[2].startswith("ValueError: pixel values of mode 'F' from 7.5 to 7.5")
    assert reasons[3].startswith('FileNotFoundError: ')


def webp_bomb(path, kind='VP8L', side=16383):
    """A few bytes that state a size, in one of three layouts."""
    width = side - 1
    data = {
        'VP8L': b'\x2f' + struct.pack('<I', width | width << 14 | 1 << 28) + b'\x07\x10\x11\x11\x88\x88\xfe\x07\0',
        'VP8X': bytes(4) + width.to_bytes(3, 'little') * 2 + bytes(2),
        'VP8 ': b'\0\0\0\x9d\x01\x2a' + struct.pack('<HH', side, side) + bytes(2),
    }[kind]
    path.write_bytes(
        b'RIFF' + struct.pack('<I', 12 + len(data)) + b'WEBP' + kind.encode() + struct.pack('<I', len(data)) + data
    )
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
    assert image_io._find_webp_size((tmp_path / 'x.webp').read_bytes()[:30]) == (301, 77)
    assert image_io._find_webp_size(b'RIFF') is None


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
        "ValueError: HDKD_MAX_IMAGE_PIXELS must be a number of pixels, 1 or more, got 'many'"
    )


def test_opened_images_are_within_the_limit(tmp_path, monkeypatch):
    Image.new('L', (50, 40)).save(tmp_path / 'x.png')
    with Image.open(tmp_path / 'x.png') as image:
        monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1999)
        with pytest.raises(ValueError, match='50 x 40 pixels, more than the limit of 1,999'):
            convert_image(image)
