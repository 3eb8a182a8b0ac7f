"""Fixtures of the tests of this room."""

import pytest
import timm
from helpers import TINY_STUDENT

from hdkd_timm.models.checkpoint import save_model


@pytest.fixture
def model_folder(tmp_path):
    """A saved student with the classes a, b and c."""
    args = dict(TINY_STUDENT, num_classes=3)
    save_model(timm.create_model('hdkd_student', **args), tmp_path / 'model', list('abc'), args)
    return tmp_path / 'model'
