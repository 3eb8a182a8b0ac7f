import pytest
import torch
import torch.nn.functional as F
from method_helpers import assert_matches, load_method_reference
from pair_helpers import create_task, describe_pair, run_step

from hdkd_timm.distillation.methods.reviewkd import ReviewKD, hierarchical_context_loss
from hdkd_timm.distillation.outputs import Outputs

STUDENT = dict(stages=[(3, 8), (4, 4), (5, 2)], pooled_dim=5)
TEACHER = dict(stages=[(4, 8), (6, 6), (7, 3)], pooled_dim=7)
PUBLISHED_NAMES = {'fusions.': 'abf.', '.reduce.': '.conv1.', '.expand.': '.conv2.', '.attention.': '.att_conv.0.'}


def published_name(key):
    for name, published in PUBLISHED_NAMES.items():
        key = key.replace(name, published)
    return key


def random_outputs():
    def outputs(stages, pooled_dim):
        maps = {i: torch.randn(4, channels, size, size) for i, (channels, size) in enumerate(stages, 1)}
        return Outputs(torch.empty(0), maps=maps, pooled=torch.randn(4, pooled_dim))

    return outputs(**STUDENT), outputs(**TEACHER)


@pytest.mark.parametrize('seed', [0, 1])
def test_published_losses_and_gradients(seed):
    tensors, _ = load_method_reference('reviewkd', seed)
    method = ReviewKD(describe_pair(STUDENT, TEACHER))
    method.load_state_dict({key: tensors[published_name(key)] for key in method.state_dict()})
    s = [tensors[f'student_map.{i}'].requires_grad_() for i in range(4)]
    t = [tensors[f'teacher_map.{i}'] for i in range(4)]
    for i, fused in enumerate(method.fuse(s, [x.shape[-2:] for x in t])):
        assert_matches(fused, tensors[f'fused_map.{i}'])
    outputs = (Outputs(torch.empty(0), maps=dict(enumerate(x[:3], 1)), pooled=x[3].flatten(1)) for x in (s, t))
    loss = method(*outputs, torch.zeros(4))['loss']
    loss.backward()
    assert_matches(loss.detach(), tensors['loss'], 'loss', 1e-5)
    for i, x in enumerate(s):
        assert_matches(x.grad, tensors[f'grad.student_map.{i}'], 'gradient')
    for key, p in method.named_parameters():
        assert_matches(p.grad, tensors[f'grad.{published_name(key)}'], 'parameters')


@pytest.mark.parametrize('seed', [0, 1])
def test_published_hierarchical_context_loss(seed):
    tensors, _ = load_method_reference('reviewkd', seed)
    fused = tensors['fused_map.0'].requires_grad_()
    loss = hierarchical_context_loss(fused, tensors['teacher_map.0'])
    loss.backward()
    assert_matches(loss.detach(), tensors['hcl0.loss'], 'loss', 1e-5)
    assert_matches(fused.grad, tensors['hcl0.grad.student_map'], 'gradient')


def test_levels_of_a_map_that_is_not_square():
    s, t = torch.randn(2, 2, 3, 2, 6)
    cells = [(2, 6), (2, 4), (2, 2), (1, 1)]
    errors = [F.mse_loss(F.adaptive_avg_pool2d(s, size), F.adaptive_avg_pool2d(t, size)) for size in cells]
    expected = sum(error / 2**i for i, error in enumerate(errors)) / (1 + 1 / 2 + 1 / 4 + 1 / 8)
    torch.testing.assert_close(hierarchical_context_loss(s, t), expected)


def test_warm_up():
    method, outputs = ReviewKD(describe_pair(STUDENT, TEACHER)), random_outputs()
    full = method(*outputs, torch.zeros(4))['loss']
    for epoch, share in ((0, 0), (10, 0.5), (20, 1), (100, 1)):
        method.set_epoch(epoch, 240)
        torch.testing.assert_close(method(*outputs, torch.zeros(4))['loss'], share * full)
    method.warmup = 0
    method.set_epoch(0, 240)
    torch.testing.assert_close(method(*outputs, torch.zeros(4))['loss'], full)
    assert 'warm' not in method.state_dict()


@pytest.mark.parametrize(
    ('networks', 'stages'),
    [
        (('hdkd_student', 'hdkd_teacher'), '1:1 2:2 3:3'),
        (('mobilevit_xxs', 'resnet10t'), '2:2 3:3 4:4 5:5'),
        (('vit', 'resnet10t'), '3:3'),
    ],
)
def test_step(networks, stages):
    task = create_task('reviewkd', *networks)
    run_step(task)
    assert task.trainable_module.methods['reviewkd'].describe() == {'stages': f'{stages} and pooled'}


def test_one_graph():
    method, args = ReviewKD(describe_pair(STUDENT, TEACHER)), (*random_outputs(), torch.zeros(4))
    torch.testing.assert_close(torch.compile(method, backend='eager', fullgraph=True)(*args), method(*args))


def test_stages_are_fused_in_the_order_of_the_network():
    pair = describe_pair(STUDENT, TEACHER)
    method = ReviewKD(pair, stages=['3:2', '1:1'], weight=2.0)
    assert method.describe() == {'stages': '1:1 3:2 and pooled'}
    assert [fusion.reduce[0].in_channels for fusion in method.fusions] == [5, 5, 3]
    assert [fusion.expand[0].out_channels for fusion in method.fusions] == [7, 6, 4]
    assert method.weight == 2
    assert torch.isfinite(method(*random_outputs(), torch.zeros(4))['loss'])


def test_fused_maps_have_512_channels_at_most():
    method = ReviewKD(describe_pair(dict(STUDENT, pooled_dim=600), TEACHER))
    assert {fusion.reduce[0].out_channels for fusion in method.fusions} == {512}


@pytest.mark.parametrize(
    ('student', 'settings', 'match'),
    [
        (STUDENT, dict(weight=-1), r'reviewkd\.weight must be a number at least 0, got -1'),
        (STUDENT, dict(warmup=20), r'reviewkd\.warmup must be a number at least 0 and at most 1, got 20'),
        (STUDENT, dict(stages=['4:3']), 'has stages 1 to 3 .* not a stage 4'),
        (dict(STUDENT, pooled_dim=None), {}, 'student does not return the features before its classifier: choose'),
        (dict(pooled_dim=5), {}, 'they have no stage of the same stride'),
    ],
)
def test_bad_settings(student, settings, match):
    with pytest.raises(ValueError, match=match):
        ReviewKD(describe_pair(student, TEACHER), **settings)
