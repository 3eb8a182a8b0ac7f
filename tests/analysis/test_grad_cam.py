"""Grad-CAM of networks whose answer is known, and of ours."""

import numpy as np
import pytest
import timm
import torch
from helpers import TINY_STUDENT, TINY_TEACHER
from torch import nn

import hdkd_timm  # noqa: F401
from hdkd_timm.analysis.grad_cam import grad_cam


class Brightness(nn.Module):
    """Class 0 is the brightness of the left half of the maps' channel 0, class 1 that of channel 1."""

    feature_info = [dict(module='stage')]

    def __init__(self):
        super().__init__()
        self.stage = nn.Conv2d(3, 2, 4, stride=4, bias=False)
        self.stage.weight.data.zero_()
        self.stage.weight.data[0, 0] = self.stage.weight.data[1, 1] = 1 / 16

    def forward(self, x):
        return self.stage(x).mean((2, 3))


def test_grad_cam_of_a_known_network():
    images = torch.zeros(2, 3, 32, 32)
    images[0, 0, 8:16, 16:24] = 1  # a red square
    images[1, 1, 24:, :8] = 2  # a green one, below
    maps, logits = grad_cam(Brightness(), images)
    assert logits.argmax(1).tolist() == [0, 1]
    assert maps.shape == (2, 32, 32)
    for cam, (rows, cols) in zip(maps, ((slice(8, 16), slice(16, 24)), (slice(24, 32), slice(0, 8)))):
        assert cam.max() == 1
        assert cam[rows, cols].mean() > 0.7
        assert cam.sum() < 1.6 * cam[rows, cols].sum()  # but for the interpolation nothing lies outside
    # of the other class there is no evidence
    other, _ = grad_cam(Brightness(), images, torch.tensor([1, 0]))
    assert other.abs().max() == 0


@pytest.mark.parametrize(
    'name', ['hdkd_teacher', 'hdkd_student', 'hdkd_student_plain', 'resnet18', 'swin_tiny_patch4_window7_224']
)
def test_grad_cam_of_networks(name):
    size = 224 if 'swin' in name else 61
    kwargs = dict(TINY_TEACHER if 'teacher' in name else TINY_STUDENT, img_size=size) if 'hdkd' in name else {}
    model = timm.create_model(name, **kwargs).eval().requires_grad_(False)
    images = torch.randn(2, 3, size, size)
    maps, logits = grad_cam(model, images)
    assert maps.shape == (2, size, size)
    assert maps.min() >= 0
    assert maps.max() <= 1
    torch.testing.assert_close(logits, model(images))
    # of one image alone it is the same
    torch.testing.assert_close(grad_cam(model, images[1:])[0][0], maps[1], atol=1e-4, rtol=1e-3)
    assert not any(module._forward_hooks for module in model.modules())


def test_grad_cam_depends_on_the_weights():
    torch.manual_seed(1)
    images = torch.randn(1, 3, 64, 64)
    maps = [
        grad_cam(timm.create_model('hdkd_student', **{**TINY_STUDENT, 'img_size': 64}).eval(), images)[0].flatten()
        for _ in range(2)
    ]
    assert np.corrcoef(*maps)[0, 1] < 0.9


def test_layers():
    model = timm.create_model('hdkd_student', **TINY_STUDENT).eval()
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(grad_cam(model, images)[0], grad_cam(model, images, layer='stages.2')[0])
    assert (grad_cam(model, images, layer='stages.1')[0] - grad_cam(model, images)[0]).abs().max() > 0.01
    with pytest.raises(ValueError, match="has no layer 'stage3'"):
        grad_cam(model, images, layer='stage3')
    with pytest.raises(ValueError, match=r'has no stage with a feature map \(looked at blocks\)'):
        grad_cam(model, images, layer='blocks')


class ChannelsLast(nn.Module):
    """A stage with channels last, which only their number in feature_info reveals."""

    feature_info = [dict(module='stage', num_chs=2)]

    def __init__(self):
        super().__init__()
        self.inner, self.stage = Brightness(), nn.Identity()

    def forward(self, x):
        return self.stage(self.inner.stage(x).permute(0, 2, 3, 1)).mean((1, 2))


def test_channels_that_come_last():
    images = torch.zeros(1, 3, 32, 32)
    images[0, 0, 8:16, 16:24] = 1
    torch.testing.assert_close(grad_cam(ChannelsLast(), images)[0], grad_cam(Brightness(), images)[0])
