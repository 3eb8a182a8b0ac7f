"""Comparisons whose outcome is known."""
import numpy as np
import pytest
from scipy.stats import binom

from hdkd_timm.compare import mcnemar, paired_bootstrap
from hdkd_timm.metrics import classification_metrics


def classifier(targets, skill, seed):
    """Probabilities of a classifier that is right that often."""
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
    # what is the same does not differ in any draw
    assert paired_bootstrap(a, a, targets, resamples=20)['accuracy'] == dict(difference=0, interval=[0, 0])
    # over groups of ten equal images the interval is wider
    again = [np.repeat(x[:40], 10, axis=0) for x in (a, b, targets)]
    wide = paired_bootstrap(*again, groups=np.arange(400) // 10, resamples=200)['accuracy']['interval']
    narrow = paired_bootstrap(*again, resamples=200)['accuracy']['interval']
    assert np.diff(wide) > 2 * np.diff(narrow)
    with pytest.raises(ValueError, match='same images and classes'):
        paired_bootstrap(a, b[:5], targets)
