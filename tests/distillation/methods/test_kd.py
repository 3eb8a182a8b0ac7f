import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import TINY_STUDENT
from method_helpers import check_published_logit_loss, create_pair, logit_outputs

from hdkd_timm.distillation.methods.kd import KD, kd_loss, standardize_logits
from hdkd_timm.distillation.outputs import Outputs


@pytest.mark.parametrize('seed', [0, 1])
def test_published_losses_and_gradients(seed):
    assert check_published_logit_loss('kd', lambda s, t, _, case: kd_loss(s, t, tau=case['T']), seed) == 2


@pytest.mark.parametrize('seed', [0, 1])
def test_published_standardised_losses_and_gradients(seed):
    def loss(s, t, _, case):
        return kd_loss(standardize_logits(s), standardize_logits(t), tau=case['T'])

    assert check_published_logit_loss('logit_standardization', loss, seed, lambda case: case['method'] == 'kd') == 2


def test_forms():
    s, t = torch.randn(6, 7), torch.randn(6, 7)
    torch.testing.assert_close(kd_loss(s, t, 2.0, 'mean'), kd_loss(s, t, 2.0) / 7)
    torch.testing.assert_close(kd_loss(s, t, 2.0, 'mse'), F.mse_loss(s, t))


def test_settings_reach_the_loss():
    s, t = torch.randn(6, 5), torch.randn(6, 5)
    target = torch.zeros(6, dtype=torch.long)
    method = KD(create_pair(), tau=2.0, form='mean', standardize=True, weight=3.0)
    expected = kd_loss(standardize_logits(s), standardize_logits(t), 2.0, 'mean')
    torch.testing.assert_close(method(*logit_outputs(s, t), target)['loss'], expected)
    assert method.weight == 3


def test_the_distillation_head_learns():
    s, d, t = torch.randn(3, 6, 5)
    loss = KD(create_pair())(Outputs(s, d), Outputs(t), torch.zeros(6, dtype=torch.long))['loss']
    torch.testing.assert_close(loss, kd_loss(d, t))


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        (dict(tau=0), r'kd\.tau must be a number above 0, got 0'),
        (dict(weight=-1.0), r'kd\.weight must be a number at least 0, got -1'),
        (dict(form='sum'), r"kd\.form must be one of batchmean, mean, mse, got 'sum'"),
    ],
)
def test_bad_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        KD(create_pair(), **settings)


def test_warning_where_standardisation_is_void(caplog):
    two_classes = [timm.create_model('hdkd_student', **dict(TINY_STUDENT, num_classes=2)) for _ in range(2)]
    KD(create_pair(*two_classes))
    assert not caplog.records
    KD(create_pair(*two_classes), standardize=True)
    assert 'with two classes standardised logits are +-0.71' in caplog.text
