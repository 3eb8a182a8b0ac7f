import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import TINY_STUDENT
from method_helpers import check_published_logit_loss, create_pair, logit_outputs
from pair_helpers import PAIRS, create_task, run_step

from hdkd_timm.distillation.methods.dkd import DKD, dkd_losses
from hdkd_timm.distillation.methods.kd import kd_loss, standardize_logits
from hdkd_timm.distillation.outputs import Outputs

TARGET = torch.tensor([0, 1, 2, 3, 4, 4])


def published_loss(s, t, target, case):
    method = DKD(create_pair(), alpha=case['alpha'], beta=case['beta'], tau=case['T'], standardize='method' in case)
    return method(*logit_outputs(s, t), target)['loss']


@pytest.mark.parametrize('seed', [0, 1])
def test_published_losses_and_gradients(seed):
    assert check_published_logit_loss('dkd', published_loss, seed) == 4


@pytest.mark.parametrize('seed', [0, 1])
def test_published_standardised_loss_and_gradient(seed):
    name = 'logit_standardization'
    assert check_published_logit_loss(name, published_loss, seed, lambda case: case['method'] == 'dkd') == 1


def test_the_terms_make_up_the_divergence():
    s, t = torch.randn(2, 6, 5)
    terms = []
    for i in range(6):
        tckd, nckd = dkd_losses(s[i : i + 1], t[i : i + 1], TARGET[i : i + 1], tau=2.0)
        terms.append(tckd + (1 - F.softmax(t[i] / 2, dim=0)[TARGET[i]]) * nckd)
    torch.testing.assert_close(sum(terms) / 6, kd_loss(s, t, tau=2.0))


def test_a_teacher_that_is_certain_gives_finite_gradients():
    s = torch.randn(6, 5, requires_grad=True)
    tckd, nckd = dkd_losses(s, 500 * F.one_hot(TARGET, 5).float(), TARGET, tau=1.0)
    (tckd + nckd).backward()
    torch.testing.assert_close(tckd, F.cross_entropy(s, TARGET))
    assert s.grad.isfinite().all()


def test_settings_reach_the_loss():
    s, d, t = torch.randn(3, 6, 5)
    method = DKD(create_pair(), weight=3.0, alpha=0.5, beta=2.0, tau=3.0, standardize=True)
    result = method(Outputs(s, d), Outputs(t), TARGET)
    tckd, nckd = dkd_losses(standardize_logits(d), standardize_logits(t), TARGET, 3.0)
    torch.testing.assert_close(result, {'loss': 0.5 * tckd + 2 * nckd, 'tckd_loss': tckd, 'nckd_loss': nckd})
    assert method.weight == 3


def test_warm_up():
    outputs = logit_outputs(*torch.randn(2, 6, 5))
    method = DKD(create_pair())
    full = method(*outputs, TARGET)['loss']
    for epoch, epochs, share in ((0, 240, 1 / 20), (9, 240, 0.5), (19, 240, 1), (0, 10, 1), (0, 24, 0.5)):
        method.set_epoch(epoch, epochs)
        torch.testing.assert_close(method(*outputs, TARGET)['loss'], share * full)
    assert not method.state_dict()
    method = DKD(create_pair(), warmup=0.0)
    method.set_epoch(0, 240)
    torch.testing.assert_close(method(*outputs, TARGET)['loss'], full)


def test_soft_targets():
    outputs = logit_outputs(*torch.randn(2, 6, 5))
    method = DKD(create_pair())
    mixed = 0.7 * F.one_hot(TARGET, 5) + 0.3 * F.one_hot(TARGET.flip(0), 5)
    torch.testing.assert_close(method(*outputs, mixed), method(*outputs, TARGET))


@pytest.mark.parametrize('pair', ['hdkd', 'cnn'])
def test_step(pair):
    task = create_task('dkd', *PAIRS[pair])
    run_step(task, soft_targets=pair == 'cnn')
    student = task.trainable_module.student
    if pair == 'hdkd':
        assert student.head_dist.weight.grad.abs().sum() > 0
        assert student.head.weight.grad.abs().sum() == 0


def test_one_graph():
    method, outputs = DKD(create_pair()), logit_outputs(*torch.randn(2, 6, 5))
    compiled = torch.compile(method, backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(*outputs, TARGET), method(*outputs, TARGET))


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        (dict(alpha=-1.0), r'dkd\.alpha must be a number at least 0, got -1'),
        (dict(beta='8'), r"dkd\.beta must be a number at least 0, got '8'"),
        (dict(tau=0), r'dkd\.tau must be a number above 0, got 0'),
        (dict(warmup=20), r'dkd\.warmup must be a number at least 0 and at most 1, got 20'),
    ],
)
def test_bad_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        DKD(create_pair(), **settings)


def test_warnings_for_two_classes(caplog):
    pair = create_pair(*[timm.create_model('hdkd_student', **dict(TINY_STUDENT, num_classes=2)) for _ in range(2)])
    method = DKD(pair)
    assert 'with two classes there is one other class, NCKD is 0' in caplog.text
    assert 'standardised' not in caplog.text
    s, t = torch.randn(2, 6, 2)
    result = method(*logit_outputs(s, t), TARGET % 2)
    torch.testing.assert_close(result['loss'], kd_loss(s, t))
    DKD(pair, standardize=True)
    assert 'standardised logits are +-0.71' in caplog.text
