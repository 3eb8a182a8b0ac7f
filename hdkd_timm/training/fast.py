"""`--fast auto`: how the steps of a training are computed is found by a trial, and recorded for resuming.

All forms compute the same up to rounding. Those without a compiler take turns on copies of the task. If there is time,
the faster one is then compiled and takes turns with the compiled one. The trial has `MAX_SHARE` of the steps of the
training; where that is not enough for a fair comparison, there is none.
"""

import contextlib
import copy
import dataclasses
import logging
import random
import statistics
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np
import torch
from timm.task import TrainingTask

from .._compat import set_memory_format
from ..utils.distributed import World, describe_device, synchronize
from ..utils.files import check_sums, write_json
from ..utils.parsing import read_json
from ..utils.run_files import FAST_FILE
from .builders import example_batch
from .config import TrainConfig

_logger = logging.getLogger(__name__)

MAX_SHARE = 0.02  # of the steps of a training, as many as the trial may have
MIN_ROUNDS, MAX_ROUNDS = 3, 5  # timings of each form; fewer are not a fair comparison
BACKEND = 'inductor'  # of the compiled form
COMPILE_SECONDS = 300  # until a compiled step runs: HDKD's at 224 px took 299 s on two cores with other work


@dataclasses.dataclass(frozen=True)
class Form:
    """How the steps of a training are computed.

    Args:
        channels_last: Use the channels-last memory layout.
        torchcompile: Compile the networks with this backend; None for no compiler.
    """

    channels_last: bool = False
    torchcompile: Optional[str] = None

    def __str__(self) -> str:
        words = ['channels-last'] * self.channels_last + ['compiled'] * (self.torchcompile is not None)
        return ' '.join(words) or 'plain'


EAGER_FORMS = (Form(), Form(channels_last=True))
MIN_STEPS = round(len(EAGER_FORMS) * (MIN_ROUNDS + 1) / MAX_SHARE)  # of a training with a trial; one call warms up


def default_form(config: TrainConfig, device: torch.device) -> Form:
    """The form that the settings name; with `fast`, the one to expect without a trial: channels-last on a CPU."""
    if config.fast:
        return Form(channels_last=device.type == 'cpu')
    return Form(config.channels_last, config.torchcompile)


# -- the trial ---------------------------------------------------------------------------------------------------------


def run_trial(
    task: TrainingTask,
    config: TrainConfig,
    num_classes: int,
    steps: int,
    autocast: torch.autocast,
    world: World,
    stop_if_asked: Callable[[], None] = lambda: None,
) -> Tuple[Form, Dict[Form, float]]:
    """Time the forms of a training step, forward and backward, on copies of the task and random images.

    Task, optimiser and random numbers stay as they are. All processes take the same form: the slowest one counts.

    Args:
        task: The task in training mode, on its device, as yet neither compiled nor distributed.
        config: Settings of the training.
        num_classes: Number of classes.
        steps: Steps of the training.
        autocast: Context of the forward pass.
        world: The processes of the run.
        stop_if_asked: Called between steps; raises an error if the run is to stop.

    Returns:
        The form that trains in the least time, its start included, and the median seconds of a step in each form that
        was tried; none if the training has fewer than `MIN_STEPS`, or has no memory for a copy of its task.
    """
    budget = MAX_SHARE * steps  # in steps
    rounds = min(MAX_ROUNDS, int(budget / len(EAGER_FORMS)) - 1)
    if rounds < MIN_ROUNDS:
        return default_form(config, world.device), {}
    with kept_random_state(world.device):
        batch = example_batch(task, config, num_classes, config.batch_size, world.device)
        found = {form: prepare_step(form, task, batch, autocast, world) for form in EAGER_FORMS}
        calls = {form: call for form, call in found.items() if call is not None}
        if not calls:
            return default_form(config, world.device), {}
        seconds = time_in_turns(calls, rounds, world, stop_if_asked)
        best = min(seconds, key=lambda form: seconds[form])
        left = (budget - len(calls) * (rounds + 1)) * seconds[best]
        if left > COMPILE_SECONDS + 2 * rounds * seconds[best]:
            compiled = dataclasses.replace(best, torchcompile=BACKEND)
            compiled_call = prepare_step(compiled, task, batch, autocast, world)
            if compiled_call is not None:
                pair = {best: calls[best], compiled: compiled_call}
                seconds.update(time_in_turns(pair, rounds, world, stop_if_asked))
    # the compiled step is reused, but the passes of validation are yet to be compiled, and all again after a resume
    ahead = {form: steps * value + COMPILE_SECONDS * bool(form.torchcompile) for form, value in seconds.items()}
    return min(ahead, key=lambda form: ahead[form]), seconds


@contextlib.contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """Restore the random numbers of Python, NumPy and PyTorch, on the CPU and a CUDA device, afterwards."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == 'cuda' else []):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def create_step(
    form: Form, task: TrainingTask, batch: Tuple[torch.Tensor, ...], autocast: torch.autocast
) -> Callable[[], None]:
    """Forward and backward pass of a copy of the task in a form.

    Args:
        form: The form.
        task: The task.
        batch: Images (B, C, H, W), targets and, where the task needs them, numbers of the images.
        autocast: Context of the forward pass.
    """
    copied = copy.deepcopy(task)
    images, *others = batch
    if form.channels_last:
        set_memory_format(copied, torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    if form.torchcompile:
        copied.compile(backend=form.torchcompile)

    def step() -> None:
        with autocast:
            loss = copied(images, *others)['loss']
        loss.backward()
        copied.zero_grad()  # one set of gradients at a time

    return step


def prepare_step(
    form: Form, task: TrainingTask, batch: Tuple[torch.Tensor, ...], autocast: torch.autocast, world: World
) -> Optional[Callable[[], None]]:
    """As `create_step`, warmed up; None, with a warning, if any of the processes lacks the memory or the compiler."""
    call = None
    try:
        call = create_step(form, task, batch, autocast)
        for _ in range(2 if form.torchcompile else 1):  # the first call may leave parts to be compiled
            time_call(call, world.device)
    except Exception as e:  # a compiler can raise anything
        if not (form.torchcompile or isinstance(e, torch.OutOfMemoryError)):
            raise
        call = None
        reason = ' '.join(str(e).split())[:200] or type(e).__name__
        _logger.warning(f'--fast auto leaves out {form}: it fails here ({reason}).')
    return call if all(world.gather(call is not None)) else None


def time_in_turns(
    calls: Dict[Form, Callable[[], None]], rounds: int, world: World, stop_if_asked: Callable[[], None]
) -> Dict[Form, float]:
    """Median seconds of a call of each form, in turns, so that other load affects all alike; of the slowest process."""
    timings: Dict[Form, List[float]] = {form: [] for form in calls}
    for _ in range(rounds):
        stop_if_asked()
        for form, call in calls.items():
            timings[form].append(time_call(call, world.device))
    medians = world.gather({form: statistics.median(values) for form, values in timings.items()})
    return {form: max(of_process[form] for of_process in medians) for form in calls}


def time_call(call: Callable[[], None], device: torch.device) -> float:
    """Seconds of a call."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def describe_trial(form: Form, seconds: Dict[Form, float], steps: int) -> str:
    """The choice in words, with the milliseconds of a step."""
    if not seconds:
        few = f': {steps} steps are too few for one (fewer than {MIN_STEPS})' if steps < MIN_STEPS else ''
        return f'{form}, without a trial{few}.'
    shown = {tried: f'{1000 * value:{".3g" if value < 0.1 else ".0f"}}' for tried, value in seconds.items()}
    others = ', '.join(f'{tried} {value}' for tried, value in shown.items() if tried != form)
    return f'{form}, {shown[form]} ms a step ({others}).'


# -- the record --------------------------------------------------------------------------------------------------------


def write_form(folder: Path, form: Form, seconds: Dict[Form, float], device: torch.device) -> None:
    """Write the choice to the folder of a network, and the milliseconds of a step in each form that was tried."""
    milliseconds = {str(tried): round(1000 * value, 2) for tried, value in seconds.items()}
    record = dict(dataclasses.asdict(form), device=describe_device(device), milliseconds=milliseconds)
    write_json(record, folder / FAST_FILE, summed=True)


def read_form(folder: Path) -> Optional[Form]:
    """The form that was chosen for a network, None if there is no record.

    Raises:
        ValueError: if the record is damaged.
    """
    path = folder / FAST_FILE
    if not path.exists():
        return None
    check_sums(folder, FAST_FILE)
    try:
        record: Dict[str, Any] = read_json(path)
        form = Form(record['channels_last'], record['torchcompile'])
        if not isinstance(form.channels_last, bool) or not isinstance(form.torchcompile, (str, type(None))):
            raise TypeError(f'{form.channels_last!r}, {form.torchcompile!r}')
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(
            f"'{path}' is damaged ({type(e).__name__}: {e}), which says how the steps are computed: restore it, or"
            ' start the run again with --overwrite.'
        ) from e
    return form
