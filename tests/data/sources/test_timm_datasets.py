"""Datasets of torchvision, Hugging Face and webdataset, opened by timm."""

import io
import json

import numpy as np
import pytest
import torch
from data_helpers import DATA, create, sizes
from PIL import Image

from hdkd_timm import TrainConfig, train
from hdkd_timm.data.loader import SplitLoader
from hdkd_timm.data.sources import timm_datasets


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
            np.array([0x803, number, 28, 28], '>i4').tobytes() + images.tobytes()
        )
        (raw / f'{name}-labels-idx1-ubyte').write_bytes(
            np.array([0x801, number], '>i4').tobytes() + (np.arange(number, dtype=np.uint8) % 10).tobytes()
        )
    datasets, classes = create(tmp_path, dataset='torch/mnist')
    assert sizes(datasets) == {'train': 20, 'test': 10}
    assert classes[:2] == ['0 - zero', '1 - one']
    image, target = datasets['train'][13]
    assert (image.mode, image.getpixel((0, 0)), target) == ('RGB', (13, 13, 13), 3)
    assert datasets['train'].samples.filenames()[13] == '13'


class LabelledBy(list):
    """Images of a torchvision dataset with labels in `targets`."""

    def __init__(self, targets=None, image=Image.new('L', (8, 8))):
        super().__init__((image, i % 2) for i in range(4))
        if targets is not None:
            self.targets = targets


@pytest.mark.parametrize('targets', [None, np.zeros((4, 8), int)])  # as those of INaturalist and QMNIST
def test_torch_dataset_without_plain_labels(targets, monkeypatch):
    monkeypatch.setattr(timm_datasets, 'create_dataset', lambda *args, **kwargs: LabelledBy(targets))
    with pytest.raises(ValueError, match="'torch/odd' has no single class index per image: list its images"):
        create('data', dataset='torch/odd')
    with pytest.raises(ValueError, match="--class-map is not for 'torch/odd'"):
        create('data', dataset='torch/odd', class_map='classes.txt')


@pytest.mark.parametrize(('in_chans', 'expected'), [(1, 117), (3, (117,) * 3)])
def test_decoded_images_are_converted_as_files_are(in_chans, expected, monkeypatch):
    dataset = LabelledBy(np.arange(4) % 2, Image.fromarray(np.full((8, 8), 30000, np.uint16)))
    monkeypatch.setattr(timm_datasets, 'create_dataset', lambda *args, **kwargs: dataset)
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
        return dict(dataset=f'hfds/{tmp_path / "hub"}', data_dir=str(tmp_path / 'cache'))

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


def test_cache_of_a_hub_dataset_is_not_among_the_images(image_folder, tmp_path, monkeypatch, caplog):
    import datasets

    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')
    caplog.set_level('INFO')
    before = sorted(image_folder.rglob('*'))
    create(image_folder, dataset=f'hfds/{image_folder}')
    assert sorted(image_folder.rglob('*')) == before
    assert any((tmp_path / 'cache').iterdir())
    assert f"--data-dir '{image_folder}' holds images: the cache of hfds" in caplog.text


def test_cause_of_an_error_of_a_hub_dataset(tmp_path):
    (tmp_path / 'hub').mkdir()
    (tmp_path / 'hub' / 'train.json').write_text('{"image": ')
    with pytest.raises(ValueError, match=r"Cannot open split 'train' .*DatasetGenerationError: .*, caused by \w+: "):
        create(tmp_path / 'cache', dataset=f'hfds/{tmp_path / "hub"}')


def test_hub_dataset_with_class_labels(hub_folder, tmp_path):
    import datasets

    settings = hub_folder(
        datasets.ClassLabel(names=['mel', 'nev', 'bcc']),
        train=[0, 1, 2, 2],
        test=[2, 1, 0],
        names=['w.png', 'x.png', 'y.png', 'z.png'],
    )
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


def test_hub_dataset_with_plain_numbers(hub_folder):
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
        with pytest.raises(ValueError, match=f"No split '{only or 'train'}' of dataset '.*' is specified"):
            create(image_folder, dataset='torch/image_folder', only=only, **settings)


@pytest.fixture
def shards(tmp_path):
    """Settings of two training shards and a test shard: image i has grey 10 i and class i % 2."""
    import webdataset

    info = {'splits': {}}
    for split, lengths in (('train', (5, 3)), ('test', (4,))):
        names = [f'{split}-{i:03}.tar' for i in range(len(lengths))]
        info['splits'][split] = dict(name=split, num_samples=sum(lengths), filenames=names, shard_lengths=lengths)
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
        ((10 * i,) * 3, i % 2) for i in range(4)
    ]
    seen = [(image.getpixel((0, 0))[0], target) for image, target in datasets['train']]
    assert sorted(seen) == [(10 * i, i % 2) for i in range(8)]
    # splits as names of shards, and class names
    (tmp_path / 'classes.txt').write_text('mel\nnev\n')
    shards.update(num_classes=None, class_map=str(tmp_path / 'classes.txt'))
    datasets, classes = create(
        **shards, train_split='train-{000..001}.tar|8', val_split='train-001.tar|3', test_split='test-000.tar|4'
    )
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
    ((images, targets),) = SplitLoader(
        dataset, dict(DATA, input_size=(in_chans, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3), 4, num_workers=0
    )
    assert targets.tolist() == [0, 1, 0, 1]
    assert torch.allclose(images, torch.full((4, in_chans, 8, 8), (117 / 255 - 0.5) / 0.25))


def test_shards_of_a_wanted_split(shards, tmp_path):
    for path in tmp_path.glob('train*'):
        path.unlink()
    (tmp_path / 'info.json').unlink()
    datasets, _ = create(**shards, test_split='test-000.tar|4', only='test')
    assert [target for _, target in datasets['test']] == [0, 1, 0, 1]
    with pytest.raises(ValueError, match="No split 'val' of dataset 'wds/tiny' is specified"):
        create(**shards, only='val')


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        (dict(num_classes=None), "'wds/tiny' does not define its classes: give --num-classes or --class-map"),
        (dict(test_split='nothing'), "Cannot open split 'nothing' of dataset 'wds/tiny'"),
        (dict(test_split=''), "No split 'test' of dataset 'wds/tiny' is specified"),
        (dict(train_split=''), "No split 'train' of dataset 'wds/tiny' is specified"),
        (dict(train_fraction=0.5), '--train-fraction needs a dataset with random access'),
        (dict(val_fraction=0.5), '--val-fraction needs a dataset with random access'),
        (dict(folds=2), '--folds needs a dataset with random access'),
    ],
)
def test_bad_shards(shards, settings, match):
    with pytest.raises(ValueError, match=match):
        create(**dict(shards, **settings))


@pytest.mark.parametrize(
    ('setting', 'value'),
    [('cache', 'ram'), ('class_weights', 'balanced'), ('sampler', 'balanced'), ('smote', 'counts.json')],
)
def test_settings_that_shards_do_not_support(shards, tmp_path, setting, value):
    name = setting.replace('_', '-')
    with pytest.raises(
        ValueError, match=f"--{name} needs a dataset with random access, which 'wds/tiny' does not have"
    ):
        train(TrainConfig(**shards, output=str(tmp_path / 'runs'), **{setting: value}))
    assert not (tmp_path / 'runs').exists()


def test_shards_with_another_number_of_classes(shards, tmp_path):
    (tmp_path / 'classes.txt').write_text('mel\nnev\nbcc\n')
    with pytest.raises(ValueError, match='--num-classes is 2, but the data has 3 classes: mel, nev, bcc'):
        create(**shards, class_map=str(tmp_path / 'classes.txt'))
