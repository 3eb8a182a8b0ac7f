"""What tests of distillation methods share beside published tensors: pairs of any sizes, and a step of them."""

import timm
import torch
from helpers import create_student, create_teacher

from hdkd_timm.distillation.networks import NetworkInfo, Pair, StageInfo
from hdkd_timm.distillation.task import DistillationTask

_VIT = dict(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=2)
NETWORKS = {
    'hdkd_student': create_student,
    'hdkd_teacher': create_teacher,
    'resnet10t': lambda: timm.create_model('resnet10t', num_classes=5),
    'mobilenetv3': lambda: timm.create_model('mobilenetv3_small_050', num_classes=5),
    'mobilevit_xxs': lambda: timm.create_model('mobilevit_xxs', num_classes=5),
    'vit': lambda: timm.create_model('vit_tiny_patch16_224', num_classes=5, **_VIT),
    'vit4': lambda: timm.create_model('vit_tiny_patch16_224', num_classes=5, **dict(_VIT, depth=4)),
    'vit6': lambda: timm.create_model('vit_tiny_patch16_224', num_classes=5, **dict(_VIT, depth=6)),
    'vit16': lambda: timm.create_model('vit_tiny_patch16_224', num_classes=5, **dict(_VIT, patch_size=16)),
    'deit': lambda: timm.create_model('deit_tiny_distilled_patch16_224', num_classes=5, **dict(_VIT, num_heads=3)),
}
PAIRS = {
    'hdkd': ('hdkd_student', 'hdkd_teacher'),
    'cnn': ('mobilenetv3', 'resnet10t'),
    'vit': ('vit4', 'resnet10t'),
    'vits': ('vit4', 'vit6'),
}


def describe_network(role, stages=(), pooled_dim=None, num_classes=7, heads=(), token_grid=None, num_prefix_tokens=0):
    """A network as a method sees it, its stages given as (channels, size)."""
    infos = tuple(
        StageInfo(f'stages.{i}', channels, 2 ** (i + 1), (size, size), False)
        for i, (channels, size) in enumerate(stages)
    )
    return NetworkInfo(role, role, num_classes, infos, pooled_dim, num_prefix_tokens, heads, token_grid, False)


def describe_pair(student, teacher, train_targets=None):
    """A pair of two such networks, given by the arguments of `describe_network`."""
    return Pair(describe_network('student', **student), describe_network('teacher', **teacher), train_targets)


def create_task(method, student='hdkd_student', teacher='hdkd_teacher', train_targets=None, ce_weight=0.0, **settings):
    """The task of one method on small networks and images of 32 px; without the cross entropy by default."""
    return DistillationTask(
        NETWORKS[student](),
        NETWORKS[teacher](),
        [method],
        {method: settings},
        input_size=(32, 32),
        train_targets=train_targets,
        ce_weight=ce_weight,
        verbose=False,
    ).train()


def run_step(task, target=(0, 1, 2, 3), index=None, unseen=(), soft_targets=False):
    """A step, in which everything that is trained must get a finite gradient of the method's loss. Returns its result.

    `unseen` are parameters that the loss does not depend on, as a softmax does not on a bias.
    """
    target = torch.as_tensor(target)
    given = torch.eye(5)[target] * 0.9 + 0.02 if soft_targets else target
    result = task(torch.randn(len(target), 3, 32, 32), given, index)
    result['loss'].backward()
    assert all(torch.isfinite(value).all() for value in result.values())
    grads = [p.grad for p in task.trainable_module.student.parameters() if p.grad is not None]
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert sum(grad.abs().sum() for grad in grads) > 0
    for name, p in task.trainable_module.methods.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
        assert p.grad.abs().sum() > 0 or name in unseen, name
    return result
