"""The functions for older releases of timm; with those installed the whole suite runs on them."""

import pytest
import timm
import torch
from helpers import TINY_STUDENT, TINY_TEACHER
from timm.data import create_loader
from timm.task import ClassificationTask, LogitDistillationTask
from torch import nn

from hdkd_timm import _compat


@pytest.mark.parametrize(('source', 'target'), [(3, 3), (3, 1), (3, 4), (3, 7), (1, 3), (4, 3)])
def test_first_conv_is_adapted_as_by_the_newest_timm(source, target):
    weight = torch.randn(2, source, 3, 3)
    expected = (
        weight.sum(1, keepdim=True)
        if target == 1
        else (weight[:, [i % source for i in range(target)]] * (source / target))
    )
    adapted = _compat.adapt_first_conv(weight, target)
    torch.testing.assert_close(adapted, expected if source != target else weight)
    if _compat.ADAPTS_FIRST_CONV:
        torch.testing.assert_close(adapted, timm.models.adapt_input_conv(target, weight, source))


def test_size_that_a_network_was_built_for():
    student = timm.create_model('hdkd_student', **{**TINY_STUDENT, 'img_size': (32, 48)})
    assert _compat.image_size(student) == (32, 48)
    assert _compat.image_size(timm.create_model('vit_tiny_patch16_224', img_size=48, depth=1), default=64) == (48, 48)
    assert _compat.image_size(timm.create_model('resnet10t')) == (176, 176)
    assert _compat.image_size(timm.create_model('resnet10t'), default=64) == (64, 64)


def test_classifier_keeps_the_pooling():
    model = timm.create_model('hdkd_student', **TINY_STUDENT, global_pool='avg')
    _compat.reset_classifier(model, 3)
    assert (model.num_classes, model.global_pool) == (3, 'avg')
    model = timm.create_model('resnet18', global_pool='max')
    _compat.reset_classifier(model, 3)
    assert (model.fc.out_features, model.global_pool.pool_type) == (3, 'max')


def test_unknown_schedule():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match='spiral'):
        _compat.create_scheduler(optimizer, 'spiral', num_epochs=2)
    schedule = _compat.create_scheduler(optimizer, 'cosine', num_epochs=2)
    schedule.step(1)
    assert optimizer.param_groups[0]['lr'] == pytest.approx(0.5)


def test_loader_without_batches():
    images = torch.utils.data.TensorDataset(torch.zeros(3, 3, 8, 8), torch.zeros(3, dtype=torch.long))
    args = dict(
        input_size=(3, 8, 8), is_training=True, num_workers=0, persistent_workers=False, device=torch.device('cpu')
    )
    assert len(list(_compat.iterate_batches(create_loader(images, batch_size=3, **args)))) == 1
    assert list(_compat.iterate_batches(create_loader(images, batch_size=4, **args))) == []  # the last one is dropped


def test_task_is_converted_and_its_teacher_stays_in_eval_mode():
    model, teacher = (timm.create_model('hdkd_teacher', **TINY_TEACHER) for _ in range(2))
    task = LogitDistillationTask(model, teacher, verbose=False)
    _compat.set_memory_format(task, torch.channels_last)
    assert model.stages[1][0].conv_pw.weight.is_contiguous(memory_format=torch.channels_last)
    task.eval()
    _compat.set_train_mode(task)
    assert all(m.training for m in model.modules())
    assert not any(m.training for m in teacher.modules())
    plain = ClassificationTask(model, nn.CrossEntropyLoss(), verbose=False).eval()
    _compat.set_train_mode(plain)
    assert model.training
