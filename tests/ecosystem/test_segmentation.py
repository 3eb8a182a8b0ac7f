"""segmentation_models_pytorch: the table of decoders says what is so."""

import re

import pytest
import segmentation_models_pytorch as smp
import torch
from snippets import ECOSYSTEM

import hdkd_timm.models  # noqa: F401, registers the networks

ROWS = [
    [cell.strip(' `') for cell in line.strip('|').split('|')]
    for line in re.findall(r'(?m)^\|.*\|$', (ECOSYSTEM / 'segmentation.md').read_text(encoding='utf-8'))
]
NETWORKS = [re.fullmatch(r'(\w+)`, depth (\d)', cell).groups() for cell in ROWS[0][1:]]
CASES = [
    (decoder, network, int(depth), cell)
    for decoder, *cells in ROWS[2:]
    for (network, depth), cell in zip(NETWORKS, cells, strict=True)
]


def run(decoder, network, depth, size, **kwargs):
    """Size of the masks of square images."""
    if 'student' in network:
        kwargs['dynamic_img_size'] = True
    if decoder in ('Unet', 'UnetPlusPlus', 'MAnet'):
        kwargs['decoder_channels'] = (32, 24, 16, 16, 8)[:depth]
    model = getattr(smp, decoder)(
        f'tu-{network}', encoder_depth=depth, encoder_weights=None, classes=2, **kwargs
    ).eval()
    with torch.inference_mode():
        batch, classes, *masks = model(torch.randn(1, 3, size, size)).shape
    assert (batch, classes) == (1, 2)
    return masks


def test_table_has_all_decoders():
    assert sorted({case[0] for case in CASES}) == sorted(
        name
        for name in vars(smp)
        if isinstance(getattr(smp, name), type) and issubclass(getattr(smp, name), torch.nn.Module)
    )
    assert {'hdkd_student', 'hdkd_teacher', 'hdkd_student_s4', 'hdkd_teacher_s4'} == {case[1] for case in CASES}


@pytest.mark.parametrize(('decoder', 'network', 'depth', 'cell'), CASES, ids=['-'.join(map(str, c[:3])) for c in CASES])
def test_decoder(decoder, network, depth, cell):
    if cell == 'yes':
        assert run(decoder, network, depth, 64) == [64, 64]
    elif cell == 'no':
        with pytest.raises((RuntimeError, ValueError)):
            run(decoder, network, depth, 128)
    elif cell == 'from 128 px':
        assert run(decoder, network, depth, 128) == [128, 128]
        with pytest.raises(RuntimeError, match='Output size is too small'):
            run(decoder, network, depth, 64)
    else:
        upsampling = int(re.fullmatch(r'upsampling=(\d+)', cell)[1])
        assert run(decoder, network, depth, 64) != [64, 64]
        assert run(decoder, network, depth, 64, upsampling=upsampling) == [64, 64]


def test_depths():
    with pytest.raises(ValueError, match='Feature index 4 is out of range for 4 features'):
        run('Unet', 'hdkd_student', 5, 64)


def test_size_of_images():
    model = smp.Unet('tu-hdkd_student', 4, None, decoder_channels=(32, 16, 16, 8), img_size=64)
    with pytest.raises(AssertionError, match=r"Image height \(96\) doesn't match the model's \(64\)"):
        model(torch.randn(2, 3, 96, 96))
    with pytest.raises(RuntimeError, match=r'Wrong input shape height=72, width=72\. .*divisible by 16'):
        run('MAnet', 'hdkd_student', 4, 72)
    assert run('Unet', 'hdkd_student', 4, 72) == [72, 72]
    stages = smp.Unet('tu-hdkd_student', 3, None, decoder_channels=(32, 16, 8))
    assert stages(torch.randn(2, 3, 96, 80)).shape == (2, 1, 96, 80)


def test_released_weights():
    import timm

    model = smp.Unet('tu-hdkd_student.brain_mri', 4, decoder_channels=(32, 16, 16, 8))
    released = timm.create_model('hdkd_student.brain_mri', pretrained=True).state_dict()
    weights = model.encoder.model.state_dict()
    name = next(name for name in weights if name.endswith('blocks.0.attn.qkv.weight'))
    assert torch.equal(weights[name], released['blocks.0.attn.qkv.weight'])


@pytest.mark.parametrize('decoder', ['DeepLabV3', 'DeepLabV3Plus', 'UPerNet', 'PAN'])
def test_batches_of_one_image_in_training(decoder):
    model = getattr(smp, decoder)('tu-hdkd_teacher', encoder_depth=3, encoder_weights=None)
    with pytest.raises(ValueError, match='Expected more than 1 value per channel'):
        model(torch.randn(1, 3, 64, 64))
    model(torch.randn(2, 3, 64, 64))
