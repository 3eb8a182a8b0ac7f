import pytest
import timm
from helpers import TINY_STUDENT, TINY_TEACHER
from torch import nn

from hdkd_timm.distillation.checks import check_input, check_pair


def create_student(**kwargs):
    return timm.create_model('hdkd_student', **{**TINY_STUDENT, **kwargs})


def create_teacher(**kwargs):
    return timm.create_model('hdkd_teacher', **{**TINY_TEACHER, **kwargs})


@pytest.mark.parametrize(
    ('student', 'teacher', 'kwargs', 'match'),
    [
        ({}, dict(num_classes=4), {}, 'num_classes of student and teacher differ: 5 and 4'),
        ({}, dict(in_chans=1), {}, 'in_chans of student and teacher differ: 3 and 1'),
        (dict(distilled=False), {}, {}, 'HDKDStudent has no distillation head'),
        ({}, {}, dict(kd_type='warm'), "Unknown logit distillation 'warm': choose from soft, hard, none"),
        ({}, {}, dict(stages=[0, 1]), r'1 to 4, the stages of the student hdkd_student, got \[0, 1\]'),
        ({}, {}, dict(stages=[4]), r'1 to 3, the stages of the teacher hdkd_teacher, got \[4\]'),
        ({}, {}, dict(stages=[3, 3]), r'stages must be unique, got \[3, 3\]'),
        ({}, {}, dict(input_size=(3, 64, 64)), r'HDKDStudent does not accept an image of \(3, 64, 64\): Image height'),
        (
            {},
            dict(dims=(8, 24, 24)),
            {},
            r"Stage 2: the student's map is \(B, 16, H/4, W/4\), the teacher's \(B, 24, H/4, W/4\)",
        ),
        ({}, dict(stem_stride=4), {}, r'Stage 1: .*H/2, W/2\), .*H/4, W/4\)'),
    ],
)
def test_pairs_that_do_not_match(student, teacher, kwargs, match):
    with pytest.raises(ValueError, match=match):
        check_pair(create_student(**student), create_teacher(**teacher), **kwargs)


def test_only_what_is_distilled_must_match():
    student, teacher = create_student(distilled=False), create_teacher(dims=(8, 24, 24))
    check_pair(student, teacher, kd_type='none', stages=[1, 3])
    with pytest.raises(ValueError, match='Stage 2'):
        check_pair(student, teacher, kd_type='none', stages=[1, 2])
    with pytest.raises(ValueError, match='The teacher Linear has no forward_intermediates'):
        check_pair(student, nn.Linear(2, 2), kd_type='none')


def test_maps_of_a_forward_pass_are_compared():
    # both halve the image, but they round an odd size differently
    student, teacher = create_student(img_size=45), create_teacher()
    check_pair(student, teacher, input_size=(3, 45, 45))
    teacher.stages[0][0].conv.padding = (0, 0)
    check_pair(student, teacher)
    with pytest.raises(ValueError, match=r'Stage 1: .*\(1, 8, 23, 23\), the teacher.s \(1, 8, 22, 22\)'):
        check_pair(student, teacher, input_size=(3, 45, 45))
    assert student.training
    assert teacher.training


def test_check_input_returns_the_maps_in_the_order_of_the_stages():
    model = create_student().train()
    maps = check_input(model, (3, 32, 32), [3, 1])
    assert [tuple(m.shape) for m in maps] == [(1, 24, 4, 4), (1, 8, 16, 16)]
    assert model.training
