import pytest

from hdkd_timm import memory
from hdkd_timm.memory import available_memory, format_bytes


def test_available_memory(monkeypatch):
    assert 2 ** 20 < available_memory() < 2 ** 50
    monkeypatch.setattr(memory, '_container_memory', lambda: 12345.)
    assert available_memory() == 12345


@pytest.mark.parametrize(('number', 'words'), [
    (100, '0.1 KiB'), (1024, '1.0 KiB'), (1000 * 2 ** 10, '1.0 MiB'), (3 * 2 ** 29, '1.5 GiB')])
def test_format_bytes(number, words):
    assert format_bytes(number) == words
