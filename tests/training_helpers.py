"""What the tests of trainings share."""

import csv
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import timm
from helpers import TINY_STUDENT, TINY_TEACHER

from hdkd_timm import evaluate_model
from hdkd_timm.data.loader import SplitLoader
from hdkd_timm.evaluation.evaluate import EvalConfig
from hdkd_timm.evaluation.metrics import METRICS
from hdkd_timm.models.checkpoint import save_model
from hdkd_timm.training.trainer import Trainer
from hdkd_timm.utils.signals import Interrupted

# as small as those of the fixtures, and of one block a stage: a training depends on no more of them
STUDENT = {**TINY_STUDENT, 'depths': (1, 1, 1, 1)}
TEACHER = {**TINY_TEACHER, 'depths': (1, 1, 1)}
for network in (STUDENT, TEACHER):
    del network['img_size'], network['num_classes']


def load(folder):
    return timm.create_model(f'local-dir:{folder}/best', pretrained=True)


def read_summary(folder):
    with (folder / 'summary.csv').open() as file:
        return list(csv.DictReader(file))


def save_teacher(folder, **kwargs):
    args = {**TEACHER, 'img_size': 32, 'num_classes': 3, **kwargs}
    teacher = timm.create_model('hdkd_teacher', **args)
    save_model(teacher, folder, list('abc'), args)
    return teacher


def assert_as_reported(folder, result, data_dir):
    """The saved model of a run has the test metrics and the predictions that the run told."""
    report, images = evaluate_model(
        str(folder), EvalConfig(data_dir=data_dir, batch_size=5, workers=0, device='cpu', bootstrap=0)
    )
    expected = result['test']
    assert report['confusion_matrix'] == expected['confusion_matrix']
    assert {k: report[k] for k in METRICS} == pytest.approx({k: expected[k] for k in METRICS}, rel=1e-4)
    with (folder / 'predictions.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [row['path'] for row in rows] == images['names']
    probs = np.array([[float(row[f'prob_{k}']) for k in 'abc'] for row in rows])
    np.testing.assert_allclose(probs, images['probs'], atol=1e-5)
    assert [row['target'] for row in rows] == ['abc'[t] for t in images['targets']]
    assert [row['label'] for row in rows] == ['abc'[k] for k in images['probs'].argmax(axis=1)]


def interrupt_test(monkeypatch, command, config, images=12):
    """Let SIGTERM come when a network is about to be tested on this number of images. Returns the bytes of last.pth."""
    read = SplitLoader.__iter__
    saved = []

    def interrupted(loader):
        if len(loader.dataset) == images:
            saved.extend(path.read_bytes() for path in run.rglob('last.pth'))
            os.kill(os.getpid(), signal.SIGTERM)
        return read(loader)

    run = Path(config.output, config.experiment)
    with monkeypatch.context() as patch:
        patch.setattr(SplitLoader, '__iter__', interrupted)
        with pytest.raises(Interrupted, match=f"SIGTERM, the state of run '{run}' is saved"):
            command(config)
    return saved


def predict_val(monkeypatch, *right):
    """Let a network be right on the first of the val images, on so many of them in each epoch."""
    evaluate, right = Trainer.evaluate, iter(right)

    def predict(self, split, *args, **kwargs):
        probs, targets = evaluate(self, split, *args, **kwargs)
        if split == 'val':
            shift = np.arange(len(targets)) >= next(right)
            probs = np.full_like(probs, 0.1)
            probs[np.arange(len(targets)), (targets + shift) % 3] = 0.8
        return probs, targets

    monkeypatch.setattr(Trainer, 'evaluate', predict)
