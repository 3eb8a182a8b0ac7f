"""A choice by validation images: which of several candidates has the best metric."""

import math
from typing import Any, Callable, Dict, List, Sequence

from .metrics import LOWER_IS_BETTER, METRIC_NAMES, format_metric

Candidate = Dict[str, Any]  # what was tried, and its metrics, numbers

SHOWN = ('accuracy', 'balanced_accuracy', 'macro_auroc', 'mean_ap', 'log_loss')  # columns of the table


def rank(candidate: Candidate, metric: str) -> float:
    """A number that is larger for a better candidate.

    Raises:
        ValueError: if the images have no such metric.
    """
    value = candidate.get(metric)
    if value is None:
        known = ', '.join(name for name in METRIC_NAMES if name in candidate)
        raise ValueError(f'--select-metric {metric} is not a metric of these images: choose from {known}.')
    if math.isnan(value):
        raise ValueError(f'The {METRIC_NAMES[metric]} of these images is not defined: use another --select-metric.')
    return -value if metric in LOWER_IS_BETTER else value


def choose(candidates: Sequence[Candidate], metric: str, effort: Callable[[Candidate], float]) -> Candidate:
    """The best candidate; of equally good ones that with the smallest effort.

    Raises:
        ValueError: as `rank`.
    """
    return max(candidates, key=lambda each: (rank(each, metric), -effort(each)))


def format_candidates(candidates: Sequence[Candidate], key: str, chosen: Any, metric: str) -> str:
    """A text table, one row per candidate; the chosen one is marked.

    Args:
        candidates: What was tried.
        key: What they differ in, a number or a list of them.
        chosen: Its value of the chosen one.
        metric: The metric that chose.
    """
    metrics = [name for name in METRIC_NAMES if name in candidates[0] and (name in SHOWN or name == metric)]
    texts = [format_numbers(each[key]) for each in candidates]
    width = max(map(len, (key, *texts))) + 2
    lines = [f'{key:<{width}}' + ''.join(f'{METRIC_NAMES[name]:>{len(METRIC_NAMES[name]) + 3}}' for name in metrics)]
    for text, each in zip(texts, candidates):
        cells = ''.join(f'{format_metric(name, each[name]):>{len(METRIC_NAMES[name]) + 3}}' for name in metrics)
        lines.append(f'{text:<{width}}{cells}' + ('  *' if each[key] == chosen else ''))
    return '\n'.join(lines)


def format_numbers(value: Any) -> str:
    """A number, or several, as short as possible."""
    values: List[float] = value if isinstance(value, list) else [value]
    return ' '.join(f'{each:.3g}' for each in values)
