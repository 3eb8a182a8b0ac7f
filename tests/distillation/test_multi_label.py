"""Losses and methods for images with any number of labels."""

import logging

import pytest
import torch
import torch.nn.functional as F
from helpers import create_student, create_teacher

from hdkd_timm import DistillationTask, HDKDTask
from hdkd_timm.distillation.losses import binary_divergence, hdkd_loss, label_loss, logit_distillation_loss
from hdkd_timm.distillation.methods import METHODS
from hdkd_timm.distillation.methods.kd import kd_loss
from hdkd_timm.distillation.teacher import StoredLogits, average_logits

NEEDS_ONE_CLASS = ['dkd', 'dist', 'ofa', 'crd', 'c2vkd']


@pytest.fixture
def logits():
    return torch.randn(4, 5, requires_grad=True), torch.randn(4, 5)


@pytest.fixture
def batch():
    return torch.randn(4, 3, 32, 32), torch.randint(2, (4, 5)).float()


def bernoulli_divergence(s, t, tau):
    """From the definition, in double precision."""
    p, q = (torch.distributions.Bernoulli(logits=x.double() / tau) for x in (t, s))
    return tau**2 * torch.distributions.kl_divergence(p, q)


@pytest.mark.parametrize('tau', [1.0, 3.0])
def test_divergence(logits, tau):
    s, t = logits
    expected = bernoulli_divergence(s, t, tau)
    torch.testing.assert_close(binary_divergence(s, t, tau).double(), expected.sum() / 4)
    for reduction, value in (('batchmean', expected.sum() / 4), ('mean', expected.mean())):
        found = logit_distillation_loss(s, t, 'soft', tau, reduction, multi_label=True)
        torch.testing.assert_close(found.double(), value)
        torch.testing.assert_close(kd_loss(s, t, tau, reduction, multi_label=True).double(), value)
    assert binary_divergence(t, t, tau) == 0


def test_divergence_of_certain_teachers_is_finite():
    s = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss = binary_divergence(s, torch.tensor([[-200.0, -200.0]]))
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(200.0))
    assert torch.isfinite(s.grad).all()


def test_hard_labels(logits):
    s, t = logits
    found = logit_distillation_loss(s, t, 'hard', multi_label=True)
    torch.testing.assert_close(found, F.binary_cross_entropy_with_logits(s, (t > 0).float()))


def test_label_loss(logits, batch):
    s, target = logits[0], batch[1]
    torch.testing.assert_close(label_loss(s, target, multi_label=True), F.binary_cross_entropy_with_logits(s, target))
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    smooth = torch.where(target == 1, 0.95, 0.05)
    p = torch.sigmoid(s)
    expected = -(weight * smooth * p.log() + (1 - smooth) * (1 - p).log()).mean()
    torch.testing.assert_close(label_loss(s, target, weight, 0.1, multi_label=True), expected)
    torch.testing.assert_close(
        label_loss(s, target.to(torch.uint8), multi_label=True), label_loss(s, target, multi_label=True)
    )


def test_mean_of_teachers(logits):
    t = torch.stack([logits[1], torch.randn(4, 5)])
    found = average_logits(t, multi_label=True)
    torch.testing.assert_close(found.sigmoid(), t.sigmoid().mean(dim=0))
    assert torch.isfinite(average_logits(torch.full((2, 1, 1), 300.0), multi_label=True)).all()


def test_hdkd_is_the_sum_of_its_parts(batch):
    task = HDKDTask(create_student(), create_teacher(), tau=2.0, reduction='batchmean', multi_label=True).train()
    torch.manual_seed(1)
    losses = task(*batch)
    student = task.get_eval_model()
    torch.manual_seed(1)
    student.train().set_distilled_training(True)
    cls_logits, dist_logits = student(batch[0])
    with torch.no_grad():
        teacher_logits = task.teacher(batch[0])
    torch.testing.assert_close(losses['ce_loss'], F.binary_cross_entropy_with_logits(cls_logits, batch[1]))
    expected = bernoulli_divergence(dist_logits, teacher_logits, 2.0).sum() / 4
    torch.testing.assert_close(losses['kd_loss'].double(), expected, rtol=1e-4, atol=1e-6)
    total = 0.5 * losses['ce_loss'] + 0.5 * losses['kd_loss'] + 10 * losses['feature_loss']
    torch.testing.assert_close(losses['loss'], total)


@pytest.mark.parametrize('name', [name for name in METHODS if name not in NEEDS_ONE_CLASS])
def test_methods_that_are_defined(name, batch):
    student, teacher = create_student(), create_teacher()
    if name == 'a2d':
        teacher = create_student()
    task = DistillationTask(student, teacher, [name], multi_label=True, verbose=False).train()
    index = torch.arange(4) if task.needs_index else None
    losses = task(*batch, index)
    losses['loss'].backward()
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)
    assert losses[f'{name}_loss'] > 0


def test_methods_that_are_not():
    assert [name for name, cls in METHODS.items() if cls.needs_one_class] == NEEDS_ONE_CLASS
    for name in NEEDS_ONE_CLASS:
        with pytest.raises(
            ValueError, match=f"'{name}' .* needs images of one class each, not of several labels: choose"
        ):
            DistillationTask(create_student(), create_teacher(), [name], multi_label=True)


def test_standardised_logits_are_refused():
    with pytest.raises(ValueError, match='logits are standardised over classes, not over labels of their own'):
        DistillationTask(create_student(), create_teacher(), ['kd'], {'kd': {'standardize': True}}, multi_label=True)


def test_averaged_stored_logits(batch):
    """Two teachers' stored logits teach their mean probability of each label."""
    stored = torch.randn(2, 1, 4, 5)
    task = DistillationTask(create_student(), StoredLogits(stored), ['kd'], multi_label=True, verbose=False).train()
    losses = task(*batch, torch.arange(4))
    outputs = task.teachers(batch[0], torch.arange(4))
    torch.testing.assert_close(outputs[0].logits.sigmoid(), stored[:, 0].sigmoid().mean(dim=0))
    assert losses['kd_loss'] > 0


def test_images_of_one_class_are_as_before(logits, caplog):
    """The default is not touched by what labels need."""
    caplog.set_level(logging.INFO)
    s, t = logits
    target = torch.tensor([0, 1, 2, 3])
    found = hdkd_loss(s, s, t, target)['loss']
    expected = (
        0.5 * F.cross_entropy(s, target)
        + 0.5 * F.kl_div(s.log_softmax(1), t.log_softmax(1), reduction='sum', log_target=True) / 20
    )
    torch.testing.assert_close(found, expected)
