"""Batches that depend on seed, epoch and place alone."""
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from hdkd_timm.data import loader as loader_module
from hdkd_timm.data.augment import AugmentConfig
from hdkd_timm.data.imbalance import sample_weights
from hdkd_timm.data.loader import EpochSampler, SplitLoader, derive_seed, find_timeout, fit_workers
from hdkd_timm.data.samples import DataConfig, create_datasets
from hdkd_timm.utils.signals import STOP_SIGNALS

pytestmark = pytest.mark.filterwarnings('ignore:This DataLoader will create')  # more processes than cores

STATS = dict(mean=(0.1, 0.5, 0.7), std=(0.2, 0.3, 0.4), interpolation='bilinear', crop_pct=1., crop_mode='squash')
DATA = dict(STATS, input_size=(3, 24, 24))
STRONG = AugmentConfig(scale=(0.3, 1.), aa='rand-m6-mstd0.5')  # Python's, NumPy's and torch's random numbers


class Numbered(torch.utils.data.Dataset):
    """Images whose brightness, and class, is their number."""
    shade = 0

    def __init__(self, number, targets=None):
        self.number = number
        self.targets = np.arange(number) if targets is None else targets

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        return Image.new('RGB', (24, 24), (index + self.shade,) * 3), int(self.targets[index])


class Heedless(Numbered):
    """Images whose class tells whether the process that reads them ignores Ctrl-C."""
    def __getitem__(self, index):
        return super().__getitem__(index)[0], int(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)


class Stream(torch.utils.data.IterableDataset):
    """A dataset without random access."""
    def __init__(self, dataset):
        self.dataset = dataset

    def __iter__(self):
        for i in range(len(self.dataset)):
            image, target = self.dataset[i]
            yield self.transform(image), target


@pytest.fixture
def dataset(image_folder):
    return create_datasets(DataConfig(data_dir=str(image_folder)))[0]['train']


def batches(loader, *args):
    return [(input.clone(), target.clone()) for input, target in loader.epoch(*args)]


def numbers(iterator):
    return [target.tolist() for _, target in iterator]


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for (input, target), (other_input, other_target) in zip(ours, theirs):
        assert torch.equal(input, other_input)
        assert torch.equal(target, other_target)


@pytest.mark.parametrize('augment', [STRONG, AugmentConfig(aug='paper')])
def test_batches_do_not_depend_on_processes(dataset, augment):
    expected = None
    for num_workers in (0, 1, 2):
        torch.manual_seed(num_workers)
        random.seed(num_workers)
        np.random.seed(num_workers)
        loader = SplitLoader(dataset, DATA, 5, augment, num_workers)
        found = batches(loader, 0), batches(loader, 3)
        expected = expected or found
        for ours, theirs in zip(found, expected):
            assert_equal(ours, theirs)
    first, second = expected
    assert [len(target) for _, target in first] == [5] * 4  # 24 images: the rest is left out
    assert not torch.equal(first[0][0], second[0][0])
    other = batches(SplitLoader(dataset, DATA, 5, augment, 0, seed=1), 0)
    assert not torch.equal(first[0][0], other[0][0])


def test_an_image_is_augmented_anew_each_epoch():
    loader = SplitLoader(Numbered(1), DATA, 1, AugmentConfig(scale=(0.3, 1.), color_jitter=0.9), 0)
    loader.dataset.shade = 100
    assert len({batches(loader, epoch)[0][0].sum().item() for epoch in range(5)}) == 5


def test_an_image_drawn_twice_is_augmented_twice(dataset):
    weights = np.full(len(dataset), 1e-9)
    weights[0] = 1  # the same image all the time
    (input, target), *_ = batches(SplitLoader(dataset, DATA, 8, AugmentConfig(), 0, weights=weights), 0)
    assert len(set(target.tolist())) == 1
    assert len({image.numpy().tobytes() for image in input}) > 4


@pytest.mark.parametrize('num_workers', [0, 2])
def test_start_gives_the_tail_of_the_epoch(dataset, num_workers):
    loader = SplitLoader(dataset, DATA, 4, STRONG, num_workers)
    whole = batches(loader, 1)
    assert len(whole) == len(loader) == 6
    for start in (0, 1, 4, 6):
        assert_equal(batches(loader, 1, start), whole[start:])
        assert len(loader) == 6
    # a loader that was left in the middle begins anew
    iterator = loader.epoch(2)
    next(iterator)
    next(iterator)
    iterator.close()
    assert_equal(batches(loader, 1), whole)


@pytest.mark.parametrize('world_size', [2, 3])
def test_ranks_share_an_epoch(world_size):
    data = Numbered(26)
    ranks = [
        numbers(SplitLoader(data, DATA, 4, AugmentConfig(), 0, rank=rank, world_size=world_size).epoch(2))
        for rank in range(world_size)]
    assert {len(rank) for rank in ranks} == {26 // (4 * world_size)}
    assert all(len(batch) == 4 for rank in ranks for batch in rank)
    seen = [index for rank in ranks for batch in rank for index in batch]
    assert len(set(seen)) == len(seen)
    # together they see what one process with larger batches would
    single = numbers(SplitLoader(data, DATA, 4 * world_size, AugmentConfig(), 0).epoch(2))
    for step, batch in enumerate(single):
        assert sorted(batch) == sorted(index for rank in ranks for index in rank[step])


def test_every_epoch_is_shuffled():
    loader = SplitLoader(Numbered(24), DATA, 6, AugmentConfig(), 0)
    orders = [sum(numbers(loader.epoch(epoch)), []) for epoch in range(4)]
    assert all(sorted(order) == list(range(24)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert list(range(24)) not in orders


def test_order_of_the_test():
    data = Numbered(11)
    loader = SplitLoader(data, DATA, 4, num_workers=0)
    assert numbers(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert len(loader) == 3
    shares = [sum(numbers(SplitLoader(data, DATA, 2, num_workers=0, rank=rank, world_size=3)), []) for rank in range(3)]
    assert shares == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8]]
    empty = SplitLoader(Numbered(1), DATA, 2, num_workers=0, rank=1, world_size=2)
    assert numbers(empty) == []


def test_test_images_are_normalised_and_nothing_else():
    loader = SplitLoader(Numbered(200), DATA, 8, num_workers=0)
    for i, (input, _) in enumerate(loader):
        assert input.dtype == torch.float32
        values = torch.arange(8 * i, 8 * i + 8) / 255
        for channel in range(3):
            expected = ((values - STATS['mean'][channel]) / STATS['std'][channel]).view(8, 1, 1).expand(8, 24, 24)
            assert torch.allclose(input[:, channel], expected, atol=1e-5)


@pytest.mark.parametrize('augment', [None, AugmentConfig(aug='none')])
def test_grey_images(image_folder, augment):
    dataset = create_datasets(DataConfig(data_dir=str(image_folder), in_chans=1))[0]['train']
    loader = SplitLoader(dataset, dict(DATA, input_size=(1, 40, 40)), 24, augment, num_workers=0)
    input, target = next(iter(loader.epoch(0)))
    assert input.shape == (24, 1, 40, 40)
    pixels = input * 0.3 + 1.3 / 3  # the mean of the channels' means and deviations
    for k in range(3):
        assert pixels[target == k].mean().item() * 255 == pytest.approx(40 + 80 * k, abs=5)
    if augment is None:
        expected = torch.from_numpy(np.stack([np.asarray(dataset.read(i)) for i in range(24)])) / 255
        assert torch.allclose(pixels[:, 0], expected, atol=1e-5)


def test_balanced_sampler():
    targets = np.array([0] * 90 + [1] * 9 + [2] * 21)
    loader = SplitLoader(
        Numbered(120, targets), DATA, 10, AugmentConfig(aug='none'), 0, weights=sample_weights('balanced', targets))
    counts = Counter(t for epoch in range(10) for batch in numbers(loader.epoch(epoch)) for t in batch)
    assert sum(counts.values()) == 1200
    assert all(counts[k] == pytest.approx(400, abs=60) for k in range(3))
    assert numbers(loader.epoch(0)) == numbers(loader.epoch(0))
    assert numbers(loader.epoch(0)) != numbers(loader.epoch(1))
    # processes draw one epoch together
    keys = [list(EpochSampler(120, 5, weights=sample_weights('balanced', targets), rank=rank, world_size=2))
            for rank in range(2)]
    single = list(EpochSampler(120, 10, weights=sample_weights('balanced', targets)))
    assert [sorted(a + b) for a, b in zip(*keys)] == [sorted(batch) for batch in single]


def test_too_few_images(dataset):
    with pytest.raises(ValueError, match='24 training images are fewer than a batch of 26: lower --batch-size'):
        SplitLoader(dataset, DATA, 13, AugmentConfig(), 0, world_size=2)
    assert len(SplitLoader(dataset, DATA, 12, AugmentConfig(), 0, world_size=2)) == 1
    assert len(SplitLoader(dataset, DATA, 100, num_workers=0)) == 1  # not of a test


def test_random_numbers_are_left_alone(dataset):
    loader, plain = SplitLoader(dataset, DATA, 8, STRONG, 0), SplitLoader(dataset, DATA, 8, num_workers=0)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    for iterator in (loader.epoch(0), plain):
        for _ in iterator:
            assert torch.equal(torch.get_rng_state(), before[0])
            assert random.getstate() == before[1]
            assert np.array_equal(np.random.get_state()[1], before[2])


@pytest.fixture
def heeds_ctrl_c():
    """As in a terminal: a shell starts what it puts into the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures('heeds_ctrl_c')
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
def test_loader_processes_are_deaf_to_signals(wrap, signum):
    loader = SplitLoader(wrap(Signalled(8, signum)), DATA, 2, num_workers=2)
    assert set(sum(numbers(loader), [])) == set(range(8))


class Hanging(Numbered):
    """A disk that hangs."""
    def __getitem__(self, index):
        if index == 3:
            time.sleep(1000)
        return super().__getitem__(index)


HANG = """
import sys
import time
from test_loader import DATA, Hanging
from hdkd_timm.data import loader
loader.find_timeout = lambda batch_size: 1
begin = time.monotonic()
try:
    list(loader.SplitLoader(Hanging(4), DATA, 2, num_workers=1))
except TimeoutError as e:
    print(e)
"""


def test_loader_that_hangs():
    """It ends in an error, and its process with it: neither waits for the other."""
    result = subprocess.run(
        [sys.executable, '-c', HANG], capture_output=True, text=True, timeout=300, cwd=os.path.dirname(__file__),
        check=False)
    assert result.returncode == 0, result.stderr
    assert 'No batch came from the loader processes (DataLoader timed out after 1 seconds)' in result.stdout
    assert 'take --workers 0' in result.stdout


class Killed(Numbered):
    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize('augment', [None, AugmentConfig()])
@pytest.mark.parametrize('wrap', [lambda dataset: dataset, Stream])
def test_loader_process_that_is_killed(wrap, augment):
    loader = SplitLoader(wrap(Killed(4)), DATA, 2, augment, num_workers=1)
    with pytest.raises(ChildProcessError, match=r'A loader process ended \(.*worker.*\).* take fewer --workers'):
        next(loader.epoch(0) if augment else iter(loader))


class Broken(Numbered):
    def __getitem__(self, index):
        raise RuntimeError('image 0 is no image')


@pytest.mark.parametrize('num_workers', [0, 1])
def test_errors_of_images_are_their_own(num_workers):
    with pytest.raises(RuntimeError, match='image 0 is no image'):
        next(iter(SplitLoader(Broken(4), DATA, 2, num_workers=num_workers)))


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere they end within seconds')
def test_loader_processes_end_with_their_parent():
    child, parent = os.pipe()
    pid = os.fork()
    if not pid:
        iterator = iter(SplitLoader(Numbered(64), DATA, 2, num_workers=2))
        next(iterator)
        os.write(parent, b'ready')
        time.sleep(100)
        os._exit(0)
    os.close(parent)  # what is left of it is the loader processes'
    assert os.read(child, 5) == b'ready'
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    begin = time.monotonic()
    assert os.read(child, 1) == b''
    os.close(child)
    assert time.monotonic() - begin < 60  # it does end


MIB = 2 ** 20


@pytest.mark.parametrize(('workers', 'batch', 'free', 'expected'), [
    (8, 64 * 3 * 224 * 224, 64 * MIB, 2),  # docker's default: 2 x 2 + 2 batches of 9.2 MiB are 55.1 MiB
    (8, 64 * 3 * 224 * 224, 24 * 2 ** 30, 8),
    (2, 8 * 3 * 32 * 32, 64 * 1024, 0),  # too little for the locks alone
    (2, 10 * MIB, 61 * MIB, 2),
    (2, 10 * MIB, 61 * MIB - 1, 1),
    (2, 10 * MIB, 40 * MIB, 0),
    (0, 10, 10 ** 9, 0),
])
def test_workers_that_fit_into_shared_memory(workers, batch, free, expected):
    assert fit_workers(workers, batch, free) == expected


def test_little_shared_memory_is_told(monkeypatch, caplog):
    monkeypatch.setattr(loader_module.shutil, 'disk_usage', lambda path: SimpleNamespace(free=64 * MIB))
    data = dict(DATA, input_size=(3, 224, 224))
    assert SplitLoader(Numbered(4), data, 64, num_workers=8).loader.loader.num_workers == 2
    assert '8 loader processes hold up to 166.4 MiB of batches' in caplog.text
    assert '64.0 MiB are free: 2 are used' in caplog.text
    assert '--shm-size' in caplog.text
    caplog.clear()
    assert SplitLoader(Numbered(4), data, 64, num_workers=8, local_size=2).loader.loader.num_workers == 0
    assert 'none are used' in caplog.text
    caplog.clear()
    assert SplitLoader(Numbered(4), DATA, 2, num_workers=2).loader.loader.num_workers == 2
    assert SplitLoader(Stream(Numbered(4)), data, 64, num_workers=8).loader.loader.num_workers == 2
    assert caplog.text.count('loader processes') == 1


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which('unshare'), reason='mounts a small disk')
def test_small_shared_memory():
    """As in a container of 64 KiB: loader processes would wait there for ever."""
    code = 'from test_loader import *\nprint(numbers(SplitLoader(Numbered(8), DATA, 2, num_workers=2)))'
    mount = ['unshare', '-m', 'sh', '-c', 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"', 'sh']
    result = subprocess.run(
        [*mount, sys.executable, '-c', code], capture_output=True, text=True, timeout=300, check=False,
        cwd=os.path.dirname(__file__))
    if result.returncode == 32 or 'unshare failed' in result.stderr:
        pytest.skip('no right to mount')
    assert result.stdout.strip() == '[[0, 1], [2, 3], [4, 5], [6, 7]]', result.stderr
    assert 'none are used' in result.stderr


def test_timeout_leaves_time_to_slow_disks():
    assert find_timeout(1) == find_timeout(16) == 300
    assert find_timeout(64) == 640
    assert SplitLoader(Numbered(4), DATA, 2, num_workers=1).loader.loader.timeout == 300
    assert SplitLoader(Numbered(4), DATA, 2, num_workers=0).loader.loader.timeout == 0


def test_derived_seeds():
    seeds = {derive_seed(*keys) for keys in [(1,), (1, 2), (2, 1), (1, 2, 3), (1, 2, 4), (42, 0, 0), (42, 0, 1)]}
    assert len(seeds) == 7
    assert all(0 <= seed < 2 ** 32 for seed in seeds)
    assert derive_seed(1, 2, 3) == derive_seed(1, 2, 3)
