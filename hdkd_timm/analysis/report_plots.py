"""Plots of the report: PNG files, and what the page needs to embed them."""

import base64
import math
from pathlib import Path
from typing import Any, Dict, Tuple

from PIL import Image

from ..evaluation.metrics import METRIC_NAMES, binary_aurocs, expected_calibration_error, format_metric
from ..evaluation.multi_label import flatten_labels
from ..evaluation.plots import (
    MAX_CELLS,
    MAX_CURVES,
    format_percent,
    most_confused_classes,
    plot_class_counts,
    plot_confusion_matrix,
    plot_curves,
    plot_reliability,
    plot_roc_pr,
)
from ..evaluation.problem import SingleLabel
from ..evaluation.run_results import NetworkResults

Picture = Dict[str, Any]


class Pictures:
    """PNG files in a folder.

    Args:
        folder: Folder that they are written into.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def embed(self, file: str, alt: str) -> Picture:
        """Data URL, size and alternative text of a file in the folder."""
        path = self.folder / file
        with Image.open(path, formats=('PNG',)) as image:
            width, height = image.size
        data = base64.b64encode(path.read_bytes()).decode()
        return dict(url=f'data:image/png;base64,{data}', alt=alt, width=width, height=height)


def _list_lowest(values: Dict[str, Tuple[float, str]]) -> str:
    """Names with their texts, in a sentence; of many, only those with the lowest values.

    Args:
        values: Name -> value and text.
    """
    names = list(values)
    if len(names) > MAX_CURVES:
        names = sorted(names, key=lambda name: values[name][0])[: MAX_CURVES // 2]
    listed = ', '.join(f'{name} {values[name][1]}' for name in names)
    return listed + (f' (lowest {len(names)} of {len(values)} classes)' if len(names) < len(values) else '')


def _plot_confusions(network: NetworkResults, pictures: Pictures, stem: str) -> Dict[str, Picture]:
    matrix, classes = network.result['confusion_matrix'], network.classes
    plot_confusion_matrix(matrix, classes, pictures.folder / f'{stem}confusion.png')
    recalls = _list_lowest(
        {
            name: (scores['recall'], f'{format_percent(scores["recall"])} of {scores["support"]}')
            for name, scores in network.result['per_class'].items()
            if scores['support']
        }
    )
    shown = {
        'confusion': pictures.embed(f'{stem}confusion.png', f'Confusion matrix of {network.label}. Recall: {recalls}.')
    }
    confused = most_confused_classes(matrix) if len(classes) > MAX_CELLS else []
    if confused:
        plot_confusion_matrix(matrix, classes, pictures.folder / f'{stem}confused.png', confused)
        shown['confused'] = pictures.embed(
            f'{stem}confused.png',
            (
                f'Part of the confusion matrix of {network.label} with the {len(confused)} classes of the most frequent'
                ' confusions, which are listed in the table below.'
            ),
        )
    return shown


def _plot_probabilities(network: NetworkResults, pictures: Pictures, stem: str) -> Dict[str, Picture]:
    probs, targets, classes = network.probs, network.targets, network.classes
    decisions = probs, targets
    if network.problem is not SingleLabel:
        decisions = flatten_labels(probs, targets)[:2]
    plot_roc_pr(probs, targets, classes, pictures.folder / f'{stem}roc-pr.png')
    plot_reliability(*decisions, pictures.folder / f'{stem}reliability.png')
    areas = _list_lowest(
        {
            name: (area, f'{area:.3f}')
            for name, area in zip(classes, binary_aurocs(probs, targets))
            if math.isfinite(area)
        }
    )
    return {
        'roc_pr': pictures.embed(
            f'{stem}roc-pr.png',
            (
                f'ROC and precision-recall curves of {network.label}, one per class. Areas under the ROC curves:'
                f' {areas}.'
            ),
        ),
        'reliability': pictures.embed(
            f'{stem}reliability.png',
            (
                f'Reliability diagram of {network.label}: expected calibration error'
                f' {format_metric("ece", expected_calibration_error(*decisions))}.'
            ),
        ),
    }


def plot_network(network: NetworkResults, pictures: Pictures, stem: str) -> Dict[str, Picture]:
    """Plot the results of a network: 'curves', 'confusion', 'confused', 'roc_pr' and 'reliability', as available.

    Args:
        network: The network.
        pictures: Where the files are written.
        stem: Start of their names.
    """
    shown = {}
    if network.epochs:
        first, last = network.epochs[0], network.epochs[-1]
        plot_curves(
            network.epochs,
            network.metrics.get('epoch'),
            pictures.folder / f'{stem}curves.png',
            network.problem.select_metric,
        )
        shown['curves'] = pictures.embed(
            f'{stem}curves.png',
            (
                f'Learning curves of {network.label} over'
                f' {len(network.epochs)} epoch{"s" * (len(network.epochs) != 1)}: log loss,'
                f' {METRIC_NAMES[network.problem.select_metric]} and the components of the training loss, which is'
                f' {first["train_loss"]:.3g} in the first epoch and {last["train_loss"]:.3g} in the last.'
            ),
        )
    if network.problem is SingleLabel:
        shown.update(_plot_confusions(network, pictures, stem))
    if network.probs is not None:
        shown.update(_plot_probabilities(network, pictures, stem))
    return shown


def plot_counts(counts: Dict[str, Dict[str, int]], totals: Dict[str, int], pictures: Pictures, file: str) -> Picture:
    """Plot the number of images per class and split.

    Args:
        counts: Split -> class -> number of images.
        totals: Split -> number of all images.
        pictures: Where the file is written.
        file: Name of the file.
    """
    plot_class_counts(counts, pictures.folder / file)
    numbers = '; '.join(
        f'{split} {totals[split]:,}: '
        + _list_lowest({label: (number, f'{number:,}') for label, number in of_class.items()})
        for split, of_class in counts.items()
    )
    return pictures.embed(file, f'Images per class: {numbers}.')
