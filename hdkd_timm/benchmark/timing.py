"""Timing of several forms of the same work in turn, so that other load on the machine affects all of them alike."""

import statistics
import time
from contextlib import nullcontext
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import torch

from ..utils.distributed import synchronize
from ..utils.memory import kept_memory

WARMUP_CALLS = 2  # of a form that keeps freed memory, until it takes no more of it from the system
LATENCY_CALLS = 20  # of a form in a row, each timed by itself
MIN_SECONDS = 0.3  # of one timing: several calls of a form that takes less are timed together


def _time_calls(
    form: Callable[[], Any],
    device: torch.device,
    number: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Mean seconds of a call."""
    synchronize(device)
    start = clock()
    for _ in range(number):
        form()
    synchronize(device)
    return (clock() - start) / number


def take_turns(
    forms: Dict[Any, Callable[[], Any]],
    rounds: int,
    device: torch.device,
    kept: Tuple[str, ...] = (),
    clock: Callable[[], float] = time.perf_counter,
) -> Dict[Any, float]:
    """Median seconds of a call of each form, timed in turn, after two calls for warm-up.

    Args:
        forms: Name -> function to call.
        rounds: Number of timings of each.
        device: Device that they run on.
        kept: Forms that are timed last in each round, while glibc keeps freed memory, each after a warm-up of its own.
        clock: Returns the time in seconds.
    """
    first = {name: [_time_calls(form, device, clock=clock) for _ in range(2)][1] for name, form in forms.items()}
    calls = {name: max(1, int(MIN_SECONDS / seconds)) for name, seconds in first.items()}
    timings: Dict[Any, List[float]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name in forms:
            if name not in kept:
                timings[name].append(_time_calls(forms[name], device, calls[name], clock))
        with kept_memory(device) if kept else nullcontext():
            for name in kept:
                for _ in range(WARMUP_CALLS):
                    forms[name]()
                timings[name].append(_time_calls(forms[name], device, calls[name], clock))
    return {name: statistics.median(values) for name, values in timings.items()}


def measure_latency(
    forms: Dict[Any, Callable[[], Any]],
    rounds: int,
    device: torch.device,
    kept: Tuple[str, ...] = (),
    clock: Callable[[], float] = time.perf_counter,
) -> Dict[Any, Tuple[float, float]]:
    """Median and 95th percentile of the seconds of single calls of each form, `LATENCY_CALLS` in a row in each round.

    Args:
        forms, rounds, device, kept, clock: As in `take_turns`; forms that are not kept have a warm-up too.
    """
    timings: Dict[Any, List[float]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, form in forms.items():
            with kept_memory(device) if name in kept else nullcontext():
                for _ in range(WARMUP_CALLS):
                    form()
                timings[name] += [_time_calls(form, device, clock=clock) for _ in range(LATENCY_CALLS)]
    found = {name: np.percentile(values, [50, 95]) for name, values in timings.items()}
    return {name: (float(middle), float(high)) for name, (middle, high) in found.items()}
