"""Logit adjustment of a saved model."""

import csv
import dataclasses
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers import TINY_STUDENT, create_student, has_same_weights, spread_predictions, write_images

from hdkd_timm import TrainConfig, train
from hdkd_timm.cli import main
from hdkd_timm.evaluation.evaluate import EvalConfig, evaluate_model
from hdkd_timm.evaluation.logit_adjustment import TAUS, adjust_model, adjust_probs
from hdkd_timm.evaluation.metrics import classification_metrics
from hdkd_timm.models.checkpoint import load_model, save_model
from hdkd_timm.models.logit_bias import add_logit_bias

PRIOR = np.array([12, 3, 12]) / 27


@pytest.fixture
def data_dir(tmp_path):
    """Images of three classes, of which b is rare."""
    for split, number in (('train', 12), ('val', 9)):
        write_images(tmp_path / 'data' / split, number=number, seed=number)
    for path in sorted((tmp_path / 'data' / 'train' / 'b').iterdir())[3:]:
        path.unlink()
    return tmp_path / 'data'


@pytest.fixture
def model_dir(tmp_path, data_dir):
    """A network whose predictions differ from image to image, with fewer of b."""
    model = create_student(num_classes=3)
    spread_predictions(model, data_dir / 'val')
    add_logit_bias(model, np.log(PRIOR))
    save_model(model, tmp_path / 'model', label_names=list('abc'))
    return tmp_path / 'model'


def test_the_prior_is_taken_off():
    probs, prior = np.array([[0.6, 0.3, 0.1], [0.0, 0.5, 0.5]]), np.array([0.6, 0.3, 0.1])
    np.testing.assert_allclose(adjust_probs(probs, prior, 0), probs, atol=1e-12)
    np.testing.assert_allclose(adjust_probs(probs, prior, 1)[0], [1 / 3] * 3)
    odds = adjust_probs(probs, prior, 0.5)[1]
    assert odds[0] == pytest.approx(0, abs=1e-12)
    assert odds[2] / odds[1] == pytest.approx(3**0.5)


@pytest.mark.parametrize('tau', [0.5, 1.0])
def test_the_new_model_has_the_adjusted_probabilities(tmp_path, data_dir, model_dir, tau):
    config = EvalConfig(data_dir=str(data_dir), split='val', workers=0, bootstrap=0, device='cpu')
    result = adjust_model(model_dir, tmp_path / 'new', config, tau)
    assert result == json.loads((tmp_path / 'new' / 'adjustment.json').read_text())
    assert set(result) == {'model', 'tau', 'prior'}
    assert result['tau'] == tau
    assert list(result['prior'].values()) == pytest.approx(PRIOR)
    _, before = evaluate_model(str(model_dir), config)
    report, after = evaluate_model(str(tmp_path / 'new'), config)
    np.testing.assert_allclose(after['probs'], adjust_probs(before['probs'], PRIOR, tau), atol=1e-5)
    # and it is an ordinary model
    model = timm.create_model(f'local-dir:{tmp_path / "new"}', pretrained=True).eval()
    old, _ = load_model(model_dir)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        shift = model(x) - old.eval()(x)
    np.testing.assert_allclose(shift, np.broadcast_to(-tau * np.log(PRIOR), (2, 3)), atol=1e-4)


@pytest.mark.parametrize('metric', [None, 'log_loss'])
def test_validation_images_choose_tau(tmp_path, data_dir, model_dir, metric):
    config = EvalConfig(data_dir=str(data_dir), split='val', workers=0, bootstrap=0, device='cpu')
    result = adjust_model(model_dir, tmp_path / 'new', config, select_metric=metric)
    assert [each['tau'] for each in result['candidates']] == list(TAUS)
    _, images = evaluate_model(str(model_dir), config)
    scores = [classification_metrics(adjust_probs(images['probs'], PRIOR, tau), images['targets']) for tau in TAUS]
    for each, expected in zip(result['candidates'], scores):
        assert {k: v for k, v in each.items() if k != 'tau'} == pytest.approx(expected)
    values = [each[metric or 'balanced_accuracy'] for each in scores]
    assert len(set(values)) > 1
    assert result['tau'] == TAUS[values.index(min(values) if metric == 'log_loss' else max(values))]
    assert (result['split'], result['select_metric']) == ('val', metric or 'balanced_accuracy')


def test_the_image_size_of_networks_of_any_size(tmp_path, data_dir):
    save_model(timm.create_model('resnet10t', num_classes=3), tmp_path / 'model', label_names=list('abc'))
    config = EvalConfig(data_dir=str(data_dir), split='val', img_size=(48, 32), workers=0, device='cpu')
    result = adjust_model(tmp_path / 'model', tmp_path / 'new', config)
    saved = json.loads((tmp_path / 'new' / 'config.json').read_text())
    assert saved['pretrained_cfg']['input_size'] == [3, 48, 32]
    report, _ = evaluate_model(str(tmp_path / 'new'), dataclasses.replace(config, img_size=None))
    chosen = next(each for each in result['candidates'] if each['tau'] == result['tau'])
    assert report['log_loss'] == pytest.approx(chosen['log_loss'], rel=1e-4)


def test_classes_in_the_models_order(tmp_path, data_dir):
    """The images' classes may be in another order than the model's."""
    save_model(create_student(num_classes=3), tmp_path / 'model', label_names=list('cba'))
    config = EvalConfig(data_dir=str(data_dir), split='val', workers=0, device='cpu')
    result = adjust_model(tmp_path / 'model', tmp_path / 'new', config, 1.0)
    assert result['prior'] == pytest.approx({'c': 12 / 27, 'b': 3 / 27, 'a': 12 / 27})


def test_command_with_a_run(tmp_path, data_dir, capsys):
    settings = {k: v for k, v in TINY_STUDENT.items() if k not in ('img_size', 'num_classes')}
    config = TrainConfig(
        data_dir=str(data_dir), img_size=32, epochs=1, batch_size=4, workers=0, device='cpu', bootstrap=0,
        model_kwargs=settings, output=str(tmp_path / 'runs'), experiment='run',
    )  # fmt: skip
    run = train(config)['run']
    assert main(['adjust', run, '--out-dir', str(tmp_path / 'new'), '-j', '0', '--device', 'cpu']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ['tau', 'accuracy', 'balanced', 'accuracy', 'macro', 'AUROC', 'log', 'loss']
    tau = json.loads((tmp_path / 'new' / 'adjustment.json').read_text())['tau']
    assert [line.split()[0] for line in lines if line.endswith('*')] == [f'{tau:.3g}']
    assert lines[-2].startswith(f"tau {tau:.3g}, written to '{tmp_path / 'new'}'")
    with Path(run, 'images.csv').open(newline='') as file:
        counted = [row['label'] for row in csv.DictReader(file) if row['split'] == 'train']
    assert (counted.count('a'), counted.count('b')) == (12, 3)


def test_the_splits_are_not_the_same_images(tmp_path, data_dir, model_dir):
    """A folder of classes without splits, whose images would be counted and chosen by."""
    config = EvalConfig(data_dir=str(data_dir / 'val'), split='val', workers=0, device='cpu')
    with pytest.raises(ValueError, match="27 images are in both split 'train' and split 'val', such as"):
        adjust_model(model_dir, tmp_path / 'new', config)
    adjust_model(model_dir, tmp_path / 'new', config, 0.5)  # nothing is chosen


@pytest.mark.parametrize('flags', [['--split', 'test'], ['--batch-size', '3'], ['--amp']])
def test_flags_without_an_effect(tmp_path, data_dir, model_dir, flags, capsys):
    command = ['adjust', str(model_dir), '--data-dir', str(data_dir), '--out-dir', str(tmp_path / 'new')]
    assert main([*command, '--tau', '0.5', *flags]) == 1
    assert f'{flags[0]} has no effect with --tau: no image is evaluated' in capsys.readouterr().err
    assert main([*command, '--tau', '0.5', '--seed', '3']) == 0


def test_models_that_belong_to_no_run_need_images(tmp_path, model_dir, capsys):
    for name, error in (
        ('hdkd_student.derm', "'hdkd_student.derm' is not a folder or file of a run, whose images would be taken"),
        (model_dir, f"'{model_dir}' does not belong to a run"),
    ):
        assert main(['adjust', str(name), '--out-dir', str(tmp_path / 'new')]) == 1
        assert error in capsys.readouterr().err


def test_networks_that_know_of_rare_classes_already(tmp_path, data_dir, model_dir, caplog):
    config = EvalConfig(data_dir=str(data_dir), split='val', workers=0, device='cpu')
    adjust_model(model_dir, tmp_path / 'once', config, 0.5)
    assert 'adjusted already' not in caplog.text
    adjust_model(tmp_path / 'once', tmp_path / 'twice', config, 0.5)
    assert f"'{tmp_path / 'once'}' has been adjusted already: both adjustments add up" in caplog.text
    run = tmp_path / 'run'
    run.mkdir()
    (run / 'config.yaml').write_text('class_weights: balanced\n')
    (run / 'images.csv').write_text('path,label,split\n')
    shutil.copytree(model_dir, run / 'best')
    adjust_model(run, tmp_path / 'third', config, 0.5)
    assert 'was trained with class_weights balanced, which makes up for rare classes already' in caplog.text


def test_a_tau_of_0_is_said_to_change_nothing(tmp_path, data_dir, model_dir, caplog):
    config = EvalConfig(data_dir=str(data_dir), split='val', workers=0, device='cpu')
    adjust_model(model_dir, tmp_path / 'new', config, 0.0)
    assert 'A tau of 0 changes nothing' in caplog.text
    assert has_same_weights(load_model(tmp_path / 'new')[0], load_model(model_dir)[0])


@pytest.mark.parametrize(
    ('arguments', 'error'),
    [
        (dict(tau=-1.0), '--tau must be a number from 0, got -1'),
        (dict(tau=float('nan')), '--tau must be a number from 0, got nan'),
        (dict(select_metric='mean_ap'), '--select-metric must be one of accuracy, balanced_accuracy'),
        (dict(tta='hflip'), '--tta hflip averages probabilities'),
        (dict(in_chans=1), 'expects 3 channels, not --in-chans 1'),
        (dict(tau=1.0, select_metric='accuracy'), '--select-metric accuracy has no effect with --tau'),
    ],
)
def test_wrong_arguments(tmp_path, data_dir, model_dir, arguments, error):
    settings = {key: arguments.pop(key) for key in ('tta', 'in_chans') if key in arguments}
    config = EvalConfig(data_dir=str(data_dir), split='val', workers=0, device='cpu', **settings)
    with pytest.raises(ValueError, match=error):
        adjust_model(model_dir, tmp_path / 'new', config, **arguments)
    assert not (tmp_path / 'new').exists()


def test_models_that_cannot_be_adjusted(tmp_path, data_dir, caplog):
    caplog.set_level(logging.INFO)
    config = EvalConfig(data_dir=str(data_dir), split='val', workers=0, device='cpu')
    save_model(create_student(num_classes=3), tmp_path / 'nameless')
    with pytest.raises(ValueError, match='has no class names: name them in index order, --label-names'):
        adjust_model(tmp_path / 'nameless', tmp_path / 'new', config)
    save_model(create_student(num_classes=4), tmp_path / 'more', label_names=list('abcd'))
    with pytest.raises(ValueError, match=r"Class 'd' of the model has no training image \(found: a, b, c\)"):
        adjust_model(tmp_path / 'more', tmp_path / 'new', config)
    save_model(create_student(num_classes=2), tmp_path / 'fewer', label_names=list('ab'))
    with pytest.raises(ValueError, match="Class 'c' of the training images is none of the model's: a, b"):
        adjust_model(tmp_path / 'fewer', tmp_path / 'new', config)
    problem = dict(problem_type='multi_label_classification', thresholds=dict.fromkeys('abc', 0.5))
    save_model(create_student(num_classes=3), tmp_path / 'labels', label_names=list('abc'), problem=problem)
    with pytest.raises(ValueError, match="choose the labels' thresholds instead"):
        adjust_model(tmp_path / 'labels', tmp_path / 'new', config)
    (tmp_path / 'new').mkdir()
    with pytest.raises(FileExistsError, match='choose another --out-dir'):
        adjust_model(tmp_path / 'nameless', tmp_path / 'new', config)
