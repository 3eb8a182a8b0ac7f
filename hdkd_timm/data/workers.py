"""Loader processes: how many fit into shared memory, how they react to signals, and what their failures mean."""

import logging
import multiprocessing
import os
import shutil
import signal
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator, Optional

from timm.data.loader import _worker_init
from torch.utils.data import DataLoader

from ..utils.distributed import end_with_parent
from ..utils.memory import format_bytes
from ..utils.signals import STOP_SIGNALS

_logger = logging.getLogger(__name__)

SHARED = Path('/dev/shm')  # where Linux keeps memory that processes share
PREFETCH = 2  # batches that each loader process reads ahead, torch's default
SHARED_RESERVE = 2**20  # bytes of shared memory for the queues and locks of the loader processes


# -- shared memory -----------------------------------------------------------------------------------------------------


def fit_workers(num_workers: int, batch_bytes: int, free: int) -> int:
    """Number of loader processes whose batches fit into the free shared memory.

    Args:
        num_workers: Requested number, the maximum.
        batch_bytes: Size of a batch.
        free: Bytes of free shared memory.
    """
    batches = (free - SHARED_RESERVE) // batch_bytes - 2  # the main process holds two
    return max(0, min(num_workers, batches // PREFETCH))


def limit_workers(num_workers: int, batch_size: int, image_bytes: int, processes: int) -> int:
    """As `fit_workers` for this machine, with a warning if there are fewer: a loader would hang in full memory.

    Args:
        num_workers: Requested number.
        batch_size: Batch size per process.
        image_bytes: Size of a transformed image.
        processes: Training processes on this machine, which share its memory.
    """
    if not num_workers or not SHARED.exists():
        return num_workers
    free = shutil.disk_usage(SHARED).free
    batch_bytes = batch_size * image_bytes
    fitting = fit_workers(num_workers, batch_bytes, free // processes)
    if fitting < num_workers:
        needed = ((PREFETCH * num_workers + 2) * batch_bytes + SHARED_RESERVE) * processes
        _logger.warning(
            f"{num_workers} loader processes hold up to {format_bytes(needed)} of batches in '{SHARED}', which has"
            f' {format_bytes(free)} free: using {fitting or "none"}, which may be slower. Enlarge it (docker run'
            ' --shm-size=2g), or lower --workers or --batch-size.'
        )
    return fitting


# -- signals -----------------------------------------------------------------------------------------------------------


def create_worker_init() -> Callable[[int], None]:
    """The function that each loader process runs first, for loaders that are started by the current thread."""
    # Linux signals a process at the end of the thread that started it: only for the main thread is that its parent's
    return partial(_init_worker, ends_with_parent=threading.current_thread() is threading.main_thread())


def _init_worker(worker_id: int, ends_with_parent: bool = False) -> None:
    """Ignore the signals that ask to stop. They reach all processes of a terminal or a job; the main process handles
    them and still needs its loaders for that."""
    parent = multiprocessing.parent_process().pid
    for signum in STOP_SIGNALS:
        if signum != signal.SIGTERM:
            signal.signal(signum, signal.SIG_IGN)
    _obey_parent_only(parent)
    if hasattr(signal, 'pthread_sigmask'):  # they were blocked by `SignalSafeLoader`
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(STOP_SIGNALS) - {signal.SIGTERM})
    if ends_with_parent and os.getppid() == parent:  # the parent of a fork server's process is the server
        end_with_parent(signal.SIGKILL, parent)  # at once: a remaining process would hold the lock of its run
    _worker_init(worker_id)


def _obey_parent_only(parent: int) -> None:
    """End on a SIGTERM from the main process, which ends stuck loaders that way, but not from any other process."""

    def wait() -> None:
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
            pass
        os._exit(0)

    if hasattr(signal, 'sigwaitinfo'):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Defer signals that ask to stop, here and in processes started meanwhile."""
    if not hasattr(signal, 'pthread_sigmask'):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class SignalSafeLoader(DataLoader):
    """A loader whose processes ignore signals from their first moment, before their init function runs."""

    def __iter__(self) -> Any:
        with _blocked_signals():
            return super().__iter__()


# -- failures ----------------------------------------------------------------------------------------------------------


def find_timeout(batch_size: int) -> int:
    """Seconds to wait for a batch before giving up; a slow disk can take seconds per image."""
    return max(300, 10 * batch_size)


def explain_failure(error: RuntimeError) -> Optional[OSError]:
    """A clear error for torch's reports of loader processes that ended or hang, None for other errors."""
    message = str(error).strip()
    if not message.startswith(('DataLoader timed out', 'DataLoader worker (')):  # others are raised by an image
        return None
    free = f" ('{SHARED}' has {format_bytes(shutil.disk_usage(SHARED).free)} free)" if SHARED.exists() else ''
    if 'timed out' in message:
        return TimeoutError(
            f'The loader processes returned no batch ({message}). A disk may hang, or shared memory may be full{free}:'
            ' use --workers 0 to read in the main process.'
        )
    return ChildProcessError(
        f'A loader process ended ({message}). Memory may be exhausted, or shared memory full{free}: use fewer --workers'
        ' (0 to read in the main process) or a smaller --batch-size.'
    )
