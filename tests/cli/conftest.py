"""Fixtures of the commands' tests."""

import pytest
import timm
from helpers import TINY_STUDENT

from hdkd_timm import TrainConfig
from hdkd_timm.models.checkpoint import save_model
from hdkd_timm.utils.config import to_yaml


@pytest.fixture
def run_of_a_student(tmp_path, image_folder):
    """The folder of a run, as far as other commands need it: its model and its settings."""
    args = dict(TINY_STUDENT, num_classes=3)
    run = tmp_path / 'a run'
    save_model(timm.create_model('hdkd_student', **args), run / 'best', list('abc'), args)
    config = TrainConfig(data_dir=str(image_folder), img_size=32, workers=0, device='cpu', bootstrap=5, aug='paper')
    (run / 'config.yaml').write_text(to_yaml(config))
    return run


@pytest.fixture
def trained(monkeypatch):
    """The settings that `train` and `distill` are called with, which do not train here."""
    seen = []
    result = dict(parameters=1, test=dict(accuracy=1.0, balanced_accuracy=1.0, macro_auroc=1.0))

    def record(config, *args):
        seen.append(config)
        return dict(models=dict(a=result), run='r')

    for command in ('train', 'distill'):
        monkeypatch.setattr(f'hdkd_timm.training.{command}.{command}', record)
    return seen
