"""Heat maps in image coordinates, and the command that writes them."""

import numpy as np
import pytest
import timm
import torch
from helpers import TINY_STUDENT, write_images
from timm.data import create_transform

import hdkd_timm  # noqa: F401
from hdkd_timm.analysis.explain import (
    Explanation,
    _compute_maps,
    _write_overlays,
    explain,
    to_image_coordinates,
    write_explanations,
)
from hdkd_timm.analysis.grad_cam import NoMapsError
from hdkd_timm.analysis.rollout import attention_rollout
from hdkd_timm.cli import main
from hdkd_timm.evaluation.classifier import ModelConfig
from hdkd_timm.evaluation.temperature import apply_temperature, write_temperature
from hdkd_timm.models.checkpoint import save_model


@pytest.mark.parametrize('mode', ['squash', 'center', 'border'])
@pytest.mark.parametrize('crop_pct', [1.0, 0.8])
@pytest.mark.parametrize('size', [(120, 200), (200, 120), (90, 90)])
def test_places_come_back_to_where_they_were(mode, crop_pct, size):
    """A spot in an image that went through timm's transform is mapped back to its position."""
    from PIL import Image

    config = dict(input_size=(3, 64, 64), crop_pct=crop_pct, crop_mode=mode, interpolation='bilinear')
    place = (round(size[0] * 0.55), round(size[1] * 0.4))
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[place[0] - 5 : place[0] + 6, place[1] - 5 : place[1] + 6] = 255
    seen = create_transform(**config, mean=(0, 0, 0), std=(1, 1, 1))(Image.fromarray(pixels))[0]
    over = to_image_coordinates(seen[None], size, config)
    assert over.shape == (1, *size)
    weights = over[0] / over[0].sum()
    found = (weights * np.arange(size[0])[:, None]).sum(), (weights * np.arange(size[1])).sum()
    assert np.allclose(found, place, atol=1.5)


def test_names_of_tokens():
    student = timm.create_model('hdkd_student', **TINY_STUDENT).eval()
    vit = timm.create_model(
        'vit_base_patch16_224', img_size=32, embed_dim=24, depth=1, num_heads=2, reg_tokens=2, num_classes=3
    ).eval()
    images = torch.randn(1, 3, 32, 32)
    target = torch.tensor([0])
    assert list(_compute_maps(student, images, target, None)) == [
        'Grad-CAM',
        'rollout, class token',
        'rollout, distillation token',
    ]
    assert list(_compute_maps(vit, images, target, None)) == ['rollout, class token']  # and no registers
    with pytest.raises(NoMapsError, match='XCiT|Xcit'):
        attention_rollout(timm.create_model('xcit_nano_12_p16_224', num_classes=3).eval(), torch.randn(1, 3, 224, 224))


def test_command(tmp_path, capsys):
    model = timm.create_model('hdkd_student', **TINY_STUDENT)
    save_model(model, tmp_path / 'model', list('abcde'), TINY_STUDENT, (3, 32, 32))
    write_temperature(tmp_path / 'model', 3.0, {})
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
    expected = apply_temperature(np.array([list(plain.probs.values())]), 3.0)[0]
    assert list(explained[0].probs.values()) == pytest.approx(expected, rel=1e-4)
    # bad input
    (tmp_path / 'images' / 'a' / 'bad.png').write_bytes(b'bad')
    for flags, words in (
        ([], 'Cannot read image'),
        (['--label', 'x'], "no class 'x' (classes: a, b, c, d, e)"),
        (['--on-bad-image', 'skip', '--layer', 'x'], "no layer 'x'"),
    ):
        assert main([*explain_it, str(tmp_path / 'none'), *flags]) == 1
        assert words in capsys.readouterr().err
    assert main([*explain_it, str(tmp_path / 'more'), '--on-bad-image', 'skip', '--label', 'c']) == 0
    assert not (tmp_path / 'none').exists()


def test_large_images_are_shown_small(tmp_path):
    """Image and maps are shrunk, the input of the network is not."""
    model = timm.create_model('hdkd_student', **TINY_STUDENT)
    save_model(model, tmp_path / 'model', None, TINY_STUDENT, (3, 32, 32))
    write_images(tmp_path / 'images', classes=['a'], number=1, size=400)
    path = tmp_path / 'images' / 'a' / '0.png'
    config = ModelConfig(device='cpu')
    (large,), (small,), (same,) = (
        explain(tmp_path / 'model', [str(path)], config, max_size=size) for size in (None, 100, 1000)
    )
    assert large.probs == small.probs
    assert (large.image.shape, small.image.shape, same.image.shape) == ((400, 400, 3), (100, 100, 3), (400, 400, 3))
    assert large.maps.keys() == small.maps.keys()
    for name, heat in small.maps.items():
        expected = large.maps[name].reshape(100, 4, 100, 4).mean(axis=(1, 3))
        assert heat.shape == (100, 100)
        assert np.abs(heat - expected).max() < 0.05


def test_names_of_frames(tmp_path):
    image = np.zeros((4, 4, 3), np.uint8)
    for number, path in enumerate(('a/scan.nii.gz#40', 'a/scan.nii.gz#41', 'b/x y.tar.png'), 1):
        found = Explanation(path, image, 'cat', {'cat': 1.0}, {'Grad-CAM': np.zeros((4, 4), np.float32)})
        _write_overlays(found, number, tmp_path)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ['001-scan-40-grad-cam.png', '002-scan-41-grad-cam.png', '003-x_y.tar-grad-cam.png']
