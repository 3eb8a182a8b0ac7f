"""Near-duplicates against a brute-force comparison."""

import numpy as np
import pytest
from PIL import Image

from hdkd_timm.analysis import duplicates
from hdkd_timm.analysis.duplicates import find_clusters, find_near_pairs, make_thumbnail


def brute_force(thumbnails, threshold):
    correlations = np.corrcoef(thumbnails.reshape(len(thumbnails), -1).astype(np.float64))
    return {(i, j) for i, j in zip(*np.nonzero(correlations >= threshold)) if i < j}


@pytest.mark.parametrize('block', [7, 64, 4096])
def test_pairs_are_those_of_brute_force(block, monkeypatch):
    monkeypatch.setattr(duplicates, 'BLOCK', block)
    rng = np.random.default_rng(0)
    base = rng.uniform(0, 255, (40, 8, 8))
    thumbnails = np.concatenate([base, base + rng.normal(0, 20, base.shape), base[:9] * 0.5 + 30]).astype(np.float32)
    for threshold in (0.5, 0.9, 0.95, 0.99):
        pairs = find_near_pairs(thumbnails, threshold)
        assert {*zip(pairs.first.tolist(), pairs.second.tolist())} == brute_force(thumbnails, threshold)
        assert len(pairs.first) > 8
        assert (np.diff(pairs.correlation) <= 0).all()
    # the threshold itself is met
    at = float(find_near_pairs(thumbnails, 0.9).correlation[20])
    assert find_near_pairs(thumbnails, at).correlation.min() == pytest.approx(at, abs=1e-12)


def test_flat_images_and_limits():
    flat = np.full((3, 4, 4), 7.0, np.float32)
    assert len(find_near_pairs(flat).first) == 0
    assert len(find_near_pairs(np.zeros((0, 4, 4), np.float32)).first) == 0
    same = np.tile(np.arange(16.0, dtype=np.float32).reshape(1, 4, 4), (5, 1, 1))
    assert len(find_near_pairs(same, 1.0).first) == 10
    with pytest.raises(ValueError, match='More than 9 pairs'):
        find_near_pairs(same, max_pairs=9)
    with pytest.raises(ValueError, match='got 1.5'):
        find_near_pairs(same, 1.5)


def test_thumbnail_is_of_means():
    pixels = np.arange(48 * 96, dtype=np.int64).reshape(48, 96) % 256
    thumbnail = make_thumbnail(Image.fromarray(pixels.astype(np.uint8)))
    np.testing.assert_allclose(thumbnail, pixels.reshape(24, 2, 24, 4).mean((1, 3)), rtol=1e-6)


def test_clusters():
    clusters = find_clusters(6, np.array([0, 3, 1]), np.array([3, 5, 2]))
    assert clusters[0] == clusters[3] == clusters[5]
    assert clusters[1] == clusters[2]
    assert len(set(clusters.tolist())) == 3
