"""Duplicates among images: equal files, equal pixels, and near-duplicates, whose small grey thumbnails correlate."""

from typing import Dict, Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
from PIL import Image
from scipy.sparse import coo_array, csr_array, identity
from scipy.sparse.csgraph import connected_components

THUMBNAIL_SIZE = 24  # height and width in pixels, as in published searches for near-duplicates in medical data sets
BLOCK = 4096  # rows per block of the correlation matrix; a block has 64 MiB
PAIR_KINDS = {'file': 'equal files', 'pixels': 'equal pixels', 'near': 'near-duplicates'}
_ROUNDING = 1e-5  # error of a float32 correlation; closer to the threshold than this, it is computed again in float64


class Pairs(NamedTuple):
    """Pairs of images by index, first < second.

    Args:
        first, second: Indices, (P,) each.
        correlation: Correlation of their thumbnails, (P,).
    """

    first: np.ndarray
    second: np.ndarray
    correlation: np.ndarray


def make_thumbnail(image: Image.Image, size: int = THUMBNAIL_SIZE) -> np.ndarray:
    """Small grey version of an image, (size, size), float32; each pixel is the mean of the area that it covers."""
    return np.asarray(image.convert('F').resize((size, size), Image.Resampling.BOX), np.float32)


def _normalize(thumbnails: np.ndarray) -> np.ndarray:
    """Rows (N, D), float64, with mean 0 and norm 1, whose products are correlations; zeros for constant images."""
    rows = thumbnails.reshape(len(thumbnails), np.prod(thumbnails.shape[1:])).astype(np.float64)
    rows -= rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    is_constant = norms < 1e-3 * rows.shape[1] ** 0.5  # grey levels of 0..255
    return np.divide(rows, norms, out=np.zeros_like(rows), where=~is_constant)


def _correlated_blocks(rows: torch.Tensor, threshold: float) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
    """Indices, first < second, of the pairs of rows whose product is at least the threshold, block by block."""
    for i in range(0, len(rows), BLOCK):
        for j in range(i, len(rows), BLOCK):
            is_pair = rows[i : i + BLOCK] @ rows[j : j + BLOCK].T >= threshold
            first, second = (index.numpy() for index in is_pair.nonzero(as_tuple=True))
            first, second = first + i, second + j
            is_ordered = first < second
            yield first[is_ordered], second[is_ordered]


def find_near_pairs(thumbnails: np.ndarray, threshold: float = 0.99, max_pairs: int = 20_000_000) -> Pairs:
    """All pairs of images whose thumbnails have at least the given correlation, the most similar first.

    Exact: the same pairs as in a float64 comparison of all with all. Time grows with N squared (two cores compare
    100,000 images in a minute), memory with N and the number of pairs. Constant images correlate with none.

    Args:
        thumbnails: (N, size, size), grey levels 0..255.
        threshold: Lowest correlation, above 0 and at most 1.
        max_pairs: Largest number of pairs.

    Raises:
        ValueError: if the threshold is out of range, or there are more pairs.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f'The threshold must be above 0 and at most 1, got {threshold}.')
    rows = _normalize(np.asarray(thumbnails))
    found: List[Tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    number = 0
    for first, second in _correlated_blocks(torch.from_numpy(rows.astype(np.float32)), threshold - _ROUNDING):
        for start in range(0, len(first), BLOCK):
            i, j = first[start : start + BLOCK], second[start : start + BLOCK]
            correlation = np.einsum('nd,nd->n', rows[i], rows[j])
            keep = correlation >= threshold - 1e-12
            found.append((i[keep], j[keep], correlation[keep]))
            number += int(keep.sum())
        if number > max_pairs:
            raise ValueError(
                f'More than {max_pairs:,} pairs of images have a correlation of at least {threshold}: use a higher'
                ' threshold.'
            )
    if not found:
        return Pairs(np.zeros(0, int), np.zeros(0, int), np.zeros(0))
    pairs = Pairs(*(np.concatenate(parts) for parts in zip(*found)))
    order = np.lexsort((pairs.second, pairs.first, -pairs.correlation))
    return Pairs(*(values[order] for values in pairs))


def find_clusters(number: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cluster index of each of `number` images, (N,): connected components of the pairs."""
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(number, number))
    return connected_components(graph, directed=False)[1]


class Duplicates(NamedTuple):
    """Duplicates among N images in S splits. Equal images are paired with the first of them.

    Args:
        pairs: Pairs of images, with the correlation of their thumbnails (1 for equal ones).
        kind: Index into `PAIR_KINDS` of each pair, (P,).
        cluster: Cluster index of each image, (N,): connected components of the pairs.
        in_split_equal: Whether an image has one with equal pixels in each split, (N, S).
        in_split_near: Whether an image has a duplicate of any kind in each split, (N, S).
    """

    pairs: Pairs
    kind: np.ndarray
    cluster: np.ndarray
    in_split_equal: np.ndarray
    in_split_near: np.ndarray


def first_occurrences(values: Sequence[str]) -> np.ndarray:
    """Index of the first occurrence of each value, (N,); an empty value is its own."""
    first: Dict[str, int] = {}
    return np.array([first.setdefault(value, i) if value else i for i, value in enumerate(values)], int)


def find_duplicates(
    file_hashes: Sequence[str],
    pixel_hashes: Sequence[str],
    thumbnails: Sequence[np.ndarray],
    splits: np.ndarray,
    threshold: float = 0.99,
) -> Duplicates:
    """Equal files, equal pixels and near-duplicates among images.

    Args:
        file_hashes: Hash of each file, (N,); '' if unknown.
        pixel_hashes: Hash of the pixels of each image, (N,); '' if it cannot be read.
        thumbnails: Thumbnail of each image, (N,); None if it cannot be read.
        splits: Split index of each image, (N,).
        threshold: Lowest correlation of near-duplicates.

    Raises:
        ValueError: as `find_near_pairs`.
    """
    number = len(file_hashes)
    by_file, by_pixels = first_occurrences(file_hashes), first_occurrences(pixel_hashes)
    # of images with equal pixels, only the first is compared with others
    chosen = np.array([i for i in range(number) if by_pixels[i] == i and thumbnails[i] is not None], int)
    near = find_near_pairs(
        np.array([thumbnails[i] for i in chosen]).reshape(-1, THUMBNAIL_SIZE, THUMBNAIL_SIZE), threshold
    )
    near = Pairs(chosen[near.first], chosen[near.second], near.correlation)

    copies = np.flatnonzero(by_pixels != np.arange(number))
    is_file = by_file[copies] != copies
    pairs = Pairs(
        np.concatenate([np.where(is_file, by_file[copies], by_pixels[copies]), near.first]),
        np.concatenate([copies, near.second]),
        np.concatenate([np.ones(len(copies)), near.correlation]),
    )
    kind = np.concatenate([np.where(is_file, 0, 1), np.full(len(near.first), 2)])

    # splits that contain an image with these pixels, and near-duplicates of it; an image is not its own duplicate
    present = coo_array((np.ones(number, int), (by_pixels, splits)), shape=(number, splits.max(initial=0) + 1)).tocsr()
    graph = coo_array((np.ones(len(near.first), int), (near.first, near.second)), shape=(number, number)).tocsr()
    neighbours = csr_array(identity(number, int, format='csr')) + graph + graph.T
    own = np.zeros(present.shape, int)
    own[np.arange(number), splits] = 1
    return Duplicates(
        pairs,
        kind,
        find_clusters(number, pairs.first, pairs.second),
        in_split_equal=present.toarray()[by_pixels] - own > 0,
        in_split_near=(neighbours @ present).toarray()[by_pixels] - own > 0,
    )
