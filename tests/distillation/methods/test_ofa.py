import re

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import strip_prefix
from method_helpers import (
    assert_matches,
    check_published_logit_loss,
    create_pair,
    load_method_reference,
    logit_outputs,
)
from pair_helpers import PAIRS, create_task, run_step
from torch import nn

from hdkd_timm._compat import image_size
from hdkd_timm.distillation.methods.ofa import (
    OFA,
    ConvExit,
    TokenExit,
    count_stages_left,
    find_exit_stages,
    ofa_loss,
)
from hdkd_timm.distillation.networks import NetworkInfo, Pair, StageInfo
from hdkd_timm.distillation.outputs import Outputs

TARGET = torch.tensor([0, 1, 2, 3, 4, 4])


def network(role, stages, pooled_dim, num_prefix_tokens=0):
    return NetworkInfo(role, 'net', 7, tuple(stages), pooled_dim, num_prefix_tokens, (), None, False)


def info_of(name, **kwargs):
    model = timm.create_model(name, num_classes=5, **kwargs)
    return NetworkInfo.of(model, 'student', image_size(model))


@pytest.mark.parametrize('seed', [0, 1])
def test_published_losses_and_gradients(seed):
    def loss(s, t, target, case):
        method = OFA(create_pair(), eps=case['eps'], tau=case['temperature'], stages=['none'])
        return method(*logit_outputs(s, t), target)['loss']

    assert check_published_logit_loss('ofa_loss', loss, seed) == 4


def check_exits(method, tensors, maps, prefix_tokens, rename):
    """Compare a method's exits (by the published stage) with tensors of published code. Returns its loss's parts."""
    for stage, layers in method.items():
        layers.load_state_dict({rename(k): v for k, v in strip_prefix(tensors, f'exit.{stage}.').items()})
        logits = layers(maps[stage], prefix_tokens.get(stage))
        torch.testing.assert_close(logits, tensors[f'exit_logits.{stage}'], rtol=1e-5, atol=1e-5)
        assert_matches(logits, tensors[f'exit_logits.{stage}'])


def check_loss(method, tensors, student, names):
    """Compare the loss and gradients of logits and exits; `names` are the numbers of stages, ours to the published."""
    logits = student.logits
    result = method(student, Outputs(tensors['teacher_logits']), tensors['target'])
    exit_loss = sum(result[f'exit_loss_{number}'] for number in names)
    assert_matches(result['logit_loss'], tensors['loss_kd'], 'loss', 1e-5)
    assert_matches(exit_loss, tensors['loss_ofa'], 'loss', 1e-5)
    (result['loss'] + F.cross_entropy(logits, tensors['target'])).backward()
    assert_matches(logits.grad, tensors['grad.student_logits'], 'gradient')


def check_parameter_gradients(layers, expected, rename):
    expected = {rename(name): grad for name, grad in expected.items()}
    assert set(expected) == {name for name, _ in layers.named_parameters()}
    for name, p in layers.named_parameters():
        assert_matches(p.grad, expected[name], 'parameters')


@pytest.mark.parametrize('seed', [0, 1])
def test_published_exits_of_convolutions(seed):
    tensors, _ = load_method_reference('ofa_exits_conv', seed)
    maps = {i: tensors[f'student_feature.{i}'].clone().requires_grad_() for i in range(1, 5)}
    stages = [StageInfo(f'layer{i}', x.shape[1], 2 ** (i + 1), tuple(x.shape[2:]), False) for i, x in maps.items()]
    method = OFA(Pair(network('student', stages, 10), network('teacher', [], 12)), eps=1.5)
    assert method.describe() == {'exits at stages': '1 2 3 4'}

    def rename(name):
        return name.replace('op.', '')

    check_exits({i: method.exits[str(i)] for i in maps}, tensors, maps, {}, rename)
    student = Outputs(tensors['student_logits'].clone().requires_grad_(), maps=maps)
    check_loss(method, tensors, student, maps)
    for i, x in maps.items():
        assert_matches(x.grad, tensors[f'grad.student_feature.{i}'], 'gradient')
        check_parameter_gradients(method.exits[str(i)], strip_prefix(tensors, f'grad.exit.{i}.'), rename)


@pytest.mark.parametrize('seed', [0, 1])
def test_published_exits_of_tokens(seed):
    tensors, _ = load_method_reference('ofa_exits_tokens', seed)
    names = {4: 2, 12: 4}  # ours, the blocks; theirs, the stages of four
    tokens = {i: tensors[f'student_feature.{stage}'].clone().requires_grad_() for i, stage in names.items()}
    maps = {i: x[:, 1:].transpose(1, 2).unflatten(2, (14, 14)) for i, x in tokens.items()}
    prefix_tokens = {i: x[:, :1] for i, x in tokens.items()}
    stages = [StageInfo(f'blocks.{i}', 4, 16, (14, 14), True) for i in range(12)]
    pair = Pair(network('student', stages, 4, num_prefix_tokens=1), network('teacher', [], 12))
    method = OFA(pair, eps=1.5, stages=['4', '12'])

    def rename(name):
        return re.sub(r'^1\.', 'blocks.', re.sub(r'^3\.', 'head.', name.replace('0.fn.', 'mergings.')))

    exits = {stage: method.exits[str(i)] for i, stage in names.items()}
    published = [{names[i]: x for i, x in found.items()} for found in (maps, prefix_tokens)]
    check_exits(exits, tensors, *published, rename)
    student = Outputs(tensors['student_logits'].clone().requires_grad_(), maps=maps, prefix_tokens=prefix_tokens)
    check_loss(method, tensors, student, names)
    for i, stage in names.items():
        assert_matches(tokens[i].grad, tensors[f'grad.student_feature.{stage}'], 'gradient')
        check_parameter_gradients(exits[stage], strip_prefix(tensors, f'grad.exit.{stage}.'), rename)


@pytest.mark.parametrize(
    ('name', 'kwargs', 'left'),
    [
        ('hdkd_student', {}, {1: 3, 2: 2, 3: 1, 4: 0}),
        ('hdkd_teacher', {}, {1: 2, 2: 1, 3: 0}),
        ('resnet10t', {}, {2: 3, 3: 2, 4: 1, 5: 0}),  # without the stem
        ('convnext_atto', {}, {1: 3, 2: 2, 3: 1, 4: 0}),
        ('levit_128s', {}, {1: 2, 2: 1, 3: 0}),
        ('vit_tiny_patch16_224', {}, {2: 3, 4: 2, 10: 1, 12: 0}),
        ('vit_tiny_patch16_224', dict(depth=6), {1: 3, 2: 2, 5: 1, 6: 0}),
        ('vit_tiny_patch16_224', dict(depth=3), {1: 3, 2: 1, 3: 0}),
        ('vit_tiny_patch16_224', dict(depth=1), {1: 0}),
        ('mixer_s32_224', {}, {1: 3, 3: 2, 7: 1, 8: 0}),
    ],
)
def test_exits_of_networks(name, kwargs, left):
    info = info_of(name, **kwargs)
    assert {number: count_stages_left(info, number) for number in find_exit_stages(info)} == left


def test_exits_of_the_hdkd_student():
    student = timm.create_model('hdkd_student', num_classes=5)
    method = OFA(create_pair(student))
    assert [sum(isinstance(m, nn.ReLU) for m in method.exits[i].modules()) for i in '123'] == [6, 4, 2]
    assert method.exits['1'][-1].weight.shape == (5, 256)  # the larger of 256 and the teacher's 128
    tokens = method.exits['4']
    assert (len(tokens.mergings), len(tokens.blocks)) == (1, 1)
    assert method.student_needs.prefix_tokens
    assert not method.teacher_needs.stages


def test_exits_of_vision_transformers_and_mixers():
    student = timm.create_model('vit_tiny_patch16_224', num_classes=5)
    method = OFA(create_pair(student))
    assert [len(method.exits[i].blocks) for i in ('2', '4', '10', '12')] == [3, 2, 1, 1]
    mixer = OFA(create_pair(timm.create_model('mixer_s32_224', num_classes=5)))
    assert not mixer.student_needs.prefix_tokens
    assert all(isinstance(layers, TokenExit) for layers in mixer.exits.values())


def test_conv_exit_without_halvings():
    layers = ConvExit(3, 6, 5, halvings=0)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(layers(x), layers[-1](layers[0](x).mean(dim=(2, 3))))


def test_token_exit():
    class_token, x = torch.randn(2, 1, 8), torch.randn(2, 8, 29, 31)
    layers = TokenExit(8, 5, grid=29, depth=2)
    shapes = []
    layers.blocks.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    assert layers(x, class_token).shape == (2, 5)
    assert layers(x).shape == (2, 5)
    assert shapes == [(2, 1 + 8 * 8, 8), (2, 8 * 8, 8)]  # 29 x 31 are padded to 30 x 32, then 15 x 16 to 16 x 16
    assert TokenExit(6, 5, grid=7, depth=1).blocks[0].attn.num_heads == 2
    # only the last of several mergings has no activation
    layers.blocks = nn.Identity()
    layers.mergings[-1].reduction.weight.data.mul_(-1)
    seen = []
    layers.mergings[-1].register_forward_hook(lambda module, args, output: seen.append(output))
    torch.testing.assert_close(layers(x), layers.head(seen[0].flatten(1, 2).mean(dim=1)))
    single = TokenExit(8, 5, grid=14, depth=1)
    single.blocks = nn.Identity()
    single.mergings[0].register_forward_hook(lambda module, args, output: seen.append(output))
    logits = single(x[:, :, :14, :14])
    torch.testing.assert_close(logits, single.head(F.gelu(seen[-1]).flatten(1, 2).mean(dim=1)))


def test_loss_is_the_cross_entropy_with_the_teacher_at_eps_1():
    s, t = torch.randn(2, 6, 5)
    torch.testing.assert_close(ofa_loss(s, t, TARGET), F.cross_entropy(s, t.softmax(dim=1)))
    certain = ofa_loss(s, 500 * F.one_hot(TARGET, 5).float(), TARGET, eps=1.5)
    torch.testing.assert_close(certain, (2**1.5 - 1) * F.cross_entropy(s, TARGET))


def test_settings_reach_the_loss():
    s, d, t = torch.randn(3, 6, 5)
    maps = {1: torch.randn(6, 8, 16, 16), 3: torch.randn(6, 24, 4, 4)}
    method = OFA(
        create_pair(),
        weight=2.0,
        logit_weight=0.5,
        exit_weight=3.0,
        eps=1.2,
        exit_eps=(1.3, 1.4),
        tau=2.0,
        stages=(1, 3),
    )
    exits = [method.exits[str(i)](maps[i]) for i in (1, 3)]
    expected = {
        'logit_loss': ofa_loss(d, t, TARGET, 1.2, 2.0),
        'exit_loss_1': ofa_loss(exits[0], t, TARGET, 1.3, 2.0),
        'exit_loss_3': ofa_loss(exits[1], t, TARGET, 1.4, 2.0),
    }
    loss = 0.5 * expected['logit_loss'] + 3 * (expected['exit_loss_1'] + expected['exit_loss_3'])
    result = method(Outputs(s, d, maps), Outputs(t), TARGET)
    torch.testing.assert_close(result, {'loss': loss, **expected})
    torch.testing.assert_close(method(Outputs(s, d, maps), Outputs(t), F.one_hot(TARGET, 5) * 0.9 + 0.02), result)
    assert method.weight == 2
    assert OFA(create_pair(), eps=1.2).exit_eps == {1: 1.2, 2: 1.2, 3: 1.2, 4: 1.2}
    for one in (1.3, [1.3]):
        assert OFA(create_pair(), exit_eps=one, stages=['3', '4']).exit_eps == {3: 1.3, 4: 1.3}


def test_logits_only():
    for settings in (dict(stages='none'), dict(stages=['none']), dict(exit_weight=0)):
        method = OFA(create_pair(), **settings)
        assert not method.student_needs.stages
        assert not list(method.parameters())
        assert method.describe() == {'exits at stages': 'none'}
    method = OFA(create_pair(), logit_weight=0)
    assert not method.student_needs.logits


@pytest.mark.parametrize(('pair', 'exits'), [('hdkd', 4), ('cnn', 4), ('vit', 3), ('vits', 3)])
def test_step(pair, exits):
    task = create_task('ofa', *PAIRS[pair])
    result = run_step(task, soft_targets=pair == 'vit')
    assert sum(name.startswith('ofa_exit_loss_') for name in result) == exits
    if pair == 'hdkd':
        assert task.trainable_module.student.head_dist.weight.grad.abs().sum() > 0


def test_one_graph():
    method = OFA(create_pair())
    tokens = {4: torch.randn(6, 2, 32)}
    maps = {i: torch.randn(6, c, h, h) for i, c, h in ((1, 8, 16), (2, 16, 8), (3, 24, 4), (4, 32, 2))}
    outputs = Outputs(torch.randn(6, 5), maps=maps, prefix_tokens=tokens), Outputs(torch.randn(6, 5))
    compiled = torch.compile(method, backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(*outputs, TARGET), method(*outputs, TARGET))


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        (dict(logit_weight=-1), r'ofa\.logit_weight must be a number at least 0, got -1'),
        (dict(exit_weight=-1), r'ofa\.exit_weight must be a number at least 0, got -1'),
        (dict(eps=0), r'ofa\.eps must be a number above 0, got 0'),
        (dict(tau=0), r'ofa\.tau must be a number above 0, got 0'),
        (dict(exit_eps=[1, 0]), r'ofa\.exit_eps must be a number above 0, got 0'),
        (dict(exit_eps=[1, 1.5]), r'ofa\.exit_eps must be one number for each of 4 exits, or one, got \[1, 1\.5\]'),
        (dict(stages=['1:2']), r"ofa\.stages must be different stages .*got \['1:2'\]"),
        (dict(stages=['1', '1']), r'ofa\.stages must be different stages'),
        (dict(stages=['5']), r"Method 'ofa' for the student hdkd_student .*has stages 1 to 4 .*not a stage 5"),
        (dict(logit_weight=0, stages=['none']), r'nothing is distilled'),
    ],
)
def test_bad_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        OFA(create_pair(), **settings)


def test_student_without_stages():
    pair = Pair(network('student', [], None), network('teacher', [], None))
    with pytest.raises(ValueError, match=r'no stages that could have exits: set ofa\.stages=none'):
        OFA(pair)
    s, t = torch.randn(2, 6, 5)
    result = OFA(pair, stages=['none'])(Outputs(s), Outputs(t), TARGET)
    torch.testing.assert_close(result['loss'], ofa_loss(s, t, TARGET))
