"""Cached images equal the original ones in every process, and damaged ones are read again."""

import copy
import logging
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import write_images
from PIL import Image
from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio
from torchvision import transforms

from hdkd_timm.data import cache as cache_module
from hdkd_timm.data.augment import AugmentConfig, create_eval_transform, create_train_transform
from hdkd_timm.data.cache import ImageStore, cache_images, find_offsets, split_transform
from hdkd_timm.data.config import DataConfig
from hdkd_timm.data.datasets import create_datasets
from hdkd_timm.data.loader import SplitLoader
from hdkd_timm.data.samples import SampleDataset
from hdkd_timm.utils.distributed import World

DATA = dict(
    input_size=(3, 24, 24),
    mean=(0.1, 0.5, 0.7),
    std=(0.2, 0.3, 0.4),
    interpolation='bilinear',
    crop_pct=1.0,
    crop_mode='squash',
)
NOTHING = transforms.Compose([])


@pytest.fixture
def folder(tmp_path):
    """18 training images of three sizes, one of them rotated by EXIF; 6 test images."""
    write_images(tmp_path / 'train', number=6)
    for path in (tmp_path / 'train').rglob('*.png'):
        Image.open(path).resize(((40, 30), (25, 50), (33, 33))[int(path.stem) // 2]).save(path)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / 'train' / 'a' / '1.png'
    Image.open(path).save(path, exif=exif)
    write_images(tmp_path / 'test', number=2, seed=9)
    return tmp_path


@pytest.fixture
def dataset(folder):
    return create_datasets(DataConfig(data_dir=str(folder)))[0]['train']


@pytest.fixture
def reads(monkeypatch):
    """How often each image is read."""
    counts = Counter()
    read = SampleDataset.read

    def count(self, index):
        counts[index] += 1
        return read(self, index)

    monkeypatch.setattr(SampleDataset, 'read', count)
    return counts


def make(dataset, kind, tmp_path, front=NOTHING, **kwargs):
    return cache_images(dataset, front, kind, tmp_path / 'cache', 'train', **kwargs)


@pytest.mark.parametrize('suffix', ['.png', '.tif', '.jpg', '.webp'])
def test_rotated_images_of_all_formats_are_cached(tmp_path, reads, suffix):
    """Their size, known from the header, is that of the upright image."""
    for split in ('train', 'test'):
        for label in 'ab':
            (tmp_path / split / label).mkdir(parents=True)
            for orientation in range(1, 9):
                exif = Image.Exif()
                exif[0x0112] = orientation
                Image.new('RGB', (20 + orientation, 30), 'red').save(
                    tmp_path / split / label / f'{orientation}{suffix}', exif=exif
                )
    dataset = create_datasets(DataConfig(data_dir=str(tmp_path)))[0]['train']
    cached = make(dataset, 'ram', tmp_path)
    for _ in range(2):
        sizes = [cached[i][0].size for i in range(len(cached))]
    assert set(reads.values()) == {1}
    assert len(set(sizes)) == 8
    assert sizes == dataset.image_sizes


@pytest.mark.parametrize('kind', ['ram', 'disk'])
@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_images_are_cached(dataset, tmp_path, reads, kind, mode):
    dataset = SampleDataset(dataset.samples, mode)
    expected = [dataset[i] for i in range(len(dataset))]
    assert len({image.size for image, _ in expected}) == 4
    reads.clear()
    cached = make(dataset, kind, tmp_path)
    assert not reads  # the sizes come from the headers
    for _ in range(3):
        for i, (image, target) in enumerate(expected):
            ours, label = cached[i]
            assert (ours.mode, ours.size, label) == (mode, image.size, target)
            assert ours.tobytes() == image.tobytes()
    assert set(reads.values()) == {1}
    assert len(reads) == len(cached) == 18
    with pytest.raises(ValueError, match='read-only|readonly'):
        np.asarray(cached[0][0])[0] = 1


@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('kind', ['ram', 'disk'])
@pytest.mark.parametrize(
    'augment',
    [None, AugmentConfig(), AugmentConfig(load_size=28), AugmentConfig(aug='paper'), AugmentConfig(aug='none')],
)
def test_batches_are_those_without_a_cache(dataset, tmp_path, kind, augment, num_workers):
    plain = SplitLoader(dataset, DATA, 5, augment, 0)
    loader = SplitLoader(
        dataset, DATA, 5, augment, num_workers, cache=lambda data, front: make(data, kind, tmp_path, front)
    )
    assert loader.dataset is dataset
    for epoch in range(2):
        batches = [list(each.epoch(epoch) if augment else each) for each in (loader, plain)]
        for (ours, labels), (theirs, expected) in zip(*batches):
            assert torch.equal(ours, theirs)
            assert torch.equal(labels, expected)


@pytest.mark.parametrize(('kind', 'start_method'), [('ram', 'fork'), ('disk', 'fork'), ('ram', 'forkserver')])
def test_loader_processes_share_what_they_read(dataset, tmp_path, kind, start_method):
    front = split_transform(create_eval_transform(DATA))[0]
    cached = make(dataset, kind, tmp_path, front)
    assert cached.store.get(0) is None
    loader = torch.utils.data.DataLoader(
        cached,
        num_workers=1 if start_method == 'forkserver' else 2,  # each imports torch anew
        multiprocessing_context=start_method,
        collate_fn=list,
    )
    assert sum(len(batch) for batch in loader) == 18
    for i in range(18):
        assert cached.store.get(i).tobytes() == front(dataset.read(i)).tobytes()


@pytest.mark.parametrize(
    ('transform', 'fixed'),
    [
        (create_eval_transform(DATA), 2),
        (create_eval_transform(dict(DATA, crop_mode='center', crop_pct=0.9)), 2),
        (create_eval_transform(dict(DATA, crop_mode='border', crop_pct=0.9)), 2),
        (create_train_transform(AugmentConfig(aug='paper'), DATA), 1),
        (create_train_transform(AugmentConfig(aug='paper', aug_device=True), DATA), 1),
        (create_train_transform(AugmentConfig(), DATA), 0),
        (create_train_transform(AugmentConfig(load_size=30), DATA), 1),
        (transforms.Compose([ResizeKeepRatio(24), CenterCropOrPad(24)]), 2),
        (transforms.Compose([ResizeKeepRatio(24, random_scale_prob=0.5), CenterCropOrPad(24)]), 0),
        (transforms.Compose([ResizeKeepRatio(24, random_aspect_prob=0.5), CenterCropOrPad(24)]), 0),
        (transforms.Compose([ResizeKeepRatio(24, interpolation='random')]), 0),
    ],
)
def test_split_transform(dataset, tmp_path, transform, fixed):
    front, rest = split_transform(transform)
    assert front.transforms == transform.transforms[:fixed]
    assert rest.transforms == transform.transforms[fixed:]
    store = make(dataset, 'ram', tmp_path, front).store
    for i in range(len(dataset)):  # an image of another size would not be stored
        assert front(dataset.read(i)).size == tuple(store.sizes[i])


def test_file_is_reused(dataset, folder, tmp_path, reads, caplog):
    caplog.set_level(logging.INFO)
    front = split_transform(create_eval_transform(DATA))[0]
    first = make(dataset, 'disk', tmp_path, front)
    assert first.store.path.stat().st_size == 18 * (24 * 24 * 3 + 4)
    images = [first[i][0].tobytes() for i in range(18)]
    reads.clear()
    again = make(copy.deepcopy(dataset), 'disk', tmp_path, front)
    assert [again[i][0].tobytes() for i in range(18)] == images
    assert not reads
    assert '18 images of train take 30.4 KiB on disk, in' in caplog.text
    assert '(reused)' in caplog.text
    # not for other images, nor by another transform
    others = [
        make(dataset, 'disk', tmp_path, split_transform(create_eval_transform(dict(DATA, **change)))[0])
        for change in (dict(interpolation='bicubic'), dict(input_size=(3, 25, 25)))
    ]
    path = folder / 'train' / 'a' / '0.png'
    Image.new('RGB', (40, 30), 'red').save(path)
    os.utime(path, ns=(1, 1))
    others.append(make(dataset, 'disk', tmp_path, front))
    assert len({each.store.path for each in (first, *others)}) == 4
    assert others[-1][0][0].getpixel((0, 0)) == (255, 0, 0)
    assert sorted(path.suffix for path in (tmp_path / 'cache').iterdir()) == ['.images'] * 4 + ['.lock'] * 4


def test_damaged_image_is_read_again(dataset, tmp_path, reads):
    cached = make(dataset, 'disk', tmp_path)
    expected = [cached[i][0].tobytes() for i in range(18)]
    reads.clear()
    content = bytearray(cached.store.path.read_bytes())
    content[cached.store.offsets[3] + 7] ^= 1
    cached.store.path.write_bytes(content)
    again = make(dataset, 'disk', tmp_path)
    assert [again[i][0].tobytes() for i in range(18)] == expected
    assert reads == {3: 1}


def test_store_of_another_process():
    assert find_offsets(np.array([[2, 3], [4, 5]]), 3).tolist() == [8, 8 + 18, 8 + 18 + 60]
    store = ImageStore(np.array([[2, 3]]), 3, Path('gone'))
    assert pickle.loads(pickle.dumps(store))._bytes is None
    store = ImageStore(np.array([[2, 3]]), 3)
    store.put(0, Image.new('RGB', (3, 2)))  # not the expected size
    assert store.get(0) is None
    store.put(0, Image.new('RGB', (2, 3), 'blue'))
    assert store.get(0).getpixel((1, 2)) == (0, 0, 255)


@pytest.mark.parametrize('processes', [1, 3])
def test_too_little_memory(dataset, tmp_path, monkeypatch, processes):
    front = split_transform(create_eval_transform(DATA))[0]
    needed = 18 * (24 * 24 * 3 + 4) * processes
    monkeypatch.setattr(cache_module, 'available_memory', lambda: needed)
    monkeypatch.setenv('LOCAL_WORLD_SIZE', str(processes))
    asked = []
    world = World(torch.device('cpu'), size=processes)
    monkeypatch.setattr(World, 'gather', lambda self, value: asked.append(value) or [None, value])
    make(dataset, 'ram', tmp_path, front, world=world)
    monkeypatch.setattr(cache_module, 'available_memory', lambda: needed - 1)
    times = ' in each of 3 processes' if processes == 3 else ''
    with pytest.raises(MemoryError, match=rf'18 images of train take 30\.4 KiB of memory{times}, but .* are available'):
        make(dataset, 'ram', tmp_path, front, world=world)
    assert len(asked) == 2  # all processes are, and raise what one of them lacks
    # where processes share memory, there is less of it
    monkeypatch.setattr(cache_module, 'available_memory', lambda: needed)
    for free in (needed, needed - 1):
        monkeypatch.setattr(cache_module.shutil, 'disk_usage', lambda folder, free=free: type('', (), dict(free=free)))
        if free == needed:
            make(dataset, 'ram', tmp_path, front, world=world)
    with pytest.raises(MemoryError, match=r'through which processes share it and which has .* free: enlarge .*--shm'):
        make(dataset, 'ram', tmp_path, front, world=world)


def test_too_little_disk(dataset, tmp_path, monkeypatch):
    usage = type('Usage', (), dict(free=1000))
    monkeypatch.setattr(cache_module.shutil, 'disk_usage', lambda folder: usage)
    with pytest.raises(OSError, match=r'18 images of train take .* on the disk of .* free: use another --cache-dir'):
        make(dataset, 'disk', tmp_path)
    assert not list((tmp_path / 'cache').glob('*.images'))


def test_tar_files_and_datasets_without_files(folder, tmp_path):
    import tarfile

    for split in ('train', 'test'):
        with tarfile.open(tmp_path / f'{split}.tar', 'w') as tar:
            tar.add(folder / split, arcname='.')
    (tmp_path / 'tars').mkdir()
    for split in ('train', 'test'):
        (tmp_path / f'{split}.tar').rename(tmp_path / 'tars' / f'{split}.tar')
    dataset = create_datasets(DataConfig(data_dir=str(tmp_path / 'tars')))[0]['train']
    for kind in ('ram', 'disk'):
        cached = make(dataset, kind, tmp_path)
        for _ in range(2):
            assert [cached[i][0].tobytes() for i in range(18)] == [dataset[i][0].tobytes() for i in range(18)]
    dataset.samples.reader = [dataset.samples.reader[i] for i in range(18)]
    dataset.samples.filenames = lambda: [str(i) for i in range(18)]
    with pytest.raises(ValueError, match='--cache disk is for image files and tar files'):
        make(dataset, 'disk', tmp_path, split_transform(create_eval_transform(DATA))[0])
