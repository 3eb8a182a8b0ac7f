"""`hdkd check`: what a data set holds, before anything is trained on it.

Sizes, modes, classes and images that cannot be read; images that are there twice (equal files, equal pixels,
near-duplicates) within and across splits, and groups on both sides of one; a split without any of it.
"""
import dataclasses
import hashlib
import logging
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
from PIL import Image
from scipy.sparse import coo_array, csr_array, identity

from ..data.image_io import describe_ranges, hash_file, read_with_values
from ..data.pixels import MemoryBudget, Reserve, StoredValues
from ..data.samples import (
    SPLITS,
    FileReader,
    SampleDataset,
    Samples,
    SourceConfig,
    SplitNotFoundError,
    find_changed,
    read_samples,
)
from ..data.sources.tars import TarReader
from ..evaluation.plots import plot_pairs
from ..utils.config import check_values, setting
from ..utils.files import PathLike, new_folder, write_json, write_rows
from ..utils.memory import available_memory
from ..utils.text import printable
from .duplicates import THUMBNAIL_SIZE, Pairs, find_clusters, find_near_pairs, make_thumbnail

_logger = logging.getLogger(__name__)

SIDES = ('first', 'second')
PAIR_COLUMNS = ('kind', 'correlation', 'labels_differ', 'across_splits', 'cluster', *(
    f'{side}_{key}' for side in SIDES for key in ('path', 'split', 'label')))
MAX_ROWS = 200_000  # of duplicates.csv
KINDS = {'file': 'equal files', 'pixels': 'equal pixels', 'near': 'near-duplicates'}  # how two images are alike


@dataclasses.dataclass
class CheckConfig(SourceConfig):
    """Settings of `check_data`."""
    threshold: float = setting(
        0.99, 'minimum correlation of near-duplicates, between grey thumbnails of'
        f' {THUMBNAIL_SIZE} x {THUMBNAIL_SIZE} pixels', above=0, at_most=1, group='duplicates', common=True)

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range; names the flag, the value and the range."""
        check_values(self)


class Look(NamedTuple):
    """What one reading tells of an image; only `error` of one that cannot be read."""
    error: str = ''
    width: int = 0
    height: int = 0
    mode: str = ''  # Pillow's, or 'DICOM'
    bits: int = 0  # a channel
    file_hash: str = ''  # of its bytes, none where a dataset gives decoded images
    pixel_hash: str = ''  # of what a person sees, RGB
    thumbnail: Optional[np.ndarray] = None
    values: Optional[StoredValues] = None


def _look(image: Image.Image, values: StoredValues, file_hash: str = '') -> Look:
    pixels = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
    return Look('', *image.size, values.mode, values.bits, file_hash, pixels, make_thumbnail(image), values)


def _look_at_image(image: Image.Image) -> Look:
    return _look(*read_with_values(image))


def _look_at_file(file: BinaryIO, name: str, reserve: Reserve = nullcontext) -> Look:
    _, file_hash = hash_file(file)
    return _look(*read_with_values(file, name=name, reserve=reserve), file_hash)


def look_at_images(samples: Samples) -> List[Look]:
    """Read each image once."""
    dataset = SampleDataset(samples)
    look_at_file = partial(_look_at_file, reserve=MemoryBudget(available_memory() // 2).reserve)

    def look(i: int) -> Look:
        try:
            return dataset.open(i, _look_at_image, look_at_file)
        except ValueError as e:
            return Look(error=f'{type(e.__cause__).__name__}: {e.__cause__}')

    if not isinstance(samples.reader, (FileReader, TarReader)):  # others are not for several threads
        return [look(i) for i in range(len(samples))]
    with ThreadPoolExecutor() as pool:
        return list(pool.map(look, range(len(samples))))


class Duplicates(NamedTuple):
    """Images that are there twice. Of equal ones, each is paired with the first of them.

    Args:
        pairs: Images by index, and the correlation of their thumbnails (1 of equal ones).
        kind: Index into `KINDS` of each pair, (P,).
        cluster: Cluster of each image, (N,): those that pairs connect, over others too, share one.
        pixel_twins: Has an image one with equal pixels in each of the splits? (N, S)
        near_twins: Has an image a duplicate of any kind in each of the splits? (N, S)
    """
    pairs: Pairs
    kind: np.ndarray
    cluster: np.ndarray
    pixel_twins: np.ndarray
    near_twins: np.ndarray


def _first_of_equal(values: List[str]) -> np.ndarray:
    """Index of the first of those that are equal, (N,); an empty one equals none."""
    first: Dict[str, int] = {}
    return np.array([first.setdefault(value, i) if value else i for i, value in enumerate(values)], int)


def find_duplicates(looks: List[Look], splits: np.ndarray, threshold: float = 0.99) -> Duplicates:
    """Equal files, equal pixels and near-duplicates among images.

    Args:
        looks: Of `look_at_images`, (N,).
        splits: Index of each image's split, (N,).
        threshold: Lowest correlation of near-duplicates.

    Raises:
        ValueError: as `find_near_pairs`.
    """
    number = len(looks)
    by_file = _first_of_equal([look.file_hash for look in looks])
    by_pixels = _first_of_equal([look.pixel_hash for look in looks])
    # of images with equal pixels the first is compared with others
    chosen = np.array([i for i in range(number) if by_pixels[i] == i and looks[i].thumbnail is not None], int)
    thumbnails = np.array([looks[i].thumbnail for i in chosen]).reshape(-1, THUMBNAIL_SIZE, THUMBNAIL_SIZE)
    near = find_near_pairs(thumbnails, threshold)
    near = Pairs(chosen[near.first], chosen[near.second], near.correlation)

    again = np.flatnonzero(by_pixels != np.arange(number))
    is_file = by_file[again] != again
    first = np.where(is_file, by_file[again], by_pixels[again])
    pairs = Pairs(
        np.concatenate([first, near.first]), np.concatenate([again, near.second]),
        np.concatenate([np.ones(len(again)), near.correlation]))
    kind = np.concatenate([np.where(is_file, 0, 1), np.full(len(near.first), 2)])

    # which splits hold an image with these pixels, and its near-duplicates; one is not its own twin
    present = coo_array((np.ones(number, int), (by_pixels, splits)), shape=(number, splits.max(initial=0) + 1)).tocsr()
    graph = coo_array((np.ones(len(near.first), int), (near.first, near.second)), shape=(number, number)).tocsr()
    around = csr_array(identity(number, int, format='csr')) + graph + graph.T
    own = np.zeros(present.shape, int)
    own[np.arange(number), splits] = 1
    pixel_twins = present.toarray()[by_pixels] - own > 0
    near_twins = (around @ present).toarray()[by_pixels] - own > 0
    return Duplicates(pairs, kind, find_clusters(number, pairs.first, pairs.second), pixel_twins, near_twins)


class DataCheck(NamedTuple):
    """A data set that was looked at.

    Args:
        samples: Split -> samples.
        classes: Class names by index.
        splits: Names of the splits.
        looks, split, target: Of each image, (N,); its split and class by index.
        name: Name, the path of those that are files, (N,).
        group: Group, '' where there is none, (N,).
        duplicates: Images that are there twice.
        changed: Is an image not as its table lists it (size or SHA-256)? (N,)
    """
    samples: Dict[str, Samples]
    classes: List[str]
    splits: List[str]
    looks: List[Look]
    split: np.ndarray
    target: np.ndarray
    name: List[str]
    group: np.ndarray
    duplicates: Duplicates
    changed: np.ndarray


def _refuse_missing_files(samples: Dict[str, Samples], config: CheckConfig) -> None:
    """Raises ValueError if none of the images of a table exist: a folder is wrong then, and not each of the images."""
    files = [part.filename(i) for part in samples.values() for i in range(len(part))]
    if not any(map(os.path.lexists, files)):
        root = config.data_dir or os.path.dirname(config.data_csv) or '.'
        raise ValueError(
            f"None of the {len(files):,} images of '{config.data_csv}' can be found, the first is '{files[0]}':"
            f" its paths are relative to '{root}', name another folder with --data-dir.")


def _read_some(config: CheckConfig) -> Tuple[Dict[str, Samples], List[str]]:
    """As `read_samples`, also of a folder with one split, or of class folders that were not split yet ('train')."""
    try:
        return read_samples(config)
    except SplitNotFoundError:
        if config.data_csv or config.dataset:
            raise
        there = {entry.name.lower().removesuffix('.tar') for entry in os.scandir(config.data_dir)}
        splits = [split for split, names in SPLITS.items() if there.intersection(names)]
        if len(splits) > 1:
            raise
        return read_samples(config, *(splits or ['train']))


def check_data(config: CheckConfig, only_files: bool = False) -> DataCheck:
    """Look at all images of a data set.

    Args:
        config: Where they are.
        only_files: Refuse images that are no files, before the first is read: `write_split` wants files.

    Raises:
        FileNotFoundError, ValueError: as `read_samples` and `find_duplicates`.
    """
    samples, classes = _read_some(config)
    if only_files:
        _refuse_others_than_files(samples)
    if config.data_csv:
        _refuse_missing_files(samples, config)
    splits = list(samples)
    looks, changed = [], []
    for part in samples.values():
        found = look_at_images(part)
        contents = np.array([('', look.file_hash) for look in found], object).reshape(-1, 2)
        changed.append(find_changed(dataclasses.replace(part, contents=contents)))
        looks += found
    split = np.repeat(np.arange(len(splits)), [len(part) for part in samples.values()])
    group = [[''] * len(part) if part.groups is None else part.groups.astype(str) for part in samples.values()]
    return DataCheck(
        samples, classes, splits, looks, split, np.concatenate([part.targets for part in samples.values()]),
        [name for part in samples.values() for name in part.filenames()], np.concatenate(group).astype(object),
        find_duplicates(looks, split, config.threshold), np.concatenate(changed))


def _shared_groups(check: DataCheck, a: int, b: int) -> np.ndarray:
    """Mask of the images of split a whose group has images in split b, too. (N,)"""
    return (check.split == a) & (check.group != '') & np.isin(check.group, check.group[check.split == b])


def summarize(check: DataCheck) -> Dict[str, Any]:
    """Numbers of a data set that JSON can hold.

    Returns:
        'images' (split -> class -> number), 'unreadable' (name -> reason), 'sizes' (split -> smallest, median and
        largest height and width, and how many different ones), 'modes' (split -> Pillow's mode and bits a channel ->
        number), 'suffixes' (split -> suffix of the names in lower case -> number), 'dark' (a warning of images that are
        read nearly black, or ''), 'changed' (names of images that are not as their table lists them), 'pairs' (kind ->
        number), 'labels_differ' (pairs of images that are alike with different labels), 'leaks' (pair of splits -> how
        many images of the first have a twin in the second).
    """
    readable = np.array([not look.error for look in check.looks], bool)
    sizes = np.array([(look.height, look.width) for look in check.looks]).reshape(-1, 2)
    modes = np.array([f'{look.mode}, {look.bits} bit' for look in check.looks], object)
    pairs, kind = check.duplicates.pairs, check.duplicates.kind
    differ = check.target[pairs.first] != check.target[pairs.second]
    summary: Dict[str, Any] = {'images': {}, 'unreadable': {
        name if os.path.isabs(name) else f'{check.splits[s]}: {name}': look.error
        for name, s, look in zip(check.name, check.split, check.looks) if look.error}, 'sizes': {}, 'modes': {},
        'suffixes': {}}
    for s, split in enumerate(check.splits):
        of_split = check.split == s
        summary['images'][split] = {
            label: int((check.target[of_split] == k).sum()) for k, label in enumerate(check.classes)}
        summary['suffixes'][split] = dict(Counter(
            os.path.splitext(check.name[i])[1].lower() for i in np.flatnonzero(of_split)).most_common())
        found = sizes[of_split & readable]
        if len(found):
            summary['sizes'][split] = dict(
                smallest=found.min(axis=0).tolist(), median=np.median(found, axis=0).tolist(),
                largest=found.max(axis=0).tolist(), different=len(np.unique(found, axis=0)))
            summary['modes'][split] = {
                str(mode): int(n) for mode, n in zip(*np.unique(modes[of_split & readable].astype(str),
                                                                return_counts=True))}
    summary['dark'] = describe_ranges([look.values for look in check.looks], check.name)
    summary['changed'] = [check.name[i] for i in np.flatnonzero(check.changed)]
    summary['pairs'] = {name: int((kind == i).sum()) for i, name in enumerate(KINDS)}
    summary['labels_differ'] = int(differ.sum())
    summary['leaks'] = {}
    for a, b in [(a, b) for a in range(len(check.splits)) for b in range(len(check.splits)) if a != b]:
        of_split = check.split == a
        summary['leaks'][f'{check.splits[a]} in {check.splits[b]}'] = dict(
            images=int(of_split.sum()),
            pixels=int(check.duplicates.pixel_twins[of_split, b].sum()),
            near=int(check.duplicates.near_twins[of_split, b].sum()),
            groups=int(_shared_groups(check, a, b).sum()))
    return summary


def list_pairs(check: DataCheck) -> Tuple[List[Dict[str, Any]], np.ndarray]:
    """Pairs of images that are alike, a row each: those with different labels first, then those across splits, then by
    how much they are alike; `MAX_ROWS` at most. And the indices of their images, (rows, 2)."""
    pairs, kind = check.duplicates.pairs, check.duplicates.kind
    differ = check.target[pairs.first] != check.target[pairs.second]
    across = check.split[pairs.first] != check.split[pairs.second]
    order = np.lexsort((pairs.second, pairs.first, -pairs.correlation, kind, ~across, ~differ))[:MAX_ROWS]
    rows = []
    for p in order:
        row = dict(
            kind=list(KINDS)[kind[p]], correlation=f'{pairs.correlation[p]:.6f}', labels_differ=bool(differ[p]),
            across_splits=bool(across[p]), cluster=int(check.duplicates.cluster[pairs.first[p]]))
        for side, i in zip(SIDES, (pairs.first[p], pairs.second[p])):
            row.update({
                f'{side}_path': check.name[i], f'{side}_split': check.splits[check.split[i]],
                f'{side}_label': check.classes[check.target[i]]})
        rows.append(row)
    return rows, np.stack([pairs.first[order], pairs.second[order]], axis=1)


def draw_split(check: DataCheck, seed: int = 42) -> Tuple[np.ndarray, np.ndarray]:
    """A split with no cluster and no group on two sides, of the same sizes per class as far as these allow.

    Returns:
        Index of the new split of each image, and the unit (cluster, with all that its groups connect) that it belongs
        to, (N,) each.
    """
    groups = _first_of_equal(list(check.group))
    joined = np.flatnonzero(groups != np.arange(len(groups)))
    pairs = check.duplicates.pairs
    units = find_clusters(
        len(groups), np.concatenate([pairs.first, groups[joined]]), np.concatenate([pairs.second, joined]))
    members = np.zeros((units.max(initial=-1) + 1, len(check.classes)), int)
    np.add.at(members, (units, check.target), 1)
    missing = np.zeros((len(check.splits), len(check.classes)), int)
    np.add.at(missing, (check.split, check.target), 1)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(members))
    chosen = np.zeros(len(members), int)
    for unit in order[np.argsort(-members[order].sum(axis=1), kind='stable')]:  # the large ones first
        own = members[unit] > 0
        left = missing[:, own] - members[unit, own]
        fits = (left >= 0).all(axis=1)
        if fits.any():
            room = missing[:, own].sum(axis=1) * fits
            chosen[unit] = rng.choice(len(room), p=room / room.sum())
        else:
            chosen[unit] = (-left.clip(max=0)).sum(axis=1).argmin()  # the least too many
        missing[chosen[unit]] -= members[unit]
    return chosen[units], units


def _read_by_index(check: DataCheck, i: int) -> Image.Image:
    """The image of this index, RGB."""
    position = i
    for part in check.samples.values():
        if position < len(part):
            return SampleDataset(part).read(position)
        position -= len(part)
    raise IndexError(i)


def _choose_pairs(pairs: List[Dict[str, Any]], number: int) -> List[int]:
    """Indices of some pairs of each sort, in their order."""
    sorts: Dict[Tuple[Any, ...], int] = {}
    turn = []  # of each pair, which of its sort it is
    for row in pairs:
        key = (row['labels_differ'], row['across_splits'], row['kind'])
        sorts[key] = sorts.get(key, -1) + 1
        turn.append(sorts[key])
    return sorted(sorted(range(len(pairs)), key=turn.__getitem__)[:number])


def write_check(check: DataCheck, folder: PathLike, sheet_pairs: int = 24) -> None:
    """Write summary.json, images.csv (a row an image), duplicates.csv (a row a pair, as `list_pairs`) and, if there are
    any, pairs.png, a sheet of some of each sort.

    Without matplotlib there is no sheet.

    Raises:
        FileExistsError: if the folder holds something.
    """
    pairs, indices = list_pairs(check)
    with new_folder(folder) as out:
        write_json(summarize(check), out / 'summary.json')
        write_rows([dict(
            path=name, split=check.splits[s], label=check.classes[k], group=group, width=look.width, height=look.height,
            mode=look.mode, bits=look.bits, cluster=int(cluster), error=look.error)
            for name, s, k, group, look, cluster in zip(
                check.name, check.split, check.target, check.group, check.looks, check.duplicates.cluster)],
            out / 'images.csv')
        write_rows(pairs, out / 'duplicates.csv', PAIR_COLUMNS)
        if len(pairs) < len(check.duplicates.kind):
            _logger.warning(
                f'duplicates.csv lists the first {len(pairs):,} of {len(check.duplicates.kind):,} pairs: a --threshold'
                ' nearer to 1 finds fewer.')
        if pairs:
            shown = _choose_pairs(pairs, sheet_pairs)
            try:
                plot_pairs(
                    [tuple(_read_by_index(check, i) for i in indices[p]) for p in shown],
                    [tuple(f"{row[f'{side}_path']}\n{row[f'{side}_split']}: {row[f'{side}_label']}" for side in SIDES)
                     for row in (pairs[p] for p in shown)],
                    [f"{KINDS[row['kind']]}, correlation {row['correlation'][:6]}"
                     f"{', labels differ' * row['labels_differ']}" for row in (pairs[p] for p in shown)],
                    out / 'pairs.png')
            except ImportError as e:
                _logger.warning(f'No pairs.png: {e}')


def _refuse_others_than_files(samples: Dict[str, Samples]) -> None:
    if not all(isinstance(part.reader, FileReader) for part in samples.values()):
        raise ValueError('--write-split is for image files, it lists their paths: these images have none.')


def write_split(check: DataCheck, path: PathLike, seed: int = 42) -> Dict[str, Dict[str, int]]:
    """Write a CSV file for --data-csv with the split of `draw_split`, paths relative to it, and its units as groups.

    Returns:
        Split -> class -> number of images.

    Raises:
        FileExistsError: if there is such a file.
        ValueError: if the images are not files, or a class would be missing in a split.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"'{path}' exists already: choose another --write-split, nothing is overwritten.")
    _refuse_others_than_files(check.samples)
    split, units = draw_split(check, seed)
    kept = np.flatnonzero([not look.error for look in check.looks])
    for k, label in enumerate(check.classes):
        lacking = [name for s, name in enumerate(check.splits) if not ((split == s) & (check.target == k))[kept].any()]
        if lacking:
            of_class = kept[check.target[kept] == k]
            raise ValueError(
                f"There is no split without leaks that has class '{label}' in {' and '.join(lacking)}, too: its"
                f' {len(of_class)} readable images are {len(set(units[of_class]))} clusters. Add images of it, leave'
                ' the class out, or try another --seed.')
    base = os.path.realpath(path.parent)
    write_rows([dict(
        path=os.path.relpath(os.path.realpath(check.name[i]), base), label=check.classes[check.target[i]],
        split=check.splits[split[i]], group=int(units[i])) for i in kept], path)
    return {name: {
        label: int((check.target[kept][split[kept] == s] == k).sum()) for k, label in enumerate(check.classes)}
        for s, name in enumerate(check.splits)}


def has_leak(summary: Dict[str, Any]) -> bool:
    """Does any split share images, near-duplicates or groups with another?"""
    return any(leak[key] for leak in summary['leaks'].values() for key in ('pixels', 'near', 'groups'))


def list_leaks(summary: Dict[str, Any]) -> List[str]:
    """What each split shares with each other one, in words."""
    lines = []
    for where, leak in summary['leaks'].items():
        if any(leak[key] for key in ('pixels', 'near', 'groups')):
            a, b = where.split(' in ')
            parts = [
                f"{leak['pixels']:,} with equal pixels in {b}", f"{leak['near']:,} with a near-duplicate or equal"]
            parts += [f"{leak['groups']:,} of a group that is in {b}, too"] if leak['groups'] else []
            share = leak['near'] / leak['images']
            lines.append(f"of {leak['images']:,} {a} images {', '.join(parts)} ({share:.1%})")
    return lines


def format_check(summary: Dict[str, Any]) -> str:
    """The summary as a text for a terminal."""
    labels = list(next(iter(summary['images'].values())))
    width = max(len(printable(label)) for label in [*labels, 'class']) + 2
    lines = [f"{'class':<{width}}" + ''.join(f'{split:>16}' for split in summary['images'])]
    totals = {split: sum(counts.values()) for split, counts in summary['images'].items()}
    for label in labels:
        lines.append(f'{printable(label):<{width}}' + ''.join(
            f'{counts[label]:>8,} {counts[label] / max(totals[split], 1):>6.1%}'.rjust(16)
            for split, counts in summary['images'].items()))
    lines.append(f"{'all':<{width}}" + ''.join(f'{total:>8,}'.ljust(15).rjust(16) for total in totals.values()))
    for split, sizes in summary['sizes'].items():
        modes = ', '.join(f'{number:,} {mode}' for mode, number in summary['modes'][split].items())
        if sizes['different'] == 1:
            size = '{} x {}'.format(*sizes['smallest'])
        else:
            size = '{} x {} to {} x {}, median {:g} x {:g}'.format(
                *sizes['smallest'], *sizes['largest'], *sizes['median'])
        lines.append(f'{split}: {size} pixels (height x width); {modes}')
    for split, suffixes in summary['suffixes'].items():
        if len(suffixes) > 1:
            told = ', '.join(f"{suffix or 'no suffix'} {number:,}" for suffix, number in suffixes.items())
            lines.append(f'{split}: files by suffix: {told}')
    for name, reason in list(summary['unreadable'].items())[:5]:
        lines.append(f"cannot be read: '{name}' ({reason})")
    if len(summary['unreadable']) > 5:
        lines.append(f"... {len(summary['unreadable'])} images cannot be read")
    if summary['dark']:
        lines.append(f"WARNING: {summary['dark']}")
    if summary['changed']:
        lines.append(
            f"WARNING: {len(summary['changed']):,} images have changed since they were listed (SHA-256 differs), the"
            f" first is '{summary['changed'][0]}'")
    found = summary['pairs']
    lines.append(
        f"pairs of images: {found['file']:,} equal files, {found['pixels']:,} equal pixels in other files,"
        f" {found['near']:,} near-duplicates")
    if summary['labels_differ']:
        lines.append(f"WARNING: {summary['labels_differ']:,} of these pairs have different labels")
    lines += [f'LEAK: {leak}' for leak in list_leaks(summary)]
    if not has_leak(summary) and len(totals) > 1:
        lines.append('no image, near-duplicate or group in two splits')
    return '\n'.join(map(printable, lines))  # names may hold line breaks
