"""The networks as backbones: `features_only` by each of timm's extractors, and `output_stride`."""

import pytest
import timm
import torch
from helpers import TINY_STUDENT, TINY_TEACHER, randomize_batch_stats
from timm.utils import reparameterize_model
from torch import nn

import hdkd_timm  # noqa: F401
from hdkd_timm.layers.mbcsa import MbcsaBlock
from hdkd_timm.models.hdkd import HDKDStudent


@pytest.fixture(scope='module')
def student():
    return timm.create_model('hdkd_student', **TINY_STUDENT).eval()


def extract(student, **kwargs):
    """The same network by an extractor."""
    features = timm.create_model('hdkd_student', **TINY_STUDENT, features_only=True, **kwargs).eval()
    features.model.load_state_dict(student.state_dict(), strict=False)
    return features


@pytest.mark.parametrize('feature_cls', ['list', 'hook', 'fx', 'getter'])
@pytest.mark.parametrize('out_indices', [None, (1, 3), (-1,)])
def test_patch_tokens_are_a_map(student, feature_cls, out_indices, caplog):
    x = torch.randn(2, 3, 32, 32)
    caplog.set_level('INFO')
    kwargs = {} if out_indices is None else dict(out_indices=out_indices)
    features = extract(student, feature_cls=feature_cls, **kwargs)
    expected = student.forward_intermediates(x, out_indices, intermediates_only=True)
    actual = features(x)
    assert [o.shape[1] for o in actual] == features.feature_info.channels()
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected):
        torch.testing.assert_close(a, e)
    assert (f"feature_cls '{feature_cls}' of a student" in caplog.text) == (feature_cls != 'getter')


def test_dictionary_of_maps(student):
    x = torch.randn(2, 3, 32, 32)
    actual = extract(student, feature_cls='dict', out_indices=(0, 3))(x)
    assert list(actual) == ['0', '3']
    for a, e in zip(actual.values(), student.forward_intermediates(x, [0, 3], intermediates_only=True)):
        torch.testing.assert_close(a, e)
    stages = timm.create_model(
        'hdkd_student', **TINY_STUDENT, features_only=True, feature_cls='dict', out_indices=(0, 2)
    )
    assert list(stages(x)) == ['0', '2']


@pytest.mark.parametrize(
    ('name', 'output_stride', 'reductions'),
    [
        ('hdkd_teacher', 32, [2, 4, 8]),
        ('hdkd_teacher', 8, [2, 4, 8]),
        ('hdkd_teacher_s4', 8, [4, 8, 8]),
        ('hdkd_teacher_s4', 16, [4, 8, 16]),
        ('hdkd_student', 32, [2, 4, 8, 16]),
        ('hdkd_student', 16, [2, 4, 8, 16]),
        ('hdkd_student', 8, [2, 4, 8, 8]),
        ('hdkd_student_s4', 32, [4, 8, 16, 32]),
        ('hdkd_student_s4', 16, [4, 8, 16, 16]),
        ('hdkd_student_s4', 8, [4, 8, 8, 8]),
    ],
)
def test_output_stride(name, output_stride, reductions):
    tiny = TINY_STUDENT if 'student' in name else TINY_TEACHER
    plain = timm.create_model(name, **dict(tiny, img_size=64))
    network = timm.create_model(name, **dict(tiny, img_size=64), output_stride=output_stride)
    assert [info['reduction'] for info in network.feature_info] == reductions
    x = torch.randn(1, 3, 64, 64)
    maps = network.forward_intermediates(x, intermediates_only=True)
    assert [m.shape[-1] for m in maps] == [64 // r for r in reductions]
    # weights of the network itself load, its position embedding resampled
    with_weights = timm.create_model(
        name,
        **dict(tiny, img_size=64),
        output_stride=output_stride,
        pretrained=True,
        pretrained_cfg_overlay=dict(state_dict=plain.state_dict(), num_classes=5, input_size=(3, 64, 64)),
    )
    assert torch.equal(with_weights.stages[2][0].conv_dw.weight, plain.stages[2][0].conv_dw.weight)
    if reductions == [info['reduction'] for info in plain.feature_info]:
        assert torch.equal(with_weights.eval()(x), plain.eval()(x))


def test_output_stride_of_another_value():
    with pytest.raises(ValueError, match='output_stride must be 8, 16 or 32, got 4'):
        timm.create_model('hdkd_student', **TINY_STUDENT, output_stride=4)


def test_atrous_convolutions_are_the_strided_ones():
    """At every second position, where no average over the map is taken."""
    torch.manual_seed(0)
    blocks = [
        nn.Sequential(MbcsaBlock(4, 6, stride=2, dilation=dilation), MbcsaBlock(6, 6, dilation=dilation))
        for dilation in (1, 2)
    ]
    randomize_batch_stats(blocks[0])
    blocks[1].load_state_dict(blocks[0].state_dict())
    for sequence in blocks:
        for block in sequence.eval():
            block.attn.channel = nn.Identity()
    x = torch.randn(2, 4, 8, 8)
    dense = blocks[1](x)
    assert dense.shape == (2, 6, 8, 8)
    torch.testing.assert_close(dense[:, :, ::2, ::2], blocks[0](x), rtol=1e-4, atol=1e-5)


def test_overlapping_patches_are_the_others():
    torch.manual_seed(0)
    student = timm.create_model('hdkd_student', **dict(TINY_STUDENT, img_size=64)).eval()
    dense = timm.create_model('hdkd_student', **dict(TINY_STUDENT, img_size=64), output_stride=8).eval()
    dense.patch_embed.load_state_dict(student.patch_embed.state_dict())
    x = torch.randn(2, TINY_STUDENT['dims'][-1], 8, 8)
    torch.testing.assert_close(dense.patch_embed(x)[:, ::2, ::2], student.patch_embed(x))
    dilated = HDKDStudent(**dict(TINY_STUDENT, img_size=64), stem_stride=4, output_stride=8).eval()
    dilated.patch_embed.load_state_dict(student.patch_embed.state_dict())
    spread = torch.randn(2, TINY_STUDENT['dims'][-1], 16, 16)
    spread[:, :, ::2, ::2] = x
    torch.testing.assert_close(dilated.patch_embed(spread)[:, ::4, ::4], student.patch_embed(x))


def test_a_checkpoint_of_a_non_square_image_loads_with_another_output_stride():
    plain = timm.create_model('hdkd_student', **dict(TINY_STUDENT, img_size=(32, 64)))
    dense = timm.create_model(
        'hdkd_student',
        **dict(TINY_STUDENT, img_size=(32, 64)),
        output_stride=8,
        pretrained=True,
        pretrained_cfg_overlay=dict(state_dict=plain.state_dict(), num_classes=5, input_size=(3, 32, 64)),
    )
    assert dense.patch_embed.grid_size == (4, 8)
    assert dense.pos_embed.shape[1] == 2 + 32


def test_forms_of_a_dilated_student():
    student = timm.create_model('hdkd_student_s4', **dict(TINY_STUDENT, img_size=64), output_stride=8)
    randomize_batch_stats(student)
    student.eval()
    x = torch.randn(2, 3, 64, 64)
    expected = student(x)
    torch.testing.assert_close(reparameterize_model(student)(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.jit.script(student)(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.export.export(student, (x,)).module()(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['hdkd_teacher', 'hdkd_student'])
def test_exports_hold_what_exporters_take(name):
    """Core ML has no addcmul and no arithmetic of traced sizes; XNNPACK has a maximum of one row or column only."""
    tiny = TINY_STUDENT if name == 'hdkd_student' else TINY_TEACHER
    plain = timm.create_model(name, **tiny).eval()
    model = timm.create_model(name, **tiny, exportable=True).eval()
    model.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), plain(x))
    exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), plain(x))
    calls = [node for node in exported.graph.nodes if node.op == 'call_function']
    assert not any('addcmul' in str(node.target) for node in calls)
    maxima = [node.args[1] for node in calls if node.target is torch.ops.aten.amax.default]
    assert maxima
    assert all(dims in ([2], [3]) for dims in maxima)
    kinds = {node.kind() for node in torch.jit.trace(plain, x).inlined_graph.nodes()}
    assert 'aten::addcmul' not in kinds
    assert not kinds & {'aten::Int', 'aten::mul_', 'aten::floor_divide'}
