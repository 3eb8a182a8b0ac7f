"""timm's augmentation as set by its flags, and the augmentation of whole batches."""

import pickle
import random
import re

import numpy as np
import pytest
import timm
import torch
from data_helpers import data_config, noise
from PIL import Image

from hdkd_timm.data.augment import AugmentConfig, BatchAugmentation, create_eval_transform, create_train_transform

CPU = torch.device('cpu')


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
    config = AugmentConfig(scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0, vflip=0.0, color_jitter=0.0)
    image = noise((32, 32))
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)

    def transform(**changes):
        torch.manual_seed(0)
        return create_train_transform(AugmentConfig(**{**vars(config), **changes}), data_config())(image)

    assert torch.equal(transform(), pixels)
    assert torch.equal(transform(hflip=1.0), pixels.flip(2))
    assert torch.equal(transform(vflip=1.0), pixels.flip(1))
    assert not torch.equal(transform(scale=(0.3, 0.3)), pixels)
    assert not torch.equal(transform(color_jitter=0.5), pixels)
    assert (transform(color_jitter=0.5).float() - pixels.float()).abs().mean() > 5
    automatic = [
        str(step) for step in create_train_transform(AugmentConfig(aa='rand-m6-mstd0.5'), data_config()).transforms
    ]
    assert any('RandAugment' in step for step in automatic)
    assert not any('ColorJitter' in step for step in automatic)


# timm itself takes the last five, and trains without what they seem to ask for
@pytest.mark.parametrize(
    'aa', ['autoaugment', 'rand-z3', 'rand-m9.5', 'rand-foo', 'rand-m9-mstdx', 'augmix-x', 'v0-foo', 'rand-m9-tfoo']
)
def test_unknown_automatic_augmentation(aa):
    with pytest.raises(ValueError, match=re.escape(f"--aa '{aa}' is not an AutoAugment policy of timm: use")):
        create_train_transform(AugmentConfig(aa=aa), data_config())


@pytest.mark.parametrize('in_chans', [3, 1])
@pytest.mark.parametrize(
    'aa',
    [
        'v0',
        'v0r',
        'original-mstd0.5',
        'originalr',
        '3a',
        'rand',
        'rand-m9-n3-mstd0.5-inc1',
        'rand-m10-p1-tweights',
        'rand-m20-mmax30-mstd101-t3a',
        'augmix-m5-w4-d2-b1',
        'augmix-a0.5-mstd1',
    ],
)
def test_automatic_augmentation_of_every_kind(aa, in_chans):
    if aa.startswith('augmix-a') and in_chans == 1 and timm.__version__ == '1.0.29':  # fails there
        with pytest.raises(ValueError, match=f"--aa '{aa}' of timm {timm.__version__} does not support 1 channels"):
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
    with pytest.raises(ValueError, match=r"--aa 'v0' of timm .* does not support 1 channels \(colour only"):
        create_train_transform(AugmentConfig(aa='v0'), data_config(in_chans=1))


def test_strongest_posterisation_keeps_one_bit():
    transform = create_train_transform(AugmentConfig(aa='rand-m10-inc1'), data_config())
    ops = next(step.ops for step in transform.transforms if hasattr(step, 'ops'))
    (op,) = (op for op in ops if op.name == 'PosterizeIncreasing')
    op.prob = 1.0
    assert set(np.unique(op(noise()))) == {0, 128}
    pickle.loads(pickle.dumps(transform))  # loader processes that are spawned get it so


@pytest.mark.parametrize(
    'settings', [dict(aug='paper'), dict(aug='timm'), dict(aug='timm', aa='rand-m6-mstd0.5'), dict(aug='none')]
)
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
        for on, changes_labels in ((dict(reprob=1.0), False), (dict(mixup=1.0), True), (dict(cutmix=1.0), True)):
            output, labels = BatchAugmentation(AugmentConfig(aug=aug, **on), 4, CPU)(images.clone(), targets, 0)
            assert not torch.equal(output, images)
            assert labels.shape == ((4, 4) if changes_labels else (4,))


@pytest.mark.parametrize(('mode', 'values'), [('const', 1), ('rand', 3), ('pixel', 3 * 5)])
def test_erasing(mode, values):
    erase = BatchAugmentation(AugmentConfig(reprob=1.0, remode=mode), 4, CPU)
    images = torch.full((8, 3, 32, 32), 9.0)
    output, labels = erase(images.clone(), torch.arange(8) % 4, 0)
    for image in output:
        erased = image != 9
        assert 0.01 < erased.float().mean() < 0.4
        rows, columns = erased[0].any(dim=1), erased[0].any(dim=0)
        assert torch.equal(erased[0], rows[:, None] & columns[None])  # one rectangle
        found = len(image[erased].unique())
        assert found == values if mode != 'pixel' else found >= values
    assert torch.equal(labels, torch.arange(8) % 4)
    often = BatchAugmentation(AugmentConfig(reprob=1.0, recount=3, remode='const'), 4, CPU)
    erased = often(images.clone(), labels, 0)[0][:, 0] != 9
    assert any(  # more than one rectangle
        not torch.equal(area, area.any(dim=1)[:, None] & area.any(dim=0)[None]) for area in erased
    )
    rarely = BatchAugmentation(AugmentConfig(reprob=0.25), 4, CPU)
    hit = sum((rarely(images.clone(), labels, 0)[0] != 9).flatten(1).any(dim=1).sum().item() for _ in range(50))
    assert 60 < hit < 140  # of 400


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('kind', ['mixup', 'cutmix'])
def test_mixup_and_cutmix(kind, smoothing):
    np.random.seed(0)
    mix = BatchAugmentation(AugmentConfig(**{kind: 1.0}, smoothing=smoothing), 4, CPU)
    targets = torch.tensor([0, 1, 2, 3])
    images = targets.float().view(4, 1, 1, 1).expand(4, 3, 16, 16).contiguous()  # pixels encode the class
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
        mix = BatchAugmentation(AugmentConfig(mixup=1.0, cutmix=1.0, **kwargs), 2, CPU)
        return [mix(images.clone(), targets, 0)[0] for _ in range(60)]

    assert sum(not torch.equal(output, images) for output in mixed(mixup_prob=0.2)) < 25

    # a mixed image is a mean of both everywhere, a pasted one is one of them at each pixel
    def pasted(output):
        return bool(((output == images) | (output == images.flip(0))).all())

    assert all(pasted(output) for output in mixed(mixup_switch_prob=1.0))
    assert sum(pasted(output) for output in mixed(mixup_switch_prob=0.0)) < 5


def test_mixing_ends_after_an_epoch():
    np.random.seed(0)
    images, targets = torch.rand(4, 3, 8, 8), torch.arange(4)
    mix = BatchAugmentation(AugmentConfig(mixup=1.0, mixup_off_epoch=2, smoothing=0.1), 4, CPU)
    unmixed = torch.full((4, 4), 0.025) + 0.9 * torch.eye(4)
    for epoch in (0, 1, 2, 3, 0):
        output, probs = mix(images.clone(), targets, epoch)
        assert torch.equal(output, images) == (epoch >= 2)
        assert torch.allclose(probs, unmixed) == (epoch >= 2)  # smoothed all the same
    never = BatchAugmentation(AugmentConfig(mixup=1.0), 4, CPU)
    assert not torch.equal(never(images.clone(), targets, 99)[0], images)


def test_smoothing_happens_once():
    assert AugmentConfig(smoothing=0.1).loss_smoothing == 0.1
    assert AugmentConfig(smoothing=0.1, mixup=0.2).loss_smoothing == 0
    assert AugmentConfig(smoothing=0.1, cutmix=1.0).loss_smoothing == 0
    assert AugmentConfig(smoothing=0.1, mixup=0.2, aug='paper').loss_smoothing == 0


def test_load_size():
    steps = create_train_transform(AugmentConfig(load_size=40), data_config()).transforms
    assert steps[0].size == (40, 40)
    assert [type(step) for step in steps[1:]] == [
        type(step) for step in create_train_transform(AugmentConfig(), data_config()).transforms
    ]
