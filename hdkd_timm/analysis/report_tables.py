"""Tables and sentences of the report: metrics, classes, confusions, settings."""

from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from ..evaluation.metrics import (
    LOWER_IS_BETTER,
    METRIC_NAMES,
    class_auroc,
    defined_scores,
    format_interval,
    format_metric,
)
from ..evaluation.plots import MAX_CELLS, MAX_CURVES, format_percent
from ..evaluation.problem import SingleLabel
from ..evaluation.run_results import NetworkResults, read_json_file, read_settings
from ..utils.run_files import CALIBRATION_FILE

MAX_CONFUSIONS = 20  # rows of the table of the most frequent confusions


def metrics_table(networks: Sequence[NetworkResults], is_comparable: bool) -> List[Dict[str, Any]]:
    """One row per metric: its name, and the value and interval of each network.

    Args:
        networks: Networks to list.
        is_comparable: Whether they were tested on the same images, so that the best one can be marked.
    """
    rows = []
    shown = [name for name in METRIC_NAMES if any(name in network.problem.metrics for network in networks)]
    for name in shown:
        values = [network.result.get(name) for network in networks]
        defined = [value for value in values if value is not None]
        best = (min if name in LOWER_IS_BETTER else max)(defined) if len(defined) > 1 and is_comparable else None
        cells = []
        for network, value in zip(networks, values):
            interval = format_interval(name, (network.result.get('intervals_95') or {}).get(name))
            is_best = best is not None and value == best
            cells.append(dict(value=format_metric(name, value), interval=interval, best=is_best))
        rows.append(dict(name=METRIC_NAMES[name], better='lower' if name in LOWER_IS_BETTER else 'higher', cells=cells))
    return rows


def class_table(network: NetworkResults) -> List[Dict[str, Any]]:
    """One row per class; with more than `MAX_CELLS` classes, those with the lowest F1 first. Labels also have 'ap',
    'specificity' and 'threshold'."""
    more: Sequence[str] = ()
    if network.problem is not SingleLabel:
        areas: Sequence[Optional[float]] = [scores['auroc'] for scores in network.result['per_class'].values()]
        more = ('ap', 'specificity', 'threshold')
    else:
        areas = [None] * len(network.classes)
        if network.probs is not None:
            areas = class_auroc(network.probs, network.targets).tolist()
    rows = [
        dict(
            number=number,
            name=name,
            auroc=format_metric('', area),
            support=scores['support'],
            score=scores['f1'],
            recall_95=format_interval('', scores.get('recall_95')),
            **{key: format_metric('', scores[key]) for key in ('precision', 'recall', 'f1', *more)},
        )
        for number, ((name, scores), area) in enumerate(zip(defined_scores(network.result).items(), areas), 1)
    ]
    if len(rows) > MAX_CELLS:
        rows.sort(key=lambda row: (not row['support'], row['score'] if row['score'] is not None else 2))
    return rows


def confusion_table(network: NetworkResults) -> List[Dict[str, Any]]:
    """The most frequent confusions, pairs of true and predicted class; empty with few classes, and for labels, of which
    an image has any number."""
    if len(network.classes) <= MAX_CURVES or network.problem is not SingleLabel:
        return []
    counts = np.array(network.result['confusion_matrix'])
    totals = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    cells = np.argsort(-counts, axis=None, kind='stable')[:MAX_CONFUSIONS]
    return [
        dict(
            true=network.classes[i],
            predicted=network.classes[j],
            images=int(counts[i, j]),
            total=int(totals[i]),
            share=format_percent(counts[i, j] / totals[i]),
        )
        for i, j in zip(*np.unravel_index(cells, counts.shape))
        if counts[i, j]
    ]


def settings_table(networks: Sequence[NetworkResults]) -> List[Dict[str, Any]]:
    """One row per setting, with its value in each run."""
    settings = [read_settings(run) for run in dict.fromkeys(network.run for network in networks)]
    rows = []
    for name in dict.fromkeys(name for values in settings for name in values):
        values = [values.get(name) for values in settings]
        shown = ['–' if value is None else str(value) for value in values]
        rows.append(dict(name=name, values=shown, differs=any(value != values[0] for value in values)))
    return rows


def _format_time(seconds: float) -> str:
    if seconds < 120:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 7200 else f'{seconds / 3600:.1f} h'


def _describe_training(network: NetworkResults, images: int) -> str:
    metrics = network.metrics
    if 'epoch' not in metrics:
        return 'was loaded already trained, and only tested in this run'
    size = (network.model.get('pretrained_cfg') or {}).get('input_size')
    what = 'classes' if network.problem is SingleLabel else 'labels'
    return (
        f'was trained for {metrics["epochs"]} epoch{"s" * (metrics["epochs"] != 1)}'
        + (f' on {images:,} images' if images else '')
        + f' of {len(network.classes)} {what}'
        + (f' at {size[1]} x {size[2]} pixels' if size else '')
        + f' in {_format_time(metrics["train_seconds"])}; epoch {metrics["epoch"] + 1} was kept'
    )


def _describe_distillation(settings: Dict[str, Any]) -> str:
    methods = settings.get('method') or ['hdkd']  # runs of earlier versions had no other
    given = settings.get('teacher_checkpoint')
    given = [given] if isinstance(given, str) else given or []  # text in runs of earlier versions
    text = f', distilled from {", ".join(given)}' if given else ', distilled from a teacher'
    if settings.get('teacher_logits'):
        text = ', distilled from stored logits'
    if methods == ['none']:
        text = ', trained without distillation'
    elif methods != ['hdkd']:
        text += f' by {" and ".join(methods)}'
    if settings.get('pretrained'):
        text += ', starting from pretrained weights'
    if settings.get('init_from_teacher') is not None:
        text += ", starting from layers of the teacher's"
    return f'{text},'


def describe_network(
    network: NetworkResults,
    settings: Dict[str, Any],
    images: int = 0,
) -> str:
    """Training and result of a network in two sentences.

    Args:
        network: The network.
        settings: Settings of its run.
        images: Number of its training images, 0 if unknown.
    """
    metrics, parameters = network.metrics, network.metrics['parameters']
    size = f'{parameters / 1e6:.1f} million' if parameters >= 1e6 else f'{parameters:,}'
    text = f'{network.model.get("architecture") or metrics["name"]} ({size} parameters)'
    if metrics['name'] == 'student':
        text += _describe_distillation(settings)
    main = network.problem.select_metric
    interval = format_interval(main, (network.result.get('intervals_95') or {}).get(main))
    shown = f' (95 % interval {interval.replace(" %", "")})' if interval else ''
    split = {'test': 'test', 'val': 'validation'}[network.split]
    text += (
        f' {_describe_training(network, images)}. On {network.result["images"]:,} {split} images, its'
        f' {METRIC_NAMES[main]} is {format_metric(main, network.result[main])}{shown}.'
    )
    if network.split == 'val' and 'epoch' in metrics:
        text += (
            ' There was no test split: these images also selected the epoch, so the results are optimistically biased.'
        )
    return text


def describe_calibration(network: NetworkResults) -> Optional[str]:
    """Temperature and calibration errors of a calibrated network; None if it is not calibrated."""
    found = read_json_file(network.folder / 'best' / CALIBRATION_FILE)
    if not found:
        return None
    errors = [
        f'{split} {report["ece"]["before"]:.3f} before, {report["ece"]["after"]:.3f} after'
        for split, report in found.items()
        if isinstance(report, dict)
    ]
    return f'Temperature {found["temperature"]:.3f}, applied with --calibrated. Calibration error: {"; ".join(errors)}.'
