"""Weights of unequal classes by hand, and SMOTE on small images."""

import json
import re
import sys

import numpy as np
import pytest
from helpers import write_images
from PIL import Image

from hdkd_timm.data import imbalance
from hdkd_timm.data.config import DataConfig
from hdkd_timm.data.datasets import create_datasets
from hdkd_timm.data.imbalance import class_weights, count_classes, read_class_file, sample_weights, smote
from hdkd_timm.data.samples import SampleDataset

TARGETS = np.array([0] * 6 + [1] * 3 + [2])


def write(tmp_path, content):
    path = tmp_path / 'numbers.json'
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_class_file_is_read_in_the_order_of_the_classes(tmp_path):
    path = write(tmp_path, {'b': 2, 'c': 0.5, 'a': 1e3})
    assert read_class_file(path, ['a', 'b', 'c'], 'weights') == [1000, 2, 0.5]


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{"a": 1', "' is not a JSON file ("),
        ([1, 2], '\' must contain weights by class name, {"a": number, ...}.'),
        ('5', "' must contain weights by class name"),
        ({'a': 1}, "': class 'b' is missing (the data has a, b)."),
        ({'a': 1, 'b': 1, 'x': 1}, "': class 'x' is not in the data (the data has a, b)."),
        ({'a': 1, 'b': 0}, "': weights of class 'b' must be a number above 0, got 0."),
        ({'a': -1.5, 'b': 1}, "': weights of class 'a' must be a number above 0, got -1.5."),
        ({'a': '1', 'b': 1}, "': weights of class 'a' must be a number above 0, got '1'."),
        ({'a': True, 'b': 1}, "': weights of class 'a' must be a number above 0, got True."),
        ({'a': None, 'b': 1}, "': weights of class 'a' must be a number above 0, got None."),
        ('{"a": NaN, "b": 1}', "': NaN is not a finite number."),
        ('{"a": Infinity, "b": 1}', "': Infinity is not a finite number."),
    ],
)
def test_bad_class_file(content, message, tmp_path):
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=re.escape(f"'{path}{message}")):
        read_class_file(path, ['a', 'b'], 'weights')


def test_no_class_file(tmp_path):
    for path in (tmp_path / 'nowhere.json', tmp_path):
        with pytest.raises(FileNotFoundError, match=f"File of weights '{path}' does not exist or is not a"):
            read_class_file(str(path), ['a'], 'weights')


def test_class_weights(tmp_path):
    classes = ['a', 'b', 'c']
    assert class_weights('balanced', TARGETS, classes) == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    # 1 / (1 + beta + ... + beta^(n - 1)), scaled to a mean of 1
    inverse = np.array([1 / sum(0.999**i for i in range(n)) for n in (6, 3, 1)])
    assert class_weights('effective', TARGETS, classes) == pytest.approx(inverse / inverse.mean())
    assert class_weights(write(tmp_path, {'c': 3, 'b': 2, 'a': 0.1}), TARGETS, classes).tolist() == [0.1, 2, 3]
    with pytest.raises(FileNotFoundError, match='nowhere'):
        class_weights('nowhere', TARGETS, classes)


@pytest.mark.parametrize('kind', ['balanced', 'effective'])
def test_class_without_images_has_no_weight(kind):
    with pytest.raises(ValueError, match="Class 'd' has no training images"):
        class_weights(kind, TARGETS, ['a', 'b', 'c', 'd'])


def test_sample_weights():
    assert sample_weights(None, TARGETS) is None
    weights = sample_weights('balanced', TARGETS)
    assert weights == pytest.approx([1 / 6] * 6 + [1 / 3] * 3 + [1])
    assert sample_weights('balanced', np.array([0, 2, 2])) == pytest.approx([1, 0.5, 0.5])  # class 1 is absent


def test_count_classes():
    assert count_classes(TARGETS, ['a', 'b', 'c', 'd']) == {'a': 6, 'b': 3, 'c': 1, 'd': 0}


@pytest.fixture(params=[3, 1])
def dataset(request, tmp_path):
    """8 images of class a, 7 of b, in colour or in grey."""
    write_images(tmp_path / 'data' / 'train', ('a',), number=8, size=12)
    write_images(tmp_path / 'data' / 'train', ('b',), number=7, size=12, seed=1)
    write_images(tmp_path / 'data' / 'test', ('a', 'b'), number=1, size=12)
    datasets, _ = create_datasets(DataConfig(data_dir=str(tmp_path / 'data'), in_chans=request.param))[:2]
    return datasets['train']


@pytest.fixture
def few(dataset):
    """5 images of class a, all of b."""
    samples = dataset.samples.take(np.r_[np.where(dataset.targets == 0)[0][:5], np.where(dataset.targets == 1)[0]])
    return SampleDataset(samples, dataset.img_mode)


def make(dataset, tmp_path, counts, img_size=(10, 6), **kwargs):
    return smote(dataset, write(tmp_path, counts), ['a', 'b'], img_size, **kwargs)


def test_smote(dataset, tmp_path):
    larger = make(dataset, tmp_path, {'a': 8, 'b': 20})
    assert count_classes(larger.targets, ['a', 'b']) == {'a': 8, 'b': 20}
    assert len(larger) == 28
    for i in range(len(dataset)):  # the real images are unchanged
        image, target = larger[i]
        assert np.array_equal(image, dataset[i][0])
        assert target == dataset[i][1]
    real = np.stack(
        [np.asarray(dataset.read(i).resize((6, 10), Image.BILINEAR), float) for i in np.where(dataset.targets == 1)[0]]
    )
    for i in range(len(dataset), len(larger)):
        image, target = larger[i]
        assert (image.mode, image.size, target) == (dataset.img_mode, (6, 10), 1)
        pixels = np.asarray(image, float)
        assert (real.min(axis=0) <= pixels).all()
        assert (pixels <= real.max(axis=0)).all()
        # on the line between two of the real images, to the rounding
        distances = []
        for j in range(len(real)):
            for k in range(j):
                line = (real[k] - real[j]).ravel()
                share = np.clip((pixels - real[j]).ravel() @ line / (line @ line), 0, 1)
                distances.append(np.abs(pixels - real[j] - share * (real[k] - real[j])).max())
        assert min(distances) < 1
    assert len({larger[i][0].tobytes() for i in range(len(dataset), len(larger))}) > 10  # steps may be tiny


def test_smote_transforms_all_images(dataset, tmp_path):
    larger = make(dataset, tmp_path, {'a': 9, 'b': 7})
    larger.transform = lambda image: image.size
    assert [larger[i] for i in (0, 15)] == [((12, 12), 0), ((6, 10), 0)]


def test_smote_is_seeded(dataset, tmp_path):
    one, same, other = (make(dataset, tmp_path, {'a': 12, 'b': 12}, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.images, same.images)
    assert not np.array_equal(one.images, other.images)


def test_smote_to_the_real_counts(dataset, few, tmp_path):
    assert len(make(dataset, tmp_path, {'a': 8, 'b': 7})) == 15
    assert len(make(few, tmp_path, {'a': 5, 'b': 9})) == 14  # only classes that grow need neighbours


@pytest.mark.parametrize(
    ('counts', 'message'),
    [
        ({'a': 7, 'b': 7}, "of class 'a' must be an integer of at least 8, its number of real images, got 7."),
        ({'a': 8, 'b': 9.5}, "of class 'b' must be an integer of at least 7, its number of real images, got 9.5."),
        ({'a': 8}, "class 'b' is missing"),
    ],
)
def test_smote_to_bad_counts(dataset, tmp_path, counts, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(dataset, tmp_path, counts)


def test_smote_of_too_few_images(few, tmp_path):
    with pytest.raises(ValueError, match="SMOTE needs at least 6 images per class, class 'a' has 5"):
        make(few, tmp_path, {'a': 9, 'b': 9})


def test_smote_without_memory(dataset, tmp_path, monkeypatch):
    values = 10 * 6 * (3 if dataset.img_mode == 'RGB' else 1)
    needed = 4 * values * (15 + 2 * 40) + values * 40
    monkeypatch.setattr(imbalance, 'available_memory', lambda: needed)
    assert len(make(dataset, tmp_path, {'a': 20, 'b': 20})) == 40
    monkeypatch.setattr(imbalance, 'available_memory', lambda: needed - 1)
    with pytest.raises(
        MemoryError,
        match=r'SMOTE to 40 images of 10 x 6 needs about 0\.0 GiB of memory, 0\.0 GiB are '
        'available: lower the counts or --img-size',
    ):
        make(dataset, tmp_path, {'a': 20, 'b': 20})


@pytest.mark.parametrize('module', ['imblearn', 'imblearn.over_sampling'])
def test_smote_without_its_package(dataset, tmp_path, monkeypatch, module):
    monkeypatch.delitem(sys.modules, 'imblearn.over_sampling', raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=re.escape("SMOTE needs imbalanced-learn: pip install 'hdkd-timm[smote]'.")):
        make(dataset, tmp_path, {'a': 8, 'b': 9})
