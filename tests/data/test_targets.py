"""Targets of one class, and of any number of labels."""

import numpy as np
import pytest

from hdkd_timm.data.samples import FileReader, Samples
from hdkd_timm.data.splits import assign_folds, draw_fraction, draw_val
from hdkd_timm.data.targets import find_strata, name_targets, to_indicators

CLASSES = ['a', 'b', 'c']


def test_names_and_indicators():
    assert name_targets(np.array([2, 0]), CLASSES) == ['c', 'a']
    assert to_indicators(np.array([2, 0]), 3).tolist() == [[False, False, True], [True, False, False]]
    labels = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]], np.uint8)
    assert name_targets(labels, CLASSES) == ['a|c', '', 'b']
    assert to_indicators(labels, 3).tolist() == labels.astype(bool).tolist()


def test_strata_are_the_rarest_labels():
    labels = np.array([[1, 1, 0], [1, 0, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    assert find_strata(labels).tolist() == [1, 2, 0, 3, 2, 1]  # c has 2 images, b 3, a 4
    assert find_strata(np.array([2, 0, 1])).tolist() == [2, 0, 1]


@pytest.fixture
def samples():
    """300 images with labels of 60, 20 and 5 %, in groups of two."""
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 3)) < [0.6, 0.2, 0.05]).astype(np.uint8)
    return Samples(FileReader([(str(i), 0) for i in range(300)]), np.arange(300), labels, np.arange(300) // 2)


def test_a_fraction_keeps_the_shares_of_the_labels(samples):
    kept = draw_fraction(samples.targets, 0.3, seed=1)
    assert len(kept) == pytest.approx(90, abs=2)
    counts, total = samples.targets[kept].sum(axis=0), samples.targets.sum(axis=0)
    np.testing.assert_allclose(counts / len(kept), total / 300, atol=0.05)
    assert counts.all()


def test_a_validation_split_has_every_label_and_whole_groups(samples):
    held_out = draw_val(samples, 0.2, seed=1)
    assert held_out.mean() == pytest.approx(0.2, abs=0.03)
    assert samples.targets[held_out].any(axis=0).all()
    assert samples.targets[~held_out].any(axis=0).all()
    assert not set(samples.groups[held_out]) & set(samples.groups[~held_out])


def test_few_images_of_each_stratum():
    """More folds than the images of any stratum are never tried."""
    labels = np.zeros((24, 7), np.uint8)
    labels[:, 6] = 1
    labels[np.arange(24), np.arange(24) % 6] = 1
    samples = Samples(FileReader([(str(i), 0) for i in range(24)]), np.arange(24), labels)
    held_out = draw_val(samples, 0.25, seed=0)
    assert held_out.sum() == 6
    assert samples.targets[held_out].any(axis=0).all()


def test_folds_have_every_label(samples):
    folds = assign_folds(samples, 4, seed=1)
    for fold in range(4):
        assert samples.targets[folds == fold].any(axis=0).all()
    rarest = len(np.unique(samples.groups[samples.targets[:, 2] == 1]))
    with pytest.raises(ValueError, match=f'into {rarest + 1} folds: expected 2 to {rarest}'):
        assign_folds(samples, rarest + 1)
