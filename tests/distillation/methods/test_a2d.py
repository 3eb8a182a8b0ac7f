import pytest
import timm
import torch
from method_helpers import assert_matches, create_pair, load_layer, load_method_reference
from pair_helpers import create_task, describe_pair, run_step

from hdkd_timm.distillation.methods.a2d import A2D, attention_alignment_loss, patch_attention
from hdkd_timm.distillation.outputs import Outputs

# the tensors' 5 tokens as a grid without prefix tokens, so that all of them are compared
STUDENT = dict(stages=[(4, 1)], heads=(2, 2), token_grid=(1, 5))
TEACHER = dict(stages=[(4, 1)], heads=(3, 3), token_grid=(1, 5))
PAIR = describe_pair(STUDENT, TEACHER)


def outputs(student_attention, teacher_attention):
    """Of two blocks each."""
    return tuple(Outputs(torch.empty(0), attention=x.chunk(2, dim=1)) for x in (student_attention, teacher_attention))


def random_attention(*shape):
    return torch.randn(*shape).softmax(dim=-1)


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize(('case', 'epoch', 'beta'), [('case0', 1, 1.0), ('case1', 3, 0.5)])
def test_published_losses_and_gradients(case, epoch, beta, seed):
    tensors, cases = load_method_reference('a2d', seed)
    assert cases[case] == dict(epoch=epoch, beta=beta, decay=0.9)
    method = A2D(PAIR, weight=beta)
    load_layer(method.align, tensors, 'aam.')
    method.set_epoch(epoch - 1, 10)
    attention = tensors['student_attention'].requires_grad_()
    loss = method.weight * method(*outputs(attention, tensors['teacher_attention']), torch.zeros(3))['loss']
    loss.backward()
    assert_matches(loss.detach(), tensors[f'{case}.loss'], 'loss', 1e-5)
    assert_matches(attention.grad, tensors[f'{case}.grad.student_attention'], 'gradient')
    assert_matches(method.align.weight.grad, tensors[f'{case}.grad.aam.weight'], 'parameters')
    # a softmax does not see a bias: what is left of its gradient is rounding
    for grad in (method.align.bias.grad, tensors[f'{case}.grad.aam.bias']):
        assert grad.abs().max() < 1e-5 * method.align.weight.grad.abs().max()


def test_prefix_tokens_are_dropped_block_by_block():
    network = describe_pair(dict(STUDENT, token_grid=(2, 3), num_prefix_tokens=2), TEACHER).student
    blocks = [random_attention(2, heads, 8, 8) for heads in (2, 3)]
    patches = patch_attention(blocks, network)
    assert patches.shape == (2, 5, 6, 6)
    assert torch.equal(patches[:, 3, 0, 4], blocks[1][:, 1, 2, 6])


def test_attention_over_channels_is_refused():
    """As of XCiT, whose layers look like those of a ViT from outside in some releases of timm."""
    networks = [timm.create_model('vit_tiny_patch16_224', num_classes=5, img_size=32, depth=2) for _ in range(2)]
    method = A2D(create_pair(*networks))
    outputs = (Outputs(torch.empty(0), attention=[random_attention(2, 3, tokens, tokens)] * 2) for tokens in (5, 32))
    with pytest.raises(ValueError, match='a2d: the attention of the teacher vit_.* is over 32 tokens or channels, not'):
        method(*outputs, None)


def test_mean():
    s, t = torch.randn(2, 3, 4, 5, 5)
    torch.testing.assert_close(attention_alignment_loss(s, t, 'mean'), attention_alignment_loss(s, t) / 12)
    method = A2D(PAIR, reduction='mean')
    s, t = random_attention(3, 4, 5, 5), random_attention(3, 6, 5, 5)
    loss = method(*outputs(s, t), torch.zeros(3))['loss']
    torch.testing.assert_close(loss, attention_alignment_loss(method.align(s), t) / 18)


def test_decay():
    method, args = A2D(PAIR, decay=0.5), (*outputs(random_attention(3, 4, 5, 5), random_attention(3, 6, 5, 5)), None)
    full = method(*args)['loss']
    for epoch, share in ((0, 1), (1, 0.5), (3, 0.125)):
        method.set_epoch(epoch, 10)
        torch.testing.assert_close(method(*args)['loss'], share * full)
    assert 'fade' not in method.state_dict()


def test_half_precision_is_aligned_in_float32():
    method, args = A2D(PAIR), (*outputs(random_attention(3, 4, 5, 5), random_attention(3, 6, 5, 5)), None)
    expected = method(*args)['loss']
    with torch.autocast('cpu', dtype=torch.bfloat16):
        torch.testing.assert_close(method(*args)['loss'], expected)


@pytest.mark.parametrize(
    ('networks', 'heads'),
    [(('vit', 'deit'), '6 to 9'), (('hdkd_student', 'vit16'), '4 to 6'), (('deit', 'deit'), '9 to 9')],
)
def test_step(networks, heads):
    task = create_task('a2d', *networks)
    assert task.trainable_module.methods['a2d'].describe() == {'heads': heads}
    run_step(task, unseen=['a2d.align.bias'])


def test_one_graph():
    method, args = A2D(PAIR), (*outputs(random_attention(3, 4, 5, 5), random_attention(3, 6, 5, 5)), None)
    torch.testing.assert_close(torch.compile(method, backend='eager', fullgraph=True)(*args), method(*args))


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        (dict(weight=-1), r'a2d\.weight must be a number at least 0, got -1'),
        (dict(decay=0), r'a2d\.decay must be a number above 0 and at most 1, got 0'),
        (dict(decay=1.1), r'a2d\.decay must be a number above 0 and at most 1, got 1\.1'),
        (dict(reduction='batchmean'), r"a2d\.reduction must be one of sum, mean, got 'batchmean'"),
    ],
)
def test_bad_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        A2D(PAIR, **settings)


def test_networks_without_one_grid_of_tokens_are_refused():
    with pytest.raises(ValueError, match="Method 'a2d' for .*hdkd_teacher has no blocks of attention over its patches"):
        A2D(create_pair())
    with pytest.raises(ValueError, match='student has no blocks of attention'):
        A2D(describe_pair(dict(stages=[(4, 8)]), TEACHER))
    with pytest.raises(ValueError, match='grids of 14 x 14 and 1 x 5, which must be equal'):
        A2D(describe_pair(dict(STUDENT, token_grid=(14, 14)), TEACHER))
