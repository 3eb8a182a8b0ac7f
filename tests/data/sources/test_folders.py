import os

import pytest
from helpers import write_images
from PIL import Image
from timm.data.readers.reader_image_folder import find_images_and_targets
from timm.utils import natural_key

from hdkd_timm.data.image_io import IMG_EXTENSIONS
from hdkd_timm.data.samples import find_splits, list_classes, read_folders
from hdkd_timm.data.sources import folders
from hdkd_timm.data.sources.folders import natural_order, sort_files, walk_folder


def touch(path, content=b''):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def test_order_is_timms():
    names = ['b10', 'B9', 'b9x', 'a', '10', '9', 'é', 'a-b/1.png', 'a/1.png', 'a/10.png', 'a/9.png', '007', 'x1y2']
    assert sorted(names, key=natural_order) == sorted(names, key=natural_key)
    # what timm holds equal has one order, what it fails on has one
    assert sorted(['a', 'A', '01', '1'], key=natural_order) == ['01', '1', 'A', 'a']
    assert sorted(['10²', '9²'], key=natural_order) == ['9²', '10²']


def test_images_and_classes_of_ordinary_folders_are_timms(tmp_path):
    for name, number in (('Normal', 12), ('glioma', 3), ('a-b', 2), ('a', 11), ('10', 1), ('9', 1)):
        suffix = '.PNG' if name == 'glioma' else '.png'
        write_images(tmp_path / 'train', classes=[name], number=number, size=4, suffix=suffix)
    expected, class_to_idx = find_images_and_targets(str(tmp_path / 'train'), types=IMG_EXTENSIONS)
    samples, classes = read_folders(tmp_path, only='train')
    assert samples['train'].reader.samples == expected
    assert classes == list(class_to_idx) == ['9', '10', 'a', 'a-b', 'glioma', 'Normal']


def test_each_real_folder_once(tmp_path, caplog):
    inner = tmp_path / 'root' / 'z' / 'deep'
    touch(inner / '1.png')
    touch(tmp_path / 'root' / '0.png')
    touch(tmp_path / 'elsewhere' / '2.png')
    for name, target in (
            ('a', inner), ('b', tmp_path / 'elsewhere'), ('c', tmp_path / 'elsewhere'), ('self', '.'), ('up', '..')):
        os.symlink(target, tmp_path / 'root' / name)
    os.symlink(tmp_path / 'root', inner / 'loop')
    root = str(tmp_path / 'root')
    found = dict(walk_folder(root))
    # a real path goes before a linked one, whatever their names
    assert sorted(path for files in found.values() for path in files) == [
        f'{root}/0.png', f'{root}/b/2.png', f'{root}/z/deep/1.png']
    passed = [record.message for record in caplog.records]
    assert len(passed) == 5
    for name in ('a', 'c', 'self', 'up', 'z/deep/loop'):
        assert any(f"Passed over '{root}/{name}'" in message for message in passed)


def test_kinds_of_files(tmp_path):
    images = [touch(tmp_path / name) for name in ('1.PNG', '2.jfif', '3.gif', '4.dicom', '5.jp2')]
    images.append(touch(tmp_path / '1.2.840.113.77', b'\0' * 128 + b'DICM'))
    for name in ('._1.png', '.DS_Store', 'Thumbs.db', 'labels.csv', 'README.md', '.hidden'):
        touch(tmp_path / name)
    others = [touch(tmp_path / name) for name in ('a.xyz', 'noend', 'train.zip', 'x.npy', 'volume.nii.gz', '.b.png')]
    os.symlink('nowhere', tmp_path / 'broken.png')
    os.symlink('loop.png', tmp_path / 'loop.png')
    os.mkfifo(tmp_path / 'pipe')  # must not be opened
    os.mkfifo(tmp_path / 'pipe.png')
    listing = sort_files(path for _, files in walk_folder(str(tmp_path)) for path in files)
    assert sorted(listing.images) == sorted([*images, *(
        str(tmp_path / name) for name in ('broken.png', 'loop.png', 'pipe.png'))])
    assert sorted(listing.others) == sorted([*others, str(tmp_path / 'pipe')])


def unreadable(monkeypatch, folder):
    """The file mode stops nobody who is root."""
    scandir = os.scandir

    def scan(path='.'):
        if os.path.abspath(path) == str(folder):
            raise PermissionError(13, 'Permission denied', str(path))
        return scandir(path)

    monkeypatch.setattr(folders.os, 'scandir', scan)


@pytest.mark.parametrize('place', ['train', 'train/b', 'train/b/deep'])
def test_unreadable_folder(image_folder, monkeypatch, place):
    (image_folder / 'train' / 'b' / 'deep').mkdir()
    unreadable(monkeypatch, image_folder / place)
    with pytest.raises(OSError, match=f"Cannot read folder '.*/{place}' .*Permission denied.*make it readable"):
        read_folders(image_folder)


def test_linked_folders_in_a_class_folder_are_as_real_ones(image_folder, tmp_path, caplog):
    write_images(tmp_path, classes=['elsewhere'], number=2)
    inner = image_folder / 'train' / 'a' / 'more'
    os.symlink(tmp_path / 'elsewhere', inner)
    with pytest.raises(ValueError, match='a/more.* a level too deep'):
        read_folders(image_folder)
    # links to where they lie in lead in a circle
    for target in ('.', '..', '../..'):
        inner.unlink()
        os.symlink(target, inner)
        caplog.clear()
        samples, classes = read_folders(image_folder)
        assert ({split: len(part) for split, part in samples.items()}, classes) == (
            {'train': 24, 'test': 12}, ['a', 'b', 'c'])
        assert [record.message for record in caplog.records] == [
            f"Passed over '{inner}': it is the folder '{os.path.normpath(inner.parent / target)}' again."]


def test_class_folders_that_are_links(image_folder, tmp_path, caplog):
    (image_folder / 'train' / 'b').rename(tmp_path / 'moved')
    os.symlink(tmp_path / 'moved', image_folder / 'train' / 'b')
    os.symlink('.', image_folder / 'train' / 'loop')
    samples, classes = read_folders(image_folder)
    assert (len(samples['train']), classes) == (24, ['a', 'b', 'c'])
    assert f"Passed over '{image_folder}/train/loop'" in caplog.text
    os.symlink(tmp_path / 'moved', image_folder / 'train' / 'd')
    with pytest.raises(ValueError, match="train/b' and '.*train/d' are the same folder: an image has one class"):
        read_folders(image_folder)


def test_folder_of_two_splits(image_folder, caplog):
    os.symlink('test', image_folder / 'val')
    assert set(read_folders(image_folder)[0]) == {'train', 'val', 'test'}
    assert f"'{image_folder}/val' and '{image_folder}/test' are the same" in caplog.text
    (image_folder / 'val').unlink()
    for path in (image_folder / 'test' / 'c').iterdir():
        path.unlink()
    (image_folder / 'test' / 'c').rmdir()
    os.symlink('../train/c', image_folder / 'test' / 'c')
    caplog.clear()
    read_folders(image_folder)
    assert f"'{image_folder}/train/c' and '{image_folder}/test/c' are the same" in caplog.text


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


def test_what_is_left_out_is_named(image_folder, caplog):
    for place in ('x.zip', 'train/y.xyz', 'train/a/1.xyz', 'train/a/.z.png', 'test/b/masks/2.XYZ', 'test/b/notes.txt'):
        touch(image_folder / place)
    (image_folder / 'validate').mkdir()
    Image.new('L', (4, 4)).save(image_folder / 'stray.png')
    samples, _ = read_folders(image_folder)
    assert len(samples['train']) == 24
    assert [record.message for record in caplog.records] == [
        f"Left out 1 folder of '{image_folder}' beside its splits: validate.",
        f"Left out 1 image of '{image_folder}' outside of its splits: stray.png.",
        f"Left out 5 files of '{image_folder}', hidden or without the suffix of an image: test/b/masks/2.XYZ,"
        ' train/a/1.xyz, train/a/.z.png, train/y.xyz, x.zip (by suffix: .xyz 3, .png 1, .zip 1).']
    for path in (image_folder / 'train' / 'c').iterdir():
        path.rename(path.with_suffix('.xyz'))
    with pytest.raises(FileNotFoundError, match=r"No images in class folder '.*c' .*it holds \.xyz 8"):
        read_folders(image_folder)


def test_splits_that_are_no_folders(image_folder, caplog):
    touch(image_folder / 'val')
    os.mkfifo(image_folder / 'valid.tar')
    assert list(find_splits(image_folder)) == ['train', 'test']
    read_folders(image_folder)
    assert "Left out 2 files of" in caplog.text
    assert 'val, valid.tar' in caplog.text
