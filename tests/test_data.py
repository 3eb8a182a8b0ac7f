import numpy as np
import pytest
import torch
from conftest import write_images
from PIL import Image

from hdkd_timm.data import create_datasets, create_split_loader, draw_fraction, find_splits

DATA_CONFIG = dict(
    input_size=(3, 32, 32), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), interpolation='bilinear', crop_pct=1.0,
    crop_mode='squash')


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def test_splits_and_classes(image_folder):
    write_images(image_folder / 'Validation', number=1)
    splits, classes = find_splits(image_folder)
    assert classes == ['a', 'b', 'c']
    assert {split: path.name for split, path in splits.items()} == {
        'train': 'train', 'val': 'Validation', 'test': 'test'}
    datasets, _ = create_datasets(image_folder)
    assert {split: len(dataset) for split, dataset in datasets.items()} == {'train': 24, 'val': 3, 'test': 12}


@pytest.mark.parametrize('suffix', ['.webp', '.bmp', '.tif', '.TIFF', '.jpeg', '.png'])
def test_formats(tmp_path, suffix):
    for split in ('train', 'test'):
        write_images(tmp_path / split, number=2, suffix=suffix)
    datasets, _ = create_datasets(tmp_path)
    image, target = datasets['train'][5]
    assert (len(datasets['train']), image.size, image.mode, target) == (6, (40, 40), 'RGB', 2)


@pytest.mark.parametrize('mode', ['L', 'P', 'RGBA', 'CMYK', '1'])
def test_modes_become_what_the_network_takes(tmp_path, mode):
    for split in ('train', 'test'):
        write_images(tmp_path / split, number=2, mode=mode, suffix='.tif')
    for in_chans, expected in ((3, 'RGB'), (1, 'L')):
        datasets, _ = create_datasets(tmp_path, in_chans=in_chans)
        assert datasets['train'][0][0].mode == expected


def test_fraction_is_drawn_per_class_and_seeded(image_folder):
    def draw(fraction, seed=42):
        return create_datasets(image_folder, train_fraction=fraction, seed=seed)[0]['train'].reader.samples

    samples = draw(0.5)
    assert np.bincount([target for _, target in samples]).tolist() == [4, 4, 4]
    assert samples == draw(0.5)
    assert samples != draw(0.5, seed=1)
    assert np.bincount([target for _, target in draw(0.01)]).tolist() == [1, 1, 1]
    assert draw(1.) == draw(1., seed=7)
    counts = [1321, 1339, 1595, 1457]  # a tenth of the brain MRI set, as its yardstick drew it
    many = [(f'{t}/{i}', t) for t, n in enumerate(counts) for i in range(n)]
    assert len(draw_fraction(many, 0.1)) == 572
    for fraction in (0., -0.1, 1.1):
        with pytest.raises(ValueError, match='train_fraction'):
            draw(fraction)


def test_loader(image_folder):
    datasets, _ = create_datasets(image_folder)
    test = create_split_loader(datasets['test'], DATA_CONFIG, 5, num_workers=0)
    batches = list(test)
    assert [len(y) for _, y in batches] == [5, 5, 2]
    assert torch.cat([y for _, y in batches]).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert batches[0][0].shape == (5, 3, 32, 32)
    # class a is noise around a brightness of 40
    assert abs(batches[0][0][0].mean() - (40 / 255 - 0.5) / 0.25) < 0.1
    train = create_split_loader(datasets['train'], DATA_CONFIG, 5, is_training=True, num_workers=0, hflip=0.5)
    assert [len(y) for _, y in train] == [5] * 4
    assert torch.cat([y for _, y in train]).tolist() != sorted(torch.cat([y for _, y in train]).tolist())
    with pytest.raises(ValueError, match='24 training images are fewer than a batch of 25'):
        create_split_loader(datasets['train'], DATA_CONFIG, 25, is_training=True)


def test_bad_images_are_named_or_left_out(image_folder, caplog):
    truncate(image_folder / 'train' / 'b' / '3.png')
    (image_folder / 'test' / 'a' / '0.png').write_text('no image')
    with pytest.raises(ValueError, match=r"Cannot read image '.*b/3\.png'.*--on-bad-image skip"):
        create_datasets(image_folder)
    datasets, _ = create_datasets(image_folder, on_bad_image='skip')
    assert (len(datasets['train']), len(datasets['test'])) == (23, 11)
    assert 'b/3.png' in caplog.text
    assert 'a/0.png' in caplog.text
    for path in (image_folder / 'test' / 'a').iterdir():
        path.write_text('no image')
    with pytest.raises(ValueError, match="No readable image of class 'a'"):
        create_datasets(image_folder, on_bad_image='skip')


def test_sixteen_bit_images_are_not_clipped_in_silence(image_folder):
    Image.fromarray(np.full((40, 40), 30000, np.uint16)).save(image_folder / 'train' / 'a' / 'deep.png')
    with pytest.raises(ValueError, match=r"deep\.png' \(pixels of mode 'I;16', more than 8 bits"):
        create_datasets(image_folder)
    assert len(create_datasets(image_folder, on_bad_image='skip')[0]['train']) == 24


def test_images_that_do_not_convert_are_found_too(image_folder):
    Image.new('LAB', (40, 40)).save(image_folder / 'train' / 'a' / 'lab.tif')
    with pytest.raises(ValueError, match=r'lab\.tif'):
        create_datasets(image_folder, in_chans=1)


@pytest.mark.parametrize(('break_it', 'error', 'match'), [
    (lambda d: (d / 'train').rename(d / 'images'), FileNotFoundError, "no folder 'train' .*images, test"),
    (lambda d: (d / 'test').rename(d / 'images'), FileNotFoundError, "no folder 'test'"),
    (lambda d: (d / 'train' / 'empty').mkdir(), FileNotFoundError, 'No images in class folder .*empty'),
    (lambda d: write_images(d / 'test', classes=['d']), ValueError, "Class 'd' is in .*test' but not in .*train'"),
    (lambda d: write_images(d / 'train', classes=['d']), ValueError, "Class 'd' is in .*train' but not in .*test'"),
    (lambda d: write_images(d / 'train', classes=['.']), ValueError, 'outside of class folders'),
    (lambda d: write_images(d / 'train' / 'a', classes=['deep']), ValueError, 'a/deep.* a level too deep'),
    (lambda d: write_images(d / 'Training'), ValueError, "'Training' and 'train' .* both the train split"),
    (lambda d: [p.unlink() for p in d.glob('*/*/*.png')], FileNotFoundError, 'No images in class folder'),
])
def test_bad_folders(image_folder, break_it, error, match):
    break_it(image_folder)
    with pytest.raises(error, match=match):
        create_datasets(image_folder)


def test_bad_arguments(image_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        create_datasets(tmp_path / 'nowhere')
    with pytest.raises(ValueError, match='in_chans 4'):
        create_datasets(image_folder, in_chans=4)
    with pytest.raises(ValueError, match="'ignore'"):
        create_datasets(image_folder, on_bad_image='ignore')
    write_images(tmp_path / 'one' / 'train', classes=['a'])
    write_images(tmp_path / 'one' / 'test', classes=['a'])
    with pytest.raises(ValueError, match="Only one class, 'a'"):
        create_datasets(tmp_path / 'one')
