"""`hdkd check`: what a data set holds, before anything is trained on it.

Sizes, modes, classes and images that cannot be read; images that are there twice (equal files, equal pixels,
near-duplicates) within and across splits, and groups on both sides of one; a split without any of it.
"""
import copy
import dataclasses
import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
from PIL import Image
from scipy.sparse import coo_array, csr_array, identity

from .config import setting
from .data import FileReader, SampleDataset, Samples, SourceConfig, read_samples
from .duplicates import THUMBNAIL_SIZE, Pairs, find_clusters, find_near_pairs, make_thumbnail
from .images import convert_image, read_image

KINDS = ('file', 'pixels', 'near')  # how much two images are alike: equal files, equal pixels, similar thumbnails


@dataclasses.dataclass
class CheckConfig(SourceConfig):
    """Settings of `check_data`."""
    threshold: float = setting(
        0.99, f'correlation of grey thumbnails of {THUMBNAIL_SIZE} x {THUMBNAIL_SIZE} pixels from which on images are'
        ' near-duplicates', above=0, at_most=1)


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


def _bits(mode: str) -> int:
    return 1 if mode == '1' else 16 if mode.startswith('I;16') else 32 if mode in ('I', 'F') else 8


def _look(image: Image.Image, mode: str, bits: int, file_hash: str = '') -> Look:
    pixels = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
    return Look('', *image.size, mode, bits, file_hash, pixels, make_thumbnail(image))


def _look_at_image(image: Image.Image) -> Look:
    return _look(convert_image(image), image.mode, _bits(image.mode))


def _look_at_file(file: BinaryIO, name: str) -> Look:
    data = file.read()
    image = read_image(io.BytesIO(data), name=name)
    if name.lower().endswith('.dcm'):
        import pydicom
        mode, bits = 'DICOM', pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True).BitsStored
    else:
        with Image.open(io.BytesIO(data)) as opened:
            mode, bits = opened.mode, _bits(opened.mode)
    return _look(image, mode, bits, hashlib.sha256(data).hexdigest())


def look_at_images(samples: Samples) -> List[Look]:
    """Read each image once."""
    is_files = isinstance(samples.reader, FileReader)
    dataset = SampleDataset(samples if is_files else dataclasses.replace(samples, reader=copy.deepcopy(samples.reader)))

    def look(i: int) -> Look:
        try:
            return dataset.open(i, _look_at_image, _look_at_file)
        except ValueError as e:
            return Look(error=f'{type(e.__cause__).__name__}: {e.__cause__}')

    if not is_files:  # other readers are no more than one reader's
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


def check_data(config: CheckConfig) -> DataCheck:
    """Look at all images of a data set.

    Raises:
        FileNotFoundError, ValueError: as `read_samples` and `find_duplicates`.
    """
    samples, classes = read_samples(config)
    splits = list(samples)
    looks = [look for part in samples.values() for look in look_at_images(part)]
    split = np.repeat(np.arange(len(splits)), [len(part) for part in samples.values()])
    group = [[''] * len(part) if part.groups is None else part.groups.astype(str) for part in samples.values()]
    return DataCheck(
        samples, classes, splits, looks, split, np.concatenate([part.targets for part in samples.values()]),
        [name for part in samples.values() for name in part.filenames()], np.concatenate(group).astype(object),
        find_duplicates(looks, split, config.threshold))


def _shared_groups(check: DataCheck, a: int, b: int) -> np.ndarray:
    """Mask of the images of split a whose group has images in split b, too. (N,)"""
    return (check.split == a) & (check.group != '') & np.isin(check.group, check.group[check.split == b])


def summarize(check: DataCheck) -> Dict[str, Any]:
    """Numbers of a data set that JSON can hold.

    Returns:
        'images' (split -> class -> number), 'unreadable' (name -> reason), 'sizes' (split -> smallest, median and
        largest height and width, and how many different ones), 'modes' (split -> Pillow's mode and bits a channel ->
        number), 'pairs' (kind -> number), 'labels_differ' (pairs of images that are alike with different labels),
        'leaks' (pair of splits -> how many images of the first have a twin in the second).
    """
    readable = np.array([not look.error for look in check.looks], bool)
    sizes = np.array([(look.height, look.width) for look in check.looks]).reshape(-1, 2)
    modes = np.array([f'{look.mode}, {look.bits} bit' for look in check.looks], object)
    pairs, kind = check.duplicates.pairs, check.duplicates.kind
    differ = check.target[pairs.first] != check.target[pairs.second]
    summary: Dict[str, Any] = {'images': {}, 'unreadable': {
        name: look.error for name, look in zip(check.name, check.looks) if look.error}, 'sizes': {}, 'modes': {}}
    for s, split in enumerate(check.splits):
        of_split = check.split == s
        summary['images'][split] = {
            label: int((check.target[of_split] == k).sum()) for k, label in enumerate(check.classes)}
        found = sizes[of_split & readable]
        if len(found):
            summary['sizes'][split] = dict(
                smallest=found.min(axis=0).tolist(), median=np.median(found, axis=0).tolist(),
                largest=found.max(axis=0).tolist(), different=len(np.unique(found, axis=0)))
            summary['modes'][split] = {
                str(mode): int(n) for mode, n in zip(*np.unique(modes[of_split & readable].astype(str),
                                                                return_counts=True))}
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


def list_pairs(check: DataCheck) -> List[Dict[str, Any]]:
    """Pairs of images that are alike, a row each: those with different labels first, then those across splits, then by
    how much they are alike."""
    pairs, kind = check.duplicates.pairs, check.duplicates.kind
    differ = check.target[pairs.first] != check.target[pairs.second]
    across = check.split[pairs.first] != check.split[pairs.second]
    rows = []
    for p in np.lexsort((pairs.second, pairs.first, -pairs.correlation, kind, ~across, ~differ)):
        row = dict(
            kind=KINDS[kind[p]], correlation=f'{pairs.correlation[p]:.6f}', labels_differ=bool(differ[p]),
            across_splits=bool(across[p]), cluster=int(check.duplicates.cluster[pairs.first[p]]))
        for side, i in (('first', pairs.first[p]), ('second', pairs.second[p])):
            row.update({
                f'{side}_path': check.name[i], f'{side}_split': check.splits[check.split[i]],
                f'{side}_label': check.classes[check.target[i]]})
        rows.append(row)
    return rows


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
        fits = (missing >= members[unit]).all(axis=1)
        room = missing.clip(0)[:, members[unit] > 0].sum(axis=1) * fits
        if fits.any():
            chosen[unit] = rng.choice(len(room), p=room / room.sum())
        else:
            chosen[unit] = missing.sum(axis=1).argmax()
        missing[chosen[unit]] -= members[unit]
    return chosen[units], units
