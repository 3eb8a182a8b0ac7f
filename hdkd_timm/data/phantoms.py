"""Synthetic phantom images: a small classification task that needs no download.

Each image is a noisy elliptic head section of random shape, tilt and brightness with one of four findings: none, a
bright mass, a ring (bright rim, dark core) or several small spots. They are drawn by this module, identically for the
same seed, and do not represent real anatomy or disease.
"""

from pathlib import Path
from typing import Tuple, Union

import numpy as np
from PIL import Image

from ..utils.files import new_folder

KINDS = ('clear', 'mass', 'ring', 'spots')


def _ellipse(size: int, cy: float, cx: float, ry: float, rx: float, angle: float) -> np.ndarray:
    """Normalised radius of each pixel, below 1 inside the ellipse. Coordinates and radii in units of half the image."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    y, x = y - cy, x - cx
    cos, sin = np.cos(angle), np.sin(angle)
    return np.sqrt(((x * cos + y * sin) / rx) ** 2 + ((y * cos - x * sin) / ry) ** 2)


def draw_phantom(kind: str, rng: np.random.Generator, size: int = 64) -> np.ndarray:
    """Draw one phantom.

    Args:
        kind: One of `KINDS`.
        rng: Random generator.
        size: Height and width in pixels.

    Returns:
        Grey image (size, size), uint8.

    Raises:
        ValueError: if the kind is unknown.
    """
    return draw_masked_phantom(kind, rng, size)[0]


def draw_masked_phantom(kind: str, rng: np.random.Generator, size: int = 64) -> Tuple[np.ndarray, np.ndarray]:
    """Draw one phantom, the image of `draw_phantom`, and the mask of its finding.

    Args:
        kind: One of `KINDS`.
        rng: Random generator.
        size: Height and width in pixels.

    Returns:
        Grey image (size, size), uint8, and mask (size, size), bool: the mass, the ring with its core, or all spots.

    Raises:
        ValueError: if the kind is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f'kind must be one of {KINDS}, got {kind!r}.')
    image, mask = np.zeros((size, size)), np.zeros((size, size), bool)
    ry, rx, angle = rng.uniform(0.75, 0.92), rng.uniform(0.6, 0.78), rng.uniform(-0.5, 0.5)
    cy, cx = rng.uniform(-0.06, 0.06, 2)
    head = _ellipse(size, cy, cx, ry, rx, angle)
    tissue = rng.uniform(0.35, 0.5)
    image[head < 1] = rng.uniform(0.7, 0.9)  # skull
    image[head < 0.9] = tissue
    for side in (-1, 1):  # a pair of dark ventricles
        offset = side * rng.uniform(0.1, 0.16)
        ventricle = _ellipse(
            size,
            cy + offset * np.sin(angle),
            cx + offset * np.cos(angle),
            rng.uniform(0.16, 0.3),
            rng.uniform(0.04, 0.09),
            angle,
        )
        image[ventricle < 1] = tissue * 0.45

    radii = {'clear': (), 'mass': rng.uniform(0.15, 0.26, 1), 'ring': rng.uniform(0.17, 0.28, 1)}.get(
        kind, rng.uniform(0.05, 0.09, rng.integers(4, 8))
    )
    for radius in radii:
        theta, r = rng.uniform(0, 2 * np.pi), np.sqrt(rng.uniform(0, 1)) * (0.8 - radius)
        lesion = _ellipse(
            size,
            cy + r * ry * np.sin(theta),
            cx + r * rx * np.cos(theta),
            radius,
            radius * rng.uniform(0.75, 1.3),
            rng.uniform(0, np.pi),
        )
        image[lesion < 1] = tissue + rng.uniform(0.25, 0.4)
        if kind == 'ring':
            image[lesion < 0.6] = tissue * 0.6
        mask |= lesion < 1

    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    slope_y, slope_x = rng.uniform(-0.15, 0.15, 2)
    image = image * (1 + slope_y * y + slope_x * x) * rng.uniform(0.8, 1.15)  # uneven field
    image = image + rng.normal(0, rng.uniform(0.04, 0.09), image.shape)
    return (image.clip(0, 1) * 255).round().astype(np.uint8), mask


def write_phantoms(
    folder: Union[str, Path],
    num_train: int = 80,
    num_test: int = 50,
    size: int = 64,
    seed: int = 0,
) -> None:
    """Write an image folder of phantoms, `train/<kind>/*.png` and `test/<kind>/*.png`.

    Args:
        folder: Output directory, which must not exist or be empty.
        num_train: Training images per kind.
        num_test: Test images per kind.
        size: Height and width in pixels.
        seed: Random seed.

    Raises:
        FileExistsError: if the folder is not empty.
    """
    with new_folder(folder) as temporary:
        for split, number in (('train', num_train), ('test', num_test)):
            for kind in KINDS:
                (temporary / split / kind).mkdir(parents=True)
                for i in range(number):
                    rng = np.random.default_rng([seed, split == 'test', KINDS.index(kind), i])
                    image = Image.fromarray(draw_phantom(kind, rng, size))
                    image.save(temporary / split / kind / f'{i:04d}.png')
