import pytest
import timm
import torch
from helpers import create_student, create_teacher

from hdkd_timm.distillation.init import choose_layers, init_from_teacher, parse_layers


def test_layers_at_even_distances():
    with torch.device('meta'):
        pairs = [
            [timm.create_model(f'hdkd_{role}{suffix}') for role in ('student', 'teacher')] for suffix in ('', '_s4')
        ]
        assert choose_layers(timm.create_model('resnet18'), timm.create_model('resnet34')) == {}
    for student, teacher in pairs:
        assert choose_layers(student, teacher) == {1: (0, 5), 2: (0, 5), 3: (0, 4, 8)}


def test_weights_and_statistics_are_copied():
    student, teacher = create_student(depths=(1, 1, 2, 1)), create_teacher(depths=(2, 2, 3))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    teacher(torch.randn(4, 3, 32, 32))  # other running statistics than at the start
    assert init_from_teacher(student, teacher, {3: (0, 2)}) == {3: (0, 2)}
    source = teacher.state_dict()
    for name, value in student.state_dict().items():
        if name.startswith('stages.2.'):
            of_teacher = name.replace('stages.2.1.', 'stages.2.2.')
            assert torch.equal(value, source[of_teacher]), name
        else:
            assert torch.equal(value, before[name]), name
    assert init_from_teacher(student, teacher) == {1: (0,), 2: (0,), 3: (0, 2)}


def test_networks_without_common_blocks():
    student = create_student()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(ValueError, match='HDKDStudent cannot start from ResNet: they have no stage of the same blocks'):
        init_from_teacher(student, timm.create_model('resnet10t', num_classes=5))
    with pytest.raises(ValueError, match='other shapes than block 1 of HDKDStudent, which it is to initialise.$'):
        init_from_teacher(student, create_teacher(), {1: (0,), 3: (0, 0)})
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_parse_layers():
    assert parse_layers(['1:0,5', '3:0,4,8']) == {1: (0, 5), 3: (0, 4, 8)}
    with pytest.raises(ValueError, match='names stage 1 twice'):
        parse_layers(['1:0', '1:1'])
    for text in ('1', '1:', 'a:0', '1:0;2'):
        with pytest.raises(ValueError, match='must be STAGE:LAYER,LAYER'):
            parse_layers([text])
