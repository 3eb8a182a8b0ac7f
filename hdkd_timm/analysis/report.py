"""`hdkd report`: one page, report.html, that tells what a run is worth, or several beside each other.

It is made from the files that the run wrote, its model and its images, and needs no network and no script.
"""
import base64
import dataclasses
import hashlib
import itertools
import logging
import math
import os
import re
import shutil
import tempfile
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from PIL import Image, ImageOps
from timm.utils import natural_key

from ..data.config import SourceConfig
from ..data.image_io import read_image
from ..evaluation.inference import ModelConfig, load_classifier, read_source
from ..evaluation.metrics import IN_PER_CENT, LOWER_IS_BETTER, METRIC_NAMES, class_auroc, format_interval, format_metric
from ..evaluation.paired_tests import mcnemar, paired_bootstrap
from ..evaluation.plots import (
    MAX_BARS,
    MAX_CELLS,
    MAX_CURVES,
    MAX_NAMES,
    find_confused,
    format_percent,
    overlay,
    plot_class_counts,
    plot_confusion_matrix,
    plot_curves,
    plot_reliability,
    plot_roc_pr,
)
from ..evaluation.temperature import CALIBRATION
from ..utils.config import read_yaml
from ..utils.csv_files import iterate_rows, read_rows
from ..utils.files import PathLike, atomic_write, check_sums
from ..utils.parsing import read_json
from ..utils.run_files import CONFIG_FILE, IMAGES_FILE, METRICS_FILE, PREDICTIONS_FILE, SUMMARY_FILE
from ..utils.text import printable
from .data_check import CheckConfig, check_data, list_leaks, summarize
from .explain import explain

_logger = logging.getLogger(__name__)

REPORT, PICTURES = 'report.html', 'report'
NETWORKS = ('teacher', 'student_alone', 'student')  # of `distill`, in this order
GENERATOR = '<meta name="generator" content="hdkd_timm">'
PICTURE_NAME = re.compile(
    r'(\d+-(\w|-)+-)?(curves|confusion|confused|roc-pr|reliability|mistake-\d+)\.png|(\d+-)?classes\.png')
PICTURE_SIZE = 224  # pixels, of an image in the page
MAX_CONFUSIONS = 20  # pairs of classes in the list of the most frequent ones


class Network(NamedTuple):
    """A trained network of a run, and its results.

    Args:
        label: What tells it from others in a report.
        run: Folder of the run.
        folder: Its own folder, the run's if there is one network.
        metrics: Its metrics.json.
        split: Split of its results, test or val.
        epochs: Rows of its summary.csv; none if it was not trained in this run.
        names, targets, probs: Of the images of the split: names, class indices (N,), probabilities (N, K); None where
            the run kept no predictions.
        groups: Groups of these images, (N,), if there are any.
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


def _read_rows(path: Path) -> List[Dict[str, str]]:
    return read_rows(path) if path.is_file() else []


def _read_json(path: Path) -> Dict[str, Any]:
    values = read_json(path) if path.is_file() else {}
    if not isinstance(values, dict):
        raise ValueError(f"'{path}' is damaged (no values by name).")
    return values


def _read_settings(run: Path) -> Dict[str, Any]:
    return read_yaml(run / CONFIG_FILE) if (run / CONFIG_FILE).is_file() else {}


def _check_metrics(metrics: Dict[str, Any], split: str) -> None:
    """Is a metrics.json whole? KeyError, TypeError or ValueError if not."""
    classes, result = metrics['classes'], metrics[split]
    if not (isinstance(classes, list) and len(set(classes)) == len(classes)):
        raise ValueError('classes are no list of different names')
    if list(result['per_class']) != classes:
        raise ValueError(f"per_class of '{split}' has other classes")
    if np.array(result['confusion_matrix']).shape != (len(classes),) * 2:
        raise ValueError(f"the confusion matrix of '{split}' is not of {len(classes)} classes")
    if np.sum(result['confusion_matrix']) != result['images']:
        raise ValueError(f"the confusion matrix of '{split}' has not {result['images']} images")
    for name, scores in result['per_class'].items():
        if not all(key in scores for key in ('precision', 'recall', 'f1', 'support')):
            raise ValueError(f"a score of class '{name}' is missing")
    float(result['balanced_accuracy']), float(result['ece']), int(metrics['parameters']), str(metrics['name'])
    if 'epoch' in metrics:
        int(metrics['epoch']), int(metrics['epochs']), float(metrics['train_seconds'])


def _read_predictions(path: Path, metrics: Dict[str, Any], split: str) -> Tuple[List[str], np.ndarray, np.ndarray]:
    """Names, class indices (N,) and probabilities (N, K) of the images; they must be those of the metrics.

    Raises:
        ValueError: if they are not, or the file is damaged.
    """
    classes, names, targets, probs = metrics['classes'], [], [], []
    index_of = {name: k for k, name in enumerate(classes)}
    try:
        for row in iterate_rows(path):  # one at a time: of 1,000 classes they are large
            names.append(row['path'])
            targets.append(index_of[row['target']])
            probs.append(np.array([float(row[f'prob_{name}']) for name in classes]))
    except (KeyError, TypeError) as e:
        raise ValueError(f"'{path}' is damaged ({type(e).__name__}: {e}).") from e
    matrix = np.zeros((len(classes), len(classes)), int)
    found = np.stack(probs) if probs else np.zeros((0, len(classes)))
    if not np.isfinite(found).all():
        raise ValueError(f"'{path}' is damaged (a probability is no finite number).")
    np.add.at(matrix, (np.array(targets, int), found.argmax(axis=1)), 1)
    if not np.array_equal(matrix, metrics[split]['confusion_matrix']):
        raise ValueError(
            f"'{path}' and {METRICS_FILE} beside it do not belong together: {len(names):,} rows of {split} images,"
            f" whose confusion matrix is not the one of the {metrics[split]['images']:,} images there. Restore them, or"
            ' repeat the test with `hdkd eval`.')
    return names, np.array(targets), found


def _read_epochs(path: Path) -> List[Dict[str, float]]:
    try:
        return [{key: float(value) for key, value in row.items() if key != 'model' and value}
                for row in _read_rows(path)]
    except ValueError as e:
        raise ValueError(str(e) if str(path) in str(e) else f"'{path}' is damaged ({e}).") from e


def _read_network(folder: Path, run: Path, label: str) -> Network:
    check_sums(run, CONFIG_FILE, IMAGES_FILE)
    check_sums(folder, METRICS_FILE, PREDICTIONS_FILE, SUMMARY_FILE)
    check_sums(folder / 'best')
    metrics = _read_json(folder / METRICS_FILE)
    split = next((split for split in ('test', 'val') if split in metrics), None)
    if split is None:
        raise ValueError(f"'{folder / METRICS_FILE}' holds no results of test or val.")
    try:
        _check_metrics(metrics, split)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise ValueError(f"'{folder / METRICS_FILE}' is damaged ({type(e).__name__}: {e}).") from e
    names: List[str] = []
    targets = probs = groups = None
    if (folder / PREDICTIONS_FILE).is_file():
        names, targets, probs = _read_predictions(folder / PREDICTIONS_FILE, metrics, split)
        listed = [row for row in _read_images(run) if row['split'] == split]  # in the same order
        if [row['label'] for row in listed] == [metrics['classes'][k] for k in targets]:
            names = [row['path'] for row in listed]
            groups = np.array([row['group'] for row in listed]) if all(row.get('group') for row in listed) else None
    return Network(
        label, run, folder, metrics, split, _read_epochs(folder / SUMMARY_FILE), names, targets, probs, groups,
        _read_json(folder / 'best' / 'config.json'))


def _read_images(run: Path) -> List[Dict[str, str]]:
    rows = _read_rows(run / IMAGES_FILE)
    if rows and not {'path', 'label', 'split'} <= rows[0].keys():
        raise ValueError(f"'{run / IMAGES_FILE}' is damaged (columns {', '.join(rows[0])}).")
    return rows


def _list_missing(network: Network) -> List[str]:
    """What a run writes and this one has no more, and what the page lacks for it."""
    files = {
        network.run / CONFIG_FILE: 'its settings', network.run / IMAGES_FILE: 'its images by split, class and group',
        network.folder / PREDICTIONS_FILE: 'ROC, precision-recall and reliability, comparisons, mistakes',
        network.folder / 'best' / 'config.json': 'its architecture and image size, where it looked in mistakes'}
    if 'epoch' in network.metrics:
        files[network.folder / SUMMARY_FILE] = 'its learning curves'
    return [f'{file.relative_to(network.run)} ({words})' if file.is_relative_to(network.run) else f'{file} ({words})'
            for file, words in files.items() if not file.is_file()]


def read_networks(runs: Sequence[PathLike]) -> List[Network]:
    """The finished networks of runs.

    Args:
        runs: Runs, or folders of single networks in them.

    Raises:
        FileNotFoundError: if there is no such folder, or no finished network in it.
        ValueError: if one is named twice, or a file is damaged.
    """
    folders: List[Tuple[Path, Path]] = []
    for name in runs:
        path = Path(name)
        if not path.is_dir():
            raise FileNotFoundError(f"Run '{name}' does not exist, or is no folder.")
        if (path / METRICS_FILE).is_file() and (path / 'best').is_dir():
            found = [path]
        else:
            found = [path / network for network in NETWORKS if (path / network / METRICS_FILE).is_file()]
        if not found:
            raise FileNotFoundError(
                f"'{name}' holds no finished network (none of {METRICS_FILE}, {'/, '.join(NETWORKS)}/{METRICS_FILE}"
                " with its model in 'best'): give a run that has ended.")
        for folder in found:
            run = folder if (folder / CONFIG_FILE).is_file() else folder.resolve().parent
            folders.append((run, folder))
    seen = Counter(folder.resolve() for _, folder in folders)
    twice = [folder for folder, number in seen.items() if number > 1]
    if twice:
        raise ValueError(f"'{twice[0]}' was given twice.")

    # the shortest labels that tell them apart
    own = [folder.name if folder.name in NETWORKS else '' for _, folder in folders]
    if len({run.resolve() for run, _ in folders}) == 1:
        labels = [name or run.resolve().name for name, (run, _) in zip(own, folders)]
    else:
        labels = ['/'.join(part for part in (run.resolve().name, name) if part) for name, (run, _) in zip(own, folders)]
        if len(set(labels)) < len(labels):
            labels = [str(folder) for _, folder in folders]
    return [_read_network(folder, run, label) for label, (run, folder) in zip(labels, folders)]


def _list_unfinished(runs: Sequence[PathLike]) -> List[str]:
    """Networks of whole runs of `distill` that have no results."""
    found = []
    for run in map(Path, runs):
        settings = _read_settings(run)
        wanted = [name for name in NETWORKS if 'teacher' in settings and (
            name != 'student_alone' or settings.get('student_alone'))]
        found += [f'{run.resolve().name}/{name}' for name in wanted if not (run / name / METRICS_FILE).is_file()]
    return found


# -- what the page tells -----------------------------------------------------------------------------------------------

def _format_differences(name: str, *values: float) -> str:
    """One or two with their signs and a digit more, in points of a hundred where the metric is in per cent."""
    if not all(map(math.isfinite, values)):
        return '–'
    is_points = name in IN_PER_CENT
    shown = ' to '.join(f'{100 * value:+.2f}' if is_points else f'{value:+.4f}' for value in values).replace('-', '−')
    return shown + (' points' if is_points else '')


def _metrics_table(networks: Sequence[Network]) -> List[Dict[str, Any]]:
    """A row a metric: its name, and of each network value, interval and whether it is the best."""
    rows = []
    is_fair = not any(_pair(networks[0], network)[0] for network in networks[1:])
    for name, words in METRIC_NAMES.items():
        values = [network.result.get(name) for network in networks]
        defined = [value for value in values if value is not None]
        best = (min if name in LOWER_IS_BETTER else max)(defined) if len(defined) > 1 and is_fair else None
        cells = []
        for network, value in zip(networks, values):
            shown = format_interval(name, (network.result.get('intervals_95') or {}).get(name))
            is_best = best is not None and value == best
            cells.append(dict(value=format_metric(name, value), interval=shown, best=is_best))
        rows.append(dict(name=words, better='lower' if name in LOWER_IS_BETTER else 'higher', cells=cells))
    return rows


def _within(names: Sequence[str]) -> List[str]:
    """Names without the folder that all are in, which may have moved from run to run."""
    parts = [Path(name).parts for name in names]
    depth = 0
    while all(len(part) > depth + 1 and part[:depth + 1] == parts[0][:depth + 1] for part in parts):
        depth += 1
    return ['/'.join(part[depth:]) for part in parts]


def _pairs(networks: Sequence[Network]) -> Iterator[Tuple[Network, Network]]:
    """Which networks are compared: those of a run with each other, and between runs those of one role and those of
    runs that hold one network."""
    for first, second in itertools.combinations(networks, 2):
        roles = {network.metrics['name'] for network in (first, second)}
        if first.run.resolve() == second.run.resolve() or len(roles) == 1 or not roles.issubset(NETWORKS) or (
                len(networks) == 2):
            yield first, second


def _source(network: Network) -> Dict[str, Any]:
    """The settings that tell which images a run has."""
    settings = _read_settings(network.run)
    return {key: settings.get(key) for key in (field.name for field in dataclasses.fields(SourceConfig))}


def _pair(first: Network, second: Network) -> Tuple[Optional[str], Optional[np.ndarray], bool]:
    """Were two networks tested on the same images?

    Returns:
        Why not, or None; the place among the second's images of each of the first's, (N,); and whether they lie in
        other folders.
    """
    if first.probs is None or second.probs is None:
        return 'The predictions of one of them were not kept.', None, False
    if first.classes != second.classes:
        return 'Their classes are not the same.', None, False
    names, moved = [first.names, second.names], False
    if not all(os.path.isabs(name) for part in names for name in part):
        if _source(first) != _source(second):
            return 'Their images have no paths and are of two sources: they cannot be paired.', None, False
    elif set(names[0]) != set(names[1]):
        names, moved = [_within(part) for part in names], True
    order = [dict(zip(part, range(len(part)))) for part in names]
    if first.split != second.split or order[0].keys() != order[1].keys() or len(order[0]) != len(first.names):
        return 'Their images are not the same, so that they cannot be paired.', None, False
    places = np.array([order[1][name] for name in order[0]])
    if not np.array_equal(first.targets, second.targets[places]):
        return 'The same images have other classes.', None, False
    return None, places, moved


def _format_p(p: float) -> str:
    """A p-value with two digits, or so many that it is on the right side of 0.05."""
    if p < 1e-4:
        return 'p < 0.0001'
    digits = next((d for d in (2, 3, 4, 5) if (float(f'{p:.{d}g}') < 0.05) == (p < 0.05)), 6)
    return f'p = {p:.{digits}g}'


def _compare(first: Network, second: Network, resamples: int, seed: int) -> Dict[str, Any]:
    """Is the second better than the first, on the same images?"""
    told = dict(first=first.label, second=second.label)
    problem, places, moved = _pair(first, second)
    if problem:
        return dict(told, problem=problem)
    targets = first.targets
    probs = second.probs[places]
    test = mcnemar(first.probs.argmax(1) == targets, probs.argmax(1) == targets)
    rows = []
    for name, found in paired_bootstrap(first.probs, probs, targets, first.groups, resamples, seed=seed).items():
        low, high = found['interval']
        better = 'first' if (name in LOWER_IS_BETTER) == (low > 0) else 'second'
        rows.append(dict(
            name=METRIC_NAMES[name], difference=_format_differences(name, found['difference']),
            interval=_format_differences(name, low, high),
            better=better if low > 0 or high < 0 else None))
    p = test['p_value']
    groups = len(set(first.groups)) if first.groups is not None else 0
    return dict(told, rows=rows, moved=moved, images=len(targets), groups=groups, only_first=test['only_first'],
                only_second=test['only_second'], p_value=_format_p(p), significant=p < 0.05)


def _per_class(network: Network) -> List[Dict[str, Any]]:
    """A row a class; of more than `MAX_CELLS` classes those with the lowest F1 first."""
    areas = [None] * len(network.classes) if network.probs is None else class_auroc(network.probs, network.targets)
    rows = [
        dict(number=number, name=name, auroc=format_metric('', area), support=scores['support'], score=scores['f1'],
             recall_95=format_interval('', scores.get('recall_95')),
             **{key: format_metric('', scores[key]) for key in ('precision', 'recall', 'f1')})
        for number, ((name, scores), area) in enumerate(zip(network.result['per_class'].items(), areas), 1)]
    if len(rows) > MAX_CELLS:
        rows.sort(key=lambda row: (not row['support'], row['score'] if row['score'] is not None else 2))
    return rows


def _confusions(network: Network) -> List[Dict[str, Any]]:
    """The most frequent pairs of a true class and another that was predicted, of many classes."""
    if len(network.classes) <= MAX_CURVES:
        return []
    counts = np.array(network.result['confusion_matrix'])
    totals = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    places = np.argsort(-counts, axis=None, kind='stable')[:MAX_CONFUSIONS]
    return [
        dict(true=network.classes[i], predicted=network.classes[j], images=int(counts[i, j]), of=int(totals[i]),
             share=format_percent(counts[i, j] / totals[i]))
        for i, j in zip(*np.unravel_index(places, counts.shape)) if counts[i, j]]


def _describe_time(seconds: float) -> str:
    if seconds < 120:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 7200 else f'{seconds / 3600:.1f} h'


def _sentence(network: Network, settings: Dict[str, Any], counts: Dict[str, Dict[str, int]]) -> str:
    """The run in a sentence."""
    metrics = network.metrics
    name = network.model.get('architecture') or metrics['name']
    size = (network.model.get('pretrained_cfg') or {}).get('input_size')
    parameters = metrics['parameters']
    shown = f'{parameters / 1e6:.1f} million' if parameters >= 1e6 else f'{parameters:,}'
    words = f'{name} ({shown} parameters)'
    if metrics['name'] == 'student':
        words += ', distilled from a teacher,' + (' from given weights,' if settings.get('pretrained') else '')
    if 'epoch' in metrics:
        images = sum(counts.get('train', {}).values())
        words += f" was trained for {metrics['epochs']} epochs" + (f' on {images:,} images' if images else '')
        words += f' of {len(network.classes)} classes' + (f' at {size[1]} x {size[2]} pixels' if size else '')
        words += f" in {_describe_time(metrics['train_seconds'])}; epoch {metrics['epoch'] + 1} was kept"
    else:
        words += ' was given, and tested here'
    interval = format_interval('balanced_accuracy', (network.result.get('intervals_95') or {}).get('balanced_accuracy'))
    within = f" (95 % interval {interval.replace(' %', '')})" if interval else ''
    split = {'test': 'test', 'val': 'validation'}[network.split]
    words += (
        f". On {network.result['images']:,} {split} images its balanced accuracy is"
        f" {format_metric('balanced_accuracy', network.result['balanced_accuracy'])}{within}.")
    if network.split == 'val' and 'epoch' in metrics:
        words += ' These images chose the epoch, so the figures flatter: a test split was missing.'
    return words


def _calibration(network: Network) -> Optional[str]:
    found = _read_json(network.folder / 'best' / CALIBRATION)
    if not found:
        return None
    told = [
        f"{split} {report['ece']['before']:.3f} before, {report['ece']['after']:.3f} after"
        for split, report in found.items() if isinstance(report, dict)]
    return f"Temperature {found['temperature']:.3f}, for --calibrated. Calibration error: {'; '.join(told)}."


def _count(run: Path) -> Dict[str, Dict[str, int]]:
    """Split -> class -> number of images."""
    counts: Dict[str, Dict[str, int]] = {}
    for row in _read_images(run):
        of_class = counts.setdefault(row['split'], {})
        of_class[row['label']] = of_class.get(row['label'], 0) + 1
    return {split: counts[split] for split in ('train', 'val', 'test') if split in counts}


def _look_for_leaks(run: Path) -> Dict[str, Any]:
    """Sentences about duplicates, and whether they are bad."""
    if not (run / IMAGES_FILE).is_file():
        return dict(lines=['The run kept no list of its images: they were not looked at.'], leaks=None)
    _logger.info('Looking for duplicates among the images of the run.')
    try:
        settings = _read_settings(run)
        summary = summarize(check_data(CheckConfig(**read_source(run, settings, SourceConfig))))
    except (OSError, ValueError) as e:
        return dict(lines=[f'The images could not be looked at: {e}'], leaks=None)
    leaks, unreadable, pairs = list_leaks(summary), summary['unreadable'], summary['pairs']
    if len(unreadable) == sum(sum(of_class.values()) for of_class in summary['images'].values()):
        return dict(lines=[f'The images could not be looked at: {next(iter(unreadable.values()))}'], leaks=None)
    lines = [
        f"Pairs of images that are alike: {pairs['file']:,} equal files, {pairs['pixels']:,} equal pixels in other"
        f" files, {pairs['near']:,} near-duplicates."]
    if summary['labels_differ']:
        lines.append(f"Pairs of these with different labels: {summary['labels_differ']:,}.")
    if unreadable:
        lines.append(f'Images that cannot be read: {len(unreadable):,}.')
    if summary['changed']:
        lines.append(f"Images that have changed since the run read them: {len(summary['changed']):,}.")
    lines += [f'{leak[0].upper()}{leak[1:]}.' for leak in leaks] or ['No image, near-duplicate or group in two splits.']
    return dict(lines=lines, leaks=bool(leaks or summary['labels_differ']))


# -- pictures ----------------------------------------------------------------------------------------------------------

class Pictures:
    """PNG files in a folder, and what the page needs of them.

    Args:
        folder: Where they are written.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def show(self, file: str, alt: str) -> Dict[str, Any]:
        """A picture that was written there: its bytes as a data URL, its size and a text for those who cannot see."""
        path = self.folder / file
        with Image.open(path, formats=('PNG',)) as image:
            width, height = image.size
        data = base64.b64encode(path.read_bytes()).decode()
        return dict(url=f'data:image/png;base64,{data}', alt=alt, width=width, height=height)


def _tell_some(values: Dict[str, Tuple[float, str]]) -> str:
    """Names with what is told of them, of many those with the lowest values alone."""
    names = list(values)
    if len(names) > MAX_CURVES:
        names = sorted(names, key=lambda name: values[name][0])[:MAX_CURVES // 2]
    told = ', '.join(f'{name} {values[name][1]}' for name in names)
    return told + (f' (the lowest {len(names)} of {len(values)} classes)' if len(names) < len(values) else '')


def _plot_network(network: Network, pictures: Pictures, stem: str) -> Dict[str, Dict[str, Any]]:
    shown = {}
    result, best = network.result, network.metrics.get('epoch')
    if network.epochs:
        last = network.epochs[-1]
        plot_curves(network.epochs, best, pictures.folder / f'{stem}curves.png')
        shown['curves'] = pictures.show(f'{stem}curves.png', (
            f'Learning curves of {network.label} over {len(network.epochs)} epochs: log loss, balanced accuracy and the'
            f" parts of the training loss. Training loss {network.epochs[0]['train_loss']:.3g} at first,"
            f" {last['train_loss']:.3g} at last."))
    plot_confusion_matrix(result['confusion_matrix'], network.classes, pictures.folder / f'{stem}confusion.png')
    recalls = _tell_some({
        name: (scores['recall'], f"{format_percent(scores['recall'])} of {scores['support']}")
        for name, scores in result['per_class'].items() if scores['support']})
    shown['confusion'] = pictures.show(
        f'{stem}confusion.png', f'Confusion matrix of {network.label}. Recognised: {recalls}.')
    confused = find_confused(result['confusion_matrix']) if len(network.classes) > MAX_CELLS else []
    if confused:
        plot_confusion_matrix(
            result['confusion_matrix'], network.classes, pictures.folder / f'{stem}confused.png', confused)
        shown['confused'] = pictures.show(f'{stem}confused.png', (
            f'The part of the confusion matrix of {network.label} with the {len(confused)} classes of the most frequent'
            ' confusions, which the table below lists.'))
    if network.probs is not None:
        plot_roc_pr(network.probs, network.targets, network.classes, pictures.folder / f'{stem}roc-pr.png')
        shown['roc_pr'] = pictures.show(f'{stem}roc-pr.png', (
            f'ROC and precision-recall curves of {network.label}, a curve a class. Areas under the ROC curve: '
            + _tell_some({
                name: (area, f'{area:.3f}') for name, area in
                zip(network.classes, class_auroc(network.probs, network.targets)) if math.isfinite(area)}) + '.'))
        plot_reliability(network.probs, network.targets, pictures.folder / f'{stem}reliability.png')
        shown['reliability'] = pictures.show(f'{stem}reliability.png', (
            f'Reliability diagram of {network.label}: expected calibration error'
            f" {format_metric('ece', result['ece'])}."))
    return shown


def find_mistakes(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Indices of the images that a network gets wrong, those that it is most sure of first.

    Args:
        probs: Probabilities (N, K).
        targets: Class indices (N,).
    """
    wrong = np.flatnonzero(probs.argmax(1) != targets)
    return wrong[np.argsort(-probs[wrong].max(1), kind='stable')]


def _hash_pixels(path: str) -> str:
    """Of an image as a person sees it; of one that cannot be read its path."""
    try:
        image = read_image(path)
    except (OSError, ValueError):
        return path
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def _show_mistakes(
        network: Network,
        number: int,
        pictures: Pictures,
        stem: str,
        device: Optional[str],
) -> Dict[str, Any]:
    """So many mistakes as pictures, image and Grad-CAM side by side, or why there are none. Equal images are one."""
    if network.probs is None:
        return dict(problem='The predictions were not kept.')
    wrong = find_mistakes(network.probs, network.targets)
    missing = [network.names[i] for i in wrong[:number] if not Path(network.names[i]).is_file()]
    if missing:
        return dict(total=len(wrong), problem=f'The images are no files, or are gone ({missing[0]}).')
    items: List[Dict[str, Any]] = []
    seen: Dict[Tuple[str, str], Dict[str, Any]] = {}  # label and pixels -> the item that stands for them
    kinds, classifier = set(), None
    for i in wrong if number else ():
        path = network.names[i]
        true, predicted = (network.classes[k] for k in (network.targets[i], network.probs[i].argmax()))
        told = dict(
            name='/'.join(Path(path).parts[-3:]), true=true, predicted=predicted, equal=0,
            prob=format_metric('accuracy', float(network.probs[i].max())))
        key = (true, _hash_pixels(path))
        if key in seen:
            seen[key]['equal'] += 1
            continue
        if len(items) == number:
            break
        try:
            if classifier is None:
                classifier = load_classifier(network.folder / 'best', ModelConfig(device=device))
            found, = explain(classifier, [path], label=predicted, max_size=2 * PICTURE_SIZE)
        except (OSError, ValueError) as e:  # the image, or the network has no maps
            items.append(dict(told, problem=str(e)))
            continue
        kind = 'Grad-CAM' if 'Grad-CAM' in found.maps else next(iter(found.maps))
        kinds.add(kind)
        sheet = Image.fromarray(np.concatenate([found.image, overlay(found.image, found.maps[kind])], axis=1))
        file = f'{stem}mistake-{len(items) + 1:02d}.png'
        ImageOps.contain(sheet, (2 * PICTURE_SIZE, PICTURE_SIZE)).save(pictures.folder / file)
        items.append(dict(told, **pictures.show(file, (
            f"Image {told['name']} and where {network.label} looked: it is {true}, predicted was {predicted} with"
            f" {told['prob']}."))))
        seen[key] = items[-1]
    return dict(total=len(wrong), items=items, map=' or '.join(sorted(kinds)))


# -- the page ----------------------------------------------------------------------------------------------------------

def _import_jinja2() -> Any:
    try:
        import jinja2
    except ImportError as e:
        raise ImportError("Reports need Jinja2 and matplotlib: pip install 'hdkd-timm[report]'.") from e
    return jinja2


def _settings_table(networks: Sequence[Network]) -> List[Dict[str, Any]]:
    """A row a setting with its value in each run."""
    runs = list(dict.fromkeys(network.run for network in networks))
    settings = [_read_settings(run) for run in runs]
    rows = []
    for name in dict.fromkeys(name for values in settings for name in values):
        values = [values.get(name) for values in settings]
        shown = ['–' if value is None else str(value) for value in values]
        rows.append(dict(name=name, values=shown, differs=any(value != values[0] for value in values)))
    return rows


def write_report(
        runs: Sequence[PathLike],
        out: Optional[PathLike] = None,
        mistakes: int = 12,
        check: bool = True,
        device: Optional[str] = None,
        resamples: int = 1000,
        seed: int = 42,
) -> Path:
    """Write report.html, a page about a run or several beside each other, and its pictures as PNG files in report/.

    A report of before is replaced once the new one is whole.

    Args:
        runs: Runs, or folders of single networks in them.
        out: Folder to write into; by default the run's, or the network's if it is one.
        mistakes: How many of the most confident mistakes of each network are shown.
        check: Look for duplicates among the images, as `hdkd check` does.
        device: Where the network looks at its mistakes again, by default the best there is.
        resamples: Draws of the paired bootstrap.
        seed: Its seed.

    Returns:
        The page.

    Raises:
        FileNotFoundError, ValueError: as `read_networks`; if there are several runs and no `out`.
        FileExistsError: if a file that is no report's would be replaced.
        ImportError: without Jinja2 or matplotlib.
    """
    if mistakes < 0:
        raise ValueError(f'--mistakes must be at least 0, got {mistakes}.')
    jinja2 = _import_jinja2()
    networks = read_networks(runs)
    folders = list(dict.fromkeys(network.run for network in networks))
    if out is None and len(folders) > 1:
        raise ValueError('A report of several runs needs a folder of its own: name it, --out FOLDER.')
    if out is None:
        out = networks[0].folder if len(networks) == 1 else folders[0]
    out = Path(out)
    _check_place(out)
    with _new_report(out) as temporary:
        pictures = Pictures(temporary / PICTURES)
        parts = []
        for i, network in enumerate(networks, 1):
            stem = f'{i}-{network.metrics["name"]}-' if len(networks) > 1 else ''
            stem = ''.join(c if c.isalnum() or c in '-_' else '_' for c in stem)
            parts.append(dict(
                label=network.label, sentence=_sentence(network, _read_settings(network.run), _count(network.run)),
                pictures=_plot_network(network, pictures, stem), per_class=_per_class(network),
                confusions=_confusions(network),
                calibration=_calibration(network), split=network.split, missing=_list_missing(network),
                is_large=len(network.classes) > MAX_CELLS, is_named=len(network.classes) <= MAX_NAMES,
                images=f"{network.result['images']:,} {network.split} images",
                mistakes=_show_mistakes(network, mistakes, pictures, stem, device),
                environment={
                    'device': network.metrics.get('device'), 'processes': network.metrics.get('processes'),
                    **(network.metrics.get('versions') or {})}))
        data = []
        for i, run in enumerate(folders, 1):
            counts = _count(run)
            told: Dict[str, Any] = dict(name=run.resolve().name, counts=counts)
            if counts:
                file = f'{i}-classes.png' if len(folders) > 1 else 'classes.png'
                plot_class_counts(counts, pictures.folder / file)
                labels = sorted({label for of_class in counts.values() for label in of_class}, key=natural_key)
                told['picture'] = pictures.show(file, 'Images of each class: ' + '; '.join(
                    f'{split} {sum(of_class.values()):,}: ' + _tell_some({
                        label: (number, f'{number:,}') for label, number in of_class.items()})
                    for split, of_class in counts.items()) + '.')
                told['classes'] = [
                    dict(name=label, numbers=[of_class.get(label, 0) for of_class in counts.values()])
                    for label in labels] if len(labels) > MAX_BARS else []
            if check:
                same = next((
                    d for d, other in zip(data, folders) if _is_same(run / IMAGES_FILE, other / IMAGES_FILE)), None)
                told['check'] = dict(same['check'], same=same['name']) if same else _look_for_leaks(run)
            data.append(told)
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent / 'templates'), autoescape=True,
            undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
            finalize=lambda value: printable(value) if type(value) is str else value)
        page = environment.get_template(REPORT).render(
            title=', '.join(folder.resolve().name for folder in folders), networks=parts, data=data,
            metrics=_metrics_table(networks), unfair=_tell_unfair(networks), unfinished=_list_unfinished(runs),
            comparisons=[_compare(*pair, resamples, seed) for pair in _pairs(networks)],
            runs=[folder.resolve().name for folder in folders], settings=_settings_table(networks))
        with atomic_write(temporary / REPORT) as file:
            file.write(page)
    return out / REPORT


def _tell_unfair(networks: Sequence[Network]) -> List[str]:
    """Which networks were not tested on the first one's images, and why that is known."""
    problems = [(network.label, _pair(networks[0], network)[0]) for network in networks[1:]]
    return [f'{networks[0].label} and {label}: {problem}' for label, problem in problems if problem]


def _is_same(path: Path, other: Path) -> bool:
    return path.is_file() and other.is_file() and path.read_bytes() == other.read_bytes()


def _check_place(out: Path) -> None:
    """Would a report replace anything but a report?"""
    page, pictures = out / REPORT, out / PICTURES
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"'{out}' is no folder: choose another --out.")
    if page.exists() and GENERATOR not in page.read_text(encoding='utf-8', errors='replace')[:5000]:
        raise FileExistsError(f"'{page}' is no page of hdkd_timm: move it, or choose another --out.")
    others = [pictures] if pictures.exists() and not pictures.is_dir() else [
        file for file in (pictures.iterdir() if pictures.exists() else ()) if not PICTURE_NAME.fullmatch(file.name)]
    if others:
        raise FileExistsError(f"'{others[0]}' is no picture of a report: move it, or choose another --out.")


@contextmanager
def _new_report(out: Path) -> Iterator[Path]:
    """A temporary folder for a page and its pictures, which take the places of those before when all is written. After
    an error or Ctrl-C all is as it was."""
    created = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f'.{PICTURES}-', dir=out))
    page, before, place = temporary / REPORT, temporary / 'before', out / PICTURES
    pictures = temporary / PICTURES
    try:
        pictures.mkdir()
        yield temporary
        try:
            if place.exists():
                place.rename(before)
            pictures.rename(place)
            page.replace(out / REPORT)
        except BaseException:
            if page.exists():  # the old one is still there, and gets its pictures back
                if not pictures.exists():
                    place.rename(pictures)
                if before.exists():
                    before.rename(place)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):  # not empty: there is a report
            for folder in created:
                folder.rmdir()
