import hashlib

import numpy as np
import pytest
from PIL import Image

from hdkd_timm.data.phantoms import KINDS, draw_phantom, write_phantoms


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


def test_nothing_is_overwritten(tmp_path):
    write_phantoms(tmp_path / 'a', num_train=1, num_test=1, size=28)
    with pytest.raises(FileExistsError):
        write_phantoms(tmp_path / 'a', num_train=1, num_test=1, size=28)
