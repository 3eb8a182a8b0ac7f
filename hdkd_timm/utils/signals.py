"""Signals that ask a run to stop are recorded, so that it can save its state first."""

import signal
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, Optional, TypeVar, Union

T = TypeVar('T')

# SLURM can send SIGUSR1 before the time limit. Windows does not have all of them
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1') if hasattr(signal, name)
)


class Interrupted(Exception):
    """A run was stopped by a signal after its state was saved, or something else before it wrote anything.

    Args:
        signum: Number of the signal.
        folder: Directory of the run.
        is_saved: Whether there is a state.
    """

    def __init__(self, signum: int, folder: Union[str, Path], is_saved: bool = True):
        what = f"the state of run '{folder}' is saved" if is_saved else 'nothing was written'
        super().__init__(f'{signal.Signals(signum).name}, {what}')
        self.signum = signum
        self.folder = folder
        self.is_saved = is_saved

    @property
    def signal_name(self) -> str:
        return signal.Signals(self.signum).name


class _WaitEnded(BaseException):
    """Raised by a signal while a batch is read. Not an `Exception`, which the reader would take for a damaged image."""


class Signals:
    """Records signals that ask to stop (`STOP_SIGNALS`) in `received`, which is to be checked after each step.

    They also end a wait for a batch, see `watch`. A second Ctrl-C ends the process at once. SIGHUP and SIGUSR1 are left
    alone if the program handles or ignores them: under nohup, a run continues when the terminal closes.
    """

    def __init__(self) -> None:
        self.received: Optional[int] = None
        self._ends_wait = False
        self._before: Dict[int, Any] = {}

    def _record(self, signum: int, frame: Any) -> None:
        if self.received == signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signum
        if self._ends_wait:
            self._ends_wait = False
            raise _WaitEnded

    def watch(self, batches: Iterable[T], may_end: Callable[[], bool] = lambda: True) -> Iterator[T]:
        """Yield batches until a signal is received, which also interrupts the wait for the next one: a disk may hang.

        Args:
            batches: The batches, whose iterator is not used again after a signal.
            may_end: Called before each wait; returns whether a signal may end the iteration there.
        """
        iterator = iter(batches)
        while True:
            try:
                self._ends_wait = may_end()
                if self._ends_wait and self.received:
                    return
                try:
                    batch = next(iterator)
                finally:
                    self._ends_wait = False
            except (StopIteration, _WaitEnded):
                return
            yield batch

    def __enter__(self) -> 'Signals':
        if threading.current_thread() is threading.main_thread():
            self._before = {
                signum: signal.signal(signum, self._record)
                for signum in STOP_SIGNALS
                if signum in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(signum) == signal.SIG_DFL
            }
        return self

    def __exit__(self, *args: Any) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
