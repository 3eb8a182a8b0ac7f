"""`make bench-check` compares with the floors of the machine's class."""

import check_speed
import pytest
import yaml
from check_speed import FLOORS, main

RATIOS = {'training step': 3.0, 'memory of a step': 2.0}


@pytest.fixture(autouse=True)
def measured(monkeypatch, tmp_path):
    monkeypatch.setattr(check_speed, 'measure_ratios', lambda: RATIOS)
    monkeypatch.setattr(check_speed, 'FLOORS', tmp_path / 'floors.yaml')

    def set_machine(instruction_sets, floors):
        monkeypatch.setattr(check_speed, 'list_instruction_sets', lambda: instruction_sets)
        (tmp_path / 'floors.yaml').write_text(yaml.safe_dump(floors))

    return set_machine


@pytest.mark.parametrize(('floor', 'code'), [(3.0, 0), (3.01, 1)])
def test_floor(floor, code, measured, capsys):
    measured(['AVX2'], {'AVX2': {'training step': floor}})
    assert main() == code
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split('  ')[0] for line in lines] == list(RATIOS)
    assert ['TOO SLOW' in line for line in lines] == [bool(code), False]


def test_best_instruction_set_counts(measured, capsys):
    measured(['AVX2', 'AVX-512', 'AMX BF16'], {'AVX2': {'training step': 9}, 'AMX BF16': {'training step': 2}})
    assert main() == 0
    measured(['NEON'], {'AVX2': {'training step': 9}})
    assert main() == 0
    assert 'There are no floors for this class of processor (NEON)' in capsys.readouterr().out


def test_floors_are_of_what_is_measured():
    known = {'training step', 'memory of a step'}
    known |= {f'{name}, batch {batch}' for name in ('hdkd_student', 'hdkd_student_s4') for batch in (1, 8)}
    for name, floors in yaml.safe_load(FLOORS.read_text()).items():
        assert name in check_speed.CLASSES
        assert set(floors) == known
        assert all(floor >= 1 for floor in floors.values())
