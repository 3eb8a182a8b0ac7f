"""Two real processes on the CPU, started by torchrun."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import write_images
from safetensors.torch import load_file

from hdkd_timm.cli import main
from hdkd_timm.evaluation.metrics import METRICS
from hdkd_timm.utils.distributed import pick_device

SETTINGS = [
    '--img-size',
    32,
    '-b',
    4,
    '-j',
    1,
    '--device',
    'cpu',
    '--bootstrap',
    5,
    '--model-kwargs',
    'depths=(1,1,1,1)',
    'dims=(8,16,24)',
    'embed_dim=32',
    'num_heads=2',
    'head_dim=8',
    'mlp_ratio=2',
]


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


def launch(command, folder, *more, timeout=300):
    args = [
        '-m',
        'torch.distributed.run',
        '--nproc_per_node',
        2,
        '--rdzv_backend',
        'c10d',
        '--rdzv_endpoint',
        'localhost:0',
        '-m',
        'hdkd_timm',
        command,
        '--data-dir',
        folder / 'data',
        '--output',
        folder / 'runs',
        *SETTINGS,
        *more,
    ]
    process = subprocess.Popen(
        [sys.executable, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        output = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its processes too
        raise
    return subprocess.CompletedProcess(args, process.returncode, *output)


def free_port():
    """A port that the system does not use."""
    with socket.socket() as server:
        server.bind(('localhost', 0))
        return server.getsockname()[1]


def test_metrics_are_those_of_one_process(folder, capsys):
    result = launch(
        'distill',
        folder,
        '--experiment',
        'two',
        '--epochs',
        2,
        '--teacher-kwargs',
        'depths=(1,1,1)',
        'dims=(8,16,24)',
        '--model-ema',
        '--grad-accum-steps',
        2,
    )
    assert result.returncode == 0, result.stderr
    run = folder / 'runs' / 'two'
    assert result.stdout.count('network ') == 1  # the first process alone speaks
    assert result.stderr.count('student  epoch 2/2') == 1
    for name in ('teacher', 'student'):
        metrics = json.loads((run / name / 'metrics.json').read_text())
        for split, expected in (('test', metrics['test']),):
            out = folder / f'{name}-{split}'
            assert (
                main(
                    [
                        'eval',
                        str(run / name),
                        '--data-dir',
                        str(folder / 'data'),
                        '--split',
                        split,
                        '--device',
                        'cpu',
                        '-j',
                        '0',
                        '--bootstrap',
                        '0',
                        '--out-dir',
                        str(out),
                    ]
                )
                == 0
            )
            ours = json.loads((out / 'metrics.json').read_text())
            assert ours['images'] == expected['images'] == 11  # every image once
            assert ours['confusion_matrix'] == expected['confusion_matrix']
            assert {k: ours[k] for k in METRICS} == pytest.approx({k: expected[k] for k in METRICS}, abs=1e-6)
            assert [line.split(',')[0] for line in (out / 'predictions.csv').read_text().splitlines()] == [
                line.split(',')[0] for line in (run / name / 'predictions.csv').read_text().splitlines()
            ]
    # the validation metrics of the kept epoch, likewise
    row = (run / 'student' / 'summary.csv').read_text().splitlines()
    values = dict(zip(row[0].split(','), row[1 + metrics['epoch']].split(',')))
    capsys.readouterr()
    assert (
        main(
            [
                'eval',
                str(run / 'student'),
                '--data-dir',
                str(folder / 'data'),
                '--split',
                'val',
                '--device',
                'cpu',
                '-j',
                '0',
                '--bootstrap',
                '0',
                '--out-dir',
                str(folder / 'val'),
            ]
        )
        == 0
    )
    ours = json.loads((folder / 'val' / 'metrics.json').read_text())
    assert ours['images'] == 13
    assert ours['log_loss'] == pytest.approx(float(values['val_log_loss']), abs=1e-6)


def test_slurm_variables_and_resume(folder):
    """The processes are told by SLURM's variables; a run of two ends as it would unbroken."""
    args = ['--epochs', 2, '--recovery-interval', 1]
    assert launch('train', folder, '--experiment', 'whole', *args).returncode == 0
    env = dict(os.environ, SLURM_NTASKS='2', MASTER_ADDR='localhost')

    def start(*more):
        command = [
            '-m',
            'hdkd_timm',
            'train',
            '--data-dir',
            folder / 'data',
            '--output',
            folder / 'runs',
            *SETTINGS,
            *args,
            '--experiment',
            'slurm',
            *more,
        ]
        port = str(free_port())
        processes = [
            subprocess.Popen(
                [sys.executable, *map(str, command)],
                stderr=subprocess.PIPE,
                text=True,
                env=dict(env, MASTER_PORT=port, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)),
            )
            for rank in range(2)
        ]
        return [(p, p.communicate(timeout=300)[1]) for p in processes]

    for process, errors in start():
        assert process.returncode == 0, errors
    runs = folder / 'runs'
    state = load_file(runs / 'slurm' / 'best' / 'model.safetensors')
    for name, value in load_file(runs / 'whole' / 'best' / 'model.safetensors').items():
        assert state[name].equal(value), name
    refused = start()
    assert [p.returncode for p, _ in refused] == [1, 1]
    assert all('already exists: --resume' in errors for _, errors in refused)


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
    result = launch(
        'train',
        folder,
        '--experiment',
        'two',
        '--epochs',
        1,
        '--overwrite',
        '--dataset',
        'torch/mnist',
        '--data-dir',
        digits,
        '--val-split',
        'validation',
        '--test-split',
        '',
        '--model',
        'resnet10t',
        '--model-kwargs',
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    run = folder / 'runs' / 'two'
    metrics = json.loads((run / 'metrics.json').read_text())['val']
    assert metrics['images'] == np.sum(metrics['confusion_matrix']) == 1
    ((path, target, _, *probs),) = [row.split(',') for row in (run / 'predictions.csv').read_text().splitlines()[1:]]
    assert (path, target) == ('0', '0 - zero')
    assert metrics['log_loss'] == pytest.approx(-np.log(float(probs[0])), rel=1e-4)
    (run / 'metrics.json').unlink()
    assert main(['train', '--config', str(run / 'config.yaml'), '--resume']) == 1
    assert 'was saved by 2 processes' in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere nothing tells processes of the end of another')
@pytest.mark.parametrize('signum', [signal.SIGUSR1, signal.SIGKILL])
def test_end_of_torchrun_alone(folder, signum):
    """It hands neither signal on; its processes save the state and leave the run to the next job."""
    name = f'alone-{signum}'
    args = [
        '-m',
        'torch.distributed.run',
        '--nproc_per_node',
        2,
        '--rdzv_backend',
        'c10d',
        '--rdzv_endpoint',
        'localhost:0',
        '-m',
        'hdkd_timm',
        'train',
        '--data-dir',
        folder / 'data',
        '--output',
        folder / 'runs',
        *SETTINGS,
        '--epochs',
        100_000,
        '--experiment',
        name,
    ]
    process = subprocess.Popen(
        [sys.executable, *map(str, args)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    run = folder / 'runs' / name
    while not (run / 'last.pth').exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    os.killpg(process.pid, signum)
    _, errors = process.communicate(timeout=100)  # of all three: they share the pipe
    assert process.returncode == -signum
    assert errors.count('hdkd train: SIGTERM, the state is saved.') == 2
    assert not (run / '.lock').exists()


def test_unknown_device():
    with pytest.raises(ValueError, match="Device 'toaster' cannot be used"):
        pick_device('toaster')
