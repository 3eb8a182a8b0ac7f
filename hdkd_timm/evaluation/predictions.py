"""predictions.csv: the probabilities of images, one row per image."""

import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..data.targets import SEPARATOR, name_targets
from ..utils.csv_files import iterate_rows, write_table
from ..utils.files import atomic_write
from .problem import Problem, SingleLabel


def write_predictions(
    path: Path,
    names: Sequence[str],
    probs: np.ndarray,
    classes: Sequence[str],
    targets: Optional[np.ndarray] = None,
    problem: Problem = SingleLabel,
    thresholds: Optional[np.ndarray] = None,
) -> None:
    """Write a CSV file with the columns path, target (if known), label (most probable class) and prob_<class>; or, with
    the suffix .jsonl, JSON lines with path, target, label and probs, class -> probability.

    Of images with any number of labels, target and label are those that they have and are given: separated by '|' in a
    CSV file, a list in JSON lines.

    Probabilities are written with as many digits as are needed to read back the same numbers. Rows are streamed,
    because their text takes twenty times the memory of the numbers.

    Args:
        path: File to write.
        names: Names of the N images.
        probs: Probabilities (N, K).
        classes: Names of the K classes.
        targets: Class indices (N,), or labels (N, K).
        problem: Whether the images have one class or any number of labels.
        thresholds: Probability from which on an image is given a label, (K,).
    """

    def label(i: int) -> str:
        return name_targets(problem.predict(probs[i : i + 1], thresholds), classes)[0]

    def target(i: int) -> List[str]:
        return [] if targets is None else name_targets(targets[i : i + 1], classes)

    def cells(i: int) -> List[str]:
        return [names[i], *target(i), label(i), *map(repr, probs[i].astype(float).tolist())]

    def line(i: int) -> Dict[str, Any]:
        texts: Dict[str, Any] = {'label': label(i)} if targets is None else {'target': target(i)[0], 'label': label(i)}
        if problem is not SingleLabel:
            texts = {key: text.split(SEPARATOR) if text else [] for key, text in texts.items()}
        return {'path': names[i], **texts, 'probs': dict(zip(classes, probs[i].astype(float).tolist()))}

    if path.suffix.lower() == '.jsonl':
        with atomic_write(path) as file:
            for i in range(len(names)):
                file.write(json.dumps(line(i)) + '\n')
        return
    columns = ['path', *([] if targets is None else ['target']), 'label', *(f'prob_{label}' for label in classes)]
    write_table(columns, map(cells, range(len(names))), path)


def read_predictions(
    path: Path, classes: Sequence[str], problem: Problem = SingleLabel
) -> Tuple[List[str], np.ndarray, np.ndarray]:
    """Names, class indices (N,), or labels (N, K), and probabilities (N, K) of the images of a predictions.csv with
    targets.

    Raises:
        ValueError: if the file is damaged, or has other classes.
    """
    names: List[str] = []
    targets: List[Any] = []
    probs = []
    index_of = {name: k for k, name in enumerate(classes)}
    try:
        for row in iterate_rows(path):  # one at a time: with 1,000 classes rows are large
            names.append(row['path'])
            labels = row['target'].split(SEPARATOR) if row['target'] else []
            targets.append(index_of[row['target']] if problem is SingleLabel else [index_of[name] for name in labels])
            probs.append(np.array([float(row[f'prob_{name}']) for name in classes]))
    except (KeyError, TypeError) as e:
        raise ValueError(f"'{path}' is damaged ({type(e).__name__}: {e}).") from e
    found = np.stack(probs) if probs else np.zeros((0, len(classes)))
    if not np.isfinite(found).all():
        raise ValueError(f"'{path}' is damaged (a probability is not finite).")
    if problem is SingleLabel:
        return names, np.array(targets, int), found
    indicators = np.zeros(found.shape, np.uint8)
    for i, labels in enumerate(targets):
        indicators[i, labels] = 1
    return names, indicators, found
