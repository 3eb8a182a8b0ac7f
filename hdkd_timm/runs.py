"""The folder of a run: whose it is, what is written into it, and how a run is interrupted and goes on.

Every file is written whole or not at all. A folder is locked while a run writes to it; the lock goes with the process,
however that ends.
"""
import csv
import logging
import os
import shutil
import signal
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Union

import numpy as np
import torch
import yaml
from filelock import FileLock, Timeout

from .checkpoint import read_checkpoint
from .config import read_yaml
from .data import CONTENTS, find_changes
from .files import TEXT, whole_file, write_rows

_logger = logging.getLogger(__name__)

Rows = List[Dict[str, str]]

CONFIG, IMAGES, STATE, METRICS = 'config.yaml', 'images.csv', 'last.pth', 'metrics.json'
PREDICTIONS, SUMMARY = 'predictions.csv', 'summary.csv'
_LOCK, _BEFORE = '.lock', '.before'  # what `overwrite` replaces is kept until the run has something to show


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


def _within(rows: Rows) -> Rows:
    """Rows of what tells one image from another, with paths relative to the folder of all, which may move."""
    paths = [row['path'] for row in rows]
    base = os.path.commonpath(paths) if paths and all(map(os.path.isabs, paths)) else ''
    return [
        {**{key: value for key, value in row.items() if key not in CONTENTS}, 'path': row['path'].removeprefix(base)}
        for row in rows]


def _missing_in(others: Rows, rows: Rows) -> Rows:
    """The rows that are not among the others."""
    known = {tuple(sorted(row.items())) for row in others}
    return [row for row in rows if tuple(sorted(row.items())) not in known]


def _contents(rows: Rows) -> np.ndarray:
    """Size in bytes and SHA-256 of each image, '' where the row does not tell, (N, 2)."""
    return np.array([[row.get(name) or '' for name in CONTENTS] for row in rows], object).reshape(-1, len(CONTENTS))


def keep_images(rows: Rows, folder: Path) -> None:
    """Write which images a run has to images.csv, or compare them where it goes on.

    Args:
        rows: As `list_images` returns them.
        folder: Folder of the run.

    Raises:
        FileNotFoundError: if the run has a state or results, but no list, or an empty one.
        ValueError: if they are not those that it was begun with: what was held out could be trained on then; or if the
            contents of one have changed.
    """
    path = folder / IMAGES
    if not rows:  # datasets without random access tell none
        return
    if not path.exists() and not _has_results(folder):
        write_rows(rows, path)
        return
    before = _read_images(path)
    if not before:
        raise FileNotFoundError(
            f"'{path}', the list of the run's images, is {'empty or damaged' if path.exists() else 'missing'}: without"
            ' it nothing tells whether images that were held out are trained on now. Restore it, or begin another run.')
    inside, now = _within(before), _within(rows)
    if inside != now:
        different = _missing_in(now, inside) or _missing_in(inside, now) or inside
        raise ValueError(
            f"The images are not those that run '{folder}' was begun with ({len(before)} in '{path}', now {len(now)};"
            f" '{different[0]['path']}' of split {different[0]['split']} is not in both): restore them, or begin"
            ' another run.')
    _compare_contents(before, rows, folder)


def _read_images(path: Path) -> Rows:
    """The rows of images.csv, none where it is missing or damaged."""
    if not path.exists():
        return []
    with path.open(**TEXT) as file:
        rows = list(csv.DictReader(file))
    return rows if all(row.get('path') and row.get('split') for row in rows) else []


def _compare_contents(before: Rows, now: Rows, folder: Path) -> None:
    """Are the images of a run that goes on what they were?

    Raises:
        ValueError: if one is not; the first is named.
    """
    old, new = _contents(before), _contents(now)
    changed = np.flatnonzero(find_changes(old, new))
    if len(changed):
        first = now[changed[0]]
        raise ValueError(
            f"Image '{first['path']}' of split {first['split']} has changed since run '{folder}' was begun"
            f' ({len(changed):,} of {len(now):,} images differ in size or SHA-256): restore the images, or begin'
            ' another run.')
    size_known, digest_known = ((old != '') & (new != '')).any(axis=0)
    if not digest_known:
        why = ('the images are not read now' if (old[:, 1] != '').any()
               else f"'{folder / IMAGES}' holds no SHA-256, it is of an earlier version or of --no-check-images")
        _logger.warning(
            f"The contents of the images were not compared with those that run '{folder}' was begun with: {why}. Names"
            f"{', splits and sizes' if size_known else ' and splits'} are the same.")


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _remove_halves(folder: Path) -> None:
    """What a killed process was writing when it ended."""
    for path in list(folder.rglob('.*')):
        if path.name.endswith('.tmp') or path.name.startswith(('.best-', '.report-')):
            _remove(path)


def _has_results(folder: Path) -> bool:
    """Was a training state saved, or a result?"""
    return any(_BEFORE not in path.parts for name in (STATE, METRICS) for path in folder.rglob(name))


def _move_aside(folder: Path) -> None:
    """What --overwrite replaces goes to .before, but for the settings, so that the folder is a run at any moment."""
    before = folder / _BEFORE
    shutil.rmtree(before, ignore_errors=True)
    before.mkdir()
    for path in folder.iterdir():
        if path.name == CONFIG:
            shutil.copy2(path, before)
        elif path.name not in (_LOCK, _BEFORE):
            path.rename(before / path.name)


def _move_back(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name not in (_LOCK, _BEFORE):
            _remove(path)
    for path in (folder / _BEFORE).iterdir():
        path.rename(folder / path.name)
    (folder / _BEFORE).rmdir()


def _is_begun(folder: Path) -> bool:
    """Is there more in the folder than what a process leaves that was killed before it began?"""
    return folder.exists() and not (folder.is_dir() and all(
        path.name == _LOCK or path.name.endswith('.tmp') for path in folder.iterdir()))


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

    After an error before a training state was saved, a new folder is removed, and a run that was to be overwritten is
    there again.

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
    is_begun = _is_begun(folder)
    if is_begun and not resume and not overwrite:
        raise FileExistsError(
            f"Run '{folder}' exists already: --resume goes on with it, --overwrite replaces it, or choose another"
            ' --experiment.')
    if resume and not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"There is no run '{folder}' to resume, it has no {CONFIG}.")
    if overwrite and is_begun and not (folder / CONFIG).is_file():
        raise FileExistsError(f"'{folder}' is no run, it has no {CONFIG}: it is not overwritten.")
    folder.mkdir(parents=True, exist_ok=True)
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
            _move_aside(folder)
        with whole_file(folder / CONFIG) as file:
            file.write(settings)
        yield folder
    except BaseException as e:
        if not resume and not isinstance(e, Interrupted) and not _has_results(folder):
            _move_back(folder)
            if not _is_begun(folder):
                shutil.rmtree(folder)
                with suppress(OSError):  # another run may have come to use them
                    for path in created[1:]:
                        path.rmdir()
        raise
    finally:
        shutil.rmtree(folder / _BEFORE, ignore_errors=True)
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
