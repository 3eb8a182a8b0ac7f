"""Runs that are killed, interrupted and resumed, as real processes: they must end as those that never were."""
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

# the note of the trainer's issue gives 20; a test run is content with fewer
KILLS = int(os.environ.get('HDKD_KILLS', 3))

NETWORKS = [
    '--model-kwargs', 'depths=(1,1,1,1)', 'dims=(8,16,24)', 'embed_dim=32', 'num_heads=2', 'head_dim=8', 'mlp_ratio=2',
    'pos_drop_rate=0.1', '--teacher-kwargs', 'depths=(1,1,1)', 'dims=(8,16,24)']
# all that has a state: dropout, erasing, mixup, accumulation, moving average, a schedule with counters
SETTINGS = [
    '--img-size', 32, '--epochs', 4, '-b', 4, '-j', 1, '--device', 'cpu', '--bootstrap', 5, '--drop-path', 0.2,
    '--reprob', 0.5, '--mixup', 0.2, '--smoothing', 0.1, '--model-ema', '--model-ema-decay', 0.9, '--clip-grad', 5,
    '--grad-accum-steps', 2, '--val-fraction', 0.3, '--recovery-interval', 2, '--sampler', 'balanced', '--sched',
    'plateau', '--warmup-epochs', 1, '--color-jitter', 0.4]
FILES = [f'{name}/best/model.safetensors' for name in ('teacher', 'student')]


def start(image_folder, output, experiment, *more):
    args = ['distill', '--data-dir', image_folder, '--output', output, '--experiment', experiment, *SETTINGS, *NETWORKS]
    env = dict(os.environ, OMP_NUM_THREADS='1')
    return subprocess.Popen(
        [sys.executable, '-m', 'hdkd_timm', *map(str, (*args, *more))], env=env, stderr=subprocess.PIPE, text=True)


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
    """Images, the folder of runs, and how long an unbroken run trains."""
    from conftest import write_images
    folder = tmp_path_factory.mktemp('resume')
    write_images(folder / 'data' / 'train', number=12)
    write_images(folder / 'data' / 'test', number=4, seed=1)
    process = start(folder / 'data', folder / 'runs', 'unbroken')
    wait_for(folder / 'runs' / 'unbroken' / 'config.yaml', process)
    begin = time.monotonic()
    code, errors = finish(process)
    assert code == 0, errors
    return folder / 'data', folder / 'runs', time.monotonic() - begin


@pytest.mark.parametrize('seed', range(KILLS))
def test_killed_at_a_random_moment(unbroken, seed):
    data, runs, seconds = unbroken
    name = f'killed{seed}'
    process = start(data, runs, name)
    wait_for(runs / name / 'config.yaml', process)
    time.sleep(random.Random(seed).uniform(0, seconds))
    process.send_signal(signal.SIGKILL)
    finish(process)
    left = [path for path in (runs / name).rglob('*.safetensors') if not path.parent.name.startswith('.new-')]
    for path in left:
        load_file(path)  # whole, or not there
    code, errors = finish(start(data, runs, name, '--resume'))
    assert code == 0, errors
    assert_same_run(runs / name, runs / 'unbroken')


@pytest.mark.parametrize(('signum', 'expected'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_interrupted_in_the_middle_of_an_epoch(unbroken, signum, expected):
    data, runs, _ = unbroken
    name = signum.name
    process = start(data, runs, name)
    wait_for(runs / name / 'student' / 'last.pth', process)
    process.send_signal(signum)
    code, errors = finish(process)
    assert code == expected, errors
    line = errors.strip().splitlines()[-1]
    config = runs / name / 'config.yaml'
    assert line == (
        f"hdkd distill: {signum.name}, the state is saved. Go on with: hdkd distill --config '{config}' --resume")
    process = subprocess.run(  # as it says
        [sys.executable, '-m', 'hdkd_timm', 'distill', '--config', config, '--resume'], capture_output=True, text=True,
        env=dict(os.environ, OMP_NUM_THREADS='1'))
    assert process.returncode == 0, process.stderr
    assert 'teacher  is finished' in process.stderr
    assert 'student  goes on in epoch' in process.stderr
    assert_same_run(runs / name, runs / 'unbroken')


def test_two_runs_cannot_share_a_folder(unbroken):
    data, runs, _ = unbroken
    first = start(data, runs, 'shared')
    wait_for(runs / 'shared' / 'config.yaml', first)
    for more, message in (
            ([], 'exists already'), (['--resume'], 'Another process is writing'), (['--overwrite'], 'Another process')):
        code, errors = finish(start(data, runs, 'shared', *more))
        if first.poll() is None:
            assert code == 1
            assert message in errors
            assert len(errors.strip().splitlines()) == 1
    assert finish(first)[0] == 0
    assert_same_run(runs / 'shared', runs / 'unbroken')


def test_resume_of_a_finished_run_changes_nothing(unbroken):
    data, runs, _ = unbroken
    before = {path: path.stat().st_mtime_ns for path in (runs / 'unbroken').rglob('*.safetensors')}
    code, errors = finish(start(data, runs, 'unbroken', '--resume'))
    assert code == 0, errors
    assert before == {path: path.stat().st_mtime_ns for path in (runs / 'unbroken').rglob('*.safetensors')}


def test_resume_with_other_settings_is_refused(unbroken):
    data, runs, _ = unbroken
    code, errors = finish(start(data, runs, 'unbroken', '--resume', '--lr', 0.5))
    assert code == 1
    assert 'was begun with lr 0.001, not 0.5' in errors
