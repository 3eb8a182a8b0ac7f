"""What a run tells while it goes, read back as its readers do."""

import csv
import io
import math
import os
import re
import sys

import pytest

from hdkd_timm.training.logger import EpochLog, Progress, check_logs
from hdkd_timm.utils.csv_files import write_rows

ROWS = [
    dict(epoch=0, lr=1e-3, train_loss=2.5, val_accuracy=0.25),
    dict(
        epoch=1,
        lr=5e-4,
        train_loss=1.5,
        train_feature_loss_3=0.125,
        val_accuracy=0.5,
        val_macro_auroc=math.nan,
        note='words',
    ),
]


def read(path):
    with path.open(newline='') as file:
        return list(csv.reader(file))


def test_rows_of_different_columns(tmp_path):
    path = tmp_path / 'rows.csv'
    write_rows([dict(a=1, b='x, "y"'), dict(c=None, a=0.1, d=3)], path)
    assert read(path) == [['a', 'b', 'c', 'd'], ['1', 'x, "y"', '', ''], ['0.1', '', '', '3']]
    write_rows([dict(d='ä')], path)
    assert read(path) == [['d'], ['ä']]
    assert [p.name for p in tmp_path.iterdir()] == ['rows.csv']


def test_summary_of_all_epochs(tmp_path):
    log = EpochLog(tmp_path, 'run/student')
    for number in (1, 2):
        log.write(ROWS[:number])
        rows = read(tmp_path / 'summary.csv')
        assert len(rows) == number + 1
    log.close()
    assert rows[0] == ['epoch', 'lr', 'train_loss', 'val_accuracy', 'train_feature_loss_3', 'val_macro_auroc', 'note']
    assert rows[1:] == [
        ['0', '0.001', '2.5', '0.25', '', '', ''],
        ['1', '0.0005', '1.5', '0.5', '0.125', 'nan', 'words'],
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ['SHA256SUMS', 'summary.csv']


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EpochLog(tmp_path, 'run/student', ['tensorboard'])
    log.write(ROWS[:1])
    log.write(ROWS)
    log.close()
    events = EventAccumulator(str(tmp_path / 'tensorboard'))
    events.Reload()
    # no epoch, no words, nothing that is non-finite
    assert set(events.Tags()['scalars']) == {'lr', 'train/loss', 'train/feature_loss_3', 'val/accuracy'}
    assert [(e.step, e.value) for e in events.Scalars('train/loss')] == [(0, 2.5), (1, 1.5)]
    assert [e.value for e in events.Scalars('lr')] == pytest.approx([1e-3, 5e-4])
    assert len(read(tmp_path / 'summary.csv')) == 3


def test_wandb(tmp_path, monkeypatch):
    import wandb

    for name in [name for name in os.environ if name.startswith('WANDB_')]:
        monkeypatch.delenv(name)
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    for name in ('CACHE', 'CONFIG', 'DATA'):
        monkeypatch.setenv(f'WANDB_{name}_DIR', str(tmp_path / name))
    (tmp_path / 'config.yaml').write_text('lr: 0.001\nmodel: hdkd_student\n')
    folder = tmp_path / 'student'
    folder.mkdir()
    log = EpochLog(folder, 'run/student', ['wandb'])
    try:
        assert log.wandb.settings.mode == 'offline'
        name = log.wandb.id
        assert (log.wandb.name, log.wandb.project) == ('run/student', 'hdkd_timm')
        assert dict(log.wandb.config) == {'lr': 0.001, 'model': 'hdkd_student'}  # of the folder above
        log.write(ROWS[:1])
        log.write(ROWS)
        assert dict(log.wandb.summary)['train_loss'] == 1.5
        assert 'val_macro_auroc' not in dict(log.wandb.summary)
    finally:
        log.close()
    assert wandb.run is None
    written = list(folder.glob(f'wandb/offline-run-*/run-{name}.wandb'))
    assert len(written) == 1
    assert written[0].stat().st_size > 0
    # a run that goes on is the same one there, one of the same name in a new folder is another
    ids = []
    for place in (folder, tmp_path / 'other'):
        place.mkdir(exist_ok=True)
        log = EpochLog(place, 'run/student', ['wandb'])
        ids.append(log.wandb.id)
        log.close()
    assert ids[0] == name != ids[1]


@pytest.mark.parametrize('name', ['tensorboard', 'wandb'])
def test_log_without_its_package(name, monkeypatch):
    check_logs([])
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=re.escape(f"--log {name} needs {name}: pip install 'hdkd-timm[{name}]'.")):
        check_logs([name])


class Terminal(io.StringIO):
    def isatty(self):
        return True


def progress(monkeypatch, stream, **kwargs):
    monkeypatch.setattr(sys, 'stderr', stream)
    bar = Progress('student 1/3', 100, 20, **kwargs)
    bar.bar.mininterval = 0
    bar.update(16, {'ce_loss': 1.23456, 'feature_loss_3': 0.5})
    bar.update(16)
    bar.close()
    return stream.getvalue()


def test_progress_on_a_terminal_alone(monkeypatch):
    assert progress(monkeypatch, io.StringIO()) == ''
    assert progress(monkeypatch, Terminal(), show=False) == ''
    shown = progress(monkeypatch, Terminal())
    assert 'student 1/3' in shown
    assert '20/100' in shown
    assert '52/100' in shown
    assert 'ce=1.23' in shown
    assert 'feature3=0.5' in shown
