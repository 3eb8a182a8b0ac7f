"""`hdkd cache-logits`, and the flags of teachers."""

import os
import signal

import pytest
from processes import flags
from training_helpers import STUDENT, save_teacher

from hdkd_timm.cli import main
from hdkd_timm.data.loader import SplitLoader


@pytest.fixture
def args(image_folder, tmp_path):
    save_teacher(tmp_path / 'given')
    settings = dict(data_dir=image_folder, img_size=32, workers=0, device='cpu', model_kwargs=STUDENT, batch_size=4)
    return flags(**settings)


def test_from_teacher_to_student(args, tmp_path, capsys):
    path = tmp_path / 'logits.safetensors'
    command = ['cache-logits', *args, *flags(teacher_checkpoint=tmp_path / 'given', views=2, out=path)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"Logits of hdkd_teacher for 24 training images, 2 views, are in '{path}' (")
    run = flags(output=tmp_path / 'runs', experiment='e', method='kd', epochs=2, bootstrap=0, no_report=True)
    assert main(['distill', *args, *run, '--teacher-logits', str(path)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:2]] == ['student']
    assert main(command) == 1
    assert 'already exists: choose another --out, nothing is overwritten' in capsys.readouterr().err


def test_signal(args, tmp_path, capsys, monkeypatch):
    read = SplitLoader.epoch

    def stop(self, epoch, start=0):
        os.kill(os.getpid(), signal.SIGTERM)
        return read(self, epoch, start)

    monkeypatch.setattr(SplitLoader, 'epoch', stop)
    path = tmp_path / 'logits.safetensors'
    assert main(['cache-logits', *args, *flags(teacher_checkpoint=tmp_path / 'given', out=path)]) == 143
    assert capsys.readouterr().err.splitlines()[-1] == 'hdkd cache-logits: SIGTERM, nothing was written.'
    assert not path.exists()


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (
            ['--teacher-checkpoint', 't', '--teachers', 'separate'],
            '--teachers is only used with several of --teacher-ch',
        ),
        (['--teachers', 'separate'], '--teachers is only used with several of --teacher-checkpoint'),
        (['--teacher-logits', 'f', '--teacher-lr', '1'], '--teacher-lr is not used with --teacher-logits'),
        (['--teacher-logits', 'f', '--teacher', 'resnet18'], '--teacher is not used with --teacher-logits'),
        (
            ['--teacher-logits', 'f', '--method', 'none'],
            '--teacher-logits is for distillation methods, not for --method',
        ),
        (['--teacher-checkpoint', 't', 'u', '--teacher-label-names', 'a'], '--teacher-label-names is for one teacher'),
    ],
)
def test_flags_without_an_effect(args, message, trained, capsys):
    assert main(['distill', '--data-dir', 'd', *args]) == 1
    assert message in capsys.readouterr().err
    assert trained == []


def test_flags_of_several_teachers(trained):
    assert main(['distill', '--data-dir', 'd', '--teacher-checkpoint', 't', 'u', '--teachers', 'separate']) == 0
    assert (trained[0].teacher_checkpoint, trained[0].teachers) == (('t', 'u'), 'separate')
    assert main(['distill', '--data-dir', 'd', '--teacher-logits', 'f', '--teachers', 'separate']) == 0
    assert (trained[1].teacher_checkpoint, trained[1].teacher_logits) == (None, 'f')


def test_train_names_the_command_for_several(image_folder, capsys):
    assert main(['train', '--data-dir', str(image_folder), '--teacher-checkpoint', 't', 'u']) == 1
    assert 'hdkd train takes one teacher, got 2: several teach in hdkd distill' in capsys.readouterr().err
