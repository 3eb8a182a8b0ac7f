"""What the networks of a run share."""

import dataclasses
import gc
import weakref
from pathlib import Path

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
        run.create_loaders(model, 'test')
        return run.caches['test'][1]

    first = load('bilinear')
    assert load('bilinear') is first
    first = weakref.ref(first)
    gc.collect()
    assert first() is not None
    load('nearest')
    gc.collect()
    assert first() is None
