import logging

import pytest
import torch
from helpers import create_student, create_teacher
from torch import nn

from hdkd_timm.models.labels import describe_orders, has_ambiguous_order, match_classes, match_label_names


def with_names(model, names):
    model.pretrained_cfg = dict(model.pretrained_cfg, label_names=names)
    return model


def test_names_of_the_model_come_first():
    model = create_teacher(num_classes=2)
    assert match_label_names(model, None, 'it') is None
    assert match_label_names(model, ('cat', 'dog'), 'it') == ['cat', 'dog']
    for names in (['cat', 'dog'], {'0': 'cat', '1': 'dog'}, {1: 'dog', 0: 'cat'}):
        assert match_label_names(with_names(model, names), None, 'it') == ['cat', 'dog']
        assert match_label_names(model, ['cat', 'dog'], 'it') == ['cat', 'dog']
    with pytest.raises(ValueError, match='it has its own class names, cat, dog, which differ from the given ones, dog'):
        match_label_names(model, ['dog', 'cat'], 'it')


@pytest.mark.parametrize(
    ('names', 'match'),
    [
        (['cat'], '1 label names for the 2 classes of the model'),
        (['cat', 'cat'], "duplicate label name 'cat'"),
        (['cat', ''], 'label_names must be a list of names'),
        ([0, 1], r'label_names must be a list of names, got \[0, 1\]'),
        ({'0': 'cat', '2': 'dog'}, 'label_names must be a list of names'),
    ],
)
def test_invalid_names(names, match, caplog):
    model = with_names(create_teacher(num_classes=2), names)
    with pytest.raises(ValueError, match=f'it: {match}.* Specify its classes by index, --label-names'):
        match_label_names(model, None, 'it')
    with caplog.at_level(logging.WARNING):
        assert match_label_names(model, ['cat', 'dog'], 'it') == ['cat', 'dog']
    assert 'Using the names given' in caplog.text
    if not isinstance(names, dict):
        with pytest.raises(ValueError, match=f'it, names given: {match}'):
            match_label_names(create_teacher(num_classes=2), names, 'it')


def test_classes_that_differ():
    model = with_names(create_teacher(num_classes=2), ['cat', 'dog'])
    match_classes(model, ['cat', 'dog'])
    with pytest.raises(ValueError, match=r"Teacher: its classes \(cat, dog\) .* data \(cat, fox\): class 'dog' is not"):
        match_classes(model, ['cat', 'fox'])
    with pytest.raises(ValueError, match=r'the order differs \(repeat its names with --teacher-label-names'):
        match_classes(model, ['dog', 'cat'])
    with pytest.raises(ValueError, match='Teacher has 2 classes, the data 3'):
        match_classes(create_teacher(num_classes=2), ['cat', 'dog', 'fox'])


@pytest.mark.parametrize('create', [create_teacher, create_student])
def test_head_is_reordered(create):
    """Both heads of a student, whether the names are the model's own or given."""
    x, data = torch.randn(2, 3, 32, 32), ['glioma', 'meningioma', 'Normal']
    for own in (None, ['Normal', 'glioma', 'meningioma']):
        model = with_names(create(num_classes=3), own).eval()
        expected = model(x)[:, [1, 2, 0]]
        match_classes(model, data, ['Normal', 'glioma', 'meningioma'])
        torch.testing.assert_close(model(x), expected)
        assert list(model.pretrained_cfg['label_names']) == data
    model = create(num_classes=3)
    model.head = nn.Sequential(nn.Linear(128, 3))
    with pytest.raises(ValueError, match='head whose classes cannot be reordered'):
        match_classes(model, data, ['Normal', 'glioma', 'meningioma'])


def test_order_of_unnamed_classes():
    """Trainers may sort names as text or as timm does: where both give the same order, nothing is asked."""
    data = ['glioma', 'meningioma', 'Normal']
    assert has_ambiguous_order(data)
    assert not has_ambiguous_order(['a', 'b', 'c'])
    assert describe_orders(data).endswith('has Normal, glioma, meningioma')
    model = create_teacher(num_classes=3)
    before = model.head.weight.clone()
    match_classes(model, ['a', 'b', 'c'])
    with pytest.raises(
        ValueError,
        match='order is ambiguous: the data has glioma, meningioma, Normal; .*'
        r'Specify them by index, --teacher-label-names',
    ):
        match_classes(model, data)
    match_classes(model, data, data)
    assert torch.equal(model.head.weight, before)
