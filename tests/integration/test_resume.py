"""Runs that are killed, interrupted and resumed, as real processes: they must end like an uninterrupted one."""

import os
import shutil
import signal
import time

import pytest
from helpers import write_images
from processes import flags, hdkd, run, start
from safetensors.torch import load_file

from hdkd_timm.cli import main
from hdkd_timm.training.run_folder import run_folder

NETWORK = dict(depths=(1, 1, 1, 1), dims=(8, 16, 24), embed_dim=32, num_heads=2, head_dim=8, mlp_ratio=2)
STUDENT = flags(model_kwargs=dict(NETWORK, pos_drop_rate=0.1))
NETWORKS = [*STUDENT, *flags(teacher_kwargs=dict(depths=(1, 1, 1), dims=(8, 16, 24)))]
# all that has a state: dropout, erasing, mixup, accumulation, moving average, a schedule with counters
SETTINGS = flags(
    img_size=32,
    epochs=3,
    batch_size=4,
    workers=1,
    device='cpu',
    bootstrap=5,
    drop_path=0.2,
    reprob=0.5,
    mixup=0.2,
    smoothing=0.1,
    model_ema=True,
    model_ema_decay=0.9,
    clip_grad=5,
    grad_accum_steps=2,
    val_fraction=0.3,
    recovery_interval=2,
    sampler='balanced',
    sched='plateau',
    warmup_epochs=1,
    color_jitter=0.4,
    no_report=True,
)
# a training whose Ctrl-C comes in the first step, to all its processes; its one loader process starts as it is told
LAUNCHER = """
import multiprocessing
import os
import signal
import sys

if __name__ == '__main__':
    from hdkd_timm.cli import main
    from hdkd_timm.training.trainer import Trainer

    def interrupted(self, *args):
        Trainer.augment = augment
        os.killpg(0, signal.SIGINT)
        return augment(self, *args)

    augment = Trainer.augment
    Trainer.augment = interrupted
    multiprocessing.set_start_method('forkserver')
    sys.exit(main())
"""
# a training in whose second epoch no image comes
HANGING = """
import os
import sys
import time
from pathlib import Path
from hdkd_timm.data import loader
from hdkd_timm.cli import main

def read(self, key):
    if key[0] == 1:
        Path(os.environ['MARK']).touch()
        time.sleep(200)
    return before(self, key)

before = loader._SeededDataset.__getitem__
loader._SeededDataset.__getitem__ = read
sys.exit(main())
"""
# a run that is killed in a chosen step, of all its networks
KILLED = """
import os
import signal
import sys
from hdkd_timm.cli import main
from hdkd_timm.training.trainer import Trainer

def record(self, *args):
    steps[0] -= 1
    if not steps[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return before(self, *args)

before, steps = Trainer.record, [int(os.environ['STEPS'])]
Trainer.record = record
sys.exit(main())
"""
FILES = [f'{name}/best/model.safetensors' for name in ('teacher', 'student')]


def begin(image_folder, output, experiment, *more, program=('-m', 'hdkd_timm'), **env):
    """Start a distillation in a process group of its own."""
    args = flags(data_dir=image_folder, output=output, experiment=experiment)
    args = ['distill', *args, *SETTINGS, *NETWORKS, *more]
    return start(*program, *args, env={**os.environ, **env}, start_new_session=True)


def finish(process):
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)


def weights(run):
    return [load_file(run / file) for file in FILES]


def assert_same_run(run, reference):
    for ours, theirs in zip(weights(run), weights(reference)):
        assert all(ours[name].equal(value) for name, value in theirs.items())
    for name in ('teacher', 'student'):
        for file in ('summary.csv', 'predictions.csv'):
            assert (run / name / file).read_text() == (reference / name / file).read_text()


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
    """Images and the folder of runs, with one that was not interrupted."""
    folder = tmp_path_factory.mktemp('resume')
    write_images(folder / 'data' / 'train', number=8)
    write_images(folder / 'data' / 'test', number=4, seed=1)
    code, errors = finish(begin(folder / 'data', folder / 'runs', 'unbroken'))
    assert code == 0, errors
    return folder / 'data', folder / 'runs'


# of 12 steps a network: before anything is saved, between two states, in an epoch whose best was kept, in the student
@pytest.mark.parametrize('step', [1, 7, 11, 18])
def test_killed_in_a_step(unbroken, step):
    data, runs = unbroken
    name = f'killed{step}'
    code, errors = finish(begin(data, runs, name, program=('-c', KILLED), STEPS=str(step)))
    assert code == -signal.SIGKILL, errors
    saved = [path.parent.name for path in (runs / name).rglob('last.pth')]
    assert sorted(saved) == ['student', 'teacher'][2 - (step > 12) - (step > 1) :]
    for path in (runs / name).rglob('*.safetensors'):
        if not path.parent.name.startswith('.best-'):  # what was being written
            load_file(path)
    code, errors = finish(begin(data, runs, name, '--resume'))
    assert code == 0, errors
    assert_same_run(runs / name, runs / 'unbroken')


@pytest.fixture(scope='module')
def with_teacher(unbroken):
    """The folder of a run whose teacher is finished: it was killed in the first step of the student."""
    data, runs = unbroken
    code, errors = finish(begin(data, runs, 'with_teacher', program=('-c', KILLED), STEPS='13'))
    assert code == -signal.SIGKILL, errors
    assert not (runs / 'with_teacher' / 'student' / 'last.pth').exists()
    return runs / 'with_teacher'


@pytest.mark.parametrize(
    ('send', 'signum', 'expected'),
    [
        (os.kill, signal.SIGTERM, 143),
        (os.killpg, signal.SIGINT, 130),  # Ctrl-C goes to all processes of a terminal,
        (os.killpg, signal.SIGTERM, 143),
        (os.killpg, signal.SIGHUP, 129),  # and these to all of a job or a container
        (os.kill, signal.SIGUSR1, 138),
    ],
)
def test_interrupted_in_the_middle_of_an_epoch(unbroken, with_teacher, send, signum, expected):
    data, runs = unbroken
    name = f'{send.__name__}-{signum.name}'
    shutil.copytree(with_teacher, runs / name)
    process = begin(data, runs, name, '--resume')
    wait_for(runs / name / 'student' / 'last.pth', process)
    send(process.pid, signum)
    code, errors = finish(process)
    assert code == expected, errors
    line = errors.strip().splitlines()[-1]
    config = runs / name / 'config.yaml'
    assert line == (
        f"hdkd distill: {signum.name}, the state is saved. Resume with: hdkd distill --config '{config}' --resume"
    )
    process = hdkd('distill', '--config', config, '--resume', '--no-report')  # as it says
    assert process.returncode == 0, process.stderr
    assert 'teacher  is finished' in process.stderr
    assert 'student  continues in epoch' in process.stderr
    assert_same_run(runs / name, runs / 'unbroken')


def test_ctrl_c_with_loaders_of_the_fork_server(unbroken, tmp_path):
    """The step that it comes in is the first of 8 of an update, whose images the loader has yet to read."""
    data, runs = unbroken
    (tmp_path / 'launcher.py').write_text(LAUNCHER)
    args = flags(data_dir=data, output=runs, img_size=32, epochs=2, batch_size=3, device='cpu', bootstrap=0)
    args = ['train', *args, *flags(grad_accum_steps=8, no_report=True), *STUDENT]
    assert main([*args, '--experiment', 'whole', '-j', '0']) == 0
    args = [tmp_path / 'launcher.py', *args, '--experiment', 'ctrl-c', '-j', '1']
    process = run(*args, start_new_session=True)
    assert process.returncode == 130, process.stderr
    assert 'Traceback' not in process.stderr
    assert process.stderr.strip().splitlines()[-1].startswith('hdkd train: SIGINT, the state is saved.')
    assert main(['train', '--config', str(runs / 'ctrl-c' / 'config.yaml'), '--resume', '-j', '0']) == 0
    ours, whole = (load_file(runs / name / 'best' / 'model.safetensors') for name in ('ctrl-c', 'whole'))
    assert all(ours[name].equal(value) for name, value in whole.items())


@pytest.mark.parametrize('workers', [0, 1])
def test_interrupted_while_a_disk_hangs(unbroken, workers, tmp_path):
    data, runs = unbroken
    args = flags(data_dir=data, output=runs, img_size=32, epochs=2, batch_size=4, device='cpu', bootstrap=0)
    args = ['train', *args, *flags(no_report=True, workers=workers), *STUDENT]
    assert main([*args, '--experiment', f'awake{workers}']) == 0
    name, mark = f'hanging{workers}', tmp_path / 'mark'
    env = {**os.environ, 'MARK': str(mark)}
    process = start('-c', HANGING, *args, '--experiment', name, env=env, start_new_session=True)
    wait_for(mark, process)
    wait_for(runs / name / 'last.pth', process)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 143, errors
    assert 'Traceback' not in errors
    assert main(['train', '--config', str(runs / name / 'config.yaml'), '--resume', '--no-report']) == 0
    ours, whole = (load_file(runs / run / 'best' / 'model.safetensors') for run in (name, f'awake{workers}'))
    assert all(ours[key].equal(value) for key, value in whole.items())


def test_two_runs_cannot_share_a_folder(unbroken):
    data, runs = unbroken
    with run_folder(str(runs), 'shared', 'lr: 1\n') as folder:
        expected = {
            (): 'already exists',
            ('--resume',): 'Another process is writing',
            ('--overwrite',): 'Another process is writing',
        }
        for process, message in [(begin(data, runs, 'shared', *more), message) for more, message in expected.items()]:
            code, errors = finish(process)
            assert code == 1
            assert 'Traceback' not in errors
            line = errors.strip().splitlines()[-1]  # after timm's warning about the schedule
            assert line.startswith('hdkd distill: error: ')
            assert message in line
        assert sorted(path.name for path in folder.iterdir()) == ['.lock', 'SHA256SUMS', 'config.yaml']
        assert (folder / 'config.yaml').read_text() == 'lr: 1\n'


def test_resume_of_a_finished_run_changes_nothing(unbroken):
    data, runs = unbroken
    before = {path: path.stat().st_mtime_ns for path in (runs / 'unbroken').rglob('*.safetensors')}
    code, errors = finish(begin(data, runs, 'unbroken', '--resume'))
    assert code == 0, errors
    assert before == {path: path.stat().st_mtime_ns for path in (runs / 'unbroken').rglob('*.safetensors')}


def test_resume_with_other_settings_is_refused(unbroken):
    data, runs = unbroken
    code, errors = finish(begin(data, runs, 'unbroken', '--resume', '--lr', 0.5))
    assert code == 1
    assert 'was started with lr 0.001, not 0.5' in errors
