"""How much memory is available, and keeping freed memory in the process."""

import ctypes
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

import torch

from .cgroups import container_memory


def available_memory() -> int:
    """Bytes of memory that can be allocated; all physical memory on systems that do not report it."""
    name = 'SC_AVPHYS_PAGES' if 'SC_AVPHYS_PAGES' in os.sysconf_names else 'SC_PHYS_PAGES'
    try:
        for line in Path('/proc/meminfo').read_text().splitlines():  # includes caches that can be reclaimed
            if line.startswith('MemAvailable:'):
                return int(min(int(line.split()[1]) * 1024, container_memory()))
    except OSError:
        pass
    return os.sysconf(name) * os.sysconf('SC_PAGE_SIZE')


def format_bytes(number: int) -> str:
    """A human-readable number of bytes, '1.5 GiB'."""
    for unit in ('KiB', 'MiB'):
        number /= 1024
        if number < 1000:
            return f'{number:.1f} {unit}'
    return f'{number / 1024:.1f} GiB'


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """Within the context, keep freed memory if the device is the CPU, see `keep_freed_memory`."""
    keeps = device.type == 'cpu' and keep_freed_memory()
    try:
        yield
    finally:
        if keeps:
            keep_freed_memory(False)


def keep_freed_memory(keep: bool = True) -> bool:
    """Have glibc keep freed memory for later allocations of this process.

    By default it returns the activations of a training step to the system, which has to clear the pages again for the
    next step: up to a third of the time of a step.

    Args:
        keep: Whether to keep it; False restores the default and returns what is free.

    Returns:
        Whether it could be set, which needs glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc
        return False
    # M_MMAP_MAX, M_TRIM_THRESHOLD, M_MMAP_THRESHOLD; to restore, the values at which glibc's own adaptation settles
    settings = {-4: 0, -1: -1} if keep else {-4: 65536, -1: 2**26, -3: 2**25}
    done = [mallopt(option, value) == 1 for option, value in settings.items()]
    if not keep:
        ctypes.CDLL(None).malloc_trim(0)
    return all(done)
