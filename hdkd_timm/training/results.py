"""The test results of a network of a run."""

from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
from torch import nn

from ..data.samples import name_image
from ..evaluation.evaluate import full_report
from ..evaluation.predictions import write_predictions
from ..utils.files import add_sums, write_json
from ..utils.run_files import METRICS_FILE, PREDICTIONS_FILE
from .context import RunContext


def create_result(
    context: RunContext,
    name: str,
    network: nn.Module,
    predicted: Tuple[np.ndarray, np.ndarray],
    **facts: Any,
) -> Dict[str, Any]:
    """What metrics.json of a network holds: its metrics on the test split, and what they may depend on.

    Args:
        context: The run.
        name: Name of the network.
        network: The network, for its number of parameters.
        predicted: Probabilities (N, K) and class indices (N,) of the images of the test split.
        facts: What else it reports.

    Raises:
        Interrupted: if a signal asked to stop.
    """
    config, split = context.config, context.test_split
    return {
        'name': name,
        'classes': context.classes,
        **facts,
        'parameters': sum(p.numel() for p in network.parameters()),
        **context.describe_environment(),
        split: full_report(
            *predicted,
            context.classes,
            _image_groups(context.datasets[split]),
            config.bootstrap,
            config.seed,
            stop_if_asked=context.stop_if_asked,
            progress=context.world.is_primary,
        ),
    }


def write_result(
    context: RunContext,
    folder: Path,
    result: Dict[str, Any],
    predicted: Tuple[np.ndarray, np.ndarray],
) -> None:
    """Write predictions.csv and metrics.json to the folder of a network; `result` and `predicted` as `create_result`
    returns and takes them."""
    if context.world.is_primary:
        probs, targets = predicted
        names = _image_names(context.datasets[context.test_split], len(targets))
        write_predictions(folder / PREDICTIONS_FILE, names, probs, context.classes, targets)
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
