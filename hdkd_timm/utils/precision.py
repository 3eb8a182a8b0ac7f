"""Mixed precision on a CPU, which is faster or many times slower than float32."""

import functools
import logging
import time
from typing import Dict, List, Set

import torch
from torch import nn

_logger = logging.getLogger(__name__)

ROUNDS = 3
MIN_SLOWDOWN = 1.5  # that is told: below it, other work on the machine may be the reason
_warned: Set[torch.dtype] = set()


def warn_of_slow_autocast(device: torch.device, dtype: torch.dtype) -> None:
    """Warn, once in a process, if mixed precision takes longer than float32 on this processor, as it does without
    instructions for it.

    Args:
        device: Device of the computation; nothing is tried on others than a CPU.
        dtype: Autocast dtype.
    """
    if device.type != 'cpu' or dtype in _warned:
        return
    slowdown = measure_slowdown(dtype)
    if slowdown > MIN_SLOWDOWN:
        _warned.add(dtype)
        name = str(dtype).removeprefix('torch.')
        _logger.warning(
            f'--amp: mixed precision in {name} is about {slowdown:.0f} times slower than float32 on this processor, as'
            ' measured on a convolutional block: use --no-amp.'
        )


@functools.cache
def measure_slowdown(dtype: torch.dtype) -> float:
    """Time of a convolutional block under autocast to its time in float32, forward and backward on the CPU, in turns.

    Random numbers stay as they are. It is measured once in a process.
    """
    chs, hidden_chs = 64, 256
    with torch.random.fork_rng(devices=()), torch.inference_mode(False), torch.enable_grad():
        block = nn.Sequential(
            nn.Conv2d(chs, hidden_chs, 1),
            nn.BatchNorm2d(hidden_chs),
            nn.GELU(),
            nn.Conv2d(hidden_chs, hidden_chs, 3, padding=1, groups=hidden_chs),
            nn.BatchNorm2d(hidden_chs),
            nn.GELU(),
            nn.Conv2d(hidden_chs, chs, 1),
        ).to(memory_format=torch.channels_last)
        images = torch.ones(4, chs, 16, 16).contiguous(memory_format=torch.channels_last)
        seconds: Dict[bool, List[float]] = {False: [], True: []}
        for _ in range(1 + ROUNDS):
            for is_mixed, timings in seconds.items():
                start = time.perf_counter()
                with torch.autocast('cpu', dtype, enabled=is_mixed):
                    output = block(images)
                output.float().sum().backward()
                timings.append(time.perf_counter() - start)
    best = {is_mixed: min(timings[1:]) for is_mixed, timings in seconds.items()}
    return best[True] / best[False]
