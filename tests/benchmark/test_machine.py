import pytest
import torch

from hdkd_timm.benchmark import machine

CPU = torch.device('cpu')
INFO = """processor\t: 0
model name\t: A processor: of 2031
flags\t\t: fpu avx2 avx512f avx512_vnni amx_bf16

processor\t: 1
model name\t: another
"""


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        (INFO, 'A processor: of 2031 (AVX2, AVX-512, AVX-512 VNNI, AMX BF16), 3 threads'),
        ('Features\t: fp asimd bf16 i8mm\n', '(NEON, BF16, I8MM), 3 threads'),
        (None, f'({torch.backends.cpu.get_cpu_capability()}), 3 threads'),
    ],
)
def test_description(text, expected, tmp_path, monkeypatch):
    if text:
        (tmp_path / 'cpuinfo').write_text(text)
    monkeypatch.setattr(machine, 'CPU_INFO', tmp_path / 'cpuinfo')
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 3)
    assert expected in machine.describe_machine(CPU)
    assert f'torch {torch.__version__}' in machine.describe_machine(CPU)


def test_peaks(monkeypatch):
    """Of the work that is done in the time that it takes."""
    monkeypatch.setattr(machine, 'MATRIX', 8)
    monkeypatch.setattr(machine, 'COPIED', 100)
    done = {}

    def take_turns(forms, rounds, device):
        assert (rounds, device) == (3, CPU)
        for name, form in forms.items():
            done[name] = form()
        return dict(product=2.0, copy=4.0)

    monkeypatch.setattr(machine, 'take_turns', take_turns)
    assert machine.measure_peaks(CPU, 3) == (2 * 8**3 / 2, 2 * 100 / 4)
    assert done['product'].shape == (8, 8)
    assert done['copy'].sum() == 0
