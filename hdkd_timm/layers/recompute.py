"""What is computed again in the backward pass instead of being kept: whole blocks, or parts of them on a CPU."""

from contextlib import contextmanager, nullcontext
from typing import Any, Iterator, Optional, Tuple

import torch
from timm.models import checkpoint
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

__all__ = ['checkpoint_blocks', 'is_pointwise', 'pointwise_backward', 'runs_plain']

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


def runs_plain(x: Any, *modules: nn.Module) -> bool:
    """Whether modules are to be called one by one on x, so that all that the backward pass needs is kept.

    That is so on other devices than CPUs; if x has no gradient; in forward-mode differentiation, for which there are no
    formulas; for a compiler, which decides itself what to keep; in a trace; and if a hook, or another `forward` than
    that of its class, waits for one of the modules, or of their parts, to be called.
    """
    return (
        not isinstance(x, torch.Tensor)  # a node of a symbolic trace
        or x.device.type != 'cpu'
        or not torch.is_grad_enabled()
        or not x.requires_grad
        or forward_ad._current_level >= 0  # there is no public question for it
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or _has_any_global_hook()
        or any(_has_hooks(m) for module in modules for m in module.modules())
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        'forward' in vars(module)  # accelerate's hooks replace it
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def is_pointwise(conv: nn.Module) -> bool:
    """Whether a module is a 1x1 convolution without bias and nothing else: no adapter, no quantised layer."""
    return (
        type(conv) is nn.Conv2d
        and conv.kernel_size == (1, 1)
        and conv.padding == (0, 0)
        and conv.groups == 1
        and conv.bias is None
    )


def pointwise_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: Tuple[int, int], needs_weight: bool
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """Gradients of x and, if needed, of the weight of a 1x1 convolution, in their own precisions. Without the latter,
    only the shape of x counts."""
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad,
        x.to(grad.dtype),
        weight.to(grad.dtype),
        None,
        stride,
        [0, 0],
        [1, 1],
        False,
        [0, 0],
        1,
        [True, needs_weight, False],
    )
    return grad_x.to(x.dtype), grad_weight.to(weight.dtype) if needs_weight else None
