import pytest
import timm
import torch
from helpers import TINY_STUDENT, create_student, create_teacher
from method_helpers import create_pair
from pair_helpers import describe_pair

from hdkd_timm.distillation.networks import NetworkInfo

PAIR = describe_pair(dict(stages=[(4, 8), (6, 4), (8, 2)]), dict(stages=[(5, 8), (7, 4)]))


def describe(name, size=(64, 64), **kwargs):
    model = timm.create_model(name, num_classes=5, **kwargs)
    return NetworkInfo.of(model, 'student', size), model


@pytest.mark.parametrize(
    ('name', 'kwargs'),
    [
        ('hdkd_student', TINY_STUDENT),
        ('hdkd_student', dict(img_size=72)),  # which patches of 16 px do not divide
        ('hdkd_student_s4', dict(img_size=64)),
        ('resnet10t', {}),
        ('mobilevit_xxs', {}),
        ('convnext_atto', {}),
        ('vit_tiny_patch16_224', dict(img_size=64, depth=3)),
        ('swin_tiny_patch4_window7_224', dict(img_size=64, window_size=2, depths=(1, 1, 1, 1))),
    ],
)
def test_stages_are_those_of_a_forward_pass(name, kwargs):
    size = (kwargs.get('img_size', 64),) * 2
    info, model = describe(name, size, **{k: v for k, v in kwargs.items() if k != 'num_classes'})
    features, maps = model.eval().forward_intermediates(torch.zeros(1, 3, *size))
    assert [(stage.channels, *stage.size) for stage in info.stages] == [tuple(m.shape[1:]) for m in maps]
    assert info.pooled_dim == model.forward_head(features, pre_logits=True).shape[1]


def test_tokens_and_attention():
    info, _ = describe('deit_tiny_distilled_patch16_224', img_size=64, depth=2)
    assert (info.num_prefix_tokens, info.attention_heads, info.token_grid, info.distilled) == (2, (3, 3), (4, 4), True)
    assert all(stage.is_tokens for stage in info.stages)
    student = NetworkInfo.of(create_student(), 'student', (32, 32))
    assert [stage.is_tokens for stage in student.stages] == [False, False, False, True]
    assert (student.token_grid, student.attention_heads) == ((2, 2), (2, 2))
    teacher = NetworkInfo.of(create_teacher(), 'teacher', (32, 32))
    assert (teacher.token_grid, teacher.attention_heads, teacher.distilled) == (None, (), False)


def test_prefix_tokens_that_stages_do_not_have():
    info, _ = describe('cait_xxs24_224', img_size=64, depth=1)
    assert info.num_prefix_tokens == 0


def test_stages_of_the_same_stride_are_matched():
    assert create_pair().match_stages('at') == [(1, 1), (2, 2), (3, 3)]
    vit = timm.create_model('vit_tiny_patch16_224', num_classes=5, img_size=32, depth=3)
    pair = create_pair(vit, timm.create_model('resnet10t', num_classes=5))
    assert pair.match_stages('at') == [(3, 4)]  # the last block has the stride of the teacher's stage 4
    assert pair.match_stages('at', ['1:2', '3']) == [(1, 2), (3, 3)]


def test_pairs_without_a_common_stride():
    vit = timm.create_model('vit_tiny_patch16_224', num_classes=5, img_size=32, depth=1)
    with pytest.raises(
        ValueError, match=r"Method 'at' for the student vit_.* and the teacher hdkd_teacher: .* 16 and 2, 4, 8"
    ):
        create_pair(vit).match_stages('at')


@pytest.mark.parametrize(
    ('stages', 'match'),
    [
        (['a'], r"at\.stages must be STUDENT:TEACHER, such as 2:3, or one number, got 'a'"),
        (['1:2:3'], "or one number, got '1:2:3'"),
        (['1:1', '1:2'], 'must name a stage of the student once'),
        (['0'], r"Method 'at' .* has stages 1 to 4 \(strides 2, 4, 8, 16\), not a stage 0"),
        (['4'], r'The teacher hdkd_teacher has stages 1 to 3 .* not a stage 4'),
    ],
)
def test_stages_that_there_are_not(stages, match):
    with pytest.raises(ValueError, match=match):
        create_pair().match_stages('at', stages)


def test_last_stages():
    assert PAIR.match_one_stage('ickd') == (3, 2)
    assert PAIR.match_one_stage('mgd', same_stride=True) == (2, 2)


def test_one_stage_that_is_named():
    assert PAIR.match_one_stage('ickd', ['2:1']) == (2, 1)
    assert PAIR.match_one_stage('mgd', ['1'], same_stride=True) == (1, 1)
    with pytest.raises(ValueError, match=r"ickd\.stages must name one stage of each network, .* got \['1:1', '2:2'\]"):
        PAIR.match_one_stage('ickd', ['1:1', '2:2'])


def test_networks_without_stages():
    with pytest.raises(ValueError, match='teacher has no stages to take a map of: choose a method of the logits'):
        describe_pair(dict(stages=[(4, 8)]), dict()).match_one_stage('ickd')


def test_lengths_of_pooled_features():
    assert create_pair().pooled_dims('crd') == (32, 128)


@pytest.mark.parametrize('teacher', [dict(stages=[(4, 8)]), dict(pooled_dim=7)])
def test_networks_that_do_not_return_pooled_features(teacher):
    with pytest.raises(ValueError, match="Method 'crd' for .*: teacher does not return the features before its"):
        describe_pair(dict(stages=[(4, 8)], pooled_dim=5), teacher).pooled_dims('crd')
