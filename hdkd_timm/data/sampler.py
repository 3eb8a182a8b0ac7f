"""Which images are in which batch: an order that depends only on the seed and the epoch."""

from typing import Iterator, List, Optional, Tuple

import numpy as np
from torch.utils.data import Sampler


def derive_seed(*keys: int) -> int:
    """A 32-bit seed from integers such as seed, epoch and step."""
    return int(np.random.SeedSequence(keys).generate_state(1)[0])


class EpochSampler(Sampler):
    """Batches of keys (epoch, draw, index): this process's share of a seeded shuffle of all images.

    All batches are full, the remainder of an epoch is dropped. The number of the draw is unique within an epoch, also
    when an image is drawn several times.

    Args:
        num_samples: Images in the dataset.
        batch_size: Batch size per process.
        seed: Random seed.
        weights: Weight of each image for drawing with replacement, (num_samples,); None for a shuffle.
        rank: Rank of this process.
        world_size: Number of processes.
        in_order: All images in their order instead, of one process; the last batch may be smaller.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int = 42,
        weights: Optional[np.ndarray] = None,
        rank: int = 0,
        world_size: int = 1,
        in_order: bool = False,
    ):
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.probabilities = None if weights is None else weights / weights.sum()
        self.rank = rank
        self.world_size = world_size
        self.in_order = in_order
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and the batch in it to start with."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        if self.in_order:
            return -(-self.num_samples // self.batch_size) - self.start
        return self.num_samples // (self.batch_size * self.world_size) - self.start

    def __iter__(self) -> Iterator[List[Tuple[int, int, int]]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.in_order:
            draws = order = np.arange(self.num_samples)
        elif self.probabilities is None:
            draws = order = rng.permutation(self.num_samples)
        else:  # an image can be drawn again, and is then augmented differently
            draws, order = (
                np.arange(self.num_samples),
                rng.choice(self.num_samples, self.num_samples, p=self.probabilities),
            )
        pairs = np.stack([draws, order], axis=1)[self.rank :: self.world_size]
        for i in range(self.start, self.start + len(self)):
            yield [(self.epoch, *pair) for pair in pairs[i * self.batch_size : (i + 1) * self.batch_size].tolist()]
