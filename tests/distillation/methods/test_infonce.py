import math

import pytest
import torch
import torch.nn.functional as F
from pair_helpers import create_task, describe_pair, run_step

from hdkd_timm.distillation.methods.infonce import InfoNCE, infonce_loss
from hdkd_timm.distillation.outputs import Outputs

STUDENT = dict(stages=[(4, 8)], pooled_dim=5)
TEACHER = dict(stages=[(4, 8)], pooled_dim=7)
PAIR = describe_pair(STUDENT, TEACHER)


def outputs(student_features, teacher_features):
    return Outputs(torch.empty(0), pooled=student_features), Outputs(torch.empty(0), pooled=teacher_features)


def test_loss_is_that_of_the_formula():
    s, t = (F.normalize(x, dim=1) for x in torch.randn(2, 6, 4))
    ratios = (5 * s @ t.T).exp()
    rows, columns = (ratios.diagonal() / ratios.sum(dim=dim) for dim in (1, 0))
    torch.testing.assert_close(infonce_loss(s, t, torch.tensor(5.0)), -(rows.log() + columns.log()).mean() / 2)


def test_values_that_are_known():
    same, scale = torch.ones(6, 4) / 2, torch.tensor(20.0)
    torch.testing.assert_close(infonce_loss(same, same, scale), torch.tensor(math.log(6)))
    orthogonal = torch.eye(6)
    assert infonce_loss(orthogonal, orthogonal, scale) < 1e-6
    assert infonce_loss(orthogonal, orthogonal.roll(1, dims=0), scale) > 19
    assert infonce_loss(same[:1], same[:1], scale) == 0


def test_settings_reach_the_loss():
    method = InfoNCE(PAIR, weight=2.0, dim=3, temperature=0.5)
    features = torch.randn(4, 5), torch.randn(4, 7)
    s, t = (F.normalize(layer(x), dim=1) for layer, x in zip((method.embed_student, method.embed_teacher), features))
    result = method(*outputs(*features), torch.zeros(4))
    torch.testing.assert_close(result['loss'], infonce_loss(s, t, torch.tensor(2.0)))
    torch.testing.assert_close(result['temperature'], torch.tensor(0.5))
    assert s.shape == (4, 3)
    assert method.weight == 2


def test_temperature_is_a_hundredth_at_least():
    method = InfoNCE(PAIR)
    with torch.no_grad():
        method.log_scale.fill_(50.0)
    result = method(*outputs(torch.randn(4, 5), torch.randn(4, 7)), torch.zeros(4))
    torch.testing.assert_close(result['temperature'], torch.tensor(0.01))
    assert torch.isfinite(result['loss'])


@pytest.mark.parametrize('log_scale', [4.0, math.log(100), 5.0])
def test_temperature_can_always_rise_again(log_scale):
    method = InfoNCE(PAIR, temperature=0.01)
    with torch.no_grad():
        method.log_scale.fill_(log_scale)
    method(*outputs(torch.randn(4, 5), torch.randn(4, 7)), torch.zeros(4))['loss'].backward()
    assert method.log_scale.grad.abs() > 0
    assert method.log_scale <= math.log(100) + 1e-6


def test_half_precision_is_contrasted_in_float32():
    with torch.autocast('cpu', dtype=torch.bfloat16):
        result = InfoNCE(PAIR)(*outputs(torch.randn(4, 5), torch.randn(4, 7)), torch.zeros(4))
    assert result['loss'].dtype == torch.float32


@pytest.mark.parametrize('networks', [('hdkd_student', 'hdkd_teacher'), ('vit', 'resnet10t')])
def test_step(networks):
    run_step(create_task('infonce', *networks))


def test_one_graph():
    method, args = InfoNCE(PAIR), (*outputs(torch.randn(4, 5), torch.randn(4, 7)), torch.zeros(4))
    torch.testing.assert_close(torch.compile(method, backend='eager', fullgraph=True)(*args), method(*args))


@pytest.mark.parametrize(
    ('student', 'settings', 'match'),
    [
        (STUDENT, dict(weight=-1), r'infonce\.weight must be a number at least 0, got -1'),
        (STUDENT, dict(temperature=0.001), r'infonce\.temperature must be a number at least 0\.01, got 0\.001'),
        (STUDENT, dict(dim=0), r'infonce\.dim must be a number at least 1, got 0'),
        (STUDENT, dict(dim=1.5), r'infonce\.dim must be a whole number, got 1\.5'),
        (dict(STUDENT, pooled_dim=None), {}, 'student does not return the features before its classifier'),
        (dict(pooled_dim=5), {}, 'student does not return the features before its classifier'),
    ],
)
def test_bad_settings(student, settings, match):
    with pytest.raises(ValueError, match=match):
        InfoNCE(describe_pair(student, TEACHER), **settings)
