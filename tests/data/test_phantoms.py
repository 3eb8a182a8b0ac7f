import hashlib

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from hdkd_timm.data.phantoms import KINDS, draw_masked_phantom, draw_phantom, write_phantoms


def test_same_seed_same_images(tmp_path):
    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        write_phantoms(tmp_path / name, num_train=3, num_test=2, size=32, seed=seed)
    a, b, c = (
        {str(p.relative_to(tmp_path / n)): np.array(Image.open(p)) for p in sorted((tmp_path / n).rglob('*.png'))}
        for n in 'abc'
    )
    assert (
        list(a)
        == list(b)
        == [
            f'{split}/{kind}/{i:04d}.png'
            for split, number in (('test', 2), ('train', 3))
            for kind in sorted(KINDS)
            for i in range(number)
        ]
    )
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not any(np.array_equal(a[name], c[name]) for name in a)
    digests = {hashlib.sha256(image.tobytes()).hexdigest() for image in a.values()}
    assert len(digests) == len(a)  # no test image is a training image


def test_findings_differ_from_a_clear_phantom():
    def bright(kind):
        """Mean share of pixels within the skull that are far brighter than tissue, over 20 phantoms."""
        shares = []
        for seed in range(20):
            image = draw_phantom(kind, np.random.default_rng(seed), 64)
            assert (image.shape, image.dtype) == ((64, 64), np.uint8)
            inside = image[16:48, 18:46]
            shares.append((inside > np.median(inside) + 40).mean())
        return np.mean(shares)

    clear = bright('clear')
    assert all(bright(kind) > 3 * clear for kind in KINDS if kind != 'clear'), [bright(kind) for kind in KINDS]
    with pytest.raises(ValueError, match="'stripes'"):
        draw_phantom('stripes', np.random.default_rng(0))


class Steady:
    """Draws the same share of every range, and no noise: all kinds have the same head."""

    def __init__(self, share):
        self.share = share

    def uniform(self, low, high, size=None):
        value = low + self.share * (high - low)
        return value if size is None else np.full(size, value)

    def integers(self, low, high):
        return low

    def normal(self, mean, std, shape):
        return np.full(shape, mean)


@pytest.mark.parametrize('share', [0.1, 0.3, 0.5, 0.7, 0.9])
def test_mask_is_where_a_finding_was_drawn(share):
    clear, empty = draw_masked_phantom('clear', Steady(share), 96)
    assert not empty.any()
    for kind in KINDS[1:]:
        image, mask = draw_masked_phantom(kind, Steady(share), 96)
        assert np.array_equal(mask, image != clear)
        assert 10 < mask.sum() < 96**2 / 10


def test_mask_has_every_spot():
    number = [ndimage.label(draw_masked_phantom('spots', np.random.default_rng(seed), 128)[1])[1] for seed in range(20)]
    assert 2 <= min(number)  # spots may touch
    assert max(number) == 7


def test_image_is_that_of_the_mask():
    for kind in KINDS:
        image, mask = draw_masked_phantom(kind, np.random.default_rng(5), 40)
        assert np.array_equal(image, draw_phantom(kind, np.random.default_rng(5), 40))
        assert (mask.shape, mask.dtype) == ((40, 40), bool)


def test_nothing_is_overwritten(tmp_path):
    write_phantoms(tmp_path / 'a', num_train=1, num_test=1, size=28)
    with pytest.raises(FileExistsError):
        write_phantoms(tmp_path / 'a', num_train=1, num_test=1, size=28)
