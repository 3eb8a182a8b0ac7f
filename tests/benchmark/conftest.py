"""Networks of the benchmark with one block a stage and few channels: it times the full ones, and does the same here."""

import pytest
import timm
from training_helpers import STUDENT

SMALL = dict(
    hdkd_student=dict(STUDENT, depths=(1, 1, 1, 1)),
    hdkd_student_s4=dict(STUDENT, depths=(1, 1, 1, 1)),
    hdkd_teacher=dict(dims=STUDENT['dims'], depths=(1, 1, 1)),
)


@pytest.fixture
def small_networks(monkeypatch):
    create_model = timm.create_model

    def create_small(name, **kwargs):
        return create_model(name, **SMALL.get(name, {}), **kwargs)

    monkeypatch.setattr(timm, 'create_model', create_small)
