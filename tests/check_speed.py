"""Is the code as fast as it was? `make bench-check`

Measures a few speeds as ratios of two forms in one run, which other work on the machine hardly changes, and compares
them with the floors of its class of processor in `speed_floors.yaml`. Ends with 1 if one is below its floor.
"""

import sys
from pathlib import Path
from typing import Dict

import torch
import yaml

from hdkd_timm.benchmark.config import BenchConfig
from hdkd_timm.benchmark.inference import create_inference
from hdkd_timm.benchmark.machine import describe_machine, list_instruction_sets
from hdkd_timm.benchmark.step import STEP_FORMS, create_step, measure_memory
from hdkd_timm.benchmark.timing import take_turns

CPU = torch.device('cpu')
FLOORS = Path(__file__).with_name('speed_floors.yaml')
CLASSES = ('AMX BF16', 'AVX-512', 'AVX2')  # of processors, by the best instruction set; the others have no floors
BATCH, SIZE, ROUNDS = 8, 224, 3


def measure_ratios() -> Dict[str, float]:
    """Name -> how many times as fast, or as small, the second form of each pair is."""
    published, best = STEP_FORMS['stages again'], STEP_FORMS['+ kept memory']
    steps = {'published': create_step(published, BATCH, SIZE, CPU), 'best': create_step(best, BATCH, SIZE, CPU)}
    seconds = take_turns(steps, ROUNDS, CPU, kept=('best',))
    ratios = {'training step': seconds['published'] / seconds['best']}
    del steps
    config = BenchConfig(img_size=SIZE, batch_size=BATCH)
    memory = [measure_memory(form, config, CPU) for form in (published, best)]
    if None not in memory:
        ratios['memory of a step'] = memory[0] / memory[1]
    for name in ('hdkd_student', 'hdkd_student_s4'):
        for batch in (1, 8):
            x = torch.randn(batch, 3, SIZE, SIZE)
            forms = {form: create_inference(name, form, SIZE, CPU) for form in ('eager', 'fused')}
            calls = {form: lambda call=call, x=x: call(x) for form, call in forms.items()}
            seconds = take_turns(calls, ROUNDS, CPU, kept=('fused',))
            ratios[f'{name}, batch {batch}'] = seconds['eager'] / seconds['fused']
    return ratios


def main() -> int:
    print(describe_machine(CPU))
    found = list_instruction_sets()
    machine = next((name for name in CLASSES if name in found), None)
    floors = yaml.safe_load(FLOORS.read_text()).get(machine)
    if not floors:
        print(f'There are no floors for this class of processor ({", ".join(found)}): only measured.')
    failed = False
    for name, ratio in measure_ratios().items():
        floor = (floors or {}).get(name)
        is_below = floor is not None and ratio < floor
        failed |= is_below
        print(f'{name:28} {ratio:6.2f}' + (f'  floor {floor}' if floor else '') + '  TOO SLOW' * is_below, flush=True)
    return int(failed)


if __name__ == '__main__':
    sys.exit(main())
