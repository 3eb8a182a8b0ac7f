"""Augmentation: transforms of single images (timm's or the published one), and of whole batches on the device."""

import dataclasses
import functools
import re
from typing import Any, Callable, Dict, Optional, Tuple

import timm
import torch
from PIL import Image
from timm.data import Mixup, create_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import str_to_interp_mode
from torchvision import transforms

from ..utils.config import setting
from .image_io import IMG_MODES
from .paper_augment import PaperAugmentation, paper_transform

AUGMENTATIONS = ('timm', 'paper', 'none')

_NUMBER = r'\d+\.?\d*'
_AUTO_AUGMENT = re.compile(
    '|'.join(
        (  # as timm documents; it silently ignores anything else
            rf'rand(-(m\d+|n[1-9]\d*|p{_NUMBER}|mstd{_NUMBER}|mmax\d+|inc[01]|t(weights|3aw?)))*',
            rf'augmix(-(m\d+|w[1-9]\d*|d[1-9]\d*|a{_NUMBER}|b[01]|mstd{_NUMBER}))*',
            rf'(originalr?|v0r?|3a)(-mstd{_NUMBER})?',
        )
    )
)


@dataclasses.dataclass
class AugmentConfig:
    """Settings of the augmentation; flags are named as in timm's train.py."""

    aug: str = setting(
        'timm',
        "augmentation: timm's, which the other flags adjust, the published one, or none",
        choices=AUGMENTATIONS,
        group='augmentation',
        common=True,
    )
    aug_device: bool = setting(False, 'apply the published augmentation to whole batches on the device, after resizing')
    load_size: Optional[int] = setting(
        None, 'height and width to which training images are resized before everything else', at_least=1
    )
    crop_pct: Optional[float] = setting(
        None,
        'side of the centre of validation and test images that the network sees, as a fraction (default: as timm'
        " prepares this network's images; all of it for HDKD's)",
        above=0,
        at_most=1,
    )
    crop_mode: Optional[str] = setting(
        None,
        'before that, whole images are squashed to a square, their centre is cut out, or a border is added (default:'
        " likewise; squash for HDKD's)",
        choices=('center', 'squash', 'border'),
    )
    scale: Tuple[float, float] = setting((0.8, 1.0), 'random crop: fraction of the area', metavar=('MIN', 'MAX'))
    ratio: Tuple[float, float] = setting((0.75, 1.3333), 'random crop: aspect ratio', metavar=('MIN', 'MAX'))
    hflip: float = setting(0.5, 'probability of a horizontal flip', at_least=0, at_most=1)
    vflip: float = setting(0.5, 'probability of a vertical flip', at_least=0, at_most=1)
    color_jitter: float = setting(0.3, 'strength of random brightness, contrast and saturation', at_least=0)
    aa: Optional[str] = setting(
        None, "timm's auto augmentation (rand-m6-mstd0.5), replaces the colour jitter", metavar='POLICY'
    )
    reprob: float = setting(0.0, 'probability of random erasing', at_least=0, at_most=1)
    remode: str = setting('pixel', 'fill of random erasing', choices=('const', 'rand', 'pixel'))
    recount: int = setting(1, 'number of erased areas per image', at_least=1)
    mixup: float = setting(0.0, 'mixup alpha, 0 for no mixup', at_least=0)
    cutmix: float = setting(0.0, 'cutmix alpha, 0 for no cutmix', at_least=0)
    mixup_prob: float = setting(1.0, 'probability of applying mixup or cutmix to a batch', at_least=0, at_most=1)
    mixup_switch_prob: float = setting(
        0.5, 'probability of cutmix instead of mixup if both are enabled', at_least=0, at_most=1
    )
    mixup_off_epoch: int = setting(0, 'turn mixup and cutmix off after this epoch, 0 for never', at_least=0)
    smoothing: float = setting(0.0, 'label smoothing', at_least=0, below=1)

    @property
    def loss_smoothing(self) -> float:
        """Label smoothing applied by the loss: 0 with mixup or cutmix, where timm's Mixup smooths the labels."""
        return 0.0 if self.mixup or self.cutmix else self.smoothing


def create_train_transform(config: AugmentConfig, data_config: Dict[str, Any]) -> transforms.Compose:
    """Create the transform of training images, Pillow image -> uint8 tensor (C, H, W).

    Args:
        config: Settings of the augmentation.
        data_config: input_size (C, H, W), mean, std and interpolation, as timm resolves them.

    Raises:
        ValueError: if timm has no such AutoAugment policy, or it does not support this number of channels.
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
        if config.aug_device:  # BatchAugmentation applies the steps in between
            return transforms.Compose([transform.transforms[0], transform.transforms[-1]])
        return transform
    if config.aug == 'none':
        return create_eval_transform(data_config)
    if config.aa and not _AUTO_AUGMENT.fullmatch(config.aa):
        raise ValueError(
            f"--aa '{config.aa}' is not an AutoAugment policy of timm: use for example rand-m6-n2-mstd0.5,"
            ' augmix-m3-w3, original, v0 or 3a.'
        )
    transform = create_transform(
        img_size,
        is_training=True,
        use_prefetcher=True,
        scale=config.scale,
        ratio=config.ratio,
        hflip=config.hflip,
        vflip=config.vflip,
        color_jitter=config.color_jitter,
        auto_augment=config.aa,
        interpolation=interpolation,
        mean=data_config['mean'],
        std=data_config['std'],
    )
    _keep_one_bit(transform)
    channels = data_config['input_size'][0]
    try:
        transform(Image.new(IMG_MODES[channels], img_size))
    except Exception as e:  # such as AugMix of grey images in timm 1.0.29
        raise ValueError(
            f"--aa '{config.aa}' of timm {timm.__version__} does not support {channels} channels ({e})."
        ) from e
    return transform


def _at_least_one(level_to_bits: Callable, level: float, hparams: Dict[str, Any]) -> Tuple[int]:
    return (max(1, level_to_bits(level, hparams)[0]),)


def _keep_one_bit(transform: transforms.Compose) -> None:
    """Limit timm's posterisation, whose strongest level keeps 0 bits: Pillow >= 13 raises an error for that."""
    for step in transform.transforms:
        policy = [getattr(step, 'ops', ()), *getattr(step, 'policy', ())]
        for op in (op for ops in policy for op in ops):
            if op.name.startswith('Posterize'):
                op.level_fn = functools.partial(_at_least_one, op.level_fn)


def create_eval_transform(data_config: Dict[str, Any]) -> Callable:
    """timm's transform for evaluation, Pillow image -> uint8 tensor (C, H, W)."""
    return create_transform(
        tuple(data_config['input_size'][-2:]),
        use_prefetcher=True,
        interpolation=data_config['interpolation'],
        mean=data_config['mean'],
        std=data_config['std'],
        crop_pct=data_config['crop_pct'],
        crop_mode=data_config['crop_mode'],
    )


class BatchAugmentation:
    """Augmentation of whole batches on their device: the published one with `--aug-device`, then timm's random erasing,
    and mixup or cutmix.

    Images (B, C, H, W) and class indices (B,) -> images, and class indices, or class probabilities (B, K) with mixup or
    cutmix.

    Args:
        config: Settings of the augmentation.
        num_classes: Number of classes K.
        device: Device of the batches.
        mean: Mean by which the images are normalised, for pixels of 0 to 255, (1, C, 1, 1); by default they are not
            normalised.
        std: Standard deviation, likewise.
    """

    def __init__(
        self,
        config: AugmentConfig,
        num_classes: int,
        device: torch.device,
        mean: torch.Tensor = torch.tensor(0.0),
        std: torch.Tensor = torch.tensor(255.0),
    ):
        self.paper = PaperAugmentation() if config.aug_device else None
        self.mean, self.std = mean / 255, std / 255
        self.erasing = (
            RandomErasing(
                config.reprob,
                mode=config.remode,
                max_count=config.recount,
                device=device,
            )
            if config.reprob
            else None
        )
        self.mixup = (
            Mixup(
                mixup_alpha=config.mixup,
                cutmix_alpha=config.cutmix,
                prob=config.mixup_prob,
                switch_prob=config.mixup_switch_prob,
                label_smoothing=config.smoothing,
                num_classes=num_classes,
            )
            if config.mixup or config.cutmix
            else None
        )
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
