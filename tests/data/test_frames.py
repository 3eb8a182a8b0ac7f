"""Frames and pages of files of several, named FILE#FRAME."""

import csv
from pathlib import Path

import numpy as np
import pydicom
import pytest
from data_helpers import create
from helpers import write_dicom
from PIL import Image
from pydicom.dataset import Dataset

from hdkd_timm.analysis.data_check import CheckConfig, check_data, list_pairs
from hdkd_timm.data.image_files import is_image_file, split_frame
from hdkd_timm.data.image_io import image_size, read_image
from hdkd_timm.data.inspection import inspect_image
from hdkd_timm.evaluation.predict import find_images


def pixels(path, mode='L'):
    return np.asarray(read_image(path, mode)).astype(int)


@pytest.fixture(params=['tif', 'gif', 'dcm'])
def stack(request, tmp_path):
    """A file of three grey frames, of 10, 20 and 30 everywhere but for black and white corners."""
    frames = np.repeat(np.arange(10, 40, 10, dtype=np.uint8), 6 * 5).reshape(3, 6, 5)
    frames[:, 0, 0], frames[:, -1, -1] = 0, 255
    path = tmp_path / f'stack.{request.param}'
    if path.suffix == '.dcm':
        return write_dicom(path, frames, NumberOfFrames=3, WindowCenter=128, WindowWidth=256)
    first, *others = map(Image.fromarray, frames)
    first.save(path, save_all=True, append_images=others)
    return path


def test_frames_are_numbered_from_0(stack):
    for i, value in enumerate((10, 20, 30)):
        image = pixels(f'{stack}#{i}')
        assert image[3, 2] == pytest.approx(value, abs=1)
        assert (image[0, 0], image[-1, -1]) == (0, 255)
        assert image_size(f'{stack}#{i}') == (5, 6)
    assert len({inspect_image(f'{stack}#{i}').digest for i in range(3)}) == 3
    assert is_image_file(f'{stack}#2')


def test_frame_that_there_is_not(stack):
    for read in (read_image, image_size):
        with pytest.raises(ValueError, match='no frame 3, it has 3, numbered from 0'):
            read(f'{stack}#3')


def test_which_frame(stack):
    if stack.suffix == '.gif':
        np.testing.assert_array_equal(pixels(stack), pixels(f'{stack}#0'))
        return
    for read in (read_image, image_size):
        with pytest.raises(ValueError, match=r'expected one image: name one as FILE#0, FILE#1'):
            read(stack)


def test_a_file_of_one_image_has_frame_0(tmp_path):
    Image.new('L', (3, 2), 7).save(tmp_path / 'x.png')
    assert pixels(f'{tmp_path / "x.png"}#0').tolist() == pixels(tmp_path / 'x.png').tolist()
    with pytest.raises(ValueError, match='no frame 1, it has 1, numbered from 0'):
        read_image(f'{tmp_path / "x.png"}#1')


def test_a_file_may_have_this_very_name(tmp_path):
    Image.new('L', (3, 2), 7).save(tmp_path / 'x#1', format='PNG')
    Image.new('L', (3, 2), 9).save(tmp_path / 'x', format='PNG')
    assert split_frame(tmp_path / 'x#1') == (str(tmp_path / 'x#1'), None)
    assert split_frame(tmp_path / 'x#0') == (str(tmp_path / 'x'), 0)
    assert (pixels(tmp_path / 'x#1').max(), pixels(tmp_path / 'x#0').max()) == (7, 9)
    assert split_frame('a#b.png') == ('a#b.png', None)
    assert split_frame('#3') == ('#3', None)


def test_frames_in_a_table(stack, tmp_path):
    with (tmp_path / 'images.csv').open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['path', 'label', 'split'])
        for split, frames in (('train', (0, 1)), ('test', (2, 2))):
            writer.writerows([f'{stack.name}#{i}', 'ab'[j], split] for j, i in enumerate(frames))
    with pytest.raises(ValueError, match=r"line 5: image 'stack\.\w+#2' is in line 4 already"):
        create(data_csv=tmp_path / 'images.csv')
    lines = (tmp_path / 'images.csv').read_text().splitlines()
    other = tmp_path / 'other.png'
    Image.new('L', (5, 6), 50).save(other)
    (tmp_path / 'images.csv').write_text('\n'.join([*lines[:-1], 'other.png,b,test']))
    datasets, classes = create(data_csv=tmp_path / 'images.csv')
    assert classes == ['a', 'b']
    assert [int(np.asarray(datasets['train'].read(i))[3, 2, 0]) for i in (0, 1)] == pytest.approx([10, 20], abs=1)
    assert find_images([f'{stack}#1', f'{stack}#2']) == [f'{stack}#1', f'{stack}#2']
    with pytest.raises(FileNotFoundError, match="stack' does not exist"):
        find_images([f'{stack.with_suffix("")}#1'])
    found = check_data(CheckConfig(data_csv=str(tmp_path / 'images.csv')))
    assert {pair['kind'] for pair in list_pairs(found)[0]} == {'near'}  # frames of one file are no equal files


def test_transforms_in_functional_groups(tmp_path):
    """Files of several frames keep the window of each frame, and what they share, in sequences."""

    def item(**elements):
        dataset = Dataset()
        for name, value in elements.items():
            setattr(dataset, name, value)
        return dataset

    shared = item(PixelValueTransformationSequence=[item(RescaleSlope=2, RescaleIntercept=-100)])
    windows = [item(FrameVOILUTSequence=[item(WindowCenter=centre, WindowWidth=101)]) for centre in (50.5, 150.5)]
    frames = np.array([[[50, 75, 100]], [[100, 125, 150]]], np.uint16)  # 0, 50, 100 and 100, 150, 200 after the slope
    path = write_dicom(
        tmp_path / 'x.dcm',
        frames,
        NumberOfFrames=2,
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=windows,
    )
    assert pixels(f'{path}#0').tolist() == [[0, 128, 255]]
    assert pixels(f'{path}#1').tolist() == [[0, 128, 255]]
    windows[1].FrameVOILUTSequence[0].WindowCenter = 250.5
    path = write_dicom(
        tmp_path / 'y.dcm',
        frames,
        NumberOfFrames=2,
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=windows,
    )
    assert pixels(f'{path}#1').tolist() == [[0, 0, 0]]


def test_compressed_frames():
    path = Path(pydicom.__file__).parent / 'data' / 'test_files' / 'SC_rgb_rle_2frame.dcm'
    frames = pydicom.dcmread(path).pixel_array
    for i in (0, 1):
        np.testing.assert_array_equal(pixels(f'{path}#{i}', 'RGB'), frames[i])
