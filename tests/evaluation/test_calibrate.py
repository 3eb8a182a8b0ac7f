"""Calibration of a saved model by the command."""

import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_helpers import tar_folder
from helpers import TINY_STUDENT, write_images

from hdkd_timm import TrainConfig, train
from hdkd_timm.cli import main
from hdkd_timm.evaluation.calibrate import calibrate_model
from hdkd_timm.evaluation.evaluate import EvalConfig, evaluate_model
from hdkd_timm.evaluation.run_results import find_run_data
from hdkd_timm.evaluation.temperature import apply_temperature, read_temperature
from hdkd_timm.models.checkpoint import load_model, save_model
from hdkd_timm.utils.files import check_sums


@pytest.fixture
def run_to_calibrate(tmp_path):
    """A run of a network whose images it tells apart now and then."""
    for split, number in (('train', 8), ('val', 8), ('test', 4)):
        write_images(tmp_path / 'data' / split, number=number, seed=number)
    settings = {k: v for k, v in TINY_STUDENT.items() if k not in ('img_size', 'num_classes')}
    config = TrainConfig(
        data_dir=str(tmp_path / 'data'), img_size=32, epochs=1, batch_size=4, workers=0, device='cpu', bootstrap=0,
        select_metric='log_loss', model_kwargs=settings, output=str(tmp_path / 'runs'), experiment='run',
    )  # fmt: skip
    return Path(train(config)['run'])


def test_calibrated_predictions(tmp_path, capsys, caplog):
    write_images(tmp_path / 'data' / 'train', number=12)
    write_images(tmp_path / 'data' / 'test', number=4, seed=1)
    settings = {k: v for k, v in TINY_STUDENT.items() if k not in ('img_size', 'num_classes')}
    run = train(
        TrainConfig(
            data_dir=str(tmp_path / 'data'),
            val_fraction=0.25,
            img_size=32,
            epochs=1,
            batch_size=4,
            workers=0,
            device='cpu',
            bootstrap=0,
            model_kwargs=settings,
            output=str(tmp_path / 'runs'),
            experiment='run',
        )
    )['run']
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
    assert ('does not differ significantly from 1' in caplog.text) == (low < 1 < high)
    probs = {}
    for flags in ([], ['--calibrated']):
        path = tmp_path / f'{len(flags)}.csv'
        assert main(['predict', run, images, '-j', '0', '--out', str(path), *flags]) == 0
        with path.open(newline='') as file:
            rows = list(csv.DictReader(file))
        probs[len(flags)] = np.array([[float(row[f'prob_{label}']) for label in 'abc'] for row in rows])
    np.testing.assert_allclose(apply_temperature(probs[0], temperature), probs[1], atol=1e-4)
    assert abs(probs[0] - probs[1]).max() > 1e-3
    # a model that does not belong to a run needs its images named
    shutil.copytree(f'{run}/best', tmp_path / 'model')
    assert main(['calibrate', str(tmp_path / 'model')]) == 1
    assert 'does not belong to a run' in capsys.readouterr().err
    assert (
        main(
            [
                'calibrate',
                str(tmp_path / 'model'),
                '--data-dir',
                str(tmp_path / 'data'),
                '--val-fraction',
                '0.25',
                '-j',
                '0',
            ]
        )
        == 0
    )
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


def test_temperature_of_averaged_views_and_of_former_weights(tmp_path, run_to_calibrate, caplog):
    """It scales what it was fitted to, the mean over the views, and goes with the weights that it belongs to."""
    best, data = run_to_calibrate / 'best', find_run_data(run_to_calibrate)
    config = EvalConfig(**data, workers=0, bootstrap=0, split='val', tta='hflip')
    result = calibrate_model(run_to_calibrate, config)
    report, _ = evaluate_model(run_to_calibrate, dataclasses.replace(config, calibrated=True))
    assert report['log_loss'] == pytest.approx(result['val']['log_loss']['after'], abs=1e-6)
    assert 'was fitted to' not in caplog.text
    evaluate_model(run_to_calibrate, dataclasses.replace(config, calibrated=True, tta=None))
    assert 'was fitted to probabilities with --tta hflip, and is applied to those without --tta' in caplog.text

    save_model(load_model(best)[0], best, replace=True)  # as the run does when it continues to a better epoch
    assert not (best / 'calibration.json').exists()
    assert "calibration.json', the temperature of weights that are replaced: run `hdkd calibrate` again" in caplog.text
    check_sums(best)


def test_run_on_tar_files(tmp_path, capsys):
    """Its images are read again as the run read and split them."""
    (tmp_path / 'tars').mkdir()
    for split, number in (('train', 12), ('test', 4)):
        write_images(tmp_path / split, number=number, seed=number)
        tar_folder(tmp_path / 'tars' / f'{split}.tar', tmp_path / split)
    run = train(
        TrainConfig(
            data_dir=str(tmp_path / 'tars'), val_fraction=0.25, model='test_resnet', img_size=32, epochs=1,
            batch_size=4, workers=0, device='cpu', bootstrap=0, output=str(tmp_path / 'runs'), experiment='run',
        )
    )['run']  # fmt: skip
    assert main(['calibrate', run, '-j', '0']) == 0
    assert re.search(r'(?m)^val +9 ', capsys.readouterr().out)
