"""Comparisons whose outcome is known."""

import numpy as np
import pytest
from scipy.stats import binom

from hdkd_timm.evaluation.metrics import classification_metrics
from hdkd_timm.evaluation.paired_tests import mcnemar, paired_bootstrap


def classifier(targets, skill, seed):
    """Probabilities of a classifier with the given accuracy."""
    rng = np.random.default_rng(seed)
    guess = np.where(rng.random(len(targets)) < skill, targets, (targets + rng.integers(1, 3, len(targets))) % 3)
    return np.eye(3)[guess] * 0.7 + 0.1


def test_mcnemar():
    a = np.array([1] * 10 + [0] * 2 + [1] * 5, bool)
    b = np.array([0] * 10 + [1] * 2 + [1] * 5, bool)
    result = mcnemar(a, b)
    assert (result['only_first'], result['only_second']) == (10, 2)
    assert result['p_value'] == pytest.approx(2 * binom.cdf(2, 12, 0.5))
    assert mcnemar(a, a)['p_value'] == 1
    with pytest.raises(ValueError, match=r'\(17,\) and \(3,\)'):
        mcnemar(a, b[:3])


def test_paired_bootstrap():
    targets = np.random.default_rng(0).integers(3, size=400)
    a, b = classifier(targets, 0.7, 1), classifier(targets, 0.85, 2)
    result = paired_bootstrap(a, b, targets, resamples=200)
    before, after = classification_metrics(a, targets), classification_metrics(b, targets)
    for name, values in result.items():
        assert values['difference'] == pytest.approx(after[name] - before[name])
        assert values['interval'][0] <= values['difference'] <= values['interval'][1]
    assert result['accuracy']['interval'][0] > 0.05
    # what is the same does not differ
    assert paired_bootstrap(a, a, targets, resamples=20)['accuracy'] == dict(difference=0, interval=[0, 0])
    # over groups of ten equal images the interval is wider
    again = [np.repeat(x[:40], 10, axis=0) for x in (a, b, targets)]
    wide = paired_bootstrap(*again, groups=np.arange(400) // 10, resamples=200)['accuracy']['interval']
    narrow = paired_bootstrap(*again, resamples=200)['accuracy']['interval']
    assert np.diff(wide) > 2 * np.diff(narrow)
    with pytest.raises(ValueError, match='same images and classes'):
        paired_bootstrap(a, b[:5], targets)


def test_each_draw_is_of_the_same_images():
    """Intervals are percentiles of the differences, with each metric recomputed from the resampled images."""
    rng = np.random.default_rng(0)
    targets = rng.integers(3, size=300)
    probs = [rng.dirichlet(np.ones(3), size=300) * 0.7 + 0.3 * np.eye(3)[targets] for _ in range(2)]
    groups = rng.integers(60, size=300)
    result = paired_bootstrap(*probs, targets, groups, resamples=100, seed=7)
    members = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    draws = np.random.default_rng(7)
    differences = []
    for _ in range(100):
        drawn = np.concatenate([members[i] for i in draws.integers(len(members), size=len(members))])
        first, second = (classification_metrics(p[drawn], targets[drawn]) for p in probs)
        differences.append(second['macro_auroc'] - first['macro_auroc'])
    assert result['macro_auroc']['interval'] == pytest.approx(np.percentile(differences, [2.5, 97.5]), abs=1e-12)


@pytest.mark.parametrize('is_right', [True, False])
def test_networks_that_are_alike_on_twelve_images(is_right):
    """Two networks that agree on twelve images may differ on others."""
    targets = np.arange(12) % 3
    labels = targets if is_right else (targets + 1) % 3
    a, b = (np.eye(3)[labels] * sure + (1 - sure) / 3 for sure in (0.9, 0.8))
    result = paired_bootstrap(a, b, targets, resamples=50)
    reach = 1.959964**2 / (12 + 1.959964**2)  # Tango's of no image that one alone gets right: 0.24
    for name in ('accuracy', 'balanced_accuracy', 'macro_f1'):
        assert result[name]['difference'] == 0
        assert result[name]['interval'] == pytest.approx([-reach, reach], abs=1e-6)
    for name in ('macro_auroc', 'kappa', 'log_loss', 'ece'):
        low, high = result[name]['interval']
        assert low < result[name]['difference'] - 0.1
        assert result[name]['difference'] + 0.1 < high
    # of three patients still less is known
    grouped = paired_bootstrap(a, b, targets, np.arange(12) // 4, resamples=50)
    assert grouped['accuracy']['interval'][1] == pytest.approx(1.959964**2 / (3 + 1.959964**2), abs=1e-6)


def test_a_class_of_few_images_that_both_get_right():
    """The few images of a class leave the balanced accuracy more uncertain than the accuracy."""
    targets = np.repeat([0, 1], [4, 96])
    a = np.eye(2)[targets] * 0.8 + 0.1
    b = np.eye(2)[targets] * 0.6 + 0.2
    a[4:8], b[6:12] = a[4:8, ::-1], b[6:12, ::-1]
    result = paired_bootstrap(a, b, targets, resamples=50)
    width = {name: np.diff(values['interval'])[0] for name, values in result.items()}
    assert width['accuracy'] < 0.15
    assert width['balanced_accuracy'] > 0.25


def test_a_comparison_stops_when_asked():
    targets = np.arange(30) % 3
    with pytest.raises(InterruptedError):
        paired_bootstrap(classifier(targets, 0.7, 1), classifier(targets, 0.7, 2), targets, stop_if_asked=_interrupt)


def _interrupt():
    raise InterruptedError


def test_balanced_accuracy_of_pairs_holds_where_the_rare_class_is_harder():
    """Two equally good networks that differ only on the rare class (85 % if classes are treated as equally hard)."""
    targets, held = np.repeat([0, 1], [20, 80]), []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        a, b = (np.eye(2)[np.where(rng.random(100) < np.where(targets, 1, 0.8), targets, 1)] for _ in range(2))
        low, high = paired_bootstrap(a, b, targets, resamples=1)['balanced_accuracy']['interval']
        held.append(low <= 0 <= high)
    assert np.mean(held) > 0.91
