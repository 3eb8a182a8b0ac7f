import pytest
import torch
import torch.nn.functional as F

from hdkd_timm.distillation.losses import (
    feature_distillation_loss,
    feature_distillation_losses,
    hdkd_loss,
    label_loss,
    logit_distillation_loss,
    mean_squared_difference,
)
from hdkd_timm.distillation.methods.kd import kd_loss


def test_soft_loss_by_hand():
    # p_t = (3/4, 1/4), p_s = (1/2, 1/2)
    student, teacher = torch.zeros(2, 2), torch.tensor([[3.0, 1.0], [3.0, 1.0]]).log()
    kl = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()
    torch.testing.assert_close(logit_distillation_loss(student, teacher), kl / 2)
    torch.testing.assert_close(logit_distillation_loss(student, teacher, reduction='batchmean'), kl)


def test_temperature():
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    torch.testing.assert_close(
        logit_distillation_loss(3 * student, 3 * teacher, tau=3.0), 9 * logit_distillation_loss(student, teacher)
    )


@pytest.mark.parametrize('loss', [logit_distillation_loss, kd_loss])
def test_divergence_under_autocast_is_that_of_float32(loss):
    """On a CPU autocast leaves the softmax in bfloat16, whose errors exceed the divergence of logits that are close."""
    teacher = torch.randn(64, 7).bfloat16()
    student = (teacher + 0.05 * torch.randn(64, 7)).bfloat16().requires_grad_()
    exact = student.detach().float().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        loss(student, teacher, tau=4.0).backward()
    loss(exact, teacher.float(), tau=4.0).backward()
    torch.testing.assert_close(student.grad.float(), exact.grad, rtol=0.01, atol=1e-6)


def test_hard_loss_depends_on_the_argmax_only():
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    expected = F.cross_entropy(student, teacher.argmax(dim=1))
    torch.testing.assert_close(logit_distillation_loss(student, 7 * teacher, kd_type='hard'), expected)


def test_weight_of_a_stage_is_its_position_in_the_list():
    zeros = [torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 2, 2)]
    maps = [torch.full((1, 2, 4, 4), 2.0), torch.full((1, 3, 2, 2), 3.0)]
    assert feature_distillation_losses(maps, zeros, stages=[2, 3]) == {2: 4.0, 3: 9.0}
    assert feature_distillation_loss(maps, zeros) == 1 * 4 + 2 * 9
    assert feature_distillation_loss(maps, zeros, stage_exponent=2) == 1 * 4 + 4 * 9
    assert feature_distillation_loss(maps[1:], zeros[1:], stage_exponent=2) == 9


def test_parts_add_up():
    logits = [torch.randn(4, 5) for _ in range(3)]
    target = torch.tensor([0, 1, 2, 3])
    student_maps, teacher_maps = ([torch.randn(4, 2, 3, 3) for _ in range(2)] for _ in range(2))
    parts = hdkd_loss(
        *logits, target, student_maps, teacher_maps, alpha=0.3, feature_weight=2.0, stages=[1, 3], stage_exponent=0.5
    )
    torch.testing.assert_close(parts['logit_loss'], 0.7 * parts['ce_loss'] + 0.3 * parts['kd_loss'])
    torch.testing.assert_close(parts['feature_loss'], parts['feature_loss_1'] + 2**0.5 * parts['feature_loss_3'])
    torch.testing.assert_close(parts['loss'], parts['logit_loss'] + 2 * parts['feature_loss'])
    assert set(hdkd_loss(*logits, target)) == {'loss', 'ce_loss', 'kd_loss', 'logit_loss'}


def test_kind_none_needs_no_teacher_logits():
    logits, target = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    parts = hdkd_loss(logits, None, None, target, kind='none')
    torch.testing.assert_close(parts['loss'], F.cross_entropy(logits, target))


def test_class_weights_and_label_smoothing_of_the_cross_entropy():
    logits, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 2])
    log_probs, weight = logits.log_softmax(1), torch.tensor([1.0, 2.0, 4.0])
    picked = log_probs[torch.arange(4), target]
    weighted = -(weight[target] * picked).sum() / weight[target].sum()
    smoothed = -(0.9 * picked + 0.1 * log_probs.mean(1)).mean()
    for kwargs, expected in ((dict(class_weight=weight), weighted), (dict(label_smoothing=0.1), smoothed)):
        parts = hdkd_loss(logits, logits, logits, target, alpha=0.5, **kwargs)
        torch.testing.assert_close(parts['ce_loss'], expected)
        torch.testing.assert_close(parts['loss'], expected / 2)  # the distillation is weighted by neither


def test_class_weights_of_class_probabilities():
    """The weighted mean over the images, as of class indices: not the sum over the number of images."""
    logits, target, weight = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 2]), torch.tensor([1.0, 20.0, 400.0])
    one_hot = F.one_hot(target, 3).float()
    for smoothing in (0.0, 0.1):
        torch.testing.assert_close(
            label_loss(logits, one_hot, weight, smoothing), label_loss(logits, target, weight, smoothing)
        )
    mixed = 0.7 * one_hot + 0.3 * one_hot.flip(0)
    even = torch.zeros(6, 3)
    torch.testing.assert_close(label_loss(even, mixed, weight), torch.tensor(3.0).log())
    torch.testing.assert_close(label_loss(logits, mixed, weight), label_loss(logits, mixed, 7 * weight))


def test_class_probabilities_as_target():
    logits = torch.randn(4, 5)
    target = torch.tensor([0, 1, 2, 3])
    torch.testing.assert_close(
        hdkd_loss(logits, None, None, F.one_hot(target, 5).float(), kind='none')['loss'],
        hdkd_loss(logits, None, None, target, kind='none')['loss'],
    )


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        (dict(kind='medium'), "kind must be one of .*, got 'medium'"),
        (dict(tau=0.0), 'tau'),
        (dict(reduction='sum'), "'sum'"),
        (
            dict(student_maps=[torch.zeros(1, 2, 3, 3)], teacher_maps=[torch.zeros(1, 2, 4, 4)], stages=[3]),
            r"Stage 3: the student's map is \(1, 2, 3, 3\), the teacher's \(1, 2, 4, 4\)",
        ),
        (dict(student_maps=[torch.zeros(1, 2, 3, 3)]), '1 student maps and 0 teacher maps'),
        (dict(teacher_logits=torch.zeros(4, 6)), r'\(4, 5\) and \(4, 6\)'),
    ],
)
def test_bad_arguments(kwargs, match):
    kwargs = {'teacher_logits': torch.zeros(4, 5), **kwargs}
    with pytest.raises(ValueError, match=match):
        hdkd_loss(torch.zeros(4, 5), torch.zeros(4, 5), target=torch.zeros(4, dtype=torch.long), **kwargs)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize('teacher_layout', [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize('layout', [torch.channels_last, torch.contiguous_format])
def test_gradient_has_the_layout_of_the_map(layout, teacher_layout, dtype):
    torch.manual_seed(0)
    s = torch.randn(2, 3, 4, 5, dtype=dtype).to(memory_format=layout).requires_grad_()
    t = torch.randn(2, 3, 4, 5, dtype=dtype).to(memory_format=teacher_layout)
    loss = mean_squared_difference(s, t)
    assert loss.item() == pytest.approx((s - t).double().square().mean().item(), rel=1e-2)
    (gradient,) = torch.autograd.grad(loss, s)
    torch.testing.assert_close(gradient, (2 * (s - t) / s.numel()).detach(), rtol=1e-2, atol=1e-4)
    assert gradient.stride() == s.stride()


def test_normalised_feature_loss():
    torch.manual_seed(3)
    t = torch.randn(8, 4, 6, 6) * torch.tensor([1.0, 2.0, 3.0, 1e-3]).view(1, 4, 1, 1) + 5
    variance = t.var(dim=(0, 2, 3), correction=0)
    (means,) = feature_distillation_losses(
        [t.mean(dim=(0, 2, 3), keepdim=True).expand_as(t)], [t], normalize=True
    ).values()
    torch.testing.assert_close(means, (variance / (variance + 0.1 * variance.mean())).mean())
    # the scale of a teacher does not matter, nor that of one channel among the others but little
    s = torch.randn_like(t)
    (loss,) = feature_distillation_losses([s], [t], normalize=True).values()
    (scaled,) = feature_distillation_losses([100 * s], [100 * t], normalize=True).values()
    torch.testing.assert_close(scaled, loss)
    (half,) = feature_distillation_losses([s.half()], [t.half()], normalize=True).values()
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, loss, rtol=1e-2, atol=0)
