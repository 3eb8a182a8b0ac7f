"""From a source to datasets: which splits, classes and images, and what is refused."""

import os

import numpy as np
import pytest
from data_helpers import DATA, create, sizes, table, truncate
from helpers import write_images
from PIL import Image

from hdkd_timm.data.config import DataConfig
from hdkd_timm.data.datasets import create_datasets
from hdkd_timm.data.loader import SplitLoader
from hdkd_timm.data.sources.folders import find_splits


def test_splits_and_classes(image_folder):
    write_images(image_folder / 'Validation', number=1)
    assert {split: path.name for split, path in find_splits(image_folder).items()} == {
        'train': 'train',
        'val': 'Validation',
        'test': 'test',
    }
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


def test_bad_arguments(image_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        create(tmp_path / 'nowhere')
    with pytest.raises(ValueError, match='No images given: specify --data-dir, --data-csv or --dataset'):
        create()
    with pytest.raises(ValueError, match='in_chans 4'):
        create(image_folder, in_chans=4)
    with pytest.raises(ValueError, match="'ignore'"):
        create(image_folder, on_bad_image='ignore')
    with pytest.raises(ValueError, match='--num-classes is 4, but the data has 3 classes: a, b, c'):
        create(image_folder, num_classes=4)
    assert create(image_folder, num_classes=3)[1] == ['a', 'b', 'c']
    with pytest.raises(ValueError, match='not both'):
        create(image_folder, dataset='torch/image_folder', data_csv='x.csv')
    write_images(tmp_path / 'one' / 'train', classes=['a'])
    write_images(tmp_path / 'one' / 'test', classes=['a'])
    with pytest.raises(ValueError, match="only one class, 'a': at least two classes are required"):
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


def test_unreadable_images_are_named_or_skipped(image_folder, caplog):
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


def test_unreadable_images_are_counted(image_folder, caplog):
    os.symlink('nowhere', image_folder / 'train' / 'a' / 'broken.png')
    truncate(image_folder / 'train' / 'b' / '3.png')
    create(image_folder, on_bad_image='skip')
    assert 'a/broken.png' in caplog.text
    assert "Skipped 2 of 25 images of split 'train', which cannot be read." in caplog.text


def test_unchecked_images_are_named_when_they_are_read(image_folder):
    truncate(image_folder / 'train' / 'b' / '3.png')
    datasets, _ = create(image_folder, check_images=False)
    dataset = datasets['train']
    assert len(dataset) == 24
    bad = next(i for i, name in enumerate(dataset.samples.filenames()) if name.endswith('b/3.png'))
    with pytest.raises(ValueError, match=r"Cannot read image '.*train/b/3\.png' \(OSError: "):
        dataset[bad]
    assert dataset[bad - 1][1] == dataset[bad + 1][1] == 1
    loader = SplitLoader(dataset, DATA, 4, num_workers=0)
    with pytest.raises(ValueError, match=r'b/3\.png'):
        list(loader)


def test_sixteen_bit_images_are_scaled(image_folder):
    Image.fromarray(np.full((40, 40), 30000, np.uint16)).save(image_folder / 'train' / 'a' / 'deep.png')
    dataset = create(image_folder)[0]['train']
    deep = next(i for i, name in enumerate(dataset.samples.filenames()) if name.endswith('deep.png'))
    image, target = dataset[deep]
    assert (image.getpixel((5, 5)), target) == ((117, 117, 117), 0)  # 30000 / 257


def test_images_that_do_not_convert_are_found_too(image_folder):
    Image.fromarray(np.full((40, 40), 30000, np.float32)).save(image_folder / 'train' / 'a' / 'float.tif')
    with pytest.raises(ValueError, match=r"float\.tif' \(ValueError: pixel values of mode 'F' from 30000 to 30000"):
        create(image_folder)
    assert len(create(image_folder, on_bad_image='skip')[0]['train']) == 24


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


def test_fold_without_folds_is_reported(image_folder, caplog):
    """Runs of earlier versions may have it in their config.yaml, and still resume."""
    datasets, _ = create_datasets(DataConfig(data_dir=str(image_folder), fold=1))
    assert {split: len(dataset) for split, dataset in datasets.items()} == {'train': 24, 'test': 12}
    assert 'fold 1 has no effect without folds' in caplog.text


def test_splits_of_their_own_seed(image_folder):
    def names(**settings):
        datasets, _ = create_datasets(
            DataConfig(data_dir=str(image_folder), train_fraction=0.75, val_fraction=0.25, **settings)
        )
        return [sorted(datasets[split].samples.filenames()) for split in ('train', 'val')]

    assert names(seed=1, split_seed=5) == names(seed=2, split_seed=5) == names(seed=5)
    assert names(seed=1) != names(seed=5)
