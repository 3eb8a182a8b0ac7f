"""Signals that ask a run to stop: noted, so that it can save its state first."""
import signal
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, Optional, TypeVar, Union

T = TypeVar('T')

# SIGUSR1 is what SLURM can send before the time is up. Windows lacks some
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1') if hasattr(signal, name))


class Interrupted(Exception):
    """A run was stopped by a signal, its state is saved.

    Args:
        signum: Number of the signal.
        folder: Folder of the run.
    """

    def __init__(self, signum: int, folder: Union[str, Path]):
        super().__init__(f"{signal.Signals(signum).name}, the state of run '{folder}' is saved")
        self.signum = signum
        self.folder = folder

    @property
    def signal_name(self) -> str:
        return signal.Signals(self.signum).name


class _WaitEnded(BaseException):
    """Raised by a signal in the middle of reading: no `except Exception` there must take it for a damaged image."""


class Signals:
    """Signals that ask to stop (`STOP_SIGNALS`) are noted, to be asked for after each step.

    They also end a wait for a batch, see `watch`. A second Ctrl-C ends at once. SIGHUP and SIGUSR1 stay as they are
    where the program has a use for them, or ignores them: nohup's runs go on when the terminal closes.
    """

    def __init__(self) -> None:
        self.received: Optional[int] = None
        self._ends_wait = False
        self._before: Dict[int, Any] = {}

    def _note(self, signum: int, frame: Any) -> None:
        if self.received == signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signum
        if self._ends_wait:
            self._ends_wait = False
            raise _WaitEnded

    def watch(self, batches: Iterable[T], may_end: Callable[[], bool] = lambda: True) -> Iterator[T]:
        """The batches up to a signal, which does not wait for the next one: a disk may hang, and minutes are too long.

        Args:
            batches: They are not used any more once a signal came.
            may_end: Asked before each wait whether it may end early.
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
                signum: signal.signal(signum, self._note) for signum in STOP_SIGNALS
                if signum in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(signum) == signal.SIG_DFL}
        return self

    def __exit__(self, *args: Any) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
