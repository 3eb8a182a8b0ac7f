import math

import pytest
import torch
import torch.nn.functional as F
from method_helpers import assert_matches, load_method_reference
from pair_helpers import create_task, describe_pair, run_step

from hdkd_timm.distillation.methods.sinkhorn import Sinkhorn, sinkhorn_loss, sinkhorn_plan
from hdkd_timm.distillation.outputs import Outputs

STUDENT = dict(stages=[(4, 8)], pooled_dim=5)
TEACHER = dict(stages=[(4, 8)], pooled_dim=7)
PAIR = describe_pair(STUDENT, TEACHER)
REGULARIZATION = dict(case0=0.1, case1=0.5)


def load(seed):
    return load_method_reference('wcord_sinkhorn_pot', seed)[0]


def outputs(student_features, teacher_features):
    return Outputs(torch.empty(0), pooled=student_features), Outputs(torch.empty(0), pooled=teacher_features)


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('case', ['case0', 'case1'])
def test_published_plans_losses_and_gradients(case, seed):
    """Those of the library POT."""
    tensors = load(seed)
    student = tensors['student_embedding'].requires_grad_()
    loss = sinkhorn_loss(student, tensors['teacher_embedding'], REGULARIZATION[case], iterations=1000)
    loss.backward()
    assert_matches(loss.detach(), tensors[f'{case}.loss'], 'loss', 1e-5)
    assert_matches(student.grad, tensors[f'{case}.grad.student_embedding'], 'gradient')
    plan = sinkhorn_plan(tensors[f'{case}.cost'], REGULARIZATION[case], iterations=1000)
    assert_matches(plan, tensors[f'{case}.plan'])


@pytest.mark.parametrize('seed', [0, 1])
def test_the_default_number_of_iterations_is_enough(seed):
    tensors = load(seed)
    loss = sinkhorn_loss(tensors['student_embedding'], tensors['teacher_embedding'])
    torch.testing.assert_close(loss, tensors['case0.loss'], rtol=1e-3, atol=0)


@pytest.mark.parametrize('seed', [0, 1])
def test_little_regularization_comes_near_the_exact_transport(seed):
    tensors = load(seed)
    args = tensors['student_embedding'], tensors['teacher_embedding']
    losses = [sinkhorn_loss(*args, regularization, 3000) for regularization in (0.5, 0.1, 0.005)]
    assert losses[0] > losses[1] > losses[2] > tensors['exact.loss'] - 1e-5
    assert losses[2] - tensors['exact.loss'] < 0.005 * math.log(6)  # what the entropy can make of it


def test_columns_of_the_plan_are_uniform_after_any_number_of_iterations():
    plan = sinkhorn_plan(2 * torch.rand(6, 6), 0.05, iterations=1)
    torch.testing.assert_close(plan.sum(dim=0), torch.full((6,), 1 / 6))


def test_a_permutation_of_the_batch_costs_nothing():
    s, t = torch.randn(2, 6, 5)
    torch.testing.assert_close(sinkhorn_loss(s[torch.randperm(6)], t), sinkhorn_loss(s, t), rtol=1e-4, atol=1e-5)
    assert sinkhorn_loss(10 * torch.eye(6).roll(1, dims=0), torch.eye(6)) < 0.01


def test_settings_reach_the_loss():
    method = Sinkhorn(PAIR, weight=2.0, regularization=0.3, iterations=7)
    features = torch.randn(4, 5), torch.randn(4, 7)
    loss = method(*outputs(*features), torch.zeros(4))['loss']
    torch.testing.assert_close(loss, sinkhorn_loss(method.embed(features[0]), features[1], 0.3, 7))
    assert not torch.isclose(loss, sinkhorn_loss(method.embed(features[0]), features[1], 0.1, 7))
    assert method.weight == 2


def test_a_batch_of_one():
    s, t = torch.randn(2, 1, 5)
    torch.testing.assert_close(sinkhorn_loss(s, t), 1 - F.cosine_similarity(s, t).squeeze())


def test_half_precision_is_computed_in_float32():
    s, t = torch.randn(2, 6, 5)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = sinkhorn_loss(s, t)
    torch.testing.assert_close(loss, sinkhorn_loss(s, t))


@pytest.mark.parametrize('networks', [('hdkd_student', 'hdkd_teacher'), ('vit', 'resnet10t')])
def test_step(networks):
    run_step(create_task('sinkhorn', *networks))


def test_one_graph():
    method = Sinkhorn(PAIR, iterations=3)
    args = (*outputs(torch.randn(4, 5), torch.randn(4, 7)), torch.zeros(4))
    torch.testing.assert_close(torch.compile(method, backend='eager', fullgraph=True)(*args), method(*args))


@pytest.mark.parametrize(
    ('student', 'settings', 'match'),
    [
        (STUDENT, dict(weight=-1), r'sinkhorn\.weight must be a number at least 0, got -1'),
        (STUDENT, dict(regularization=0), r'sinkhorn\.regularization must be a number above 0, got 0'),
        (STUDENT, dict(iterations=0), r'sinkhorn\.iterations must be a number at least 1, got 0'),
        (STUDENT, dict(iterations=1.5), r'sinkhorn\.iterations must be a whole number, got 1\.5'),
        (dict(STUDENT, pooled_dim=None), {}, 'student does not return the features before its classifier'),
    ],
)
def test_bad_settings(student, settings, match):
    with pytest.raises(ValueError, match=match):
        Sinkhorn(describe_pair(student, TEACHER), **settings)
