"""Slices of NIfTI volumes are read as viewers show them."""

import csv
import gzip
import io
import itertools
from concurrent.futures import ThreadPoolExecutor

import nibabel
import numpy as np
import pytest
from data_helpers import create
from helpers import write_images
from nibabel.orientations import apply_orientation, inv_ornt_aff
from processes import run

from hdkd_timm.analysis.data_check import CheckConfig, check_data, list_pairs, summarize
from hdkd_timm.data import nifti
from hdkd_timm.data.image_files import is_image_file, split_suffix
from hdkd_timm.data.image_io import image_size, read_image
from hdkd_timm.data.inspection import inspect_image, inspect_images
from hdkd_timm.data.value_range import describe_ranges
from hdkd_timm.evaluation.predict import find_images


def pixels(path, mode='L', **kwargs):
    return np.asarray(read_image(path, mode, **kwargs)).astype(int)


def write(path, values, affine=None, kind=nibabel.Nifti1Image, **header):
    image = kind(values, np.eye(4) if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


@pytest.fixture
def volume():
    """Values from 0 to 255 by patient axis: to the right, anterior, superior."""
    values = np.random.default_rng(0).permutation(4 * 5 * 6).astype(np.uint8).reshape(4, 5, 6) * 2
    values.flat[[0, -1]] = 0, 255
    return values


@pytest.mark.parametrize('suffix', ['.nii', '.nii.gz'])
@pytest.mark.parametrize('kind', [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_all_orientations(volume, suffix, kind, tmp_path):
    """However the axes are stored, right is on the left, and anterior or superior at the top."""
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product([1, -1], repeat=3):
            orientation = np.array([*zip(axes, signs)])  # of each patient axis, where and how it is stored
            stored = apply_orientation(volume, orientation)
            affine = np.diag([2, 3, 4, 1.0]) @ inv_ornt_aff(orientation, volume.shape)
            path = write(tmp_path / f'x{suffix}', stored, affine, kind)
            normal = axes.index(2)  # the patient axis that is stored last
            for i in range(stored.shape[2]):
                at = i if signs[normal] == 1 else stored.shape[2] - 1 - i
                expected = np.take(volume, at, normal).T[::-1, ::-1]
                np.testing.assert_array_equal(pixels(f'{path}#{i}'), expected)
                assert image_size(f'{path}#{i}') == expected.shape[::-1]


def test_oblique(volume, tmp_path):
    """The nearest axes count."""
    angle = np.radians(20)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    np.testing.assert_array_equal(
        pixels(f'{write(tmp_path / "x.nii", volume, affine)}#2'), volume[..., 2].T[::-1, ::-1]
    )


def test_white_is_the_greatest_value_of_the_volume(tmp_path):
    values = np.array([[[-1000, 0, 1000]], [[0, 500, 3000]]], np.int16)
    path = write(tmp_path / 'x.nii.gz', values)
    assert pixels(f'{path}#0').tolist() == [[round(1000 / 4000 * 255), 0]]
    assert pixels(f'{path}#2').tolist() == [[255, round(2000 / 4000 * 255)]]
    assert pixels(f'{path}#2', 'RGB').tolist() == [[[255] * 3, [round(2000 / 4000 * 255)] * 3]]
    write(path, np.where(values == 3000, 1000, values))  # another file of this name
    assert pixels(f'{path}#2').tolist() == [[255, 255]]


def test_display_range_and_slope(tmp_path):
    values = np.array([[[0], [10], [20], [30], [40]]], np.uint8)
    path = write(tmp_path / 'x.nii', values, cal_min=10, cal_max=30)
    assert pixels(path).tolist() == [[255], [255], [round(127.5)], [0], [0]]
    header = nibabel.Nifti1Header(path.read_bytes()[:348])  # nibabel.save chooses a slope of its own
    header['scl_slope'], header['scl_inter'], header['cal_min'], header['cal_max'] = 2, -20, 0, 40
    path.write_bytes(header.binaryblock + path.read_bytes()[348:])
    assert pixels(path).tolist() == [[255], [255], [round(127.5)], [0], [0]]


@pytest.mark.parametrize('shape', [(5, 4), (5, 4, 1), (5, 4, 1, 1)])
def test_one_slice(shape, tmp_path):
    values = np.linspace(0, 1, 20, dtype=np.float32).reshape(shape)
    path = write(tmp_path / 'x.nii', values)
    expected = (values.reshape(5, 4).T[::-1, ::-1] * 255).round()
    np.testing.assert_array_equal(pixels(path), expected)
    np.testing.assert_array_equal(pixels(f'{path}#0'), expected)
    assert inspect_image(path).values._replace(low=0, high=0) == ('NIfTI', 32, 0, 0, 255)


def test_constant_volume_is_black(tmp_path):
    assert pixels(f'{write(tmp_path / "x.nii", np.full((2, 3, 4), 7, np.int16))}#1').max() == 0


@pytest.mark.parametrize(
    ('values', 'frame', 'message'),
    [
        (np.zeros((2, 3, 4), np.uint8), '', '4 slices, expected one image: name one as FILE#0, FILE#1'),
        (np.zeros((2, 3, 4), np.uint8), '#4', 'no slice 4, it has 4, numbered from 0'),
        (
            np.zeros((2, 3, 4, 5), np.uint8),
            '#0',
            '4 axes, 2 x 3 x 4 x 5, expected three, nibabel.four_to_three saves',
        ),
        (np.zeros((2, 3, 1, 1, 3), np.uint8), '', '5 axes, 2 x 3 x 1 x 1 x 3, expected three$'),
        (np.zeros((2, 3, 4), np.complex64), '#0', 'values of type complex64, expected one real number'),
        (np.zeros((2, 3, 4), [('R', 'u1'), ('G', 'u1'), ('B', 'u1')]), '#0', 'expected one real number'),
        (np.zeros((0, 3, 4), np.uint8), '#0', 'a volume without voxels, 0 x 3 x 4'),
        (np.zeros((9000, 10000, 1), np.uint8), '', r'9000 x 10000 pixels, more than the limit'),
    ],
)
def test_other_volumes(values, frame, message, tmp_path):
    path = write(tmp_path / 'x.nii.gz', values)
    for read in (read_image, image_size):
        with pytest.raises(ValueError, match=message):
            read(f'{path}{frame}')


def test_values_that_are_not_finite(tmp_path):
    values = np.zeros((2, 3, 4), np.float32)
    values[1, 1, 2] = np.nan
    for header in ({}, {'cal_max': 1}):
        path = write(tmp_path / f'x{len(header)}.nii', values, **header)
        with pytest.raises(ValueError, match='values that are not finite in slice 2'):
            read_image(f'{path}#2')


@pytest.mark.parametrize('window', [{}, {'cal_max': 100}])
def test_damaged_voxels(window, tmp_path):
    """A flipped bit, which only the checksum at the end shows."""
    path = write(tmp_path / 'x.nii.gz', np.arange(3000, dtype=np.uint8).reshape(10, 10, 30), **window)
    content = bytearray(gzip.decompress(path.read_bytes()))
    stored = gzip.compress(content, compresslevel=0)
    at = stored.index(bytes(content[400:500])) + 50
    path.write_bytes(stored[:at] + bytes([stored[at] ^ 4]) + stored[at + 1 :])
    for _ in range(2):
        with pytest.raises(gzip.BadGzipFile, match='CRC'):
            read_image(f'{path}#2')
    assert 'CRC' in inspect_image(f'{path}#2').error


def test_values_too_far_apart(tmp_path):
    path = write(tmp_path / 'x.nii', np.array([[[-1e308, 1e308]]]))
    with pytest.raises(ValueError, match=r'values from -1e\+308 to 1e\+308, whose difference is not finite'):
        read_image(f'{path}#0')
    path = write(tmp_path / 'y.nii', np.array([[[0, 100]]], np.uint8), cal_min=-np.inf, cal_max=10)  # no such window
    assert pixels(f'{path}#1').tolist() == [[255]]


def test_header_that_nibabel_corrects(tmp_path, capfd):
    """Without a message for every slice; but voxels do not begin in the header."""
    path = write(tmp_path / 'x.nii', np.arange(60, dtype=np.uint8).reshape(3, 4, 5))
    data = path.read_bytes()
    header = nibabel.Nifti1Header(data[:348])
    header['vox_offset'], header['pixdim'][1:4], header['sform_code'] = 360, 0, 77
    path.write_bytes(header.binaryblock + bytes(12) + data[352:])
    assert pixels(f'{path}#4').max() == 255
    assert capfd.readouterr().err == ''
    header['vox_offset'] = 0
    path.write_bytes(header.binaryblock + data[348:])
    with pytest.raises(ValueError, match='its voxels begin at byte 0, within the header'):
        read_image(f'{path}#4')


def test_a_volume_is_measured_once(volume, tmp_path, monkeypatch):
    path, read = write(tmp_path / 'x.nii.gz', volume), []
    measure = nifti._read_whole
    monkeypatch.setattr(nifti, '_read_whole', lambda volume: read.append(1) or measure(volume))
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda i: pixels(f'{path}#{i}'), range(6)))
    assert len(read) == 1
    assert max(image.max() for image in found) == 255


def test_dark_volumes(tmp_path, caplog):
    """The way out is the file's own range, which decides what is white."""
    values = np.zeros((4, 4, 3), np.int16)
    values[1:3, 1:3], values[0, 0, 2] = 200, 30000
    path = write(tmp_path / 'x.nii', values)
    records = inspect_images([f'{path}#0', f'{path}#1'])
    warning = describe_ranges([record.values for record in records], ['x#0', 'x#1'])
    assert 'set the display range of the files (cal_min, cal_max), or clip the values' in warning
    assert 'multiply' not in warning


def test_singular_affine(tmp_path):
    path = write(tmp_path / 'x.nii', np.zeros((2, 3, 1), np.uint8))
    data = bytearray(path.read_bytes())
    header = nibabel.Nifti1Header(bytes(data[:348]))
    header['srow_x'] = 0
    data[:348] = header.binaryblock
    path.write_bytes(data)
    with pytest.raises(ValueError, match='its affine .* is singular'):
        read_image(path)


@pytest.mark.parametrize('suffix', ['.nii', '.nii.gz'])
def test_damaged(volume, suffix, tmp_path):
    whole = write(tmp_path / f'x{suffix}', volume).read_bytes()
    for length in (0, 100, len(whole) - 20):
        path = tmp_path / f'cut{suffix}'
        path.write_bytes(whole[:length])
        with pytest.raises((ValueError, OSError, EOFError)):
            read_image(f'{path}#5')
    (tmp_path / 'header.nii').write_bytes(b'ni1\0' * 200)
    with pytest.raises(ValueError, match='not a NIfTI file of one part'):
        read_image(f'{tmp_path / "header.nii"}#0')


def test_files_without_suffix(volume, tmp_path):
    for suffix in ('.nii', '.nii.gz'):
        data = write(tmp_path / f'x{suffix}', volume[..., :1]).read_bytes()
        for file in (data, io.BytesIO(data)):
            np.testing.assert_array_equal(pixels(file), pixels(tmp_path / f'x{suffix}'))
    assert not nifti.is_nifti(gzip.compress(b'a' * 1000))
    assert not nifti.is_nifti(b'\x1f\x8b' + b'a' * 1000)


def test_without_nibabel(volume, tmp_path):
    code = (
        "import sys; sys.modules['nibabel'] = None; from hdkd_timm.data.image_io import read_image;"
        f'read_image({str(write(tmp_path / "x.nii", volume)) + "#0"!r})'
    )
    error = run('-c', code).stderr.splitlines()[-1]
    assert error == "ImportError: NIfTI files need nibabel: pip install 'hdkd-timm[nifti]'."


def test_nibabel_is_imported_for_volumes_alone(tmp_path):
    write_images(tmp_path, classes=['a'], number=1)
    code = (
        'import sys; from hdkd_timm.data.image_io import read_image;'
        f'read_image({str(next(tmp_path.glob("a/*")))!r}); sys.exit("nibabel" in sys.modules)'
    )
    assert run('-c', code).returncode == 0


def test_names():
    assert split_suffix('a/scan.NII.gz#40') == ('a/scan', '.NII.gz')
    assert split_suffix('a/scan.dcm#4') == ('a/scan', '.dcm')
    assert split_suffix('a/scan.x.png') == ('a/scan.x', '.png')
    assert split_suffix('a.b/scan') == ('a.b/scan', '')
    assert is_image_file('scan.nii.gz#40')
    assert not is_image_file(__file__)


def test_slices_in_a_table(tmp_path, caplog):
    caplog.set_level('INFO')
    for name in 'pqrs':
        write(tmp_path / f'{name}.nii.gz', np.random.default_rng(ord(name)).random((8, 8, 6), np.float32))
    with open(tmp_path / 'table.csv', 'w', newline='') as f:
        csv.writer(f).writerows(
            [
                ('path', 'label', 'split', 'group'),
                *(
                    (f'{name}{suffix}#{k}', 'ab'[k % 2], split, name)
                    for name, suffix, split in [
                        ('p', '.nii.gz', 'train'), ('q', '', 'train'), ('r', '', 'test'), ('s', '.nii.gz', 'test')
                    ]
                    for k in range(1, 5)
                ),
            ]
        )  # fmt: skip
    datasets, classes = create(data_csv=tmp_path / 'table.csv')
    assert ({split: len(images) for split, images in datasets.items()}, classes) == (
        {'train': 8, 'test': 8},
        ['a', 'b'],
    )
    assert f"8 images of '{tmp_path / 'table.csv'}' are named without suffix" in caplog.text
    check = check_data(CheckConfig(data_csv=tmp_path / 'table.csv'))
    assert summarize(check)['suffixes'] == {'train': {'.nii.gz': 8}, 'test': {'.nii.gz': 8}}
    assert {(summary.mode, summary.bits) for summary in check.summaries} == {('NIfTI', 32)}
    assert list_pairs(check)[0] == []


def test_slices_to_predict(volume, tmp_path):
    path = write(tmp_path / 'x.nii.gz', volume)
    assert find_images([f'{path}#3', f'{path}#1']) == [f'{path}#3', f'{path}#1']
