"""Averages of the weights of networks."""

import re

import pytest
import timm
import torch
from helpers import create_student, randomize_batch_stats

from hdkd_timm.models.averaging import average_weights, check_shares, load_averageable
from hdkd_timm.models.checkpoint import load_model, save_model


def test_weights_are_the_weighted_mean():
    first, second = create_student(), create_student()
    randomize_batch_stats(second)
    second.stages[0][0].bn.num_batches_tracked += 7
    averaged = average_weights([first.state_dict(), second.state_dict()], [0.25, 0.75])
    assert list(averaged) == list(first.state_dict())
    for name, tensor in averaged.items():
        a, b = first.state_dict()[name], second.state_dict()[name]
        assert tensor.dtype == a.dtype
        torch.testing.assert_close(tensor, 0.25 * a + 0.75 * b if a.is_floating_point() else a)
    assert not torch.equal(averaged['stages.0.0.bn.running_var'], first.state_dict()['stages.0.0.bn.running_var'])


@pytest.mark.parametrize('end', [0, 1])
def test_ends_are_exact(end):
    states = [create_student().state_dict() for _ in range(2)]
    averaged = average_weights(states, [1 - end, end])
    assert all(torch.equal(averaged[name], tensor) for name, tensor in states[end].items())


def test_linear_network_averages_its_outputs():
    models = [timm.create_model('hdkd_student', dims=(8, 16, 24), img_size=32) for _ in range(3)]
    heads = [model.head for model in models]
    shares, x = [0.2, 0.3, 0.5], torch.randn(4, models[0].num_features)
    expected = sum(share * head(x) for share, head in zip(shares, heads))
    averaged = average_weights([head.state_dict() for head in heads], shares)
    torch.testing.assert_close(torch.nn.functional.linear(x, **averaged), expected)


@pytest.mark.parametrize('shares', [[0.5, 0.6], [1.0], [1.5, -0.5], [0.5, float('nan')], []])
def test_invalid_shares(shares):
    with pytest.raises(ValueError, match='Shares must be 2 numbers from 0 to 1 with a sum of 1, one per model, got'):
        check_shares(shares, 2)


def test_other_shapes_are_named():
    with pytest.raises(ValueError, match=r"'head.weight' is 5 x 32 in the first, 4 x 32 in another"):
        average_weights([create_student().state_dict(), create_student(num_classes=4).state_dict()], [0.5, 0.5])
    state = dict(create_student().state_dict())
    state.pop('head.bias')
    with pytest.raises(ValueError, match=r"'head.bias' is 5 in the first, missing in another"):
        average_weights([create_student().state_dict(), state], [0.5, 0.5])


@pytest.mark.parametrize(
    ('changes', 'difference'),
    [
        (dict(label_names=list('abced')), r'order of classes (a, b, c, d, e) and (a, b, c, e, d)'),
        (dict(model=dict(img_size=64)), r'image size (32, 32) and (64, 64)'),
        (dict(model=dict(num_classes=4), label_names=list('abcd')), 'number of classes 5 and 4'),
        (dict(cfg=dict(mean=(0.5, 0.5, 0.5))), 'mean (0.485, 0.456, 0.406) and (0.5, 0.5, 0.5)'),
        (dict(cfg=dict(crop_mode='center')), 'crop_mode squash and center'),
        (dict(cfg=dict(license='cc-by-nc-4.0')), 'licence None and cc-by-nc-4.0'),
        (dict(model=dict(num_heads=4)), "'blocks.0.attn.qkv.weight' is 48 x 32 in the first, 96 x 32 in another"),
        (dict(model=dict(global_pool='avg')), "'global_pool': 'avg'"),  # the weights fit
    ],
)
def test_models_without_an_average_are_named(tmp_path, changes, difference):
    save_model(create_student(), tmp_path / 'a', label_names=list('abcde'))
    other = create_student(**changes.get('model', {}))
    other.pretrained_cfg = dict(other.pretrained_cfg, **changes.get('cfg', {}))
    save_model(other, tmp_path / 'b', label_names=changes.get('label_names', list('abcde')))
    with pytest.raises(ValueError, match=re.escape(difference)):
        load_averageable([tmp_path / 'a', tmp_path / 'b'])


def test_one_model_has_no_average(tmp_path):
    save_model(create_student(), tmp_path / 'a', label_names=list('abcde'))
    with pytest.raises(ValueError, match='An average needs two models or more'):
        load_averageable([tmp_path / 'a'])


def test_weights_that_are_not_finite_are_named(tmp_path):
    save_model(create_student(), tmp_path / 'a', label_names=list('abcde'))
    broken = create_student()
    broken.head.bias.data[2] = float('nan')
    save_model(broken, tmp_path / 'b', label_names=list('abcde'))
    with pytest.raises(ValueError, match=r"b' has weights that are not finite: 'head.bias'"):
        load_averageable([tmp_path / 'a', tmp_path / 'b'])


def test_thresholds_of_labels_are_said_to_be_the_first_models(tmp_path, caplog):
    for name, low in (('a', 0.2), ('b', 0.6)):
        problem = dict(problem_type='multi_label_classification', thresholds=dict.fromkeys('abcde', low))
        save_model(create_student(), tmp_path / name, label_names=list('abcde'), problem=problem)
    models = load_averageable([tmp_path / 'a', tmp_path / 'b'])
    assert models.problem['thresholds'] == dict.fromkeys('abcde', 0.2)
    assert f"thresholds of the labels are those of '{tmp_path / 'a'}'" in caplog.text
    assert len(models.state_dicts) == 2
    assert models.label_names == list('abcde')
    rebuilt, _ = load_model(tmp_path / 'b')
    assert all(torch.equal(models.state_dicts[1][k], v) for k, v in rebuilt.state_dict().items())
