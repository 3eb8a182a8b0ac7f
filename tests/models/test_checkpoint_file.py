"""Checkpoints as other trainers write them: what they hold beside weights, where a network is, what they say of it."""
import argparse
import json
import logging
import os
import random
import re
import shutil
import zipfile
from contextlib import suppress
from pathlib import PurePosixPath

import numpy as np
import pytest
import timm
import torch
from helpers import TINY_STUDENT, TINY_TEACHER, write_images
from timm.utils import CheckpointSaver
from torch import nn
from torch.optim.swa_utils import AveragedModel

from hdkd_timm import TrainConfig, train
from hdkd_timm.cli import main
from hdkd_timm.distillation.task import HDKDTask
from hdkd_timm.models.checkpoint import convert_checkpoint, load_model
from hdkd_timm.models.checkpoint_file import read_checkpoint
from hdkd_timm.models.checkpoint_networks import find_networks

HEADS = dict(model_kwargs=dict(head_dim=8))


def student(**kwargs):
    return timm.create_model('hdkd_student', **{**TINY_STUDENT, **kwargs})


def teacher(name='hdkd_teacher', **kwargs):
    return timm.create_model(name, **{**TINY_TEACHER, **kwargs})


def save(tmp_path, content):
    torch.save(content, tmp_path / 'a.pth')
    return tmp_path / 'a.pth'


def same(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


# -- what a file may hold ----------------------------------------------------------------------------------------------

def test_checkpoint_of_timm_s_train(tmp_path, monkeypatch, caplog):
    """Its args are a Namespace, and name model, size and arguments: nothing is left to guess."""
    monkeypatch.chdir(tmp_path)
    model = timm.create_model('hdkd_student_s4', **{**TINY_STUDENT, 'img_size': 64})
    args = argparse.Namespace(
        model='hdkd_student_s4', img_size=64, num_classes=None, in_chans=None, lr=1e-3, model_kwargs=dict(head_dim=8))
    CheckpointSaver(model, torch.optim.AdamW(model.parameters()), args=args).save_checkpoint(0, metric=1.)
    file, = tmp_path.glob('checkpoint*')
    assert isinstance(read_checkpoint(file)['args'], argparse.Namespace)
    with caplog.at_level(logging.WARNING):
        loaded, args = load_model(file)
    assert same(loaded, model)
    assert loaded.pretrained_cfg['architecture'] == 'hdkd_student_s4'
    assert loaded.stages[0][0].conv.stride == (4, 4)
    assert loaded.blocks[0].attn.head_dim == 8
    assert tuple(loaded.pretrained_cfg['input_size']) == (3, 64, 64)
    assert not caplog.records


def test_numpy_numbers_and_paths_are_read_as_plain_ones(tmp_path):
    held = dict(best=np.float64(0.25), epoch=np.int64(7), flag=np.bool_(True), big=np.array(3., '>f4')[()],
                out=PurePosixPath('/runs/a'), state_dict={})
    read = read_checkpoint(save(tmp_path, held))
    assert read == dict(held, out='/runs/a')
    assert [type(read[key]) for key in held] == [float, int, bool, float, str, dict]
    with pytest.raises(ValueError, match="cannot be read safely .NumPy values of type 'M8' are not supported"):
        read_checkpoint(save(tmp_path, dict(best=np.datetime64('2026-01-01'))))
    with pytest.raises(ValueError, match=r'Refused .*holds .*numpy\.\S*_reconstruct'):
        read_checkpoint(save(tmp_path, dict(best=np.zeros(3))))


class Reduced:
    """Pickles as a call, such as an attacker writes it."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('content', [
    Reduced(print, 'executed'), Reduced(eval, "print('executed')"), Reduced(exec, "print('executed')"),
    Reduced(getattr, argparse.Namespace, '__init__'), Reduced(argparse._StoreAction, ['--a'], 'a'),
    Reduced(np.load, 'file.npy'), argparse.Namespace(hidden=Reduced(print, 'executed')),
])
def test_what_is_allowed_opens_no_door(content, tmp_path, capsys):
    before = set(torch.serialization.get_safe_globals())
    with pytest.raises(ValueError, match='Refused'):
        read_checkpoint(save(tmp_path, dict(state_dict={}, args=content)))
    assert 'executed' not in capsys.readouterr().out
    assert set(torch.serialization.get_safe_globals()) == before  # nothing stays allowed for others


@pytest.mark.parametrize('is_zip', [True, False])
@pytest.mark.parametrize(('content', 'named'), [
    (Reduced(print, 'executed'), 'print'), (nn.Linear(1, 1), r'torch\.nn\.modules\.linear\.Linear'),
    (argparse.Namespace(hidden=Reduced(len, 'a')), 'len')])
def test_what_would_be_executed_is_named(content, named, is_zip, tmp_path):
    """And what is allowed is not named with it."""
    torch.save(dict(args=argparse.Namespace(), a=content), tmp_path / 'a.pth', _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ValueError, match=rf'execute code, it holds \S*{named}\. If you trust it'):
        read_checkpoint(tmp_path / 'a.pth')


def change_record(source, path, name, change):
    """Write a checkpoint with other bytes of one of its records, whose checksum is right."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, 'w') as new:
        for info in old.infolist():
            content = old.read(info)
            new.writestr(info.filename, change(content) if info.filename.endswith(name) else content)
    return path


@pytest.mark.parametrize(('change', 'match'), [
    (lambda content: content[:20], 'damaged'),
    (lambda content: content[:2] + b'\x95' + content[2:], r'damaged, or holds .* \(Unsupported operand 149\)'),
    (lambda content: content.replace(b'Namespace', b'Namespabe'), r'execute code, it holds argparse\.Namespabe\.'),
])
def test_damaged_pickle(change, match, tmp_path, capsys):
    """It is told from one that would execute code, and no command ends in an internal error."""
    path = save(tmp_path, dict(args=argparse.Namespace(lr=1), best=np.float64(1), state_dict=teacher().state_dict()))
    path = change_record(path, tmp_path / 'b.pth', 'data.pkl', change)
    with pytest.raises(ValueError, match=match):
        read_checkpoint(path)
    assert main(['convert', str(path), str(tmp_path / 'out')]) == 1
    assert re.search(match, capsys.readouterr().err)


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
def test_any_damage_is_a_value_error(tmp_path):
    rng = random.Random(0)
    content = dict(args=argparse.Namespace(lr=1), best=np.float64(1), out=PurePosixPath('a'), a=torch.ones(2))
    for is_zip in (True, False):
        torch.save(content, tmp_path / 'a.pth', _use_new_zipfile_serialization=is_zip)
        whole = (tmp_path / 'a.pth').read_bytes()
        for _ in range(60):
            damaged = bytearray(whole[:rng.choice((len(whole), rng.randrange(len(whole))))])
            for _ in range(min(3, len(damaged))):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            (tmp_path / 'a.pth').write_bytes(damaged)
            with suppress(ValueError):
                read_checkpoint(tmp_path / 'a.pth')


def test_flipped_bit_of_a_weight(tmp_path):
    """torch.load does not look at the checksums that torch.save writes."""
    path = save(tmp_path, dict(a=torch.ones(1000)))
    content = bytearray(path.read_bytes())
    content[content.index(np.ones(4, np.float32).tobytes()) + 401] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path)['a'], torch.ones(1000))
    with pytest.raises(ValueError, match="is damaged: the checksum of '.*data/0' in it is wrong. Use another copy"):
        read_checkpoint(path)
    torch.serialization.set_crc32_options(False)
    try:
        assert torch.equal(read_checkpoint(save(tmp_path, dict(a=torch.ones(1000))))['a'], torch.ones(1000))
    finally:
        torch.serialization.set_crc32_options(True)


# -- where the network is ----------------------------------------------------------------------------------------------

def prefixed(model, prefix):
    return {f'{prefix}{name}': value for name, value in model.state_dict().items()}


@pytest.mark.parametrize('wrap', [
    lambda m: prefixed(m, 'model.'),  # Lightning
    lambda m: prefixed(m, 'net.'),
    lambda m: prefixed(m, 'module._orig_mod.'),
    lambda m: {'state_dict': prefixed(m, 'model._orig_mod.'), 'optimizer_states': [{}], 'epoch': 3},
    lambda m: {'net': m.state_dict(), 'acc': 0.5},
    lambda m: {'model_state_dict': m.state_dict()},
    lambda m: {'ema': {'module': m.state_dict()}},
    lambda m: AveragedModel(m).state_dict(),
    lambda m: {'weights': nn.DataParallel(m).state_dict()},
    lambda m: {'models': {'best': m.state_dict()}, 'ema_decay': 0.9},
])
def test_containers_and_prefixes(wrap, tmp_path):
    model = student()
    loaded, _ = load_model(save(tmp_path, wrap(model)), **HEADS)
    assert same(loaded, model)


def test_task_checkpoint_holds_two_networks(tmp_path):
    pair = student(), teacher()
    state = {'task': HDKDTask(*pair, verbose=False).state_dict()}
    assert {network.model_name for network in find_networks(state)} == {'hdkd_student', 'hdkd_teacher'}
    state = {**prefixed(pair[0], 'student.'), **prefixed(pair[1], 'teacher.')}
    path = save(tmp_path, state)
    with pytest.raises(ValueError, match=r'networks: student\.\* \(hdkd_student\), teacher\.\* \(hdkd_teacher\)'):
        load_model(path, **HEADS)
    for model, name in zip(pair, ('hdkd_student', 'hdkd_teacher')):
        assert same(load_model(path, name, **(HEADS if 'student' in name else {}))[0], model)


def test_one_network_under_two_names(tmp_path):
    model, other = student(), student()
    clone = {f'module.{name}': value.clone() for name, value in model.state_dict().items()}
    path = save(tmp_path, {'model': model.state_dict(), 'state_dict': clone})
    assert same(load_model(path, **HEADS)[0], model)
    path = save(tmp_path, {'model': model.state_dict(), 'state_dict': other.state_dict()})
    with pytest.raises(ValueError, match=r"networks: \['model'\] .*student\)\. Save its state dict alone"):
        load_model(path, **HEADS)
    clone['module.head.bias'][0] += 1
    with pytest.raises(ValueError, match='several networks'):
        load_model(save(tmp_path, {'model': model.state_dict(), 'state_dict': clone}), **HEADS)


@pytest.mark.parametrize('change', [
    torch.Tensor.long, torch.Tensor.to_sparse, lambda weight: weight + 0j, lambda weight: weight.to('meta')])
def test_weights_that_would_be_copied_wrongly(change, tmp_path):
    weights = teacher().state_dict()
    weights['head.weight'] = change(weights['head.weight'])
    with pytest.raises(ValueError, match=r'1 not floating-point: head\.weight'):
        load_model(save(tmp_path, weights))


def test_network_without_its_head(tmp_path):
    weights = {f'0.model.{name}': value for name, value in teacher().state_dict().items() if 'head' not in name}
    with pytest.raises(ValueError, match=r'it has no head\.weight'):
        load_model(save(tmp_path, {'model': weights}))


def test_tensors_beside_the_network_are_said(tmp_path, caplog):
    path = save(tmp_path, {**prefixed(student(), 'model.'), 'loss.weight': torch.ones(5)})
    load_model(path, **HEADS)
    assert 'holds 1 tensors that are not of the network model.*, ignored: loss.weight' in caplog.text


def test_keys_of_a_foreign_checkpoint_are_shown(tmp_path):
    path = save(tmp_path, {'epoch': 1, 'generator': {'fc.weight': torch.zeros(2), 'fc.bias': torch.zeros(2)}})
    with pytest.raises(ValueError, match=r"its keys: epoch, generator; those of 'generator': fc\.weight, fc\.bias"):
        load_model(path)


@pytest.mark.parametrize(('key', 'ema_key'), [
    ('state_dict', 'state_dict_ema'), ('model', 'model_ema'), ('model', 'ema')])
def test_moving_average(key, ema_key, tmp_path, caplog):
    model, average = student(), student()
    path = save(tmp_path, {key: model.state_dict(), ema_key: average.state_dict()})
    assert same(load_model(path, **HEADS)[0], average)
    assert f"using ['{ema_key}'], not ['{key}'] (--no-use-ema selects that)" in caplog.text
    caplog.clear()
    assert same(load_model(path, use_ema=False, **HEADS)[0], model)
    assert f"using ['{key}'], not ['{ema_key}'] (--use-ema selects that)" in caplog.text
    main(['convert', str(path), str(tmp_path / 'out'), '--no-use-ema', '--model-kwargs', 'head_dim=8'])
    assert same(load_model(tmp_path / 'out')[0], model)
    path = save(tmp_path, {ema_key: average.state_dict()})
    with pytest.raises(ValueError, match='holds only a moving average'):
        load_model(path, use_ema=False, **HEADS)


# -- what a file says --------------------------------------------------------------------------------------------------

def test_arch_tells_the_stride(tmp_path):
    model = teacher('hdkd_teacher_s4')
    path = save(tmp_path, {'arch': 'hdkd_teacher_s4', 'state_dict': model.state_dict()})
    loaded, _ = load_model(path)
    assert loaded.pretrained_cfg['architecture'] == 'hdkd_teacher_s4'
    assert loaded.stages[0][0].conv.stride == (4, 4)
    assert load_model(path, 'hdkd_teacher')[0].stages[0][0].conv.stride == (2, 2)  # the user's word wins


@pytest.mark.parametrize('told', [
    {'hyper_parameters': {'model_name': 'hdkd_student', 'img_size': 48, 'model_kwargs': {'head_dim': 8}}},
    {'model_args': {'img_size': [48, 48], 'head_dim': 8}, 'arch': 'hdkd_student'},
    {'args': {'model': 'hdkd_student', 'input_size': 48, 'nb_classes': 5, 'model_kwargs': {'num_heads': 2}}},  # DeiT
    {'args': argparse.Namespace(model='hdkd_student', input_size=[3, 48, 48], model_kwargs=dict(head_dim=8))},
])
def test_settings_of_trainers(told, tmp_path, caplog):
    model = student(img_size=48).eval()
    loaded, _ = load_model(save(tmp_path, {'model' if 'args' in told else 'net': model.state_dict(), **told}))
    x = torch.randn(1, 3, 48, 48)
    torch.testing.assert_close(loaded.eval()(x), model(x))
    assert not caplog.records


def test_pooling_and_odd_sizes_are_told(tmp_path):
    model = student(img_size=(40, 90), global_pool='avg').eval()
    args = argparse.Namespace(
        model='hdkd_student', img_size=None, input_size=[3, 40, 90], gp='avg', model_kwargs=dict(head_dim=8))
    loaded, _ = load_model(save(tmp_path, {'state_dict': model.state_dict(), 'args': args}))
    x = torch.randn(1, 3, 40, 90)
    torch.testing.assert_close(loaded.eval()(x), model(x))
    assert tuple(loaded.pretrained_cfg['input_size']) == (3, 40, 90)
    with pytest.raises(ValueError, match=r'18 patches, which do not form a square: specify the image size'):
        load_model(save(tmp_path, model.state_dict()), **HEADS)


@pytest.mark.parametrize(('told', 'match'), [
    ({'arch': 'hdkd_teacher'}, r"not 'hdkd_teacher'.*read from the file \(its 'arch'\): specify the right one, --mod"),
    ({'arch': 'resnet18'}, r"Unknown model 'resnet18'.*read from the file \(its 'arch'\)"),
    ({'args': {'num_classes': 4}}, r"records num_classes=4 \(its 'args'\), its tensors have 5.*num_classes=VALUE"),
    ({'args': {'model_kwargs': {'depths': [1, 2, 2, 3]}}}, r'records depths=.*its tensors have \(1, 2, 2, 2\)'),
    ({'args': {'img_size': 96}}, r"of another shape: pos_embed .*'args' records an image size of 96 pixels"),
])
def test_file_that_contradicts_its_tensors(told, match, tmp_path):
    path = save(tmp_path, {'state_dict': student().state_dict(), **told})
    with pytest.raises(ValueError, match=match):
        load_model(path, **HEADS)


def test_what_nothing_tells_is_said(tmp_path, caplog):
    path = save(tmp_path, timm.create_model('hdkd_student', **{**TINY_STUDENT, 'head_dim': 32}).state_dict())
    load_model(path)
    assert 'stem of stride 2 (hdkd_student; --model hdkd_student_s4 has 4); attention heads of width 32' in caplog.text
    assert 'images of 32 x 32 pixels' in caplog.text
    caplog.clear()
    load_model(path, 'hdkd_student', model_kwargs=dict(img_size=32))
    assert not caplog.records
    load_model(save(tmp_path, teacher().state_dict()))  # of any size, but trained at one
    assert 'images of 224 x 224 pixels' in caplog.text


def test_class_names_of_a_file(tmp_path, caplog):
    for told in ({'class_names': list('vwxyz')}, {'class_to_idx': {c: 'vwxyz'.index(c) for c in 'zyvxw'}},
                 {'hyper_parameters': {'classes': tuple('vwxyz')}}, {'id2label': dict(enumerate('vwxyz'))}):
        folder = tmp_path / next(iter(told))
        convert_checkpoint(save(tmp_path, {'model': teacher().state_dict(), **told}), folder)
        assert json.loads((folder / 'config.json').read_text())['label_names'] == list('vwxyz')
    path = save(tmp_path, {'model': teacher().state_dict(), 'classes': ['a', 'b']})
    with pytest.raises(ValueError, match='2 label names for the 5 classes .* Specify its classes by index, --label'):
        convert_checkpoint(path, tmp_path / 'other')
    convert_checkpoint(path, tmp_path / 'other', label_names=list('vwxyz'))
    assert json.loads((tmp_path / 'other' / 'config.json').read_text())['label_names'] == list('vwxyz')
    assert 'Using the names given' in caplog.text
    for index in ({c: i + 1 for i, c in enumerate('vwxyz')}, {0: 'a', 1: 'b', 5: 'c'}):
        path = save(tmp_path, {'model': teacher().state_dict(), 'class_to_idx': index})
        assert 'label_names' not in load_model(path)[0].pretrained_cfg
        assert f"The classes of 'class_to_idx' are not numbered 0 to {len(index) - 1}" in caplog.text


def test_file_of_another_size_than_224(tmp_path):
    """Its size is that of the images that it is given."""
    write_images(tmp_path / 'new', classes=['a'], number=2)
    path = save(tmp_path, student(img_size=48).state_dict())
    for args, name in (([], 'p'), (['--img-size', '64'], 'q')):
        assert main(['predict', str(path), str(tmp_path / 'new'), '--model-kwargs', 'head_dim=8', '-j', '0',
                     '--out', str(tmp_path / name), *args]) == 0
    assert (tmp_path / 'p').read_text() != (tmp_path / 'q').read_text()
    model, args = load_model(path, img_size=64, **HEADS)
    assert (tuple(model.img_size), tuple(model.pretrained_cfg['input_size'])) == ((64, 64), (3, 64, 64))


# -- training states of runs -------------------------------------------------------------------------------------------

@pytest.mark.parametrize('is_old', [False, True])
def test_training_state_of_a_run(is_old, image_folder, tmp_path, caplog):
    """Stride, size, heads and names are those of the run; states of before tell none, the files beside them do."""
    kwargs = {k: v for k, v in TINY_STUDENT.items() if k not in ('img_size', 'num_classes')}
    run = train(TrainConfig(
        model='hdkd_student_s4', data_dir=str(image_folder), img_size=64, model_kwargs=kwargs, epochs=1, batch_size=8,
        workers=0, device='cpu', bootstrap=0, output=str(tmp_path), experiment='run'))['run']
    expected = load_model(run)[0]
    if is_old:
        state = read_checkpoint(f'{run}/last.pth')
        told = ('arch', 'model_args', 'label_names')
        torch.save({k: v for k, v in state.items() if k not in told}, f'{run}/last.pth')
        os.remove(f'{run}/SHA256SUMS')  # there was none
    caplog.clear()
    for i in range(2):
        assert main(['convert', f'{run}/last.pth', str(tmp_path / f'out{i}')]) == 0
        model = load_model(tmp_path / f'out{i}')[0]
        assert same(model, expected)
        assert (model.pretrained_cfg['architecture'], tuple(model.img_size)) == ('hdkd_student_s4', (64, 64))
        assert not [record for record in caplog.records if 'assuming' in record.message]
        if i == 0:
            assert list(model.pretrained_cfg['label_names']) == ['a', 'b', 'c']
            shutil.rmtree(f'{run}/best')  # none yet: the run's settings tell all but the names


@pytest.mark.parametrize('config', [[1], {'model_args': [1], 'pretrained_cfg': {'input_size': 3}, 'label_names': 5}])
def test_training_state_beside_a_damaged_config(config, tmp_path, caplog):
    """What cannot be read of it is assumed, and said."""
    (tmp_path / 'best').mkdir()
    (tmp_path / 'best' / 'config.json').write_text(json.dumps(config))
    model = teacher()
    loaded, _ = load_model(save(tmp_path, dict(progress=[], optimizer={}, state_dict=model.state_dict())))
    assert same(loaded, model)
    assert 'a stem of stride 2' in caplog.text


def test_training_state_of_another_network_points_to_its_model(tmp_path):
    weights = timm.create_model('test_resnet').state_dict()
    state = dict(progress=[], optimizer={}, state_dict=weights, arch='test_resnet')
    with pytest.raises(ValueError, match="is the training state of a run: use its model, 'best' beside it"):
        load_model(save(tmp_path, state))
