"""Augmentation: the published one and timm's, for single images, and what timm does to whole batches."""
import dataclasses
import functools
import re
from typing import Any, Callable, Dict, Optional, Tuple

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import Mixup, create_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import MaybePILToTensor, str_to_interp_mode
from torchvision import transforms
from torchvision.transforms.functional import rgb_to_grayscale

from ..utils.config import setting
from .image_io import IMG_MODES

AUGMENTATIONS = ('timm', 'paper', 'none')

_NUMBER = r'\d+\.?\d*'
_AUTO_AUGMENT = re.compile('|'.join((  # what timm documents; it passes over other words in silence
    rf'rand(-(m\d+|n[1-9]\d*|p{_NUMBER}|mstd{_NUMBER}|mmax\d+|inc[01]|t(weights|3aw?)))*',
    rf'augmix(-(m\d+|w[1-9]\d*|d[1-9]\d*|a{_NUMBER}|b[01]|mstd{_NUMBER}))*',
    rf'(originalr?|v0r?|3a)(-mstd{_NUMBER})?')))


@dataclasses.dataclass
class AugmentConfig:
    """Settings of the augmentation, named as in timm's train.py."""
    aug: str = setting(
        'timm', "augmentation: timm's, which the other flags adjust, the published one, or none", choices=AUGMENTATIONS,
        group='augmentation', common=True)
    aug_device: bool = setting(
        False, 'apply the published augmentation to whole batches on the device, after resizing')
    load_size: Optional[int] = setting(
        None, 'height and width to which training images are resized before everything else', at_least=1)
    scale: Tuple[float, float] = setting((0.8, 1.), 'random crop: fraction of the area', metavar=('MIN', 'MAX'))
    ratio: Tuple[float, float] = setting((0.75, 1.3333), 'random crop: aspect ratio', metavar=('MIN', 'MAX'))
    hflip: float = setting(0.5, 'probability of a horizontal flip', at_least=0, at_most=1)
    vflip: float = setting(0.5, 'probability of a vertical flip', at_least=0, at_most=1)
    color_jitter: float = setting(0.3, 'strength of random brightness, contrast and saturation', at_least=0)
    aa: Optional[str] = setting(
        None, "timm's auto augmentation (rand-m6-mstd0.5), replaces the colour jitter", metavar='POLICY')
    reprob: float = setting(0., 'probability of random erasing', at_least=0, at_most=1)
    remode: str = setting('pixel', 'fill of random erasing', choices=('const', 'rand', 'pixel'))
    recount: int = setting(1, 'number of erased areas per image', at_least=1)
    mixup: float = setting(0., 'mixup alpha, 0 for no mixup', at_least=0)
    cutmix: float = setting(0., 'cutmix alpha, 0 for no cutmix', at_least=0)
    mixup_prob: float = setting(1., 'probability of applying mixup or cutmix to a batch', at_least=0, at_most=1)
    mixup_switch_prob: float = setting(
        0.5, 'probability of cutmix instead of mixup if both are enabled', at_least=0, at_most=1)
    mixup_off_epoch: int = setting(0, 'turn mixup and cutmix off after this epoch, 0 for never', at_least=0)
    smoothing: float = setting(0., 'label smoothing', at_least=0, below=1)

    @property
    def loss_smoothing(self) -> float:
        """Label smoothing that is left to the loss: timm's mixup smooths the labels itself."""
        return 0. if self.mixup or self.cutmix else self.smoothing


def paper_transform(img_size: Tuple[int, int], interpolation: str = 'bilinear') -> transforms.Compose:
    """The published augmentation, Pillow image -> uint8 tensor (C, H, W); normalisation comes on the device.

    Source: arXiv 2407.07516 and its code; in this order, the aspect ratio is not kept, rotation leaves black corners.
    """
    return transforms.Compose([
        transforms.Resize(img_size, str_to_interp_mode(interpolation)),
        transforms.RandomRotation(180),
        transforms.RandomHorizontalFlip(0.5),
        transforms.RandomVerticalFlip(0.5),
        transforms.ColorJitter(brightness=0.3, contrast=0.3),
        transforms.RandomAdjustSharpness(2, p=0.5),
        transforms.GaussianBlur(3, sigma=(0.1, 2.)),
        MaybePILToTensor(),
    ])


class PaperAugmentation:
    """What follows the resizing in `paper_transform`, of a whole batch on its device.

    Each image has random numbers of its own, drawn on the CPU: they are the same on each device. It differs from the
    other in rounding alone, which is done there to 8 bits after each step.
    """

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) of 0 to 1, on any device -> the same."""
        def draw(low: float = 0., high: float = 1.) -> torch.Tensor:
            return torch.empty(len(x)).uniform_(low, high).to(x.device, x.dtype).view(-1, 1, 1, 1)

        x = rotate_and_flip(x, draw(-180, 180), draw() < 0.5, draw() < 0.5)
        brightness, contrast, in_this_order = draw(0.7, 1.3), draw(0.7, 1.3), draw() < 0.5
        x = (x * brightness.where(in_this_order, 1.)).clamp(0, 1)
        x = adjust_contrast(x, contrast)
        x = (x * brightness.where(~in_this_order, 1.)).clamp(0, 1)
        x = sharpen(x).where(draw() < 0.5, x)
        return blur(x, draw(0.1, 2.))


def rotate_and_flip(x: torch.Tensor, angle: torch.Tensor, hflip: torch.Tensor, vflip: torch.Tensor) -> torch.Tensor:
    """Rotate about the centre to the nearest pixel, black outside, then flip.

    Args:
        x: Images (B, C, H, W).
        angle: Degrees counter-clockwise, (B, 1, 1, 1).
        hflip: Which to flip from left to right, bool, (B, 1, 1, 1).
        vflip: Which to flip from top to bottom, bool, (B, 1, 1, 1).
    """
    height, width = x.shape[-2:]
    angle = angle.flatten().deg2rad()
    cos, sin = angle.cos(), angle.sin()
    x_sign, y_sign = (1 - 2 * flip.flatten().to(x.dtype) for flip in (hflip, vflip))
    zero = torch.zeros_like(cos)
    theta = torch.stack([  # where each pixel comes from, in units of half the image
        x_sign * cos, -y_sign * sin * (height / width), zero,
        x_sign * sin * (width / height), y_sign * cos, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, x.shape, align_corners=False)
    return F.grid_sample(x, grid, mode='nearest', padding_mode='zeros', align_corners=False)


def adjust_contrast(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Stretch images (B, C, H, W) of 0 to 1 about their mean grey, by factors (B, 1, 1, 1)."""
    grey = rgb_to_grayscale(x) if x.shape[1] == 3 else x
    return torch.lerp(grey.mean((1, 2, 3), keepdim=True), x, factor).clamp(0, 1)


def sharpen(x: torch.Tensor) -> torch.Tensor:
    """As torchvision's adjust_sharpness by 2, images (B, C, H, W) of 0 to 1; their border stays as it is."""
    chs = x.shape[1]
    kernel = x.new_ones(3, 3)
    kernel[1, 1] = 5
    inner = x[..., 1:-1, 1:-1]
    smooth = F.conv2d(x, (kernel / 13).expand(chs, 1, 3, 3), groups=chs)
    return (x + F.pad(inner - smooth, (1, 1, 1, 1))).clamp(0, 1)


def blur(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Gaussian blur of images (B, C, H, W) over 3 x 3 pixels, by sigmas (B, 1, 1, 1)."""
    side = (-0.5 / sigma ** 2).exp()
    side = side / (1 + 2 * side)
    x = F.pad(x, (1, 1, 1, 1), mode='reflect')
    x = (1 - 2 * side) * x[..., 1:-1, :] + side * (x[..., :-2, :] + x[..., 2:, :])
    return (1 - 2 * side) * x[..., 1:-1] + side * (x[..., :-2] + x[..., 2:])


def create_train_transform(config: AugmentConfig, data_config: Dict[str, Any]) -> transforms.Compose:
    """Transform of training images, Pillow image -> uint8 tensor (C, H, W).

    Args:
        config: Which augmentation.
        data_config: input_size (C, H, W), mean and interpolation, as timm resolves them.

    Raises:
        ValueError: if the automatic augmentation is none of timm's, or not for so many channels.
    """
    transform = _create_augmentation(config, data_config)
    if config.load_size is None:
        return transform
    resize = transforms.Resize((config.load_size,) * 2, str_to_interp_mode(data_config['interpolation']))
    return transforms.Compose([resize, *transform.transforms])


def _create_augmentation(config: AugmentConfig, data_config: Dict[str, Any]) -> transforms.Compose:
    img_size, interpolation = tuple(data_config['input_size'][-2:]), data_config['interpolation']
    if config.aug == 'paper':
        transform = paper_transform(img_size, interpolation)
        if config.aug_device:  # does what is between the resizing and the end
            return transforms.Compose([transform.transforms[0], transform.transforms[-1]])
        return transform
    if config.aug == 'none':
        return create_eval_transform(data_config)
    if config.aa and not _AUTO_AUGMENT.fullmatch(config.aa):
        raise ValueError(
            f"--aa '{config.aa}' is none of timm's automatic augmentations: expected such as rand-m6-n2-mstd0.5,"
            ' augmix-m3-w3, original, v0 or 3a.')
    transform = create_transform(
        img_size, is_training=True, use_prefetcher=True, scale=config.scale, ratio=config.ratio,
        hflip=config.hflip, vflip=config.vflip, color_jitter=config.color_jitter, auto_augment=config.aa,
        interpolation=interpolation, mean=data_config['mean'], std=data_config['std'])
    _leave_a_bit(transform)
    channels = data_config['input_size'][0]
    try:
        transform(Image.new(IMG_MODES[channels], img_size))
    except Exception as e:  # such as AugMix of grey images in timm 1.0.29
        raise ValueError(f"--aa '{config.aa}' of timm {timm.__version__} fails on {channels} channels ({e}).") from e
    return transform


def _at_least_one(level_to_bits: Callable, level: float, hparams: Dict[str, Any]) -> Tuple[int]:
    return max(1, level_to_bits(level, hparams)[0]),


def _leave_a_bit(transform: transforms.Compose) -> None:
    """timm's strongest posterisation leaves 0 bits, which Pillow >= 13 refuses in the middle of a training."""
    for step in transform.transforms:
        policy = [getattr(step, 'ops', ()), *getattr(step, 'policy', ())]
        for op in (op for ops in policy for op in ops):
            if op.name.startswith('Posterize'):
                op.level_fn = functools.partial(_at_least_one, op.level_fn)




def create_eval_transform(data_config: Dict[str, Any]) -> Callable:
    """timm's transform of images that are not trained on, Pillow image -> uint8 tensor (C, H, W)."""
    return create_transform(
        tuple(data_config['input_size'][-2:]), use_prefetcher=True, interpolation=data_config['interpolation'],
        mean=data_config['mean'], std=data_config['std'], crop_pct=data_config['crop_pct'],
        crop_mode=data_config['crop_mode'])


class BatchAugmentation:
    """What is done to a whole batch on its device: with `--aug-device` the published augmentation, then after any
    `--aug` timm's random erasing, and mixup or cutmix.

    (B, C, H, W), class indices (B,) -> images, class indices, or class probabilities (B, K) with mixup or cutmix.

    Args:
        config: Which augmentation.
        num_classes: K.
        device: Where the batches are.
        mean: What the images are normalised by, of pixels of 0 to 255, (1, C, 1, 1); not at all by default.
        std: The same.
    """

    def __init__(
            self,
            config: AugmentConfig,
            num_classes: int,
            device: torch.device,
            mean: torch.Tensor = torch.tensor(0.),
            std: torch.Tensor = torch.tensor(255.),
    ):
        self.paper = PaperAugmentation() if config.aug_device else None
        self.mean, self.std = mean / 255, std / 255
        self.erasing = RandomErasing(
            config.reprob, mode=config.remode, max_count=config.recount, device=device,
        ) if config.reprob else None
        self.mixup = Mixup(
            mixup_alpha=config.mixup, cutmix_alpha=config.cutmix, prob=config.mixup_prob,
            switch_prob=config.mixup_switch_prob, label_smoothing=config.smoothing, num_classes=num_classes,
        ) if config.mixup or config.cutmix else None
        self.mixup_off_epoch = config.mixup_off_epoch

    def __call__(
            self,
            input: torch.Tensor,
            target: torch.Tensor,
            epoch: int,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        if self.paper is not None:
            input = (self.paper(input * self.std + self.mean) - self.mean) / self.std
        if self.erasing is not None:
            input = self.erasing(input)
        if self.mixup is not None:
            if self.mixup_off_epoch:
                self.mixup.mixup_enabled = epoch < self.mixup_off_epoch
            input, target = self.mixup(input, target)
        return input, target
