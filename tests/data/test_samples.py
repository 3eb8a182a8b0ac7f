"""The list of the images of a run, and what changed since it was written."""

import hashlib

import pytest
from data_helpers import create, sizes, table, tar_folder
from PIL import Image

from hdkd_timm.data.samples import list_images
from hdkd_timm.utils.csv_files import write_rows


def test_contents_are_listed(image_folder):
    for split in ('train', 'test'):
        tar_folder(image_folder / f'{split}.tar', image_folder / split)
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
def test_images_that_changed_since_they_were_listed_are_reported(image_folder, caplog, check_images):
    datasets, classes = create(image_folder)
    path = image_folder / 'images.csv'
    write_rows(list_images(datasets, classes), path)
    create(data_csv=str(path), check_images=check_images)
    assert not caplog.records
    Image.new('RGB', (40, 40), 'red').save(image_folder / 'test' / 'b' / '2.png')
    create(data_csv=str(path), check_images=check_images)
    assert (
        "1 of 12 images of split 'test' have changed since they were listed (size or SHA-256 differs), the first is"
        f" '{image_folder}/test/b/2.png'"
    ) in caplog.text


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
