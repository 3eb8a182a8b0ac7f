import math

import numpy as np
import pytest
from helpers import write_run
from sklearn.metrics import balanced_accuracy_score

from hdkd_timm.evaluation.bootstrap import bootstrap
from hdkd_timm.evaluation.metrics import WeightedImages
from hdkd_timm.evaluation.paired_tests import paired_bootstrap
from hdkd_timm.evaluation.run_results import read_networks
from hdkd_timm.study.results import ArmResult, compare_arms, mean_and_spread, study_table


def write_arm(folder, arm, right, seeds=(1, 2, 3), number=40):
    """An arm of networks that are right on about this share of the images."""
    students = {}
    for seed in seeds:
        write_run(folder / f'{arm}-{seed}', ['a', 'b', 'c'], number, right, seed=seed + round(1000 * right))
        students[seed] = read_networks([folder / f'{arm}-{seed}'])[0]
    return ArmResult(arm, students, len(seeds))


def score(student):
    return balanced_accuracy_score(student.targets, student.probs.argmax(axis=1))


def test_differences_are_means_over_the_seeds(tmp_path):
    worse, better = write_arm(tmp_path, 'worse', 0.4), write_arm(tmp_path, 'better', 0.7)
    found = compare_arms(worse, better)['balanced_accuracy']
    expected = [score(better.students[seed]) - score(worse.students[seed]) for seed in (1, 2, 3)]
    np.testing.assert_allclose(found['seeds'], expected, atol=1e-7)
    assert found['difference'] == pytest.approx(np.mean(expected))
    low, high = found['interval']
    assert 0 < low < found['difference'] < high
    # three networks on 120 images: the standard error of the mean of their differences is about 0.05
    assert 0.1 < high - low < 0.3


def test_images_are_matched_by_name(tmp_path):
    worse, better = write_arm(tmp_path, 'worse', 0.4), write_arm(tmp_path, 'better', 0.7)
    order = np.random.default_rng(0).permutation(120)
    moved = {
        seed: s._replace(names=[s.names[i] for i in order], targets=s.targets[order], probs=s.probs[order])
        for seed, s in better.students.items()
    }
    found, expected = compare_arms(worse, better._replace(students=moved)), compare_arms(worse, better)
    for name in ('balanced_accuracy', 'log_loss'):
        for key in ('difference', 'interval', 'seeds'):
            assert found[name][key] == pytest.approx(expected[name][key])


def test_interval_is_that_of_the_mean_over_the_seeds(tmp_path):
    worse, better = write_arm(tmp_path, 'worse', 0.4), write_arm(tmp_path, 'better', 0.7)
    draws = [
        [bootstrap([WeightedImages(s.probs, s.targets)], None, 1000, 42)[0]['accuracy'] for s in arm.students.values()]
        for arm in (worse, better)
    ]
    expected = np.percentile(np.mean(draws[1], axis=0) - np.mean(draws[0], axis=0), [2.5, 97.5])
    interval = compare_arms(worse, better)['accuracy']['interval']
    assert interval == pytest.approx(expected, abs=0.015)
    assert np.ptp(interval) == pytest.approx(np.ptp(expected), rel=0.1)


def write_predicted(folder, arm, seeds, targets, predicted):
    """An arm of networks that all predict the same."""
    students = {}
    for seed in seeds:
        write_run(folder / f'{arm}-{seed}', ['a', 'b'], len(targets) // 2)
        network = read_networks([folder / f'{arm}-{seed}'])[0]
        students[seed] = network._replace(targets=targets, probs=0.1 + 0.8 * np.eye(2)[predicted])
    return ArmResult(arm, students, len(seeds))


def test_few_images_of_a_class_that_all_change(tmp_path):
    """A bootstrap has no width there: all 5 images of a class are right in one arm, and wrong in the other."""
    targets = np.arange(56) < 5
    first = write_predicted(tmp_path, 'x', (1, 2), targets.astype(int), targets.astype(int))
    second = write_predicted(tmp_path, 'y', (1, 2), targets.astype(int), np.zeros(56, int))
    found = compare_arms(first, second)
    expected = paired_bootstrap(first.students[1].probs, second.students[1].probs, targets.astype(int))
    for metric in ('accuracy', 'balanced_accuracy', 'macro_f1', 'kappa', 'log_loss', 'macro_auroc'):
        assert found[metric]['interval'] == pytest.approx(expected[metric]['interval'])
    low, high = found['balanced_accuracy']['interval']
    assert low == pytest.approx(-0.71, abs=0.01)
    assert -0.1 < high < -0.05


def test_no_difference_in_few_images_is_uncertain(tmp_path):
    """Other networks of the same accuracy: on other images they may differ."""
    targets = (np.arange(20) < 10).astype(int)
    first = write_predicted(tmp_path, 'x', (1, 2, 3), targets, targets)
    students = {seed: s._replace(probs=0.2 + 0.6 * s.probs) for seed, s in first.students.items()}
    low, high = compare_arms(first, first._replace(arm='y', students=students))['accuracy']['interval']
    assert low == pytest.approx(-0.161, abs=1e-3)  # Tango's for 20 images
    assert high == pytest.approx(0.161, abs=1e-3)


def test_more_seeds_are_more_certain(tmp_path):
    worse, better = write_arm(tmp_path, 'worse', 0.4), write_arm(tmp_path, 'better', 0.7)
    one = better._replace(students={1: better.students[1]})
    widths = [np.ptp(compare_arms(worse, arm)['accuracy']['interval']) for arm in (one, better)]
    assert widths[1] < 0.75 * widths[0]  # the networks' mistakes are independent here


def test_only_shared_seeds_are_compared(tmp_path):
    first, second = write_arm(tmp_path, 'x', 0.4, (1, 2)), write_arm(tmp_path, 'y', 0.6, (2, 3))
    assert compare_arms(first, second)['accuracy']['seeds'] == pytest.approx(
        [(second.students[2].result['accuracy'] - first.students[2].result['accuracy'])]
    )
    assert compare_arms(first, write_arm(tmp_path, 'z', 0.6, (7,))) is None


def test_other_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Arms 'x' and 'y' cannot be compared: They were tested on different images"):
        compare_arms(write_arm(tmp_path, 'x', 0.4), write_arm(tmp_path, 'y', 0.6, number=30))


def test_interval_without_variation_is_undefined(tmp_path):
    arm = write_arm(tmp_path, 'x', 1.0)
    found = compare_arms(arm, arm)['accuracy']
    assert found['difference'] == 0
    assert all(map(math.isnan, found['interval']))


def test_table(tmp_path):
    arms = [write_arm(tmp_path, 'worse', 0.4), write_arm(tmp_path, 'better', 0.7)]
    first, second = study_table(arms, 'worse', ['accuracy', 'log_loss'], 100)
    accuracies = [student.result['accuracy'] for student in arms[1].students.values()]
    assert second['test_accuracy'] == pytest.approx(np.mean(accuracies))
    assert second['test_accuracy_sd'] == pytest.approx(np.std(accuracies, ddof=1))
    assert (second['arm'], second['seeds'], second['parameters'], second['seconds']) == ('better', 3, 5, 2.0)
    assert second['val_log_loss'] == 1.0  # that of the kept epoch in summary.csv
    assert second['accuracy_difference'] == pytest.approx(second['test_accuracy'] - first['test_accuracy'])
    assert 'accuracy_difference' not in first


def test_differences_are_those_at_the_same_fraction(tmp_path):
    arms = [
        write_arm(tmp_path, arm, right)._replace(arm=arm[0], fraction=fraction, train_images=images)
        for arm, right, fraction, images in (
            ('x1', 0.3, 0.1, 12),
            ('y1', 0.6, 0.1, 12),
            ('x2', 0.8, 1.0, 120),
            ('y2', 0.7, 1.0, 120),
        )
    ]
    rows = study_table(arms, 'x', ['accuracy'], 50)
    assert [(row['arm'], row['train_fraction'], row['train_images']) for row in rows[1:3]] == [
        ('y', 0.1, 12),
        ('x', 1.0, 120),
    ]
    for x, y in (rows[:2], rows[2:]):
        assert 'accuracy_difference' not in x
        assert y['accuracy_difference'] == pytest.approx(y['test_accuracy'] - x['test_accuracy'])


def test_spread():
    assert mean_and_spread([1.0, 3.0]) == pytest.approx([2.0, math.sqrt(2)])
    assert mean_and_spread([1.0])[0] == 1.0
    assert math.isnan(mean_and_spread([1.0])[1])
    assert all(map(math.isnan, mean_and_spread([])))
