"""Image folders: splits, classes, links, and files that are not used."""

import os

import numpy as np
import pytest
from data_helpers import create, touch
from helpers import write_dicom, write_images
from PIL import Image
from timm.data.readers.reader_image_folder import find_images_and_targets

from hdkd_timm.data.image_files import IMG_EXTENSIONS
from hdkd_timm.data.sources import walk
from hdkd_timm.data.sources.folders import find_splits, list_classes, read_folders


@pytest.mark.parametrize(
    ('break_it', 'error', 'match'),
    [
        (lambda d: (d / 'train').rename(d / 'images'), FileNotFoundError, "no folder 'train' .*images, test"),
        (
            lambda d: (d / 'test').rename(d / 'images'),
            ValueError,
            "neither a split 'test' nor 'val': .*--folds or --val-",
        ),
        (lambda d: (d / 'train' / 'empty').mkdir(), FileNotFoundError, 'No images in class folder .*empty'),
        (lambda d: write_images(d / 'test', classes=['d']), ValueError, "Class 'd' is in .*test' but not in .*train'"),
        (lambda d: write_images(d / 'train', classes=['d']), ValueError, "Class 'd' is in .*train' but not in .*test'"),
        (
            lambda d: write_images(d / 'val', classes=['a', 'b']),
            ValueError,
            "Class 'c' is in .*train' but not in .*val'",
        ),
        (lambda d: write_images(d / 'train', classes=['.']), ValueError, 'outside class folders'),
        (lambda d: write_images(d / 'train' / 'a', classes=['deep']), ValueError, 'a/deep.* one level too deep'),
        (lambda d: write_images(d / 'Training'), ValueError, "'Training' and 'train' .* both the train split"),
        (lambda d: (d / 'test.tar').touch(), ValueError, r"'test' and 'test\.tar' .* both the test split"),
        (lambda d: [p.unlink() for p in d.glob('*/*/*.png')], FileNotFoundError, 'No images in class folder'),
    ],
)
def test_bad_folders(image_folder, break_it, error, match):
    break_it(image_folder)
    with pytest.raises(error, match=match):
        create(image_folder)


def test_test_images_without_labels_are_left_out(image_folder, caplog):
    (image_folder / 'test').rename(image_folder / 'val')
    write_images(image_folder / 'test', classes=['.'], number=1)
    write_dicom(image_folder / 'test' / 'IM0001', np.zeros((2, 2), np.uint8))
    samples, classes = read_folders(image_folder)
    assert {split: len(of_split) for split, of_split in samples.items()} == {'train': 24, 'val': 12}
    assert classes == ['a', 'b', 'c']
    assert f"Left out '{image_folder / 'test'}': 2 images without class folders, so without labels." in caplog.text
    with pytest.raises(ValueError, match='outside class folders'):  # where these very images are asked for
        read_folders(image_folder, only='test')
    write_images(image_folder / 'test', number=1)
    with pytest.raises(ValueError, match='outside class folders'):  # some with and some without
        read_folders(image_folder)


def test_images_and_classes_of_ordinary_folders_are_timms(tmp_path):
    for name, number in (('Normal', 12), ('glioma', 3), ('a-b', 2), ('a', 11), ('10', 1), ('9', 1)):
        suffix = '.PNG' if name == 'glioma' else '.png'
        write_images(tmp_path / 'train', classes=[name], number=number, size=4, suffix=suffix)
    expected, class_to_idx = find_images_and_targets(str(tmp_path / 'train'), types=IMG_EXTENSIONS)
    samples, classes = read_folders(tmp_path, only='train')
    assert samples['train'].reader.samples == expected
    assert classes == list(class_to_idx) == ['9', '10', 'a', 'a-b', 'glioma', 'Normal']


def unreadable(monkeypatch, folder):
    """The file mode stops nobody who is root."""
    scandir = os.scandir

    def scan(path='.'):
        if os.path.abspath(path) == str(folder):
            raise PermissionError(13, 'Permission denied', str(path))
        return scandir(path)

    monkeypatch.setattr(walk.os, 'scandir', scan)


@pytest.mark.parametrize('place', ['train', 'train/b', 'train/b/deep'])
def test_unreadable_folder(image_folder, monkeypatch, place):
    (image_folder / 'train' / 'b' / 'deep').mkdir()
    unreadable(monkeypatch, image_folder / place)
    with pytest.raises(OSError, match=f"Cannot read directory '.*/{place}' .*Permission denied.*make it readable"):
        read_folders(image_folder)


def test_linked_folders_in_a_class_folder_count_as_real_ones(image_folder, tmp_path, caplog):
    write_images(tmp_path, classes=['elsewhere'], number=2)
    inner = image_folder / 'train' / 'a' / 'more'
    os.symlink(tmp_path / 'elsewhere', inner)
    with pytest.raises(ValueError, match='a/more.* one level too deep'):
        read_folders(image_folder)
    # links to where they lie in lead in a circle
    for target in ('.', '..', '../..'):
        inner.unlink()
        os.symlink(target, inner)
        caplog.clear()
        samples, classes = read_folders(image_folder)
        assert ({split: len(part) for split, part in samples.items()}, classes) == (
            {'train': 24, 'test': 12},
            ['a', 'b', 'c'],
        )
        assert [record.message for record in caplog.records] == [
            f"Skipped '{inner}': it is the same directory as '{os.path.normpath(inner.parent / target)}'."
        ]


def test_class_folders_that_are_links(image_folder, tmp_path, caplog):
    (image_folder / 'train' / 'b').rename(tmp_path / 'moved')
    os.symlink(tmp_path / 'moved', image_folder / 'train' / 'b')
    os.symlink('.', image_folder / 'train' / 'loop')
    samples, classes = read_folders(image_folder)
    assert (len(samples['train']), classes) == (24, ['a', 'b', 'c'])
    assert f"Skipped '{image_folder}/train/loop'" in caplog.text
    os.symlink(tmp_path / 'moved', image_folder / 'train' / 'd')
    with pytest.raises(ValueError, match="train/b' and '.*train/d' are the same directory, but an image has"):
        read_folders(image_folder)


def test_folder_of_two_splits(image_folder, caplog):
    os.symlink('test', image_folder / 'val')
    assert set(read_folders(image_folder)[0]) == {'train', 'val', 'test'}
    assert f"'{image_folder}/val' and '{image_folder}/test' are the same directory" in caplog.text
    (image_folder / 'val').unlink()
    for path in (image_folder / 'test' / 'c').iterdir():
        path.unlink()
    (image_folder / 'test' / 'c').rmdir()
    os.symlink('../train/c', image_folder / 'test' / 'c')
    caplog.clear()
    read_folders(image_folder)
    assert f"'{image_folder}/train/c' and '{image_folder}/test/c' are the same directory" in caplog.text


def test_hidden_folders_are_passed_over(image_folder, caplog):
    for place in ('', 'train', 'train/a', 'train/a/.ipynb_checkpoints', 'train/__MACOSX'):
        for name in ('.ipynb_checkpoints', '__MACOSX'):
            write_images(image_folder / place, classes=[name], number=1)
    samples, classes = read_folders(image_folder)
    assert (len(samples['train']), classes) == (24, ['a', 'b', 'c'])
    assert not caplog.records
    write_images(image_folder / 'train' / 'd', classes=['.ipynb_checkpoints'], number=1)
    with pytest.raises(FileNotFoundError, match="No images in class folder '.*train/d'"):
        list_classes(image_folder / 'train')


def test_ignored_files_are_reported(image_folder, caplog):
    for place in ('x.zip', 'train/y.xyz', 'train/a/1.xyz', 'train/a/.z.png', 'test/b/masks/2.XYZ', 'test/b/notes.txt'):
        touch(image_folder / place)
    (image_folder / 'validate').mkdir()
    Image.new('L', (4, 4)).save(image_folder / 'stray.png')
    samples, _ = read_folders(image_folder)
    assert len(samples['train']) == 24
    assert [record.message for record in caplog.records] == [
        f"Ignored 1 folder in '{image_folder}' beside its splits: validate.",
        f"Ignored 1 image in '{image_folder}' outside its splits: stray.png.",
        f"Ignored 5 files in '{image_folder}', hidden or without an image suffix: test/b/masks/2.XYZ,"
        ' train/a/1.xyz, train/a/.z.png, train/y.xyz, x.zip (by suffix: .xyz 3, .png 1, .zip 1).',
    ]
    for path in (image_folder / 'train' / 'c').iterdir():
        path.rename(path.with_suffix('.xyz'))
    with pytest.raises(FileNotFoundError, match=r"No images in class folder '.*c' .*found \.xyz 8"):
        read_folders(image_folder)


def test_splits_that_are_not_folders(image_folder, caplog):
    touch(image_folder / 'val')
    os.mkfifo(image_folder / 'valid.tar')
    assert list(find_splits(image_folder)) == ['train', 'test']
    read_folders(image_folder)
    assert 'Ignored 2 files in' in caplog.text
    assert 'val, valid.tar' in caplog.text
