"""What the networks of a run share."""

import dataclasses
import gc
import weakref
from pathlib import Path
from types import SimpleNamespace

import timm
import torch
from helpers import TINY_STUDENT

from hdkd_timm.data.datasets import create_datasets
from hdkd_timm.training.context import RunContext
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
