import pytest
import timm
import torch
from helpers import (
    TINY_STUDENT,
    create_student,
    create_teacher,
    save_checkpoint,
)

from hdkd_timm.models.checkpoint import load_model

HEADS = dict(model_kwargs=dict(head_dim=8))  # which keys and shapes do not determine


def test_stride_four_by_name(tmp_path):
    model = timm.create_model('hdkd_student_s4', **TINY_STUDENT | dict(img_size=64))
    torch.save(model.state_dict(), tmp_path / 's4.pth')
    loaded, _ = load_model(tmp_path / 's4.pth', 'hdkd_student_s4', model_kwargs=dict(head_dim=8))
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(loaded.eval()(x), model.eval()(x))


@pytest.mark.parametrize(
    ('recorded', 'match'),
    [
        (
            {'arch': 'hdkd_teacher'},
            r"not 'hdkd_teacher'.*read from the file \(its 'arch'\): specify the right one, --mod",
        ),
        ({'arch': 'resnet18'}, r"Unknown model 'resnet18'.*read from the file \(its 'arch'\)"),
        ({'args': {'num_classes': 4}}, r"records num_classes=4 \(its 'args'\), its tensors have 5.*num_classes=VALUE"),
        ({'args': {'model_kwargs': {'depths': [1, 2, 2, 3]}}}, r'records depths=.*its tensors have \(1, 2, 2, 2\)'),
        ({'args': {'img_size': 96}}, r"of another shape: pos_embed .*'args' records an image size of 96 pixels"),
    ],
)
def test_file_that_contradicts_its_tensors(recorded, match, tmp_path):
    path = save_checkpoint(tmp_path, {'state_dict': create_student().state_dict(), **recorded})
    with pytest.raises(ValueError, match=match):
        load_model(path, **HEADS)


def test_warning_about_defaults(tmp_path, caplog):
    path = save_checkpoint(tmp_path, timm.create_model('hdkd_student', **{**TINY_STUDENT, 'head_dim': 32}).state_dict())
    load_model(path)
    assert 'stem of stride 2 (hdkd_student; --model hdkd_student_s4 has 4); attention heads of width 32' in caplog.text
    assert 'images of 32 x 32 pixels' in caplog.text
    caplog.clear()
    load_model(path, 'hdkd_student', model_kwargs=dict(img_size=32))
    assert not caplog.records
    load_model(save_checkpoint(tmp_path, create_teacher().state_dict()))  # of any size, but trained at one
    assert 'images of 224 x 224 pixels' in caplog.text


def test_network_without_its_head(tmp_path):
    weights = {f'0.model.{name}': value for name, value in create_teacher().state_dict().items() if 'head' not in name}
    with pytest.raises(ValueError, match=r'it has no head\.weight'):
        load_model(save_checkpoint(tmp_path, {'model': weights}))


def test_training_state_of_another_network_points_to_its_model(tmp_path):
    weights = timm.create_model('test_resnet').state_dict()
    state = dict(progress=[], optimizer={}, state_dict=weights, arch='test_resnet')
    with pytest.raises(ValueError, match="is the training state of a run: use its model, 'best' beside it"):
        load_model(save_checkpoint(tmp_path, state))
