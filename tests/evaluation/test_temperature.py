"""Temperatures that are known are recovered."""

import numpy as np
import pytest

from hdkd_timm.evaluation.temperature import (
    apply_temperature,
    fit_temperature,
    read_temperature,
    summarize_calibration,
    temperature_interval,
    write_temperature,
)


def draw(number, temperature, seed=0):
    """Probabilities that are overconfident by this factor, and targets drawn from the true ones."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (number, 4))
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    targets = (rng.random(number)[:, None] > true.cumsum(1)).sum(1).clip(max=3)
    sure = np.exp(logits * temperature - (logits * temperature).max(1, keepdims=True))
    return sure / sure.sum(1, keepdims=True), targets


@pytest.mark.parametrize('temperature', [0.4, 1.0, 3.0])
def test_fit(temperature):
    probs, targets = draw(20_000, temperature)
    assert fit_temperature(probs, targets) == pytest.approx(temperature, rel=0.04)
    # on images that it was not fitted on, the error goes down to what chance leaves
    result = summarize_calibration(*draw(20_000, temperature, seed=1), temperature)
    assert result['ece']['after'] < 0.015
    assert result['log_loss']['after'] <= result['log_loss']['before'] + 1e-12
    if temperature != 1:
        assert result['ece']['before'] > 0.05


@pytest.mark.parametrize(('number', 'group_size'), [(40, 1), (400, 1), (400, 8)])
def test_interval_holds_the_temperature(number, group_size):
    """Wide with few images; copies of images in groups count once."""
    held, widths = [], []
    for seed in range(60):
        probs, targets = (part.repeat(group_size, axis=0) for part in draw(number // group_size, 1.5, seed))
        found = fit_temperature(probs, targets)
        groups = np.arange(number) // group_size if group_size > 1 else None
        low, high = temperature_interval(probs, targets, found, groups)
        assert low < found < high
        held.append(low <= 1.5 <= high)
        widths.append(np.log(high / low))
    assert np.mean(held) > 0.88
    expected = {(40, 1): 0.85, (400, 1): 0.26, (400, 8): 0.8}[number, group_size]  # 95 % of many fits are so far apart
    assert np.mean(widths) == pytest.approx(expected, rel=0.25)


def test_interval_ends_where_temperatures_do():
    probs, targets = np.tile([0.55, 0.45], (4, 1)), np.array([0, 0, 1, 0])
    temperature = fit_temperature(probs, targets)
    assert temperature == pytest.approx(np.log(0.55 / 0.45) / np.log(3), rel=1e-3)
    assert temperature_interval(probs, targets, temperature) == pytest.approx([0.05, 20])  # of four images


def test_apply_temperature():
    probs = np.array([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(apply_temperature(probs, 1.0), probs, atol=1e-12)
    np.testing.assert_allclose(apply_temperature(probs[:1], 2.0), np.sqrt(probs[:1]) / np.sqrt(probs[:1]).sum())
    assert (apply_temperature(probs, 5.0).argmax(1) == probs.argmax(1)).all()
    assert np.isfinite(apply_temperature(probs, 0.05)).all()


def test_extremes():
    probs, targets = draw(50, 1.0)
    for probs_of_all in (np.eye(4)[targets] * 0.9 + 0.025, np.eye(4)[(targets + 1) % 4] * 0.9 + 0.025):
        with pytest.raises(ValueError, match='Cannot fit a temperature to these 50 images'):  # all right, all wrong
            fit_temperature(probs_of_all, targets)
    with pytest.raises(ValueError, match=r'got \(0, 4\)'):
        fit_temperature(probs[:0], targets[:0])


def test_file(tmp_path):
    assert read_temperature(tmp_path) is None
    write_temperature(tmp_path, 1.5, {'val': summarize_calibration(*draw(50, 1.5), 1.5)})
    assert read_temperature(tmp_path) == 1.5
    (tmp_path / 'calibration.json').write_text('{"temperature": 2}')
    with pytest.raises(ValueError, match=r"calibration\.json' is damaged, or was edited"):
        read_temperature(tmp_path)
    (tmp_path / 'SHA256SUMS').unlink()  # of an earlier version
    for text in ('{', '{"temperature": -1}', '{"temperature": null}', '{}'):
        (tmp_path / 'calibration.json').write_text(text)
        with pytest.raises(ValueError, match='has no valid temperature'):
            read_temperature(tmp_path)
