"""A training step of a method on small networks: the loss is finite, and everything that is trained learns from it."""

import timm
import torch
from helpers import create_student, create_teacher

from hdkd_timm.distillation.task import DistillationTask

PAIRS = {
    'hdkd': lambda: (create_student(), create_teacher()),
    'cnn': lambda: (_create('mobilenetv3_small_050'), _create('resnet10t')),
    'vit': lambda: (_create('vit_tiny_patch16_224', **_VIT), _create('resnet10t')),
    'vits': lambda: (_create('vit_tiny_patch16_224', **_VIT), _create('vit_tiny_patch16_224', **dict(_VIT, depth=6))),
}
_VIT = dict(img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=2)


def _create(name, **kwargs):
    return timm.create_model(name, num_classes=5, **kwargs)


def run_step(method, pair='hdkd', soft_targets=False, **settings):
    """A step of `DistillationTask` with one method, whose gradients are checked. Returns the task and its result."""
    task = DistillationTask(
        *PAIRS[pair](), [method], {method: settings}, input_size=(32, 32), verbose=False, ce_weight=0.0
    ).train()
    target = torch.tensor([0, 1, 2, 3])
    result = task(torch.randn(4, 3, 32, 32), torch.eye(5)[target] * 0.9 + 0.02 if soft_targets else target)
    result['loss'].backward()
    assert all(torch.isfinite(value).all() for value in result.values())
    trained = task.trainable_module
    assert all(p.grad is None or p.grad.isfinite().all() for p in trained.parameters())
    assert sum(p.grad.abs().sum() for p in trained.student.parameters() if p.grad is not None) > 0
    for name, p in trained.methods.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name
    return task, result
