"""A split of a data set without leaks: no duplicates and no groups in more than one split."""

import os
from pathlib import Path
from typing import Dict, Tuple

import numpy as np

from ..data.targets import is_multi_label, name_targets, to_indicators
from ..utils.csv_files import write_rows
from ..utils.files import PathLike, check_output_file
from .data_check import DataCheck, require_files
from .duplicates import find_clusters, first_occurrences


def _find_units(check: DataCheck) -> np.ndarray:
    """Unit of each image, (N,): clusters of duplicates, joined where they share a group."""
    groups = first_occurrences(list(check.group))
    joined = np.flatnonzero(groups != np.arange(len(groups)))
    pairs = check.duplicates.pairs
    return find_clusters(
        len(groups), np.concatenate([pairs.first, groups[joined]]), np.concatenate([pairs.second, joined])
    )


def draw_split(check: DataCheck, seed: int = 42) -> Tuple[np.ndarray, np.ndarray]:
    """Draw a split in which no cluster of duplicates and no group is in two splits.

    Each split keeps its number of images per class, as far as the sizes of the units allow.

    Returns:
        New split index of each image, and the unit (clusters joined by groups) that it belongs to, (N,) each.
    """
    units = _find_units(check)
    has = to_indicators(check.target, len(check.classes)).astype(int)
    if is_multi_label(check.target):  # images without a label are a class of their own
        has = np.concatenate([has, ~has.any(axis=1, keepdims=True)], axis=1)
    members = np.zeros((units.max(initial=-1) + 1, has.shape[1]), int)
    np.add.at(members, units, has)
    capacity = np.zeros((len(check.splits), has.shape[1]), int)
    np.add.at(capacity, check.split, has)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(members))
    chosen = np.zeros(len(members), int)
    for unit in order[np.argsort(-members[order].sum(axis=1), kind='stable')]:  # the largest first
        present = members[unit] > 0
        left = capacity[:, present] - members[unit, present]
        fits = (left >= 0).all(axis=1)
        if fits.any():
            room = capacity[:, present].sum(axis=1) * fits
            chosen[unit] = rng.choice(len(room), p=room / room.sum())
        else:
            chosen[unit] = (-left.clip(max=0)).sum(axis=1).argmin()  # the smallest excess
        capacity[chosen[unit]] -= members[unit]
    return chosen[units], units


def write_split(check: DataCheck, path: PathLike, seed: int = 42) -> Dict[str, Dict[str, int]]:
    """Write the split of `draw_split` as a CSV file for --data-csv, with relative paths and the units as groups.

    Images that cannot be read are dropped.

    Returns:
        Split -> class -> number of images.

    Raises:
        FileExistsError, FileNotFoundError: if the file exists, or its directory does not.
        ValueError: if the images are not files, or a split would have no images of a class.
    """
    path = Path(path)
    check_output_file(path, '--write-split')
    require_files(check.samples)
    split, units = draw_split(check, seed)
    kept = np.flatnonzero([not summary.error for summary in check.summaries])
    has, labels = to_indicators(check.target, len(check.classes)), name_targets(check.target, check.classes)
    for k, label in enumerate(check.classes):
        empty = [name for s, name in enumerate(check.splits) if not ((split == s) & has[:, k])[kept].any()]
        if is_multi_label(check.target):  # a label may be missing where it was
            empty = [name for name in empty if has[check.split == check.splits.index(name), k].any()]
        if empty:
            of_class = kept[has[kept, k]]
            raise ValueError(
                f"No split without leaks has images of class '{label}' in {' and '.join(empty)}: its"
                f' {len(of_class)} readable images form {len(set(units[of_class]))} clusters. Add images of this class,'
                ' drop the class, or try another --seed.'
            )
    base = os.path.realpath(path.parent)
    write_rows(
        [
            dict(
                path=os.path.relpath(os.path.realpath(check.name[i]), base),
                label=labels[i],
                split=check.splits[split[i]],
                group=int(units[i]),
            )
            for i in kept
        ],
        path,
    )
    return {
        name: dict(zip(check.classes, has[kept][split[kept] == s].sum(axis=0).tolist()))
        for s, name in enumerate(check.splits)
    }
