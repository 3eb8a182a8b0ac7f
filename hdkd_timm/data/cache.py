"""Decoded images that are kept between epochs, in memory that loader processes share or in a file.

What is kept is the image in front of the first random transform, as the first process that reads it puts it there: a
training sees the same images, augmented alike, with a cache and without. Each image has a checksum beside it, so that
one which is not there, or not whole, is read again.
"""
import hashlib
import json
import logging
import os
import shutil
import zlib
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import PIL
import torch
from filelock import FileLock
from PIL import Image
from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio
from torch.utils.data import Dataset
from torchvision import transforms

from ..utils.distributed import World
from ..utils.files import atomic_write
from ..utils.memory import available_memory, format_bytes
from ..version import __version__
from .image_io import IMG_MODES
from .samples import FileReader, SampleDataset
from .sources.tars import TarReader

_logger = logging.getLogger(__name__)

CACHES = ('ram', 'disk')
SHARED = Path('/dev/shm')  # where Linux has memory that processes share
CHECKSUM = np.dtype(np.uint32)


def _is_fixed(step: Any) -> bool:
    """Does this transform do the same to an image each time?"""
    if isinstance(step, ResizeKeepRatio):
        return not step.random_scale_prob and not step.random_aspect_prob and not isinstance(step.interpolation, tuple)
    return isinstance(step, (transforms.Resize, transforms.CenterCrop, CenterCropOrPad))


def split_transform(transform: transforms.Compose) -> Tuple[transforms.Compose, transforms.Compose]:
    """Cut a transform in front of the first step that is random (or leaves Pillow): what can be kept, and the rest."""
    steps = transform.transforms
    number = next((i for i, step in enumerate(steps) if not _is_fixed(step)), len(steps))
    return transforms.Compose(steps[:number]), transforms.Compose(steps[number:])


def find_starts(sizes: np.ndarray, channels: int) -> np.ndarray:
    """Where each image starts, and the last one ends, (N + 1,), in bytes: checksums of all, then image after image."""
    ends = sizes.prod(axis=1, dtype=np.int64).cumsum() * channels
    return CHECKSUM.itemsize * len(sizes) + np.concatenate([[0], ends])


class ImageStore:
    """uint8 images by number, each of a size that is known before, in bytes that processes share.

    Args:
        sizes: Width and height of each image, (N, 2).
        channels: 1 or 3.
        path: File to keep them in, which must be as long as `find_starts` says; None for memory.
    """

    def __init__(self, sizes: np.ndarray, channels: int, path: Optional[Path] = None):
        self.sizes = sizes
        self.channels = channels
        self.path = path
        self.starts = find_starts(sizes, channels)
        self.memory = None if path else RawArray('B', int(self.starts[-1]))
        self._bytes: Optional[np.ndarray] = None

    def __len__(self) -> int:
        return len(self.sizes)

    def __getstate__(self) -> Dict[str, Any]:
        return dict(self.__dict__, _bytes=None)  # each process maps the file itself

    def _find(self, i: int) -> Tuple[np.ndarray, np.ndarray]:
        """The bytes of image i, and its checksum (1,)."""
        if self._bytes is None:
            self._bytes = np.frombuffer(self.memory, np.uint8) if self.path is None else np.memmap(self.path, mode='r+')
        place = i * CHECKSUM.itemsize
        return (
            self._bytes[self.starts[i]:self.starts[i + 1]],
            self._bytes[place:place + CHECKSUM.itemsize].view(CHECKSUM))

    @staticmethod
    def _sum(pixels: np.ndarray) -> int:
        return zlib.crc32(pixels) or 1  # 0 is for what is not there

    def get(self, i: int) -> Optional[Image.Image]:
        """Image i, or None where it is not there."""
        pixels, checksum = self._find(i)
        if not checksum[0] or checksum[0] != self._sum(pixels):
            return None
        width, height = self.sizes[i]
        return Image.fromarray(pixels.reshape((height, width, 3) if self.channels == 3 else (height, width)))

    def put(self, i: int, image: Image.Image) -> None:
        """Keep image i. One whose size is not the one told before is passed over."""
        if image.size == tuple(self.sizes[i]):
            pixels, checksum = self._find(i)
            pixels[:] = np.asarray(image).ravel()
            checksum[0] = self._sum(pixels)


class CachedDataset(Dataset):
    """A dataset whose images are kept after `front`, the fixed part of the transform.

    Args:
        dataset: Images and class indices; those after its samples (of SMOTE) are in memory already.
        front: What is done to each image before it is kept.
        store: Where.
    """

    def __init__(self, dataset: SampleDataset, front: Callable, store: ImageStore):
        self.dataset = dataset
        self.front = front
        self.store = store

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Tuple[Image.Image, int]:
        image = self.store.get(index) if index < len(self.store) else None
        if image is not None:
            return image, int(self.dataset.targets[index])
        image, target = self.dataset[index]
        image = self.front(image)
        if index < len(self.store):
            self.store.put(index, image)
        return image, target


def _find_sizes(dataset: SampleDataset, front: Callable) -> np.ndarray:
    """Width and height of each image after `front`, (N, 2), from the headers of the files."""
    def after(size: Tuple[int, int]) -> Tuple[int, int]:
        return front(Image.new(dataset.img_mode, size)).size

    probes = {after(size) for size in ((96, 61), (61, 96), (500, 500))}
    if len(probes) == 1:
        return np.tile(np.array(probes.pop()), (len(dataset.samples), 1))
    known = {size: after(size) for size in set(dataset.image_sizes)}
    return np.array([known[size] for size in dataset.image_sizes])


def _fingerprint(dataset: SampleDataset, front: Callable, sizes: np.ndarray) -> str:
    """Tells image files, and what is kept of them, from all others.

    Raises:
        ValueError: if the images are no files, nor in tar files.
    """
    samples, files = dataset.samples, []
    names: Sequence[str] = samples.filenames()
    if isinstance(samples.reader, FileReader):
        files = [os.path.abspath(name) for name in names]
    elif isinstance(samples.reader, TarReader):
        files = [os.path.realpath(samples.reader.root)]
    else:
        raise ValueError('--cache disk is for image files and tar files, this --dataset has neither: take --cache ram.')
    stats = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in ((name, os.stat(name)) for name in files)]
    words: List[Any] = [stats, names, dataset.img_mode, repr(front), sizes.tolist(), PIL.__version__, __version__]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


def _find_lack(kind: str, needed: int, what: str, processes: int, folder: Path) -> Optional[Exception]:
    """What is lacking for a cache, as an error."""
    way_out = 'keep smaller ones by --load-size, or leave --cache out'
    if kind == 'disk':
        free = shutil.disk_usage(folder).free
        return OSError(
            f"--cache disk: {what} of the disk of '{folder}', {format_bytes(free)} are free: choose another"
            f' --cache-dir, {way_out}.') if needed > free else None
    times = f' in each of {processes} processes' if processes > 1 else ''
    available = available_memory()
    if needed * processes > available:
        return MemoryError(
            f'--cache ram: {what} of memory{times}, {format_bytes(available)} are free: take --cache disk, {way_out}.')
    if SHARED.exists():
        free = shutil.disk_usage(SHARED).free
        if needed * processes > free:
            return MemoryError(
                f"--cache ram: {what} of memory{times}, of '{SHARED}', through which processes share it,"
                f' {format_bytes(free)} are free: enlarge that (docker run --shm-size), take --cache disk, {way_out}.')
    return None


def cache_images(
        dataset: SampleDataset,
        front: transforms.Compose,
        kind: str,
        folder: Path,
        name: str,
        world: World = World(torch.device('cpu')),
) -> CachedDataset:
    """A dataset that keeps its images once they were read.

    Args:
        dataset: The dataset.
        front: The fixed part of its transform, see `split_transform`.
        kind: 'ram', or 'disk': a file in `folder`, that other runs on the same images find there, too.
        folder: Where a file goes.
        name: Name of the dataset in messages.
        world: The processes of the run, each of which keeps images of its own in memory. What one lacks, all raise.

    Raises:
        MemoryError: if it takes more memory than there is; both are named.
        OSError: if it takes more of the disk than is free; both are named.
        ValueError: if a file is asked for images that are none.
    """
    channels = {mode: channels for channels, mode in IMG_MODES.items()}[dataset.img_mode]
    sizes = _find_sizes(dataset, front)
    needed = int(find_starts(sizes, channels)[-1])
    what = f'{len(sizes)} images of {name} take {format_bytes(needed)}'
    path = None
    if kind == 'disk':
        path = folder / f'{_fingerprint(dataset, front, sizes)[:20]}.images'
        folder.mkdir(parents=True, exist_ok=True)
    is_there = path is not None and path.exists() and path.stat().st_size == needed
    lack = None if is_there else _find_lack(kind, needed, what, world.local_size, folder)
    lack = next((error for error in world.gather(lack) if error is not None), None)  # before any takes its part
    if lack is not None:
        raise lack
    if world.is_primary:
        where = 'memory' if path is None else f"the disk, in '{path}'"
        _logger.info(f"Cache: {what} of {where}{' from before' if is_there else ''}.")
    if path is not None:
        with FileLock(f'{path}.lock'):
            if not (path.exists() and path.stat().st_size == needed):
                with atomic_write(path, 'wb') as file:
                    file.truncate(needed)
                    if hasattr(os, 'posix_fallocate'):  # taken now: a full disk later would kill who writes to it
                        os.posix_fallocate(file.fileno(), 0, needed)
    return CachedDataset(dataset, front, ImageStore(sizes, channels, path))
