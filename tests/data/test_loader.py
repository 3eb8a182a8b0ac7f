"""Batches that depend only on seed, epoch and position."""

import functools
import random
from collections import Counter

import numpy as np
import pytest
import torch
from data_helpers import DATA, STATS, Numbered, batches, create, numbers

from hdkd_timm.data.augment import AugmentConfig
from hdkd_timm.data.imbalance import sample_weights
from hdkd_timm.data.loader import SplitLoader
from hdkd_timm.data.sampler import EpochSampler

pytestmark = pytest.mark.filterwarnings('ignore:This DataLoader will create')  # more processes than cores


STRONG = AugmentConfig(scale=(0.3, 1.0), aa='rand-m6-mstd0.5')  # Python's, NumPy's and torch's random numbers


@pytest.fixture
def dataset(image_folder):
    return create(image_folder)[0]['train']


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for (input, target), (other_input, other_target) in zip(ours, theirs):
        assert torch.equal(input, other_input)
        assert torch.equal(target, other_target)


@pytest.mark.parametrize('augment', [STRONG, AugmentConfig(aug='paper')])
def test_batches_do_not_depend_on_processes(dataset, augment):
    expected = None
    for num_workers in (0, 1, 2):
        torch.manual_seed(num_workers)
        random.seed(num_workers)
        np.random.seed(num_workers)
        loader = SplitLoader(dataset, DATA, 5, augment, num_workers)
        found = batches(loader, 0), batches(loader, 3)
        expected = expected or found
        for ours, theirs in zip(found, expected):
            assert_equal(ours, theirs)
    first, second = expected
    assert [len(target) for _, target in first] == [5] * 4  # 24 images: the remainder is dropped
    assert not torch.equal(first[0][0], second[0][0])
    other = batches(SplitLoader(dataset, DATA, 5, augment, 0, seed=1), 0)
    assert not torch.equal(first[0][0], other[0][0])


def test_an_image_is_augmented_anew_each_epoch():
    loader = SplitLoader(Numbered(1), DATA, 1, AugmentConfig(scale=(0.3, 1.0), color_jitter=0.9), 0)
    loader.dataset.shade = 100
    assert len({batches(loader, epoch)[0][0].sum().item() for epoch in range(5)}) == 5


def test_an_image_drawn_twice_is_augmented_twice(dataset):
    weights = np.full(len(dataset), 1e-9)
    weights[0] = 1  # the same image all the time
    (input, target), *_ = batches(SplitLoader(dataset, DATA, 8, AugmentConfig(), 0, weights=weights), 0)
    assert len(set(target.tolist())) == 1
    assert len({image.numpy().tobytes() for image in input}) > 4


@pytest.mark.parametrize('num_workers', [0, 2])
def test_start_gives_the_tail_of_the_epoch(dataset, num_workers):
    loader = SplitLoader(dataset, DATA, 4, STRONG, num_workers)
    whole = batches(loader, 1)
    assert len(whole) == len(loader) == 6
    for start in (0, 1, 4, 6):
        assert_equal(batches(loader, 1, start), whole[start:])
        assert len(loader) == 6
    # a loader that was left in the middle begins anew
    iterator = loader.epoch(2)
    next(iterator)
    next(iterator)
    iterator.close()
    assert_equal(batches(loader, 1), whole)


@pytest.mark.parametrize('world_size', [2, 3])
def test_ranks_share_an_epoch(world_size):
    data = Numbered(26)
    ranks = [
        numbers(SplitLoader(data, DATA, 4, AugmentConfig(), 0, rank=rank, world_size=world_size).epoch(2))
        for rank in range(world_size)
    ]
    assert {len(rank) for rank in ranks} == {26 // (4 * world_size)}
    assert all(len(batch) == 4 for rank in ranks for batch in rank)
    seen = [index for rank in ranks for batch in rank for index in batch]
    assert len(set(seen)) == len(seen)
    # together they see what one process with larger batches would
    single = numbers(SplitLoader(data, DATA, 4 * world_size, AugmentConfig(), 0).epoch(2))
    for step, batch in enumerate(single):
        assert sorted(batch) == sorted(index for rank in ranks for index in rank[step])


def test_every_epoch_is_shuffled():
    loader = SplitLoader(Numbered(24), DATA, 6, AugmentConfig(), 0)
    orders = [sum(numbers(loader.epoch(epoch)), []) for epoch in range(4)]
    assert all(sorted(order) == list(range(24)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert list(range(24)) not in orders


def test_order_of_the_test():
    data = Numbered(11)
    loader = SplitLoader(data, DATA, 4, num_workers=0)
    assert numbers(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert len(loader) == 3
    shares = [sum(numbers(SplitLoader(data, DATA, 2, num_workers=0, rank=rank, world_size=3)), []) for rank in range(3)]
    assert shares == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8]]
    empty = SplitLoader(Numbered(1), DATA, 2, num_workers=0, rank=1, world_size=2)
    assert numbers(empty) == []


def test_test_images_are_normalised_and_nothing_else():
    loader = SplitLoader(Numbered(200), DATA, 8, num_workers=0)
    for i, (input, _) in enumerate(loader):
        assert input.dtype == torch.float32
        values = torch.arange(8 * i, 8 * i + 8) / 255
        for channel in range(3):
            expected = ((values - STATS['mean'][channel]) / STATS['std'][channel]).view(8, 1, 1).expand(8, 24, 24)
            assert torch.allclose(input[:, channel], expected, atol=1e-5)


@pytest.mark.parametrize('augment', [None, AugmentConfig(aug='none')])
def test_grey_images(image_folder, augment):
    dataset = create(image_folder, in_chans=1)[0]['train']
    loader = SplitLoader(dataset, dict(DATA, input_size=(1, 40, 40)), 24, augment, num_workers=0)
    input, target = next(iter(loader.epoch(0)))
    assert input.shape == (24, 1, 40, 40)
    pixels = input * 0.3 + 1.3 / 3  # the mean of the channels' means and deviations
    for k in range(3):
        assert pixels[target == k].mean().item() * 255 == pytest.approx(40 + 80 * k, abs=5)
    if augment is None:
        expected = torch.from_numpy(np.stack([np.asarray(dataset.read(i)) for i in range(24)])) / 255
        assert torch.allclose(pixels[:, 0], expected, atol=1e-5)


def test_balanced_sampler():
    targets = np.array([0] * 90 + [1] * 9 + [2] * 21)
    loader = SplitLoader(
        Numbered(120, targets), DATA, 10, AugmentConfig(aug='none'), 0, weights=sample_weights('balanced', targets)
    )
    counts = Counter(t for epoch in range(10) for batch in numbers(loader.epoch(epoch)) for t in batch)
    assert sum(counts.values()) == 1200
    assert all(counts[k] == pytest.approx(400, abs=60) for k in range(3))
    assert numbers(loader.epoch(0)) == numbers(loader.epoch(0))
    assert numbers(loader.epoch(0)) != numbers(loader.epoch(1))
    # processes draw one epoch together
    keys = [
        list(EpochSampler(120, 5, weights=sample_weights('balanced', targets), rank=rank, world_size=2))
        for rank in range(2)
    ]
    single = list(EpochSampler(120, 10, weights=sample_weights('balanced', targets)))
    assert [sorted(a + b) for a, b in zip(*keys)] == [sorted(batch) for batch in single]


def test_too_few_images(dataset):
    with pytest.raises(ValueError, match='24 training images are fewer than a batch of 26: lower --batch-size'):
        SplitLoader(dataset, DATA, 13, AugmentConfig(), 0, world_size=2)
    assert len(SplitLoader(dataset, DATA, 12, AugmentConfig(), 0, world_size=2)) == 1
    assert len(SplitLoader(dataset, DATA, 100, num_workers=0)) == 1  # not of a test


def test_random_numbers_are_left_alone(dataset):
    loader, plain = SplitLoader(dataset, DATA, 8, STRONG, 0), SplitLoader(dataset, DATA, 8, num_workers=0)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    for iterator in (loader.epoch(0), plain):
        for _ in iterator:
            assert torch.equal(torch.get_rng_state(), before[0])
            assert random.getstate() == before[1]
            assert np.array_equal(np.random.get_state()[1], before[2])


def test_sizes_and_order_of_batches(image_folder):
    datasets, _ = create(image_folder)
    data = dict(DATA, input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)
    test = SplitLoader(datasets['test'], data, 5, num_workers=0)
    batches = list(test)
    assert [len(y) for _, y in batches] == [5, 5, 2]
    assert torch.cat([y for _, y in batches]).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert batches[0][0].shape == (5, 3, 32, 32)
    # class a is noise around a brightness of 40
    assert abs(batches[0][0][0].mean() - (40 / 255 - 0.5) / 0.25) < 0.1
    train = SplitLoader(datasets['train'], data, 5, augment=AugmentConfig(), num_workers=0)
    targets = [y for _, y in train.epoch(0)]
    assert [len(y) for y in targets] == [5] * 4
    assert torch.cat(targets).tolist() != sorted(torch.cat(targets).tolist())
    with pytest.raises(ValueError, match='24 training images are fewer than a batch of 25'):
        SplitLoader(datasets['train'], data, 25, augment=AugmentConfig())


class Broken(Numbered):
    def __getitem__(self, index):
        raise RuntimeError('image 0 is broken')


@pytest.mark.parametrize('num_workers', [0, 1])
def test_errors_of_images_are_their_own(num_workers):
    with pytest.raises(RuntimeError, match='image 0 is broken'):
        next(iter(SplitLoader(Broken(4), DATA, 2, num_workers=num_workers)))


def test_numbers_of_the_images(dataset):
    data_config = dict(STATS, input_size=(3, 32, 32))
    plain, numbered = (
        list(SplitLoader(dataset, data_config, 4, STRONG, num_workers=0, with_index=with_index).epoch(1, start=1))
        for with_index in (False, True)
    )
    assert_equal(plain, [(images, targets) for images, targets, _ in numbered])
    for _, targets, index in numbered:
        assert targets.tolist() == [dataset[i][1] for i in index.tolist()]
    drawn = torch.cat([index for *_, index in numbered])
    assert len(drawn.unique()) == len(drawn) == len(dataset) // 4 * 4 - 4


def by_number(loader, epoch):
    """Number -> image, of an epoch."""
    return {int(i): image for images, _, index in loader.epoch(epoch) for i, image in zip(index, images)}


def test_views_are_of_the_image_alone(dataset):
    """Whatever the epoch, the batch size and the processes; with a view for each epoch nothing changes."""
    cfg = dict(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation='bilinear', crop_pct=1.0)
    cfg.update(crop_mode='center')
    create_loader = functools.partial(SplitLoader, dataset, cfg, augment=STRONG, with_index=True)
    plain, two = create_loader(4, num_workers=0), create_loader(4, num_workers=0, views=2)
    ordered = create_loader(7, num_workers=1, views=2, in_order=True)
    assert [len(index) for *_, index in ordered.epoch(1)] == [7, 7, 7, len(dataset) - 21]
    views = [by_number(ordered, view) for view in (0, 1)]
    assert list(views[0]) == list(range(len(dataset)))
    for epoch in (0, 1, 2, 3):
        found = by_number(two, epoch)
        assert len(found) == len(dataset) // 4 * 4
        assert all(torch.equal(image, views[epoch % 2][i]) for i, image in found.items())
        other = by_number(plain, epoch)
        assert list(other) == list(found)  # the order is that of the epoch
        assert all(torch.equal(image, found[i]) for i, image in other.items()) == (epoch < 2)
    assert not any(torch.equal(views[0][i], views[1][i]) for i in views[0])
