"""Averages of saved models."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import timm
import torch
from helpers import TINY_STUDENT, create_student, spread_predictions, write_images

from hdkd_timm import TrainConfig, train
from hdkd_timm.cli import main
from hdkd_timm.evaluation import average
from hdkd_timm.evaluation.average import average_models
from hdkd_timm.evaluation.evaluate import EvalConfig, evaluate_model
from hdkd_timm.models.averaging import average_weights
from hdkd_timm.models.checkpoint import load_model, save_model


@pytest.fixture
def config(tmp_path):
    write_images(tmp_path / 'data' / 'val', number=10)
    return EvalConfig(data_dir=str(tmp_path / 'data'), split='val', workers=0, device='cpu')


@pytest.fixture
def folders(tmp_path, config):
    for name in ('first', 'second', 'third'):
        model = create_student(num_classes=3)
        spread_predictions(model, tmp_path / 'data' / 'val')
        save_model(model, tmp_path / name, label_names=list('abc'))
    return [tmp_path / name for name in ('first', 'second', 'third')]


def average_of(folders, shares):
    return average_weights([load_model(folder)[0].state_dict() for folder in folders], shares)


def has_weights(folder, state_dict):
    model = timm.create_model(f'local-dir:{folder}', pretrained=True)
    return all(torch.equal(tensor, state_dict[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(('flags', 'shares'), [([], [0.5, 0.5]), (['--shares', '0.7', '0.3'], [0.7, 0.3])])
def test_given_and_equal_shares(tmp_path, folders, capsys, flags, shares):
    out = tmp_path / 'average'
    assert main(['average', *map(str, folders[:2]), '--out-dir', str(out), *flags]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"shares {shares[0]} {shares[1]}, written to '{out}', load it with",
        f"timm.create_model('local-dir:{out}', pretrained=True)",
    ]
    assert has_weights(out, average_of(folders[:2], shares))
    assert json.loads((out / 'average.json').read_text()) == {'models': [*map(str, folders[:2])], 'shares': shares}
    config = json.loads((out / 'config.json').read_text())
    assert config['label_names'] == list('abc')
    assert config['pretrained_cfg']['input_size'] == [3, 32, 32]


@pytest.mark.parametrize('metric', [None, 'log_loss'])
def test_validation_images_choose_the_shares_of_two(tmp_path, folders, config, metric):
    result = average_models(folders[:2], tmp_path / 'average', config=config, select_metric=metric)
    metric = metric or 'balanced_accuracy'
    candidates = result['candidates']
    assert [each['shares'] for each in candidates] == [[i / 10, 1 - i / 10] for i in range(11)]
    values = [each[metric] for each in candidates]
    assert len(set(values)) > 1
    best = min(values) if metric == 'log_loss' else max(values)
    equal = [each['shares'] for each in candidates if each[metric] == best]
    assert result['shares'] == min(equal, key=max)  # the most even
    assert has_weights(tmp_path / 'average', average_of(folders[:2], result['shares']))
    report, _ = evaluate_model(str(tmp_path / 'average'), config)
    assert report[metric] == pytest.approx(best)
    # the ends are the models themselves
    assert candidates[-1][metric] == pytest.approx(evaluate_model(str(folders[0]), config)[0][metric])
    assert candidates[0][metric] == pytest.approx(evaluate_model(str(folders[1]), config)[0][metric])


def test_the_image_size_of_networks_of_any_size(tmp_path, config):
    """The size at which the shares were chosen is that of the new model."""
    for name in ('a', 'b'):
        model = timm.create_model('resnet10t', num_classes=3)
        save_model(model, tmp_path / name, label_names=list('abc'))
    config = dataclasses.replace(config, img_size=48)
    result = average_models([tmp_path / 'a', tmp_path / 'b'], tmp_path / 'average', config=config)
    saved = json.loads((tmp_path / 'average' / 'config.json').read_text())
    assert saved['pretrained_cfg']['input_size'] == [3, 48, 48]
    report, _ = evaluate_model(str(tmp_path / 'average'), dataclasses.replace(config, img_size=None))
    chosen = next(each for each in result['candidates'] if each['shares'] == result['shares'])
    assert report['log_loss'] == pytest.approx(chosen['log_loss'])


def test_a_greedy_soup_of_more_models(tmp_path, folders, config, monkeypatch):
    # the third is best, the first makes it better, and the second then worse
    scores = {(0, 0, 1): 0.6, (1, 0, 0): 0.5, (0, 1, 0): 0.4, (0.5, 0, 0.5): 0.6, (1 / 3, 1 / 3, 1 / 3): 0.59}
    tried = []

    def evaluate(folder, _):
        state_dict = load_model(folder)[0].state_dict()
        shares = next(each for each in scores if all(torch.equal(v, state_dict[k]) for k, v in expected[each].items()))
        tried.append(shares)
        return {'accuracy': scores[shares]}, {'names': ['1.png']}

    expected = {shares: average_of(folders, shares) for shares in scores}
    monkeypatch.setattr(average, 'evaluate_model', evaluate)
    result = average_models(folders, tmp_path / 'average', config=config, select_metric='accuracy')
    assert tried == [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 0, 0.5), (1 / 3, 1 / 3, 1 / 3)]
    assert result['shares'] == [0.5, 0, 0.5]  # as good as the third alone, and more even
    assert has_weights(tmp_path / 'average', expected[0.5, 0, 0.5])


def test_training_images_choose_nothing(tmp_path, config):
    """The validation images of one run may have been training images of another."""
    settings = {k: v for k, v in TINY_STUDENT.items() if k not in ('img_size', 'num_classes')}
    write_images(tmp_path / 'data' / 'train', number=8, seed=1)
    runs = []
    for name, fraction in (('whole', 0.0), ('part', 0.25)):
        if fraction:
            (tmp_path / 'data' / 'val').rename(tmp_path / 'data' / 'test')
        runs.append(
            train(
                TrainConfig(
                    data_dir=config.data_dir, val_fraction=fraction, img_size=32, epochs=1, batch_size=8, workers=0,
                    device='cpu', bootstrap=0, model_kwargs=settings, output=str(tmp_path / 'runs'), experiment=name,
                )
            )['run']
        )  # fmt: skip
    config = EvalConfig(data_csv=f'{runs[1]}/images.csv', split='val', workers=0, device='cpu')
    error = rf"^6 of the 6 images of split 'val' are training images of '{re.escape(str(runs[0]))}', such as"
    with pytest.raises(ValueError, match=error):
        average_models(runs, tmp_path / 'average', config=config)
    assert not (tmp_path / 'average').exists()
    config = EvalConfig(data_csv=f'{runs[1]}/images.csv', split='test', workers=0, device='cpu')
    result = average_models([f'{runs[0]}/best', runs[1]], tmp_path / 'average', config=config)
    assert len(result['candidates']) == 11
    assert Path(tmp_path / 'average' / 'model.safetensors').is_file()


def test_command_with_a_relative_path_of_training_images(tmp_path, config, monkeypatch, capsys):
    settings = {k: v for k, v in TINY_STUDENT.items() if k not in ('img_size', 'num_classes')}
    write_images(tmp_path / 'data' / 'train', number=6, seed=1)
    monkeypatch.chdir(tmp_path)
    for name in ('a', 'b'):
        train(
            TrainConfig(
                data_dir='data', img_size=32, epochs=1, batch_size=8, workers=0, device='cpu', bootstrap=0,
                model_kwargs=settings, experiment=name,
            )
        )  # fmt: skip
    command = ['average', 'runs/a', 'local-dir:runs/b/best', '--out-dir', 'average', '-j', '0', '--device', 'cpu']
    assert main([*command, '--data-dir', 'data', '--split', 'train']) == 1
    assert "18 of the 18 images of split 'train' are training images of 'runs/a'" in capsys.readouterr().err
    assert main([*command, '--config', 'runs/a/config.yaml']) == 0  # its validation images
    assert 'shares' in capsys.readouterr().out


@pytest.mark.parametrize('flags', [['--split', 'test'], ['--tta', 'hflip'], ['--batch-size', '3'], ['--in-chans', '1']])
def test_flags_without_an_effect(folders, tmp_path, flags, capsys):
    assert main(['average', *map(str, folders[:2]), '--out-dir', str(tmp_path / 'average'), *flags]) == 1
    assert f'{flags[0]} has no effect without images: add --data-dir or --data-csv' in capsys.readouterr().err


def test_wrong_arguments(tmp_path, folders, config, capsys):
    out = tmp_path / 'average'
    with pytest.raises(ValueError, match='Images choose the shares: give either images or --shares'):
        average_models(folders[:2], out, [0.5, 0.5], config)
    with pytest.raises(ValueError, match='--select-metric accuracy has no effect without images'):
        average_models(folders[:2], out, select_metric='accuracy')
    with pytest.raises(
        ValueError, match='--select-metric mean_ap is not a metric of these images: choose from accuracy'
    ):
        average_models(folders[:2], out, config=config, select_metric='mean_ap')
    with pytest.raises(ValueError, match='Shares must be 2 numbers'):
        average_models(folders[:2], out, [0.5, 0.2])
    assert not out.exists()
    with pytest.raises(FileExistsError, match='choose another --out-dir'):
        average_models(folders[:2], folders[0])
    assert main(['average', str(folders[0]), str(tmp_path / 'none'), '--out-dir', str(out)]) == 1
    assert f"Model '{tmp_path / 'none'}' does not exist" in capsys.readouterr().err


def test_models_without_class_names(tmp_path):
    """Their order is a guess where trainers sort the classes differently."""
    for name in ('a', 'b'):
        save_model(create_student(num_classes=3), tmp_path / name)
    write_images(tmp_path / 'data' / 'val', classes=('c1', 'c2', 'c10'), number=2)
    config = dict(data_dir=str(tmp_path / 'data'), split='val', workers=0, device='cpu')
    with pytest.raises(ValueError, match='no class names, and their order is ambiguous'):
        average_models([tmp_path / 'a', tmp_path / 'b'], tmp_path / 'average', config=EvalConfig(**config))
    named = EvalConfig(**config, label_names=('c1', 'c2', 'c10'))
    average_models([tmp_path / 'a', tmp_path / 'b'], tmp_path / 'average', config=named)
    assert json.loads((tmp_path / 'average' / 'config.json').read_text())['label_names'] == ['c1', 'c2', 'c10']
