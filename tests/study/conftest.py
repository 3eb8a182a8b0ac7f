"""Studies of tiny networks."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from processes import start
from training_helpers import STUDENT, save_teacher


@pytest.fixture
def settings(image_folder, tmp_path):
    save_teacher(tmp_path / 'given')
    return dict(
        data_dir=str(image_folder),
        img_size=32,
        epochs=1,
        batch_size=4,
        workers=0,
        device='cpu',
        bootstrap=0,
        model_kwargs=STUDENT,
        teacher_checkpoint=str(tmp_path / 'given'),
        output=str(tmp_path / 'runs'),
        experiment='study',
    )


@pytest.fixture
def forked_runs(monkeypatch):
    """The runs of a study are forked from the warm Python: real processes that need no start."""

    def popen(args, stdin, stdout, stderr, **kwargs):
        assert (args[0], stdin, stderr) == (sys.executable, subprocess.DEVNULL, subprocess.STDOUT)
        return start(*args[1:], output=stdout, **kwargs)

    module = SimpleNamespace(Popen=popen, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr('hdkd_timm.study.runs.subprocess', module)
