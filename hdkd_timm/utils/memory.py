"""How much memory there is to take, and how it is kept."""
import ctypes
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

import torch

CGROUPS, CGROUP_OF_SELF = Path('/sys/fs/cgroup'), Path('/proc/self/cgroup')


def _container_memory() -> float:
    """Bytes that the container or job (cgroup 2) may still take, those of its file cache included."""
    root, least = CGROUPS, float('inf')
    try:
        lines = CGROUP_OF_SELF.read_text().splitlines()
    except OSError:
        return least
    inner = next((line[4:] for line in lines if line.startswith('0::/')), '')
    inside = [root / inner, *(root / inner).parents]
    for folder in inside[:inside.index(root) + 1]:  # those around it have limits of their own
        try:
            limit, used = ((folder / name).read_text() for name in ('memory.max', 'memory.current'))
            stat = dict(line.split() for line in (folder / 'memory.stat').read_text().splitlines())
            least = min(least, int(limit) - int(used) + int(stat['inactive_file']))
        except (OSError, ValueError, KeyError):  # one without a limit ('max')
            continue
    return least


def available_memory() -> int:
    """Bytes of memory that can be taken, of all there is where the system does not tell."""
    name = 'SC_AVPHYS_PAGES' if 'SC_AVPHYS_PAGES' in os.sysconf_names else 'SC_PHYS_PAGES'
    try:
        for line in Path('/proc/meminfo').read_text().splitlines():  # counts what caches would give back
            if line.startswith('MemAvailable:'):
                return int(min(int(line.split()[1]) * 1024, _container_memory()))
    except OSError:
        pass
    return os.sysconf(name) * os.sysconf('SC_PAGE_SIZE')


def format_bytes(number: int) -> str:
    """A number of bytes for people, '1.5 GiB'."""
    for unit in ('KiB', 'MiB'):
        number /= 1024
        if number < 1000:
            return f'{number:.1f} {unit}'
    return f'{number / 1024:.1f} GiB'


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """Keep freed memory meanwhile, if the device is the CPU, see `keep_freed_memory`."""
    keeps = device.type == 'cpu' and keep_freed_memory()
    try:
        yield
    finally:
        if keeps:
            keep_freed_memory(False)


def keep_freed_memory(keep: bool = True) -> bool:
    """Have glibc keep memory that is freed, for this process to take again, or (False) give it back as by default.

    By default it gives the maps of a training step back to the system, which has to clear them anew for the next step:
    up to a third of the time of a step.

    Returns whether it could be set: whether there is glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another system
        return False
    # M_MMAP_MAX, M_TRIM_THRESHOLD, M_MMAP_THRESHOLD; without keeping, the values that glibc's own adaption ends at
    settings = {-4: 0, -1: -1} if keep else {-4: 65536, -1: 2 ** 26, -3: 2 ** 25}
    done = [mallopt(option, value) == 1 for option, value in settings.items()]
    if not keep:
        ctypes.CDLL(None).malloc_trim(0)
    return all(done)
