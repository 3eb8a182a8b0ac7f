import pytest
import timm
import torch
from helpers import TINY_STUDENT
from method_helpers import check_published_logit_loss, create_pair, logit_outputs
from pair_helpers import PAIRS, create_task, run_step

from hdkd_timm.distillation.methods.dist import DIST, dist_losses
from hdkd_timm.distillation.outputs import Outputs

TARGET = torch.tensor([0, 1, 2, 3, 4, 4])


@pytest.mark.parametrize('seed', [0, 1])
def test_published_losses_and_gradients(seed):
    def loss(s, t, target, case):
        method = DIST(create_pair(), beta=case['beta'], gamma=case['gamma'], tau=case['tau'])
        return method(*logit_outputs(s, t), target)['loss']

    assert check_published_logit_loss('dist', loss, seed) == 4


def test_correlations_ignore_scale_and_shift_of_the_probabilities():
    p = torch.softmax(torch.randn(6, 5), dim=1)
    weaker = 0.3 * p + 0.7 / 5
    inter, intra = dist_losses(weaker.log(), p.log(), tau=1.0)
    assert abs(inter) < 1e-5
    assert abs(intra) < 1e-5
    inter, intra = dist_losses((2 / 5 - p).clamp(min=1e-3).log(), p.log(), tau=1.0)
    assert inter > 1
    assert intra > 1


def test_one_image_has_no_intra_class_loss():
    s = torch.randn(1, 5, requires_grad=True)
    inter, intra = dist_losses(s, torch.randn(1, 5))
    intra.backward(retain_graph=True)
    assert intra == 16
    assert s.grad.abs().sum() == 0
    inter.backward()
    assert s.grad.isfinite().all()
    assert s.grad.abs().sum() > 0


def test_settings_reach_the_loss():
    s, d, t = torch.randn(3, 6, 5)
    method = DIST(create_pair(), weight=3.0, beta=0.5, gamma=2.0, tau=3.0)
    inter, intra = dist_losses(d, t, 3.0)
    result = method(Outputs(s, d), Outputs(t), TARGET)
    torch.testing.assert_close(result, {'loss': 0.5 * inter + 2 * intra, 'inter_loss': inter, 'intra_loss': intra})
    assert method.weight == 3


@pytest.mark.parametrize('pair', ['hdkd', 'cnn'])
def test_step(pair):
    run_step(create_task('dist', *PAIRS[pair]), soft_targets=True)


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        (dict(beta=-1.0), r'dist\.beta must be a number at least 0, got -1'),
        (dict(gamma=-1.0), r'dist\.gamma must be a number at least 0, got -1'),
        (dict(tau=0), r'dist\.tau must be a number above 0, got 0'),
    ],
)
def test_bad_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        DIST(create_pair(), **settings)


def test_warning_for_two_classes(caplog):
    pair = create_pair(*[timm.create_model('hdkd_student', **dict(TINY_STUDENT, num_classes=2)) for _ in range(2)])
    DIST(pair, beta=0.0)
    assert not caplog.records
    DIST(pair)
    assert 'the correlation over two classes is 1 or -1' in caplog.text
