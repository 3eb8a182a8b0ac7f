"""Kills and signals at many points of a run, and whether all is there afterwards: a script, no test.

    python tests/kill_table.py [--kills 100] [--signals 10] [--seed 0]

A run (a tiny student, a dozen images, two epochs, two loader processes) is killed by SIGKILL before its n-th file
operation, and at random moments; then it is begun or resumed until it is done, and its weights are compared bit by bit
with those of a run that was never broken. Each of SIGTERM, SIGINT, SIGHUP and SIGUSR1 is sent to the process and to its
group at random moments; the state must be saved, and the run must end as the unbroken one.

All runs are forks of one process that has imported everything.
"""

import argparse
import builtins
import collections
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from hdkd_timm import TrainConfig, train
from hdkd_timm.utils.run_files import CONFIG_FILE, METRICS_FILE, STATE_FILE
from hdkd_timm.utils.signals import Interrupted

OPERATIONS = ('open', 'mkdir', 'rename', 'replace', 'unlink', 'rmdir', 'fsync', 'chmod')
NETWORK = dict(depths=(1, 1, 1, 1), dims=(8, 8, 8), embed_dim=16, num_heads=1, head_dim=16, mlp_ratio=1)


def count_operations(root, limit=None):
    """Count the file operations under `root` in this process, and kill it before the one of number `limit`."""
    counted = [0]
    main = os.getpid()

    def watch(function):
        def watched(path, *args, **kwargs):
            flags = args[0] if args else kwargs.get('mode', 'r')
            writes = not (isinstance(flags, str) and function is builtins_open and not set(flags) & set('wax+'))
            is_ours = isinstance(path, int) or kwargs.get('dir_fd') or os.fspath(path).startswith(str(root))
            if os.getpid() == main and writes and is_ours:
                counted[0] += 1
                if counted[0] == limit:
                    os.kill(main, signal.SIGKILL)
            return function(path, *args, **kwargs)

        return watched

    builtins_open = builtins.open
    builtins.open = watch(builtins_open)
    for name in OPERATIONS:
        setattr(os, name, watch(getattr(os, name)))
    return counted


def write_images(folder):
    rng = np.random.default_rng(0)
    for split in ('train', 'val', 'test'):
        for k, name in enumerate('ab'):
            (folder / split / name).mkdir(parents=True)
            for i in range(6 if split == 'train' else 2):
                pixels = rng.normal(60 + 100 * k, 20, (36, 36, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f'{i}.png')


def settings(root, experiment, workers):
    return TrainConfig(
        data_dir=str(root / 'data'),
        output=str(root / 'runs'),
        experiment=experiment,
        model='hdkd_student_s4',
        img_size=32,
        epochs=2,
        batch_size=4,
        workers=workers,
        device='cpu',
        bootstrap=0,
        model_kwargs=NETWORK,
        model_ema=True,
        recovery_interval=1,
        check_images=False,
    )


def start(root, experiment, workers=0, limit=None, out=None, **flags):
    """A run in a process, and process group, of its own. Returns its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        sys.stderr = sys.stdout = open(root / 'log', 'a')  # noqa: SIM115, of a process that ends by _exit
        counted = count_operations(root / 'runs', limit)
        train(settings(root, experiment, workers), **flags)
        if out is not None:
            out.write_text(str(counted[0]))
        code = 0
    except Interrupted as e:
        code = 128 + e.signum
    except FileNotFoundError as e:
        code = 3 if 'start it without --resume' in str(e) else 1
        print(experiment, repr(e), file=sys.stderr, flush=True)
    except BaseException as e:
        print(experiment, repr(e), file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def finish(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def complete(root, experiment):
    """Begin or resume a run until it is done, as a job script would. Returns the exit codes."""
    codes = [finish(start(root, experiment, resume=True))]
    if codes[-1] == 3:
        codes.append(finish(start(root, experiment)))
    return codes


def same(root, experiment):
    """Are weights and predictions those of the unbroken run?"""
    ours, whole = root / 'runs' / experiment, root / 'runs' / 'whole'
    if not (ours / METRICS_FILE).exists():
        return False
    if sorted(path.name for path in ours.iterdir()) != sorted(path.name for path in whole.iterdir()):
        return False
    weights, expected = (load_file(run / 'best' / 'model.safetensors') for run in (ours, whole))
    return all(torch.equal(weights[k], v) for k, v in expected.items()) and all(
        (ours / name).read_text() == (whole / name).read_text() for name in ('predictions.csv', 'summary.csv')
    )


def kill_everywhere(root, kills, rng, seconds, operations):
    """A third at random moments, two thirds before file operations, those of the start among them."""
    results = collections.Counter()
    enumerated = max(1, 2 * kills // 3)
    limits = sorted(
        set(range(1, 1 + min(operations, enumerated // 2))) | {int(n) for n in np.linspace(1, operations, enumerated)}
    )[:enumerated]
    limits += rng.sample(range(1, operations + 1), min(operations, enumerated - len(limits)))
    killed = 0
    for i in itertools.count():
        if killed == kills:
            break
        name = f'kill{i}'
        if i < len(limits):
            kind = 'before file operation'
            code = finish(start(root, name, workers=0, limit=limits[i]))
        else:
            kind = 'random moment'
            pid = start(root, name, workers=2)
            time.sleep(rng.uniform(0, seconds))
            os.kill(pid, signal.SIGKILL)
            code = finish(pid)
        killed += code == -signal.SIGKILL  # or the run ended before
        codes = complete(root, name)
        ok = codes[-1] == 0 and same(root, name)
        results[kind, 'same' if ok else 'LOST', 'killed' if code == -signal.SIGKILL else 'ended before'] += 1
        if not ok:
            print(name, limits[i] if i < len(limits) else '', code, codes)
        shutil.rmtree(root / 'runs' / name, ignore_errors=True)
    return results


def kill_overwrites(root, rng, number, operations):
    """`overwrite` of a finished run, killed before the n-th file operation: it, or the new one, is there afterwards."""
    results = collections.Counter()
    for limit in sorted(rng.sample(range(1, operations + 1), min(number, operations))):
        shutil.copytree(root / 'runs' / 'whole', root / 'runs' / 'over')
        (root / 'runs' / 'over' / 'mark').touch()
        code = finish(start(root, 'over', limit=limit, overwrite=True))
        codes = complete(root, 'over')
        is_old = (root / 'runs' / 'over' / 'mark').exists()
        (root / 'runs' / 'over' / 'mark').unlink(missing_ok=True)
        ok = codes[-1] == 0 and same(root, 'over')
        results['overwrite', 'same' if ok else 'LOST', 'old run' if is_old else 'new run'] += 1
        if not ok:
            print('overwrite', limit, code, codes)
        shutil.rmtree(root / 'runs' / 'over')
    return results


def signal_everywhere(root, number, rng, seconds):
    results = collections.Counter()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        for to in ('process', 'group'):
            counted = 0
            for i in itertools.count():
                if counted == number:
                    break
                name = f'{signum.name}-{to}-{i}'
                pid = start(root, name, workers=2)
                config = root / 'runs' / name / CONFIG_FILE
                while not config.exists():
                    time.sleep(0.002)
                time.sleep(0.05 + rng.uniform(0, seconds / 2))
                (os.killpg if to == 'group' else os.kill)(pid, signum)
                code = finish(pid)
                saved = (root / 'runs' / name / STATE_FILE).exists() and code == 128 + signum
                counted += code != 0  # or the run ended before
                ok = code == 0 or saved
                codes = complete(root, name)
                ok = ok and codes[-1] == 0 and same(root, name)
                results[signum.name, to, ('saved' if saved else 'ended before') if ok else 'LOST'] += 1
                if not ok:
                    print(name, code, codes)
                shutil.rmtree(root / 'runs' / name, ignore_errors=True)
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=100)
    parser.add_argument('--overwrites', type=int, default=20)
    parser.add_argument('--signals', type=int, default=10, help='of each kind, to the process and to its group')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it puts into the background,
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup this
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root / 'data')
        (root / 'runs').mkdir()
        begin = time.monotonic()
        assert finish(start(root, 'whole', out=root / 'operations')) == 0, (root / 'log').read_text()
        operations = int((root / 'operations').read_text())
        assert finish(start(root, 'workers', workers=2)) == 0, (root / 'log').read_text()
        begin = time.monotonic()
        assert finish(start(root, 'workers', workers=2, overwrite=True)) == 0
        seconds = time.monotonic() - begin
        assert same(root, 'workers')
        print(f'a run takes {seconds:.1f} s and {operations} file operations', flush=True)
        for table in (
            lambda: kill_everywhere(root, args.kills, rng, seconds, operations),
            lambda: kill_overwrites(root, rng, args.overwrites, operations),
            lambda: signal_everywhere(root, args.signals, rng, seconds),
        ):
            for key, number in sorted(table().items()):
                print(f'{number:5d}  {", ".join(key)}', flush=True)
        if os.environ.get('KILL_TABLE_LOG'):
            shutil.copy(root / 'log', os.environ['KILL_TABLE_LOG'])


if __name__ == '__main__':
    main()
