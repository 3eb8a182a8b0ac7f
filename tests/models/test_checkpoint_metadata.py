import argparse
import json
import logging
import os
import shutil

import pytest
import timm
import torch
from helpers import (
    TINY_STUDENT,
    create_student,
    create_teacher,
    has_same_weights,
    save_checkpoint,
)
from timm.utils import CheckpointSaver

from hdkd_timm import TrainConfig, train
from hdkd_timm.cli import main
from hdkd_timm.models.checkpoint import convert_checkpoint, load_model
from hdkd_timm.models.checkpoint_file import read_checkpoint

HEADS = dict(model_kwargs=dict(head_dim=8))  # which keys and shapes do not determine


def test_checkpoint_of_timm_s_train(tmp_path, monkeypatch, caplog):
    """Its args are a Namespace, and name model, size and arguments: nothing is left open."""
    monkeypatch.chdir(tmp_path)
    model = timm.create_model('hdkd_student_s4', **{**TINY_STUDENT, 'img_size': 64})
    args = argparse.Namespace(
        model='hdkd_student_s4', img_size=64, num_classes=None, in_chans=None, lr=1e-3, model_kwargs=dict(head_dim=8)
    )
    CheckpointSaver(model, torch.optim.AdamW(model.parameters()), args=args).save_checkpoint(0, metric=1.0)
    (file,) = tmp_path.glob('checkpoint*')
    assert isinstance(read_checkpoint(file)['args'], argparse.Namespace)
    with caplog.at_level(logging.WARNING):
        loaded, args = load_model(file)
    assert has_same_weights(loaded, model)
    assert loaded.pretrained_cfg['architecture'] == 'hdkd_student_s4'
    assert loaded.stages[0][0].conv.stride == (4, 4)
    assert loaded.blocks[0].attn.head_dim == 8
    assert tuple(loaded.pretrained_cfg['input_size']) == (3, 64, 64)
    assert not caplog.records


def test_preprocessing_of_timm_s_train(tmp_path):
    args = argparse.Namespace(
        model='hdkd_student', img_size=32, mean=[0.5] * 3, std=[0.25] * 3, crop_pct=0.8, interpolation='nearest'
    )
    model = create_student()
    path = save_checkpoint(tmp_path, {'args': args, 'state_dict': model.state_dict()})
    cfg = load_model(path, **HEADS)[0].pretrained_cfg
    assert (cfg['mean'], cfg['std']) == ((0.5,) * 3, (0.25,) * 3)
    assert (cfg['crop_pct'], cfg['interpolation'], cfg['crop_mode']) == (0.8, 'nearest', 'squash')
    # what was not given is the network's own; a 'std' that is no list is something else
    for key, value in dict(mean=None, std=0.02, crop_pct=None, interpolation='').items():
        setattr(args, key, value)
    path = save_checkpoint(tmp_path, {'args': args, 'state_dict': model.state_dict()})
    assert {key: load_model(path, **HEADS)[0].pretrained_cfg[key] for key in ('mean', 'std', 'crop_pct')} == {
        key: model.pretrained_cfg[key] for key in ('mean', 'std', 'crop_pct')
    }


def test_arch_determines_the_stride(tmp_path):
    model = create_teacher('hdkd_teacher_s4')
    path = save_checkpoint(tmp_path, {'arch': 'hdkd_teacher_s4', 'state_dict': model.state_dict()})
    loaded, _ = load_model(path)
    assert loaded.pretrained_cfg['architecture'] == 'hdkd_teacher_s4'
    assert loaded.stages[0][0].conv.stride == (4, 4)
    assert load_model(path, 'hdkd_teacher')[0].stages[0][0].conv.stride == (2, 2)  # the user's word wins


@pytest.mark.parametrize(
    'recorded',
    [
        {'hyper_parameters': {'model_name': 'hdkd_student', 'img_size': 48, 'model_kwargs': {'head_dim': 8}}},
        {'model_args': {'img_size': [48, 48], 'head_dim': 8}, 'arch': 'hdkd_student'},
        {
            'args': {'model': 'hdkd_student', 'input_size': 48, 'nb_classes': 5, 'model_kwargs': {'num_heads': 2}}
        },  # DeiT
        {'args': argparse.Namespace(model='hdkd_student', input_size=[3, 48, 48], model_kwargs=dict(head_dim=8))},
    ],
)
def test_settings_of_trainers(recorded, tmp_path, caplog):
    model = create_student(img_size=48).eval()
    weights = {'model' if 'args' in recorded else 'net': model.state_dict()}
    loaded, _ = load_model(save_checkpoint(tmp_path, {**weights, **recorded}))
    x = torch.randn(1, 3, 48, 48)
    torch.testing.assert_close(loaded.eval()(x), model(x))
    assert not caplog.records


def test_pooling_and_odd_sizes(tmp_path):
    model = create_student(img_size=(40, 90), global_pool='avg').eval()
    args = argparse.Namespace(
        model='hdkd_student', img_size=None, input_size=[3, 40, 90], gp='avg', model_kwargs=dict(head_dim=8)
    )
    loaded, _ = load_model(save_checkpoint(tmp_path, {'state_dict': model.state_dict(), 'args': args}))
    x = torch.randn(1, 3, 40, 90)
    torch.testing.assert_close(loaded.eval()(x), model(x))
    assert tuple(loaded.pretrained_cfg['input_size']) == (3, 40, 90)
    with pytest.raises(ValueError, match=r'18 patches, which do not form a square: specify the image size'):
        load_model(save_checkpoint(tmp_path, model.state_dict()), **HEADS)


def test_class_names_of_a_file(tmp_path, caplog):
    for recorded in (
        {'class_names': list('vwxyz')},
        {'class_to_idx': {c: 'vwxyz'.index(c) for c in 'zyvxw'}},
        {'hyper_parameters': {'classes': tuple('vwxyz')}},
        {'id2label': dict(enumerate('vwxyz'))},
    ):
        folder = tmp_path / next(iter(recorded))
        convert_checkpoint(save_checkpoint(tmp_path, {'model': create_teacher().state_dict(), **recorded}), folder)
        assert json.loads((folder / 'config.json').read_text())['label_names'] == list('vwxyz')
    path = save_checkpoint(tmp_path, {'model': create_teacher().state_dict(), 'classes': ['a', 'b']})
    with pytest.raises(ValueError, match='2 label names for the 5 classes .* Specify its classes by index, --label'):
        convert_checkpoint(path, tmp_path / 'other')
    convert_checkpoint(path, tmp_path / 'other', label_names=list('vwxyz'))
    assert json.loads((tmp_path / 'other' / 'config.json').read_text())['label_names'] == list('vwxyz')
    assert 'Using the names given' in caplog.text
    for index in ({c: i + 1 for i, c in enumerate('vwxyz')}, {0: 'a', 1: 'b', 5: 'c'}):
        path = save_checkpoint(tmp_path, {'model': create_teacher().state_dict(), 'class_to_idx': index})
        assert 'label_names' not in load_model(path)[0].pretrained_cfg
        assert f"The classes of 'class_to_idx' are not numbered 0 to {len(index) - 1}" in caplog.text


@pytest.mark.parametrize('is_old', [False, True])
def test_training_state_of_a_run(is_old, image_folder, tmp_path, caplog):
    """Stride, size, heads and names are those of the run; older states have none, the files beside them do."""
    kwargs = {k: v for k, v in TINY_STUDENT.items() if k not in ('img_size', 'num_classes')}
    run = train(
        TrainConfig(
            model='hdkd_student_s4',
            data_dir=str(image_folder),
            img_size=64,
            model_kwargs=kwargs,
            epochs=1,
            batch_size=8,
            workers=0,
            device='cpu',
            bootstrap=0,
            output=str(tmp_path),
            experiment='run',
        )
    )['run']
    expected = load_model(run)[0]
    if is_old:
        state = read_checkpoint(f'{run}/last.pth')
        recorded = ('arch', 'model_args', 'label_names')
        torch.save({k: v for k, v in state.items() if k not in recorded}, f'{run}/last.pth')
        os.remove(f'{run}/SHA256SUMS')  # there was none
    caplog.clear()
    for i in range(2):
        assert main(['convert', f'{run}/last.pth', str(tmp_path / f'out{i}')]) == 0
        model = load_model(tmp_path / f'out{i}')[0]
        assert has_same_weights(model, expected)
        assert (model.pretrained_cfg['architecture'], tuple(model.img_size)) == ('hdkd_student_s4', (64, 64))
        assert not [record for record in caplog.records if 'assuming' in record.message]
        if i == 0:
            assert list(model.pretrained_cfg['label_names']) == ['a', 'b', 'c']
            shutil.rmtree(f'{run}/best')  # none yet: the run's settings have all but the names


@pytest.mark.parametrize('config', [[1], {'model_args': [1], 'pretrained_cfg': {'input_size': 3}, 'label_names': 5}])
def test_training_state_beside_a_damaged_config(config, tmp_path, caplog):
    """Defaults are assumed for what cannot be read, with a warning."""
    (tmp_path / 'best').mkdir()
    (tmp_path / 'best' / 'config.json').write_text(json.dumps(config))
    model = create_teacher()
    loaded, _ = load_model(save_checkpoint(tmp_path, dict(progress=[], optimizer={}, state_dict=model.state_dict())))
    assert has_same_weights(loaded, model)
    assert 'a stem of stride 2' in caplog.text
