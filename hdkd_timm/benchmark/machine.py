"""The machine that is measured: its name, its instruction sets, and the peaks of computing and of memory."""

import platform
from pathlib import Path
from typing import List, NamedTuple

import timm
import torch

from .timing import take_turns

CPU_INFO = Path('/proc/cpuinfo')
# flag of /proc/cpuinfo -> name, of those that PyTorch's and ONNX Runtime's kernels choose by
INSTRUCTION_SETS = {
    'avx2': 'AVX2',
    'avx_vnni': 'AVX-VNNI',
    'avx512f': 'AVX-512',
    'avx512_vnni': 'AVX-512 VNNI',
    'avx512_bf16': 'AVX-512 BF16',
    'amx_int8': 'AMX INT8',
    'amx_bf16': 'AMX BF16',
    'asimd': 'NEON',
    'asimddp': 'dot product',
    'bf16': 'BF16',
    'i8mm': 'I8MM',
    'sve': 'SVE',
}
MATRIX, COPIED = 2048, 2**28  # rows of the matrices that are multiplied, bytes that are copied


def _read_cpu_info(key: str) -> str:
    """The first value of a key in /proc/cpuinfo, '' if there is none."""
    if not CPU_INFO.exists():
        return ''
    lines = (line.partition(':') for line in CPU_INFO.read_text().splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == key), '')


def list_instruction_sets() -> List[str]:
    """Instruction sets of the processor that matter here; PyTorch's own word for them where the system has none."""
    flags = (_read_cpu_info('flags') or _read_cpu_info('Features')).split()
    return [name for flag, name in INSTRUCTION_SETS.items() if flag in flags] or [
        torch.backends.cpu.get_cpu_capability()
    ]


def describe_machine(device: torch.device) -> str:
    """Name of the processor or GPU, instruction sets, number of threads, and versions."""
    if device.type == 'cuda':
        name = torch.cuda.get_device_name(device)
    else:
        name = _read_cpu_info('model name') or platform.processor() or platform.machine()
        name = f'{name} ({", ".join(list_instruction_sets())}), {torch.get_num_threads()} threads'
    return f'{name}, torch {torch.__version__}, timm {timm.__version__}'


class Peaks(NamedTuple):
    """What the machine reaches at best.

    Args:
        flops: Floating-point operations per second of a large matrix product.
        bytes: Bytes per second read and written by a large copy.
    """

    flops: float
    bytes: float


def measure_peaks(device: torch.device, rounds: int, dtype: torch.dtype = torch.float32) -> Peaks:
    """Measure a product of two matrices of 2048 x 2048, and a copy of 256 MiB."""
    a, b = (torch.randn(MATRIX, MATRIX, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    seconds = take_turns(
        {'product': lambda: torch.mm(a, b, out=product), 'copy': lambda: target.copy_(source)}, rounds, device
    )
    return Peaks(2 * MATRIX**3 / seconds['product'], 2 * COPIED / seconds['copy'])
