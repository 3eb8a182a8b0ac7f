"""The calls that timm's scripts make, which docs/ecosystem/timm-scripts.md says work, or do not."""

import pytest
import timm
import torch
from helpers import write_images
from timm.data import create_dataset
from timm.data.readers import add_img_extensions, get_img_extensions, set_img_extensions
from timm.layers import apply_test_time_pool

import hdkd_timm.models  # noqa: F401, registers the networks

NAMES = ['hdkd_student', 'hdkd_teacher']


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('argument', ['bn_momentum', 'bn_eps', 'drop_block_rate'])
def test_arguments_that_the_networks_do_not_have(name, argument):
    timm.create_model(name, **{argument: None})  # as without the flag
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{argument}'"):
        timm.create_model(name, **{argument: 0.1})


def test_pooling():
    for name, pools in (
        ('hdkd_student', ['token', 'avg', 'max', 'avgmax']),
        ('hdkd_teacher', ['avg', 'max', 'avgmax']),
    ):
        for pool in pools:
            assert timm.create_model(name, global_pool=pool, img_size=32, num_classes=7)(
                torch.randn(2, 3, 32, 32)
            ).shape == (2, 7)
        for pool in ('fast', 'catavgmax'):
            with pytest.raises(ValueError, match='global_pool of a'):
                timm.create_model(name, global_pool=pool)


def test_two_classifiers():
    model = timm.create_model('hdkd_student')
    for function in (
        lambda: model.get_classifier().weight.mul_(1),
        lambda: apply_test_time_pool(model, dict(input_size=(3, 256, 256))),
    ):
        with pytest.raises(AttributeError, match="'tuple' object has no attribute 'weight'"):
            function()


def test_image_size():
    images = torch.randn(1, 3, 128, 128)
    with pytest.raises(AssertionError, match=r"Image height \(128\) doesn't match the model's \(224\)"):
        timm.create_model('hdkd_student')(images)
    for kwargs in (dict(img_size=128), dict(dynamic_img_size=True)):
        assert timm.create_model('hdkd_student', num_classes=7, **kwargs)(images).shape == (1, 7)
    assert timm.create_model('hdkd_teacher', num_classes=7)(images).shape == (1, 7)


def test_classifier_of_another_number_of_classes():
    """onnx_export.py asks for 1000 classes of released weights unless told otherwise."""
    released = timm.create_model('hdkd_student.brain_mri', pretrained=True)
    assert torch.equal(
        timm.create_model('hdkd_student.brain_mri', pretrained=True, num_classes=4).head.weight, released.head.weight
    )
    assert timm.create_model('hdkd_student.brain_mri', pretrained=True, num_classes=1000).head.weight.shape == (
        1000,
        256,
    )


def test_image_formats(tmp_path):
    write_images(tmp_path, number=2, suffix='.webp')
    write_images(tmp_path, number=1, suffix='.png')
    assert len(create_dataset('', tmp_path)) == 3
    assert len(create_dataset('', tmp_path, input_key='.png;.webp')) == 9
    extensions = get_img_extensions()
    try:
        add_img_extensions(['.webp'])
        dataset = create_dataset('', tmp_path)
    finally:
        set_img_extensions(extensions)
    assert len(dataset) == 9
    assert {image.size for image, _ in dataset} == {(40, 40)}
