"""Decoded images kept between epochs, in memory that loader processes share or in a file.

An image is stored before the first random transform, by the first process that reads it: a training sees the same
images with the same augmentation, with and without a cache. Each image has a checksum, so that a missing or damaged
one is read again.
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
from .image_files import split_frame
from .image_io import IMG_MODES
from .samples import FileReader, SampleDataset
from .sources.tars import TarReader
from .workers import SHARED

_logger = logging.getLogger(__name__)

CACHES = ('ram', 'disk')
CHECKSUM = np.dtype(np.uint32)


def _is_deterministic(step: Any) -> bool:
    """Whether this transform treats an image the same way every time, as far as is known."""
    if isinstance(step, ResizeKeepRatio):
        return not step.random_scale_prob and not step.random_aspect_prob and not isinstance(step.interpolation, tuple)
    return isinstance(step, (transforms.Resize, transforms.CenterCrop, CenterCropOrPad))


def split_transform(transform: transforms.Compose) -> Tuple[transforms.Compose, transforms.Compose]:
    """Split a transform before its first step that is random or converts to a tensor: the deterministic part, whose
    results can be cached, and the rest."""
    steps = transform.transforms
    number = next((i for i, step in enumerate(steps) if not _is_deterministic(step)), len(steps))
    return transforms.Compose(steps[:number]), transforms.Compose(steps[number:])


def find_offsets(sizes: np.ndarray, channels: int) -> np.ndarray:
    """Offset of each image in a store, and its length, in bytes, (N + 1,): checksums of all images, then the images.

    Args:
        sizes: Width and height of each image, (N, 2).
        channels: 1 or 3.
    """
    ends = sizes.prod(axis=1, dtype=np.int64).cumsum() * channels
    return CHECKSUM.itemsize * len(sizes) + np.concatenate([[0], ends])


class ImageStore:
    """uint8 images by index, of sizes known in advance, in bytes that processes share.

    Args:
        sizes: Width and height of each image, (N, 2).
        channels: 1 or 3.
        path: File that holds them, of the length that `find_offsets` gives; None for memory.
    """

    def __init__(self, sizes: np.ndarray, channels: int, path: Optional[Path] = None):
        self.sizes = sizes
        self.channels = channels
        self.path = path
        self.offsets = find_offsets(sizes, channels)
        self.memory = None if path else RawArray('B', int(self.offsets[-1]))
        self._bytes: Optional[np.ndarray] = None

    def __len__(self) -> int:
        return len(self.sizes)

    def __getstate__(self) -> Dict[str, Any]:
        return dict(self.__dict__, _bytes=None)  # each process maps the file itself

    def _views(self, i: int) -> Tuple[np.ndarray, np.ndarray]:
        """Writable views of the bytes of image i, and of its checksum (1,)."""
        if self._bytes is None:
            self._bytes = np.frombuffer(self.memory, np.uint8) if self.path is None else np.memmap(self.path, mode='r+')
        start = i * CHECKSUM.itemsize
        return (
            self._bytes[self.offsets[i] : self.offsets[i + 1]],
            self._bytes[start : start + CHECKSUM.itemsize].view(CHECKSUM),
        )

    @staticmethod
    def _checksum(pixels: np.ndarray) -> int:
        return zlib.crc32(pixels) or 1  # 0 marks a missing image

    def get(self, i: int) -> Optional[Image.Image]:
        """Image i, None if it is missing or damaged."""
        pixels, checksum = self._views(i)
        if not checksum[0] or checksum[0] != self._checksum(pixels):
            return None
        width, height = self.sizes[i]
        return Image.fromarray(pixels.reshape((height, width, 3) if self.channels == 3 else (height, width)))

    def put(self, i: int, image: Image.Image) -> None:
        """Store image i, unless its size is not the expected one."""
        if image.size == tuple(self.sizes[i]):
            pixels, checksum = self._views(i)
            pixels[:] = np.asarray(image).ravel()
            checksum[0] = self._checksum(pixels)


class CachedDataset(Dataset):
    """A dataset that stores its images after the deterministic part of the transform.

    Args:
        dataset: Images and class indices; images beyond its samples (of SMOTE) are in memory already and not stored.
        deterministic_transform: Applied to each image before it is stored, see `split_transform`.
        store: The store, for the images of its samples.
    """

    def __init__(self, dataset: SampleDataset, deterministic_transform: Callable, store: ImageStore):
        self.dataset = dataset
        self.deterministic_transform = deterministic_transform
        self.store = store

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Tuple[Image.Image, int]:
        image = self.store.get(index) if index < len(self.store) else None
        if image is not None:
            return image, self.dataset.target(index)
        image, target = self.dataset[index]
        image = self.deterministic_transform(image)
        if index < len(self.store):
            self.store.put(index, image)
        return image, target


def _find_sizes(dataset: SampleDataset, deterministic_transform: Callable) -> np.ndarray:
    """Width and height of each transformed image, (N, 2), from the headers of the files."""

    def transformed_size(size: Tuple[int, int]) -> Tuple[int, int]:
        return deterministic_transform(Image.new(dataset.img_mode, size)).size

    probes = {transformed_size(size) for size in ((96, 61), (61, 96), (500, 500))}
    if len(probes) == 1:
        return np.tile(np.array(probes.pop()), (len(dataset.samples), 1))
    known = {size: transformed_size(size) for size in set(dataset.image_sizes)}
    return np.array([known[size] for size in dataset.image_sizes])


def _fingerprint(dataset: SampleDataset, deterministic_transform: Callable, sizes: np.ndarray) -> str:
    """A hash of everything that determines the stored images: files, transform, and versions of the software.

    Raises:
        ValueError: if the images are neither files nor in tar files.
    """
    samples = dataset.samples
    names: Sequence[str] = samples.filenames()
    if isinstance(samples.reader, FileReader):
        files = [os.path.abspath(name) for name in names]
    elif isinstance(samples.reader, TarReader):
        files = [os.path.realpath(samples.reader.root)]
    else:
        raise ValueError('--cache disk is for image files and tar files, this --dataset has neither: use --cache ram.')
    stats = [
        (name, stat.st_size, stat.st_mtime_ns)
        for name, stat in ((name, os.stat(split_frame(name)[0])) for name in files)
    ]
    parts: List[Any] = [
        stats,
        names,
        dataset.img_mode,
        repr(deterministic_transform),
        sizes.tolist(),
        PIL.__version__,
        __version__,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def check_capacity(kind: str, needed: int, what: str, processes: int, folder: Path) -> Optional[Exception]:
    """Compare the size of a cache with what is free.

    Args:
        kind: 'ram' or 'disk'.
        needed: Bytes of the cache of one process.
        what: Description of the cache and its size, for the error.
        processes: Processes on this machine; each has a cache of its own in memory.
        folder: Directory of a cache on disk.

    Returns:
        The error to raise if it does not fit, else None.
    """
    remedy = 'cache smaller images with --load-size, or omit --cache'
    if kind == 'disk':
        free = shutil.disk_usage(folder).free
        return (
            OSError(
                f"--cache disk: {what} on the disk of '{folder}', which has {format_bytes(free)} free: use another"
                f' --cache-dir, {remedy}.'
            )
            if needed > free
            else None
        )
    each = f' in each of {processes} processes' if processes > 1 else ''
    available = available_memory()
    if needed * processes > available:
        return MemoryError(
            f'--cache ram: {what} of memory{each}, but {format_bytes(available)} are available: use --cache disk,'
            f' {remedy}.'
        )
    if SHARED.exists():
        free = shutil.disk_usage(SHARED).free
        if needed * processes > free:
            return MemoryError(
                f"--cache ram: {what} of memory{each} in '{SHARED}', through which processes share it and which has"
                f' {format_bytes(free)} free: enlarge it (docker run --shm-size), use --cache disk, {remedy}.'
            )
    return None


def cache_images(
    dataset: SampleDataset,
    deterministic_transform: transforms.Compose,
    kind: str,
    folder: Path,
    name: str,
    world: World = World(torch.device('cpu')),
) -> CachedDataset:
    """A dataset that keeps its images once they have been read.

    Args:
        dataset: The dataset.
        deterministic_transform: The deterministic part of its transform, see `split_transform`.
        kind: 'ram', or 'disk': a file in `folder`, which other runs on the same images reuse.
        folder: Directory of the file.
        name: Name of the dataset in messages.
        world: The processes of the run, each of which caches images of its own in memory. All of them raise if the
            cache of one does not fit.

    Raises:
        MemoryError: if it needs more memory than is available; names both.
        OSError: if it needs more disk space than is free; names both.
        ValueError: for a file, if the images are not files.
    """
    channels = {mode: channels for channels, mode in IMG_MODES.items()}[dataset.img_mode]
    sizes = _find_sizes(dataset, deterministic_transform)
    needed = int(find_offsets(sizes, channels)[-1])
    what = f'{len(sizes)} images of {name} take {format_bytes(needed)}'
    path = None
    if kind == 'disk':
        path = folder / f'{_fingerprint(dataset, deterministic_transform, sizes)[:20]}.images'
        folder.mkdir(parents=True, exist_ok=True)
    exists = path is not None and _has_length(path, needed)
    error = None if exists else check_capacity(kind, needed, what, world.local_size, folder)
    error = next((e for e in world.gather(error) if e is not None), None)  # before any process allocates
    if error is not None:
        raise error
    if world.is_primary:
        where = 'of memory' if path is None else f"on disk, in '{path}'"
        _logger.info(f'Cache: {what} {where}{" (reused)" if exists else ""}.')
    if path is not None:
        _allocate(path, needed)
    return CachedDataset(dataset, deterministic_transform, ImageStore(sizes, channels, path))


def _has_length(path: Path, length: int) -> bool:
    return path.exists() and path.stat().st_size == length


def _allocate(path: Path, length: int) -> None:
    """Create a file of zeros of this length, unless it exists."""
    with FileLock(f'{path}.lock'):
        if not _has_length(path, length):
            with atomic_write(path, 'wb') as file:
                file.truncate(length)
                if hasattr(os, 'posix_fallocate'):  # with a sparse file, a full disk would kill the processes later
                    os.posix_fallocate(file.fileno(), 0, length)
