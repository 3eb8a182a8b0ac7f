"""The folder of a run: whose it is, what is written into it, and how a run is interrupted and goes on.

Every file is written whole or not at all. A folder is locked while a run writes to it; the lock goes with the process,
however that ends.
"""
import logging
import os
import shutil
import signal
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Sequence, Union

import torch
import yaml
from filelock import FileLock, Timeout

from .checkpoint import read_checkpoint
from .config import read_yaml

_logger = logging.getLogger(__name__)

CONFIG, STATE, METRICS = 'config.yaml', 'last.pth', 'metrics.json'
_LOCK = '.lock'


@contextmanager
def whole_file(path: Union[str, Path], mode: str = 'w') -> Iterator[Any]:
    """An open file that takes the place of `path` when all is written, and leaves it alone after an error."""
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, mode, **({} if 'b' in mode else {'newline': '', 'encoding': 'utf-8'})) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise


def save_state(state: Dict[str, Any], path: Union[str, Path]) -> None:
    """Write a training state, whole or not at all."""
    with whole_file(path, 'wb') as file:
        torch.save(state, file)


def load_state(path: Union[str, Path]) -> Dict[str, Any]:
    """Read a training state, without running any code that it holds.

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint`; if it is no training state.
    """
    state = read_checkpoint(path)
    if 'progress' not in state:
        raise ValueError(f"'{path}' is no training state: it holds no progress.")
    return state


def _check_same_settings(folder: Path, settings: Dict[str, Any], free: Sequence[str]) -> None:
    """A run goes on as it was begun, or its result would be that of neither setting."""
    before = read_yaml(folder / CONFIG)
    different = [
        name for name in {**before, **settings}
        if name not in free and before.get(name) != settings.get(name)]
    if different:
        name = different[0]
        raise ValueError(
            f"Run '{folder}' was begun with {name} {before.get(name)!r}, not {settings.get(name)!r}"
            f" ({len(different)} settings differ: {', '.join(different)}): resume it with --config {folder / CONFIG}"
            ' --resume, or choose another --experiment.')


def _remove_halves(folder: Path) -> None:
    """What a killed process was writing when it ended."""
    for path in list(folder.rglob('.*')):
        if path.name.endswith('.tmp'):
            path.unlink()
        elif path.is_dir() and path.name.startswith(('.new-', '.best-')):
            shutil.rmtree(path)


@contextmanager
def run_folder(
        output: str,
        experiment: str,
        settings: str,
        resume: bool = False,
        overwrite: bool = False,
        free: Sequence[str] = (),
) -> Iterator[Path]:
    """The folder of a run, this process's alone as long as it is open.

    A new folder in which no training state was saved is removed again after an error.

    Args:
        output: Folder of the runs.
        experiment: Name of the run.
        settings: Its settings in YAML, written to config.yaml.
        resume: Go on with a run that is there, which must have the same settings.
        overwrite: Remove a run that is there.
        free: Settings that may change when a run goes on.

    Raises:
        FileExistsError: if there is such a run and neither `resume` nor `overwrite` is set, or another process has it.
        FileNotFoundError: if there is no run to resume.
        ValueError: if a run to resume has other settings.
    """
    folder = Path(output) / experiment
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    if folder.exists() and not resume and not overwrite:
        raise FileExistsError(
            f"Run '{folder}' exists already: --resume goes on with it, --overwrite replaces it, or choose another"
            ' --experiment.')
    if resume and not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"There is no run '{folder}' to resume, it has no {CONFIG}.")
    is_empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if overwrite and not is_empty and not (folder / CONFIG).is_file():
        raise FileExistsError(f"'{folder}' is no run, it has no {CONFIG}: it is not overwritten.")
    folder.mkdir(parents=True, exist_ok=resume or overwrite)
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as e:
        raise FileExistsError(f"Another process is writing to run '{folder}': wait for its end.") from e
    try:
        if resume:
            _check_same_settings(folder, yaml.safe_load(settings), free)
            _remove_halves(folder)
        else:
            for path in folder.iterdir():
                if path.name != _LOCK:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        with whole_file(folder / CONFIG) as file:
            file.write(settings)
        yield folder
    except BaseException:
        if not resume and not any(folder.rglob(STATE)) and not any(folder.rglob(METRICS)):
            shutil.rmtree(folder)
            with suppress(OSError):  # another run may have come to use them
                for path in created[1:]:
                    path.rmdir()
        raise
    finally:
        with suppress(FileNotFoundError):
            (folder / _LOCK).unlink()
        lock.release()


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


class Signals:
    """SIGINT (Ctrl-C) and SIGTERM are noted, to be asked for after each step. A second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.received: Optional[int] = None
        self._before: Dict[int, Any] = {}

    def _note(self, signum: int, frame: Any) -> None:
        if self.received == signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signum

    def __enter__(self) -> 'Signals':
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *args: Any) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
