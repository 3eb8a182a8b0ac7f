"""Bootstrap of the metrics and their intervals."""

import io
import math
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import random_split
from scipy.stats import binom, binomtest, rankdata

import hdkd_timm.evaluation.bootstrap as bootstrap_module
from hdkd_timm.evaluation.bootstrap import accuracy_intervals, bootstrap, bootstrap_intervals
from hdkd_timm.evaluation.metrics import METRICS, WeightedImages, classification_metrics, expected_calibration_error
from hdkd_timm.evaluation.single_label import single_label_report
from hdkd_timm.utils.signals import Interrupted


def reference_metrics(probs, targets):
    """Each metric by its definition, of unweighted images."""
    classes = probs.shape[1]
    positive = targets[:, None] == np.arange(classes)
    numbers, ranks = positive.sum(axis=0), rankdata(probs, axis=0)
    areas = np.array([ranks[positive[:, k], k].sum() - n * (n + 1) / 2 for k, n in enumerate(numbers)])
    areas /= np.where((numbers > 0) & (numbers < len(targets)), numbers * (len(targets) - numbers), np.nan)
    predicted = probs.argmax(axis=1)
    counts = np.zeros((classes, classes))
    np.add.at(counts, (targets, predicted), 1)
    hits, rows, columns = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    by_chance = rows @ columns / len(targets) ** 2
    accuracy = hits.sum() / len(targets)
    eps = np.finfo(probs.dtype).eps
    confidence = probs.max(axis=1)
    bins = np.clip(np.ceil(confidence * 15) - 1, 0, 14)
    return {
        'accuracy': accuracy,
        'balanced_accuracy': (hits / rows)[rows > 0].mean() if (rows > 0).any() else np.nan,
        'macro_f1': (2 * hits / (rows + columns))[rows + columns > 0].mean(),
        'macro_auroc': np.nanmean(areas) if np.isfinite(areas).any() else np.nan,
        'kappa': (accuracy - by_chance) / (1 - by_chance) if by_chance < 1 else np.nan,
        'log_loss': -np.log(probs[np.arange(len(targets)), targets].clip(eps, 1 - eps)).mean(),
        'ece': sum(abs((predicted == targets)[bins == i].sum() - confidence[bins == i].sum()) for i in range(15))
        / len(targets),
    }


@pytest.mark.filterwarnings('ignore:invalid value encountered')
@pytest.mark.parametrize('seed', range(12))
def test_each_draw_is_what_its_images_give(seed, monkeypatch):
    """With few images, absent classes, ties, confident mistakes, with and without groups."""
    rng = np.random.default_rng(seed)
    number, classes, grouped = int(rng.integers(1, 40)), int(rng.integers(2, 9)), seed % 2
    probs, targets = random_split(classes, number, seed, decimals=seed % 3 - 1 if seed % 3 else None)
    probs[rng.random(number) < 0.2] = np.eye(classes)[rng.integers(classes)]
    targets = targets % int(rng.integers(1, classes + 1))  # classes without images
    groups = np.array([f'patient {i}' for i in rng.integers(number // 3 + 1, size=number)]) if grouped else None
    monkeypatch.setattr(bootstrap_module, 'CHUNK_SIZE', 16 * number)  # more than one part
    (found,) = bootstrap([WeightedImages(probs, targets)], groups, resamples=50, seed=seed)
    draws = np.random.default_rng(seed)
    names = np.unique(groups) if grouped else range(number)
    undefined = set()
    for i in range(50):
        drawn = draws.integers(len(names), size=len(names))
        if grouped:
            drawn = np.concatenate([np.flatnonzero(groups == names[j]) for j in drawn])
        expected = reference_metrics(probs[drawn], targets[drawn])
        assert classification_metrics(probs[drawn], targets[drawn]) == pytest.approx(
            expected, rel=1e-12, abs=1e-12, nan_ok=True
        )
        for name in METRICS:
            assert found[name][i] == pytest.approx(expected[name], rel=1e-12, abs=1e-12, nan_ok=True), (i, name)
            undefined |= {name} if math.isnan(expected[name]) else set()
    assert undefined <= {'macro_auroc', 'kappa'}
    assert all(len(values) == 50 for values in found.values())


def test_undefined_draws_occur():
    """Resamples of a single class, where the AUROC is undefined, occur in the test above."""
    (found,) = bootstrap([WeightedImages(*random_split(2, 3, seed=1))], resamples=50)
    assert 0 < np.isnan(found['macro_auroc']).sum() < 50
    assert np.isfinite(found['accuracy']).all()


def test_a_bootstrap_stops_when_asked(monkeypatch):
    probs, targets = random_split(3, number=50)
    monkeypatch.setattr(bootstrap_module, 'CHUNK_SIZE', 1)
    asked = []

    def stop_if_asked():
        asked.append(None)
        if len(asked) == 3:
            raise Interrupted(signal.SIGTERM, Path('run'))

    with pytest.raises(Interrupted):
        single_label_report(probs, targets, ['a', 'b', 'c'], resamples=1000, stop_if_asked=stop_if_asked)
    assert len(asked) == 3


@pytest.mark.parametrize('is_terminal', [True, False])
def test_a_bar_is_shown_on_a_terminal_alone(monkeypatch, is_terminal):
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, 'stderr', stream)
    probs, targets = random_split(2, number=20)
    bootstrap_intervals(probs, targets, resamples=64)
    assert not stream.getvalue()  # nothing worth a bar
    monkeypatch.setattr(bootstrap_module, 'CHUNK_SIZE', 1)
    bootstrap_intervals(probs, targets, resamples=64, stop_if_asked=lambda: time.sleep(0.4))
    assert ('bootstrap' in stream.getvalue() and '48/64' in stream.getvalue()) == is_terminal
    assert is_terminal or not stream.getvalue()


def test_intervals_of_proportions():
    """Exact intervals of accuracy, recall and precision; most contain the true value of 70 %."""
    covered = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        targets = rng.integers(2, size=120)
        probs = np.eye(2)[np.where(rng.random(120) < 0.7, targets, 1 - targets)]
        right = probs.argmax(axis=1) == targets
        report = single_label_report(probs, targets, ['a', 'b'], resamples=40, seed=seed)
        low, high = report['intervals_95']['accuracy']
        exact = binomtest(int(right.sum()), 120).proportion_ci(method='exact')
        assert (low, high) == pytest.approx((exact.low, exact.high))
        for k, name in enumerate('ab'):
            exact = binomtest(int(right[targets == k].sum()), int((targets == k).sum())).proportion_ci(method='exact')
            assert report['per_class'][name]['recall_95'] == pytest.approx([exact.low, exact.high])
            own = probs.argmax(axis=1) == k
            exact = binomtest(int(right[own].sum()), int(own.sum())).proportion_ci(method='exact')
            assert report['per_class'][name]['precision_95'] == pytest.approx([exact.low, exact.high])
        covered.append(low <= 0.7 <= high)
    assert 10 <= sum(covered)


@pytest.mark.parametrize('classes', [2, 3])
@pytest.mark.parametrize('is_right', [True, False])
def test_intervals_of_twelve_images_that_are_alike(classes, is_right):
    """All correct or all wrong: the intervals have a width, which follows from that of the accuracy."""
    targets = np.arange(12) % classes
    labels = targets if is_right else (targets + 1) % classes
    probs = np.eye(classes)[labels] * 0.9 + 0.1 / classes
    found = bootstrap_intervals(probs, targets, resamples=100)
    least = 0.025 ** (1 / 12)  # 12 of 12 are right with a chance of 2.5 %
    confidence = 0.9 + 0.1 / classes
    assert least == pytest.approx(0.7354, abs=1e-4)
    if is_right:
        for name in ('accuracy', 'balanced_accuracy', 'macro_f1'):
            assert found[name] == pytest.approx([least, 1])
        assert found['kappa'] == pytest.approx([1 - (1 - least) * classes / (classes - 1), 1])
        assert found['macro_auroc'] == pytest.approx([1 - (1 - least) / 2 * classes / (classes - 1), 1])
        assert found['log_loss'] == pytest.approx(
            [-math.log(confidence), -math.log(confidence) + (1 - least) * math.log(confidence / (1 - confidence))]
        )
        assert found['ece'] == pytest.approx([0, confidence - least])
    else:
        for name in ('accuracy', 'balanced_accuracy', 'macro_f1'):
            assert found[name] == pytest.approx([0, 1 - least])
        assert found['ece'] == pytest.approx([confidence - (1 - least), confidence])
        assert found['log_loss'][0] < -math.log(0.1 / classes) - 0.3


def test_a_class_that_is_all_right_has_a_width():
    targets = np.repeat([0, 1], [5, 95])
    probs = np.eye(2)[targets] * 0.9 + 0.05
    probs[5:15] = probs[5:15, ::-1]
    report = single_label_report(probs, targets, ['few', 'many'], resamples=50)
    assert report['per_class']['few']['recall'] == 1
    assert report['per_class']['few']['recall_95'] == pytest.approx([0.025**0.2, 1])  # 0.478
    low, high = report['intervals_95']['balanced_accuracy']
    assert low < 0.8 < report['balanced_accuracy'] < high
    # and so has one whose recalls are 1 and 0
    probs = np.tile([0.9, 0.1], (100, 1))
    low, high = bootstrap_intervals(probs, targets, resamples=50)['balanced_accuracy']
    assert low < 0.4
    assert high > 0.6
    # a class without images or labels has none
    report = single_label_report(np.pad(probs, ((0, 0), (0, 1))), targets, ['few', 'many', 'none'], resamples=5)
    assert report['per_class']['none']['recall_95'] is report['per_class']['none']['precision_95'] is None
    assert report['per_class']['many']['precision_95'] is None
    assert report['per_class']['many']['recall_95'] == pytest.approx([0, 1 - 0.025 ** (1 / 95)])


def test_groups_that_are_all_right_count_once():
    """12 correct images of 3 patients count as 3 independent ones."""
    targets, groups = np.repeat([0, 1, 0], 4), np.repeat([0, 1, 2], 4)
    found = bootstrap_intervals(np.eye(2)[targets] * 0.9 + 0.05, targets, groups, resamples=50)
    assert found['accuracy'] == pytest.approx([0.025 ** (1 / 3), 1])
    assert found['balanced_accuracy'][0] <= 0.025 ** (1 / 3) + 1e-9
    assert found['kappa'][0] < found['accuracy'][0]


def test_interval_of_the_calibration_error():
    """Overconfident probabilities: the true error is known from many images, and 200 images overestimate it."""

    def draw_sure(number, seed):
        rng = np.random.default_rng(seed)
        probs = rng.dirichlet(np.ones(3), size=number)
        targets = (rng.random(number)[:, None] > probs.cumsum(axis=1)).sum(axis=1)
        return probs**1.2 / (probs**1.2).sum(axis=1, keepdims=True), targets

    true = expected_calibration_error(*draw_sure(500_000, 0))
    found = [draw_sure(200, seed) for seed in range(1, 13)]
    intervals = [bootstrap_intervals(*split, resamples=40)['ece'] for split in found]
    assert np.mean([expected_calibration_error(*split) for split in found]) > true + 0.005
    assert sum(low <= true <= high for low, high in intervals) >= 7
    assert np.mean([high - low for low, high in intervals]) < 0.15
    assert min(low for low, _ in intervals) >= 0


def test_intervals_by_their_settings():
    probs, targets = random_split(3, number=60)
    intervals = bootstrap_intervals(probs, targets, resamples=60)
    assert set(intervals) == set(METRICS)
    assert all(low < high for low, high in intervals.values())
    assert intervals == bootstrap_intervals(probs, targets, resamples=60, seed=42)
    assert intervals != bootstrap_intervals(probs, targets, resamples=60, seed=43)
    half = bootstrap_intervals(probs, targets, resamples=60, confidence=0.5)
    for name in METRICS:
        assert intervals[name][0] < half[name][0] or name == 'ece' and intervals[name][0] == half[name][0] == 0
        assert half[name][0] < half[name][1] < intervals[name][1]
    none = bootstrap_intervals(probs, targets, resamples=0)
    assert {name for name in METRICS if np.isnan(none[name]).all()} == set(METRICS) - {'accuracy', 'balanced_accuracy'}
    assert none['accuracy'] == intervals['accuracy']


def test_groups_widen_the_intervals():
    """Ten copies of each image have as much information as one, which only the groups reveal."""
    probs, targets = random_split(2, number=30)
    groups = np.repeat([f'patient {i:02}' for i in range(30)], 10)
    copies = probs.repeat(10, axis=0), targets.repeat(10)
    order = np.random.default_rng(0).permutation(300)  # groups need not be in a row
    copies, groups = tuple(part[order] for part in copies), groups[order]
    apart = bootstrap_intervals(*copies, resamples=40)['accuracy']
    together = bootstrap_intervals(*copies, groups, resamples=40)['accuracy']
    single = bootstrap_intervals(probs, targets, resamples=40)['accuracy']
    assert together == pytest.approx(single, abs=0.02)
    assert together[1] - together[0] > 2 * (apart[1] - apart[0])


def test_undefined_draws_are_left_out():
    probs, targets = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), np.array([0, 0, 1])
    intervals = bootstrap_intervals(probs, targets, resamples=50)  # many draws are of one class
    assert all(low < 0.6 and high == 1 for low, high in (intervals['macro_auroc'], intervals['kappa']))
    intervals = bootstrap_intervals(probs[:2], targets[:2], resamples=10)  # all are
    assert all(map(math.isnan, intervals['macro_auroc']))
    assert all(map(math.isnan, intervals['kappa']))
    assert intervals['accuracy'] == pytest.approx([0.025**0.5, 1])


@pytest.mark.parametrize(
    ('sizes', 'recalls'),
    [
        ((1, 99), (0.9, 0.99)),
        ((5, 95), (0.65, 0.99)),
        ((5, 95), (0.5, 1)),
        ((20, 80), (0.8, 1)),
        ((10, 40), (0.8, 0.98)),
        ((20, 80), (0.4, 0.2)),
    ],
)
def test_balanced_accuracy_holds_where_the_rare_class_is_harder(sizes, recalls):
    """Coverage over all numbers of correct images; 89.9 to 93 % if both classes are treated as equally hard."""
    targets = np.repeat([0, 1], sizes)
    chances = np.multiply.outer(*(binom.pmf(np.arange(n + 1), n, p) for n, p in zip(sizes, recalls)))
    held = 0.0
    for hits in zip(*np.nonzero(chances > 1e-6)):
        right = np.concatenate([np.arange(n) < h for n, h in zip(sizes, hits)])
        low, high = accuracy_intervals(right, targets, 2)['balanced_accuracy']
        held += chances[hits] * (low - 1e-9 <= np.mean(recalls) <= high + 1e-9)
    assert held > 0.949


@pytest.mark.parametrize(
    ('groups_of_class', 'group_size', 'recalls'),
    [((1, 20), 5, (0.8, 0.9)), ((67, 11, 11, 5, 3, 2, 1), 3, (0.95, 0.8, 0.7, 0.7, 0.6, 0.7, 0.7))],
)
def test_balanced_accuracy_holds_if_a_class_is_of_few_groups(groups_of_class, group_size, recalls):
    """A class of one patient has no information on how patients differ; 87 and 81 % if that is ignored."""
    class_of_group = np.repeat(np.arange(len(recalls)), groups_of_class)
    groups = np.arange(len(class_of_group)).repeat(group_size)
    targets, held = class_of_group[groups], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        right_of_group = rng.beta(*(np.take([recalls, np.subtract(1, recalls)], class_of_group, axis=1) * 0.43))
        right = rng.random(len(groups)) < right_of_group[groups]
        low, high = accuracy_intervals(right, targets, len(recalls), groups)['balanced_accuracy']
        held.append(low <= np.mean(recalls) <= high)
    assert np.mean(held) > 0.93
