"""Metrics against those of scikit-learn and against numbers worked out by hand."""

import math

import numpy as np
import pytest
from helpers import random_split
from sklearn import metrics as sk

from hdkd_timm.evaluation.bootstrap import bootstrap_intervals
from hdkd_timm.evaluation.metrics import (
    LOWER_IS_BETTER,
    METRICS,
    class_auroc,
    classification_metrics,
    defined_scores,
    expected_calibration_error,
    format_interval,
    format_metric,
    macro_auroc,
    per_class_metrics,
    reliability,
)
from hdkd_timm.evaluation.multi_label import per_label_metrics


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
    assert class_auroc(probs, targets) == pytest.approx([sk.roc_auc_score(targets == k, probs[:, k]) for k in range(4)])
    some = targets < 2
    found = class_auroc(probs[some], targets[some])
    assert np.isfinite(found).tolist() == [True, True, False, False]
    assert np.isnan(class_auroc(probs[targets == 1], targets[targets == 1])).all()


def test_reliability():
    probs = np.array([[0.5, 0.5], [0.95, 0.05], [0.2, 0.8], [0.1, 0.9], [0.75, 0.25]])
    found = reliability(probs, np.array([0, 1, 1, 1, 0]), bins=4)  # bins end at their edge
    assert found['images'].tolist() == [0, 1, 1, 3]
    assert found['confidence'] == pytest.approx([0, 0.5, 0.75, 2.65])
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
        np.mean([sk.roc_auc_score(targets == k, probs[:, k]) for k in present])
    )
    assert found['balanced_accuracy'] == pytest.approx(
        np.mean([(predictions[targets == k] == k).mean() for k in present])
    )
    # a class that is predicted but absent has an F1 of 0, and counts
    assert found['macro_f1'] == pytest.approx(sum(sk.f1_score(targets == k, predictions == k) for k in present) / 4)


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
    assert expected_calibration_error(np.array([[0.7, 0.3], [0.9, 0.1]]), np.array([0, 1]), bins=5) == pytest.approx(
        (0.3 + 0.9) / 2
    )
    # in one bin only the means count
    assert expected_calibration_error(probs, targets, bins=1) == pytest.approx(abs(3 / 4 - 3 / 4))
    assert expected_calibration_error(np.array([[1.0, 0]] * 4), np.array([0, 0, 0, 1])) == pytest.approx(0.25)
    assert expected_calibration_error(np.array([[1.0, 0]] * 4), np.zeros(4, int)) == 0


@pytest.mark.parametrize(
    ('probs', 'targets'),
    [(np.zeros((0, 3)), np.zeros(0, int)), (np.full((2, 2), 0.5), np.zeros(3, int)), (np.zeros(3), np.zeros(3, int))],
)
def test_bad_shapes(probs, targets):
    with pytest.raises(ValueError, match=r'Expected \(N, K\) probabilities and \(N,\) targets, got \('):
        classification_metrics(probs, targets)


def test_per_class():
    probs = np.eye(3)[[0, 0, 1, 1, 1]]
    found = per_class_metrics(probs, np.array([0, 1, 1, 1, 0]), ['a', 'b', 'c'])
    assert found['a'] == {'precision': 0.5, 'recall': 0.5, 'f1': 0.5, 'support': 2}
    assert found['b'] == pytest.approx({'precision': 2 / 3, 'recall': 2 / 3, 'f1': 2 / 3, 'support': 3})
    assert found['c'] == {'precision': 0, 'recall': 0, 'f1': 0, 'support': 0}


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_probabilities_that_are_not_finite(bad):
    """The predicted label of such an image would be arbitrary."""
    probs, targets = random_split(3, number=20)
    probs[[4, 7], 1] = bad
    for function in (classification_metrics, class_auroc, bootstrap_intervals):
        with pytest.raises(ValueError, match='2 of 20 images have non-finite probabilities, .* image 4'):
            function(probs, targets)


def test_names_of_metrics():
    assert set(LOWER_IS_BETTER) < set(METRICS)
    probs, targets = random_split(3)
    better = classification_metrics(0.3 * probs + 0.7 * np.eye(3)[targets], targets)
    worse = classification_metrics(np.roll(probs, 1, axis=1), targets)
    for name in METRICS:
        if name != 'ece':
            assert (better[name] < worse[name]) == (name in LOWER_IS_BETTER)


@pytest.mark.parametrize(
    ('name', 'value', 'shown'),
    [
        ('accuracy', 0.9996, '99.96 %'),
        ('accuracy', 0.99999, '99.999 %'),
        ('accuracy', 1.0, '100.0 %'),
        ('accuracy', 0.0004, '0.04 %'),
        ('accuracy', 0.0, '0.0 %'),
        ('accuracy', 0.5, '50.0 %'),
        ('', 0.99996, '0.99996'),
        ('', 1.0, '1.000'),
        ('', 1 - 1e-16, '1.000'),
        ('ece', 0.0003, '0.0003'),
        ('', None, '–'),
        ('', float('nan'), '–'),
    ],
)
def test_rounding_makes_nothing_perfect(name, value, shown):
    assert format_metric(name, value) == shown


@pytest.mark.parametrize(
    ('interval', 'shown'), [([0.9, 0.9996], '90.0 % to 99.96 %'), (None, ''), ([None, None], ''), ([math.nan, 1.0], '')]
)
def test_intervals_as_a_person_reads_them(interval, shown):
    assert format_interval('accuracy', interval) == shown


def test_scores_of_a_class_without_images():
    """0 / 0 is no score of 0: scikit-learn's own undefined scores, with one difference. A class with images that was
    never predicted keeps its precision of 0."""
    targets, predicted = np.array([0, 0, 1, 1]), np.array([0, 2, 0, 0])
    probs, classes = np.eye(4)[predicted], list('abcd')
    matrix = sk.confusion_matrix(targets, predicted, labels=range(4)).tolist()
    found = defined_scores(dict(per_class=per_class_metrics(probs, targets, classes), confusion_matrix=matrix))
    shown = {name: tuple(scores[key] for key in ('precision', 'recall', 'f1')) for name, scores in found.items()}
    assert shown['a'] == pytest.approx((1 / 3, 1 / 2, 2 / 5))
    assert (shown['b'], shown['c'], shown['d']) == ((0, 0, 0), (0, None, 0), (None, None, None))
    has = np.array([[1, 0, 0], [1, 0, 0]])
    labels = defined_scores(dict(per_class=per_label_metrics(np.array([[0.9, 0.9, 0.1]] * 2), has, list('abc'))))
    assert [labels[name]['precision'] for name in 'abc'] == [1, 0, None]
    assert [labels[name]['recall'] for name in 'abc'] == [1, None, None]
