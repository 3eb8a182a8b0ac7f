"""How much memory there is to take."""
import os
from pathlib import Path


def _container_memory() -> float:
    """Bytes that a container (cgroup 2) may still take, those of its file cache included."""
    folder = Path('/sys/fs/cgroup')
    try:
        limit, used = ((folder / name).read_text() for name in ('memory.max', 'memory.current'))
        stat = dict(line.split() for line in (folder / 'memory.stat').read_text().splitlines())
        return int(limit) - int(used) + int(stat['inactive_file'])
    except (OSError, ValueError, KeyError):  # no container, or one without a limit ('max')
        return float('inf')


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
