"""The order of the images depends only on seed and epoch, and is the one of earlier versions: a run resumes with it."""

import numpy as np
import pytest

from hdkd_timm.data.sampler import EpochSampler, derive_seed


def keys(sampler, epoch=0, start=0):
    sampler.set_epoch(epoch, start)
    return list(sampler)


def test_order_of_earlier_versions():
    assert keys(EpochSampler(8, 3, seed=42), epoch=1) == [
        [(1, 0, 0), (1, 4, 4), (1, 6, 6)],
        [(1, 1, 1), (1, 2, 2), (1, 7, 7)],
    ]
    assert keys(EpochSampler(8, 3, seed=42, weights=np.arange(8.0)), epoch=1) == [
        [(1, 0, 7), (1, 1, 4), (1, 2, 5)],
        [(1, 3, 6), (1, 4, 7), (1, 5, 6)],
    ]
    assert (derive_seed(42), derive_seed(42, 1, 2)) == (3444837047, 2436437895)


@pytest.mark.parametrize('weights', [None, np.arange(1.0, 21.0)])
def test_order_depends_on_seed_and_epoch(weights):
    def order(seed, epoch):
        return [index for batch in keys(EpochSampler(20, 5, seed, weights), epoch) for _, _, index in batch]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(2) for epoch in range(2)}) == 4


def test_no_two_keys_of_an_epoch_share_a_draw():
    """Else an image drawn twice would be augmented alike both times."""
    weights = np.r_[np.ones(2), np.full(18, 1e-9)]
    batches = keys(EpochSampler(20, 4, weights=weights))
    assert len({draw for batch in batches for _, draw, _ in batch}) == 20
    assert {index for batch in batches for _, _, index in batch} == {0, 1}


def test_weights_are_relative():
    weights = np.array([0.0, 1.0, 3.0, 0.0])
    drawn = np.array(
        [
            index
            for epoch in range(500)
            for batch in keys(EpochSampler(4, 4, weights=weights), epoch)
            for _, _, index in batch
        ]
    )
    assert set(drawn) == {1, 2}
    assert (drawn == 2).mean() == pytest.approx(0.75, abs=0.04)
    assert keys(EpochSampler(4, 4, weights=10 * weights)) == keys(EpochSampler(4, 4, weights=weights))


def test_start_skips_batches():
    sampler = EpochSampler(20, 3)
    whole = keys(sampler, 2)
    assert len(whole) == len(sampler) == 6
    assert keys(sampler, 2, start=4) == whole[4:]
    assert len(sampler) == 2


def test_derived_seeds():
    seeds = {derive_seed(*keys) for keys in [(1,), (1, 2), (2, 1), (1, 2, 3), (1, 2, 4), (42, 0, 0), (42, 0, 1)]}
    assert len(seeds) == 7
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_all_images_in_order():
    sampler = EpochSampler(5, 2, seed=42, in_order=True)
    assert keys(sampler, epoch=3) == [[(3, 0, 0), (3, 1, 1)], [(3, 2, 2), (3, 3, 3)], [(3, 4, 4)]]
    assert keys(sampler, epoch=3, start=2) == [[(3, 4, 4)]]
    assert len(sampler) == 1
