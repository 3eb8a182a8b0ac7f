import pytest
import torch
from helpers import strip_prefix
from method_helpers import assert_matches, load_method_reference
from pair_helpers import create_task, describe_pair, run_step

from hdkd_timm.distillation.methods.ickd import ICKD, channel_correlation, ickd_loss
from hdkd_timm.distillation.outputs import Outputs

KEYS = {
    'embed.0.weight': 'embed.conv2d.weight',
    'embed.1.weight': 'embed.l2norm.weight',
    'embed.1.bias': 'embed.l2norm.bias',
}


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('case', ['case0', 'case1'])
def test_published_losses_and_gradients(case, seed):
    tensors = strip_prefix(load_method_reference('ickd', seed)[0], f'{case}.')
    size = tensors['teacher_map'].shape[-1]
    method = ICKD(describe_pair(dict(stages=[(5, 4)]), dict(stages=[(7, size)])))
    method.load_state_dict({key: tensors[name] for key, name in KEYS.items()}, strict=False)
    student_map = tensors['student_map'].requires_grad_()
    outputs = Outputs(torch.empty(0), maps={1: student_map}), Outputs(torch.empty(0), maps={1: tensors['teacher_map']})
    loss = method(*outputs, torch.zeros(4))['loss']
    loss.backward()
    assert_matches(loss.detach(), tensors['loss'], 'loss', 1e-5)
    assert_matches(student_map.grad, tensors['grad.student_map'], 'gradient')
    for key, name in KEYS.items():
        assert_matches(method.get_parameter(key).grad, tensors[f'grad.{name}'], 'parameters')


def test_correlation_is_that_of_the_formula():
    features = torch.randn(2, 3, 4, 5)
    expected = torch.einsum('bihw,bjhw->bij', features, features)
    torch.testing.assert_close(channel_correlation(features), expected / expected.norm(dim=2, keepdim=True))


def test_loss_does_not_depend_on_the_scale_of_a_map_or_the_size_of_the_batch():
    s, t = torch.randn(2, 3, 6, 4, 4)
    loss = ickd_loss(s, t)
    torch.testing.assert_close(ickd_loss(3 * s, 0.1 * t), loss)
    torch.testing.assert_close(ickd_loss(torch.cat([s, s]), torch.cat([t, t])), loss)


def test_half_precision_is_computed_in_float32():
    s, t = 300 * torch.randn(2, 3, 6, 8, 8)  # products that float16 does not have
    loss = ickd_loss(s.half(), t.half())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, ickd_loss(s, t), rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ('networks', 'stages'),
    [
        (('hdkd_student', 'hdkd_teacher'), '4:3'),
        (('vit', 'resnet10t'), '3:5'),
        (('mobilevit_xxs', 'resnet10t'), '5:5'),
    ],
)
def test_step(networks, stages):
    task = create_task('ickd', *networks)
    run_step(task)
    assert task.trainable_module.methods['ickd'].describe() == {'stages': stages}


def test_one_graph():
    method = ICKD(describe_pair(dict(stages=[(4, 4)]), dict(stages=[(6, 8)])))
    args = *(Outputs(torch.empty(0), maps={1: torch.randn(2, c, n, n)}) for c, n in ((4, 4), (6, 8))), torch.zeros(2)
    torch.testing.assert_close(torch.compile(method, backend='eager', fullgraph=True)(*args), method(*args))


def test_settings():
    pair = describe_pair(dict(stages=[(4, 8), (6, 4)]), dict(stages=[(5, 8), (7, 4)]))
    method = ICKD(pair, weight=3.0, stages=['2:1'])
    assert method.weight == 3
    assert method.embed[0].weight.shape == (5, 6, 1, 1)
    assert method.student_needs.stages == (2,)
    assert method.teacher_needs.stages == (1,)
    with pytest.raises(ValueError, match=r"ickd\.stages must name one stage of each .* got \['1:1', '2:2'\]"):
        ICKD(pair, stages=['1:1', '2:2'])
    with pytest.raises(ValueError, match='not a stage 3'):
        ICKD(pair, stages=['3:1'])
    with pytest.raises(ValueError, match=r'ickd\.weight must be a number at least 0, got -1'):
        ICKD(pair, weight=-1)


def test_a_network_without_stages_is_refused():
    with pytest.raises(ValueError, match="'ickd' for the student student .*: teacher has no stages to take a map of"):
        ICKD(describe_pair(dict(stages=[(4, 8)]), dict()))
