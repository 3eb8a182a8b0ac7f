import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import strip_prefix
from method_helpers import assert_matches, create_pair, load_method_reference
from pair_helpers import PAIRS, create_task, run_step
from torch import nn

from hdkd_timm.distillation.losses import feature_distillation_losses
from hdkd_timm.distillation.methods.fitnet import FitNet, Projector, resize_map
from hdkd_timm.distillation.networks import NetworkInfo, Pair, StageInfo
from hdkd_timm.distillation.outputs import Outputs

LOGITS, TARGET = torch.zeros(4, 5), torch.tensor([0, 1, 2, 3])


def stage_of(shape):
    """The stage that has a map of this shape, (C, H, W)."""
    return StageInfo('stages.0', shape[0], 4, tuple(shape[1:]), False)


def pair_of(*shapes):
    """A pair of networks that have one stage each, of these shapes."""
    networks = (NetworkInfo(role, 'net', 5, (stage_of(shape),), None, 0, (), None, False) for role, shape in shapes)
    return Pair(*networks)


@pytest.mark.parametrize('seed', [0, 1])
def test_published_losses_and_gradients(seed):
    tensors, cases = load_method_reference('fitnet', seed)
    assert len(cases) == 5
    for case in cases:
        s, t = tensors[f'{case}.student_map'].clone().requires_grad_(), tensors[f'{case}.teacher_map']
        pair = pair_of(('student', s.shape[1:]), ('teacher', t.shape[1:]))
        method = FitNet(pair, projector='conv' if case == 'case4' else 'conv_bn', relu=case != 'case4')
        prefix = f'{case}.regressor.{"" if case != "case4" else "weight"}'
        state = strip_prefix(tensors, prefix) if case != 'case4' else {'conv.weight': tensors[prefix]}
        method.projectors['1'].load_state_dict(state)
        loss = method(Outputs(LOGITS, maps={1: s}), Outputs(LOGITS, maps={1: t}), TARGET)['loss']
        loss.backward()
        assert_matches(loss.detach(), tensors[f'{case}.loss'], 'loss', 1e-5)
        assert_matches(s.grad, tensors[f'{case}.grad.student_map'], 'gradient')
        check_gradients(method.projectors['1'], strip_prefix(tensors, f'{case}.grad.regressor.'))


def check_gradients(projector, expected):
    expected = {name if '.' in name else f'conv.{name}': grad for name, grad in expected.items()}
    assert set(expected) == {name for name, _ in projector.named_parameters()}
    for name, p in projector.named_parameters():
        if name == 'conv.bias':  # BatchNorm subtracts it: what is left is rounding
            assert (p.grad - expected[name]).abs().max() < 1e-6
        else:
            assert_matches(p.grad, expected[name], 'parameters')


@pytest.mark.parametrize('kind', ['conv_bn', 'conv'])
@pytest.mark.parametrize(
    ('student', 'teacher', 'conv'),
    [
        ((3, 8, 4), (5, 4, 2), (3, 3)),
        ((3, 4, 2), (5, 8, 4), (4, 4)),
        ((3, 6, 5), (5, 4, 5), (3, 1)),
        ((3, 12, 12), (5, 3, 3), (1, 1)),
        ((3, 3, 3), (5, 7, 7), (1, 1)),
        ((3, 6, 4), (3, 4, 6), (1, 1)),
    ],
)
def test_sizes(kind, student, teacher, conv):
    projector = Projector(stage_of(student), stage_of(teacher), kind)
    assert projector.conv.kernel_size == (conv if kind == 'conv_bn' else (1, 1))
    assert projector(torch.randn(2, *student), teacher[1:]).shape == (2, *teacher)
    assert isinstance(projector.bn, nn.BatchNorm2d if kind == 'conv_bn' else nn.Identity)
    # and with images of another size than the nominal one
    assert projector(torch.randn(2, 3, 9, 9), (5, 5)).shape == (2, teacher[0], 5, 5)


def test_resize_map():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert resize_map(x, (4, 4)) is x
    torch.testing.assert_close(resize_map(x, (2, 2)), F.avg_pool2d(x, 2))
    torch.testing.assert_close(resize_map(x, (8, 2)), F.interpolate(x, (8, 2), mode='bilinear'))


def test_equal_shapes_are_compared_as_in_hdkd(caplog):
    pair = create_pair()
    method = FitNet(pair, stages=['1', '3'])
    assert not list(method.parameters())
    assert method.describe() == {'stages': '1:1 without projector 3:3 without projector'}
    s, t = ({1: torch.randn(4, 8, 16, 16), 3: torch.randn(4, 24, 4, 4)} for _ in range(2))
    expected = feature_distillation_losses(list(s.values()), list(t.values()), [1, 3])
    result = method(Outputs(LOGITS, maps=s), Outputs(LOGITS, maps=t), TARGET)
    torch.testing.assert_close(
        result, {'loss': expected[1] + expected[3], 'loss_1': expected[1], 'loss_3': expected[3]}
    )
    assert not caplog.records
    FitNet(pair, relu=True)
    assert 'fitnet.relu does nothing' in caplog.text


def test_settings():
    student, teacher = timm.create_model('resnet10t', num_classes=5), timm.create_model('mobilevit_xxs', num_classes=5)
    pair = create_pair(student, teacher)
    assert FitNet(pair).describe() == {'stages': '3:3'}  # of strides 2 to 32
    assert FitNet(create_pair()).describe() == {'stages': '2:2 without projector'}
    method = FitNet(pair, weight=2.0, stages=['5:4', '4'], projector='conv', relu=True)
    assert method.weight == 2
    assert method.student_needs.stages == (5, 4)
    assert method.teacher_needs.stages == (4,)
    projector = method.projectors['5']
    assert projector.conv.weight.shape == (64, 512, 1, 1)
    assert projector(torch.randn(2, 512, 3, 3), (4, 4)).min() == 0
    assert FitNet(pair, relu=False).projectors['3'](torch.randn(2, 128, 4, 4), (4, 4)).min() < 0


@pytest.mark.parametrize('pair', ['hdkd', 'cnn', 'vit'])
def test_step(pair):
    task = create_task('fitnet', *PAIRS[pair], stages=['4:3'] if pair == 'vit' else ())
    result = run_step(task, soft_targets=True)
    method = task.trainable_module.methods['fitnet']
    assert bool(list(method.parameters())) == (pair != 'hdkd')
    assert result['fitnet_loss'] > 0


def test_one_graph():
    method = FitNet(pair_of(('student', (3, 12, 12)), ('teacher', (5, 3, 3))))
    maps = Outputs(LOGITS, maps={1: torch.randn(4, 3, 12, 12)}), Outputs(LOGITS, maps={1: torch.randn(4, 5, 3, 3)})
    compiled = torch.compile(method, backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(*maps, TARGET), method(*maps, TARGET))


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        (dict(projector='linear'), r"fitnet\.projector must be one of conv_bn, conv, got 'linear'"),
        (dict(weight=-1), r'fitnet\.weight must be a number at least 0, got -1'),
        (dict(stages=['1:4']), r"Method 'fitnet' .*hdkd_teacher has stages 1 to 3"),
    ],
)
def test_bad_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        FitNet(create_pair(), **settings)
