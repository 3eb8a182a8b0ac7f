"""Time and memory of a training step by allocator and thread settings: `python docs/process_settings.py`, on Linux.

Each is the environment of processes of their own, which take turns, so that whatever else the machine does slows all of
them. Allocators that are not installed are left out, which is said; Debian has them as `libjemalloc2` and
`libtcmalloc-minimal4`. Writes docs/tables/process_settings.csv; `python docs/tables.py` puts it into the page.
"""

import argparse
import csv
import ctypes.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List

import torch

from hdkd_timm.benchmark.machine import describe_machine
from hdkd_timm.benchmark.step import STEP_FORMS, create_step
from hdkd_timm.utils.memory import keep_freed_memory

PUBLISHED = 'published loop'
NO_DECAY = 'dirty_decay_ms:-1,muzzy_decay_ms:-1'
SETTINGS: Dict[str, Dict[str, str]] = {  # the form is `+ fused teacher` but for the first
    PUBLISHED: {},
    "glibc's allocator": {},
    'freed memory kept, as `hdkd distill` does': {},
    'huge pages (`THP_MEM_ALLOC_ENABLE=1`)': {'THP_MEM_ALLOC_ENABLE': '1'},
    'jemalloc': {'LD_PRELOAD': 'libjemalloc.so.2'},
    f'jemalloc, `MALLOC_CONF={NO_DECAY}`': {'LD_PRELOAD': 'libjemalloc.so.2', 'MALLOC_CONF': NO_DECAY},
    'tcmalloc': {'LD_PRELOAD': 'libtcmalloc_minimal.so.4'},
    'freed memory kept, threads pinned (`OMP_PROC_BIND=true`)': {'OMP_PROC_BIND': 'true'},
}
ROUNDS, STEPS, WARMUP = 3, 3, 2  # processes of each setting, steps that are timed in each


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name: str) -> Dict[str, float]:
    """Median milliseconds of a step, and peak bytes on top of what the process had before the first one."""
    keep_freed_memory(name.startswith('freed memory kept'))
    form = STEP_FORMS['stages again' if name == PUBLISHED else '+ fused teacher']
    step = create_step(form, 8, 224, torch.device('cpu'))
    before, seconds = peak_memory(), []
    for _ in range(WARMUP + STEPS):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return {'milliseconds': 1000 * statistics.median(seconds[WARMUP:]), 'memory': peak_memory() - before}


def is_installed(variables: Dict[str, str]) -> bool:
    """Whether the library that is to be loaded first, if any, is found; jemalloc cannot be loaded later."""
    library = variables.get('LD_PRELOAD')
    return library is None or ctypes.util.find_library(library.removeprefix('lib').split('.so')[0]) == library


def run_process(name: str) -> Dict[str, float]:
    command = [sys.executable, __file__, '--setting', name]
    done = subprocess.run(command, env={**os.environ, **SETTINGS[name]}, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--setting', choices=list(SETTINGS), help='measure this in the present process')
    args = parser.parse_args()
    if args.setting:
        print(json.dumps(measure(args.setting)))
        return
    print(describe_machine(torch.device('cpu')), flush=True)
    names = [name for name, variables in SETTINGS.items() if is_installed(variables)]
    for name in sorted(set(SETTINGS) - set(names)):
        print(f'Not measured, {SETTINGS[name]["LD_PRELOAD"]} is not installed: {name}')
    found: Dict[str, List[Dict[str, float]]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name in names:
            found[name].append(run_process(name))
            print(name, found[name][-1], flush=True)
    with open(Path(__file__).parent / 'tables' / 'process_settings.csv', 'w', encoding='utf-8', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['setting', 'milliseconds', 'fastest', 'slowest', 'memory_gib'])
        for name, results in found.items():
            times = [result['milliseconds'] for result in results]
            memory = statistics.median(result['memory'] for result in results) / 2**30
            writer.writerow([name, *(round(f(times)) for f in (statistics.median, min, max)), f'{memory:.2f}'])


if __name__ == '__main__':
    main()
