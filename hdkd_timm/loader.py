"""Batches whose content depends on the seed, the epoch and the place in it alone.

Not on the number of loader processes, nor on what ran before: a training that is resumed at any step sees the same
images, augmented alike, as one that was never broken.
"""
import functools
import random
import signal
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np
import torch
from timm.data.loader import PrefetchLoader, _worker_init, create_loader, fast_collate
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler
from torchvision.transforms import Compose

from .augment import AugmentConfig, create_eval_transform, create_train_transform
from .cache import split_transform
from .images import IMG_MODES, convert_image


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


def _start_worker(worker_id: int) -> None:
    """Ctrl-C goes to all processes of a terminal: the main one heeds it, and still wants its loaders then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker_init(worker_id)


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

    Raises:
        ValueError: if there are fewer training images than the batches of all processes hold.
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
        if self.iterable:
            # every epoch starts its processes anew, from the seed
            self.loader = create_loader(
                dataset, batch_size=batch_size, is_training=augment is not None, num_workers=num_workers,
                device=device, distributed=world_size > 1, persistent_workers=False, **data_config)
            self.loader.loader.worker_init_fn = _start_worker
            transform = create_train_transform(augment, data_config) if augment else create_eval_transform(data_config)
            dataset.transform = Compose([functools.partial(convert_image, mode=IMG_MODES[channels]), transform])
            return
        if augment is not None and len(dataset) < batch_size * world_size:
            raise ValueError(
                f'{len(dataset)} training images are fewer than a batch of {batch_size * world_size}: lower'
                ' --batch-size.')
        args: Dict[str, Any] = dict(
            num_workers=num_workers, collate_fn=fast_collate, pin_memory=device.type == 'cuda',
            worker_init_fn=_start_worker, persistent_workers=num_workers > 0,
            generator=torch.Generator())  # or it would draw from the global one at each start
        transform = create_train_transform(augment, data_config) if augment else create_eval_transform(data_config)
        if cache is not None:
            front, transform = split_transform(transform)
            dataset = cache(dataset, front)
        if augment is not None:
            self.sampler = EpochSampler(len(dataset), batch_size, seed, weights, rank, world_size)
            loader = DataLoader(_SeededDataset(dataset, transform, seed), batch_sampler=self.sampler, **args)
        else:
            loader = DataLoader(
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
        for i, batch in enumerate(self.loader):
            if i >= start:
                yield batch

    def __iter__(self) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
        if not self.iterable and not len(self.loader):  # timm < 1.0.31 fails on no batch at all
            return iter(())
        return iter(self.loader)

    def __len__(self) -> int:
        """Batches of a whole pass (of iterable datasets: as many as they tell)."""
        if self.sampler is not None:
            return len(self.sampler) + self.sampler.start
        return len(self.loader)

