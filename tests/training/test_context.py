"""What the networks of a run share."""

import dataclasses
import gc
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from helpers import TINY_STUDENT

from hdkd_timm.data.datasets import create_datasets
from hdkd_timm.training.context import RunContext, warn_of_few_images
from hdkd_timm.utils.distributed import World


def test_cache_for_another_network(train_config, image_folder):
    config = dataclasses.replace(train_config, cache='ram')
    datasets, classes = create_datasets(config)
    run = RunContext(config, World(torch.device('cpu')), datasets, classes, folder=Path('run'))
    model = timm.create_model('hdkd_student', **TINY_STUDENT)

    def load(interpolation):
        model.pretrained_cfg['interpolation'] = interpolation
        run.create_loaders(model, 32, 'test')
        return run.caches['test'][1]

    first = load('bilinear')
    assert load('bilinear') is first
    first = weakref.ref(first)
    gc.collect()
    assert first() is not None
    load('nearest')
    gc.collect()
    assert first() is None


def test_class_weights_of_streamed_images(train_config, tmp_path):
    """Of these the numbers of images are not known, a file has the weights all the same."""
    path = tmp_path / 'weights.json'
    path.write_text('{"b": 3, "a": 0.5}')
    config = dataclasses.replace(train_config, class_weights=str(path))
    run = RunContext(config, World(torch.device('cpu')), {'train': SimpleNamespace()}, ['a', 'b'])
    assert run.class_weights().tolist() == [0.5, 3]


@pytest.mark.parametrize(
    ('val', 'metric', 'told'),
    [
        ([0] * 9 + [1, 2], 'balanced_accuracy', 'fewer than 5 images of 2 of 3 classes (b 1, c 1)'),
        ([0] * 9 + [1] * 5, 'macro_f1', 'fewer than 5 images of 1 of 3 classes (c 0)'),
        ([0] * 5 + [1] * 5 + [2] * 5, 'macro_auroc', None),
        ([0] * 9 + [1, 2], 'log_loss', None),
        ([0] * 9 + [1, 2], 'accuracy', None),
    ],
)
def test_few_validation_images_of_a_class(val, metric, told, train_config, caplog):
    config = dataclasses.replace(train_config, select_metric=metric)
    datasets = {'val': SimpleNamespace(targets=np.array(val))}
    warn_of_few_images(RunContext(config, World(torch.device('cpu')), datasets, ['a', 'b', 'c']))
    assert (told in caplog.text) if told else not caplog.text


def test_few_validation_images_with_a_label(train_config, caplog):
    config = dataclasses.replace(train_config, multi_label=True, select_metric='macro_auroc')
    labels = np.array([[1, 0], [1, 1], [1, 0], [1, 0], [1, 1]])
    context = RunContext(config, World(torch.device('cpu')), {'val': SimpleNamespace(targets=labels)}, ['a', 'b'])
    warn_of_few_images(context)
    assert 'macro_auroc weights all labels equally' in caplog.text
    assert 'fewer than 5 images of 1 of 2 labels (b 2)' in caplog.text
