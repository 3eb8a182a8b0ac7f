"""Settings of trainings that take a second: of 24 images, in 3 steps an epoch."""

import pytest
from training_helpers import STUDENT, TEACHER

from hdkd_timm import DistillConfig, TrainConfig


@pytest.fixture
def settings(image_folder, tmp_path):
    return dict(
        data_dir=str(image_folder),
        img_size=32,
        epochs=2,
        batch_size=8,
        lr=2e-3,
        workers=0,
        device='cpu',
        bootstrap=10,
        model_kwargs=STUDENT,
        output=str(tmp_path / 'runs'),
        experiment='run',
    )


@pytest.fixture
def config(settings):
    return DistillConfig(**settings, teacher_kwargs=TEACHER)


@pytest.fixture
def train_config(settings):
    return TrainConfig(**settings)


@pytest.fixture
def run(tmp_path):
    return tmp_path / 'runs' / 'run'
