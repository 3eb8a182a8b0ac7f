"""Which files of a directory tree are images, and in which order."""

import os

from data_helpers import touch
from timm.utils import natural_key

from hdkd_timm.data.sources.walk import natural_order, sort_files, walk_folder


def test_order_is_timms():
    names = ['b10', 'B9', 'b9x', 'a', '10', '9', 'é', 'a-b/1.png', 'a/1.png', 'a/10.png', 'a/9.png', '007', 'x1y2']
    assert sorted(names, key=natural_order) == sorted(names, key=natural_key)
    # what timm holds equal has one order, what it fails on has one
    assert sorted(['a', 'A', '01', '1'], key=natural_order) == ['01', '1', 'A', 'a']
    assert sorted(['10²', '9²'], key=natural_order) == ['9²', '10²']


def test_each_real_folder_once(tmp_path, caplog):
    inner = tmp_path / 'root' / 'z' / 'deep'
    touch(inner / '1.png')
    touch(tmp_path / 'root' / '0.png')
    touch(tmp_path / 'elsewhere' / '2.png')
    for name, target in (
        ('a', inner),
        ('b', tmp_path / 'elsewhere'),
        ('c', tmp_path / 'elsewhere'),
        ('self', '.'),
        ('up', '..'),
    ):
        os.symlink(target, tmp_path / 'root' / name)
    os.symlink(tmp_path / 'root', inner / 'loop')
    root = str(tmp_path / 'root')
    found = dict(walk_folder(root))
    # a real path goes before a linked one, whatever their names
    assert sorted(path for files in found.values() for path in files) == [
        f'{root}/0.png',
        f'{root}/b/2.png',
        f'{root}/z/deep/1.png',
    ]
    passed = [record.message for record in caplog.records]
    assert len(passed) == 5
    for name in ('a', 'c', 'self', 'up', 'z/deep/loop'):
        assert any(f"Skipped '{root}/{name}'" in message for message in passed)


def test_kinds_of_files(tmp_path):
    images = [touch(tmp_path / name) for name in ('1.PNG', '2.jfif', '3.gif', '4.dicom', '5.jp2', '6.nii.gz')]
    images.append(touch(tmp_path / '1.2.840.113.77', b'\0' * 128 + b'DICM'))
    for name in ('._1.png', '.DS_Store', 'Thumbs.db', 'labels.csv', 'README.md', '.hidden'):
        touch(tmp_path / name)
    others = [touch(tmp_path / name) for name in ('a.xyz', 'noend', 'train.zip', 'x.npy', 'volume.mha', '.b.png')]
    os.symlink('nowhere', tmp_path / 'broken.png')
    os.symlink('loop.png', tmp_path / 'loop.png')
    os.mkfifo(tmp_path / 'pipe')  # must not be opened
    os.mkfifo(tmp_path / 'pipe.png')
    listing = sort_files(path for _, files in walk_folder(str(tmp_path)) for path in files)
    assert sorted(listing.images) == sorted(
        [*images, *(str(tmp_path / name) for name in ('broken.png', 'loop.png', 'pipe.png'))]
    )
    assert sorted(listing.others) == sorted([*others, str(tmp_path / 'pipe')])
