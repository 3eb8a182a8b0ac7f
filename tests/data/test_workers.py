"""Loader processes: signals, failures, and shared memory that is too small."""

import os
import select
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from data_helpers import DATA, Numbered, Stream, numbers
from processes import run, run_on_a_small_disk

from hdkd_timm.data import workers
from hdkd_timm.data.augment import AugmentConfig
from hdkd_timm.data.loader import SplitLoader
from hdkd_timm.data.workers import find_timeout, fit_workers
from hdkd_timm.utils.signals import STOP_SIGNALS

pytestmark = pytest.mark.filterwarnings('ignore:This DataLoader will create')  # more processes than cores


class Heedless(Numbered):
    """Images whose class says whether the process that reads them ignores Ctrl-C."""

    def __getitem__(self, index):
        return super().__getitem__(index)[0], int(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)


@pytest.fixture
def handles_ctrl_c():
    """As in a terminal: a shell starts what it puts into the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures('handles_ctrl_c')
@pytest.mark.parametrize('augment', [None, AugmentConfig()])
@pytest.mark.parametrize('wrap', [lambda dataset: dataset, Stream])
def test_ctrl_c_is_left_to_the_main_process(wrap, augment):
    for num_workers, ignores in ((0, 0), (2, 1)):
        loader = SplitLoader(wrap(Heedless(4)), DATA, 2, augment, num_workers)
        found = numbers(loader.epoch(0))
        assert len(found) >= 2
        assert {target for batch in found for target in batch} == {ignores}


class Signalled(Numbered):
    """Sends a signal to the process that reads an image."""

    def __init__(self, number, signum):
        super().__init__(number)
        self.signum = signum

    def __getitem__(self, index):
        os.kill(os.getpid(), self.signum)
        return super().__getitem__(index)


@pytest.mark.parametrize('signum', STOP_SIGNALS)
@pytest.mark.parametrize('wrap', [lambda dataset: dataset, Stream])
def test_loader_processes_ignore_signals(wrap, signum):
    loader = SplitLoader(wrap(Signalled(8, signum)), DATA, 2, num_workers=2)
    assert set(sum(numbers(loader), [])) == set(range(8))


HERE = Path(__file__).parent
# where this file and the helpers of the tests can be imported
IMPORTS = dict(os.environ, PYTHONPATH=os.pathsep.join([str(HERE), str(HERE.parent)]))


class Hanging(Numbered):
    """A disk that hangs."""

    at = 3

    def __getitem__(self, index):
        if index == self.at:
            time.sleep(1000)
        return super().__getitem__(index)


HANG = """
from test_workers import DATA, Hanging
from hdkd_timm.data import loader
loader.find_timeout = lambda batch_size: 1
try:
    list(loader.SplitLoader(Hanging(4), DATA, 2, num_workers=1))
except TimeoutError as e:
    print(e)
"""


def test_loader_that_hangs():
    """It ends in an error, and its process with it: neither waits for the other."""
    result = run('-c', HANG, env=IMPORTS)
    assert result.returncode == 0, result.stderr
    assert 'The loader processes returned no batch (DataLoader timed out after 1 seconds)' in result.stdout
    assert 'use --workers 0' in result.stdout


class Killed(Numbered):
    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize('augment', [None, AugmentConfig()])
@pytest.mark.parametrize('wrap', [lambda dataset: dataset, Stream])
def test_loader_process_that_is_killed(wrap, augment):
    loader = SplitLoader(wrap(Killed(4)), DATA, 2, augment, num_workers=1)
    with pytest.raises(ChildProcessError, match=r'A loader process ended \(.*worker.*\).* use fewer --workers'):
        next(loader.epoch(0) if augment else iter(loader))


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere they end within seconds')
def test_loader_processes_end_with_their_parent():
    """At once, even one that waits for a disk: it would hold the lock of the run."""
    child, parent = os.pipe()
    pid = os.fork()
    if not pid:
        Hanging.at = 7  # after the batches that are loaded ahead of the first one
        iterator = iter(SplitLoader(Hanging(64), DATA, 2, num_workers=2))
        next(iterator)
        os.write(parent, b'ready')
        time.sleep(1000)
        os._exit(0)
    os.close(parent)  # only the loader processes still hold its other copies
    assert os.read(child, 5) == b'ready'
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert select.select([child], [], [], 300)[0]
    assert os.read(child, 1) == b''
    os.close(child)


MIB = 2**20


@pytest.mark.parametrize(
    ('workers', 'batch', 'free', 'expected'),
    [
        (8, 64 * 3 * 224 * 224, 64 * MIB, 2),  # docker's default: 2 x 2 + 2 batches of 9.2 MiB are 55.1 MiB
        (8, 64 * 3 * 224 * 224, 24 * 2**30, 8),
        (2, 8 * 3 * 32 * 32, 64 * 1024, 0),  # too little for the locks alone
        (2, 10 * MIB, 61 * MIB, 2),
        (2, 10 * MIB, 61 * MIB - 1, 1),
        (2, 10 * MIB, 40 * MIB, 0),
        (0, 10, 10**9, 0),
    ],
)
def test_workers_that_fit_into_shared_memory(workers, batch, free, expected):
    assert fit_workers(workers, batch, free) == expected


def test_too_little_shared_memory_is_reported(monkeypatch, caplog):
    monkeypatch.setattr(workers.shutil, 'disk_usage', lambda path: SimpleNamespace(free=64 * MIB))
    data = dict(DATA, input_size=(3, 224, 224))
    assert SplitLoader(Numbered(4), data, 64, num_workers=8).loader.loader.num_workers == 2
    assert '8 loader processes hold up to 166.4 MiB of batches' in caplog.text
    assert 'which has 64.0 MiB free: using 2,' in caplog.text
    assert '--shm-size' in caplog.text
    caplog.clear()
    assert SplitLoader(Numbered(4), data, 64, num_workers=8, local_size=2).loader.loader.num_workers == 0
    assert 'using none,' in caplog.text
    caplog.clear()
    assert SplitLoader(Numbered(4), DATA, 2, num_workers=2).loader.loader.num_workers == 2
    assert SplitLoader(Stream(Numbered(4)), data, 64, num_workers=8).loader.loader.num_workers == 2
    assert caplog.text.count('loader processes') == 1


def test_small_shared_memory():
    """As in a container of 64 KiB: loader processes would wait there for ever."""
    code = 'from test_workers import *\nprint(numbers(SplitLoader(Numbered(8), DATA, 2, num_workers=2)))'
    result = run_on_a_small_disk('/dev/shm', '64k', code, env=IMPORTS)
    assert result.stdout.strip() == '[[0, 1], [2, 3], [4, 5], [6, 7]]', result.stderr
    assert 'using none,' in result.stderr


def test_timeout_leaves_time_to_slow_disks():
    assert find_timeout(1) == find_timeout(16) == 300
    assert find_timeout(64) == 640
    assert SplitLoader(Numbered(4), DATA, 2, num_workers=1).loader.loader.timeout == 300
    assert SplitLoader(Numbered(4), DATA, 2, num_workers=0).loader.loader.timeout == 0
