"""What the tests of the data share."""

import tarfile

import numpy as np
import torch
from PIL import Image

from hdkd_timm.data.config import DataConfig
from hdkd_timm.data.datasets import create_datasets
from hdkd_timm.data.image_io import read_image
from hdkd_timm.data.samples import FileReader, Samples

STATS = dict(mean=(0.1, 0.5, 0.7), std=(0.2, 0.3, 0.4), interpolation='bilinear', crop_pct=1.0, crop_mode='squash')
DATA = dict(STATS, input_size=(3, 24, 24))  # as timm resolves the data settings of a network
# left to right, top to bottom
CORNERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)


def create(data_dir=None, only=None, **kwargs):
    """Datasets of a folder, and the class names."""
    return create_datasets(DataConfig(data_dir=data_dir and str(data_dir), **kwargs), only=only)


def sizes(datasets):
    return {split: len(dataset) for split, dataset in datasets.items()}


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def make_samples(targets, groups=None):
    targets = np.array(targets)
    reader = FileReader([(f'{i}.png', int(t)) for i, t in enumerate(targets)])
    return Samples(reader, np.arange(len(targets)), targets, None if groups is None else np.array(groups))


def touch(path, content=b''):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def tar_folder(path, folder, prefix=''):
    """Write the files of a folder to a tar file."""
    with tarfile.open(path, 'w') as tar:
        for file in sorted(folder.rglob('*.*')):
            tar.add(file, f'{prefix}{file.relative_to(folder)}')


def table(splits, labels='ab', groups=None):
    """Lines of a table, an image for each letter of `splits`: t, v, e (test) or - for none."""
    names = {'t': 'train', 'v': 'val', 'e': 'test', '-': ''}
    lines = ['path,label,split' + (',group' if groups else '')]
    for i, letter in enumerate(splits):
        lines.append(f'images/{i}.png,{labels[i % len(labels)]},{names[letter]}' + (f',{groups[i]}' if groups else ''))
    return lines


def pixels(path, mode='RGB'):
    """The image that is read from a file, as integers."""
    image = read_image(path, mode)
    assert image.mode == mode
    return np.asarray(image).astype(int)


def blocks(values, size=16):
    """Each value as a block of pixels, so that lossy formats keep it."""
    return values.repeat(size, 0).repeat(size, 1)


def data_config(in_chans=3, img_size=32, **kwargs):
    return dict(
        input_size=(in_chans, img_size, img_size),
        mean=(0.5,) * in_chans,
        std=(0.2,) * in_chans,
        interpolation='bilinear',
        crop_pct=1.0,
        crop_mode='squash',
        **kwargs,
    )


def noise(size=(40, 50), mode='RGB', seed=0):
    pixels = np.random.default_rng(seed).integers(256, size=(*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


class Numbered(torch.utils.data.Dataset):
    """Images whose brightness, and class, is their number."""

    shade = 0

    def __init__(self, number, targets=None):
        self.number = number
        self.targets = np.arange(number) if targets is None else targets

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        return Image.new('RGB', (24, 24), (index + self.shade,) * 3), int(self.targets[index])


class Stream(torch.utils.data.IterableDataset):
    """A dataset without random access."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __iter__(self):
        for i in range(len(self.dataset)):
            image, target = self.dataset[i]
            yield self.transform(image), target


def batches(loader, *args):
    return [(input.clone(), target.clone()) for input, target in loader.epoch(*args)]


def numbers(iterator):
    return [target.tolist() for _, target in iterator]
