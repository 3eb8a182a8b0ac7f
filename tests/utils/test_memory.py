import platform

import pytest
import torch
from processes import TORCH, run

from hdkd_timm.utils import memory
from hdkd_timm.utils.memory import available_memory, format_bytes, kept_memory


def test_available_memory(monkeypatch):
    assert 2**20 < available_memory() < 2**50
    monkeypatch.setattr(memory, 'container_memory', lambda: 12345.0)
    assert available_memory() == 12345


@pytest.mark.parametrize(
    ('number', 'words'), [(100, '0.1 KiB'), (1024, '1.0 KiB'), (1000 * 2**10, '1.0 MiB'), (3 * 2**29, '1.5 GiB')]
)
def test_format_bytes(number, words):
    assert format_bytes(number) == words


FAULTS = """
import resource, torch
from hdkd_timm.utils.memory import kept_memory

def count_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.zeros(2 ** 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

by_default = count_faults()
with kept_memory(torch.device('cpu')):
    print(by_default, count_faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='another allocator')
def test_freed_memory_is_kept():
    result = run('-c', FAULTS, modules=TORCH)  # whose heap is orderly
    by_default, kept = map(int, result.stdout.split())
    assert 3 * kept < by_default


def test_memory_is_kept_on_the_cpu_alone(monkeypatch):
    calls = []
    monkeypatch.setattr(memory, 'keep_freed_memory', lambda keep=True: calls.append(keep) or True)
    for device in ('meta', 'cpu'):
        with kept_memory(torch.device(device)):
            pass
    assert calls == [True, False]
