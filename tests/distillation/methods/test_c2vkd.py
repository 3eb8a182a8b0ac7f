import math

import pytest
import torch
import torch.nn.functional as F
from method_helpers import assert_matches, load_method_reference
from pair_helpers import create_task, describe_pair, run_step

from hdkd_timm.distillation.methods.c2vkd import C2VKD, global_loss, patch_loss, pdd_loss
from hdkd_timm.distillation.outputs import Outputs
from hdkd_timm.distillation.task import DistillationTask

PAIR = describe_pair(dict(stages=[(6, 3)]), dict(stages=[(6, 3)]))
TARGET = torch.tensor([0, 6, 3])


def outputs(tensors, student_map, student_logits):
    return (
        Outputs(student_logits, maps={1: student_map}),
        Outputs(tensors['teacher_logits'][:3], maps={1: tensors['teacher_map']}),
    )


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize(('case', 'part'), [('case0', 'global_loss'), ('case1', 'patch_loss')])
def test_published_losses_and_gradients_of_maps(case, part, seed):
    tensors, _ = load_method_reference('c2vkd', seed)
    method = C2VKD(PAIR)
    with torch.no_grad():
        method.project.weight.copy_(torch.eye(6)[:, :, None, None])  # the tensors begin after this layer
    student_map = tensors['student_map'].requires_grad_()
    loss = method(*outputs(tensors, student_map, tensors['student_logits'][:3]), TARGET)[part]
    loss.backward()
    assert_matches(loss.detach(), tensors[f'{case}.loss'], 'loss', 1e-5)
    assert_matches(student_map.grad, tensors[f'{case}.grad.student_map'], 'gradient')


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize(('case', 'less'), [('case2', 0.0), ('case3', 0.5 * math.log(2))])
def test_reconstructed_pdd(case, less, seed):
    tensors, _ = load_method_reference('c2vkd', seed)
    logits = tensors['student_logits'].requires_grad_()
    loss = pdd_loss(logits, tensors['teacher_logits'], tensors['target']) - less
    loss.backward()
    assert_matches(loss.detach(), tensors[f'{case}.loss'], 'loss', 1e-5)
    assert_matches(logits.grad, tensors[f'{case}.grad.student_logits'], 'gradient')


def test_pdd_of_certain_networks_is_finite():
    certain = 200 * torch.eye(3)
    target = torch.arange(3)
    assert pdd_loss(certain, certain, target) == 0
    wrong = certain.roll(1, dims=0).requires_grad_()
    pdd_loss(wrong, certain, target).backward()
    assert torch.isfinite(wrong.grad).all()


def test_pdd_of_soft_targets_takes_the_largest():
    s, t = torch.randn(2, 6, 5)
    target = torch.tensor([0, 1, 2, 3, 4, 0])
    torch.testing.assert_close(pdd_loss(s, t, 0.9 * F.one_hot(target, 5) + 0.02), pdd_loss(s, t, target))


def test_patch_loss_is_that_of_the_matrices():
    s, t = torch.randn(2, 4, 7, 3, 5)

    def similarity(x):
        x = F.normalize(x.permute(0, 2, 3, 1).reshape(-1, 7), dim=1)
        x = x - x.mean(dim=1, keepdim=True)
        return x @ x.T / 6

    torch.testing.assert_close(patch_loss(s, t), F.mse_loss(similarity(s), similarity(t)), rtol=1e-4, atol=0)
    assert patch_loss(s, s).abs() < 1e-8


def test_the_larger_map_is_resized():
    method = C2VKD(describe_pair(dict(stages=[(4, 6)]), dict(stages=[(6, 3)])))
    logits = torch.randn(2, 3, 7)
    for s_size, t_size in ((6, 3), (3, 6)):
        s, t = torch.randn(3, 4, s_size, s_size), torch.randn(3, 6, t_size, t_size)
        parts = method(Outputs(logits[0], maps={1: s}), Outputs(logits[1], maps={1: t}), TARGET)
        small = [F.avg_pool2d(x, 2) if x.shape[-1] == 6 else x for x in (method.project(s), t)]
        torch.testing.assert_close(parts['global_loss'], global_loss(*small))
        torch.testing.assert_close(parts['patch_loss'], patch_loss(*small))


def test_settings_reach_the_loss():
    tensors, _ = load_method_reference('c2vkd')
    method = C2VKD(PAIR, weight=2.0, global_weight=0.3, patch_weight=0.7)
    parts = method(*outputs(tensors, tensors['student_map'], tensors['student_logits'][:3]), TARGET)
    expected = parts['pdd_loss'] + 0.3 * parts['global_loss'] + 0.7 * parts['patch_loss']
    torch.testing.assert_close(parts['loss'], expected)
    assert method.weight == 2


@pytest.mark.parametrize(
    ('networks', 'stages'), [(('hdkd_student', 'hdkd_teacher'), '4:3'), (('vit', 'resnet10t'), '3:5')]
)
def test_step(networks, stages):
    task = create_task('c2vkd', *networks)
    run_step(task)
    assert task.trainable_module.methods['c2vkd'].describe() == {'stages': stages}


def test_it_takes_the_place_of_the_cross_entropy_and_trains_both_heads():
    task = create_task('c2vkd', ce_weight=None)
    assert task.trainable_module.ce_weight == 0
    run_step(task)
    student = task.trainable_module.student
    torch.testing.assert_close(student.head.bias.grad, student.head_dist.bias.grad)
    assert student.head.bias.grad.abs().max() > 0


def test_beside_kd_it_trains_the_class_head():
    single = create_task('c2vkd')
    task = DistillationTask(
        single.trainable_module.student,
        single.teacher,
        ['c2vkd', 'kd'],
        {'kd': dict(weight=0.0)},
        input_size=(32, 32),
        verbose=False,
    ).train()
    run_step(task)
    student = task.trainable_module.student
    assert student.head.bias.grad.abs().max() > 0
    assert student.head_dist.bias.grad.abs().max() == 0


def test_one_graph():
    tensors, _ = load_method_reference('c2vkd')
    method, args = C2VKD(PAIR), (*outputs(tensors, tensors['student_map'], tensors['student_logits'][:3]), TARGET)
    torch.testing.assert_close(torch.compile(method, backend='eager', fullgraph=True)(*args), method(*args))


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        (dict(weight=-1), r'c2vkd\.weight must be a number at least 0, got -1'),
        (dict(global_weight=-1), r'c2vkd\.global_weight must be a number at least 0, got -1'),
        (dict(patch_weight='1'), r"c2vkd\.patch_weight must be a number at least 0, got '1'"),
        (dict(stages=['1:1', '2:2']), r'c2vkd\.stages must name one stage of each network'),
    ],
)
def test_bad_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        C2VKD(PAIR, **settings)


def test_a_network_without_stages_is_refused():
    with pytest.raises(ValueError, match="Method 'c2vkd' for .*: teacher has no stages to take a map of"):
        C2VKD(describe_pair(dict(stages=[(6, 3)]), dict()))
