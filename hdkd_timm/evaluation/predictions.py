"""predictions.csv: the probabilities of images, one row per image."""

import json
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import numpy as np

from ..utils.csv_files import iterate_rows, write_table
from ..utils.files import atomic_write


def write_predictions(
    path: Path,
    names: Sequence[str],
    probs: np.ndarray,
    classes: Sequence[str],
    targets: Optional[np.ndarray] = None,
) -> None:
    """Write a CSV file with the columns path, target (if known), label (most probable class) and prob_<class>; or, with
    the suffix .jsonl, JSON lines with path, target, label and probs, class -> probability.

    Probabilities are written with as many digits as are needed to read back the same numbers. Rows are streamed,
    because their text takes twenty times the memory of the numbers.

    Args:
        path: File to write.
        names: Names of the N images.
        probs: Probabilities (N, K).
        classes: Names of the K classes.
        targets: Class indices (N,).
    """

    def cells(i: int) -> List[str]:
        target = [] if targets is None else [classes[targets[i]]]
        return [names[i], *target, classes[int(probs[i].argmax())], *map(repr, probs[i].astype(float).tolist())]

    if path.suffix.lower() == '.jsonl':
        _write_json_lines(path, names, probs, classes, targets)
        return
    columns = ['path', *([] if targets is None else ['target']), 'label', *(f'prob_{label}' for label in classes)]
    write_table(columns, map(cells, range(len(names))), path)


def _write_json_lines(
    path: Path, names: Sequence[str], probs: np.ndarray, classes: Sequence[str], targets: Optional[np.ndarray]
) -> None:
    with atomic_write(path) as file:
        for i, name in enumerate(names):
            target = {} if targets is None else {'target': classes[targets[i]]}
            values = dict(zip(classes, probs[i].astype(float).tolist()))
            file.write(json.dumps({'path': name, **target, 'label': classes[int(probs[i].argmax())], 'probs': values}))
            file.write('\n')


def read_predictions(path: Path, classes: Sequence[str]) -> Tuple[List[str], np.ndarray, np.ndarray]:
    """Names, class indices (N,) and probabilities (N, K) of the images of a predictions.csv with targets.

    Raises:
        ValueError: if the file is damaged, or has other classes.
    """
    names, targets, probs = [], [], []
    index_of = {name: k for k, name in enumerate(classes)}
    try:
        for row in iterate_rows(path):  # one at a time: with 1,000 classes rows are large
            names.append(row['path'])
            targets.append(index_of[row['target']])
            probs.append(np.array([float(row[f'prob_{name}']) for name in classes]))
    except (KeyError, TypeError) as e:
        raise ValueError(f"'{path}' is damaged ({type(e).__name__}: {e}).") from e
    found = np.stack(probs) if probs else np.zeros((0, len(classes)))
    if not np.isfinite(found).all():
        raise ValueError(f"'{path}' is damaged (a probability is not finite).")
    return names, np.array(targets, int), found
