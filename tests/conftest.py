"""Fixtures of all tests."""

import os

import pytest
import timm
import torch
from helpers import write_images

collect_ignore = ['ecosystem']  # other libraries: `make test-ecosystem`

# the networks here are tiny: threads would cost more than they do; os.environ is for the processes that tests start
os.environ.setdefault('OMP_NUM_THREADS', '1')
torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))


def pytest_report_header():
    return f'timm {timm.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads'


@pytest.fixture
def image_folder(tmp_path):
    """An image folder of three classes, 8 training and 4 test images each."""
    write_images(tmp_path / 'data' / 'train', number=8)
    write_images(tmp_path / 'data' / 'test', number=4, seed=1)
    return tmp_path / 'data'


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch._dynamo.reset()
