"""The test results of a network of a run."""

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from torch import nn

from ..data.samples import name_image
from ..evaluation.multi_label import DEFAULT_THRESHOLD
from ..evaluation.predictions import write_predictions
from ..utils.files import add_sums, write_json
from ..utils.run_files import METRICS_FILE, PREDICTIONS_FILE
from .config import TrainConfig
from .context import RunContext


def describe_problem(
    config: TrainConfig, classes: Sequence[str], thresholds: Optional[Sequence[float]]
) -> Optional[Dict[str, Any]]:
    """What the config.json of a model says of images with any number of labels; None if they have one class each."""
    if not config.multi_label:
        return None
    limits = [DEFAULT_THRESHOLD] * len(classes) if thresholds is None else thresholds
    return dict(problem_type=config.problem.type, thresholds=dict(zip(classes, limits)))


def create_result(
    context: RunContext,
    name: str,
    network: nn.Module,
    predicted: Tuple[np.ndarray, np.ndarray],
    thresholds: Optional[Sequence[float]] = None,
    **facts: Any,
) -> Dict[str, Any]:
    """What metrics.json of a network holds: its metrics on the test split, and what they may depend on.

    Args:
        context: The run.
        name: Name of the network.
        network: The network, for its number of parameters.
        predicted: Probabilities (N, K) and class indices (N,), or labels (N, K), of the images of the test split.
        thresholds: Of images with any number of labels, the probability from which on one is given each label, (K,);
            0.5 if None.
        facts: What else it reports.

    Raises:
        Interrupted: if a signal asked to stop.
    """
    config, split = context.config, context.test_split
    probs, targets = predicted
    return {
        'name': name,
        'classes': context.classes,
        **({'problem_type': config.problem.type} if config.multi_label else {}),
        **facts,
        'parameters': sum(p.numel() for p in network.parameters()),
        **context.describe_environment(),
        split: config.problem.report(
            probs,
            targets,
            context.classes,
            groups=_image_groups(context.datasets[split]),
            resamples=config.bootstrap,
            seed=config.seed,
            thresholds=None if thresholds is None else np.array(thresholds),
            stop_if_asked=context.stop_if_asked,
            progress=context.world.is_primary,
        ),
    }


def write_result(
    context: RunContext,
    folder: Path,
    result: Dict[str, Any],
    predicted: Tuple[np.ndarray, np.ndarray],
    thresholds: Optional[Sequence[float]] = None,
) -> None:
    """Write predictions.csv and metrics.json to the folder of a network; `result`, `predicted` and `thresholds` as
    `create_result` returns and takes them."""
    if context.world.is_primary:
        probs, targets = predicted
        names = _image_names(context.datasets[context.test_split], len(targets))
        limits = None if thresholds is None else np.array(thresholds)
        write_predictions(
            folder / PREDICTIONS_FILE, names, probs, context.classes, targets, context.config.problem, limits
        )
        add_sums(folder, PREDICTIONS_FILE)
        write_json(result, folder / METRICS_FILE, summed=True)
    context.world.barrier()


def _image_names(dataset: Any, number: int) -> List[str]:
    """Names of the images as in images.csv, numbers where a dataset has none."""
    if not hasattr(dataset, 'samples'):
        return [str(i) for i in range(number)]
    return [name_image(dataset.samples, i) for i in range(number)]


def _image_groups(dataset: Any) -> Optional[np.ndarray]:
    return dataset.samples.groups if hasattr(dataset, 'samples') else None
