"""Reading the results of finished runs: networks, metrics, predictions and images."""

import dataclasses
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from timm.utils import natural_key

from ..data.config import DataConfig
from ..data.targets import SEPARATOR, name_targets
from ..models.checkpoint import find_model_folder, is_checkpoint_file
from ..utils.config import check_settings, read_yaml
from ..utils.csv_files import iterate_rows, read_rows
from ..utils.files import PathLike, check_sums
from ..utils.parsing import read_json
from ..utils.run_files import CONFIG_FILE, IMAGES_FILE, INPUTS_FILE, METRICS_FILE, PREDICTIONS_FILE, SUMMARY_FILE
from .metrics import METRIC_NAMES, format_interval, format_metric
from .model_sources import find_run
from .multi_label import assign_labels
from .predictions import read_predictions
from .problem import MULTI_LABEL, Problem, SingleLabel, find_problem

ROLES = ('teacher', 'student_alone', 'student')  # networks of `distill`, in the order of training; see `is_teacher`


class NetworkResults(NamedTuple):
    """A trained network of a run, and its results.

    Args:
        label: Shortest name that distinguishes it from the other networks.
        run: Folder of the run.
        folder: Folder of the network, the same if the run has a single network.
        metrics: Its metrics.json.
        split: Split of its results, test or val.
        epochs: Rows of its summary.csv; empty if it was not trained in this run.
        names, targets, probs: Names, class indices (N,), or labels (N, K), and probabilities (N, K) of the images of
            the split; None if the run has no predictions.
        groups: Groups of these images, (N,), if any.
        model: Its config.json.
    """

    label: str
    run: Path
    folder: Path
    metrics: Dict[str, Any]
    split: str
    epochs: List[Dict[str, float]]
    names: List[str]
    targets: Optional[np.ndarray]
    probs: Optional[np.ndarray]
    groups: Optional[np.ndarray]
    model: Dict[str, Any]

    @property
    def result(self) -> Dict[str, Any]:
        return self.metrics[self.split]

    @property
    def classes(self) -> List[str]:
        return self.metrics['classes']

    @property
    def problem(self) -> Problem:
        return read_problem(self.metrics)

    @property
    def thresholds(self) -> Optional[np.ndarray]:
        """Probability from which on an image is given a label, (K,); None if it has one class."""
        if self.problem is SingleLabel:
            return None
        return np.array([scores['threshold'] for scores in self.result['per_class'].values()])


def is_teacher(name: str) -> bool:
    """Whether a network of `distill` is the teacher, or one of several: 'teacher_1', 'teacher_2', ..."""
    return re.fullmatch(r'teacher(_\d+)?', name) is not None


def is_role(name: str) -> bool:
    """Whether a network is one of those of `distill`."""
    return name in ROLES or is_teacher(name)


def list_roles(settings: Dict[str, Any]) -> List[str]:
    """The networks of a run of `distill`, in the order of training, by its settings; none of another run."""
    if 'teacher' not in settings:
        return []
    given = settings.get('teacher_checkpoint')
    number = len(given) if isinstance(given, (list, tuple)) else 1
    teachers = ['teacher'] if number == 1 else [f'teacher_{i + 1}' for i in range(number)]
    is_alone = list(settings.get('method', ())) == ['none'] and settings.get('init_from_teacher') is None
    if settings.get('teacher_logits') or is_alone:
        teachers = []
    return [*teachers, *(['student_alone'] if settings.get('student_alone') else []), 'student']


def result_split(metrics: Dict[str, Any]) -> Optional[str]:
    """Split of the final results of a network: test, otherwise val; None without results."""
    return next((split for split in ('test', 'val') if split in metrics), None)


def read_json_file(path: Path) -> Dict[str, Any]:
    """The object of a JSON file, empty if there is no such file.

    Raises:
        ValueError: if the file is damaged.
    """
    values = read_json(path) if path.is_file() else {}
    if not isinstance(values, dict):
        raise ValueError(f"'{path}' is damaged (not a JSON object).")
    return values


def read_settings(run: Path) -> Dict[str, Any]:
    """The config.yaml of a run, empty if there is none."""
    return read_yaml(run / CONFIG_FILE) if (run / CONFIG_FILE).is_file() else {}


def iterate_images(path: Path) -> Iterator[Dict[str, str]]:
    """Rows of the images.csv of a run; none if there is no such file.

    Raises:
        ValueError: if the file is damaged.
    """
    for i, row in enumerate(iterate_rows(path) if path.is_file() else ()):
        if i == 0 and not {'path', 'label', 'split'} <= row.keys():
            raise ValueError(f"'{path}' is damaged (columns {', '.join(row)}).")
        yield row


def count_images(path: Path, multi_label: bool = False) -> Dict[str, Dict[str, int]]:
    """Split -> class, in natural order -> number of images in the images.csv of a run; with `multi_label` an image has
    any number of them."""
    counts = Counter(
        (row['split'], label)
        for row in iterate_images(path)
        for label in (filter(None, row['label'].split(SEPARATOR)) if multi_label else (row['label'],))
    )
    labels = sorted({label for _, label in counts}, key=lambda label: (natural_key(label), label))
    return {
        split: {label: counts[split, label] for label in labels if (split, label) in counts}
        for split in ('train', 'val', 'test')
        if any(split == other for other, _ in counts)
    }


def count_per_split(path: Path) -> Dict[str, int]:
    """Split -> number of images in the images.csv of a run."""
    counts = Counter(row['split'] for row in iterate_images(path))
    return {split: counts[split] for split in ('train', 'val', 'test') if split in counts}


def read_problem(metrics: Dict[str, Any]) -> Problem:
    """Whether the images of a metrics.json have one class or any number of labels."""
    return find_problem(metrics.get('problem_type') == MULTI_LABEL)


def _check_metrics(metrics: Dict[str, Any], split: str) -> None:
    """Raises KeyError, TypeError, ValueError or AttributeError if a metrics.json is incomplete or inconsistent."""
    classes, result = metrics['classes'], metrics[split]
    if not (isinstance(classes, list) and len(set(classes)) == len(classes)):
        raise ValueError('classes are not a list of distinct names')
    if list(result['per_class']) != classes:
        raise ValueError(f"per_class of '{split}' has other classes")
    problem = read_problem(metrics)
    if problem is SingleLabel:
        if np.array(result['confusion_matrix']).shape != (len(classes),) * 2:
            raise ValueError(f"the confusion matrix of '{split}' does not have {len(classes)} classes")
        if np.sum(result['confusion_matrix']) != result['images']:
            raise ValueError(f"the confusion matrix of '{split}' does not have {result['images']} images")
        float(result['balanced_accuracy']), float(result['ece'])
    for name, scores in result['per_class'].items():
        if not all(key in scores for key in problem.of_classes):
            raise ValueError(f"a score of class '{name}' is missing")
    float(result['log_loss']), int(metrics['parameters']), str(metrics['name'])
    if 'epoch' in metrics:
        int(metrics['epoch']), int(metrics['epochs']), float(metrics['train_seconds'])


def _read_metrics(path: Path) -> Tuple[Dict[str, Any], str]:
    """A metrics.json, and the split of its results."""
    metrics = read_json_file(path)
    split = result_split(metrics)
    if split is None:
        raise ValueError(f"'{path}' has no results for test or val.")
    try:
        _check_metrics(metrics, split)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise ValueError(f"'{path}' is damaged ({type(e).__name__}: {e}).") from e
    return metrics, split


def _check_predictions(path: Path, metrics: Dict[str, Any], split: str, targets: np.ndarray, probs: np.ndarray) -> None:
    """Raises ValueError if predictions don't have the confusion matrix of the metrics, or the numbers of images with
    each label."""
    if read_problem(metrics) is not SingleLabel:
        scores = metrics[split]['per_class'].values()
        thresholds = np.array([of_label['threshold'] for of_label in scores])
        found = [targets.sum(axis=0).tolist(), assign_labels(probs, thresholds).sum(axis=0).tolist()]
        if found != [[of_label[key] for of_label in scores] for key in ('support', 'predicted')]:
            raise ValueError(
                f"'{path}' and the {METRICS_FILE} next to it do not match: the labels are those of other numbers of"
                ' images. Restore the files, or repeat the test with `hdkd eval`.'
            )
        return
    matrix = np.zeros((len(metrics['classes']),) * 2, int)
    np.add.at(matrix, (targets, probs.argmax(axis=1)), 1)
    if not np.array_equal(matrix, metrics[split]['confusion_matrix']):
        raise ValueError(
            f"'{path}' and the {METRICS_FILE} next to it do not match: its {len(targets):,} rows have a different"
            f' confusion matrix than the {metrics[split]["images"]:,} {split} images. Restore the files, or repeat the'
            ' test with `hdkd eval`.'
        )


def _read_epochs(path: Path) -> List[Dict[str, float]]:
    try:
        return [
            {key: float(value) for key, value in row.items() if key != 'model' and value}
            for row in (read_rows(path) if path.is_file() else [])
        ]
    except ValueError as e:
        raise ValueError(str(e) if str(path) in str(e) else f"'{path}' is damaged ({e}).") from e


def _read_network(folder: Path, run: Path, label: str) -> NetworkResults:
    check_sums(run, CONFIG_FILE, IMAGES_FILE)
    check_sums(folder, METRICS_FILE, PREDICTIONS_FILE, SUMMARY_FILE)
    check_sums(folder / 'best')
    metrics, split = _read_metrics(folder / METRICS_FILE)
    classes, path = metrics['classes'], folder / PREDICTIONS_FILE
    names: List[str] = []
    targets = probs = groups = None
    if path.is_file():
        problem = read_problem(metrics)
        names, targets, probs = read_predictions(path, classes, problem)
        _check_predictions(path, metrics, split, targets, probs)
        listed = [row for row in iterate_images(run / IMAGES_FILE) if row['split'] == split]  # in the same order
        if [row['label'] for row in listed] == name_targets(targets, classes):
            names = [row['path'] for row in listed]
            groups = np.array([row['group'] for row in listed]) if all(row.get('group') for row in listed) else None
    return NetworkResults(
        label,
        run,
        folder,
        metrics,
        split,
        _read_epochs(folder / SUMMARY_FILE),
        names,
        targets,
        probs,
        groups,
        read_json_file(folder / 'best' / 'config.json'),
    )


def _find_networks(path: Path) -> List[Tuple[Path, Path]]:
    """Run and folder of each finished network of a run, or of a single network."""
    if not path.is_dir():
        raise FileNotFoundError(f"Run '{path}' does not exist, or is not a directory.")
    if (path / METRICS_FILE).is_file() and (path / 'best').is_dir():
        folders = [path]
    else:
        found = sorted((folder.parent.name for folder in path.glob(f'*/{METRICS_FILE}')), key=natural_key)
        roles = [*filter(is_teacher, found), *(role for role in ROLES if role in found and not is_teacher(role))]
        folders = [path / role for role in roles]
    if not folders:
        raise FileNotFoundError(
            f"'{path}' has no finished network (none of {METRICS_FILE}, {'/, '.join(ROLES)}/{METRICS_FILE} with its"
            " model in 'best'): give a finished run."
        )
    return [(folder if (folder / CONFIG_FILE).is_file() else folder.resolve().parent, folder) for folder in folders]


def _label_networks(places: Sequence[Tuple[Path, Path]]) -> List[str]:
    """The shortest labels that distinguish networks, given run and folder of each."""
    roles = [folder.name if is_role(folder.name) else '' for _, folder in places]
    if len({run.resolve() for run, _ in places}) == 1:
        return [role or run.resolve().name for role, (run, _) in zip(roles, places)]
    labels = ['/'.join(part for part in (run.resolve().name, role) if part) for role, (run, _) in zip(roles, places)]
    return labels if len(set(labels)) == len(labels) else [str(folder) for _, folder in places]


def read_networks(runs: Sequence[PathLike]) -> List[NetworkResults]:
    """The finished networks of runs.

    Args:
        runs: Runs, or folders of single networks in them.

    Raises:
        FileNotFoundError: if a folder does not exist, or has no finished network.
        ValueError: if a network is named twice, or a file is damaged.
    """
    places = [place for run in runs for place in _find_networks(Path(run))]
    seen = Counter(folder.resolve() for _, folder in places)
    repeated = [folder for folder, number in seen.items() if number > 1]
    if repeated:
        raise ValueError(f"'{repeated[0]}' was given twice.")
    return [_read_network(folder, run, label) for label, (run, folder) in zip(_label_networks(places), places)]


def list_unfinished(runs: Sequence[PathLike]) -> List[str]:
    """Networks without results, among those of whole runs of `distill`."""
    found = []
    for run in map(Path, runs):
        untested = read_json_file(run / INPUTS_FILE).get('untested', ())  # teachers of other classes
        expected = [role for role in list_roles(read_settings(run)) if role not in untested]
        found += [f'{run.resolve().name}/{role}' for role in expected if not (run / role / METRICS_FILE).is_file()]
    return found


def list_missing_files(network: NetworkResults) -> List[str]:
    """Files that a run writes and that no longer exist, each with what cannot be shown without it."""
    files = {
        network.run / CONFIG_FILE: 'settings',
        network.run / IMAGES_FILE: 'images by split, class and group',
        network.folder / PREDICTIONS_FILE: 'ROC, precision-recall and reliability curves, comparisons, mistakes',
        network.folder / 'best' / 'config.json': 'architecture, image size and Grad-CAM of mistakes',
    }
    if 'epoch' in network.metrics:
        files[network.folder / SUMMARY_FILE] = 'learning curves'
    return [
        f'{file.relative_to(network.run) if file.is_relative_to(network.run) else file} ({contents})'
        for file, contents in files.items()
        if not file.is_file()
    ]


def find_run_data(name: PathLike) -> Dict[str, Any]:
    """Settings that read the images of the run that a model folder or checkpoint file belongs to, in its splits.

    Raises:
        FileNotFoundError: if it does not belong to a run.
    """
    run = find_run(name if is_checkpoint_file(name) else find_model_folder(name))
    if run is None:
        raise FileNotFoundError(
            f"'{name}' does not belong to a run (folder with {CONFIG_FILE} and {IMAGES_FILE}): specify the images with"
            ' --data-dir or --data-csv.'
        )
    settings = read_yaml(run / CONFIG_FILE)
    return dict(read_source(run, settings), in_chans=settings.get('in_chans'))


def read_source(run: Path, settings: Dict[str, Any]) -> Dict[str, Any]:
    """Settings of `DataConfig` that read the images of a run, in its splits: from its images.csv if they are files,
    otherwise as the run read and split them.

    Args:
        run: Folder of the run.
        settings: Its config.yaml.
    """
    if all(os.path.isabs(row['path']) for row in iterate_rows(run / IMAGES_FILE)):
        return dict(data_csv=str(run / IMAGES_FILE), multi_label=bool(settings.get('multi_label')))
    names = [field.name for field in dataclasses.fields(DataConfig) if field.name in settings]
    return check_settings({name: settings[name] for name in names}, [DataConfig], f"'{run / CONFIG_FILE}'")


def format_table(metrics: Dict[str, Any]) -> str:
    """The results of `train` and `distill` as a text table, one row per network, with 95 % intervals if any."""
    first = next(iter(metrics['models'].values()))
    split, shown = result_split(first), read_problem(first).shown
    names = [METRIC_NAMES[key] for key in shown]
    rows = [['network', 'parameters', f'{split} {names[0]}', *names[1:], 'training']]
    for name, result in metrics['models'].items():
        report = result[split]
        cells = []
        for key in shown:
            interval = format_interval(key, report.get('intervals_95', {}).get(key)) if key != shown[-1] else ''
            range_95 = f' ({interval.replace(" %", "").replace(" to ", "-")})' if interval else ''
            cells.append(format_metric(key, report[key]).replace(' ', '').replace('–', '-') + range_95)
        seconds = f'{result["train_seconds"]:.0f} s' if 'train_seconds' in result else 'given'
        rows.append([name, f'{result["parameters"]:,}', *cells, seconds])
    widths = [max(least, *map(len, column)) for least, column in zip((13, 9, 20, 20, 11, 8), zip(*rows))]
    return '\n'.join('  '.join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]) for name, *cells in rows)
