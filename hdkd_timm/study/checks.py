"""What all runs of a study must share, compared before anything is trained: images, teachers, and settings."""

import contextlib
import logging
import os
import warnings
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple

from ..data.datasets import create_datasets, read_samples
from ..data.samples import list_images
from ..data.sources.timm_datasets import is_iterable
from ..models.checkpoint import load_model, read_model_config
from ..models.checkpoint_file import read_checkpoint
from ..training.builders import create_teacher
from ..training.config import DistillConfig, TrainConfig
from ..training.inputs import digest_weights
from ..training.resume import default_settings, free_settings
from ..training.run_folder import check_same_settings, find_difference, read_images
from ..training.teacher_logits import read_teacher_logits
from ..utils.config import read_yaml, to_yaml
from ..utils.files import atomic_write
from ..utils.parsing import parse_yaml, read_json
from ..utils.parsing import to_yaml as values_to_yaml
from ..utils.run_files import CONFIG_FILE, IMAGES_FILE, INPUTS_FILE, METRICS_FILE, TEACHER_LOGITS_FILE
from .config import RUNS, StudyConfig

# settings that may change when a run is resumed, but that all runs of a study must have in common
NOT_FREE = ('data_dir', 'data_csv', 'epochs', 'teacher_epochs')
PATHS = ('data_dir', 'data_csv', 'class_map', 'teacher_checkpoint', 'teacher_logits')
WAY_OUT = 'or choose another --experiment for a new study'


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings and messages that the runs give themselves."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(logging.NOTSET)


def run_folder_of(config: TrainConfig) -> Path:
    """The folder of a run."""
    return Path(config.output, str(config.experiment))


# -- settings ----------------------------------------------------------------------------------------------------------


def _locate(value: Any, settings: Dict[str, Any]) -> Any:
    """What a setting points to: relative to the folder of its study, which may move, or absolute; names as they are."""
    if isinstance(value, (list, tuple)):
        return [_locate(part, settings) for part in value]
    if not isinstance(value, str):
        return value
    output, path = Path(settings['output']), Path(os.path.abspath(value))
    study = output.parent if output.name == RUNS else output  # the output of its teacher is its own folder
    if path.is_relative_to(study):
        return 'in the study', str(path.relative_to(study))
    return os.path.realpath(value) if os.path.exists(value) else value


def is_finished(config: TrainConfig, study: Path) -> bool:
    """Whether the run of these settings has its results.

    Args:
        config: Its settings.
        study: Folder of the study.

    Raises:
        ValueError: if the folder of this name is the run of other settings; names those that differ.
    """
    folder = run_folder_of(config)
    if not (folder / CONFIG_FILE).is_file():
        return False
    before, now = read_yaml(folder / CONFIG_FILE), parse_yaml(to_yaml(config), 'the settings')
    free = [name for name in free_settings(config) if name not in NOT_FREE]
    free += _same_paths(before, now)
    check_same_settings(
        folder,
        now,
        free,
        default_settings(config),
        f'repeat the settings of the study, which are in {study / CONFIG_FILE}',
    )
    return (folder / METRICS_FILE).is_file()


def _same_paths(before: Dict[str, Any], now: Dict[str, Any]) -> List[str]:
    """Names of the settings that point to the same, however it is spelled."""
    known = [name for name in PATHS if name in before and name in now and 'output' in before]
    return [name for name in known if _locate(before[name], before) == _locate(now[name], now)]


def update_paths(config: TrainConfig) -> None:
    """Spell the paths in the config.yaml of a started run as they are spelled now, as in a study that was moved."""
    path = run_folder_of(config) / CONFIG_FILE
    before, now = read_yaml(path), parse_yaml(to_yaml(config), 'the settings')
    changed = {name: now[name] for name in _same_paths(before, now) if before[name] != now[name]}
    if changed:
        with atomic_write(path, summed=True) as file:
            file.write(values_to_yaml({**before, **changed}))


# -- images ------------------------------------------------------------------------------------------------------------


def check_held_out(config: StudyConfig) -> None:
    """Check that the runs of all fractions of the training images are tested on the same images.

    Raises:
        ValueError: if the images that they are tested on would be held out of each fraction.
    """
    if len(config.train_fractions) < 2 or not (config.folds or config.val_fraction) or is_iterable(config):
        return
    if 'test' not in read_samples(config)[0]:
        flag = '--folds' if config.folds else '--val-fraction'
        raise ValueError(
            f'--train-fractions with {flag} needs a test split: without one, the held-out images would differ between'
            ' fractions, and some be trained on at another one. Add a test split, or give a table with a split column'
            ' (--data-csv).'
        )


def check_images(configs: Sequence[TrainConfig], has_open: bool) -> None:
    """Compare the images of the runs that were started, with those that a run would have now, or with each other.

    Args:
        configs: Settings of the runs, and of the teachers that the study trains.
        has_open: Whether any is still to be trained: then the present images are read once for each fraction of the
            training images that has started runs.

    Raises:
        ValueError: for the first image that differs in path, label, group, split, size or SHA-256; names the run.
    """
    references: Dict[float, Tuple[List[Dict[str, str]], str]] = {}  # by fraction: images, and where they are listed
    compared = set()
    for config in configs:
        path, fraction = run_folder_of(config) / IMAGES_FILE, config.train_fraction
        if not path.is_file() or (fraction, path.read_bytes()) in compared:  # most lists are the same, byte by byte
            continue
        compared.add((fraction, path.read_bytes()))
        before = read_images(path)
        if fraction not in references:
            now = list_images(*create_datasets(config)) if has_open else before
            references[fraction] = (now, 'now' if has_open else f"in run '{path.parent}'")
        _compare_images(before, *references[fraction], config)
        first, source = next(iter(references.values()))  # tested on the same images, whatever the fraction
        tested, of_first = ([row for row in rows if row['split'] == 'test'] for rows in (before, first))
        _compare_images(tested, of_first, source, config)


def _compare_images(before: List[Dict[str, str]], now: List[Dict[str, str]], source: str, config: TrainConfig) -> None:
    difference = find_difference(before, now) if before and now else None
    if difference is None:
        return
    row, number = difference
    what = f'differs in size or SHA-256 ({number:,} of {len(now):,} images do)' if number else 'is not in both'
    raise ValueError(
        f"The images of run '{run_folder_of(config)}' are not those {source} ({len(before):,} and {len(now):,}):"
        f" '{row['path']}' of split {row['split']} {what}. All runs of a study need the same images: restore them,"
        f' {WAY_OUT}.'
    )


# -- teachers ----------------------------------------------------------------------------------------------------------


def check_teachers(configs: Sequence[DistillConfig], has_open: bool, untrained: Sequence[str] = ()) -> None:
    """Compare the weights of the teachers, or the stored logits, that the started runs learned from with those that a
    run would learn from now, or with each other.

    Args:
        configs: Settings of the runs.
        has_open: Whether any is still to be trained.
        untrained: Teachers that the study has not trained yet.

    Raises:
        ValueError: if they differ; names teacher and run.
    """
    digests: Dict[Tuple[Any, ...], Tuple[str, str]] = {}  # teacher -> digest and where it is
    for config in configs:
        for i, name, copy in _list_copies(config):
            key = (name, config.teacher, config.teacher_label_names, copy.name == INPUTS_FILE)
            found = _digest_of(copy, i)
            if key not in digests:
                is_present = has_open and name not in untrained
                digests[key] = (
                    (_digest_now(config, i, copy), 'now')
                    if is_present
                    else (found, f"in run '{run_folder_of(config)}'")
                )
            if digests[key][0] != found:
                where = 'have another SHA-256 in' if copy.name == INPUTS_FILE else 'differ in'
                raise ValueError(
                    f"The teacher '{name}' of run '{run_folder_of(config)}' is not the one {digests[key][1]}: its"
                    f" weights {where} '{copy}'. All runs of a study need the same teacher: restore it, {WAY_OUT}."
                )


def _list_copies(config: DistillConfig) -> Iterator[Tuple[int, str, Path]]:
    """Index and name of each given teacher of a started run, or of its stored logits, and where the run recorded it."""
    folder = run_folder_of(config)
    names = [config.teacher_logits] if config.teacher_logits else list(config.teacher_checkpoint or ())
    for i, name in enumerate(names):
        role = 'teacher' if len(names) == 1 else f'teacher_{i + 1}'
        copy = folder / (TEACHER_LOGITS_FILE if config.teacher_logits else f'{role}/best')
        if copy.is_file() or (copy / 'config.json').is_file():
            yield i, str(name), copy
        elif (folder / INPUTS_FILE).is_file() and role in read_json(folder / INPUTS_FILE).get('untested', ()):
            yield i, str(name), folder / INPUTS_FILE


def _digest_of(copy: Path, i: int) -> str:
    """SHA-256 of the weights in a model folder; as a run recorded it, of the i-th teacher or of stored logits."""
    if copy.name == INPUTS_FILE:
        return list(read_json(copy)['teachers'].values())[i]
    if copy.is_file():
        return str(read_json(copy).get('logits_sha256'))
    return digest_weights(read_checkpoint(copy / 'model.safetensors'))


def _digest_now(config: DistillConfig, i: int, copy: Path) -> str:
    """The same of what a run of these settings would have now; its classes are those of the copy."""
    if config.teacher_logits:
        return read_teacher_logits(config.teacher_logits).digest
    model_name = config.teacher if config.teacher != DistillConfig.teacher else None
    if copy.name == INPUTS_FILE:  # of other classes, which are not compared
        return digest_weights(load_model((config.teacher_checkpoint or ())[i], model_name)[0].state_dict())
    classes = list(read_model_config(copy)['label_names'])
    given = create_teacher((config.teacher_checkpoint or ())[i], config, classes, model_name, i + 1)
    return digest_weights(given.model.state_dict())
