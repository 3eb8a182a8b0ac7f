"""Comparison of the networks of runs that were tested on the same images."""

import dataclasses
import itertools
import math
import os
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ..data.config import SourceConfig
from ..evaluation.metrics import IN_PER_CENT, LOWER_IS_BETTER, METRIC_NAMES
from ..evaluation.paired_tests import mcnemar, paired_bootstrap, paired_label_bootstrap
from ..evaluation.problem import SingleLabel
from ..evaluation.run_results import NetworkResults, is_role, iterate_images, read_settings
from ..utils.run_files import IMAGES_FILE


class ImageMatch(NamedTuple):
    """Whether two networks were tested on the same images.

    Args:
        problem: Reason why they were not, or why it is unknown; None if they were.
        indices: Index among the second network's images of each of the first's, (N,).
        is_moved: Whether the images are in different folders, and were matched by file name.
    """

    problem: Optional[str]
    indices: Optional[np.ndarray] = None
    is_moved: bool = False


def _strip_common_folder(names: Sequence[str]) -> List[str]:
    """Paths relative to the innermost folder that contains all of them, which may differ between runs."""
    parts = [Path(name).parts for name in names]
    depth = 0
    while all(len(part) > depth + 1 and part[: depth + 1] == parts[0][: depth + 1] for part in parts):
        depth += 1
    return ['/'.join(part[depth:]) for part in parts]


def _read_source_settings(network: NetworkResults) -> Dict[str, Any]:
    """The settings that determine the images of a run."""
    settings = read_settings(network.run)
    return {field.name: settings.get(field.name) for field in dataclasses.fields(SourceConfig)}


def _read_digests(network: NetworkResults) -> Dict[str, str]:
    """Name -> SHA-256 of the images of a network's split, as far as its run lists them."""
    rows = iterate_images(network.run / IMAGES_FILE)
    return {row['path']: row['sha256'] for row in rows if row['split'] == network.split and row.get('sha256')}


def _count_changed(first: NetworkResults, second: NetworkResults, indices: np.ndarray) -> int:
    """Number of matched images whose contents differ, as far as both runs list them."""
    digests, others = _read_digests(first), _read_digests(second)
    pairs = [(digests.get(name), others.get(second.names[i])) for name, i in zip(first.names, indices)]
    return sum(one is not None and other is not None and one != other for one, other in pairs)


def match_images(first: NetworkResults, second: NetworkResults) -> ImageMatch:
    """Match the test images of two networks by name; those of one name must have the same contents, where known."""
    if first.probs is None or second.probs is None:
        return ImageMatch('The predictions of one of them are missing.')
    if first.problem is not second.problem:
        return ImageMatch('One gives an image one class, the other any number of labels.')
    if first.classes != second.classes:
        return ImageMatch('Their classes differ.')
    names, is_moved = [first.names, second.names], False
    if not all(os.path.isabs(name) for part in names for name in part):
        if _read_source_settings(first) != _read_source_settings(second):
            return ImageMatch('Their images have no paths and come from different sources, so they cannot be matched.')
    elif set(names[0]) != set(names[1]):
        names, is_moved = [_strip_common_folder(part) for part in names], True
    index_of = [dict(zip(part, range(len(part)))) for part in names]
    is_same = index_of[0].keys() == index_of[1].keys() and len(index_of[0]) == len(first.names)
    if first.split != second.split or not is_same:
        return ImageMatch('They were tested on different images, which cannot be matched.')
    indices = np.array([index_of[1][name] for name in index_of[0]])
    if not np.array_equal(first.targets, second.targets[indices]):
        return ImageMatch('The same images have different classes.')
    changed = _count_changed(first, second, indices)
    if changed:
        return ImageMatch(f'{changed:,} images of the same names have other contents (SHA-256 in {IMAGES_FILE}).')
    return ImageMatch(None, indices, is_moved)


def list_mismatches(networks: Sequence[NetworkResults]) -> List[str]:
    """Networks that were not tested on the images of the first one, as far as is known, with the reason."""
    problems = [(network.label, match_images(networks[0], network).problem) for network in networks[1:]]
    return [f'{networks[0].label} and {label}: {problem}' for label, problem in problems if problem]


def choose_comparisons(networks: Sequence[NetworkResults]) -> Iterator[Tuple[NetworkResults, NetworkResults]]:
    """Pairs of networks to compare: those of a run and, between runs, those of one role or of runs of one network."""
    for first, second in itertools.combinations(networks, 2):
        roles = {network.metrics['name'] for network in (first, second)}
        if (
            first.run.resolve() == second.run.resolve()
            or len(roles) == 1
            or not all(map(is_role, roles))
            or (len(networks) == 2)
        ):
            yield first, second


def format_differences(name: str, *values: float) -> str:
    """Signed differences of a metric, joined by 'to'; in percentage points for a metric in per cent."""
    if not all(map(math.isfinite, values)):
        return '–'
    is_points = name in IN_PER_CENT
    shown = ' to '.join(f'{100 * value:+.2f}' if is_points else f'{value:+.4f}' for value in values).replace('-', '−')
    return shown + (' points' if is_points else '')


def format_p(p: float) -> str:
    """A p-value with two digits, or more if rounding would move it across 0.05."""
    if p < 1e-4:
        return 'p < 0.0001'
    digits = next((d for d in (2, 3, 4, 5) if (float(f'{p:.{d}g}') < 0.05) == (p < 0.05)), 6)
    return f'p = {p:.{digits}g}'


def compare(first: NetworkResults, second: NetworkResults, resamples: int, seed: int) -> Dict[str, Any]:
    """Is the second network better than the first on the same images?

    Args:
        first, second: The networks.
        resamples: Resamples of the paired bootstrap.
        seed: Its seed.

    Returns:
        Labels 'first' and 'second', and either the 'problem' that prevents a comparison, or 'images' and 'groups'
        (numbers), 'is_moved', 'only_first', 'only_second', 'p_value' and 'is_significant' of McNemar's test (not of
        images with any number of labels), and 'rows' of the metrics: 'name', 'difference', 'interval', and 'better'
        ('first', 'second' or None).
    """
    labels = dict(first=first.label, second=second.label)
    match = match_images(first, second)
    if match.problem:
        return dict(labels, problem=match.problem)
    targets, probs = first.targets, second.probs[match.indices]
    rows = []
    for name, found in _compare_metrics(first, second, match.indices, resamples, seed).items():
        low, high = found['interval']
        better = 'first' if (name in LOWER_IS_BETTER) == (low > 0) else 'second'
        rows.append(
            dict(
                name=METRIC_NAMES[name],
                difference=format_differences(name, found['difference']),
                interval=format_differences(name, low, high),
                better=better if low > 0 or high < 0 else None,
            )
        )
    shared = dict(
        labels,
        rows=rows,
        is_moved=match.is_moved,
        images=len(targets),
        groups=0 if first.groups is None else len(set(first.groups)),
    )
    if first.problem is not SingleLabel:
        return shared
    test = mcnemar(first.probs.argmax(1) == targets, probs.argmax(1) == targets)
    p = test.pop('p_value')
    return dict(shared, **test, p_value=format_p(p), is_significant=p < 0.05)


def _compare_metrics(
    first: NetworkResults, second: NetworkResults, indices: np.ndarray, resamples: int, seed: int
) -> Dict[str, Dict[str, Any]]:
    """Differences of all metrics, second minus first."""
    if first.problem is SingleLabel:
        return paired_bootstrap(first.probs, second.probs[indices], first.targets, first.groups, resamples, seed=seed)
    networks = [
        first.problem.weigh(first.probs, first.targets, first.thresholds),
        second.problem.weigh(second.probs[indices], first.targets, second.thresholds),
    ]
    return paired_label_bootstrap(networks, first.groups, resamples, seed=seed)
