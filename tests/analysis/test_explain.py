"""Where networks look: on networks whose answer is known, and on ours."""
import numpy as np
import pytest
import timm
import torch
from helpers import TINY_STUDENT, TINY_TEACHER, write_images
from timm.data import create_transform
from torch import nn

import hdkd_timm  # noqa: F401
from hdkd_timm.analysis.explain import (
    NoMaps,
    _find_all_maps,
    attention_rollout,
    explain,
    grad_cam,
    to_image_coordinates,
    write_explanations,
)
from hdkd_timm.cli import main
from hdkd_timm.evaluation.inference import ModelConfig
from hdkd_timm.evaluation.temperature import scale, write_temperature
from hdkd_timm.models.checkpoint import save_model


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


@pytest.mark.parametrize('name', [
    'hdkd_teacher', 'hdkd_student', 'hdkd_student_plain', 'resnet18', 'swin_tiny_patch4_window7_224'])
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
    maps = [grad_cam(timm.create_model('hdkd_student', **{**TINY_STUDENT, 'img_size': 64}).eval(), images)[0].flatten()
            for _ in range(2)]
    assert np.corrcoef(*maps)[0, 1] < 0.9


def test_layers():
    model = timm.create_model('hdkd_student', **TINY_STUDENT).eval()
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(grad_cam(model, images)[0], grad_cam(model, images, layer='stages.2')[0])
    assert (grad_cam(model, images, layer='stages.1')[0] - grad_cam(model, images)[0]).abs().max() > 0.01
    with pytest.raises(ValueError, match="has no layer 'stage3'"):
        grad_cam(model, images, layer='stage3')
    with pytest.raises(ValueError, match=r'has no stage of maps \(looked at blocks\)'):
        grad_cam(model, images, layer='blocks')


def test_rollout_of_known_attention():
    """Every block lets the class token look at one patch, and the distillation token at another one."""
    model = timm.create_model('hdkd_student', **TINY_STUDENT).eval()
    grid = model.patch_embed.grid_size
    tokens = 2 + grid[0] * grid[1]

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn_drop, self.fused_attn = nn.Identity(), False

        def forward(self, x):
            attention = torch.eye(tokens)[None, None].repeat(len(x), 1, 1, 1)
            attention[..., 0, :] = torch.eye(tokens)[2]  # the first patch
            attention[..., 1, :] = torch.eye(tokens)[tokens - 1]  # the last one
            self.attn_drop(attention)
            return x

    for block in model.blocks:
        block.attn = Fixed()
    maps = attention_rollout(model, torch.randn(3, 3, 32, 32))
    assert maps.shape == (3, 2, 32, 32)
    assert (maps[:, 0].flatten(1).argmax(1) < 32 * 8).all()
    assert (maps[:, 0, 24:, 24:] == 0).all()
    assert (maps[:, 1, :8, :8] == 0).all()
    assert maps[:, 1, -1, -1].min() == 1


@pytest.mark.parametrize('pad', [True, False])
def test_rollout_of_odd_sizes(pad):
    model = timm.create_model('hdkd_student', **{**TINY_STUDENT, 'img_size': (61, 40)}, dynamic_img_pad=pad).eval()
    maps = attention_rollout(model, torch.randn(2, 3, 61, 40))
    assert maps.shape == (2, 2, 61, 40)
    assert torch.isfinite(maps).all()
    assert (maps[..., 32:].max() == 0) == (not pad)  # what has no token
    assert model.blocks[0].attn.fused_attn == bool(timm.layers.use_fused_attn())
    vit = timm.create_model('deit_tiny_distilled_patch16_224', img_size=64).eval()
    assert attention_rollout(vit, torch.randn(1, 3, 64, 64)).shape == (1, 2, 64, 64)
    with pytest.raises(ValueError, match='no blocks of attention'):
        attention_rollout(timm.create_model('hdkd_teacher', **TINY_TEACHER), torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize('mode', ['squash', 'center', 'border'])
@pytest.mark.parametrize('crop_pct', [1., 0.8])
@pytest.mark.parametrize('size', [(120, 200), (200, 120), (90, 90)])
def test_places_come_back_to_where_they_were(mode, crop_pct, size):
    """A spot in an image goes through timm's transform; its map goes back to the same place."""
    from PIL import Image
    config = dict(input_size=(3, 64, 64), crop_pct=crop_pct, crop_mode=mode, interpolation='bilinear')
    place = (round(size[0] * 0.55), round(size[1] * 0.4))
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[place[0] - 5:place[0] + 6, place[1] - 5:place[1] + 6] = 255
    seen = create_transform(**config, mean=(0, 0, 0), std=(1, 1, 1))(Image.fromarray(pixels))[0]
    over = to_image_coordinates(seen[None], size, config)
    assert over.shape == (1, *size)
    weights = over[0] / over[0].sum()
    found = (weights * np.arange(size[0])[:, None]).sum(), (weights * np.arange(size[1])).sum()
    assert np.allclose(found, place, atol=1.5)


def test_names_of_tokens():
    student = timm.create_model('hdkd_student', **TINY_STUDENT).eval()
    vit = timm.create_model(
        'vit_base_patch16_224', img_size=32, embed_dim=24, depth=1, num_heads=2, reg_tokens=2, num_classes=3).eval()
    images = torch.randn(1, 3, 32, 32)
    target = torch.tensor([0])
    assert list(_find_all_maps(student, images, target, None)) == [
        'Grad-CAM', 'rollout, class token', 'rollout, distillation token']
    assert list(_find_all_maps(vit, images, target, None)) == ['rollout, class token']  # and no registers
    with pytest.raises(NoMaps, match='XCiT|Xcit'):
        attention_rollout(timm.create_model('xcit_nano_12_p16_224', num_classes=3).eval(), torch.randn(1, 3, 224, 224))


class ChannelsLast(nn.Module):
    """A stage whose channels come last, which timm tells by their number alone."""
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


def test_command(tmp_path, capsys):
    model = timm.create_model('hdkd_student', **TINY_STUDENT)
    save_model(model, tmp_path / 'model', list('abcde'), TINY_STUDENT, (3, 32, 32))
    write_temperature(tmp_path / 'model', 3., {})
    write_images(tmp_path / 'images', classes=['a'], number=4)
    explain_it = ['explain', str(tmp_path / 'model'), str(tmp_path / 'images'), '--out']
    assert main([*explain_it, str(tmp_path / 'out')]) == 0
    assert '4 images explained' in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / 'out').iterdir())
    assert len(names) == 13
    kinds = ('grad-cam', 'rollout-class-token', 'rollout-distillation-token')
    assert names[:3] == [f'001-0-{kind}.png' for kind in kinds]
    # several sheets, and temperatures
    config = ModelConfig(calibrated=True)
    explained = list(explain(tmp_path / 'model', [tmp_path / 'images'], config))
    assert write_explanations(explained, tmp_path / 'sheets', sheet_rows=3) == 4
    assert (tmp_path / 'sheets' / 'sheet-2.png').exists()
    plain = next(explain(tmp_path / 'model', [tmp_path / 'images']))
    expected = scale(np.array([list(plain.probs.values())]), 3.)[0]
    assert list(explained[0].probs.values()) == pytest.approx(expected, rel=1e-4)
    # bad input
    (tmp_path / 'images' / 'a' / 'bad.png').write_bytes(b'bad')
    for flags, words in (([], 'Cannot read image'), (['--label', 'x'], "no class 'x' (classes: a, b, c, d, e)"),
                         (['--on-bad-image', 'skip', '--layer', 'x'], "no layer 'x'")):
        assert main([*explain_it, str(tmp_path / 'none'), *flags]) == 1
        assert words in capsys.readouterr().err
    assert main([*explain_it, str(tmp_path / 'more'), '--on-bad-image', 'skip', '--label', 'c']) == 0
    assert not (tmp_path / 'none').exists()


def test_large_images_are_shown_small(tmp_path):
    """Image and maps shrink, what the network sees does not."""
    model = timm.create_model('hdkd_student', **TINY_STUDENT)
    save_model(model, tmp_path / 'model', None, TINY_STUDENT, (3, 32, 32))
    write_images(tmp_path / 'images', classes=['a'], number=1, size=400)
    path = tmp_path / 'images' / 'a' / '0.png'
    config = ModelConfig(device='cpu')
    (large,), (small,), (same,) = (
        explain(tmp_path / 'model', [str(path)], config, max_size=size) for size in (None, 100, 1000))
    assert large.probs == small.probs
    assert (large.image.shape, small.image.shape, same.image.shape) == ((400, 400, 3), (100, 100, 3), (400, 400, 3))
    assert large.maps.keys() == small.maps.keys()
    for name, heat in small.maps.items():
        expected = large.maps[name].reshape(100, 4, 100, 4).mean(axis=(1, 3))
        assert heat.shape == (100, 100)
        assert np.abs(heat - expected).max() < 0.05
