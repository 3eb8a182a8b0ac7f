"""The published augmentation as the paper has it, on single images and on batches."""

import pytest
import torch
from data_helpers import data_config, noise
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from hdkd_timm.data.augment import AugmentConfig, BatchAugmentation, create_train_transform
from hdkd_timm.data.paper_augment import (
    PaperAugmentation,
    adjust_contrast,
    blur,
    paper_transform,
    rotate_and_flip,
    sharpen,
)


def per_image(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype).view(-1, 1, 1, 1)


def test_paper_transform_step_by_step():
    steps = paper_transform((32, 48)).transforms
    assert [type(step) for step in steps[:-1]] == [
        transforms.Resize,
        transforms.RandomRotation,
        transforms.RandomHorizontalFlip,
        transforms.RandomVerticalFlip,
        transforms.ColorJitter,
        transforms.RandomAdjustSharpness,
        transforms.GaussianBlur,
    ]
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


@pytest.mark.parametrize('size', [(32, 32), (24, 40)])
@pytest.mark.parametrize('chans', [1, 3])
def test_steps_of_a_batch_are_torchvision_s_of_each_image(chans, size):
    x = torch.rand(4, chans, *size)
    angles, hflips, vflips = (-130.0, 0.0, 17.0, 90.0), (True, False, True, False), (True, True, False, False)
    ours = rotate_and_flip(
        x, per_image(*angles), per_image(*hflips, dtype=torch.bool), per_image(*vflips, dtype=torch.bool)
    )
    for image, angle, hflip, vflip, result in zip(x, angles, hflips, vflips, ours):
        expected = TF.rotate(image, angle)  # nearest, black outside
        expected = TF.horizontal_flip(expected) if hflip else expected
        expected = TF.vertical_flip(expected) if vflip else expected
        # a position on the border between two pixels may be rounded to either
        assert (result != expected).float().mean() < 0.01
    factors, sigmas = (0.7, 1.0, 1.2, 1.3), (0.1, 0.5, 1.0, 2.0)
    for image, factor, sigma, contrast, sharp, blurred in zip(
        x, factors, sigmas, adjust_contrast(x, per_image(*factors)), sharpen(x), blur(x, per_image(*sigmas))
    ):
        torch.testing.assert_close(contrast, TF.adjust_contrast(image, factor))
        torch.testing.assert_close(sharp, TF.adjust_sharpness(image, 2))
        torch.testing.assert_close(blurred, TF.gaussian_blur(image, [3, 3], [sigma, sigma]))


def test_paper_augmentation_of_a_batch_has_the_distribution_of_single_images():
    torch.manual_seed(0)
    image = Image.new('RGB', (16, 16), (60, 120, 180))
    image.paste((250, 90, 10), (2, 1, 6, 14))
    transform = paper_transform((16, 16))
    single = torch.stack([transform(image) for _ in range(2000)]).float() / 255
    start = TF.pil_to_tensor(image).float() / 255
    batch = PaperAugmentation()(start.expand(2000, -1, -1, -1).clone())
    assert batch.shape == single.shape
    assert batch.min() >= 0
    assert batch.max() <= 1
    # of each pixel over images, whose standard error is 0.007
    assert (batch.mean(0) - single.mean(0)).abs().max() < 0.035
    assert (batch.std(0) - single.std(0)).abs().max() < 0.035
    # over each image: what brightness, contrast and black corners do
    for statistic in (
        lambda x: x.mean((1, 2, 3)),
        lambda x: x.std((1, 2, 3)),
        lambda x: x.amax((1, 2, 3)),
        lambda x: (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3)),
    ):
        shares = torch.tensor([0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98])
        ours, theirs = (statistic(x).quantile(shares) for x in (batch, single))
        spread = statistic(single).std()
        assert ((ours - theirs) / spread).abs().max() < 0.25
    # no two images share their random numbers
    assert len({tuple(x.flatten().tolist()) for x in batch[:50]}) == 50


def test_paper_augmentation_of_grey_images_is_that_of_colour_images_without_colour():
    grey = torch.rand(6, 1, 16, 16)
    torch.manual_seed(3)
    ours = PaperAugmentation()(grey)
    torch.manual_seed(3)
    theirs = PaperAugmentation()(grey.expand(-1, 3, -1, -1).contiguous())
    assert ours.shape == grey.shape
    assert (theirs - ours).abs().max() < 1e-3  # the weights of the channels sum to 0.9999
    assert (ours - grey).abs().max() > 0.1


def test_paper_augmentation_on_the_device():
    config = AugmentConfig(aug='paper', aug_device=True)
    steps = create_train_transform(config, data_config()).transforms
    assert [type(step).__name__ for step in steps] == ['Resize', 'MaybePILToTensor']
    mean, std = torch.tensor([100.0, 120.0, 140.0]).view(1, 3, 1, 1), torch.tensor([50.0, 60.0, 70.0]).view(1, 3, 1, 1)
    pixels = torch.rand(4, 3, 32, 32)
    augment = BatchAugmentation(config, 4, torch.device('cpu'), mean, std)
    torch.manual_seed(3)
    images, _ = augment((pixels * 255 - mean) / std, torch.arange(4), 0)
    torch.manual_seed(3)
    torch.testing.assert_close((images * std + mean) / 255, PaperAugmentation()(pixels), rtol=0, atol=1e-5)
    assert not torch.equal(images, augment((pixels * 255 - mean) / std, torch.arange(4), 0)[0])
