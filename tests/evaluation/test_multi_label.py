"""Metrics of images with any number of labels, against scikit-learn's."""

import math

import numpy as np
import pytest
import sklearn.metrics as sk

from hdkd_timm.evaluation.label_intervals import per_label_intervals
from hdkd_timm.evaluation.metrics import MULTI_LABEL_METRICS, expected_calibration_error
from hdkd_timm.evaluation.multi_label import (
    WeightedLabels,
    assign_labels,
    choose_thresholds,
    flatten_labels,
    multi_label_metrics,
    multi_label_report,
    per_label_metrics,
)
from hdkd_timm.evaluation.problem import MultiLabel

NAMES = ['a', 'b', 'c', 'd']


@pytest.fixture
def images():
    """80 images with 4 labels of different frequency, and probabilities that know something of them."""
    rng = np.random.default_rng(0)
    targets = (rng.random((80, 4)) < [0.5, 0.2, 0.1, 0.7]).astype(np.uint8)
    return (0.25 * targets + 0.75 * rng.random((80, 4))).round(3), targets


@pytest.fixture
def thresholds():
    return np.array([0.5, 0.45, 0.6, 0.3])


def expected_metrics(probs, targets, predicted):
    return dict(
        macro_auroc=sk.roc_auc_score(targets, probs, average='macro'),
        mean_ap=sk.average_precision_score(targets, probs, average='macro'),
        macro_f1=sk.f1_score(targets, predicted, average='macro', zero_division=np.nan),
        micro_f1=sk.f1_score(targets, predicted, average='micro'),
        exact_match=sk.accuracy_score(targets, predicted),
        log_loss=np.mean([sk.log_loss(targets[:, k], probs[:, k], labels=[0, 1]) for k in range(targets.shape[1])]),
    )


def test_metrics_are_those_of_scikit_learn(images, thresholds):
    probs, targets = images
    assert set(multi_label_metrics(probs, targets)) == set(MULTI_LABEL_METRICS)
    for limits in (None, thresholds):
        predicted = probs >= (0.5 if limits is None else limits)
        assert multi_label_metrics(probs, targets, limits) == pytest.approx(expected_metrics(probs, targets, predicted))


def test_weights_are_repeated_images(images, thresholds):
    probs, targets = images
    counts = np.random.default_rng(1).integers(0, 4, 80)
    found = WeightedLabels(probs, targets, thresholds).metrics(counts[:, None].astype(float))
    repeated = multi_label_metrics(probs.repeat(counts, axis=0), targets.repeat(counts, axis=0), thresholds)
    assert {name: value[0] for name, value in found.items()} == pytest.approx(repeated)


def test_label_metrics_are_those_of_scikit_learn(images, thresholds):
    probs, targets = images
    predicted = probs >= thresholds
    found = per_label_metrics(probs, targets, NAMES, thresholds)
    scores = sk.precision_recall_fscore_support(targets, predicted, zero_division=0)
    for k, name in enumerate(NAMES):
        (tn, fp), (fn, tp) = sk.confusion_matrix(targets[:, k], predicted[:, k])
        assert found[name] == pytest.approx(
            dict(
                auroc=sk.roc_auc_score(targets[:, k], probs[:, k]),
                ap=sk.average_precision_score(targets[:, k], probs[:, k]),
                precision=scores[0][k],
                recall=scores[1][k],
                specificity=tn / (tn + fp),
                f1=scores[2][k],
                threshold=thresholds[k],
                support=tp + fn,
                predicted=tp + fp,
            )
        )


def test_labels_that_no_image_has():
    probs = np.array([[0.9, 0.2], [0.1, 0.3], [0.8, 0.1]])
    targets = np.array([[1, 0], [0, 0], [1, 0]])
    found = multi_label_metrics(probs, targets)
    assert (found['macro_auroc'], found['mean_ap'], found['macro_f1'], found['exact_match']) == (1, 1, 1, 1)
    of_label = per_label_metrics(probs, targets, ['x', 'none'])['none']
    assert math.isnan(of_label['auroc'])
    assert math.isnan(of_label['ap'])
    assert (of_label['precision'], of_label['recall'], of_label['f1'], of_label['specificity']) == (0, 0, 0, 1)
    assert per_label_intervals(WeightedLabels(probs, targets), ['x', 'none'])['none']['recall_95'] is None
    assert math.isnan(per_label_metrics(probs, np.ones((3, 2)), ['x', 'all'])['all']['specificity'])


def test_thresholds_have_the_largest_f1(images):
    probs, targets = images
    found = choose_thresholds(probs, targets)
    for k in range(4):
        every = [
            sk.f1_score(targets[:, k], probs[:, k] >= limit) for limit in np.concatenate([[0], np.unique(probs[:, k])])
        ]
        assert sk.f1_score(targets[:, k], probs[:, k] >= found[k]) == pytest.approx(max(every))
        assert found[k] not in probs[:, k]  # between two probabilities


@pytest.mark.parametrize(
    ('probs', 'targets', 'threshold'),
    [
        ([0.1, 0.2, 0.9], [0, 0, 1], 0.55),  # everything from above 0.2 to 0.9 is as good
        ([0.1, 0.2, 0.3], [0, 0, 1], 0.25),
        ([0.7, 0.8, 0.9], [0, 1, 1], 0.75),
        ([0.4, 0.6], [1, 1], 0.2),  # all have it: below all
        ([0.4, 0.6], [0, 0], 0.5),  # none
        ([0.3, 0.3, 0.3], [1, 0, 0], 0.15),  # ties cannot be told apart
    ],
)
def test_thresholds_of_a_few_images(probs, targets, threshold):
    assert choose_thresholds(np.array(probs)[:, None], np.array(targets)[:, None]) == pytest.approx([threshold])


def test_a_label_is_given_from_the_threshold_on():
    assert assign_labels(np.array([[0.3, 0.31, 0.29]]), np.full(3, 0.3)).tolist() == [[True, True, False]]
    assert assign_labels(np.array([[0.5, 0.49]])).tolist() == [[True, False]]


def test_report(images, thresholds):
    probs, targets = images
    report = multi_label_report(probs, targets, NAMES, None, 50, 1, thresholds=thresholds)
    assert report['images'] == 80
    assert {name: report[name] for name in MULTI_LABEL_METRICS} == multi_label_metrics(probs, targets, thresholds)
    assert set(report['intervals_95']) == set(MULTI_LABEL_METRICS)
    for name, (low, high) in report['intervals_95'].items():
        assert low < report[name] < high
    for scores in report['per_class'].values():
        for name in ('precision', 'recall', 'specificity'):
            low, high = scores[f'{name}_95']
            assert low <= scores[name] <= high
            assert 0.02 < high - low < 1
    assert 'intervals_95' not in multi_label_report(probs, targets, NAMES, resamples=0)


def test_intervals_of_groups_are_wider(images):
    """Each image four times: with their groups these are no more than the images alone."""
    probs, targets = (part.repeat(4, axis=0) for part in images)
    groups = np.arange(80).repeat(4)
    alone, independent, grouped = (
        multi_label_report(*part, NAMES, of, 200, 1)['intervals_95']
        for part, of in ((images, None), ((probs, targets), None), ((probs, targets), groups))
    )
    for name in MULTI_LABEL_METRICS:
        widths = [high - low for low, high in (found[name] for found in (alone, independent, grouped))]
        assert widths[1] < 0.65 * widths[0]
        assert widths[2] == pytest.approx(widths[0], rel=0.25)


def test_decisions_of_all_labels(images):
    probs, targets = images
    two, flat, groups = flatten_labels(probs, targets)
    assert two.shape == (320, 2)
    np.testing.assert_array_equal(two[:, 1].reshape(80, 4), probs)
    np.testing.assert_array_equal(flat.reshape(80, 4), targets)
    assert groups[:5].tolist() == [0, 0, 0, 0, 1]
    assert expected_calibration_error(two, flat) > 0
    assert flatten_labels(probs, targets, np.full(80, 'p'))[2].tolist() == ['p'] * 320


def test_scaled_probabilities(images):
    """A temperature divides the log odds of each label."""
    probs = images[0]
    expected = 1 / (1 + np.exp(-np.log(probs / (1 - probs)) / 2))
    np.testing.assert_allclose(MultiLabel.scale(probs, 2.0), expected)
    np.testing.assert_allclose(MultiLabel.scale(probs, 1.0), probs)


@pytest.mark.parametrize(
    ('probs', 'targets', 'message'),
    [
        (np.zeros((2, 3)), np.zeros(2), r'Expected \(N, K\) probabilities and targets, got \(2, 3\) and \(2,\)'),
        (np.zeros((0, 3)), np.zeros((0, 3)), 'Expected'),
        (np.full((2, 1), np.nan), np.zeros((2, 1)), '2 of 2 images have non-finite probabilities'),
    ],
)
def test_bad_input(probs, targets, message):
    with pytest.raises(ValueError, match=message):
        multi_label_metrics(probs, targets)
