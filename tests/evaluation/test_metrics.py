"""Metrics against scikit-learn's and against numbers worked out by hand."""
import io
import math
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, binomtest, rankdata
from sklearn import metrics as sk

import hdkd_timm.evaluation.metrics as metrics_module
from hdkd_timm.evaluation.metrics import (
    LOWER_IS_BETTER,
    METRICS,
    WeightedImages,
    accuracy_intervals,
    bootstrap,
    bootstrap_intervals,
    class_auroc,
    classification_metrics,
    expected_calibration_error,
    format_interval,
    format_metric,
    full_report,
    macro_auroc,
    per_class_metrics,
    reliability,
)
from hdkd_timm.utils.signals import Interrupted


def random_split(num_classes, number=200, seed=0, decimals=None):
    """Probabilities that know a little of the targets; few decimals make ties."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(num_classes, size=number)
    logits = rng.normal(size=(number, num_classes)) + np.eye(num_classes)[targets]
    if decimals is not None:
        logits = logits.round(decimals)
    probs = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).round(9)
    probs[:, 0] = 1 - probs[:, 1:].sum(axis=1)
    return probs, targets


@pytest.mark.parametrize('num_classes', [2, 3, 7])
@pytest.mark.parametrize('decimals', [None, 0])
def test_against_scikit_learn(num_classes, decimals):
    probs, targets = random_split(num_classes, decimals=decimals)
    found = classification_metrics(probs, targets)
    predictions = probs.argmax(axis=1)
    one_vs_rest = [sk.roc_auc_score(targets == k, probs[:, k]) for k in range(num_classes)]
    expected = {
        'accuracy': (predictions == targets).mean(),
        'balanced_accuracy': np.mean([(predictions[targets == k] == k).mean() for k in range(num_classes)]),
        'macro_f1': sk.f1_score(targets, predictions, average='macro'),
        'macro_auroc': np.mean(one_vs_rest),
        'kappa': sk.cohen_kappa_score(targets, predictions),
        'log_loss': -np.log(probs[np.arange(len(targets)), targets]).mean(),
    }
    assert set(found) == set(METRICS)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9), name
    if num_classes > 2:
        assert found['macro_auroc'] == pytest.approx(sk.roc_auc_score(targets, probs, multi_class='ovr'))
    else:
        assert found['macro_auroc'] == pytest.approx(sk.roc_auc_score(targets, probs[:, 1]))
    assert 0.5 < found['macro_auroc'] < 1


def test_auroc_by_hand():
    targets = np.array([0, 0, 1, 1])
    scores = np.array([0.1, 0.4, 0.35, 0.8])  # 3 of the 4 pairs are in order
    assert macro_auroc(np.stack([1 - scores, scores], axis=1), targets) == 0.75
    assert macro_auroc(np.full((4, 2), 0.5), targets) == 0.5  # a tie is half a pair
    assert macro_auroc(np.stack([scores, 1 - scores], axis=1), targets) == 0.25


def test_auroc_of_classes():
    probs, targets = random_split(4, decimals=0)
    assert class_auroc(probs, targets) == pytest.approx(
        [sk.roc_auc_score(targets == k, probs[:, k]) for k in range(4)])
    some = targets < 2
    found = class_auroc(probs[some], targets[some])
    assert np.isfinite(found).tolist() == [True, True, False, False]
    assert np.isnan(class_auroc(probs[targets == 1], targets[targets == 1])).all()


def test_reliability():
    probs = np.array([[.5, .5], [.95, .05], [.2, .8], [.1, .9], [.75, .25]])
    found = reliability(probs, np.array([0, 1, 1, 1, 0]), bins=4)  # bins end at their edge
    assert found['images'].tolist() == [0, 1, 1, 3]
    assert found['confidence'] == pytest.approx([0, .5, .75, 2.65])
    assert found['correct'].tolist() == [0, 1, 1, 2]


def test_absent_classes():
    probs, targets = random_split(4)
    keep = targets != 2
    probs, targets = probs[keep], targets[keep]
    found = classification_metrics(probs, targets)
    assert all(map(math.isfinite, found.values()))
    present = (0, 1, 3)
    predictions = probs.argmax(axis=1)
    assert (predictions == 2).any()
    assert found['macro_auroc'] == pytest.approx(
        np.mean([sk.roc_auc_score(targets == k, probs[:, k]) for k in present]))
    assert found['balanced_accuracy'] == pytest.approx(
        np.mean([(predictions[targets == k] == k).mean() for k in present]))
    # a class that is predicted but absent has an F1 of 0, and counts
    assert found['macro_f1'] == pytest.approx(
        sum(sk.f1_score(targets == k, predictions == k) for k in present) / 4)


def test_undefined_is_nan_and_nothing_else():
    right, wrong = np.array([[0.9, 0.1]] * 3), np.array([[0.1, 0.9], [0.2, 0.8], [0.9, 0.1]])
    found = classification_metrics(right, np.zeros(3, int))
    assert {name for name, value in found.items() if math.isnan(value)} == {'macro_auroc', 'kappa'}
    assert (found['accuracy'], found['balanced_accuracy'], found['macro_f1']) == (1, 1, 1)
    assert found['log_loss'] == pytest.approx(-math.log(0.9))
    # of one class still, but predictions differ: kappa is defined (chance explains it all)
    found = classification_metrics(wrong, np.zeros(3, int))
    assert {name for name, value in found.items() if math.isnan(value)} == {'macro_auroc'}
    assert found['kappa'] == 0


def test_log_loss_of_certain_errors_is_finite():
    for dtype in (np.float32, np.float64):
        found = classification_metrics(np.array([[1, 0], [0, 1]], dtype), np.array([1, 1]))
        assert found['log_loss'] == pytest.approx(-math.log(np.finfo(dtype).eps) / 2, rel=1e-3)


def test_calibration_error_by_hand():
    # bins of a fifth: (0.4, 0.6] holds confidences 0.5 (right) and 0.6 (wrong), (0.8, 1] holds 0.9 and 1 (both right)
    probs = np.array([[0.5, 0.3, 0.2], [0.2, 0.6, 0.2], [0.05, 0.05, 0.9], [0, 1, 0]])
    targets = np.array([0, 0, 2, 1])
    expected = (2 * abs(1 / 2 - 0.55) + 2 * abs(1 - 0.95)) / 4
    assert expected_calibration_error(probs, targets, bins=5) == pytest.approx(expected)
    # neighbours at the upper end are apart: (0.6, 0.8] holds 0.7 (right), (0.8, 1] holds 0.9 (wrong)
    assert expected_calibration_error(
        np.array([[0.7, 0.3], [0.9, 0.1]]), np.array([0, 1]), bins=5) == pytest.approx((0.3 + 0.9) / 2)
    # in one bin only the means count
    assert expected_calibration_error(probs, targets, bins=1) == pytest.approx(abs(3 / 4 - 3 / 4))
    assert expected_calibration_error(np.array([[1., 0]] * 4), np.array([0, 0, 0, 1])) == pytest.approx(0.25)
    assert expected_calibration_error(np.array([[1., 0]] * 4), np.zeros(4, int)) == 0


@pytest.mark.parametrize(('probs', 'targets'), [
    (np.zeros((0, 3)), np.zeros(0, int)), (np.full((2, 2), 0.5), np.zeros(3, int)), (np.zeros(3), np.zeros(3, int))])
def test_bad_shapes(probs, targets):
    with pytest.raises(ValueError, match=r'Expected \(N, K\) probabilities and \(N,\) targets, got \('):
        classification_metrics(probs, targets)


def test_per_class():
    probs = np.eye(3)[[0, 0, 1, 1, 1]]
    found = per_class_metrics(probs, np.array([0, 1, 1, 1, 0]), ['a', 'b', 'c'])
    assert found['a'] == {'precision': 0.5, 'recall': 0.5, 'f1': 0.5, 'support': 2}
    assert found['b'] == pytest.approx({'precision': 2 / 3, 'recall': 2 / 3, 'f1': 2 / 3, 'support': 3})
    assert found['c'] == {'precision': 0, 'recall': 0, 'f1': 0, 'support': 0}


def reference_metrics(probs, targets):
    """The definitions, each for itself, of images as they are."""
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
        'ece': sum(abs((predicted == targets)[bins == i].sum() - confidence[bins == i].sum())
                   for i in range(15)) / len(targets)}


@pytest.mark.filterwarnings('ignore:invalid value encountered')
@pytest.mark.parametrize('seed', range(12))
def test_each_draw_is_what_its_images_give(seed, monkeypatch):
    """Of few images of some classes, ties among the scores, certain errors, with and without groups."""
    rng = np.random.default_rng(seed)
    number, classes, grouped = int(rng.integers(1, 40)), int(rng.integers(2, 9)), seed % 2
    probs, targets = random_split(classes, number, seed, decimals=seed % 3 - 1 if seed % 3 else None)
    probs[rng.random(number) < 0.2] = np.eye(classes)[rng.integers(classes)]
    targets = targets % int(rng.integers(1, classes + 1))  # classes without images
    groups = np.array([f'patient {i}' for i in rng.integers(number // 3 + 1, size=number)]) if grouped else None
    monkeypatch.setattr(metrics_module, 'WEIGHTS_AT_ONCE', 16 * number)  # more than one part
    found, = bootstrap([WeightedImages(probs, targets)], groups, resamples=50, seed=seed)
    draws = np.random.default_rng(seed)
    names = np.unique(groups) if grouped else range(number)
    undefined = set()
    for i in range(50):
        drawn = draws.integers(len(names), size=len(names))
        if grouped:
            drawn = np.concatenate([np.flatnonzero(groups == names[j]) for j in drawn])
        expected = reference_metrics(probs[drawn], targets[drawn])
        assert classification_metrics(probs[drawn], targets[drawn]) == pytest.approx(
            expected, rel=1e-12, abs=1e-12, nan_ok=True)
        for name in METRICS:
            assert found[name][i] == pytest.approx(expected[name], rel=1e-12, abs=1e-12, nan_ok=True), (i, name)
            undefined |= {name} if math.isnan(expected[name]) else set()
    assert undefined <= {'macro_auroc', 'kappa'}
    assert all(len(values) == 50 for values in found.values())


def test_undefined_draws_occur():
    """Draws of one class alone are among those that the test before compares."""
    found, = bootstrap([WeightedImages(*random_split(2, 3, seed=1))], resamples=50)
    assert 0 < np.isnan(found['macro_auroc']).sum() < 50
    assert np.isfinite(found['accuracy']).all()


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_probabilities_that_are_not_finite(bad):
    """The label of such an image would be an arbitrary one."""
    probs, targets = random_split(3, number=20)
    probs[[4, 7], 1] = bad
    for function in (classification_metrics, class_auroc, bootstrap_intervals):
        with pytest.raises(ValueError, match='2 of 20 images have probabilities that are not finite, .* image 4'):
            function(probs, targets)


def test_a_bootstrap_stops_when_asked(monkeypatch):
    probs, targets = random_split(3, number=50)
    monkeypatch.setattr(metrics_module, 'WEIGHTS_AT_ONCE', 1)
    asked = []

    def stop_if_asked():
        asked.append(None)
        if len(asked) == 3:
            raise Interrupted(signal.SIGTERM, Path('run'))

    with pytest.raises(Interrupted):
        full_report(probs, targets, ['a', 'b', 'c'], resamples=1000, stop_if_asked=stop_if_asked)
    assert len(asked) == 3


@pytest.mark.parametrize('is_terminal', [True, False])
def test_a_bar_is_shown_on_a_terminal_alone(monkeypatch, is_terminal):
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, 'stderr', stream)
    probs, targets = random_split(2, number=20)
    bootstrap_intervals(probs, targets, resamples=64)
    assert not stream.getvalue()  # nothing worth a bar
    monkeypatch.setattr(metrics_module, 'WEIGHTS_AT_ONCE', 1)
    bootstrap_intervals(probs, targets, resamples=64, stop_if_asked=lambda: time.sleep(0.4))
    assert ('bootstrap' in stream.getvalue() and '48/64' in stream.getvalue()) == is_terminal
    assert is_terminal or not stream.getvalue()


def test_intervals_of_proportions():
    """Those that are known of accuracy and recall; the true value of 70 % is in most of them."""
    covered = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        targets = rng.integers(2, size=120)
        probs = np.eye(2)[np.where(rng.random(120) < 0.7, targets, 1 - targets)]
        right = probs.argmax(axis=1) == targets
        report = full_report(probs, targets, ['a', 'b'], resamples=40, seed=seed)
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
    """All right or all wrong: nothing is certain, and what is known of the accuracy is known of the others."""
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
            [-math.log(confidence), -math.log(confidence) + (1 - least) * math.log(confidence / (1 - confidence))])
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
    report = full_report(probs, targets, ['few', 'many'], resamples=50)
    assert report['per_class']['few']['recall'] == 1
    assert report['per_class']['few']['recall_95'] == pytest.approx([0.025 ** 0.2, 1])  # 0.478
    low, high = report['intervals_95']['balanced_accuracy']
    assert low < 0.8 < report['balanced_accuracy'] < high
    # and so has one whose recalls are 1 and 0
    probs = np.tile([0.9, 0.1], (100, 1))
    low, high = bootstrap_intervals(probs, targets, resamples=50)['balanced_accuracy']
    assert low < 0.4
    assert high > 0.6
    # a class without images or labels has none
    report = full_report(np.pad(probs, ((0, 0), (0, 1))), targets, ['few', 'many', 'none'], resamples=5)
    assert report['per_class']['none']['recall_95'] is report['per_class']['none']['precision_95'] is None
    assert report['per_class']['many']['precision_95'] is None
    assert report['per_class']['many']['recall_95'] == pytest.approx([0, 1 - 0.025 ** (1 / 95)])


def test_groups_that_are_all_right_count_once():
    """Of 12 images of 3 patients that are all right, 3 are known to be independent."""
    targets, groups = np.repeat([0, 1, 0], 4), np.repeat([0, 1, 2], 4)
    found = bootstrap_intervals(np.eye(2)[targets] * 0.9 + 0.05, targets, groups, resamples=50)
    assert found['accuracy'] == pytest.approx([0.025 ** (1 / 3), 1])
    assert found['balanced_accuracy'][0] <= 0.025 ** (1 / 3) + 1e-9
    assert found['kappa'][0] < found['accuracy'][0]


def test_interval_of_the_calibration_error():
    """Labels as the probabilities say, made surer: the true error is known from many images, of 200 it seems larger."""
    def draw_sure(number, seed):
        rng = np.random.default_rng(seed)
        probs = rng.dirichlet(np.ones(3), size=number)
        targets = (rng.random(number)[:, None] > probs.cumsum(axis=1)).sum(axis=1)
        return probs ** 1.2 / (probs ** 1.2).sum(axis=1, keepdims=True), targets

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
    """Ten copies of each image tell no more than one, which only the groups know."""
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
    assert intervals['accuracy'] == pytest.approx([0.025 ** 0.5, 1])


def test_full_report():
    probs, targets = random_split(3, number=50)
    report = full_report(probs, targets, ['a', 'b', 'c'], resamples=20, seed=1)
    assert set(report) == {'images', *METRICS, 'intervals_95', 'per_class', 'confusion_matrix'}
    assert report['images'] == 50
    assert {name: report[name] for name in METRICS} == classification_metrics(probs, targets)
    assert report['intervals_95'] == bootstrap_intervals(probs, targets, resamples=20, seed=1)
    assert list(report['per_class']['a']) == ['precision', 'recall', 'f1', 'support', 'precision_95', 'recall_95']
    groups = np.arange(50) // 2
    grouped = full_report(probs, targets, ['a', 'b', 'c'], groups, resamples=20, seed=1)
    assert grouped['intervals_95'] == bootstrap_intervals(probs, targets, groups, 20, seed=1)
    assert list(report['per_class']) == ['a', 'b', 'c']
    matrix = np.zeros((3, 3), int)
    np.add.at(matrix, (targets, probs.argmax(axis=1)), 1)
    assert report['confusion_matrix'] == matrix.tolist()
    assert 'intervals_95' not in full_report(probs, targets, ['a', 'b', 'c'], resamples=0)


def test_names_of_metrics():
    assert set(LOWER_IS_BETTER) < set(METRICS)
    probs, targets = random_split(3)
    better = classification_metrics(0.3 * probs + 0.7 * np.eye(3)[targets], targets)
    worse = classification_metrics(np.roll(probs, 1, axis=1), targets)
    for name in METRICS:
        if name != 'ece':
            assert (better[name] < worse[name]) == (name in LOWER_IS_BETTER)


@pytest.mark.parametrize(('sizes', 'recalls'), [
    ((1, 99), (0.9, 0.99)), ((5, 95), (0.65, 0.99)), ((5, 95), (0.5, 1)), ((20, 80), (0.8, 1)), ((10, 40), (0.8, 0.98)),
    ((20, 80), (0.4, 0.2))])
def test_balanced_accuracy_holds_where_the_rare_class_is_harder(sizes, recalls):
    """Over all numbers of right images: 89.9 to 93 % if both classes were as hard as their mean."""
    targets = np.repeat([0, 1], sizes)
    chances = np.multiply.outer(*(binom.pmf(np.arange(n + 1), n, p) for n, p in zip(sizes, recalls)))
    held = 0.
    for hits in zip(*np.nonzero(chances > 1e-6)):
        right = np.concatenate([np.arange(n) < h for n, h in zip(sizes, hits)])
        low, high = accuracy_intervals(right, targets, 2)['balanced_accuracy']
        held += chances[hits] * (low - 1e-9 <= np.mean(recalls) <= high + 1e-9)
    assert held > 0.949


@pytest.mark.parametrize(('groups_of_class', 'group_size', 'recalls'), [
    ((1, 20), 5, (0.8, 0.9)), ((67, 11, 11, 5, 3, 2, 1), 3, (0.95, 0.8, 0.7, 0.7, 0.6, 0.7, 0.7))])
def test_balanced_accuracy_holds_if_a_class_is_of_few_groups(groups_of_class, group_size, recalls):
    """A class of one patient tells nothing of how patients differ: 87 and 81 % if that was taken for no difference."""
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


@pytest.mark.parametrize(('name', 'value', 'shown'), [
    ('accuracy', 0.9996, '99.96 %'), ('accuracy', 0.99999, '99.999 %'), ('accuracy', 1., '100.0 %'),
    ('accuracy', 0.0004, '0.04 %'), ('accuracy', 0., '0.0 %'), ('accuracy', 0.5, '50.0 %'), ('', 0.99996, '0.99996'),
    ('', 1., '1.000'), ('', 1 - 1e-16, '1.000'), ('ece', 0.0003, '0.0003'), ('', None, '–'), ('', float('nan'), '–')])
def test_rounding_makes_nothing_perfect(name, value, shown):
    assert format_metric(name, value) == shown


@pytest.mark.parametrize(('interval', 'shown'), [
    ([0.9, 0.9996], '90.0 % to 99.96 %'), (None, ''), ([None, None], ''), ([math.nan, 1.], '')])
def test_intervals_as_a_person_reads_them(interval, shown):
    assert format_interval('accuracy', interval) == shown
