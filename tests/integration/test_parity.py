"""Every tensor that the published code wrote into tests/fixtures is met."""

import pytest
import torch
from helpers import TINY_STUDENT, TINY_TEACHER, load_reference, parse_case, strip_prefix

from hdkd_timm.distillation.losses import hdkd_loss
from hdkd_timm.layers.mbcsa import MbcsaBlock
from hdkd_timm.models.hdkd import HDKDStudent, HDKDTeacher
from hdkd_timm.models.published import convert_state_dict

NETWORKS = {
    'teacher': lambda: HDKDTeacher(**TINY_TEACHER),
    'student': lambda: HDKDStudent(**TINY_STUDENT),
    'student_plain': lambda: HDKDStudent(**TINY_STUDENT, distilled=False),
}


def load_network(name, state):
    model = NETWORKS[name]()
    model.load_state_dict(convert_state_dict(state))
    return model


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('name', NETWORKS)
def test_network_outputs(name, seed):
    reference, _ = load_reference(f'{name}_seed{seed}')
    model = load_network(name, strip_prefix(reference, 'state.')).eval()
    checked = set()

    def check(key, actual):
        torch.testing.assert_close(actual, reference[key], rtol=0, atol=1e-5)
        checked.add(key)

    with torch.no_grad():
        features, maps = model.forward_intermediates(reference['input'], [0, 1, 2])
        for i in range(3):
            check(f'eval.stage{i + 1}', maps[i])
        check('eval.logits', model(reference['input']))
        check('eval.logits', model.forward_head(features))
        if name == 'student':
            check('eval.logits_cls', model.head(features[:, 0]))
            check('eval.logits_dist', model.head_dist(features[:, 1]))
    assert checked == {key for key in reference if key.startswith('eval.')}


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('name', ['mbcsa', 'mbcsa_down', 'mbconv_se', 'mbconv_se_down'])
def test_block_outputs(name, seed):
    reference, _ = load_reference(f'blocks_seed{seed}')
    reference = strip_prefix(reference, f'{name}.')
    block = MbcsaBlock(
        16, 24 if 'down' in name else 16, stride=2 if 'down' in name else 1, attn='se' if 'se' in name[2:] else 'cbam'
    )
    # the converter recognises networks, so the block poses as one of a network's
    state = {f'stage2.0.{key}': value for key, value in strip_prefix(reference, 'state.').items()}
    state = convert_state_dict({'stage1.0.0.weight': torch.zeros(1), **state})
    block.load_state_dict(strip_prefix(state, 'stages.1.0.'))
    with torch.no_grad():
        torch.testing.assert_close(block.eval()(reference['input']), reference['output'], rtol=0, atol=1e-5)


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('case', ['case0', 'case1', 'case2', 'case3'])
def test_losses_gradients_and_running_statistics(case, seed):
    reference, metadata = load_reference(f'losses_seed{seed}')
    assert set(metadata) == {'case0', 'case1', 'case2', 'case3'}
    settings = parse_case(metadata[case])
    indices = [stage - 1 for stage in settings['stages']]
    teacher = load_network('teacher', strip_prefix(reference, 'teacher_state.')).eval()
    student = load_network('student', strip_prefix(reference, 'student_state.')).train()
    student.set_distilled_training()
    expected = strip_prefix(reference, f'{case}.')

    with torch.no_grad():
        features, teacher_maps = teacher.forward_intermediates(reference['input'], indices)
        teacher_logits = teacher.forward_head(features)
    features, student_maps = student.forward_intermediates(reference['input'], indices)
    cls_logits, dist_logits = student.forward_head(features)
    losses = hdkd_loss(
        cls_logits, dist_logits, teacher_logits, reference['target'], student_maps, teacher_maps, **settings
    )
    losses['loss'].backward()

    torch.testing.assert_close(cls_logits, expected['logits_cls'], rtol=0, atol=1e-5)
    torch.testing.assert_close(dist_logits, expected['logits_dist'], rtol=0, atol=1e-5)
    for ours, theirs in (
        ('loss', 'loss'),
        ('ce_loss', 'loss_ce'),
        ('logit_loss', 'loss_logit'),
        ('feature_loss', 'loss_feature'),
    ):
        torch.testing.assert_close(losses[ours], expected[theirs], rtol=1e-5, atol=0)

    grads = convert_state_dict(strip_prefix(expected, 'grad.'))
    assert set(grads) == {name for name, p in student.named_parameters() if p.grad is not None}
    for name, param in student.named_parameters():
        if name.endswith('pre_norm.bias'):
            assert param.grad.abs().max() < 1e-5  # its true value is zero
        elif name in grads:
            error = (param.grad - grads[name]).abs().max() / grads[name].abs().max()
            assert error < 1e-4, f'{name}: {error:.1e}'

    running = convert_state_dict(strip_prefix(expected, 'running.'))
    state = student.state_dict()
    assert set(running) == {name for name in state if name.endswith(('running_mean', 'running_var'))}
    for name, value in running.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=1e-5)


def test_no_reference_tensor_is_left_out():
    keys = {'input', 'target'}
    for seed in (0, 1):
        reference, _ = load_reference(f'losses_seed{seed}')
        for name in reference:
            prefix = name.split('.')[0]
            part = name.split('.')[1] if '.' in name else ''
            assert (
                name in keys
                or prefix in ('teacher_state', 'student_state')
                or part
                in ('grad', 'running', 'logits_cls', 'logits_dist', 'loss', 'loss_ce', 'loss_logit', 'loss_feature')
            ), name
