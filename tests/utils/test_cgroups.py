"""The limits of a container or job are those of the innermost and all enclosing cgroups."""

import os

import pytest
import torch
from processes import TORCH, run

from hdkd_timm.utils import cgroups
from hdkd_timm.utils.cgroups import available_cores, container_memory, limit_threads

ALL = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """The folder of cgroups, without limits; this process is in /jobs/7/step."""
    monkeypatch.setattr(cgroups, 'CGROUPS', tmp_path)
    monkeypatch.setattr(cgroups, 'CGROUP_OF_SELF', tmp_path / 'self')
    (tmp_path / 'self').write_text('1:cpu:/x\n0::/jobs/7/step\n')
    for folder in ('jobs', 'jobs/7', 'jobs/7/step', 'cpu'):
        (tmp_path / folder).mkdir()
    return tmp_path


def test_without_cgroups(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroups, 'CGROUPS', tmp_path)
    monkeypatch.setattr(cgroups, 'CGROUP_OF_SELF', tmp_path / 'self')
    assert container_memory() == float('inf')
    assert available_cores() == ALL


def test_memory_of_a_job(groups):
    for folder, limit in (('.', '900'), ('jobs', 'max'), ('jobs/7', '600'), ('jobs/7/step', 'max')):
        for name, text in (('max', limit), ('current', '250'), ('stat', 'anon 200\ninactive_file 30\n')):
            (groups / folder / f'memory.{name}').write_text(text)
    assert container_memory() == 600 - 250 + 30
    (groups / 'memory.max').write_text('300\n')
    assert container_memory() == 80


def test_cores_of_a_job(groups, monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(8)), raising=False)
    assert available_cores() == 8
    for folder, limit in (('jobs', '600000 100000'), ('jobs/7', '25000 10000'), ('jobs/7/step', 'max 100000')):
        (groups / folder / 'cpu.max').write_text(f'{limit}\n')
    assert available_cores() == 3  # 2.5 cores' worth of time
    (groups / 'jobs' / 'cpu.max').write_text('50000 100000\n')
    assert available_cores() == 1
    (groups / 'jobs' / 'cpu.max').write_text('nonsense\n')
    (groups / 'jobs' / '7' / 'cpu.max').write_text('1600000 100000\n')
    assert available_cores() == 8


@pytest.mark.parametrize(('quota', 'cores'), [('200000', 2), ('-1', 8)])
def test_cores_of_cgroup_v1(groups, monkeypatch, quota, cores):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(8)), raising=False)
    (groups / 'cpu' / 'cpu.cfs_quota_us').write_text(f'{quota}\n')
    (groups / 'cpu' / 'cpu.cfs_period_us').write_text('100000\n')
    assert available_cores() == cores


def test_threads_of_a_container(groups, monkeypatch, caplog):
    """Fewer than PyTorch's where the container has fewer, told; OMP_NUM_THREADS decides."""
    threads = []
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 8)
    monkeypatch.setattr(torch, 'set_num_threads', threads.append)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    caplog.set_level('INFO')
    limit_threads()
    assert (threads, caplog.text) == ([], '')
    (groups / 'jobs' / 'cpu.max').write_text('150000 100000\n')
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(8)), raising=False)
    limit_threads()
    assert threads == [2]
    assert "PyTorch uses 2 of 8 threads, this container's share of the cores" in caplog.text
    monkeypatch.setenv('OMP_NUM_THREADS', '8')
    limit_threads()
    assert threads == [2]


def test_commands_use_the_share(groups):
    (groups / 'jobs' / 'cpu.max').write_text('100000 100000\n')
    code = (
        'import os; os.environ.pop("OMP_NUM_THREADS", None); import sys, torch; torch.set_num_threads(4);'
        'from pathlib import Path; from hdkd_timm.utils import cgroups; from hdkd_timm.cli import main;'
        f'cgroups.CGROUPS = Path({str(groups)!r}); cgroups.CGROUP_OF_SELF = cgroups.CGROUPS / "self";'
        'main(["check", "gone"]); print(torch.get_num_threads())'
    )
    result = run('-c', code, modules=TORCH)
    assert result.stdout == '1\n'
    assert 'PyTorch uses 1 of 4 threads' in result.stderr
