"""Batches whose content depends only on the seed, the epoch and their position in it.

It does not depend on the number of loader processes, nor on what ran before: a training resumed at any step sees the
same images with the same augmentation as an uninterrupted one.
"""

import functools
import random
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

import numpy as np
import torch
from timm.data.loader import PrefetchLoader, create_loader, fast_collate
from torch.utils.data import Dataset, IterableDataset
from torchvision.transforms import Compose

from .._compat import iterate_batches
from .augment import AugmentConfig, create_eval_transform, create_train_transform
from .cache import split_transform
from .image_io import IMG_MODES, convert_image
from .sampler import EpochSampler, derive_seed
from .workers import PREFETCH, SignalSafeLoader, create_worker_init, explain_failure, find_timeout, limit_workers


class _SeededDataset(Dataset):
    """A dataset indexed by the keys of `EpochSampler`: each image is augmented with random numbers of its own.

    Targets are class indices, or labels (K,), with `with_index` followed by the number of the image. With `views` these
    random numbers follow from the view, the epoch modulo `views`, and the number of the image, however it was drawn.
    """

    def __init__(
        self, dataset: Any, transform: Callable, seed: int, with_index: bool = False, views: Optional[int] = None
    ):
        self.dataset = dataset
        self.transform = transform
        self.seed = seed
        self.with_index = with_index
        self.views = views

    def __getitem__(self, key: Tuple[int, int, int]) -> Tuple[torch.Tensor, Any]:
        epoch, draw, index = key
        if self.views is not None:
            epoch, draw = epoch % self.views, index
        image, target = self.dataset[index]
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        seed = derive_seed(self.seed, epoch, draw)
        random.seed(seed)
        np.random.seed(seed)
        torch.random.default_generator.manual_seed(seed)
        try:
            return self.transform(image), (np.append(target, index) if self.with_index else target)
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])

    def __len__(self) -> int:
        return len(self.dataset)


class _ShardedDataset(Dataset):
    """The share of a process in a dataset, in order and transformed: images `rank`, `rank + world_size`, ..."""

    def __init__(self, dataset: Any, transform: Callable, rank: int, world_size: int):
        self.dataset = dataset
        self.transform = transform
        self.indices = range(rank, len(dataset), world_size)

    def __getitem__(self, i: int) -> Tuple[torch.Tensor, int]:
        image, target = self.dataset[self.indices[i]]
        return self.transform(image), target

    def __len__(self) -> int:
        return len(self.indices)


def _match_channels(data_config: Dict[str, Any]) -> Dict[str, Any]:
    """For greyscale images, replace mean and deviation of three channels by their averages."""
    channels = data_config['input_size'][0]
    if len(data_config['mean']) == channels:
        return data_config
    return dict(data_config, **{key: (float(np.mean(data_config[key])),) * channels for key in ('mean', 'std')})


class SplitLoader:
    """Batches of a split on the device: images (B, C, H, W), normalised, and class indices (B,), or 0 or 1 for each
    label of images with any number of them, (B, K).

    Training batches are shuffled, augmented and all full. Other batches are in order and only resized, the last one may
    be smaller.

    Args:
        dataset: Dataset of a split, see `create_datasets`.
        data_config: input_size (C, H, W), mean, std, interpolation, crop_pct, crop_mode, as timm resolves them.
        batch_size: Batch size per process.
        augment: Augmentation of the training split, None for other splits.
        num_workers: Loader processes, 0 to read in the main process.
        device: Device of the batches.
        seed: Random seed of shuffle and augmentation.
        weights: Weight of each training image for drawing with replacement, (N,).
        rank: Rank of this process.
        world_size: Number of processes.
        cache: Called with the dataset and the deterministic part of the transform, returns a dataset that caches its
            images, see `cache_images`.
        local_size: Number of processes on this machine, which share its memory.
        with_index: Add the number of each image in the dataset to the training batches, (B,).
        views: Give each training image so many fixed augmented views: epoch e shows view e mod `views`. They depend on
            the seed, the view and the number of the image only. With at least as many views as epochs, a training
            without `weights` is the same as without the argument.
        in_order: Batches of all training images in their order, of one process; the last one may be smaller.

    Raises:
        ValueError: if there are fewer training images than in a batch of all processes, or if they are to be numbered
            or to have views and the dataset has no random access.
        TimeoutError, ChildProcessError: during iteration, if loader processes hang or end.
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
        with_index: bool = False,
        views: Optional[int] = None,
        in_order: bool = False,
    ):
        self.dataset = dataset
        self.batch_size = batch_size
        self.device = device
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.local_size = local_size
        self.data_config = _match_channels(data_config)
        self.sampler: Optional[EpochSampler] = None
        self.iterable = isinstance(dataset, IterableDataset)
        self.with_index = with_index
        self.multi_label = np.ndim(getattr(dataset, 'targets', ())) == 2
        is_training = augment is not None
        if self.iterable and (with_index or views):
            raise ValueError(
                'The images of a streamed dataset have no numbers: use one with random access, such as a folder.'
            )
        if not self.iterable and is_training and not in_order and len(dataset) < batch_size * world_size:
            raise ValueError(
                f'{len(dataset)} training images are fewer than a batch of {batch_size * world_size}: lower'
                ' --batch-size.'
            )
        if self.iterable:
            self.loader = self._create_iterable_loader(augment, num_workers)
            return
        transform = self._create_transform(augment)
        if cache is not None:
            deterministic, transform = split_transform(transform)
            dataset = cache(dataset, deterministic)
        if is_training:
            self.sampler = EpochSampler(len(dataset), batch_size, seed, weights, rank, world_size, in_order)
            self.loader = self._create_loader(
                _SeededDataset(dataset, transform, seed, with_index, views), num_workers, batch_sampler=self.sampler
            )
        else:
            self.loader = self._create_loader(
                _ShardedDataset(dataset, transform, rank, world_size), num_workers, batch_size=batch_size
            )

    def _create_transform(self, augment: Optional[AugmentConfig]) -> Callable:
        if augment is None:
            return create_eval_transform(self.data_config)
        return create_train_transform(augment, self.data_config)

    def _limit_workers(self, num_workers: int) -> int:
        image_bytes = int(np.prod(self.data_config['input_size']))
        return limit_workers(num_workers, self.batch_size, image_bytes, self.local_size)

    def _create_loader(self, dataset: Dataset, num_workers: int, **batching: Any) -> PrefetchLoader:
        """A loader of a dataset with random access, whose processes persist between epochs."""
        num_workers = self._limit_workers(num_workers)  # after the cache, which takes shared memory, too
        loader = SignalSafeLoader(
            dataset,
            num_workers=num_workers,
            collate_fn=fast_collate,
            pin_memory=self.device.type == 'cuda',
            worker_init_fn=create_worker_init(),
            persistent_workers=num_workers > 0,
            prefetch_factor=PREFETCH if num_workers else None,
            timeout=find_timeout(self.batch_size) if num_workers else 0,
            generator=torch.Generator(),  # or each start would draw from the global one
            **batching,
        )
        return PrefetchLoader(
            loader,
            mean=self.data_config['mean'],
            std=self.data_config['std'],
            channels=self.data_config['input_size'][0],
            device=self.device,
        )

    def _create_iterable_loader(self, augment: Optional[AugmentConfig], num_workers: int) -> PrefetchLoader:
        """timm's loader of a dataset without random access, which starts its processes anew, seeded, in each epoch."""
        num_workers = self._limit_workers(num_workers)
        prefetch_loader = create_loader(
            self.dataset,
            batch_size=self.batch_size,
            is_training=augment is not None,
            num_workers=num_workers,
            device=self.device,
            distributed=self.world_size > 1,
            persistent_workers=False,
            **self.data_config,
        )
        loader = prefetch_loader.loader
        loader.worker_init_fn = create_worker_init()
        loader.timeout = find_timeout(self.batch_size) if num_workers else 0
        loader.__class__ = SignalSafeLoader  # timm has no argument for it
        to_mode = functools.partial(convert_image, mode=IMG_MODES[self.data_config['input_size'][0]])
        self.dataset.transform = Compose([to_mode, self._create_transform(augment)])
        return prefetch_loader

    @property
    def mean(self) -> torch.Tensor:
        """Mean subtracted from pixels of 0 to 255, (1, C, 1, 1)."""
        return self.loader.mean

    @property
    def std(self) -> torch.Tensor:
        """Standard deviation that pixels of 0 to 255 are divided by, (1, C, 1, 1)."""
        return self.loader.std

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Tuple[torch.Tensor, ...]]:
        """The training batches of an epoch, from batch `start` on; with `with_index` (images, classes, numbers)."""
        if self.sampler is not None:
            self.sampler.set_epoch(epoch, start)
            for images, target in self:
                if self.with_index:
                    labels = target[:, :-1] if self.multi_label else target[:, 0]
                    yield images, labels, target[:, -1]
                else:
                    yield images, target
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
            explained = explain_failure(e)
            if explained is None:
                raise
            raise explained from e

    def __len__(self) -> int:
        """Number of batches of a whole epoch; for datasets without random access, as stated by them."""
        if self.sampler is not None:
            return len(self.sampler) + self.sampler.start
        return len(self.loader)
