"""The published augmentation as the paper has it, timm's by its flags, and what is done to whole batches."""
import pickle
import random
import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from hdkd_timm.data.augment import (
    AugmentConfig,
    BatchAugmentation,
    PaperAugmentation,
    adjust_contrast,
    blur,
    create_eval_transform,
    create_train_transform,
    paper_transform,
    rotate_and_flip,
    sharpen,
)

CPU = torch.device('cpu')


def data_config(in_chans=3, img_size=32, **kwargs):
    return dict(
        input_size=(in_chans, img_size, img_size), mean=(0.5,) * in_chans, std=(0.2,) * in_chans,
        interpolation='bilinear', crop_pct=1., crop_mode='squash', **kwargs)


def noise(size=(40, 50), mode='RGB', seed=0):
    pixels = np.random.default_rng(seed).integers(256, size=(*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def test_paper_transform_step_by_step():
    steps = paper_transform((32, 48)).transforms
    assert [type(step) for step in steps[:-1]] == [
        transforms.Resize, transforms.RandomRotation, transforms.RandomHorizontalFlip, transforms.RandomVerticalFlip,
        transforms.ColorJitter, transforms.RandomAdjustSharpness, transforms.GaussianBlur]
    resize, rotation, hflip, vflip, jitter, sharpness, blur = steps[:-1]
    assert tuple(resize.size) == (32, 48)
    assert resize.interpolation == InterpolationMode.BILINEAR
    assert list(rotation.degrees) == [-180, 180]
    assert (rotation.interpolation, rotation.expand, rotation.fill) == (InterpolationMode.NEAREST, False, 0)
    assert (hflip.p, vflip.p) == (0.5, 0.5)
    assert (tuple(jitter.brightness), tuple(jitter.contrast)) == ((0.7, 1.3), (0.7, 1.3))
    assert (jitter.saturation, jitter.hue) == (None, None)
    assert (sharpness.sharpness_factor, sharpness.p) == (2, 0.5)
    assert (tuple(blur.kernel_size), tuple(blur.sigma)) == ((3, 3), (0.1, 2))


def test_paper_transform_of_an_image():
    torch.manual_seed(0)
    transform = create_train_transform(AugmentConfig(aug='paper'), data_config())
    corners = []
    for _ in range(50):
        output = transform(Image.new('RGB', (60, 40), (200, 200, 200)))
        assert output.dtype == torch.uint8
        assert output.shape == (3, 32, 32)
        corners.append(output[:, [0, 0, -1, -1], [0, -1, 0, -1]].float().mean())
        assert output[:, 16, 16].min() >= 0.7 * 0.7 * 200 - 40  # never black in the middle
    dark = sum(corner < 60 for corner in corners)
    assert dark > 35  # rotated by anything but about 0, 90, 180 degrees
    brightness = [transform(Image.new('RGB', (60, 40), (128,) * 3))[0, 16, 16].item() for _ in range(50)]
    assert min(brightness) < 110
    assert max(brightness) > 145


def test_paper_transform_always_blurs():
    transform = create_train_transform(AugmentConfig(aug='paper'), data_config())
    without = transforms.Compose([*transform.transforms[:-2], transform.transforms[-1]])
    softer = 0
    for seed in range(40):
        torch.manual_seed(seed)
        sharp = without(noise()).float()
        torch.manual_seed(seed)
        blurred = transform(noise()).float()
        softer += (blurred.diff(dim=2).abs().mean() < 0.99 * sharp.diff(dim=2).abs().mean()).item()
    assert softer > 32  # a sigma near 0.1 does nothing


def test_no_augmentation_is_the_one_of_the_test():
    config = data_config()
    none, plain = create_train_transform(AugmentConfig(aug='none'), config), create_eval_transform(config)
    image = noise()
    expected = torch.from_numpy(np.asarray(image.resize((32, 32), Image.BILINEAR)).copy()).permute(2, 0, 1)
    for _ in range(3):
        assert torch.equal(none(image), plain(image))
        assert torch.equal(plain(image), expected)  # squashed, nothing cut off
    cut = create_eval_transform({**config, 'crop_pct': 0.8, 'crop_mode': 'center'})(image)
    assert cut.shape == (3, 32, 32)
    assert not torch.equal(cut, expected)


def test_timm_augmentation_by_its_flags():
    config = AugmentConfig(scale=(1., 1.), ratio=(1., 1.), hflip=0., vflip=0., color_jitter=0.)
    image = noise((32, 32))
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    def transform(**changes):
        torch.manual_seed(0)
        return create_train_transform(AugmentConfig(**{**vars(config), **changes}), data_config())(image)
    assert torch.equal(transform(), pixels)
    assert torch.equal(transform(hflip=1.), pixels.flip(2))
    assert torch.equal(transform(vflip=1.), pixels.flip(1))
    assert not torch.equal(transform(scale=(0.3, 0.3)), pixels)
    assert not torch.equal(transform(color_jitter=0.5), pixels)
    assert (transform(color_jitter=0.5).float() - pixels.float()).abs().mean() > 5
    automatic = [str(step) for step in create_train_transform(
        AugmentConfig(aa='rand-m6-mstd0.5'), data_config()).transforms]
    assert any('RandAugment' in step for step in automatic)
    assert not any('ColorJitter' in step for step in automatic)


# timm itself takes the last five, and trains without what they seem to ask for
@pytest.mark.parametrize('aa', [
    'autoaugment', 'rand-z3', 'rand-m9.5', 'rand-foo', 'rand-m9-mstdx', 'augmix-x', 'v0-foo', 'rand-m9-tfoo'])
def test_unknown_automatic_augmentation(aa):
    with pytest.raises(ValueError, match=re.escape(f"--aa '{aa}' is none of timm's automatic augmentations: expected")):
        create_train_transform(AugmentConfig(aa=aa), data_config())


@pytest.mark.parametrize('in_chans', [3, 1])
@pytest.mark.parametrize('aa', [
    'v0', 'v0r', 'original-mstd0.5', 'originalr', '3a', 'rand', 'rand-m9-n3-mstd0.5-inc1', 'rand-m10-p1-tweights',
    'rand-m20-mmax30-mstd101-t3a', 'augmix-m5-w4-d2-b1', 'augmix-a0.5-mstd1'])
def test_automatic_augmentation_of_every_kind(aa, in_chans):
    if aa.startswith('augmix-a') and in_chans == 1 and timm.__version__ == '1.0.29':  # fails there
        with pytest.raises(ValueError, match=f"--aa '{aa}' of timm {timm.__version__} fails on 1 channels"):
            create_train_transform(AugmentConfig(aa=aa), data_config(in_chans))
        return
    transform = create_train_transform(AugmentConfig(aa=aa), data_config(in_chans))
    image = noise(mode='RGB' if in_chans == 3 else 'L')
    random.seed(0)
    assert len({transform(image).numpy().tobytes() for _ in range(20)}) > 10


def test_automatic_augmentation_that_fails_on_grey_images(monkeypatch):
    def fail(self, image):
        assert image.mode == 'RGB', 'colour only'
        return image

    monkeypatch.setattr('timm.data.auto_augment.AutoAugment.__call__', fail)
    create_train_transform(AugmentConfig(aa='v0'), data_config())
    with pytest.raises(ValueError, match=r"--aa 'v0' of timm .* fails on 1 channels \(colour only"):
        create_train_transform(AugmentConfig(aa='v0'), data_config(in_chans=1))


def test_strongest_posterisation_leaves_a_bit():
    transform = create_train_transform(AugmentConfig(aa='rand-m10-inc1'), data_config())
    ops = next(step.ops for step in transform.transforms if hasattr(step, 'ops'))
    op, = (op for op in ops if op.name == 'PosterizeIncreasing')
    op.prob = 1.
    assert set(np.unique(op(noise()))) == {0, 128}
    pickle.loads(pickle.dumps(transform))  # loader processes that are spawned get it so


@pytest.mark.parametrize('settings', [
    dict(aug='paper'), dict(aug='timm'), dict(aug='timm', aa='rand-m6-mstd0.5'), dict(aug='none')])
def test_grey_images(settings):
    transform = create_train_transform(AugmentConfig(**settings), data_config(in_chans=1))
    outputs = [transform(noise(mode='L')) for _ in range(20)]
    assert all(output.shape == (1, 32, 32) and output.dtype == torch.uint8 for output in outputs)
    assert (len({output.numpy().tobytes() for output in outputs}) == 1) == (settings['aug'] == 'none')


def test_batches_are_left_alone_by_default():
    images, targets = torch.rand(4, 3, 16, 16), torch.arange(4)
    for aug in ('timm', 'paper', 'none'):
        output, labels = BatchAugmentation(AugmentConfig(aug=aug), 4, CPU)(images.clone(), targets, 0)
        assert torch.equal(output, images)
        assert torch.equal(labels, targets)
        # what is done to whole batches goes with any augmentation of single images
        for on, changes_labels in ((dict(reprob=1.), False), (dict(mixup=1.), True), (dict(cutmix=1.), True)):
            output, labels = BatchAugmentation(AugmentConfig(aug=aug, **on), 4, CPU)(images.clone(), targets, 0)
            assert not torch.equal(output, images)
            assert labels.shape == ((4, 4) if changes_labels else (4,))


@pytest.mark.parametrize(('mode', 'values'), [('const', 1), ('rand', 3), ('pixel', 3 * 5)])
def test_erasing(mode, values):
    erase = BatchAugmentation(AugmentConfig(reprob=1., remode=mode), 4, CPU)
    images = torch.full((8, 3, 32, 32), 9.)
    output, labels = erase(images.clone(), torch.arange(8) % 4, 0)
    for image in output:
        erased = image != 9
        assert 0.01 < erased.float().mean() < 0.4
        rows, columns = erased[0].any(dim=1), erased[0].any(dim=0)
        assert torch.equal(erased[0], rows[:, None] & columns[None])  # one rectangle
        found = len(image[erased].unique())
        assert found == values if mode != 'pixel' else found >= values
    assert torch.equal(labels, torch.arange(8) % 4)
    often = BatchAugmentation(AugmentConfig(reprob=1., recount=3, remode='const'), 4, CPU)
    erased = often(images.clone(), labels, 0)[0][:, 0] != 9
    assert any(  # more than one rectangle
        not torch.equal(area, area.any(dim=1)[:, None] & area.any(dim=0)[None]) for area in erased)
    rarely = BatchAugmentation(AugmentConfig(reprob=0.25), 4, CPU)
    hit = sum((rarely(images.clone(), labels, 0)[0] != 9).flatten(1).any(dim=1).sum().item() for _ in range(50))
    assert 60 < hit < 140  # of 400


@pytest.mark.parametrize('smoothing', [0., 0.1])
@pytest.mark.parametrize('kind', ['mixup', 'cutmix'])
def test_mixup_and_cutmix(kind, smoothing):
    np.random.seed(0)
    mix = BatchAugmentation(AugmentConfig(**{kind: 1.}, smoothing=smoothing), 4, CPU)
    targets = torch.tensor([0, 1, 2, 3])
    images = targets.float().view(4, 1, 1, 1).expand(4, 3, 16, 16).contiguous()  # pixels tell the class
    low, high = smoothing / 4, 1 - smoothing + smoothing / 4
    for _ in range(10):
        output, probs = mix(images.clone(), targets, 0)
        assert probs.shape == (4, 4)
        assert torch.allclose(probs.sum(dim=1), torch.ones(4))
        for i in range(4):
            own, other = probs[i, i], probs[i, 3 - i]  # timm mixes with the batch in reverse
            share = (own - low) / (high - low)
            assert torch.allclose(own + other, torch.tensor(high + low))
            assert torch.allclose(probs[i, [k for k in range(4) if k not in (i, 3 - i)]], torch.tensor(low))
            # the images are mixed as their labels are
            assert output[i].mean().item() == pytest.approx((share * i + (1 - share) * (3 - i)).item(), abs=1e-4)
            if kind == 'cutmix':
                assert set(output[i].unique().tolist()) <= {i, 3 - i}
            else:
                assert output[i].std() < 1e-5


def test_probability_of_mixing():
    np.random.seed(0)
    images, targets = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    def mixed(**kwargs):
        mix = BatchAugmentation(AugmentConfig(mixup=1., cutmix=1., **kwargs), 2, CPU)
        return [mix(images.clone(), targets, 0)[0] for _ in range(60)]
    assert sum(not torch.equal(output, images) for output in mixed(mixup_prob=0.2)) < 25
    # a mixed image is a mean of both everywhere, a pasted one is one of them at each pixel
    def pasted(output):
        return bool(((output == images) | (output == images.flip(0))).all())
    assert all(pasted(output) for output in mixed(mixup_switch_prob=1.))
    assert sum(pasted(output) for output in mixed(mixup_switch_prob=0.)) < 5


def test_mixing_ends_after_an_epoch():
    np.random.seed(0)
    images, targets = torch.rand(4, 3, 8, 8), torch.arange(4)
    mix = BatchAugmentation(AugmentConfig(mixup=1., mixup_off_epoch=2, smoothing=0.1), 4, CPU)
    unmixed = torch.full((4, 4), 0.025) + 0.9 * torch.eye(4)
    for epoch in (0, 1, 2, 3, 0):
        output, probs = mix(images.clone(), targets, epoch)
        assert torch.equal(output, images) == (epoch >= 2)
        assert torch.allclose(probs, unmixed) == (epoch >= 2)  # smoothed all the same
    never = BatchAugmentation(AugmentConfig(mixup=1.), 4, CPU)
    assert not torch.equal(never(images.clone(), targets, 99)[0], images)


def test_smoothing_happens_once():
    assert AugmentConfig(smoothing=0.1).loss_smoothing == 0.1
    assert AugmentConfig(smoothing=0.1, mixup=0.2).loss_smoothing == 0
    assert AugmentConfig(smoothing=0.1, cutmix=1.).loss_smoothing == 0
    assert AugmentConfig(smoothing=0.1, mixup=0.2, aug='paper').loss_smoothing == 0


def per_image(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype).view(-1, 1, 1, 1)


@pytest.mark.parametrize('size', [(32, 32), (24, 40)])
@pytest.mark.parametrize('chans', [1, 3])
def test_steps_of_a_batch_are_torchvision_s_of_each_image(chans, size):
    x = torch.rand(4, chans, *size)
    angles, hflips, vflips = (-130., 0., 17., 90.), (True, False, True, False), (True, True, False, False)
    ours = rotate_and_flip(x, per_image(*angles), per_image(*hflips, dtype=torch.bool),
                           per_image(*vflips, dtype=torch.bool))
    for image, angle, hflip, vflip, result in zip(x, angles, hflips, vflips, ours):
        expected = TF.rotate(image, angle)  # nearest, black outside
        expected = TF.horizontal_flip(expected) if hflip else expected
        expected = TF.vertical_flip(expected) if vflip else expected
        # a position on the border between two pixels may be rounded to either
        assert (result != expected).float().mean() < 0.01
    factors, sigmas = (0.7, 1., 1.2, 1.3), (0.1, 0.5, 1., 2.)
    for image, factor, sigma, contrast, sharp, blurred in zip(
            x, factors, sigmas, adjust_contrast(x, per_image(*factors)), sharpen(x), blur(x, per_image(*sigmas))):
        torch.testing.assert_close(contrast, TF.adjust_contrast(image, factor))
        torch.testing.assert_close(sharp, TF.adjust_sharpness(image, 2))
        torch.testing.assert_close(blurred, TF.gaussian_blur(image, [3, 3], [sigma, sigma]))


@pytest.mark.parametrize('chans', [1, 3])
def test_paper_augmentation_of_a_batch_has_the_distribution_of_single_images(chans):
    torch.manual_seed(0)
    image = Image.new('RGB', (32, 32), (60, 120, 180))
    image.paste((250, 90, 10), (4, 2, 12, 28))
    image = image.convert('L' if chans == 1 else 'RGB')
    transform = paper_transform((32, 32))
    single = torch.stack([transform(image) for _ in range(4000)]).float() / 255
    start = TF.pil_to_tensor(image).float() / 255
    batch = PaperAugmentation()(start.expand(4000, -1, -1, -1).clone())
    assert batch.shape == single.shape
    assert batch.min() >= 0
    assert batch.max() <= 1
    # over images, of each pixel: 4,000 images tell them to 0.005 (a standard error)
    assert (batch.mean(0) - single.mean(0)).abs().max() < 0.025
    assert (batch.std(0) - single.std(0)).abs().max() < 0.025
    # over each image: what brightness, contrast and black corners do
    for statistic in (lambda x: x.mean((1, 2, 3)), lambda x: x.std((1, 2, 3)), lambda x: x.amax((1, 2, 3)),
                      lambda x: (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3))):
        shares = torch.tensor([0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98])
        ours, theirs = (statistic(x).quantile(shares) for x in (batch, single))
        spread = statistic(single).std()
        assert ((ours - theirs) / spread).abs().max() < 0.25
    # no two images share their random numbers
    assert len({tuple(x.flatten().tolist()) for x in batch[:50]}) == 50


def test_paper_augmentation_on_the_device():
    config = AugmentConfig(aug='paper', aug_device=True)
    steps = create_train_transform(config, data_config()).transforms
    assert [type(step).__name__ for step in steps] == ['Resize', 'MaybePILToTensor']
    mean, std = torch.tensor([100., 120., 140.]).view(1, 3, 1, 1), torch.tensor([50., 60., 70.]).view(1, 3, 1, 1)
    pixels = torch.rand(4, 3, 32, 32)
    augment = BatchAugmentation(config, 4, CPU, mean, std)
    torch.manual_seed(3)
    images, _ = augment((pixels * 255 - mean) / std, torch.arange(4), 0)
    torch.manual_seed(3)
    torch.testing.assert_close((images * std + mean) / 255, PaperAugmentation()(pixels), rtol=0, atol=1e-5)
    assert not torch.equal(images, augment((pixels * 255 - mean) / std, torch.arange(4), 0)[0])


def test_load_size():
    steps = create_train_transform(AugmentConfig(load_size=40), data_config()).transforms
    assert steps[0].size == (40, 40)
    assert [type(step) for step in steps[1:]] == [
        type(step) for step in create_train_transform(AugmentConfig(), data_config()).transforms]
