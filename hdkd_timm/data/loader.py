"""Batches whose content depends on the seed, the epoch and the place in it alone.

Not on the number of loader processes, nor on what ran before: a training that is resumed at any step sees the same
images, augmented alike, as one that was never broken.
"""
import functools
import logging
import multiprocessing
import os
import random
import shutil
import signal
import threading
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np
import torch
from timm.data.loader import PrefetchLoader, _worker_init, create_loader, fast_collate
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler
from torchvision.transforms import Compose

from .._compat import iterate_batches
from ..utils.distributed import end_with_parent
from ..utils.memory import format_bytes
from ..utils.signals import STOP_SIGNALS
from .augment import AugmentConfig, create_eval_transform, create_train_transform
from .cache import SHARED, split_transform
from .image_io import IMG_MODES, convert_image

_logger = logging.getLogger(__name__)

PREFETCH = 2  # batches that each loader process reads ahead, as torch does by default
SHARED_RESERVE = 2 ** 20  # bytes of shared memory for the queues and locks of the loader processes


def derive_seed(*keys: int) -> int:
    """A 32-bit seed from numbers such as seed, epoch and step."""
    return int(np.random.SeedSequence(keys).generate_state(1)[0])


class EpochSampler(Sampler):
    """Batches of keys (epoch, draw, index), each process's share of a seeded shuffle of all images.

    Batches are full, the rest of an epoch is left out. No two keys of an epoch share a draw.

    Args:
        num_samples: Images of the dataset.
        batch_size: Images a batch and process.
        seed: Seed of the shuffle.
        weights: Weight of each image, to draw with replacement instead.
        rank: This process.
        world_size: Processes.
    """

    def __init__(
            self,
            num_samples: int,
            batch_size: int,
            seed: int = 42,
            weights: Optional[np.ndarray] = None,
            rank: int = 0,
            world_size: int = 1,
    ):
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.probabilities = None if weights is None else weights / weights.sum()
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Go to a batch of an epoch."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return self.num_samples // (self.batch_size * self.world_size) - self.start

    def __iter__(self) -> Iterator[List[Tuple[int, int, int]]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.probabilities is None:
            draws = order = rng.permutation(self.num_samples)
        else:  # an image can come again, and is augmented anew then
            draws, order = np.arange(self.num_samples), rng.choice(
                self.num_samples, self.num_samples, p=self.probabilities)
        pairs = np.stack([draws, order], axis=1)[self.rank::self.world_size]
        for i in range(self.start, self.start + len(self)):
            yield [(self.epoch, *pair) for pair in pairs[i * self.batch_size:(i + 1) * self.batch_size].tolist()]


class _SeededDataset(Dataset):
    """A dataset by the keys of `EpochSampler`: each image is augmented with random numbers of its own."""

    def __init__(self, dataset: Any, transform: Callable, seed: int):
        self.dataset = dataset
        self.transform = transform
        self.seed = seed

    def __getitem__(self, key: Tuple[int, int, int]) -> Tuple[torch.Tensor, int]:
        epoch, draw, index = key
        image, target = self.dataset[index]
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        seed = derive_seed(self.seed, epoch, draw)
        random.seed(seed)
        np.random.seed(seed)
        torch.random.default_generator.manual_seed(seed)
        try:
            return self.transform(image), target
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])

    def __len__(self) -> int:
        return len(self.dataset)


class _TransformedDataset(Dataset):
    """Each process's share of a dataset, in order, transformed: image `rank`, `rank + world_size`, ..."""

    def __init__(self, dataset: Any, transform: Callable, rank: int, world_size: int):
        self.dataset = dataset
        self.transform = transform
        self.indices = range(rank, len(dataset), world_size)

    def __getitem__(self, i: int) -> Tuple[torch.Tensor, int]:
        image, target = self.dataset[self.indices[i]]
        return self.transform(image), target

    def __len__(self) -> int:
        return len(self.indices)


def _heed_parent_alone(parent: int) -> None:
    """End at the SIGTERM of the main process, by which it ends loaders that are stuck, and of no other."""
    def wait() -> None:
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
            pass
        os._exit(0)

    if hasattr(signal, 'sigwaitinfo'):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=wait, daemon=True).start()


def _start_worker(worker_id: int, ends_with_parent: bool = False) -> None:
    """Signals that ask to stop go to all processes of a terminal or a job: the main one heeds them, and still wants its
    loaders then."""
    parent = multiprocessing.parent_process().pid
    for signum in STOP_SIGNALS:
        if signum != signal.SIGTERM:
            signal.signal(signum, signal.SIG_IGN)
    _heed_parent_alone(parent)
    if hasattr(signal, 'pthread_sigmask'):  # they came blocked, see `_Loader`
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(STOP_SIGNALS) - {signal.SIGTERM})
    if ends_with_parent and os.getppid() == parent:  # that of a fork server is the server
        end_with_parent(signal.SIGKILL, parent)  # at once: one that is left holds the lock of its run
    _worker_init(worker_id)


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Signals that ask to stop come later, here and in processes that are started meanwhile."""
    if not hasattr(signal, 'pthread_sigmask'):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Loader(DataLoader):
    """A loader whose processes are deaf to signals from their first moment on, before `_start_worker` runs."""

    def __iter__(self) -> Any:
        with _blocked_signals():
            return super().__iter__()


def fit_workers(num_workers: int, batch_bytes: int, free: int) -> int:
    """So many loader processes of those asked for that their batches fit into the shared memory that is free.

    Args:
        num_workers: Loader processes that are asked for.
        batch_bytes: Size of a batch.
        free: Bytes of shared memory.
    """
    batches = (free - SHARED_RESERVE) // batch_bytes - 2  # two are with the main process
    return max(0, min(num_workers, batches // PREFETCH))


def _check_shared_memory(num_workers: int, batch_size: int, image_bytes: int, processes: int) -> int:
    """As `fit_workers` on this machine, with a warning where they are fewer: a loader that finds it full would hang."""
    if not num_workers or not SHARED.exists():
        return num_workers
    free = shutil.disk_usage(SHARED).free
    batch_bytes = batch_size * image_bytes
    fitting = fit_workers(num_workers, batch_bytes, free // processes)
    if fitting < num_workers:
        needed = ((PREFETCH * num_workers + 2) * batch_bytes + SHARED_RESERVE) * processes
        _logger.warning(
            f"{num_workers} loader processes hold up to {format_bytes(needed)} of batches in '{SHARED}', where"
            f" {format_bytes(free)} are free: {fitting or 'none'} are used, which may be slower. Enlarge it"
            ' (docker run --shm-size=2g), or lower --workers or --batch-size.')
    return fitting


def find_timeout(batch_size: int) -> int:
    """Seconds to wait for a batch before it is taken for lost: slow disks take seconds an image at the worst."""
    return max(300, 10 * batch_size)


def _explain_loss(error: RuntimeError) -> Optional[OSError]:
    """Words for what torch says of loader processes that ended, or that no batch comes from."""
    message = str(error).strip()
    if not message.startswith(('DataLoader timed out', 'DataLoader worker (')):  # others are those of an image
        return None
    free = f" ('{SHARED}' has {format_bytes(shutil.disk_usage(SHARED).free)} free)" if SHARED.exists() else ''
    if 'timed out' in message:
        return TimeoutError(
            f'No batch came from the loader processes ({message}). A disk may hang, or shared memory be full{free}:'
            ' take --workers 0 to read in the main process.')
    return ChildProcessError(
        f'A loader process ended ({message}). Memory may be out, or shared memory full{free}: take fewer --workers (0'
        ' to read in the main process), or a smaller --batch-size.')


class SplitLoader:
    """Batches of a split on the device: images (B, C, H, W), normalised, and class indices (B,).

    Training batches are shuffled, augmented and all full; others come in order, resized only, the last one smaller.

    Args:
        dataset: Dataset of a split, as `create_datasets` makes it.
        data_config: input_size (C, H, W), mean, std, interpolation, crop_pct, crop_mode, as timm resolves them.
        batch_size: Images a batch and process.
        augment: Augmentation of a training split, None for a split that is not trained on.
        num_workers: Loader processes, 0 for none.
        device: Where the batches go.
        seed: Seed of shuffle and augmentation.
        weights: Weight of each training image, to draw with replacement.
        rank: This process.
        world_size: Processes.
        cache: Makes a dataset that keeps its images of it and the fixed part of the transform, see `cache_images`.
        local_size: Processes on this machine, which share its memory.

    Raises:
        ValueError: if there are fewer training images than the batches of all processes hold.
        TimeoutError, ChildProcessError: while it is read, if the loader processes hang or end.
    """

    def __init__(
            self,
            dataset: Any,
            data_config: Dict[str, Any],
            batch_size: int,
            augment: Optional[AugmentConfig] = None,
            num_workers: int = 2,
            device: torch.device = torch.device('cpu'),
            seed: int = 42,
            weights: Optional[np.ndarray] = None,
            rank: int = 0,
            world_size: int = 1,
            cache: Optional[Callable[[Any, Compose], Dataset]] = None,
            local_size: int = 1,
    ):
        self.dataset = dataset
        self.seed = seed
        self.rank = rank
        self.sampler: Optional[EpochSampler] = None
        channels = data_config['input_size'][0]
        if len(data_config['mean']) != channels:  # of a grey image
            data_config = dict(data_config, **{
                key: (float(np.mean(data_config[key])),) * channels for key in ('mean', 'std')})
        self.iterable = isinstance(dataset, IterableDataset)
        start_worker = functools.partial(
            _start_worker, ends_with_parent=threading.current_thread() is threading.main_thread())  # Linux: the thread
        image_bytes = int(np.prod(data_config['input_size']))
        if self.iterable:
            num_workers = _check_shared_memory(num_workers, batch_size, image_bytes, local_size)
            # every epoch starts its processes anew, from the seed
            self.loader = create_loader(
                dataset, batch_size=batch_size, is_training=augment is not None, num_workers=num_workers,
                device=device, distributed=world_size > 1, persistent_workers=False, **data_config)
            loader = self.loader.loader
            loader.worker_init_fn, loader.timeout = start_worker, find_timeout(batch_size) if num_workers else 0
            loader.__class__ = _Loader  # timm takes none
            transform = create_train_transform(augment, data_config) if augment else create_eval_transform(data_config)
            dataset.transform = Compose([functools.partial(convert_image, mode=IMG_MODES[channels]), transform])
            return
        if augment is not None and len(dataset) < batch_size * world_size:
            raise ValueError(
                f'{len(dataset)} training images are fewer than a batch of {batch_size * world_size}: lower'
                ' --batch-size.')
        transform = create_train_transform(augment, data_config) if augment else create_eval_transform(data_config)
        if cache is not None:
            front, transform = split_transform(transform)
            dataset = cache(dataset, front)
        num_workers = _check_shared_memory(num_workers, batch_size, image_bytes, local_size)  # a cache is in it, too
        args: Dict[str, Any] = dict(
            num_workers=num_workers, collate_fn=fast_collate, pin_memory=device.type == 'cuda',
            worker_init_fn=start_worker, persistent_workers=num_workers > 0,
            prefetch_factor=PREFETCH if num_workers else None, timeout=find_timeout(batch_size) if num_workers else 0,
            generator=torch.Generator())  # or it would draw from the global one at each start
        if augment is not None:
            self.sampler = EpochSampler(len(dataset), batch_size, seed, weights, rank, world_size)
            loader = _Loader(_SeededDataset(dataset, transform, seed), batch_sampler=self.sampler, **args)
        else:
            loader = _Loader(
                _TransformedDataset(dataset, transform, rank, world_size), batch_size=batch_size, **args)
        self.loader = PrefetchLoader(
            loader, mean=data_config['mean'], std=data_config['std'], channels=channels, device=device)

    @property
    def mean(self) -> torch.Tensor:
        """What images are normalised by, of pixels of 0 to 255, (1, C, 1, 1)."""
        return self.loader.mean

    @property
    def std(self) -> torch.Tensor:
        """As `mean`."""
        return self.loader.std

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
        """The training batches of an epoch, from batch `start` on."""
        if self.sampler is not None:
            self.sampler.set_epoch(epoch, start)
            yield from self
            return
        torch.manual_seed(derive_seed(self.seed, epoch, self.rank))
        if hasattr(self.dataset, 'set_epoch'):
            self.dataset.set_epoch(epoch)
        for i, batch in enumerate(self):
            if i >= start:
                yield batch

    def __iter__(self) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
        try:
            yield from iterate_batches(self.loader)
        except RuntimeError as e:
            lost = _explain_loss(e)
            if lost is None:
                raise
            raise lost from e

    def __len__(self) -> int:
        """Batches of a whole pass (of iterable datasets: as many as they tell)."""
        if self.sampler is not None:
            return len(self.sampler) + self.sampler.start
        return len(self.loader)

