"""Intervals against scipy's and closed forms, and their coverage."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest, ttest_1samp
from scipy.stats import t as t_distribution

from hdkd_timm.evaluation.intervals import (
    _jackknife_scale,
    effective_sample_size,
    paired_interval,
    proportion_interval,
    single_class_margins,
    skewed_mean_interval,
)


@pytest.mark.parametrize(('hits', 'number'), [(0, 1), (1, 1), (12, 12), (0, 12), (11, 12), (70, 100), (999, 1000)])
def test_proportion(hits, number):
    exact = binomtest(hits, number).proportion_ci(0.9, method='exact')
    assert proportion_interval(hits / number, number, 0.9) == pytest.approx((exact.low, exact.high))
    low, high = proportion_interval(hits / number, number)
    assert low <= hits / number <= high
    assert high - low > 0.003


def test_proportion_of_no_images():
    assert all(map(math.isnan, proportion_interval(0.5, 0)))
    assert all(map(math.isnan, paired_interval(0, 0, 0)))


@pytest.mark.parametrize('number', [10, 30, 100])
@pytest.mark.parametrize('true', [0.9, 0.99, 0.999, 0.5])
def test_proportion_holds_as_often_as_it_says(number, true):
    held = sum(
        binom.pmf(hits, number, true)
        for hits in range(number + 1)
        if np.subtract(*proportion_interval(hits / number, number)) < 0
        and proportion_interval(hits / number, number)[0] <= true <= proportion_interval(hits / number, number)[1]
    )
    assert 0.95 <= held


@pytest.mark.parametrize(
    ('only_first', 'only_second', 'number', 'expected'),
    [
        (0, 0, 12, (-(1.959964**2) / (12 + 1.959964**2), 1.959964**2 / (12 + 1.959964**2))),  # Tango's closed form
        (0, 1, 44, (-0.0603, 0.1184)),
        (10, 12, 50, None),
        (0, 10, 10, None),
        (3, 0, 10, None),
    ],
)
def test_paired(only_first, only_second, number, expected):
    low, high = paired_interval(only_first, only_second, number)
    difference = (only_second - only_first) / number
    assert -1 <= low <= difference <= high <= 1
    assert low < high
    assert paired_interval(only_second, only_first, number) == pytest.approx((-high, -low), abs=1e-7)
    if expected is not None:
        assert (low, high) == pytest.approx(expected, abs=1e-3)


def test_paired_holds_as_often_as_it_says():
    """Over all pairs of counts, for two networks that differ in 10 % and 5 % of the images."""
    for number, first, second in ((10, 0.1, 0.05), (30, 0.1, 0.05), (30, 0.01, 0.01)):
        held = 0.0
        for a, b in itertools.product(range(number + 1), repeat=2):
            if a + b <= number:
                chance = binom.pmf(a, number, first) * binom.pmf(b, number - a, second / (1 - first))
                if chance > 1e-7:
                    low, high = paired_interval(a, b, number)
                    held += chance * (low <= second - first <= high)
        assert held > 0.935, (number, held)


def test_effective_sample_size_of_independent_images():
    values = np.random.default_rng(0).random(50) < 0.8
    assert effective_sample_size(values) == 50
    assert effective_sample_size(values, np.arange(50)) == pytest.approx(50)
    assert effective_sample_size(values[:0]) == 0


def test_effective_sample_size_of_groups():
    """Between the number of groups, if the images of a group are equal, and the number of images."""
    rng = np.random.default_rng(0)
    groups = np.repeat([f'patient {i}' for i in range(100)], 4)
    order = rng.permutation(400)
    equal = np.repeat(rng.random(100) < 0.7, 4)
    assert effective_sample_size(equal[order], groups[order]) == pytest.approx(100, rel=0.02)
    apart = rng.random(400) < 0.7
    assert 250 < effective_sample_size(apart, groups) <= 400
    half = np.where(rng.random(400) < math.sqrt(0.5), equal, apart)
    assert 400 / 2.5 == pytest.approx(effective_sample_size(half, groups), rel=0.25)  # 1 + 3 * 0.5
    # what is all right tells nothing of how mistakes cluster: the worst is taken, and given up with each mistake
    found = []
    for mistakes in (0, 1, 3, 20):
        right = np.ones(400)
        right[np.arange(mistakes) * 4] = 0
        found.append(effective_sample_size(right, groups))
    assert found[0] == pytest.approx(100)
    assert found == sorted(found)
    assert found[1] > 120
    assert found[3] > 300
    # of groups of several sizes, the large ones count for more
    assert effective_sample_size(np.ones(10), np.repeat([0, 1, 2, 3], [1, 1, 1, 7])) == pytest.approx(100 / 52)
    assert effective_sample_size(np.array([1.0, 0, 1]), np.zeros(3)) == pytest.approx(1)


def test_effective_sample_size_of_strata():
    """The mean of two recalls, of 5 and 95 images, depends mainly on the few."""
    strata = np.repeat([0, 1], [5, 95])
    kish = 4 / (1 / 5 + 1 / 95)
    assert effective_sample_size(np.ones(100), strata=strata) == pytest.approx(kish)
    assert effective_sample_size(np.ones(100), strata=np.repeat([0, 1], 50)) == pytest.approx(100)
    values = np.random.default_rng(0).random(4000) < 0.7
    strata = np.repeat([0, 1, 2], [200, 800, 3000])
    assert effective_sample_size(values, strata=strata) == pytest.approx(9 / (1 / 200 + 1 / 800 + 1 / 3000), rel=0.1)
    # a group that holds images of two classes, right or wrong together, counts once
    right = np.repeat(np.random.default_rng(1).random(500) < 0.7, 2)
    strata, groups = np.tile([0, 1], 500), np.repeat(np.arange(500), 2)
    assert effective_sample_size(right, strata=strata) == pytest.approx(1000, rel=0.05)
    assert effective_sample_size(right, groups, strata) == pytest.approx(500, rel=0.05)


def test_balanced_accuracy_holds_as_often_as_it_says():
    """Few images of four classes, half of them of one: exact intervals are conservative."""
    for true in (0.9, 0.99):
        held = []
        for seed in range(400):
            rng = np.random.default_rng(seed)
            strata = rng.choice(4, 30, p=[0.5, 0.25, 0.15, 0.1])
            right = (rng.random(30) < true).astype(float)
            mean = np.mean([right[strata == k].mean() for k in np.unique(strata)])
            low, high = proportion_interval(mean, effective_sample_size(right, strata=strata))
            held.append(low <= true <= high)
        assert np.mean(held) > 0.93


def test_effective_sample_size_of_one_large_group():
    """Most images are of one patient, so little is known about the others (79 % coverage without a jackknife)."""
    groups, held, numbers = np.repeat(np.arange(20), [81, *[1] * 19]), [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        values = (rng.random(100) < rng.beta(0.8 * 0.43, 0.2 * 0.43, 20)[groups]).astype(float)
        numbers.append(effective_sample_size(values, groups))
        low, high = proportion_interval(values.mean(), numbers[-1])
        held.append(low <= 0.8 <= high)
    assert np.mean(held) > 0.94
    assert min(numbers) >= 1


def test_jackknife_is_unbiased():
    """With groups of one size, its variance of the mean is the textbook one of the group means."""
    values, groups = np.random.default_rng(0).normal(size=20), np.arange(20) % 5
    scale, alone = _jackknife_scale(groups, np.zeros(20, int))
    variance = (np.bincount(groups, (values - values.mean()) * scale / 20) ** 2).sum()
    assert variance == pytest.approx(np.var([values[groups == g].mean() for g in range(5)], ddof=1) / 5)
    assert not alone.any()
    # a large group is compared with the mean of the others
    scale, _ = _jackknife_scale(np.array([0, 0, 0, 1]), np.zeros(4, int))
    assert scale == pytest.approx(np.sqrt(0.5) / (1 - np.array([0.75, 0.75, 0.75, 0.25])))
    # and one that is a whole stratum with none
    scale, alone = _jackknife_scale(np.array([0, 0, 1, 2]), np.array([0, 0, 1, 1]))
    assert alone.tolist() == [True, True, False, False]
    assert scale[:2].tolist() == [1, 1]


def test_few_groups_have_few_degrees_of_freedom():
    """The size shrinks by the squared ratio of t quantiles, of 39 for the images and of 3 for the groups."""
    values, groups = np.random.default_rng(1).normal(size=40), np.arange(40) // 10
    sizes = [effective_sample_size(values, groups, confidence=confidence) for confidence in (0.95, 0.5)]
    assert 4 < sizes[0] < sizes[1] < 40
    of_images, of_groups = (t_distribution.ppf([0.975, 0.75], freedom) for freedom in (39, 3))
    assert sizes[0] / sizes[1] == pytest.approx(np.divide(*((of_images / of_groups) ** 2)))


def test_effective_sample_size_of_a_class_of_one_group():
    """All images of the rare class are of one patient with half the weight of the mean: at most 4 effective images."""
    groups = np.concatenate([np.zeros(10, int), 1 + np.arange(100)])
    strata = np.repeat([0, 1], [10, 100])
    values = np.random.default_rng(0).random(110) < 0.8
    assert effective_sample_size(values.astype(float), groups, strata) < 4 + 1e-9


def test_margins_of_one_class():
    shares, limits = np.array([0.8, np.nan, 1.0]), np.array([[0.4, 0.9], [np.nan, np.nan], [0.7, 1.0]])
    assert single_class_margins(shares, limits) == pytest.approx((0.2, 0.05))
    assert single_class_margins(shares[:1], limits[:1]) == pytest.approx((0.4, 0.1))


def test_skewed_mean():
    """Student's interval for symmetric values; shifted up by a large value; groups of equal values count once."""
    values = np.array([1.0, 2, 3, 4, 5])
    assert skewed_mean_interval(values) == pytest.approx(ttest_1samp(values, 0).confidence_interval(0.95))
    low, high = skewed_mean_interval(np.array([0.0, 0, 0, 0, 5]))
    assert low + high > 2.5
    thrice = np.repeat([0.0, 0, 0, 0, 5], 3), np.repeat(np.arange(5), 3)
    assert skewed_mean_interval(*thrice) == pytest.approx((low, high))
    assert skewed_mean_interval(np.full(4, 0.3)) == pytest.approx((0.3, 0.3))
    assert all(map(math.isnan, skewed_mean_interval(np.ones(3), np.zeros(3))))


def test_skewed_mean_holds_as_often_as_it_says():
    """Exponential values of twelve images, where Student's interval has a coverage of 90 %."""
    held = []
    for seed in range(1000):
        low, high = skewed_mean_interval(np.random.default_rng(seed).exponential(size=12))
        held.append(low <= 1 <= high)
    assert np.mean(held) > 0.92


@pytest.mark.parametrize('number', [10, 16, 17, 33, 48])
@pytest.mark.parametrize('value', [1 / 3, 2 / 3, -1 / 3])
def test_images_that_all_have_the_same_fraction(number, value):
    """The mean over three seeds: their mean differs from them by a rounding error, which is no variance."""
    groups = np.arange(number) // 2
    exact = effective_sample_size(np.ones(number), groups)
    assert effective_sample_size(np.full(number, value), groups) == pytest.approx(exact)
