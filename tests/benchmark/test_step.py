import pytest
import torch
from processes import run

from hdkd_timm.benchmark.config import BenchConfig
from hdkd_timm.benchmark.step import STEP_FORMS, StepForm, create_step, measure_memory

CPU = torch.device('cpu')


@pytest.mark.usefixtures('small_networks')
@pytest.mark.parametrize('name', [name for name, form in STEP_FORMS.items() if not (form.compiled or form.amp)])
def test_forms_of_a_step_compute_the_same(name):
    step, expected = create_step(STEP_FORMS[name], 2, 32, CPU), create_step(StepForm(), 2, 32, CPU)
    losses = [[float(each()) for _ in range(3)] for each in (step, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=3e-6)  # logits that are twice as large make 1e-5
    assert len(set(losses[0])) == 3  # it trains


# the same in a process that is forked, which has the same peak and imports nothing
FORKED = """
import multiprocessing
import sys
import torch
from hdkd_timm.benchmark.config import BenchConfig
from hdkd_timm.benchmark.step import STEP_FORMS, measure_memory

get_context = multiprocessing.get_context
multiprocessing.get_context = lambda method: get_context('fork')
print(measure_memory(STEP_FORMS[sys.argv[1]], BenchConfig(img_size=96, batch_size=2), torch.device('cpu')))
"""


def test_memory_of_a_step():
    once = measure_memory(STEP_FORMS['one pass'], BenchConfig(img_size=96, batch_size=2), CPU)
    result = run('-c', FORKED, 'stages again')
    assert result.returncode == 0, result.stderr
    assert 20e6 < 1.5 * once < int(result.stdout)
