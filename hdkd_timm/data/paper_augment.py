"""The published augmentation: on single images with torchvision, or on whole batches on their device.

Paper: HDKD, https://arxiv.org/abs/2407.07516
"""

from typing import Tuple

import torch
import torch.nn.functional as F
from timm.data.transforms import MaybePILToTensor, str_to_interp_mode
from torchvision import transforms
from torchvision.transforms.functional import rgb_to_grayscale


def paper_transform(img_size: Tuple[int, int], interpolation: str = 'bilinear') -> transforms.Compose:
    """The published augmentation, Pillow image -> uint8 tensor (C, H, W); the loader normalises on the device.

    Steps and order follow the published code: the aspect ratio is not kept, and rotation leaves black corners.

    Args:
        img_size: (H, W).
        interpolation: Interpolation of the resizing.
    """
    return transforms.Compose(
        [
            transforms.Resize(img_size, str_to_interp_mode(interpolation)),
            transforms.RandomRotation(180),
            transforms.RandomHorizontalFlip(0.5),
            transforms.RandomVerticalFlip(0.5),
            transforms.ColorJitter(brightness=0.3, contrast=0.3),
            transforms.RandomAdjustSharpness(2, p=0.5),
            transforms.GaussianBlur(3, sigma=(0.1, 2.0)),
            MaybePILToTensor(),
        ]
    )


class PaperAugmentation:
    """The steps of `paper_transform` after the resizing, on a whole batch on its device.

    Each image has random numbers of its own. They are drawn on the CPU, so they are the same for every device. The
    result differs from `paper_transform` only in rounding: that one rounds to 8 bits after each step.
    """

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Augment images (B, C, H, W) with values from 0 to 1 on any device; same shape, range and device."""

        def draw(low: float = 0.0, high: float = 1.0) -> torch.Tensor:
            return torch.empty(len(x)).uniform_(low, high).to(x.device, x.dtype).view(-1, 1, 1, 1)

        x = rotate_and_flip(x, draw(-180, 180), draw() < 0.5, draw() < 0.5)
        brightness, contrast, in_this_order = draw(0.7, 1.3), draw(0.7, 1.3), draw() < 0.5
        x = (x * brightness.where(in_this_order, 1.0)).clamp(0, 1)
        x = adjust_contrast(x, contrast)
        x = (x * brightness.where(~in_this_order, 1.0)).clamp(0, 1)
        x = sharpen(x).where(draw() < 0.5, x)
        return blur(x, draw(0.1, 2.0))


def rotate_and_flip(x: torch.Tensor, angle: torch.Tensor, hflip: torch.Tensor, vflip: torch.Tensor) -> torch.Tensor:
    """Rotate about the centre (nearest-neighbour interpolation, black outside), then flip.

    Args:
        x: Images (B, C, H, W).
        angle: Degrees counter-clockwise, (B, 1, 1, 1).
        hflip: Whether to flip each image from left to right, bool, (B, 1, 1, 1).
        vflip: Whether to flip each image from top to bottom, bool, (B, 1, 1, 1).
    """
    height, width = x.shape[-2:]
    angle = angle.flatten().deg2rad()
    cos, sin = angle.cos(), angle.sin()
    x_sign, y_sign = (1 - 2 * flip.flatten().to(x.dtype) for flip in (hflip, vflip))
    zero = torch.zeros_like(cos)
    theta = torch.stack(
        [  # from output to input coordinates, in units of half the image
            x_sign * cos,
            -y_sign * sin * (height / width),
            zero,
            x_sign * sin * (width / height),
            y_sign * cos,
            zero,
        ],
        dim=1,
    ).view(-1, 2, 3)
    grid = F.affine_grid(theta, x.shape, align_corners=False)
    return F.grid_sample(x, grid, mode='nearest', padding_mode='zeros', align_corners=False)


def adjust_contrast(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Scale the contrast of images (B, C, H, W) from 0 to 1 about their mean grey value, by factors (B, 1, 1, 1)."""
    grey = rgb_to_grayscale(x) if x.shape[1] == 3 else x
    return torch.lerp(grey.mean((1, 2, 3), keepdim=True), x, factor).clamp(0, 1)


def sharpen(x: torch.Tensor) -> torch.Tensor:
    """torchvision's `adjust_sharpness` by a factor of 2, for images (B, C, H, W) from 0 to 1; keeps their border."""
    chs = x.shape[1]
    kernel = x.new_ones(3, 3)
    kernel[1, 1] = 5
    inner = x[..., 1:-1, 1:-1]
    smooth = F.conv2d(x, (kernel / 13).expand(chs, 1, 3, 3), groups=chs)
    return (x + F.pad(inner - smooth, (1, 1, 1, 1))).clamp(0, 1)


def blur(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Blur images (B, C, H, W) with 3 x 3 Gaussian kernels of these sigmas in pixels, (B, 1, 1, 1)."""
    side = (-0.5 / sigma**2).exp()
    side = side / (1 + 2 * side)
    x = F.pad(x, (1, 1, 1, 1), mode='reflect')
    x = (1 - 2 * side) * x[..., 1:-1, :] + side * (x[..., :-2, :] + x[..., 2:, :])
    return (1 - 2 * side) * x[..., 1:-1] + side * (x[..., :-2] + x[..., 2:])
