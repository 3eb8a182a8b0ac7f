"""Gradient checkpointing that leaves BatchNorm statistics alone."""

from contextlib import contextmanager, nullcontext
from typing import Iterator

import torch
from timm.models import checkpoint
from torch import nn

__all__ = ['checkpoint_blocks']

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def checkpoint_blocks(blocks: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """Run blocks one after another, keeping only their inputs for the backward pass, which recomputes the rest."""
    for block in blocks:
        if torch.compiler.is_compiling():
            x = checkpoint(block, x, use_reentrant=False)
        else:
            x = checkpoint(
                block, x, use_reentrant=False, context_fn=lambda b=block: (nullcontext(), _frozen_batch_stats(b))
            )
    return x


@contextmanager
def _frozen_batch_stats(module: nn.Module) -> Iterator[None]:
    """Keep running statistics unchanged: a recomputed forward pass must not count its batch a second time."""
    norms = [m for m in module.modules() if isinstance(m, _BATCH_NORMS) and m.track_running_stats]
    saved = [(m.momentum, m.num_batches_tracked) for m in norms]
    for m in norms:
        m.momentum, m.num_batches_tracked = 0.0, m.num_batches_tracked.clone()
    try:
        yield
    finally:
        for m, (momentum, num_batches_tracked) in zip(norms, saved):
            m.momentum, m.num_batches_tracked = momentum, num_batches_tracked
