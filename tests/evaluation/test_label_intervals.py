"""Intervals of images with any number of labels."""

import numpy as np
import pytest
import sklearn.metrics as sk

from hdkd_timm.evaluation.bootstrap import bootstrap_intervals
from hdkd_timm.evaluation.label_intervals import per_label_intervals
from hdkd_timm.evaluation.metrics import MULTI_LABEL_METRICS
from hdkd_timm.evaluation.multi_label import WeightedLabels, multi_label_report
from hdkd_timm.evaluation.paired_tests import paired_bootstrap, paired_label_bootstrap

SHARED = {'macro_auroc': 'macro_auroc', 'log_loss': 'log_loss', 'exact_match': 'accuracy'}


def draw(number, labels, seed, noise=0.7):
    rng = np.random.default_rng(seed)
    targets = (rng.random((number, labels)) < 0.3).astype(np.uint8)
    targets[:2] = [[0], [1]]
    return (1 - noise) * targets + noise * rng.random((number, labels)), targets


def intervals(probs, targets, groups=None, **kwargs):
    names = [str(i) for i in range(targets.shape[1])]
    return multi_label_report(probs, targets, names, groups, 60, 1, progress=False, **kwargs)['intervals_95']


def two(probs):
    return np.concatenate([1 - probs, probs], axis=1)


@pytest.mark.parametrize('groups', [None, np.arange(60) // 3])
@pytest.mark.parametrize('noise', [0.7, 0.55, 0.4])
def test_one_label_is_two_classes(groups, noise):
    probs, targets = draw(60, 1, 0, noise)
    found = intervals(probs, targets, groups)
    expected = bootstrap_intervals(two(probs), targets[:, 0].astype(int), groups, 60, seed=1, progress=False)
    for name, other in SHARED.items():
        assert found[name] == pytest.approx(expected[other])


@pytest.mark.parametrize('groups', [None, np.arange(60) // 3])
@pytest.mark.parametrize('noise', [0.7, 0.4])
def test_pairs_of_one_label(groups, noise):
    probs, targets = draw(60, 1, 0, noise)
    other = np.where(np.arange(60)[:, None] % 3 == 0, probs, noise * probs[::-1] + (1 - noise) * targets)
    networks = [WeightedLabels(part, targets) for part in (probs, other)]
    found = paired_label_bootstrap(networks, groups, 60, seed=1)
    expected = paired_bootstrap(
        two(probs), two(other), targets[:, 0].astype(int), groups, 60, seed=1, progress=False
    )  # fmt: skip
    for name, of_classes in SHARED.items():
        assert found[name]['difference'] == pytest.approx(expected[of_classes]['difference'])
        assert found[name]['interval'] == pytest.approx(expected[of_classes]['interval'])


def test_no_mistake_was_seen():
    """Not that there is none: less is known of few images, and of many images of few patients."""
    widths = []
    for number, groups in ((30, None), (300, None), (300, np.arange(300) // 10)):
        found = intervals(*draw(number, 4, 0, noise=0.4), groups)
        assert set(found) == set(MULTI_LABEL_METRICS)
        low, high = np.array([found[name] for name in MULTI_LABEL_METRICS if name != 'log_loss']).T
        np.testing.assert_array_equal(high, 1)
        assert (low < 1).all()
        widths.append(1 - low)
    few, many, grouped = widths
    assert (few > 3 * many).all()
    assert (grouped > 1.5 * many).all()
    assert (few < 0.5).all()


def test_networks_without_a_mistake_are_not_equal():
    probs, targets = draw(30, 3, 0, noise=0.4)
    networks = [
        WeightedLabels(part, targets) for part in (probs, draw(30, 3, 1, noise=0.4)[0] * 0 + 0.9 * probs + 0.05)
    ]
    found = paired_label_bootstrap(networks, None, 60)
    for name in MULTI_LABEL_METRICS:
        low, high = found[name]['interval']
        if name != 'log_loss':
            assert low < found[name]['difference'] == 0 < high
    same = paired_label_bootstrap([networks[0], networks[0]], None, 60)
    assert all(part == {'difference': 0, 'interval': [0, 0]} for part in same.values())
    # other thresholds are another classifier
    found = paired_label_bootstrap([networks[0], WeightedLabels(probs, targets, np.full(3, 0.1))], None, 60)
    assert found['macro_f1']['difference'] < 0
    assert found['macro_f1']['interval'][0] < found['macro_f1']['difference']


def test_placements():
    probs, targets = draw(50, 3, 0)
    found = WeightedLabels(probs.round(1), targets).placements()
    for k in range(3):
        area = sk.roc_auc_score(targets[:, k], probs[:, k].round(1))
        for side in (0, 1):
            assert found[targets[:, k] == side, k].mean() == pytest.approx(area)


def test_a_label_of_no_image_or_of_all():
    probs, targets = draw(40, 4, 0)
    targets[:, 1], targets[:, 2] = 0, 1
    found = intervals(probs, targets)
    assert np.isfinite([found[name] for name in MULTI_LABEL_METRICS]).all()
    none = intervals(np.full((5, 2), 0.1), np.zeros((5, 2), np.uint8))
    assert np.isnan(none['macro_auroc']).all()
    assert none['exact_match'][1] == 1
    assert np.isfinite(none['log_loss']).all()


def test_shares_of_labels():
    """Each the Clopper-Pearson interval of the images that it is a share of."""
    probs = np.array([[0.9], [0.8], [0.7], [0.2], [0.1]])
    targets = np.array([[1], [1], [0], [0], [0]])
    found = per_label_intervals(WeightedLabels(probs, targets), ['a'])['a']
    assert found['precision_95'] == pytest.approx([0.0943, 0.9916], abs=1e-4)  # 2 of 3
    assert found['recall_95'] == pytest.approx([0.1581, 1], abs=1e-4)  # 2 of 2
    assert found['specificity_95'] == pytest.approx([0.0943, 0.9916], abs=1e-4)


def test_one_image_decides_nothing():
    targets = np.array([[1, 0, 0]])
    networks = [WeightedLabels(np.array([probs]), targets) for probs in ([0.9, 0.1, 0.1], [0.1, 0.1, 0.1])]
    found = paired_label_bootstrap(networks, None, 20)
    for name in ('macro_f1', 'micro_f1', 'exact_match'):
        low, high = found[name]['interval']
        assert found[name]['difference'] == -1
        assert low == -1
        assert high > 0
