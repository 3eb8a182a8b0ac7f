import hashlib
import io
import json
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import write_images
from PIL import Image

from hdkd_timm import TrainConfig, train
from hdkd_timm.data import samples as data
from hdkd_timm.data.augment import AugmentConfig
from hdkd_timm.data.loader import SplitLoader
from hdkd_timm.data.samples import (
    DataConfig,
    FileReader,
    Samples,
    assign_folds,
    create_datasets,
    draw_fraction,
    draw_val,
    find_splits,
    list_images,
)
from hdkd_timm.utils.files import write_rows

DATA_CONFIG = dict(
    input_size=(3, 32, 32), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), interpolation='bilinear', crop_pct=1.0,
    crop_mode='squash')


def create(data_dir=None, only=None, **kwargs):
    """Datasets of a folder, and the class names."""
    return create_datasets(DataConfig(data_dir=data_dir and str(data_dir), **kwargs), only=only)


def sizes(datasets):
    return {split: len(dataset) for split, dataset in datasets.items()}


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def make_samples(targets, groups=None):
    targets = np.array(targets)
    reader = FileReader([(f'{i}.png', int(t)) for i, t in enumerate(targets)])
    return Samples(reader, np.arange(len(targets)), targets, None if groups is None else np.array(groups))


def write_tar(path, folder, prefix=''):
    with tarfile.open(path, 'w') as tar:
        for file in sorted(folder.rglob('*.*')):
            tar.add(file, f'{prefix}{file.relative_to(folder)}')


@pytest.fixture
def write_csv(tmp_path):
    """A function that writes images of grey 0, 10, 20, ... in images/, and a table of them from its text."""
    folder = tmp_path / 'table' / 'images'
    folder.mkdir(parents=True)
    for i in range(12):
        Image.new('L', (8, 8), 10 * i).save(folder / f'{i}.png')

    def write(*lines, encoding='utf-8'):
        path = folder.parent / 'data.csv'
        path.write_text('\n'.join(lines) + '\n', encoding=encoding)
        return str(path)

    return write


def table(splits, labels='ab', groups=None):
    """Lines of a table, an image for each letter of `splits`: t, v, e (test) or - for none."""
    names = {'t': 'train', 'v': 'val', 'e': 'test', '-': ''}
    lines = ['path,label,split' + (',group' if groups else '')]
    for i, letter in enumerate(splits):
        lines.append(f'images/{i}.png,{labels[i % len(labels)]},{names[letter]}' + (f',{groups[i]}' if groups else ''))
    return lines


def test_splits_and_classes(image_folder):
    write_images(image_folder / 'Validation', number=1)
    assert {split: path.name for split, path in find_splits(image_folder).items()} == {
        'train': 'train', 'val': 'Validation', 'test': 'test'}
    datasets, classes = create(image_folder)
    assert classes == ['a', 'b', 'c']
    assert sizes(datasets) == {'train': 24, 'val': 3, 'test': 12}


def test_classes_are_in_natural_order(tmp_path):
    for split in ('Training', 'TESTING'):
        write_images(tmp_path / split, classes=['10', '9', 'x'], number=1)
    datasets, classes = create(tmp_path)
    assert classes == ['9', '10', 'x']
    assert sorted(datasets) == ['test', 'train']
    # noise around 40 is class 10, around 120 class 9
    means = {int(target): np.asarray(image).mean() for image, target in datasets['test']}
    assert abs(means[1] - 40) < 5
    assert abs(means[0] - 120) < 5


def test_classes_that_differ_in_case_alone_have_one_order(write_csv, tmp_path):
    pairs = [(f'Class{i}', f'class{i}') for i in range(20)]
    expected = [name for pair in pairs for name in pair]
    names = [name for i, pair in enumerate(pairs) for name in (pair if i % 2 else pair[::-1])]
    # neither that of a set, which changes with each process, nor that of the file system
    path = write_csv('path,label', *(f'{i}.png,{name}' for i, name in enumerate(names)))
    assert create(data_csv=path, only='train', check_images=False)[1] == expected
    write_images(tmp_path / 'train', classes=names, number=1, size=8)
    assert create(tmp_path, only='train', check_images=False)[1] == expected


@pytest.mark.parametrize('suffix', ['.webp', '.bmp', '.tif', '.TIFF', '.jpeg', '.png'])
def test_formats(tmp_path, suffix):
    for split in ('train', 'test'):
        write_images(tmp_path / split, number=2, suffix=suffix)
    datasets, _ = create(tmp_path)
    image, target = datasets['train'][5]
    assert (len(datasets['train']), image.size, image.mode, target) == (6, (40, 40), 'RGB', 2)
    assert abs(np.asarray(image).mean() - 200) < 5


@pytest.mark.parametrize('mode', ['L', 'P', 'RGBA', 'CMYK', '1'])
def test_modes_become_what_the_network_takes(tmp_path, mode):
    for split in ('train', 'test'):
        write_images(tmp_path / split, number=2, mode=mode, suffix='.tif')
    for in_chans, expected in ((3, 'RGB'), (1, 'L')):
        datasets, _ = create(tmp_path, in_chans=in_chans)
        assert datasets['train'][0][0].mode == expected
        assert abs(np.asarray(datasets['train'][0][0]).mean() - 40) < 8


@pytest.mark.parametrize(('break_it', 'error', 'match'), [
    (lambda d: (d / 'train').rename(d / 'images'), FileNotFoundError, "no folder 'train' .*images, test"),
    (lambda d: (d / 'test').rename(d / 'images'), ValueError, "no split 'test', nor 'val'.*--folds or --val-fraction"),
    (lambda d: (d / 'train' / 'empty').mkdir(), FileNotFoundError, 'No images in class folder .*empty'),
    (lambda d: write_images(d / 'test', classes=['d']), ValueError, "Class 'd' is in .*test' but not in .*train'"),
    (lambda d: write_images(d / 'train', classes=['d']), ValueError, "Class 'd' is in .*train' but not in .*test'"),
    (lambda d: write_images(d / 'val', classes=['a', 'b']), ValueError, "Class 'c' is in .*train' but not in .*val'"),
    (lambda d: write_images(d / 'train', classes=['.']), ValueError, 'outside of class folders'),
    (lambda d: write_images(d / 'train' / 'a', classes=['deep']), ValueError, 'a/deep.* a level too deep'),
    (lambda d: write_images(d / 'Training'), ValueError, "'Training' and 'train' .* both the train split"),
    (lambda d: (d / 'test.tar').touch(), ValueError, r"'test' and 'test\.tar' .* both the test split"),
    (lambda d: [p.unlink() for p in d.glob('*/*/*.png')], FileNotFoundError, 'No images in class folder'),
])
def test_bad_folders(image_folder, break_it, error, match):
    break_it(image_folder)
    with pytest.raises(error, match=match):
        create(image_folder)


def test_bad_arguments(image_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        create(tmp_path / 'nowhere')
    with pytest.raises(ValueError, match='--data-dir, --data-csv or --dataset'):
        create()
    with pytest.raises(ValueError, match='in_chans 4'):
        create(image_folder, in_chans=4)
    with pytest.raises(ValueError, match="'ignore'"):
        create(image_folder, on_bad_image='ignore')
    with pytest.raises(ValueError, match='--num-classes 4, but the data has 3: a, b, c'):
        create(image_folder, num_classes=4)
    assert create(image_folder, num_classes=3)[1] == ['a', 'b', 'c']
    with pytest.raises(ValueError, match='not both'):
        create(image_folder, dataset='torch/image_folder', data_csv='x.csv')
    write_images(tmp_path / 'one' / 'train', classes=['a'])
    write_images(tmp_path / 'one' / 'test', classes=['a'])
    with pytest.raises(ValueError, match="Only one class, 'a'"):
        create(tmp_path / 'one')


def test_val_alone_is_enough(image_folder):
    (image_folder / 'test').rename(image_folder / 'val')
    assert sizes(create(image_folder)[0]) == {'train': 24, 'val': 12}


def test_only_the_wanted_split(image_folder, tmp_path):
    assert sizes(create(image_folder, only='test')[0]) == {'test': 12}
    assert sizes(create(image_folder, only='train', train_fraction=0.5)[0]) == {'train': 12}
    # images of the others are not read, nor need they be there
    (image_folder / 'train' / 'a' / '0.png').write_text('no image')
    assert sizes(create(image_folder, only='test')[0]) == {'test': 12}
    with pytest.raises(ValueError, match="Cannot read image .*split 'train'"):
        create(image_folder, only='train')
    with pytest.raises(FileNotFoundError, match="no folder 'val' .*test, train"):
        create(image_folder, only='val')
    (image_folder / 'train').rename(tmp_path / 'elsewhere')
    datasets, classes = create(image_folder, only='test')
    assert (sizes(datasets), classes) == ({'test': 12}, ['a', 'b', 'c'])
    # a folder without splits, a class fewer than the network has
    datasets, classes = create(image_folder / 'test', only='test')
    assert (sizes(datasets), classes) == ({'test': 12}, ['a', 'b', 'c'])
    write_images(tmp_path / 'one', classes=['b'], number=2)
    datasets, classes = create(tmp_path / 'one', only='test')
    assert (sizes(datasets), classes) == ({'test': 2}, ['b'])
    with pytest.raises(FileNotFoundError, match='nowhere'):
        create(tmp_path / 'nowhere', only='test')


def test_bad_images_are_named_or_left_out(image_folder, caplog):
    truncate(image_folder / 'train' / 'b' / '3.png')
    (image_folder / 'test' / 'a' / '0.png').write_text('no image')
    with pytest.raises(ValueError, match=r"Cannot read image '.*b/3\.png'.*split 'train'.*--on-bad-image skip"):
        create(image_folder)
    datasets, _ = create(image_folder, on_bad_image='skip')
    assert sizes(datasets) == {'train': 23, 'test': 11}
    assert not any('b/3.png' in name for name in datasets['train'].samples.filenames())
    assert datasets['train'].targets.tolist() == [0] * 8 + [1] * 7 + [2] * 8
    assert 'b/3.png' in caplog.text
    assert 'a/0.png' in caplog.text
    for path in (image_folder / 'test' / 'a').iterdir():
        path.write_text('no image')
    with pytest.raises(ValueError, match="No readable image of class 'a' in split 'test'"):
        create(image_folder, on_bad_image='skip')


def test_unchecked_images_are_named_when_they_are_read(image_folder):
    truncate(image_folder / 'train' / 'b' / '3.png')
    datasets, _ = create(image_folder, check_images=False)
    dataset = datasets['train']
    assert len(dataset) == 24
    bad = next(i for i, name in enumerate(dataset.samples.filenames()) if name.endswith('b/3.png'))
    with pytest.raises(ValueError, match=r"Cannot read image '.*train/b/3\.png' \(OSError: "):
        dataset[bad]
    assert dataset[bad - 1][1] == dataset[bad + 1][1] == 1
    loader = SplitLoader(dataset, DATA_CONFIG, 4, num_workers=0)
    with pytest.raises(ValueError, match=r"b/3\.png"):
        list(loader)


def test_sixteen_bit_images_are_scaled(image_folder):
    Image.fromarray(np.full((40, 40), 30000, np.uint16)).save(image_folder / 'train' / 'a' / 'deep.png')
    dataset = create(image_folder)[0]['train']
    deep = next(i for i, name in enumerate(dataset.samples.filenames()) if name.endswith('deep.png'))
    image, target = dataset[deep]
    assert (image.getpixel((5, 5)), target) == ((117, 117, 117), 0)  # 30000 / 257


def test_images_that_do_not_convert_are_found_too(image_folder):
    Image.fromarray(np.full((40, 40), 30000, np.float32)).save(image_folder / 'train' / 'a' / 'float.tif')
    with pytest.raises(ValueError, match=r"float\.tif' \(ValueError: pixels of mode 'F' from 30000 to 30000"):
        create(image_folder)
    assert len(create(image_folder, on_bad_image='skip')[0]['train']) == 24


def test_loader(image_folder):
    datasets, _ = create(image_folder)
    test = SplitLoader(datasets['test'], DATA_CONFIG, 5, num_workers=0)
    batches = list(test)
    assert [len(y) for _, y in batches] == [5, 5, 2]
    assert torch.cat([y for _, y in batches]).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert batches[0][0].shape == (5, 3, 32, 32)
    # class a is noise around a brightness of 40
    assert abs(batches[0][0][0].mean() - (40 / 255 - 0.5) / 0.25) < 0.1
    train = SplitLoader(datasets['train'], DATA_CONFIG, 5, augment=AugmentConfig(), num_workers=0)
    targets = [y for _, y in train.epoch(0)]
    assert [len(y) for y in targets] == [5] * 4
    assert torch.cat(targets).tolist() != sorted(torch.cat(targets).tolist())
    with pytest.raises(ValueError, match='24 training images are fewer than a batch of 25'):
        SplitLoader(datasets['train'], DATA_CONFIG, 25, augment=AugmentConfig())


def test_fraction_is_drawn_per_class_and_seeded(image_folder):
    def draw(fraction, seed=42):
        return create(image_folder, train_fraction=fraction, seed=seed)[0]['train'].samples

    samples = draw(0.5)
    assert np.bincount(samples.targets).tolist() == [4, 4, 4]
    assert samples.filenames() == draw(0.5).filenames()
    assert samples.filenames() != draw(0.5, seed=1).filenames()
    assert np.bincount(draw(0.01).targets).tolist() == [1, 1, 1]
    assert draw(1.).filenames() == draw(1., seed=7).filenames()
    counts = [1321, 1339, 1595, 1457]  # a tenth of the brain MRI set, as its yardstick drew it
    positions = draw_fraction(np.repeat(np.arange(4), counts), 0.1)
    assert len(positions) == 572
    assert (np.diff(positions) > 0).all()
    for fraction in (0., -0.1, 1.1):
        with pytest.raises(ValueError, match='train_fraction'):
            draw(fraction)


def test_fraction_leaves_the_test_images(image_folder):
    datasets, _ = create(image_folder, train_fraction=0.5)
    assert sizes(datasets) == {'train': 12, 'test': 12}
    # the targets go with the images
    for image, target in datasets['train']:
        assert abs(np.asarray(image).mean() - (40 + 80 * target)) < 8


def test_fraction_is_drawn_before_val(image_folder):
    datasets, _ = create(image_folder, train_fraction=0.5, val_fraction=0.25)
    assert sizes(datasets) == {'train': 9, 'test': 12, 'val': 3}
    fraction = create(image_folder, train_fraction=0.5)[0]['train'].samples.filenames()
    both = datasets['train'].samples.filenames() + datasets['val'].samples.filenames()
    assert sorted(both) == sorted(fraction)


def test_val_fraction(image_folder):
    def draw(seed=42):
        return create(image_folder, val_fraction=0.25, seed=seed)[0]

    datasets = draw()
    assert sizes(datasets) == {'train': 18, 'val': 6, 'test': 12}
    assert np.bincount(datasets['val'].targets).tolist() == [2, 2, 2]
    train, val = (datasets[split].samples.filenames() for split in ('train', 'val'))
    assert not set(train) & set(val)
    assert val == draw()['val'].samples.filenames()
    assert val != draw(seed=1)['val'].samples.filenames()
    # what was cut off can be tested on
    assert create(image_folder, val_fraction=0.25, only='val')[0]['val'].samples.filenames() == val
    for fraction in (-0.1, 1., 1.5):
        with pytest.raises(ValueError, match='val_fraction'):
            create(image_folder, val_fraction=fraction)
    write_images(image_folder / 'val', number=1)
    with pytest.raises(ValueError, match='--val-fraction is for data without a val split'):
        create(image_folder, val_fraction=0.25)


def test_val_fraction_without_a_test_split(image_folder):
    (image_folder / 'test').rename(image_folder / 'images')
    assert sizes(create(image_folder, val_fraction=0.25)[0]) == {'train': 18, 'val': 6}


@pytest.mark.parametrize('fraction', [0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8])
def test_val_share_is_near_the_fraction(fraction):
    samples = make_samples([0] * 300 + [1] * 200 + [2] * 100)
    held_out = draw_val(samples, fraction)
    shares = np.bincount(samples.targets[held_out], minlength=3) / [300, 200, 100]
    assert np.allclose(shares, fraction, atol=0.011)
    # by groups of 1 to 4 images, each of one class
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(600), rng.integers(1, 5, 600))[:600]
    samples = make_samples(groups % 3, groups)
    held_out = draw_val(samples, fraction)
    assert abs(held_out.mean() - fraction) < 0.03
    assert not np.intersect1d(groups[held_out], groups[~held_out]).size


@pytest.mark.parametrize('fraction', [0.01, 0.99])
@pytest.mark.parametrize('groups', [None, np.arange(1000) // 2])
def test_val_share_of_a_hundredth(fraction, groups):
    samples = make_samples(np.arange(1000) // 2 % 2, groups)
    held_out = draw_val(samples, fraction)
    assert abs(held_out.sum() - 1000 * fraction) <= 2
    assert np.bincount(samples.targets[held_out]).min() >= min(fraction * 500, 4)


def test_val_share_with_a_rare_class():
    # two images of a class do not make half of all images the val split
    samples = make_samples([0] * 100 + [1] * 98 + [2] * 2)
    held_out = draw_val(samples, 0.1)
    assert abs(held_out.mean() - 0.1) < 0.02
    assert np.bincount(samples.targets[held_out])[2] == 1
    groups = np.arange(200) // 2
    groups[-2:] = [1000, 1001]
    held_out = draw_val(make_samples(samples.targets, groups), 0.1)
    assert abs(held_out.mean() - 0.1) < 0.02
    assert np.bincount(samples.targets[held_out])[2] == 1
    assert not np.intersect1d(groups[held_out], groups[~held_out]).size
    with pytest.raises(ValueError, match='smallest class has 1 training images'):
        draw_val(make_samples([0] * 10 + [1]), 0.1)
    with pytest.raises(ValueError, match='smallest class has 1 training groups'):
        draw_val(make_samples([0] * 10 + [1] * 4, [*range(10), 20, 20, 20, 20]), 0.1)


def test_folds_are_a_partition(image_folder):
    held_out = []
    for fold in range(4):
        datasets, _ = create(image_folder, folds=4, fold=fold)
        assert sizes(datasets) == {'train': 18, 'val': 6, 'test': 12}
        assert np.bincount(datasets['val'].targets).tolist() == [2, 2, 2]
        assert not set(datasets['val'].samples.filenames()) & set(datasets['train'].samples.filenames())
        held_out += datasets['val'].samples.filenames()
    assert len(held_out) == 24
    assert sorted(held_out) == sorted(create(image_folder)[0]['train'].samples.filenames())


def test_fold_is_the_test_split_where_there_is_none(image_folder):
    val = create(image_folder, folds=4, fold=1)[0]['val'].samples.filenames()
    (image_folder / 'test').rename(image_folder / 'images')
    datasets, _ = create(image_folder, folds=4, fold=1)
    assert sizes(datasets) == {'train': 18, 'test': 6}
    assert datasets['test'].samples.filenames() == val
    # and a val split may be cut from the rest
    datasets, _ = create(image_folder, folds=4, fold=1, val_fraction=1 / 3)
    assert sizes(datasets) == {'train': 12, 'test': 6, 'val': 6}
    assert datasets['test'].samples.filenames() == val
    assert len({name for dataset in datasets.values() for name in dataset.samples.filenames()}) == 24
    # hdkd eval names the fold again
    only = create(image_folder, folds=4, fold=1, only='test')[0]
    assert sizes(only) == {'test': 6}
    assert only['test'].samples.filenames() == val


def test_bad_folds(image_folder):
    for folds, fold, match in (
            (4, 4, '--fold must be 0 to 3, got 4'), (4, -1, 'got -1'), (9, 0, '9 folds: expected 2 to 8, .* images'),
            (1, 0, '1 folds: expected 2')):
        with pytest.raises(ValueError, match=match):
            create(image_folder, folds=folds, fold=fold)
    with pytest.raises(ValueError, match='--val-fraction is for data without a val split'):
        create(image_folder, folds=4, val_fraction=0.5)
    write_images(image_folder / 'val', number=1)
    with pytest.raises(ValueError, match='--folds .* but the data has one already'):
        create(image_folder, folds=4)
    (image_folder / 'val').rename(image_folder / 'images')
    with pytest.raises(ValueError, match=r"no split 'other' \(found: train, test, val\)"):
        create(image_folder, folds=4, only='other')


def test_folds_tear_no_group_apart():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(300), rng.integers(1, 6, 300))
    samples = make_samples(groups % 2, groups)
    fold_of = assign_folds(samples, 5)
    for group in range(300):
        assert len(set(fold_of[groups == group])) == 1
    shares = np.array([np.bincount(samples.targets[fold_of == fold]) for fold in range(5)]) / np.bincount(groups % 2)
    assert np.allclose(shares, 0.2, atol=0.02)
    assert (fold_of == assign_folds(samples, 5)).all()
    assert (fold_of != assign_folds(samples, 5, seed=1)).any()
    with pytest.raises(ValueError, match='expected 2 to 2, the number of groups'):
        assign_folds(make_samples([0, 0, 0, 1, 1, 1], [1, 1, 2, 3, 4, 5]), 3)


def test_csv(write_csv):
    path = write_csv(*table('tttttteevv'))
    datasets, classes = create(data_csv=path)
    assert (sizes(datasets), classes) == ({'train': 6, 'test': 2, 'val': 2}, ['a', 'b'])
    # images 6 and 7
    assert [(image.getpixel((0, 0)), target) for image, target in datasets['test']] == [
        ((60, 60, 60), 0), ((70, 70, 70), 1)]
    assert datasets['test'].samples.groups is None
    grey = create(data_csv=path, in_chans=1, only='val')[0]
    assert [grey['val'][i][0].getpixel((0, 0)) for i in range(2)] == [80, 90]


def test_csv_paths(write_csv, tmp_path):
    path = write_csv(*table('ttee'))
    lines = [line.replace('images/', '') for line in table('ttee')]
    names = create(data_csv=path)[0]['test'].samples.filenames()
    write_csv(*lines)
    with pytest.raises(ValueError, match=r"Cannot read image '.*table/0\.png' \(FileNotFoundError"):
        create(data_csv=path)
    datasets, _ = create(tmp_path / 'table' / 'images', data_csv=path)
    assert datasets['test'].samples.filenames() == names
    # absolute ones are as they are
    write_csv(lines[0], *(f"{tmp_path / 'table' / 'images'}/{line}" for line in lines[1:]))
    assert create(data_csv=path)[0]['test'].samples.filenames() == names
    assert create(tmp_path, data_csv=path)[0]['test'].samples.filenames() == names


def test_csv_columns_of_other_names(write_csv):
    lines = [line.replace('split', 'use').replace('group', 'patient') for line in table('tttteeee', groups='11223344')]
    path = write_csv(*lines)
    datasets, _ = create(data_csv=path, split_column='use', group_column='patient')
    assert sizes(datasets) == {'train': 4, 'test': 4}
    assert datasets['train'].samples.groups.tolist() == ['1', '1', '2', '2']
    # without their names all is for training, and has no groups
    datasets, _ = create(data_csv=path, val_fraction=0.5)
    assert sizes(datasets) == {'train': 4, 'val': 4}
    assert datasets['train'].samples.groups is None
    with pytest.raises(ValueError, match=r"no column 'patients' \(columns found: path, label, use, patient\)"):
        create(data_csv=path, group_column='patients')
    with pytest.raises(ValueError, match="no column 'uses'"):
        create(data_csv=path, split_column='uses')
    with pytest.raises(ValueError, match="no column 'group'"):  # the default's name, but asked for
        create(data_csv=path, group_column='group')


def test_csv_names_an_image_once(write_csv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for again in (f'{tmp_path}/table/images/0.png', './images/0.png', 'images/../images/0.png'):
        path = write_csv(*table('ttee'), f'{again},b,test')
        for name in (path, 'table/data.csv'):
            with pytest.raises(ValueError, match=f"line 6: image '{re.escape(again)}' is in line 2 already"):
                create(data_csv=name)


def test_csv_split_names_and_rows_without_one(write_csv, caplog):
    lines = table('ttttee--')
    path = write_csv(*[line.replace('test', ' Testing').replace('train', 'TRAIN ') for line in lines])
    datasets, _ = create(data_csv=path)
    assert sizes(datasets) == {'train': 4, 'test': 2}
    assert 'Left out 2 rows' in caplog.text
    path = write_csv(*[line.replace('test', 'validation') for line in lines])
    assert sizes(create(data_csv=path)[0]) == {'train': 4, 'val': 2}


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
def test_csv_encodings(write_csv, encoding):
    path = write_csv(*table('ttee', labels='äß'), encoding=encoding)
    assert create(data_csv=path)[1] == ['ß', 'ä']


def test_csv_file_names_that_are_no_utf8(write_csv):
    path = Path(write_csv(*table('ttee')))
    path.write_bytes(path.read_bytes().replace(b'images/0', b'images/\xe4'))
    with pytest.raises(ValueError, match='line 2: .* is not UTF-8'):
        create(data_csv=path)
    os.rename(path.parent / 'images/0.png', os.fsencode(path.parent) + b'/images/\xe4.png')
    datasets, _ = create(data_csv=path)
    assert sizes(datasets) == {'train': 2, 'test': 2}
    assert datasets['train'][0][0] is not None


def test_csv_of_excel(write_csv, tmp_path):
    path = write_csv(*table('ttee'))
    with open(path, 'rb') as file:
        rows = file.read().replace(b'\n', b'\r\n')
    with open(path, 'wb') as file:
        file.write(b'\xef\xbb\xbf' + rows)
    assert sizes(create(data_csv=path)[0]) == {'train': 2, 'test': 2}
    with open(path, 'wb') as file:
        file.write('path,label,split\nimages/0.png,ä,train\n'.encode('latin-1'))
    with pytest.raises(ValueError, match=r"line 2: '\\udce4' is not UTF-8: save the table as 'CSV UTF-8'"):
        create(data_csv=path)
    with pytest.raises(FileNotFoundError, match=r"CSV file '.*nowhere\.csv' does not exist"):
        create(data_csv=str(tmp_path / 'nowhere.csv'))


@pytest.mark.parametrize(('edit', 'match'), [
    (lambda t: t[:1] + t[2:3] + t[2:], r"line 3: image 'images/1\.png' is in line 2 already"),
    (lambda t: [*t, 'images/0.png,a,test'], r"line 6: image 'images/0\.png' is in line 2 already"),
    (lambda t: [*t, '', 'images/0.png,a,test'], r"line 7: image 'images/0\.png' is in line 2 already"),
    (lambda t: [*t, ',a,train'], 'line 6: no path'),
    (lambda t: [*t, 'images/9.png,,train'], 'line 6: no label'),
    (lambda t: [*t, 'images/9.png, ,train'], 'line 6: no label'),
    (lambda t: [*t, 'images/9.png'], 'line 6: no label'),
    (lambda t: [*t, 'images/9.png,a,holdout'], "line 6: split 'holdout' is none of train, training, val, "),
    (lambda t: [*t, 'images/9.png,c,test'], r"Class 'c' is in '.*split test' but not in '.*split train'"),
    (lambda t: [*t, 'images/9.png,c,train'], r"Class 'c' is in '.*split train' but not in '.*split test'"),
    (lambda t: [t[0].replace('label', 'class'), *t[1:]], r"no column 'label' \(columns found: path, class, split\)"),
    (lambda t: [t[0].replace('path', 'file'), *t[1:]], "no column 'path'"),
    (lambda t: [line.replace(',', ';') for line in t], r"no column 'path' \(columns found: path;label;split\)"),
    (lambda t: [''], r"no column 'path' \(columns found: none\)"),
    (lambda t: t[:1], "no row of split 'train'"),
    (lambda t: t[:1] + t[3:], "no row of split 'train'"),
    (lambda t: t[:3], "no split 'test', nor 'val'"),
    (lambda t: [*t, 'images/missing.png,a,train'], r"images/missing\.png' \(FileNotFoundError"),
    (lambda t: [*t, 'images,a,train'], r"Cannot read image '.*/images' \(IsADirectoryError"),
    (lambda t: [*t, 'images/9.png,carcinoma, basal cell,train'], r'line 6: 4 cells, the header has 3: put text that'),
    (lambda t: [*t[:2], 'images/9.png,a', *t[2:]], r'line 3: 2 cells, the header has 3\.'),
    (lambda t: [t[0] + ',label', *(line + ',b' for line in t[1:])], "line 1: two columns are called 'label'"),
    (lambda t: [t[0] + ',note,note', *(line + ',1,2' for line in t[1:])], "line 1: two columns are called 'note'"),
    (lambda t: [*t, '"images/9.png,a,train'], 'no CSV file in UTF-8 .line 6: unexpected end of data'),
    (lambda t: [*t[:2], 'images/9.png,"a,train', *t[2:], 'images/8.png,a",train'], 'line 7: a label of 5 lines'),
    (lambda t: [*t[:2], 'images/9.png,"a,train', *t[2:], 'images/8.png,"a",train'], "line 7: ',' expected after"),
    (lambda t: [line.replace(',', ';') for line in t], "seem to be separated by ';': save it with commas"),
    (lambda t: [line.replace(',', '\t') for line in t], r"separated by '\\t': save it with commas"),
    (lambda t: [*t, 'images/9.png,nan,train'], "line 6: label 'nan' is how a missing value is written .1 such rows."),
    (lambda t: [*t, 'images/8.png,NaN,train', 'images/9.png,#N/A,test'], "line 6: label 'NaN' .*2 such rows"),
])
def test_bad_csv(write_csv, edit, match):
    path = write_csv(*edit(table('ttee')))
    with pytest.raises(ValueError, match=match):
        create(data_csv=path)


def test_csv_with_empty_cells_that_mean_nothing(write_csv):
    """The index column of pandas has no name; spreadsheets end rows with commas."""
    path = write_csv(*(f'{i},{line},,' if i else f',{line},,' for i, line in enumerate(table('ttee'))))
    assert sizes(create(data_csv=path)[0]) == {'train': 2, 'test': 2}
    path = write_csv(*(line + ',' * i for i, line in enumerate(table('ttee'))))
    assert sizes(create(data_csv=path)[0]) == {'train': 2, 'test': 2}


def test_csv_labels_and_groups_that_may_be_missing_values(write_csv, caplog):
    path = write_csv(*table('ttee', labels=['None', 'a']))
    assert create(data_csv=path)[1] == ['a', 'None']
    assert f"2 images of '{path}' have the label 'None', taken as a name" in caplog.text
    caplog.clear()
    groups = ['nan', 'nan', '', 'NA', 'NA', '5', '6', '7', 'nan', '8', '9', '9']
    path = write_csv(*table('t' * 8 + 'eeee', groups=groups))
    samples = create(data_csv=path)[0]['train'].samples
    assert samples.groups.tolist() == [
        'path images/0.png', 'path images/1.png', 'path images/2.png', 'NA', 'NA', '5', '6', '7']
    assert "3 images of" in caplog.text
    assert "the group 'nan' (the first in line 2), a missing value: each is a group of its own" in caplog.text
    assert f"2 images of '{path}' have the group 'NA', taken as a name: if it stands for a missing value" in caplog.text
    assert 'share a group' not in caplog.text


def test_names_that_differ_in_case_or_blanks_are_told(write_csv, image_folder, caplog):
    labels = ['Melanoma', 'melanoma', 'e\u0301', '\u00e9', 'x  y', 'x y', 'z']
    path = write_csv('path,label', *(f'images/{i}.png,{label}' for i, label in enumerate(labels)))
    assert len(create(data_csv=path, only='train')[1]) == 7
    assert f"3 classes of '{path}' differ from others only in case, white space or Unicode form" in caplog.text
    assert "'Melanoma' and 'melanoma'" in caplog.text
    path = write_csv(*table('tttteeee', groups=['p1', 'p2', 'p3', 'p3', 'P1', 'p4', 'p5', 'p5']))
    create(data_csv=path)
    assert "1 groups of" in caplog.text
    caplog.clear()
    for split in ('train', 'test'):
        write_images(image_folder / split, classes=['A'], number=1)
    create(image_folder)
    assert f"1 classes of '{image_folder}' differ from others only in case" in caplog.text


def test_csv_columns_that_are_nearly_called_so_are_told(write_csv, caplog):
    path = write_csv(*[line.replace('split', 'Split').replace('group', ' group') for line in table(
        'ttttttee', groups='11223344')])
    assert create(data_csv=path, only='train')[0]['train'].samples.groups is None
    assert f"Column 'Split' of '{path}' is not used, its name is not 'split'" in caplog.text
    assert "Column ' group' of" in caplog.text
    caplog.clear()
    create(data_csv=path, split_column='Split', group_column=' group')
    assert 'is not used' not in caplog.text


def test_csv_of_images_that_do_not_exist_ends_at_once(write_csv, tmp_path, monkeypatch):
    rows = [f'gone/{i}.png,{"ab"[i % 2]},train' for i in range(200)]
    path = write_csv('path,label,split', *rows)
    monkeypatch.setattr('hdkd_timm.data.samples.inspect_images', None)  # is not reached
    with pytest.raises(ValueError, match=(
            r"Cannot read image '.*table/gone/0\.png' \(FileNotFoundError\), and none of the first 100 images of"
            f" '{path}' exists: its paths are relative to '.*table', name another folder with --data-dir")):
        create(data_csv=path, val_fraction=0.5)
    assert len(create(data_csv=path, val_fraction=0.5, check_images=False)[0]['train']) == 100


def test_csv_whose_other_rows_are_elsewhere(write_csv):
    """The images of rows of another split, or of none, need not be there."""
    path = write_csv('path,label,split', *(
        f'gone/{i}.png,{"ab"[i % 2]},{"train" if i % 3 else ""}' for i in range(200)), 'images/0.png,a,test',
        'images/1.png,b,test')
    assert len(create(data_csv=path, only='test')[0]['test']) == 2
    with pytest.raises(ValueError, match=r'gone/1\.png'):
        create(data_csv=path)


def test_reading_ends_when_it_is_clear_that_it_ends_in_an_error(write_csv, monkeypatch):
    path = write_csv('path,label,split', 'images/0.png,a,train', 'images/1.png,b,train', *(
        f'gone/{i}.png,{"ab"[i % 2]},train' for i in range(3000)))
    read = []
    inspect = data.inspect_images
    monkeypatch.setattr(data, 'inspect_images', lambda paths, mode: read.extend(paths) or inspect(paths, mode))
    with pytest.raises(ValueError, match=r"gone/0\.png' .* 998 or more such in split 'train'"):
        create(data_csv=path, only='train')
    assert len(read) == 1000
    assert len(create(data_csv=path, only='train', on_bad_image='skip')[0]['train']) == 2


def test_pipes_and_devices_are_refused(write_csv, tmp_path):
    """Reading them would block, or never end."""
    os.mkfifo(tmp_path / 'table' / 'images' / 'pipe.png')
    for name, kind in (('images/pipe.png', 'named pipe'), ('/dev/zero', 'device')):
        path = write_csv(*table('ttee'), f'{name},a,train')
        with pytest.raises(ValueError, match=f"Cannot read image '.*{name}' .*is a {kind}"):
            create(data_csv=path)
        dataset = create(data_csv=path, check_images=False)[0]['train']
        with pytest.raises(ValueError, match=f"Cannot read image '.*{name}' .*is a {kind}"):
            dataset[2]


def test_bad_images_are_counted(image_folder, caplog):
    os.symlink('nowhere', image_folder / 'train' / 'a' / 'broken.png')
    truncate(image_folder / 'train' / 'b' / '3.png')
    create(image_folder, on_bad_image='skip')
    assert 'a/broken.png' in caplog.text
    assert "Left out 2 of 25 images of split 'train', which cannot be read." in caplog.text


def test_contents_are_listed(image_folder):
    for split in ('train', 'test'):
        write_tar(image_folder / f'{split}.tar', image_folder / split)
    path = image_folder / 'test' / 'b' / '2.png'
    expected = dict(bytes=str(path.stat().st_size), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    datasets, classes = create(image_folder / 'test', only='test')
    row = list_images(datasets, classes)[6]
    assert row == dict(path=str(path), label='b', split='test', **expected)
    unread = list_images(*create(image_folder / 'test', only='test', check_images=False))[6]
    assert unread == dict(row, sha256='')
    for split in ('train', 'test'):
        (image_folder / split).rename(image_folder / f'{split} folder')
    datasets, classes = create(image_folder, train_fraction=0.5)
    assert list_images(datasets, classes)[12 + 6] == dict(row, path='b/2.png')
    assert all(len(row['sha256']) == 64 for row in list_images(datasets, classes))
    # decoded images: the pixels
    (image_folder / 'test.tar').unlink()
    (image_folder / 'train.tar').unlink()
    for split in ('train', 'test'):
        (image_folder / f'{split} folder').rename(image_folder / split)
    first, again = (list_images(*create(image_folder, dataset='torch/image_folder')) for _ in range(2))
    assert first == again
    Image.new('RGB', (40, 40)).save(path)
    changed = list_images(*create(image_folder, dataset='torch/image_folder'))
    assert [i for i, (a, b) in enumerate(zip(first, changed)) if a != b] == [24 + 6]


@pytest.mark.parametrize('check_images', [True, False])
def test_images_that_changed_since_they_were_listed_are_told(image_folder, caplog, check_images):
    datasets, classes = create(image_folder)
    path = image_folder / 'images.csv'
    write_rows(list_images(datasets, classes), path)
    create(data_csv=str(path), check_images=check_images)
    assert not caplog.records
    Image.new('RGB', (40, 40), 'red').save(image_folder / 'test' / 'b' / '2.png')
    create(data_csv=str(path), check_images=check_images)
    assert (
        "1 of 12 images of split 'test' have changed since they were listed (size or SHA-256 differs), the first is"
        f" '{image_folder}/test/b/2.png'") in caplog.text


def test_csv_only(write_csv):
    path = write_csv(*table('ee--'))
    assert sizes(create(data_csv=path, only='test')[0]) == {'test': 2}
    with pytest.raises(ValueError, match="no row of split 'val'"):
        create(data_csv=path, only='val')
    # all rows without a column of splits
    path = write_csv('path,label', 'images/0.png,a', 'images/5.png,b', 'images/6.png,b')
    datasets, classes = create(data_csv=path, only='test')
    assert (sizes(datasets), classes) == ({'test': 3}, ['a', 'b'])
    assert datasets['test'].targets.tolist() == [0, 1, 1]


def test_csv_val_by_group(write_csv):
    path = write_csv(*table('t' * 12, labels='aabb', groups='112233445566'))
    for seed in range(5):
        datasets, _ = create(data_csv=path, val_fraction=1 / 3, seed=seed)
        train, val = datasets['train'].samples, datasets['val'].samples
        assert not set(train.groups) & set(val.groups)
        assert set(train.groups) | set(val.groups) == set('123456')
        assert np.bincount(val.targets).tolist() == [2, 2]
    # the images of a group follow it through the folds too
    seen = []
    for fold in range(3):
        datasets, _ = create(data_csv=path, folds=3, fold=fold)
        assert not set(datasets['train'].samples.groups) & set(datasets['test'].samples.groups)
        seen += datasets['test'].samples.filenames()
    assert len(seen) == len(set(seen)) == 12


def test_csv_images_without_a_group_are_their_own(write_csv):
    path = write_csv(*table('t' * 8 + 'eeee', groups=['1', '1', '', '', '', '', '', '', '', '', '', '']))
    datasets, _ = create(data_csv=path)
    groups = datasets['train'].samples.groups.tolist()
    assert groups[:2] == ['1', '1']
    assert len(set(groups)) == 7
    assert not set(groups) & set(datasets['test'].samples.groups)


def test_csv_blanks_around_labels_and_groups(write_csv):
    lines = table('t' * 12, labels='aabb', groups=['1', '1', '2', '2', '3', '3', '4', '4', '', '', '', ''])
    paths, rest = zip(*(line.split(',', 1) for line in lines))
    path = write_csv(lines[0], *(  # of every other row
        f"{name}, {columns.replace(',', ' , ')} " if i % 2 else f'{name},{columns}'
        for i, (name, columns) in enumerate(zip(paths[1:], rest[1:]))))
    for fold in range(4):
        datasets, classes = create(data_csv=path, folds=4, fold=fold)
        train, test = (set(datasets[split].samples.groups) for split in ('train', 'test'))
        assert classes == ['a', 'b']
        assert not train & test
        assert {group for group in train | test if len(group) == 1} == set('1234')
        assert len(train | test) == 4 + 4  # each without a group is its own


def test_list_of_images_is_a_table_of_them(write_csv, image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    groups = ['7', '7', 'x y', 'x y', '3', '3', '4', '4', '', '', '', '']
    path = write_csv(*table('t' * 8 + 'eeee', labels=['"b, c"', 'a'], groups=groups))
    for settings in (dict(data_csv=path, val_fraction=0.5), dict(data_dir=image_folder.name, folds=3, fold=1)):
        datasets, classes = create(**settings)
        write_rows(list_images(datasets, classes), image_folder / 'images.csv')
        again, names = create(data_csv=str(image_folder / 'images.csv'))
        assert names == classes
        assert sizes(again) == sizes(datasets)
        for split, dataset in datasets.items():
            ours, theirs = dataset.samples, again[split].samples
            assert theirs.filenames() == [str(tmp_path / name) for name in ours.filenames()]
            assert theirs.targets.tolist() == ours.targets.tolist()
            assert (theirs.groups is None) == (ours.groups is None) == ('data_dir' in settings)
            assert ours.groups is None or theirs.groups.tolist() == ours.groups.tolist()


def test_leaks_are_told(write_csv, caplog):
    path = write_csv(*table('ttttveee', labels='aabb', groups='11223324'))
    with pytest.raises(ValueError, match="but not in '.*split val'"):
        create(data_csv=path)
    path = write_csv(*table('ttttvvee', labels='ab', groups='11223324'))
    create(data_csv=path)
    assert [record.message for record in caplog.records if 'group' in record.message] == [
        '1 of 2 test images share a group with training images: their results flatter.']
    caplog.clear()
    create(data_csv=write_csv(*table('ttttvvee', groups='11223344')))
    assert 'group' not in caplog.text


def test_tar_files(image_folder):
    expected = [(np.asarray(image), target) for image, target in create(image_folder)[0]['test']]
    for split in ('train', 'test'):
        write_tar(image_folder / f'{split}.tar', image_folder / split)
        (image_folder / split).rename(image_folder / f'{split} folder')
    datasets, classes = create(image_folder)
    assert (sizes(datasets), classes) == ({'train': 24, 'test': 12}, ['a', 'b', 'c'])
    assert datasets['test'].samples.filenames() == [f'{c}/{i}.png' for c in 'abc' for i in range(4)]
    for (image, target), (pixels, expected_target) in zip(datasets['test'], expected):
        assert (np.asarray(image) == pixels).all()
        assert target == expected_target
    assert sizes(create(image_folder, only='test')[0]) == {'test': 12}
    datasets, _ = create(image_folder, train_fraction=0.5, val_fraction=0.25, in_chans=1)
    assert sizes(datasets) == {'train': 9, 'test': 12, 'val': 3}
    assert datasets['val'][0][0].mode == 'L'


def test_tar_files_beside_folders(image_folder):
    write_tar(image_folder / 'VAL.tar', image_folder / 'test', prefix='./val/')
    write_images(image_folder / 'more', classes=['a', 'b', 'c', 'd'], number=1, suffix='.webp')
    datasets, _ = create(image_folder)
    assert sizes(datasets) == {'train': 24, 'val': 12, 'test': 12}
    write_tar(image_folder / 'VAL.tar', image_folder / 'more')
    with pytest.raises(ValueError, match=r"Class 'd' is in '.*VAL\.tar' but not in '.*train'"):
        create(image_folder)


def test_bad_tar_files(image_folder):
    place = image_folder / 'val.tar'
    write_tar(place, image_folder / 'test')
    whole = place.read_bytes()
    for content in (b'no tar file', b'', whole[:len(whole) // 2]):
        place.write_bytes(content)
        with pytest.raises(ValueError, match=r"val\.tar' is no tar file of images in class folders"):
            create(image_folder)
    with tarfile.open(place, 'w'):
        pass
    with pytest.raises(ValueError, match=r"val\.tar' is no tar file of images in class folders"):
        create(image_folder)
    (image_folder / 'test' / '0.png').write_bytes((image_folder / 'test' / 'a' / '0.png').read_bytes())
    write_tar(place, image_folder / 'test')
    (image_folder / 'test' / '0.png').unlink()
    with pytest.raises(ValueError, match=r"val\.tar' holds images outside of class folders, or a level too deep"):
        create(image_folder)


def test_images_of_a_tar_file_are_named(image_folder):
    truncate(image_folder / 'test' / 'b' / '2.png')
    write_tar(image_folder / 'val.tar', image_folder / 'test')
    with pytest.raises(ValueError, match=r"Cannot read image 'b/2\.png' .*--on-bad-image skip"):
        create(image_folder, only='val')
    assert len(create(image_folder, only='val', on_bad_image='skip')[0]['val']) == 11
    dataset = create(image_folder, only='val', check_images=False)[0]['val']
    with pytest.raises(ValueError, match=r"Cannot read image 'b/2\.png' \(OSError"):
        dataset[6]


def test_torch_image_folder(image_folder):
    datasets, classes = create(image_folder, dataset='torch/image_folder')
    assert (sizes(datasets), classes) == ({'train': 24, 'test': 12}, ['a', 'b', 'c'])
    assert datasets['test'].targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    image, target = datasets['test'][4]
    assert (image.mode, image.size, target) == ('RGB', (40, 40), 1)
    assert abs(np.asarray(image).mean() - 120) < 5
    assert create(image_folder, dataset='torch/image_folder', in_chans=1)[0]['test'][0][0].mode == 'L'
    datasets, _ = create(image_folder, dataset='Torch/image_folder', train_fraction=0.5, val_fraction=0.25)
    assert sizes(datasets) == {'train': 9, 'test': 12, 'val': 3}
    assert sizes(create(image_folder, dataset='torch/image_folder', only='test')[0]) == {'test': 12}
    # timm takes the whole folder where a split is missing, of the classes 'test' and 'train'
    with pytest.raises(ValueError, match="Class 'a' is in '.*split train' but not in '.*split nothing'"):
        create(image_folder, dataset='torch/image_folder', test_split='nothing')


def test_torch_mnist(tmp_path):
    raw = tmp_path / 'MNIST' / 'raw'
    raw.mkdir(parents=True)
    for name, number in (('train', 20), ('t10k', 10)):
        images = np.arange(number, dtype=np.uint8).repeat(28 * 28)
        (raw / f'{name}-images-idx3-ubyte').write_bytes(
            np.array([0x803, number, 28, 28], '>i4').tobytes() + images.tobytes())
        (raw / f'{name}-labels-idx1-ubyte').write_bytes(
            np.array([0x801, number], '>i4').tobytes() + (np.arange(number, dtype=np.uint8) % 10).tobytes())
    datasets, classes = create(tmp_path, dataset='torch/mnist')
    assert sizes(datasets) == {'train': 20, 'test': 10}
    assert classes[:2] == ['0 - zero', '1 - one']
    image, target = datasets['train'][13]
    assert (image.mode, image.getpixel((0, 0)), target) == ('RGB', (13, 13, 13), 3)
    assert datasets['train'].samples.filenames()[13] == '13'


class LabelledBy(list):
    """Images of a torchvision dataset that tells its labels in `targets`."""
    def __init__(self, targets=None, image=Image.new('L', (8, 8))):
        super().__init__((image, i % 2) for i in range(4))
        if targets is not None:
            self.targets = targets


@pytest.mark.parametrize('targets', [None, np.zeros((4, 8), int)])  # as those of INaturalist and QMNIST
def test_torch_dataset_without_plain_labels(targets, monkeypatch):
    monkeypatch.setattr('hdkd_timm.data.samples.create_dataset', lambda *args, **kwargs: LabelledBy(targets))
    with pytest.raises(ValueError, match="'torch/odd' tells no class index of each image: list its images"):
        create('data', dataset='torch/odd')
    with pytest.raises(ValueError, match="--class-map is not for 'torch/odd'"):
        create('data', dataset='torch/odd', class_map='classes.txt')


@pytest.mark.parametrize(('in_chans', 'expected'), [(1, 117), (3, (117,) * 3)])
def test_decoded_images_are_converted_as_files_are(in_chans, expected, monkeypatch):
    dataset = LabelledBy(np.arange(4) % 2, Image.fromarray(np.full((8, 8), 30000, np.uint16)))
    monkeypatch.setattr('hdkd_timm.data.samples.create_dataset', lambda *args, **kwargs: dataset)
    image, target = create(dataset='torch/odd', in_chans=in_chans, only='test')[0]['test'][1]
    assert (image.getpixel((0, 0)), target) == (expected, 1)


@pytest.fixture
def hub_folder(tmp_path):
    """A function that makes a folder of parquet files, a split each, the labels as given."""
    import datasets

    def make(label, key='label', names=None, **splits):
        features = datasets.Features({'image': datasets.Image(), key: label})
        (tmp_path / 'hub').mkdir(exist_ok=True)
        for split, labels in splits.items():
            images = []
            for i in range(len(labels)):
                buffer = io.BytesIO()
                Image.new('L', (8, 8), 10 * i).save(buffer, 'png')
                images.append({'bytes': buffer.getvalue(), 'path': names and names[i]})
            table = datasets.Dataset.from_dict({'image': images, key: labels}, features=features)
            table.to_parquet(str(tmp_path / 'hub' / f'{split}.parquet'))
        return dict(dataset=f"hfds/{tmp_path / 'hub'}", data_dir=str(tmp_path / 'cache'))

    return make


def test_hub_dataset_of_an_image_folder(image_folder, tmp_path):

    settings = dict(dataset=f'hfds/{image_folder}', data_dir=str(tmp_path / 'cache'))
    datasets, classes = create(**settings)
    assert (sizes(datasets), classes) == ({'train': 24, 'test': 12}, ['a', 'b', 'c'])
    assert datasets['test'].targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for image, target in datasets['test']:
        assert abs(np.asarray(image).mean() - (40 + 80 * target)) < 8
    assert datasets['test'].samples.filenames()[0].endswith('test/a/0.png')
    datasets, _ = create(**settings, train_fraction=0.5, val_fraction=0.25, in_chans=1)
    assert sizes(datasets) == {'train': 9, 'test': 12, 'val': 3}
    assert datasets['val'][0][0].mode == 'L'
    assert sizes(create(**settings, only='test')[0]) == {'test': 12}
    assert sizes(create(**settings, val_split='test', test_split='')[0]) == {'train': 24, 'val': 12}
    with pytest.raises(ValueError, match="Cannot open split 'holdout' of dataset .*see --train-split"):
        create(**settings, test_split='holdout')


def test_hub_dataset_with_class_labels(hub_folder, tmp_path):
    import datasets
    settings = hub_folder(
        datasets.ClassLabel(names=['mel', 'nev', 'bcc']), train=[0, 1, 2, 2], test=[2, 1, 0],
        names=['w.png', 'x.png', 'y.png', 'z.png'])
    splits, classes = create(**settings)
    assert classes == ['mel', 'nev', 'bcc']
    assert splits['train'].targets.tolist() == [0, 1, 2, 2]
    assert [(image.getpixel((0, 0))[0], target) for image, target in splits['test']] == [(0, 2), (10, 1), (20, 0)]
    assert splits['test'].samples.filenames() == ['w.png', 'x.png', 'y.png']
    # another order of the classes
    (tmp_path / 'classes.txt').write_text('bcc\nmel\nnev\n')
    splits, classes = create(**settings, class_map=str(tmp_path / 'classes.txt'))
    assert classes == ['bcc', 'mel', 'nev']
    assert splits['train'].targets.tolist() == [1, 2, 0, 0]
    assert [target for _, target in splits['test']] == [0, 2, 1]
    (tmp_path / 'classes.txt').write_text('bcc\nmel\n')
    with pytest.raises(ValueError, match=r"Class 'nev' of split 'train' .* is not in '.*classes\.txt'"):
        create(**settings, class_map=str(tmp_path / 'classes.txt'))
    # labels that are kept secret
    settings = hub_folder(datasets.ClassLabel(names=['mel', 'nev', 'bcc']), train=[0, 1, 2, 2], test=[-1, -1])
    with pytest.raises(ValueError, match=r"Image 0 of split 'test' .* has no label \(-1\)"):
        create(**settings)
    assert sizes(create(**settings, test_split='', val_split='train')[0]) == {'train': 4, 'val': 4}


@pytest.mark.parametrize('key', ['label', 'diagnosis'])
def test_hub_dataset_with_labels_of_text(hub_folder, key, tmp_path):
    import datasets
    settings = hub_folder(datasets.Value('string'), key, train=['nev', 'mel', 'mel'], test=['mel', 'nev'])
    if key != 'label':
        with pytest.raises(ValueError, match=r"No field 'label' of split 'train' .*\(found: image, diagnosis\)"):
            create(**settings)
        settings['target_key'] = key
    splits, classes = create(**settings)
    assert classes == ['mel', 'nev']
    assert splits['train'].targets.tolist() == [1, 0, 0]
    assert [(image.getpixel((0, 0))[0], target) for image, target in splits['test']] == [(0, 0), (10, 1)]
    assert splits['test'].samples.filenames() == ['0', '1']  # have no names of their own
    (tmp_path / 'classes.txt').write_text('nev\nmel\n')
    splits, classes = create(**settings, class_map=str(tmp_path / 'classes.txt'), only='test')
    assert (classes, splits['test'].targets.tolist()) == (['nev', 'mel'], [1, 0])
    hub_folder(datasets.Value('string'), key, train=['nev', 'mel', 'mel'], test=['mel', 'bcc'])
    with pytest.raises(ValueError, match="Class 'bcc' is in '.*split test' but not in '.*split train'"):
        create(**settings)
    hub_folder(datasets.Value('string'), key, train=['nev', 'mel', None], test=['mel', 'nev'])
    with pytest.raises(ValueError, match=r"Image 2 of split 'train' .* has no label \(None\)"):
        create(**settings)


def test_hub_dataset_with_mere_numbers(hub_folder):
    import datasets
    settings = hub_folder(datasets.Value('int64'), train=[0, 1, 2], test=[2, 0])
    splits, classes = create(**settings)
    assert classes == ['0', '1', '2']
    assert splits['test'].targets.tolist() == [2, 0]


def test_bad_dataset_names(image_folder):
    with pytest.raises(ValueError, match="Unknown dataset 'cifar10': expected hfds/NAME, torch/NAME, wds/NAME"):
        create(image_folder, dataset='cifar10')
    with pytest.raises(ValueError, match="Cannot open split 'train' of dataset 'torch/nothing'"):
        create(image_folder, dataset='torch/nothing')
    for only, settings in (('val', {}), (None, dict(train_split=''))):
        with pytest.raises(ValueError, match=f"No split '{only or 'train'}' of dataset 'torch/image_folder' is named"):
            create(image_folder, dataset='torch/image_folder', only=only, **settings)


@pytest.fixture
def shards(tmp_path):
    """Settings of two training shards and a test shard: image i has grey 10 i and class i % 2."""
    import webdataset
    info = {'splits': {}}
    for split, lengths in (('train', (5, 3)), ('test', (4,))):
        names = [f'{split}-{i:03}.tar' for i in range(len(lengths))]
        info['splits'][split] = dict(
            name=split, num_samples=sum(lengths), filenames=names, shard_lengths=lengths)
        i = 0
        for name, length in zip(names, lengths):
            with webdataset.TarWriter(str(tmp_path / name)) as writer:
                for _ in range(length):
                    writer.write({'__key__': f'{i:03}', 'png': np.full((8, 8, 3), 10 * i, np.uint8), 'cls': i % 2})
                    i += 1
    (tmp_path / 'info.json').write_text(json.dumps(info))
    return dict(dataset='wds/tiny', data_dir=str(tmp_path), num_classes=2)


def test_shards(shards, tmp_path):
    datasets, classes = create(**shards)
    assert (sizes(datasets), classes) == ({'train': 8, 'test': 4}, ['0', '1'])
    assert [(image.getpixel((0, 0)), target) for image, target in datasets['test']] == [
        ((10 * i,) * 3, i % 2) for i in range(4)]
    seen = [(image.getpixel((0, 0))[0], target) for image, target in datasets['train']]
    assert sorted(seen) == [(10 * i, i % 2) for i in range(8)]
    # splits as names of shards, and class names
    (tmp_path / 'classes.txt').write_text('mel\nnev\n')
    shards.update(num_classes=None, class_map=str(tmp_path / 'classes.txt'))
    datasets, classes = create(
        **shards, train_split='train-{000..001}.tar|8', val_split='train-001.tar|3', test_split='test-000.tar|4')
    assert (sizes(datasets), classes) == ({'train': 8, 'val': 3, 'test': 4}, ['mel', 'nev'])
    assert [target for _, target in datasets['val']] == [1, 0, 1]


@pytest.mark.parametrize('in_chans', [1, 3])
def test_images_of_shards_are_read_as_files_are(shards, tmp_path, in_chans):
    import webdataset
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), 30000, np.uint16)).save(buffer, 'png')
    with webdataset.TarWriter(str(tmp_path / 'test-000.tar')) as writer:
        for i in range(4):
            writer.write({'__key__': str(i), 'png': buffer.getvalue(), 'cls': i % 2})
    dataset = create(**shards, in_chans=in_chans, only='test')[0]['test']
    (images, targets), = SplitLoader(dataset, dict(DATA_CONFIG, input_size=(in_chans, 8, 8)), 4, num_workers=0)
    assert targets.tolist() == [0, 1, 0, 1]
    assert torch.allclose(images, torch.full((4, in_chans, 8, 8), (117 / 255 - 0.5) / 0.25))


def test_shards_of_a_wanted_split(shards, tmp_path):
    for path in tmp_path.glob('train*'):
        path.unlink()
    (tmp_path / 'info.json').unlink()
    datasets, _ = create(**shards, test_split='test-000.tar|4', only='test')
    assert [target for _, target in datasets['test']] == [0, 1, 0, 1]
    with pytest.raises(ValueError, match="No split 'val' of dataset 'wds/tiny' is named"):
        create(**shards, only='val')


@pytest.mark.parametrize(('settings', 'match'), [
    (dict(num_classes=None), "'wds/tiny' tells no classes: give --num-classes or --class-map"),
    (dict(test_split='nothing'), "Cannot open split 'nothing' of dataset 'wds/tiny'"),
    (dict(test_split=''), "No split 'test' of dataset 'wds/tiny' is named"),
    (dict(train_split=''), "No split 'train' of dataset 'wds/tiny' is named"),
    (dict(train_fraction=0.5), '--train-fraction needs a dataset with random access'),
    (dict(val_fraction=0.5), '--val-fraction needs a dataset with random access'),
    (dict(folds=2), '--folds needs a dataset with random access'),
])
def test_bad_shards(shards, settings, match):
    with pytest.raises(ValueError, match=match):
        create(**dict(shards, **settings))


@pytest.mark.parametrize(('setting', 'value'), [
    ('cache', 'ram'), ('class_weights', 'balanced'), ('sampler', 'balanced'), ('smote', 'counts.json')])
def test_what_shards_do_not_allow(shards, tmp_path, setting, value):
    name = setting.replace('_', '-')
    with pytest.raises(ValueError, match=f"--{name} needs a dataset with random access, 'wds/tiny' has none"):
        train(TrainConfig(**shards, output=str(tmp_path / 'runs'), **{setting: value}))
    assert not (tmp_path / 'runs').exists()


def test_shards_with_another_number_of_classes(shards, tmp_path):
    (tmp_path / 'classes.txt').write_text('mel\nnev\nbcc\n')
    with pytest.raises(ValueError, match='--num-classes 2, but the data has 3: mel, nev, bcc'):
        create(**shards, class_map=str(tmp_path / 'classes.txt'))
