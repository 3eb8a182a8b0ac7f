"""Fractions, folds and validation splits: stratified, by group, and the same for the same seed, in all versions."""

import numpy as np
import pytest
from data_helpers import create, make_samples, sizes, table
from helpers import write_images

from hdkd_timm.data.splits import assign_folds, draw_fraction, draw_val


def test_splits_of_earlier_versions():
    """A run that was started with one of them resumes with the same images."""
    single = make_samples([0] * 9 + [1] * 6)
    groups = np.arange(18) // 2
    grouped = make_samples(groups % 2, groups)
    assert assign_folds(single, 3, seed=42).tolist() == [2, 0, 1, 0, 2, 0, 1, 1, 2, 1, 0, 0, 2, 2, 1]
    assert assign_folds(grouped, 3, seed=42).tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 2, 2, 2, 2, 0, 0, 2, 2]
    assert np.flatnonzero(draw_val(single, 0.3, seed=42)).tolist() == [1, 3, 5, 7, 11]
    assert np.flatnonzero(draw_val(grouped, 0.3, seed=42)).tolist() == [0, 1, 8, 9, 14, 15]
    assert draw_fraction(single.targets, 0.4, seed=42).tolist() == [0, 2, 3, 7, 9, 11]


def test_fraction_is_drawn_per_class_and_seeded(image_folder):
    def draw(fraction, seed=42):
        return create(image_folder, train_fraction=fraction, seed=seed)[0]['train'].samples

    samples = draw(0.5)
    assert np.bincount(samples.targets).tolist() == [4, 4, 4]
    assert samples.filenames() == draw(0.5).filenames()
    assert samples.filenames() != draw(0.5, seed=1).filenames()
    assert np.bincount(draw(0.01).targets).tolist() == [1, 1, 1]
    assert draw(1.0).filenames() == draw(1.0, seed=7).filenames()
    counts = [1321, 1339, 1595, 1457]  # a tenth of the brain MRI set, as its yardstick drew it
    positions = draw_fraction(np.repeat(np.arange(4), counts), 0.1)
    assert len(positions) == 572
    assert (np.diff(positions) > 0).all()
    for fraction in (0.0, -0.1, 1.1):
        with pytest.raises(ValueError, match='train_fraction'):
            draw(fraction)


def test_fraction_draws_whole_groups():
    sizes_of = [6, 6, 6, 6, 6, 3, 3]
    groups, targets = np.repeat(list('gfedcba'), sizes_of), np.repeat([0, 0, 0, 1, 1, 1, 1], sizes_of)
    drawn = {}
    for fraction in (0.01, 0.34, 0.7, 1):
        positions = draw_fraction(targets, fraction, groups=groups)
        kept = drawn[fraction] = set(groups[positions])
        assert len(positions) == sum(size for group, size in zip('gfedcba', sizes_of) if group in kept)
    assert [len(drawn[fraction]) for fraction in (0.01, 0.34, 1)] == [2, 2, 7]  # a group of each class at least
    assert drawn[0.01] <= drawn[0.34] < drawn[0.7] < drawn[1]
    alone = np.arange(36)  # groups of one image each change nothing
    assert draw_fraction(targets, 0.3, groups=alone[::-1]).tolist() == draw_fraction(targets, 0.3).tolist()


def test_fraction_of_groups_with_several_classes():
    targets, groups = np.array([0, 0, 1] * 10 + [0, 2] * 2), np.repeat(np.arange(12), [3] * 10 + [2] * 2)
    for fraction in (0.01, 0.5):
        positions = draw_fraction(targets, fraction, groups=groups)
        assert set(targets[positions]) == {0, 1, 2}  # though no group has class 0 alone
        assert np.isin(groups, groups[positions]).sum() == len(positions)


def test_fraction_of_a_table_keeps_its_groups(write_csv):
    path = write_csv(*table('t' * 10 + 'ee', labels='aaaabbbbaaab', groups='111122223345'))
    samples = create(data_csv=path, train_fraction=0.6)[0]['train'].samples
    groups, number = np.unique(samples.groups, return_counts=True)
    assert len(groups) == 2  # one of two with a, the only one with b
    assert number.tolist() == [{'1': 4, '2': 4, '3': 2}[group] for group in groups]


def test_fraction_leaves_the_test_images(image_folder):
    datasets, _ = create(image_folder, train_fraction=0.5)
    assert sizes(datasets) == {'train': 12, 'test': 12}
    # the targets go with the images
    for image, target in datasets['train']:
        assert abs(np.asarray(image).mean() - (40 + 80 * target)) < 8


def test_fraction_is_drawn_before_val(image_folder):
    datasets, _ = create(image_folder, train_fraction=0.5, val_fraction=0.25)
    assert sizes(datasets) == {'train': 9, 'test': 12, 'val': 3}
    fraction = create(image_folder, train_fraction=0.5)[0]['train'].samples.filenames()
    both = datasets['train'].samples.filenames() + datasets['val'].samples.filenames()
    assert sorted(both) == sorted(fraction)


def test_val_fraction(image_folder):
    def draw(seed=42):
        return create(image_folder, val_fraction=0.25, seed=seed)[0]

    datasets = draw()
    assert sizes(datasets) == {'train': 18, 'val': 6, 'test': 12}
    assert np.bincount(datasets['val'].targets).tolist() == [2, 2, 2]
    train, val = (datasets[split].samples.filenames() for split in ('train', 'val'))
    assert not set(train) & set(val)
    assert val == draw()['val'].samples.filenames()
    assert val != draw(seed=1)['val'].samples.filenames()
    # what was cut off can be tested on
    assert create(image_folder, val_fraction=0.25, only='val')[0]['val'].samples.filenames() == val
    for fraction in (-0.1, 1.0, 1.5):
        with pytest.raises(ValueError, match='val_fraction'):
            create(image_folder, val_fraction=fraction)
    write_images(image_folder / 'val', number=1)
    with pytest.raises(ValueError, match='--val-fraction is for data without a val split, but this data has one'):
        create(image_folder, val_fraction=0.25)


def test_val_fraction_without_a_test_split(image_folder):
    (image_folder / 'test').rename(image_folder / 'images')
    assert sizes(create(image_folder, val_fraction=0.25)[0]) == {'train': 18, 'val': 6}


@pytest.mark.parametrize('fraction', [0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8])
def test_val_share_is_near_the_fraction(fraction):
    samples = make_samples([0] * 300 + [1] * 200 + [2] * 100)
    held_out = draw_val(samples, fraction)
    shares = np.bincount(samples.targets[held_out], minlength=3) / [300, 200, 100]
    assert np.allclose(shares, fraction, atol=0.011)
    # by groups of 1 to 4 images, each of one class
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(600), rng.integers(1, 5, 600))[:600]
    samples = make_samples(groups % 3, groups)
    held_out = draw_val(samples, fraction)
    assert abs(held_out.mean() - fraction) < 0.03
    assert not np.intersect1d(groups[held_out], groups[~held_out]).size


@pytest.mark.parametrize('fraction', [0.02, 0.98])
@pytest.mark.parametrize('groups', [None, np.arange(400) // 2])
def test_val_share_of_a_fiftieth(fraction, groups):
    """Which 20 folds are too coarse for."""
    samples = make_samples(np.arange(400) // 2 % 2, groups)
    held_out = draw_val(samples, fraction)
    assert abs(held_out.sum() - 400 * fraction) <= 2
    assert np.bincount(samples.targets[held_out]).min() >= min(fraction * 200, 4)


def test_val_share_with_a_rare_class():
    # two images of a class do not make half of all images the val split
    samples = make_samples([0] * 100 + [1] * 98 + [2] * 2)
    held_out = draw_val(samples, 0.1)
    assert abs(held_out.mean() - 0.1) < 0.02
    assert np.bincount(samples.targets[held_out])[2] == 1
    groups = np.arange(200) // 2
    groups[-2:] = [1000, 1001]
    held_out = draw_val(make_samples(samples.targets, groups), 0.1)
    assert abs(held_out.mean() - 0.1) < 0.02
    assert np.bincount(samples.targets[held_out])[2] == 1
    assert not np.intersect1d(groups[held_out], groups[~held_out]).size
    with pytest.raises(ValueError, match='smallest class has 1 training images'):
        draw_val(make_samples([0] * 10 + [1]), 0.1)
    with pytest.raises(ValueError, match='smallest class has 1 training groups'):
        draw_val(make_samples([0] * 10 + [1] * 4, [*range(10), 20, 20, 20, 20]), 0.1)


def test_folds_are_a_partition(image_folder):
    held_out = []
    for fold in range(4):
        datasets, _ = create(image_folder, folds=4, fold=fold)
        assert sizes(datasets) == {'train': 18, 'val': 6, 'test': 12}
        assert np.bincount(datasets['val'].targets).tolist() == [2, 2, 2]
        assert not set(datasets['val'].samples.filenames()) & set(datasets['train'].samples.filenames())
        held_out += datasets['val'].samples.filenames()
    assert len(held_out) == 24
    assert sorted(held_out) == sorted(create(image_folder)[0]['train'].samples.filenames())


def test_fold_is_the_test_split_where_there_is_none(image_folder):
    val = create(image_folder, folds=4, fold=1)[0]['val'].samples.filenames()
    (image_folder / 'test').rename(image_folder / 'images')
    datasets, _ = create(image_folder, folds=4, fold=1)
    assert sizes(datasets) == {'train': 18, 'test': 6}
    assert datasets['test'].samples.filenames() == val
    # and a val split may be cut from the rest
    datasets, _ = create(image_folder, folds=4, fold=1, val_fraction=1 / 3)
    assert sizes(datasets) == {'train': 12, 'test': 6, 'val': 6}
    assert datasets['test'].samples.filenames() == val
    assert len({name for dataset in datasets.values() for name in dataset.samples.filenames()}) == 24
    # hdkd eval names the fold again
    only = create(image_folder, folds=4, fold=1, only='test')[0]
    assert sizes(only) == {'test': 6}
    assert only['test'].samples.filenames() == val


def test_bad_folds(image_folder):
    for folds, fold, match in (
        (4, 4, '--fold must be 0 to 3, got 4'),
        (4, -1, 'got -1'),
        (9, 0, '9 folds: expected 2 to 8, .* images'),
        (1, 0, '1 folds: expected 2'),
    ):
        with pytest.raises(ValueError, match=match):
            create(image_folder, folds=folds, fold=fold)
    with pytest.raises(ValueError, match='--val-fraction is for data without a val split, but this data has one'):
        create(image_folder, folds=4, val_fraction=0.5)
    write_images(image_folder / 'val', number=1)
    with pytest.raises(ValueError, match='--folds .* but the data already has one'):
        create(image_folder, folds=4)
    (image_folder / 'val').rename(image_folder / 'images')
    with pytest.raises(ValueError, match=r"no split 'other' \(found: train, test, val\)"):
        create(image_folder, folds=4, only='other')


def test_folds_keep_groups_together():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(300), rng.integers(1, 6, 300))
    samples = make_samples(groups % 2, groups)
    fold_of = assign_folds(samples, 5)
    for group in range(300):
        assert len(set(fold_of[groups == group])) == 1
    shares = np.array([np.bincount(samples.targets[fold_of == fold]) for fold in range(5)]) / np.bincount(groups % 2)
    assert np.allclose(shares, 0.2, atol=0.02)
    assert (fold_of == assign_folds(samples, 5)).all()
    assert (fold_of != assign_folds(samples, 5, seed=1)).any()
    with pytest.raises(ValueError, match='expected 2 to 2, the number of groups'):
        assign_folds(make_samples([0, 0, 0, 1, 1, 1], [1, 1, 2, 3, 4, 5]), 3)


def test_csv_val_by_group(write_csv):
    path = write_csv(*table('t' * 12, labels='aabb', groups='112233445566'))
    for seed in range(5):
        datasets, _ = create(data_csv=path, val_fraction=1 / 3, seed=seed)
        train, val = datasets['train'].samples, datasets['val'].samples
        assert not set(train.groups) & set(val.groups)
        assert set(train.groups) | set(val.groups) == set('123456')
        assert np.bincount(val.targets).tolist() == [2, 2]
    # the images of a group follow it through the folds too
    seen = []
    for fold in range(3):
        datasets, _ = create(data_csv=path, folds=3, fold=fold)
        assert not set(datasets['train'].samples.groups) & set(datasets['test'].samples.groups)
        seen += datasets['test'].samples.filenames()
    assert len(seen) == len(set(seen)) == 12


def test_leaks_are_reported(write_csv, caplog):
    path = write_csv(*table('ttttveee', labels='aabb', groups='11223324'))
    with pytest.raises(ValueError, match="but not in '.*split val'"):
        create(data_csv=path)
    path = write_csv(*table('ttttvvee', labels='ab', groups='11223324'))
    create(data_csv=path)
    assert [record.message for record in caplog.records if 'group' in record.message] == [
        '1 of 2 test images share a group with training images: results on them are optimistically biased.'
    ]
    caplog.clear()
    create(data_csv=write_csv(*table('ttttvvee', labels='ab', groups='11221244')))
    assert [record.message for record in caplog.records if 'group' in record.message] == [
        '2 of 2 val images share a group with training images: results on them are optimistically biased.'
    ]
    caplog.clear()
    create(data_csv=write_csv(*table('ttttvvee', groups='11223344')))
    assert 'group' not in caplog.text


def test_val_of_large_groups_has_the_fraction_of_each_class():
    """60 patients of very different numbers of images: the folds differ, and the nearest is drawn, not the first."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        sizes = rng.geometric(0.04, 60)
        groups = np.arange(60).repeat(sizes)
        targets = rng.choice(3, 60, p=[0.6, 0.3, 0.1])
        targets[:6] = [0, 1, 2, 0, 1, 2]
        samples = make_samples(targets.repeat(sizes), groups)
        held_out = draw_val(samples, 0.2, seed)
        assert not np.intersect1d(groups[held_out], groups[~held_out]).size
        numbers = np.bincount(samples.targets)
        error = np.abs(np.bincount(samples.targets[held_out], minlength=3) / numbers - 0.2).max()
        folds = assign_folds(samples, 5, seed)
        shares = np.array([np.bincount(samples.targets[folds == k], minlength=3) / numbers for k in range(5)])
        best = np.abs(shares - 0.2).max(axis=1)[(shares > 0).all(axis=1)].min()
        assert error <= max(best, 0.2 / 3) + 1e-9, seed
