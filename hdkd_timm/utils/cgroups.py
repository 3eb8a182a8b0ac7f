"""Limits of the container or job that this process runs in (cgroups of Linux): its memory, its share of the cores."""

import logging
import math
import os
from pathlib import Path
from typing import List

CGROUPS, CGROUP_OF_SELF = Path('/sys/fs/cgroup'), Path('/proc/self/cgroup')

_logger = logging.getLogger(__name__)


def _list_groups() -> List[Path]:
    """Folders of the cgroups (v2) of this process, from its own to the root, all of whose limits apply."""
    try:
        lines = CGROUP_OF_SELF.read_text().splitlines()
    except OSError:
        return []
    inner = next((line[4:] for line in lines if line.startswith('0::/')), '')
    inside = [CGROUPS / inner, *(CGROUPS / inner).parents]
    return inside[: inside.index(CGROUPS) + 1]


def container_memory() -> float:
    """Bytes that the container or job may still allocate; its file cache counts as free. Infinite without a limit."""
    least = float('inf')
    for folder in _list_groups():
        try:
            limit, used = ((folder / name).read_text() for name in ('memory.max', 'memory.current'))
            stat = dict(line.split() for line in (folder / 'memory.stat').read_text().splitlines())
            least = min(least, int(limit) - int(used) + int(stat['inactive_file']))
        except (OSError, ValueError, KeyError):  # no limit ('max')
            continue
    return least


def _container_cores() -> float:
    """Cores' worth of time that the container or job may use; infinite without a limit."""
    quotas = [[CGROUPS / 'cpu' / f'cpu.cfs_{name}_us' for name in ('quota', 'period')]]  # cgroup v1, seen from inside
    quotas += [[folder / 'cpu.max'] for folder in _list_groups()]
    least = float('inf')
    for files in quotas:
        try:
            quota, period = (int(word) for path in files for word in path.read_text().split())
        except (OSError, ValueError):  # no limit ('max')
            continue
        if quota > 0 and period > 0:  # -1: no limit
            least = min(least, quota / period)
    return least


def available_cores() -> int:
    """Number of cores that this process may use: those of its affinity, at most its container's share, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    share = _container_cores()
    return cores if share >= cores else max(1, math.ceil(share))


def limit_threads() -> None:
    """Have PyTorch use as many threads as cores are available, where it would use more: it counts those of the machine,
    and more threads than a container's share of them wait for each other. Whoever sets OMP_NUM_THREADS decides."""
    cores = available_cores()
    if 'OMP_NUM_THREADS' in os.environ or _container_cores() == float('inf'):
        return
    import torch

    threads = torch.get_num_threads()
    if threads > cores:
        torch.set_num_threads(cores)
        _logger.info(
            f"PyTorch uses {cores} of {threads} threads, this container's share of the cores (OMP_NUM_THREADS decides"
            ' otherwise).'
        )
