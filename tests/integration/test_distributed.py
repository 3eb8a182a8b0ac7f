"""Two real processes on the CPU, started with the variables that torchrun or SLURM sets, or by torchrun itself."""

import json
import os
import signal
import sys
import time

import numpy as np
import pytest
from helpers import write_images
from processes import SLURM, TORCHRUN, flags, run_two, start
from safetensors.torch import load_file

from hdkd_timm.cli import main
from hdkd_timm.evaluation.metrics import METRICS
from hdkd_timm.utils.distributed import pick_device

NETWORK = dict(depths=(1, 1, 1, 1), dims=(8, 16, 24), embed_dim=32, num_heads=2, head_dim=8, mlp_ratio=2)
SETTINGS = flags(img_size=32, batch_size=4, workers=1, device='cpu', bootstrap=5, model_kwargs=NETWORK)
LAUNCHER = ['-m', 'torch.distributed.run', *flags(nproc_per_node=2, rdzv_backend='c10d', rdzv_endpoint='localhost:0')]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """13 validation and 11 test images: no number of two processes."""
    folder = tmp_path_factory.mktemp('distributed')
    write_images(folder / 'data' / 'train', number=8)
    for split, seed in (('val', 1), ('test', 2)):
        write_images(folder / 'data' / split, number=4, seed=seed)
    write_images(folder / 'data' / 'val', classes='a', number=5, seed=1)
    (folder / 'data' / 'test' / 'c' / '3.png').unlink()
    return folder


def command(name, folder, **settings):
    """Arguments of Python for a command; of what is given twice, the last counts."""
    args = flags(data_dir=folder / 'data', output=folder / 'runs')
    return ['-m', 'hdkd_timm', name, *args, *SETTINGS, *flags(**settings)]


def evaluate(model, folder, split, out):
    """What `hdkd eval` writes."""
    settings = dict(data_dir=folder / 'data', split=split, device='cpu', workers=0, bootstrap=0, out_dir=out)
    assert main(['eval', str(model), *flags(**settings)]) == 0
    return json.loads((out / 'metrics.json').read_text())


def test_metrics_are_those_of_one_process(folder):
    settings = dict(experiment='two', epochs=2, model_ema=True, grad_accum_steps=2)
    teacher = dict(depths=(1, 1, 1), dims=(8, 16, 24))
    codes, outputs, errors = run_two(TORCHRUN, command('distill', folder, teacher_kwargs=teacher, **settings))
    assert codes == [0, 0], errors
    run = folder / 'runs' / 'two'
    assert [text.count('network ') for text in outputs] == [1, 0]  # the first process alone speaks
    assert [text.count('student  epoch 2/2') for text in errors] == [1, 0]
    for name in ('teacher', 'student'):
        metrics = json.loads((run / name / 'metrics.json').read_text())
        expected, out = metrics['test'], folder / f'{name}-test'
        ours = evaluate(run / name, folder, 'test', out)
        assert ours['images'] == expected['images'] == 11  # every image once
        assert ours['confusion_matrix'] == expected['confusion_matrix']
        assert {k: ours[k] for k in METRICS} == pytest.approx({k: expected[k] for k in METRICS}, abs=1e-6)
        assert [line.split(',')[0] for line in (out / 'predictions.csv').read_text().splitlines()] == [
            line.split(',')[0] for line in (run / name / 'predictions.csv').read_text().splitlines()
        ]
    # the validation metrics of the kept epoch, likewise
    row = (run / 'student' / 'summary.csv').read_text().splitlines()
    values = dict(zip(row[0].split(','), row[1 + metrics['epoch']].split(',')))
    ours = evaluate(run / 'student', folder, 'val', folder / 'val')
    assert ours['images'] == 13
    assert ours['log_loss'] == pytest.approx(float(values['val_log_loss']), abs=1e-6)


def test_slurm_variables(folder):
    """The processes are told by SLURM's variables, and train as those of torchrun."""
    whole, slurm = (
        command('train', folder, epochs=2, recovery_interval=1, experiment=e, no_report=True)
        for e in ('whole', 'slurm')
    )
    codes, _, errors = run_two(TORCHRUN, whole)
    assert codes == [0, 0], errors
    codes, _, errors = run_two(SLURM, slurm)
    assert codes == [0, 0], errors
    runs = folder / 'runs'
    state = load_file(runs / 'slurm' / 'best' / 'model.safetensors')
    for name, value in load_file(runs / 'whole' / 'best' / 'model.safetensors').items():
        assert state[name].equal(value), name
    codes, _, errors = run_two(SLURM, slurm)
    assert codes == [1, 1]
    assert all('already exists: --resume' in text for text in errors)


@pytest.fixture
def digits(folder):
    """Eight training images and a single other in the form of MNIST: a split of a folder has an image of each class."""
    raw = folder / 'digits' / 'MNIST' / 'raw'
    raw.mkdir(parents=True)
    for name, number in (('train', 8), ('t10k', 1)):
        labels = np.arange(number, dtype=np.uint8)
        (raw / f'{name}-images-idx3-ubyte').write_bytes(
            np.array([0x803, number, 28, 28], '>i4').tobytes() + (30 * labels).repeat(28 * 28).tobytes()
        )
        (raw / f'{name}-labels-idx1-ubyte').write_bytes(np.array([0x801, number], '>i4').tobytes() + labels.tobytes())
    return folder / 'digits'


def test_a_process_without_val_images_and_resume_by_another_number(digits, folder, capsys):
    """The network has batch statistics, which processes compare in each pass: one has an image, the other none."""
    args = command('train', folder, experiment='digits', epochs=1, no_report=True, model='resnet10t', model_kwargs={})
    data = flags(dataset='torch/mnist', data_dir=digits, val_split='validation', test_split='')
    codes, _, errors = run_two(TORCHRUN, [*args, *data])
    assert codes == [0, 0], errors
    run = folder / 'runs' / 'digits'
    metrics = json.loads((run / 'metrics.json').read_text())['val']
    assert metrics['images'] == np.sum(metrics['confusion_matrix']) == 1
    ((path, target, _, *probs),) = [row.split(',') for row in (run / 'predictions.csv').read_text().splitlines()[1:]]
    assert (path, target) == ('0', '0 - zero')
    assert metrics['log_loss'] == pytest.approx(-np.log(float(probs[0])), rel=1e-4)
    (run / 'metrics.json').unlink()
    assert main(['train', '--config', str(run / 'config.yaml'), '--resume']) == 1
    assert 'was saved by 2 processes' in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere nothing tells processes of the end of another')
def test_end_of_torchrun_alone(folder):
    """Its processes save the state and leave the run to the next job. It hands SIGUSR1 on as little as SIGKILL."""
    args = [*LAUNCHER, *command('train', folder, epochs=100_000, experiment='alone')]
    process = start(*args, fresh=True, start_new_session=True)
    run = folder / 'runs' / 'alone'
    while not (run / 'last.pth').exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGUSR1)
    _, errors = process.communicate(timeout=100)  # of all three: they share the pipe
    assert process.returncode == -signal.SIGUSR1
    assert errors.count('hdkd train: SIGTERM, the state is saved.') == 2
    assert not (run / '.lock').exists()


def test_unknown_device():
    with pytest.raises(ValueError, match="Device 'toaster' cannot be used"):
        pick_device('toaster')
