import pytest
import torch

from hdkd_timm.benchmark.config import BenchConfig
from hdkd_timm.benchmark.step import STEP_FORMS, StepForm, create_step, measure_memory

CPU = torch.device('cpu')


@pytest.mark.parametrize('name', [name for name, form in STEP_FORMS.items() if not (form.compiled or form.amp)])
def test_forms_of_a_step_compute_the_same(name):
    step, expected = create_step(STEP_FORMS[name], 2, 32, CPU), create_step(StepForm(), 2, 32, CPU)
    losses = [[float(each()) for _ in range(3)] for each in (step, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert len(set(losses[0])) == 3  # it trains


def test_memory_of_a_step():
    config = BenchConfig(img_size=96, batch_size=4)
    again, once = (measure_memory(STEP_FORMS[name], config, CPU) for name in ('stages again', 'one pass'))
    assert 20e6 < once < again
