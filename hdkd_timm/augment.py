"""Augmentation: the published one and timm's, for single images, and what timm does to whole batches."""
import dataclasses
import functools
import re
from typing import Any, Callable, Dict, Optional, Tuple

import timm
import torch
from PIL import Image
from timm.data import Mixup, create_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import MaybePILToTensor, str_to_interp_mode
from torchvision import transforms

from .config import setting
from .images import IMG_MODES

AUGMENTATIONS = ('timm', 'paper', 'none')

_NUMBER = r'\d+\.?\d*'
_AUTO_AUGMENT = re.compile('|'.join((  # what timm documents; it passes over other words in silence
    rf'rand(-(m\d+|n[1-9]\d*|p{_NUMBER}|mstd{_NUMBER}|mmax\d+|inc[01]|t(weights|3aw?)))*',
    rf'augmix(-(m\d+|w[1-9]\d*|d[1-9]\d*|a{_NUMBER}|b[01]|mstd{_NUMBER}))*',
    rf'(originalr?|v0r?|3a)(-mstd{_NUMBER})?')))


@dataclasses.dataclass
class AugmentConfig:
    """Settings of the augmentation, named as in timm's train.py."""
    aug: str = setting('timm', "augmentation: timm's by the flags below, the published one, or none",
                       choices=AUGMENTATIONS)
    scale: Tuple[float, float] = setting((0.8, 1.), 'random crop, share of the area', metavar=('MIN', 'MAX'))
    ratio: Tuple[float, float] = setting((0.75, 1.3333), 'random crop, aspect ratio', metavar=('MIN', 'MAX'))
    hflip: float = setting(0.5, 'probability of a horizontal flip', at_least=0, at_most=1)
    vflip: float = setting(0.5, 'probability of a vertical flip', at_least=0, at_most=1)
    color_jitter: float = setting(0.3, 'strength of random brightness, contrast and saturation', at_least=0)
    aa: Optional[str] = setting(None, "timm's automatic augmentation (rand-m6-mstd0.5), instead of the jitter")
    reprob: float = setting(0., 'probability of random erasing', at_least=0, at_most=1)
    remode: str = setting('pixel', 'what is put there', choices=('const', 'rand', 'pixel'))
    recount: int = setting(1, 'areas erased in an image', at_least=1)
    mixup: float = setting(0., 'mixup alpha, 0 for none', at_least=0)
    cutmix: float = setting(0., 'cutmix alpha, 0 for none', at_least=0)
    mixup_prob: float = setting(1., 'probability of mixup or cutmix of a batch', at_least=0, at_most=1)
    mixup_switch_prob: float = setting(0.5, 'probability of cutmix where both are on', at_least=0, at_most=1)
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


def create_train_transform(config: AugmentConfig, data_config: Dict[str, Any]) -> Callable:
    """Transform of training images, Pillow image -> uint8 tensor (C, H, W).

    Args:
        config: Which augmentation.
        data_config: input_size (C, H, W), mean and interpolation, as timm resolves them.

    Raises:
        ValueError: if the automatic augmentation is none of timm's, or not for so many channels.
    """
    img_size, interpolation = tuple(data_config['input_size'][-2:]), data_config['interpolation']
    if config.aug == 'paper':
        return paper_transform(img_size, interpolation)
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
    """What is done to a whole batch on its device after any `--aug`: random erasing, then mixup or cutmix, timm's.

    (B, C, H, W), class indices (B,) -> images, class indices, or class probabilities (B, K) with mixup or cutmix.

    Args:
        config: Which augmentation.
        num_classes: K.
        device: Where the batches are.
    """

    def __init__(self, config: AugmentConfig, num_classes: int, device: torch.device):
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
        if self.erasing is not None:
            input = self.erasing(input)
        if self.mixup is not None:
            if self.mixup_off_epoch:
                self.mixup.mixup_enabled = epoch < self.mixup_off_epoch
            input, target = self.mixup(input, target)
        return input, target
