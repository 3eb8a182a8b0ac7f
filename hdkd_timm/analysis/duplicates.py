"""Near-duplicates: images whose small grey thumbnails correlate."""
from typing import Iterator, List, NamedTuple, Tuple

import numpy as np
import torch
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

THUMBNAIL_SIZE = 24  # pixels a side, as in published searches for near-duplicates in medical sets
BLOCK = 4096  # rows of the matrix of correlations at a time, 64 MiB of it
_ROUNDING = 1e-5  # of a float32 correlation; what comes so near the threshold is computed again in float64


class Pairs(NamedTuple):
    """Pairs of images by index, first < second.

    Args:
        first, second: Indices, (P,) each.
        correlation: Of their thumbnails, (P,).
    """
    first: np.ndarray
    second: np.ndarray
    correlation: np.ndarray


def make_thumbnail(image: Image.Image, size: int = THUMBNAIL_SIZE) -> np.ndarray:
    """Small grey version of an image, each pixel the mean of the area that it stands for, (size, size), float32."""
    return np.asarray(image.convert('F').resize((size, size), Image.Resampling.BOX), np.float32)


def _normalize(thumbnails: np.ndarray) -> np.ndarray:
    """Rows of mean 0 and length 1, whose products are correlations; zeros where all pixels are equal. (N, D) float64"""
    rows = thumbnails.reshape(len(thumbnails), np.prod(thumbnails.shape[1:])).astype(np.float64)
    rows -= rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    is_flat = length < 1e-3 * rows.shape[1] ** 0.5  # grey levels of 0..255
    return np.divide(rows, length, out=np.zeros_like(rows), where=~is_flat)


def _correlated_blocks(rows: torch.Tensor, threshold: float) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
    """Indices, first < second, of the pairs of rows whose product reaches the threshold, block by block."""
    for i in range(0, len(rows), BLOCK):
        for j in range(i, len(rows), BLOCK):
            is_pair = rows[i:i + BLOCK] @ rows[j:j + BLOCK].T >= threshold
            first, second = (index.numpy() for index in is_pair.nonzero(as_tuple=True))
            first, second = first + i, second + j
            later = first < second
            yield first[later], second[later]


def find_near_pairs(thumbnails: np.ndarray, threshold: float = 0.99, max_pairs: int = 20_000_000) -> Pairs:
    """All pairs of images whose thumbnails correlate by the threshold or more, most alike first.

    Exact: the same pairs as comparing each with each in float64. Time grows with N squared (two cores compare 100,000
    in a minute), memory with N and the number of pairs. Images of one colour correlate with none.

    Args:
        thumbnails: (N, size, size), of grey levels 0..255.
        threshold: Lowest correlation, above 0 and at most 1.
        max_pairs: As many pairs are kept at most.

    Raises:
        ValueError: if the threshold is out of range, or there are more pairs.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f'The threshold must be above 0 and at most 1, got {threshold}.')
    rows = _normalize(np.asarray(thumbnails))
    found: List[Tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    number = 0
    for first, second in _correlated_blocks(torch.from_numpy(rows.astype(np.float32)), threshold - _ROUNDING):
        for part in range(0, len(first), BLOCK):
            i, j = first[part:part + BLOCK], second[part:part + BLOCK]
            correlation = np.einsum('nd,nd->n', rows[i], rows[j])
            keep = correlation >= threshold - 1e-12
            found.append((i[keep], j[keep], correlation[keep]))
            number += int(keep.sum())
        if number > max_pairs:
            raise ValueError(
                f'More than {max_pairs:,} pairs of images correlate by {threshold} or more: take a higher threshold.')
    if not found:
        return Pairs(np.zeros(0, int), np.zeros(0, int), np.zeros(0))
    pairs = Pairs(*(np.concatenate(parts) for parts in zip(*found)))
    order = np.lexsort((pairs.second, pairs.first, -pairs.correlation))
    return Pairs(*(values[order] for values in pairs))


def find_clusters(number: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cluster of each of so many images, (N,): those that pairs connect, over others too, share one."""
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(number, number))
    return connected_components(graph, directed=False)[1]
