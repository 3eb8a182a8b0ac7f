import pytest
import torch
from helpers import (
    create_student,
    create_teacher,
    has_same_weights,
    save_checkpoint,
)
from torch import nn
from torch.optim.swa_utils import AveragedModel

from hdkd_timm.cli import main
from hdkd_timm.distillation.hdkd_task import HDKDTask
from hdkd_timm.models.checkpoint import load_model
from hdkd_timm.models.checkpoint_networks import find_networks

HEADS = dict(model_kwargs=dict(head_dim=8))  # which keys and shapes do not determine


def prefixed(model, prefix):
    return {f'{prefix}{name}': value for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    'wrap',
    [
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
    ],
)
def test_containers_and_prefixes(wrap, tmp_path):
    model = create_student()
    loaded, _ = load_model(save_checkpoint(tmp_path, wrap(model)), **HEADS)
    assert has_same_weights(loaded, model)


def test_task_checkpoint_holds_one_network_or_two(tmp_path):
    """Those of earlier releases also held the teacher."""
    pair = create_student(), create_teacher()
    state = HDKDTask(*pair, verbose=False).state_dict()
    assert {network.model_name for network in find_networks({'task': state})} == {'hdkd_student'}
    state.update(prefixed(pair[1], 'teacher.'))
    assert {network.model_name for network in find_networks({'task': state})} == {'hdkd_student', 'hdkd_teacher'}
    state = {**prefixed(pair[0], 'student.'), **prefixed(pair[1], 'teacher.')}
    path = save_checkpoint(tmp_path, state)
    with pytest.raises(ValueError, match=r'networks: student\.\* \(hdkd_student\), teacher\.\* \(hdkd_teacher\)'):
        load_model(path, **HEADS)
    for model, name in zip(pair, ('hdkd_student', 'hdkd_teacher')):
        assert has_same_weights(load_model(path, name, **(HEADS if 'student' in name else {}))[0], model)


def test_one_network_under_two_names(tmp_path):
    model, other = create_student(), create_student()
    clone = {f'module.{name}': value.clone() for name, value in model.state_dict().items()}
    path = save_checkpoint(tmp_path, {'model': model.state_dict(), 'state_dict': clone})
    assert has_same_weights(load_model(path, **HEADS)[0], model)
    path = save_checkpoint(tmp_path, {'model': model.state_dict(), 'state_dict': other.state_dict()})
    with pytest.raises(ValueError, match=r"networks: \['model'\] .*student\)\. Save its state dict alone"):
        load_model(path, **HEADS)
    clone['module.head.bias'][0] += 1
    with pytest.raises(ValueError, match='several networks'):
        load_model(save_checkpoint(tmp_path, {'model': model.state_dict(), 'state_dict': clone}), **HEADS)


def test_tensors_outside_the_network_are_ignored_with_a_warning(tmp_path, caplog):
    path = save_checkpoint(tmp_path, {**prefixed(create_student(), 'model.'), 'loss.weight': torch.ones(5)})
    load_model(path, **HEADS)
    assert 'ignoring 1 tensor outside the network model.*: loss.weight' in caplog.text


def test_keys_of_a_foreign_checkpoint_are_shown(tmp_path):
    weights = {'fc.weight': torch.zeros(2), 'fc.bias': torch.zeros(2)}
    path = save_checkpoint(tmp_path, {'epoch': 1, 'generator': weights})
    with pytest.raises(ValueError, match=r"its keys: epoch, generator; those of 'generator': fc\.weight, fc\.bias"):
        load_model(path)


@pytest.mark.parametrize(
    ('key', 'ema_key'), [('state_dict', 'state_dict_ema'), ('model', 'model_ema'), ('model', 'ema')]
)
def test_moving_average(key, ema_key, tmp_path, caplog):
    model, average = create_student(), create_student()
    path = save_checkpoint(tmp_path, {key: model.state_dict(), ema_key: average.state_dict()})
    assert has_same_weights(load_model(path, **HEADS)[0], average)
    assert f"using ['{ema_key}'], not ['{key}'] (--no-use-ema selects that)" in caplog.text
    caplog.clear()
    assert has_same_weights(load_model(path, use_ema=False, **HEADS)[0], model)
    assert f"using ['{key}'], not ['{ema_key}'] (--use-ema selects that)" in caplog.text
    main(['convert', str(path), str(tmp_path / 'out'), '--no-use-ema', '--model-kwargs', 'head_dim=8'])
    assert has_same_weights(load_model(tmp_path / 'out')[0], model)
    path = save_checkpoint(tmp_path, {ema_key: average.state_dict()})
    with pytest.raises(ValueError, match='holds only a moving average'):
        load_model(path, use_ema=False, **HEADS)
