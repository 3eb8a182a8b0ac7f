"""`hdkd check`: the contents of a data set, before anything is trained on it.

Sizes, modes, classes and unreadable images; duplicates (equal files, equal pixels, near-duplicates) within and across
splits, and groups in more than one split.
"""

import dataclasses
import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
from PIL import Image

from ..data.config import SourceConfig
from ..data.datasets import read_samples
from ..data.image_files import split_frame, split_suffix
from ..data.samples import SPLITS, FileReader, SampleDataset, Samples, SplitNotFoundError, find_changed
from ..data.targets import is_multi_label, name_targets, to_indicators
from ..data.value_range import describe_ranges
from ..evaluation.plots import plot_pairs
from ..utils.config import check_values, setting
from ..utils.csv_files import write_rows
from ..utils.files import PathLike, new_folder, write_json
from ..utils.text import printable
from .duplicates import PAIR_KINDS, THUMBNAIL_SIZE, Duplicates, find_duplicates
from .image_summary import ImageSummary, summarize_images

_logger = logging.getLogger(__name__)

SIDES = ('first', 'second')
PAIR_COLUMNS = (
    'kind',
    'correlation',
    'labels_differ',
    'across_splits',
    'cluster',
    *(f'{side}_{key}' for side in SIDES for key in ('path', 'split', 'label')),
)
MAX_ROWS = 200_000  # of duplicates.csv


@dataclasses.dataclass
class CheckConfig(SourceConfig):
    """Settings of `check_data`."""

    threshold: float = setting(
        0.99,
        'minimum correlation of near-duplicates, between grey thumbnails of'
        f' {THUMBNAIL_SIZE} x {THUMBNAIL_SIZE} pixels',
        above=0,
        at_most=1,
        group='duplicates',
        common=True,
    )

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range, naming the flag, the value and the range; as `SourceConfig`."""
        check_values(self)
        super().__post_init__()


class DataCheck(NamedTuple):
    """A data set whose N images have been read.

    Args:
        samples: Split -> samples.
        classes: Class names by index.
        splits: Names of the splits.
        summaries: Summary of each image, (N,).
        split, target: Split and class index of each image, (N,); or its labels, (N, K).
        name: Name of each image, the path if it is a file, (N,).
        group: Group of each image, '' without one, (N,).
        duplicates: Duplicates among the images.
        changed: Whether an image differs from what its table lists (size or SHA-256), (N,).
    """

    samples: Dict[str, Samples]
    classes: List[str]
    splits: List[str]
    summaries: List[ImageSummary]
    split: np.ndarray
    target: np.ndarray
    name: List[str]
    group: np.ndarray
    duplicates: Duplicates
    changed: np.ndarray


def _check_table_paths(samples: Dict[str, Samples], config: CheckConfig) -> None:
    """Raises ValueError if no image of a table exists, which points to a wrong folder rather than to missing images."""
    files = [part.filename(i) for part in samples.values() for i in range(len(part))]
    if not any(os.path.lexists(split_frame(file)[0]) for file in files):
        root = config.data_dir or os.path.dirname(config.data_csv) or '.'
        raise ValueError(
            f"None of the {len(files):,} images of '{config.data_csv}' exist, the first is '{files[0]}': paths are"
            f" relative to '{root}', use --data-dir to choose another directory."
        )


def require_files(samples: Dict[str, Samples]) -> None:
    """Raises ValueError if images are not files, so that a table of their paths cannot be written."""
    if not all(isinstance(part.reader, FileReader) for part in samples.values()):
        raise ValueError('--write-split needs image files, because it lists their paths: these images are not files.')


def _read_available_splits(config: CheckConfig) -> Tuple[Dict[str, Samples], List[str]]:
    """As `read_samples`, but also of a folder with a single split, or with class folders without splits ('train')."""
    try:
        return read_samples(config)
    except SplitNotFoundError:
        if config.data_csv or config.dataset:
            raise
        present = {entry.name.lower().removesuffix('.tar') for entry in os.scandir(config.data_dir)}
        splits = [split for split, names in SPLITS.items() if present.intersection(names)]
        if len(splits) > 1:
            raise
        return read_samples(config, *(splits or ['train']))


def check_data(config: CheckConfig, only_files: bool = False) -> DataCheck:
    """Read all images of a data set, and look for duplicates.

    Args:
        config: Source of the images.
        only_files: Require image files, as `write_split` does, before any image is read.

    Raises:
        FileNotFoundError, ValueError: as `read_samples` and `find_duplicates`.
    """
    samples, classes = _read_available_splits(config)
    if only_files:
        require_files(samples)
    if config.data_csv:
        _check_table_paths(samples, config)
    return check_samples(samples, classes, config.threshold)


def check_samples(
    samples: Dict[str, Samples], classes: List[str], threshold: float = CheckConfig.threshold
) -> DataCheck:
    """As `check_data`, of a data set whose labels and splits have been read.

    Args:
        samples: Split -> samples.
        classes: Class names by index.
        threshold: Minimum correlation of near-duplicates.
    """
    summaries, changed = [], []
    for part in samples.values():
        found = summarize_images(part)
        contents = np.array([('', summary.file_hash) for summary in found], object).reshape(-1, 2)
        changed.append(find_changed(dataclasses.replace(part, contents=contents)))
        summaries += found
    split = np.repeat(np.arange(len(samples)), [len(part) for part in samples.values()])
    group = [[''] * len(part) if part.groups is None else part.groups.astype(str) for part in samples.values()]
    duplicates = find_duplicates(
        [summary.file_hash for summary in summaries],
        [summary.pixel_hash for summary in summaries],
        [summary.thumbnail for summary in summaries],
        split,
        threshold,
    )
    return DataCheck(
        samples,
        classes,
        list(samples),
        summaries,
        split,
        np.concatenate([part.targets for part in samples.values()]),
        [name for part in samples.values() for name in part.filenames()],
        np.concatenate(group).astype(object),
        duplicates,
        np.concatenate(changed),
    )


def _summarize_splits(check: DataCheck) -> Dict[str, Dict[str, Any]]:
    """'images', 'total', 'sizes', 'modes' and 'suffixes' of `summarize`."""
    readable = np.array([not summary.error for summary in check.summaries], bool)
    sizes = np.array([(summary.height, summary.width) for summary in check.summaries]).reshape(-1, 2)
    modes = np.array([f'{summary.mode}, {summary.bits} bit' for summary in check.summaries], object)
    found: Dict[str, Dict[str, Any]] = {'images': {}, 'total': {}, 'sizes': {}, 'modes': {}, 'suffixes': {}}
    for s, split in enumerate(check.splits):
        of_split = check.split == s
        numbers = to_indicators(check.target[of_split], len(check.classes)).sum(axis=0)
        found['images'][split] = dict(zip(check.classes, numbers.tolist()))
        found['total'][split] = int(of_split.sum())
        found['suffixes'][split] = dict(
            Counter(split_suffix(check.name[i])[1].lower() for i in np.flatnonzero(of_split)).most_common()
        )
        own = sizes[of_split & readable]
        if len(own):
            found['sizes'][split] = dict(
                smallest=own.min(axis=0).tolist(),
                median=np.median(own, axis=0).tolist(),
                largest=own.max(axis=0).tolist(),
                different=len(np.unique(own, axis=0)),
            )
            names, numbers = np.unique(modes[of_split & readable].astype(str), return_counts=True)
            found['modes'][split] = dict(zip(names.tolist(), numbers.tolist()))
    return found


def _labels_differ(check: DataCheck) -> np.ndarray:
    """Whether the two images of each pair have different labels, (P,) of bool."""
    pairs = check.duplicates.pairs
    differ = check.target[pairs.first] != check.target[pairs.second]
    return differ.any(axis=1) if is_multi_label(check.target) else differ


def _count_leaks(check: DataCheck) -> Dict[str, Dict[str, int]]:
    """'leaks' of `summarize`."""
    leaks = {}
    for a, first in enumerate(check.splits):
        in_first = check.split == a
        for b, second in enumerate(check.splits):
            if a == b:
                continue
            groups = check.group[check.split == b]
            leaks[f'{first} in {second}'] = dict(
                images=int(in_first.sum()),
                pixels=int(check.duplicates.in_split_equal[in_first, b].sum()),
                near=int(check.duplicates.in_split_near[in_first, b].sum()),
                groups=int((in_first & (check.group != '') & np.isin(check.group, groups)).sum()),
            )
    return leaks


def summarize(check: DataCheck) -> Dict[str, Any]:
    """Summary of a data set that can be written as JSON.

    Returns:
        'images' (split -> class -> number), 'total' (split -> number of images), 'unreadable' (name -> reason), 'sizes'
        (split -> smallest, median and largest height and width, and the number of distinct sizes), 'modes' (split ->
        Pillow mode and bits per channel -> number), 'suffixes' (split -> lower-case suffix of the names -> number),
        'dark' (a warning about images that appear nearly black or are blank, or ''), 'changed' (names of images that
        differ from what their table lists), 'pairs' (kind -> number of pairs of duplicates), 'labels_differ' (number of
        pairs with different labels), 'leaks' (pair of splits -> number of images of the first, and how many of them
        have equal pixels, a near-duplicate or their group in the second).
    """
    kind = check.duplicates.kind
    return {
        **_summarize_splits(check),
        'unreadable': {
            name if os.path.isabs(name) else f'{check.splits[s]}: {name}': summary.error
            for name, s, summary in zip(check.name, check.split, check.summaries)
            if summary.error
        },
        'dark': describe_ranges([summary.values for summary in check.summaries], check.name),
        'changed': [check.name[i] for i in np.flatnonzero(check.changed)],
        'pairs': {name: int((kind == i).sum()) for i, name in enumerate(PAIR_KINDS)},
        'labels_differ': int(_labels_differ(check).sum()),
        'leaks': _count_leaks(check),
    }


def list_pairs(check: DataCheck) -> Tuple[List[Dict[str, Any]], np.ndarray]:
    """Pairs of duplicates, at most `MAX_ROWS`: different labels first, then across splits, then the most similar.

    Returns:
        One row per pair, with `PAIR_COLUMNS`, and the indices of the images, (rows, 2).
    """
    pairs, kind = check.duplicates.pairs, check.duplicates.kind
    differ, names = _labels_differ(check), name_targets(check.target, check.classes)
    across = check.split[pairs.first] != check.split[pairs.second]
    order = np.lexsort((pairs.second, pairs.first, -pairs.correlation, kind, ~across, ~differ))[:MAX_ROWS]
    rows = []
    for p in order:
        row = dict(
            kind=list(PAIR_KINDS)[kind[p]],
            correlation=f'{pairs.correlation[p]:.6f}',
            labels_differ=bool(differ[p]),
            across_splits=bool(across[p]),
            cluster=int(check.duplicates.cluster[pairs.first[p]]),
        )
        for side, i in zip(SIDES, (pairs.first[p], pairs.second[p])):
            row.update(
                {
                    f'{side}_path': check.name[i],
                    f'{side}_split': check.splits[check.split[i]],
                    f'{side}_label': names[i],
                }
            )
        rows.append(row)
    return rows, np.stack([pairs.first[order], pairs.second[order]], axis=1)


def _read_by_index(check: DataCheck, i: int) -> Image.Image:
    """The image with this index, RGB."""
    position = i
    for part in check.samples.values():
        if position < len(part):
            return SampleDataset(part).read(position)
        position -= len(part)
    raise IndexError(i)


def _choose_pairs(pairs: Sequence[Dict[str, Any]], number: int) -> List[Dict[str, Any]]:
    """Some pairs of each sort, in their order."""
    seen: Counter = Counter()
    rank = []  # of each pair, within its sort
    for row in pairs:
        key = (row['labels_differ'], row['across_splits'], row['kind'])
        rank.append(seen[key])
        seen[key] += 1
    return [pairs[p] for p in sorted(sorted(range(len(pairs)), key=rank.__getitem__)[:number])]


def _plot_pairs(check: DataCheck, pairs: Sequence[Dict[str, Any]], path: Path) -> None:
    """Write a sheet of pairs of duplicates, rows of `list_pairs` with the 'indices' of their images."""
    try:
        plot_pairs(
            [tuple(_read_by_index(check, i) for i in row['indices']) for row in pairs],
            [
                tuple(f'{row[f"{side}_path"]}\n{row[f"{side}_split"]}: {row[f"{side}_label"]}' for side in SIDES)
                for row in pairs
            ],
            [
                f'{PAIR_KINDS[row["kind"]]}, correlation {row["correlation"][:6]}'
                f'{", labels differ" * row["labels_differ"]}'
                for row in pairs
            ],
            path,
        )
    except ImportError as e:
        _logger.warning(f'No {path.name}: {e}')


def write_check(check: DataCheck, folder: PathLike, sheet_pairs: int = 24) -> None:
    """Write what was found in a data set.

    Files: summary.json, images.csv (one row per image), duplicates.csv (one row per pair, as in `list_pairs`) and, if
    there are pairs and matplotlib is installed, pairs.png, a sheet with some pairs of each sort.

    Args:
        check: The data set.
        folder: Folder to write.
        sheet_pairs: Largest number of pairs on the sheet.

    Raises:
        FileExistsError: if the folder is not empty.
    """
    pairs, indices = list_pairs(check)
    with new_folder(folder) as out:
        write_json(summarize(check), out / 'summary.json')
        write_rows(
            [
                dict(
                    path=name,
                    split=check.splits[s],
                    label=label,
                    group=group,
                    width=summary.width,
                    height=summary.height,
                    mode=summary.mode,
                    bits=summary.bits,
                    cluster=int(cluster),
                    error=summary.error,
                )
                for name, s, label, group, summary, cluster in zip(
                    check.name,
                    check.split,
                    name_targets(check.target, check.classes),
                    check.group,
                    check.summaries,
                    check.duplicates.cluster,
                )
            ],
            out / 'images.csv',
        )
        write_rows(pairs, out / 'duplicates.csv', PAIR_COLUMNS)
        if len(pairs) < len(check.duplicates.kind):
            _logger.warning(
                f'duplicates.csv lists the first {len(pairs):,} of {len(check.duplicates.kind):,} pairs: use a'
                ' --threshold closer to 1 to find fewer.'
            )
        if pairs:
            rows = [dict(row, indices=own) for row, own in zip(pairs, indices.tolist())]
            _plot_pairs(check, _choose_pairs(rows, sheet_pairs), out / 'pairs.png')


def has_leak(summary: Dict[str, Any]) -> bool:
    """Whether any split shares images, near-duplicates or groups with another one."""
    return any(leak[key] for leak in summary['leaks'].values() for key in ('pixels', 'near', 'groups'))


def list_leaks(summary: Dict[str, Any]) -> List[str]:
    """Sentences on what each split shares with each other one."""
    lines = []
    for where, leak in summary['leaks'].items():
        if any(leak[key] for key in ('pixels', 'near', 'groups')):
            a, b = where.split(' in ')
            parts = [
                f'{leak["pixels"]:,} with equal pixels in {b}',
                f'{leak["near"]:,} with a duplicate or near-duplicate',
            ]
            parts += [f'{leak["groups"]:,} with their group in {b}'] if leak['groups'] else []
            share = leak['near'] / leak['images']
            lines.append(f'of {leak["images"]:,} {a} images, {", ".join(parts)} ({share:.1%})')
    return lines


def _format_counts(images: Dict[str, Dict[str, int]], totals: Dict[str, int]) -> List[str]:
    """A table of the number and share of images of each class in each split, and of all in it."""
    labels = list(next(iter(images.values())))
    width = max(len(printable(label)) for label in [*labels, 'class']) + 2
    lines = [f'{"class":<{width}}' + ''.join(f'{split:>16}' for split in images)]
    for label in labels:
        lines.append(
            f'{printable(label):<{width}}'
            + ''.join(
                f'{counts[label]:>8,} {counts[label] / max(totals[split], 1):>6.1%}'.rjust(16)
                for split, counts in images.items()
            )
        )
    return [*lines, f'{"all":<{width}}' + ''.join(f'{total:>8,}'.ljust(15).rjust(16) for total in totals.values())]


def _format_sizes(summary: Dict[str, Any]) -> List[str]:
    """Sizes, modes and suffixes of each split."""
    lines = []
    for split, sizes in summary['sizes'].items():
        modes = ', '.join(f'{number:,} {mode}' for mode, number in summary['modes'][split].items())
        if sizes['different'] == 1:
            size = '{} x {}'.format(*sizes['smallest'])
        else:
            size = '{} x {} to {} x {}, median {:g} x {:g}'.format(
                *sizes['smallest'], *sizes['largest'], *sizes['median']
            )
        lines.append(f'{split}: {size} pixels (height x width); {modes}')
    for split, suffixes in summary['suffixes'].items():
        if len(suffixes) > 1:
            numbers = ', '.join(f'{suffix or "no suffix"} {number:,}' for suffix, number in suffixes.items())
            lines.append(f'{split}: files by suffix: {numbers}')
    return lines


def format_check(summary: Dict[str, Any]) -> str:
    """The result of `summarize` as text for a terminal."""
    lines = [*_format_counts(summary['images'], summary['total']), *_format_sizes(summary)]
    for name, reason in list(summary['unreadable'].items())[:5]:
        lines.append(f"cannot be read: '{name}' ({reason})")
    if len(summary['unreadable']) > 5:
        lines.append(f'... {len(summary["unreadable"])} images cannot be read')
    if summary['dark']:
        lines.append(f'WARNING: {summary["dark"]}')
    if summary['changed']:
        lines.append(
            f'WARNING: {len(summary["changed"]):,} images have changed since they were listed (SHA-256 differs), the'
            f" first is '{summary['changed'][0]}'"
        )
    pairs = summary['pairs']
    lines.append(
        f'pairs of images: {pairs["file"]:,} equal files, {pairs["pixels"]:,} equal pixels in different files,'
        f' {pairs["near"]:,} near-duplicates'
    )
    if summary['labels_differ']:
        lines.append(f'WARNING: {summary["labels_differ"]:,} of these pairs have different labels')
    lines += [f'LEAK: {leak}' for leak in list_leaks(summary)]
    if not has_leak(summary) and len(summary['images']) > 1:
        lines.append('no image, near-duplicate or group is in two splits')
    return '\n'.join(map(printable, lines))  # names may contain line breaks
