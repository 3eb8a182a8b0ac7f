"""Images that use so little of their range that they appear nearly black are reported."""

import numpy as np
import pytest
import torch
from helpers import write_dicom, write_images
from PIL import Image

from hdkd_timm.data.config import DataConfig
from hdkd_timm.data.datasets import create_datasets
from hdkd_timm.data.image_io import read_with_values
from hdkd_timm.data.inspection import inspect_image
from hdkd_timm.data.value_range import StoredValues, describe_ranges, pack_values, unpack_values
from hdkd_timm.evaluation.predict import drop_bad_images


def values_of(tmp_path, array, suffix='.tif'):
    Image.fromarray(array).save(tmp_path / f'x{suffix}')
    return read_with_values(tmp_path / f'x{suffix}')[1]


@pytest.mark.parametrize(
    ('array', 'text'),
    [
        (np.array([[0, 255]], np.int32), 'values 0 to 255 of 0 to 65535 (I, 32 bit)'),
        (np.array([[16, 4095]], np.uint16), 'values 16 to 4095 of 0 to 65535 (I;16, 16 bit)'),
        (np.array([[0, 0.01]], np.float32), 'values 0 to 0.01 of 0 to 1 (F, 32 bit)'),
        (np.array([[0, 1]], np.uint8), 'values 0 to 1 of 0 to 255 (L, 8 bit)'),  # a mask
        (np.array([[[3, 4, 5], [9, 15, 9]]], np.uint8), 'values 3 to 15 of 0 to 255 (RGB, 8 bit)'),
    ],
)
def test_dark_ranges_are_reported(tmp_path, array, text):
    values = values_of(tmp_path, array)
    warning = describe_ranges([None, values], ['bad.tif', 'a.tif'])
    assert warning.startswith('1 of 2 images use so little of their value range that they appear nearly black: ')
    assert f"{text}, for example 'a.tif'" in warning
    assert f'by the same factor (at most {values.white / values.high:.4g})' in warning


@pytest.mark.parametrize(
    'array',
    [
        np.array([[0, 255]], np.uint8),
        np.array([[0, 60000]], np.uint16),
        np.array([[0, 0.9]], np.float32),
        np.array([[True, False]]),
        np.array([[0, 20000]], np.uint16),
    ],
)
def test_other_ranges_are_not_reported(tmp_path, array):
    assert describe_ranges([values_of(tmp_path, array)] * 3, list('abc')) == ''


@pytest.mark.parametrize(
    'array',
    [np.zeros((2, 2), np.uint8), np.full((90, 90), 200, np.uint8), np.full((2, 2), 9, np.uint16)],
)
def test_blank_images_are_reported(tmp_path, array):
    values = values_of(tmp_path, array)
    assert describe_ranges([None, values], ['bad.tif', 'a.tif']) == (
        '1 of 2 images are blank, with one value in all pixels (fully transparent images are black), for example'
        " 'a.tif'."
    )
    array[-1, -1] = 255  # a single pixel, which a sample of the others does not have
    assert 'blank' not in describe_ranges([values_of(tmp_path, array)], ['a.tif'])


def test_a_fully_transparent_image_is_black(tmp_path):
    Image.new('RGBA', (8, 8), (200, 90, 30, 0)).save(tmp_path / 'a.png')
    _, values = read_with_values(tmp_path / 'a.png')
    assert '1 of 1 images are blank' in describe_ranges([values], ['a.png'])


def test_a_single_dark_image_is_less_suspicious_than_a_data_set():
    bright, dim, dark = (StoredValues('I;16', 16, 0, high, 65535) for high in (65535, 16383, 4095))
    assert describe_ranges([bright, dim], ['a', 'b']) == ''
    assert describe_ranges([dim, dim], ['a', 'b']).startswith('2 of 2 images')
    warning = describe_ranges([bright, dark, dim, None], ['a', 'b', 'c', 'd'])
    assert warning.startswith('1 of 4 images')
    assert "values 0 to 4095 of 0 to 65535 (I;16, 16 bit), for example 'b'" in warning
    mask = StoredValues('L', 8, 0, 2, 255)
    warning = describe_ranges([mask, dark, mask], ['a', 'b', 'c'])
    assert '3 of 3 images' in warning
    assert '2 of them have values 0 to 2 of 0 to 255' in warning


def test_dark_dicom(tmp_path):
    for tags, is_dark in (
        (dict(), False),  # stretched
        (dict(WindowCenter=100, WindowWidth=200), False),
        (dict(WindowCenter=20000, WindowWidth=40000), True),
    ):
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
        (warning,) = [record.getMessage() for record in caplog.records if 'nearly black' in record.getMessage()]
        assert warning.startswith('12 of 12 images')
        assert 'of 0 to 65535 (I;16, 16 bit)' in warning


@pytest.mark.parametrize(
    'values',
    [None, StoredValues('RGB', 8, 3.0, 251.0, 255.0), StoredValues('I;16', 12, 0.0, 1e-300, 4095.0)]
    + [StoredValues(mode, 32, -1.5, 0.1, 1.0) for mode in ('DICOM', 'NIfTI', 'F', 'I;16B')],
)
def test_values_pass_through_a_batch(values):
    batch = torch.as_tensor(np.stack([pack_values(values)] * 2))
    assert unpack_values(batch.numpy()[1]) == values
