"""Temperatures that are known come back."""
import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY_STUDENT, write_images

from hdkd_timm import TrainConfig, train
from hdkd_timm.cli import main
from hdkd_timm.evaluation.temperature import (
    describe,
    fit_temperature,
    read_temperature,
    scale,
    temperature_interval,
    write_temperature,
)


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


@pytest.mark.parametrize(('number', 'group_size'), [(40, 1), (400, 1), (400, 8)])
def test_interval_holds_the_temperature(number, group_size):
    """Of few images it is wide; copies of images in groups tell no more than one of each."""
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


def test_scale():
    probs = np.array([[0.7, 0.2, 0.1], [1., 0., 0.]])
    np.testing.assert_allclose(scale(probs, 1.), probs, atol=1e-12)
    np.testing.assert_allclose(scale(probs[:1], 2.), np.sqrt(probs[:1]) / np.sqrt(probs[:1]).sum())
    assert (scale(probs, 5.).argmax(1) == probs.argmax(1)).all()
    assert np.isfinite(scale(probs, 0.05)).all()


def test_extremes():
    probs, targets = draw(50, 1.)
    for probs_of_all in (np.eye(4)[targets] * 0.9 + 0.025, np.eye(4)[(targets + 1) % 4] * 0.9 + 0.025):
        with pytest.raises(ValueError, match='No temperature can be told from these 50 images'):  # all right, all wrong
            fit_temperature(probs_of_all, targets)
    with pytest.raises(ValueError, match=r'got \(0, 4\)'):
        fit_temperature(probs[:0], targets[:0])


def test_file(tmp_path):
    assert read_temperature(tmp_path) is None
    write_temperature(tmp_path, 1.5, {'val': describe(*draw(50, 1.5), 1.5)})
    assert read_temperature(tmp_path) == 1.5
    (tmp_path / 'calibration.json').write_text('{"temperature": 2}')
    with pytest.raises(ValueError, match=r"calibration\.json' is damaged, or was edited"):
        read_temperature(tmp_path)
    (tmp_path / 'SHA256SUMS').unlink()  # of an earlier version
    for text in ('{', '{"temperature": -1}', '{"temperature": null}', '{}'):
        (tmp_path / 'calibration.json').write_text(text)
        with pytest.raises(ValueError, match='tells no temperature'):
            read_temperature(tmp_path)


def test_command(tmp_path, capsys, caplog):
    write_images(tmp_path / 'data' / 'train', number=12)
    write_images(tmp_path / 'data' / 'test', number=4, seed=1)
    settings = {k: v for k, v in TINY_STUDENT.items() if k not in ('img_size', 'num_classes')}
    run = train(TrainConfig(
        data_dir=str(tmp_path / 'data'), val_fraction=0.25, img_size=32, epochs=1, batch_size=4, workers=0,
        device='cpu', bootstrap=0, model_kwargs=settings, output=str(tmp_path / 'runs'), experiment='run'))['run']
    images = str(tmp_path / 'data' / 'test')
    assert main(['predict', run, images, '--calibrated', '--out', str(tmp_path / 'none.csv')]) == 1
    assert f"Model '{run}' is not calibrated: run `hdkd calibrate`" in capsys.readouterr().err

    assert main(['calibrate', run, '-j', '0']) == 0
    out = capsys.readouterr().out
    assert [line.split()[:2] for line in out.splitlines()[2:]] == [['val', '9'], ['test', '12']]
    temperature = read_temperature(f'{run}/best')
    low, high = json.loads(Path(run, 'best', 'calibration.json').read_text())['val']['temperature_95']
    assert low < temperature < high
    assert f'temperature {temperature:.4f} (95 % interval {low:.2f} to {high:.2f})' in out
    assert ('do not tell the temperature from 1' in caplog.text) == (low < 1 < high)
    probs = {}
    for flags in ([], ['--calibrated']):
        path = tmp_path / f'{len(flags)}.csv'
        assert main(['predict', run, images, '-j', '0', '--out', str(path), *flags]) == 0
        with path.open(newline='') as file:
            rows = list(csv.DictReader(file))
        probs[len(flags)] = np.array([[float(row[f'prob_{label}']) for label in 'abc'] for row in rows])
    np.testing.assert_allclose(scale(probs[0], temperature), probs[1], atol=1e-4)
    assert abs(probs[0] - probs[1]).max() > 1e-3
    # a model that belongs to no run needs its images named
    shutil.copytree(f'{run}/best', tmp_path / 'model')
    assert main(['calibrate', str(tmp_path / 'model')]) == 1
    assert 'belongs to no run' in capsys.readouterr().err
    assert main(['calibrate', str(tmp_path / 'model'), '--data-dir', str(tmp_path / 'data'), '--val-fraction', '0.25',
                 '-j', '0']) == 0
    assert read_temperature(tmp_path / 'model') == pytest.approx(temperature, rel=1e-4)
    # class folders without splits are one set of images, that of the fit
    capsys.readouterr()
    model, images = str(tmp_path / 'model'), tmp_path / 'data' / 'test'
    assert main(['calibrate', model, '--data-dir', str(images), '-j', '0']) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == ['val']
    # a test split that cannot be read is no missing one
    (images / 'a' / '0.png').write_bytes(b'broken')
    assert main(['calibrate', run, '-j', '0']) == 1
    assert 'Cannot read image' in capsys.readouterr().err
