"""What is known of saved models from which a new one is made: their runs, the images they have seen, a calibration."""

import logging
import os
from pathlib import Path
from typing import Iterable, Optional, Sequence, Set

from ..models.checkpoint import SOURCE_PREFIXES
from ..utils.csv_files import iterate_rows
from ..utils.files import PathLike
from ..utils.run_files import CALIBRATION_FILE, CONFIG_FILE, IMAGES_FILE
from .exported import EXPORTED

_logger = logging.getLogger(__name__)


def find_folder(name: PathLike) -> Optional[Path]:
    """The folder of a model, or of its checkpoint file; None if it is not on this disk."""
    path = Path(str(name).removeprefix('local-dir:'))
    if not path.exists():
        return None
    return (path if path.is_dir() else path.parent).resolve()


def find_run(name: PathLike) -> Optional[Path]:
    """The run that a model folder or checkpoint file belongs to; None if it belongs to none."""
    folder = find_folder(name)
    candidates = [] if folder is None else [folder, *list(folder.parents)[:2]]
    return next((f for f in candidates if (f / CONFIG_FILE).is_file() and (f / IMAGES_FILE).is_file()), None)


def check_changeable(names: Sequence[PathLike]) -> None:
    """Raise ValueError for a model whose weights cannot be changed, or that is listed twice."""
    for name in map(str, names):
        if name.endswith((*EXPORTED, '.pt2')) and not name.startswith(SOURCE_PREFIXES) and os.path.isfile(name):
            raise ValueError(f"'{name}' is an exported file: give the model that it was made from.")
    places = [str(find_folder(name) if os.path.isdir(name) else name) for name in map(str, names)]
    twice = next((name for name, place in zip(names, places) if places.count(place) > 1), None)
    if twice is not None:
        raise ValueError(f"Model '{twice}' is listed twice.")


def warn_of_calibration(names: Sequence[PathLike]) -> None:
    """Warn that the temperature of a calibrated model does not fit the one that is made from it."""
    for name in names:
        folder = find_folder(name)
        if folder is not None and any((f / CALIBRATION_FILE).is_file() for f in (folder, folder / 'best')):
            _logger.warning(
                f"'{name}' is calibrated, but its temperature does not fit the new model, which has none: run"
                ' `hdkd calibrate`.'
            )


def same_images(files: Iterable[str], others: Iterable[str]) -> Set[str]:
    """The files that are in both, however their paths are written; images of a dataset without files are none."""
    return {os.path.realpath(f) for f in files if os.path.isfile(f)} & {os.path.realpath(f) for f in others}


def check_unseen(names: Sequence[PathLike], files: Sequence[str], split: str) -> None:
    """Check that no image is one that a model was trained on, as far as the models belong to runs.

    Args:
        names: The models.
        files: Paths of the images, as they are written in their source.
        split: Their split, for the message.

    Raises:
        ValueError: names the model, and one of the images.
    """
    for name in names:
        run = find_run(name)
        if run is None:
            continue
        seen = (row['path'] for row in iterate_rows(run / IMAGES_FILE) if row['split'] == 'train')
        leaked = sorted(same_images(files, seen))
        if leaked:
            raise ValueError(
                f"{len(leaked)} of the {len(files)} images of split '{split}' are training images of '{name}', such as"
                f" '{leaked[0]}': no choice can be made on them. Give images that are new to the model."
            )
