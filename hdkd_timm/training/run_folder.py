"""The folder of a run: how it is claimed, resumed, replaced and cleaned up.

Every file is written whole or not at all. A folder is locked while a run writes to it; the lock is released with the
process, however that ends.
"""

import logging
import os
import shutil
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Union

import numpy as np
import torch
from filelock import FileLock, Timeout

from ..data.samples import CONTENTS, find_changes
from ..models.checkpoint_file import read_checkpoint
from ..utils.config import read_yaml
from ..utils.csv_files import read_rows, write_rows
from ..utils.files import add_sums, atomic_write, check_sums
from ..utils.parsing import parse_yaml
from ..utils.run_files import CONFIG_FILE, IMAGES_FILE, METRICS_FILE, STATE_FILE
from ..utils.signals import Interrupted

_logger = logging.getLogger(__name__)

Rows = List[Dict[str, str]]

_LOCK = '.lock'
_BEFORE = '.before'  # what `overwrite` replaces, kept until the new run has a state or a result
_MOVING = '.moving'  # files on their way to .before or back: after a crash they return to where they were


def save_state(state: Dict[str, Any], path: Union[str, Path]) -> None:
    """Write a training state, whole or not at all, and its checksum.

    Raises:
        OSError: if it cannot be written, for example on a full disk.
    """
    with atomic_write(path, 'wb', summed=True) as file:
        try:
            torch.save(state, file)
        except RuntimeError as e:
            if isinstance(e.__context__, OSError):  # torch's own message hides the reason
                raise e.__context__ from e
            raise


def _is_damaged_zip(path: Path) -> bool:
    """Is a checksum within a file of torch.save wrong? torch.load does not check them, and runs of versions before
    SHA256SUMS have no others."""
    try:
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as file:
            return file.testzip() is not None
    except Exception:  # a damaged file can raise anything
        return True


def load_state(path: Union[str, Path]) -> Dict[str, Any]:
    """Read a training state, without running any code that it holds.

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint`; if it is damaged, or not a training state.
    """
    path = Path(path)
    is_checked = bool(check_sums(path.parent, path.name))
    if not is_checked and path.is_file() and _is_damaged_zip(path):
        raise ValueError(f"'{path}' is damaged: a checksum in it is wrong. Restore it from a copy.")
    state = read_checkpoint(path)
    if 'progress' not in state:
        raise ValueError(f"'{path}' is not a training state: it holds no progress.")
    return state


def check_same_settings(
    folder: Path,
    settings: Dict[str, Any],
    free: Sequence[str],
    defaults: Mapping[str, Any] = MappingProxyType({}),
    way_out: str = '',
) -> None:
    """A run must be resumed with the settings that it was started with, or its result would belong to neither.

    Args:
        folder: Folder of the run.
        settings: Settings to resume it with.
        free: Those that may differ.
        defaults: Settings of a run that was started before they existed.
        way_out: What to do if one differs; by default to resume the run with its own.

    Raises:
        ValueError: if one differs; names it and both values.
    """
    before = {**defaults, **read_yaml(folder / CONFIG_FILE)}
    different = [
        name
        for name in {**before, **settings}
        if name not in free and _as_list(before.get(name)) != _as_list(settings.get(name))
    ]
    if different:
        name = different[0]
        raise ValueError(
            f"Run '{folder}' was started with {name} {before.get(name)!r}, not {settings.get(name)!r}"
            f' ({len(different)} settings differ: {", ".join(different)}):'
            f' {way_out or f"resume it with --config {folder / CONFIG_FILE} --resume"}, or choose another --experiment.'
        )


def _as_list(value: Any) -> Any:
    """A value by itself means the same as a list of it: earlier versions took only one of what is now a list."""
    return [value] if isinstance(value, (str, int, float)) else value


def _within(rows: Rows) -> Rows:
    """What identifies each image: its row without its contents, with a path relative to the folder of all, which may
    move."""
    paths = [row['path'] for row in rows]
    base = os.path.commonpath(paths) if paths and all(map(os.path.isabs, paths)) else ''
    return [
        {
            **{key: value for key, value in row.items() if key not in CONTENTS},
            'path': row['path'].removeprefix(base).lstrip(os.sep),
        }
        for row in rows
    ]


def _missing_in(others: Rows, rows: Rows) -> Rows:
    """The rows that are not among the others."""
    known = {tuple(sorted(row.items())) for row in others}
    return [row for row in rows if tuple(sorted(row.items())) not in known]


def _contents(rows: Rows) -> np.ndarray:
    """Size in bytes and SHA-256 of each image, '' where unknown, (N, 2)."""
    return np.array([[row.get(name) or '' for name in CONTENTS] for row in rows], object).reshape(-1, len(CONTENTS))


class ImageDifference(NamedTuple):
    """The first difference between two lists of images.

    Args:
        row: The image.
        number: Number of images whose contents differ; 0 if the image is missing in one of the lists.
    """

    row: Dict[str, str]
    number: int = 0


def find_difference(before: Rows, now: Rows) -> Optional[ImageDifference]:
    """The first image that is not in both lists with the same path (relative to the folder of all), label, split and
    group; else the first whose size or SHA-256 differs, where both are known; else None."""
    inside, others = _within(before), _within(now)
    if inside != others:
        different = _missing_in(others, inside) or _missing_in(inside, others) or inside
        return ImageDifference(different[0])
    changed = np.flatnonzero(find_changes(_contents(before), _contents(now)))
    return ImageDifference(now[changed[0]], len(changed)) if len(changed) else None


def keep_images(rows: Rows, folder: Path) -> None:
    """Write the images of a run to images.csv; of a run that is resumed, compare them with it.

    Args:
        rows: As `list_images` returns them.
        folder: Folder of the run.

    Raises:
        FileNotFoundError: if the run has a state or results, but no list, or an empty one.
        ValueError: if they are not the images that it was started with, as held-out images could then be trained on; or
            if the contents of one have changed.
    """
    path = folder / IMAGES_FILE
    if not rows:  # datasets without random access list none
        return
    if not path.exists() and not _has_results(folder):
        write_rows(rows, path)
        return
    before = read_images(path)
    if not before:
        raise FileNotFoundError(
            f"'{path}', the list of the run's images, is {'empty or damaged' if path.exists() else 'missing'}: without"
            ' it, held-out images could be trained on unnoticed. Restore it, or start another run.'
        )
    difference = find_difference(before, rows)
    if difference is not None:
        first, number = difference
        if number:
            raise ValueError(
                f"Image '{first['path']}' of split {first['split']} has changed since run '{folder}' was started"
                f' ({number:,} of {len(rows):,} images differ in size or SHA-256): restore the images, or start another'
                ' run.'
            )
        raise ValueError(
            f"The images are not those that run '{folder}' was started with ({len(before)} in '{path}', now"
            f" {len(rows)}; '{first['path']}' of split {first['split']} is not in both): restore them, or start another"
            ' run.'
        )
    _warn_of_unknown_contents(before, rows, folder)


def read_images(path: Path) -> Rows:
    """The rows of an images.csv, none where it is missing or damaged."""
    if not path.exists():
        return []
    try:
        rows = read_rows(path)
    except ValueError:
        return []
    return rows if all(row.get('path') and row.get('split') for row in rows) else []


def _warn_of_unknown_contents(before: Rows, now: Rows, folder: Path) -> None:
    """Warn if the SHA-256 of the images could not be compared with those that the run was started with."""
    old, new = _contents(before), _contents(now)
    size_known, digest_known = ((old != '') & (new != '')).any(axis=0)
    if not digest_known:
        why = (
            '--no-check-images does not read them'
            if (old[:, 1] != '').any()
            else f"'{folder / IMAGES_FILE}' has no SHA-256, as of an earlier version or --no-check-images"
        )
        _logger.warning(
            f"The contents of the images were not compared with those that run '{folder}' was started with: {why}."
            f' Names{", splits and sizes" if size_known else " and splits"} are the same.'
        )


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _remove_partial_files(folder: Path) -> None:
    """Remove what a killed process was writing."""
    for path in list(folder.rglob('.*')):
        is_partial = path.name.endswith('.tmp') or path.name.startswith(('.best-', '.report-'))
        if is_partial and path.parent.exists():  # it may be gone with its folder
            _remove(path)


def _has_results(folder: Path) -> bool:
    """Was a training state saved, or a result?"""
    return any(
        not {_BEFORE, _MOVING} & set(path.relative_to(folder).parts)
        for name in (STATE_FILE, METRICS_FILE)
        for path in folder.rglob(name)
    )


def _content(folder: Path) -> List[Path]:
    """The contents of a run's folder, config.yaml last, without this module's own files."""
    return sorted(
        (path for path in folder.iterdir() if path.name not in (_LOCK, _BEFORE, _MOVING)),
        key=lambda path: (path.name == CONFIG_FILE, path.name),
    )


def _is_started(folder: Path) -> bool:
    """Does the folder hold more than a process leaves that was killed before it started?"""
    return folder.exists() and not (
        folder.is_dir() and all(path.name.startswith('.') and path.name.endswith('.tmp') for path in _content(folder))
    )


def _move_aside(folder: Path) -> None:
    """Move what --overwrite replaces to .before, atomically: .moving is renamed once it holds everything."""
    (folder / _MOVING).mkdir()
    for path in _content(folder):
        path.rename(folder / _MOVING / path.name)
    (folder / _MOVING).rename(folder / _BEFORE)


def _bring_back(folder: Path) -> None:
    """Move the contents of .moving back to where they were."""
    for path in (folder / _MOVING).iterdir():
        path.rename(folder / path.name)
    (folder / _MOVING).rmdir()


def _discard(folder: Path) -> None:
    """Remove a run without results, its settings last: until then --overwrite recognises it as a run."""
    for path in _content(folder):
        _remove(path)
    if (folder / _BEFORE).exists():
        (folder / _BEFORE).rename(folder / _MOVING)
        _bring_back(folder)


def _repair(folder: Path) -> None:
    """Undo what a killed process left unfinished.

    Afterwards the folder holds a run, or nothing of value, or a run without results with the one that it replaces in
    .before.
    """
    if (folder / _MOVING).exists():
        _bring_back(folder)
    if (folder / _BEFORE).exists():
        if _has_results(folder):
            shutil.rmtree(folder / _BEFORE)
        elif not (folder / CONFIG_FILE).exists():
            _discard(folder)


def _check_start(folder: Path, resume: bool, overwrite: bool) -> None:
    """May a run be started or resumed here? Raises as `run_folder`."""
    is_run = (folder / CONFIG_FILE).is_file()
    if resume and not is_run:
        raise FileNotFoundError(
            f"There is no run '{folder}' to resume, it has no {CONFIG_FILE}: start it without --resume."
        )
    if _is_started(folder) and not (resume or overwrite):
        raise FileExistsError(
            f"Run '{folder}' already exists: --resume continues it, --overwrite replaces it, or choose another"
            ' --experiment.'
        )
    if _is_started(folder) and overwrite and not is_run:
        raise FileExistsError(f"'{folder}' is not a run, it has no {CONFIG_FILE}: it is not overwritten.")


def _make_ready(folder: Path, resume: bool, overwrite: bool, check: Callable[[Path], None]) -> None:
    """Make a locked folder ready for a run, or raise and leave it as it is."""
    _repair(folder)
    _check_start(folder, resume, overwrite)
    if resume:
        check_sums(folder, CONFIG_FILE, IMAGES_FILE)
        check(folder)
        _remove_partial_files(folder)
    elif _is_started(folder) and not (folder / _BEFORE).exists():
        _move_aside(folder)
    else:  # there are no results: a run in .before is what the new one replaces
        for path in _content(folder):
            _remove(path)


@contextmanager
def run_folder(
    output: str,
    experiment: str,
    settings: str,
    resume: bool = False,
    overwrite: bool = False,
    free: Sequence[str] = (),
    check: Callable[[Path], None] = lambda folder: None,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[Path]:
    """The folder of a run, locked for this process while it is open.

    After an error before a training state was saved, a new folder is removed, and a run that was to be overwritten is
    restored. A process may be killed at any moment: the next start undoes what it left unfinished, and a run that is
    overwritten is kept until the new one has a training state or a result.

    Args:
        output: Folder of the runs.
        experiment: Name of the run.
        settings: Its settings in YAML, written to config.yaml.
        resume: Continue an existing run, which must have the same settings.
        overwrite: Replace an existing run.
        free: Settings that may change when a run is resumed.
        check: Called with the folder of a run to resume before anything is written; raises if it cannot be resumed.
        defaults: As in `check_same_settings`.

    Raises:
        FileExistsError: if the run exists and neither `resume` nor `overwrite` is set, or another process uses it.
        FileNotFoundError: if there is no run to resume.
        ValueError: if a run to resume has other settings, or its files are damaged.
    """
    folder = Path(output) / experiment
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    if not any((folder / name).exists() for name in (_BEFORE, _MOVING)):
        _check_start(folder, resume, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as e:
        raise FileExistsError(f"Another process is writing to run '{folder}': wait until it ends.") from e

    def check_same(folder: Path) -> None:
        check_same_settings(folder, parse_yaml(settings, 'the settings'), free, defaults)
        check(folder)

    is_ready = is_over = False
    try:
        _make_ready(folder, resume, overwrite, check_same)
        is_ready = True
        with atomic_write(folder / CONFIG_FILE, summed=resume) as file:
            file.write(settings)
        add_sums(folder, CONFIG_FILE)  # afterwards: a folder with nothing but the checksum would not be a run
        yield folder
        is_over = True
    except BaseException as e:
        if not is_ready:
            _repair(folder)
        elif not resume and not isinstance(e, Interrupted) and not _has_results(folder):
            _discard(folder)
            if not _is_started(folder):
                shutil.rmtree(folder)
                with suppress(OSError):  # another run may use them by now
                    for path in created[1:]:
                        path.rmdir()
        raise
    finally:
        if is_over or _has_results(folder):
            shutil.rmtree(folder / _BEFORE, ignore_errors=True)
        with suppress(FileNotFoundError):
            (folder / _LOCK).unlink()
        lock.release()
