"""Temperatures that are known come back."""
import numpy as np
import pytest

from hdkd_timm.calibrate import describe, fit_temperature, read_temperature, scale, write_temperature


def draw(number, temperature, seed=0):
    """Probabilities that are too sure by this factor, and targets of the true ones."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (number, 4))
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    targets = (rng.random(number)[:, None] > true.cumsum(1)).sum(1).clip(max=3)
    sure = np.exp(logits * temperature - (logits * temperature).max(1, keepdims=True))
    return sure / sure.sum(1, keepdims=True), targets


@pytest.mark.parametrize('temperature', [0.4, 1., 3.])
def test_fit(temperature):
    probs, targets = draw(20_000, temperature)
    assert fit_temperature(probs, targets) == pytest.approx(temperature, rel=0.04)
    # on images that it was not fitted on, the error goes down to what chance leaves
    result = describe(*draw(20_000, temperature, seed=1), temperature)
    assert result['ece']['after'] < 0.015
    assert result['log_loss']['after'] <= result['log_loss']['before'] + 1e-12
    if temperature != 1:
        assert result['ece']['before'] > 0.05


def test_scale():
    probs = np.array([[0.7, 0.2, 0.1], [1., 0., 0.]])
    np.testing.assert_allclose(scale(probs, 1.), probs, atol=1e-12)
    np.testing.assert_allclose(scale(probs[:1], 2.), np.sqrt(probs[:1]) / np.sqrt(probs[:1]).sum())
    assert (scale(probs, 5.).argmax(1) == probs.argmax(1)).all()
    assert np.isfinite(scale(probs, 0.05)).all()


def test_extremes():
    probs, targets = draw(50, 1.)
    assert 0.05 <= fit_temperature(np.eye(4)[targets] * 0.9 + 0.025, targets) < 0.1  # always right, never sure enough
    with pytest.raises(ValueError, match=r'got \(0, 4\)'):
        fit_temperature(probs[:0], targets[:0])


def test_file(tmp_path):
    assert read_temperature(tmp_path) is None
    write_temperature(tmp_path, 1.5, {'val': describe(*draw(50, 1.5), 1.5)})
    assert read_temperature(tmp_path) == 1.5
    for text in ('{', '{"temperature": -1}', '{"temperature": null}', '{}'):
        (tmp_path / 'calibration.json').write_text(text)
        with pytest.raises(ValueError, match='tells no temperature'):
            read_temperature(tmp_path)
