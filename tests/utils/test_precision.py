"""Mixed precision on a CPU: tried, and told where it is slower."""

import pytest
import torch

from hdkd_timm import EvalConfig, TrainConfig, evaluate_model, train
from hdkd_timm.utils import precision
from hdkd_timm.utils.precision import measure_slowdown, warn_of_slow_autocast

CPU = torch.device('cpu')


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_the_trial_leaves_no_trace(dtype):
    """It runs inside inference mode too, and draws no random number of the training."""
    measure_slowdown.cache_clear()
    torch.manual_seed(0)
    with torch.inference_mode():
        slowdown = measure_slowdown(dtype)
    assert 0 < slowdown < 1e4
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))
    assert measure_slowdown(dtype) == slowdown  # measured once


@pytest.fixture(autouse=True)
def _as_in_a_new_process(monkeypatch):
    monkeypatch.setattr(precision, '_warned', set())


@pytest.mark.parametrize(('slowdown', 'is_told'), [(4.24, True), (1.5, False), (0.4, False)])
def test_slow_processors_are_told(slowdown, is_told, monkeypatch, caplog):
    monkeypatch.setattr(precision, 'measure_slowdown', lambda dtype: slowdown)
    for _ in range(2):
        warn_of_slow_autocast(CPU, torch.bfloat16)
    assert caplog.text.count('mixed precision in bfloat16 is about 4 times slower than float32') == is_told
    assert ('use --no-amp' in caplog.text) == is_told


def test_other_devices_are_not_tried(monkeypatch):
    monkeypatch.setattr(precision, 'measure_slowdown', lambda dtype: pytest.fail('tried'))
    warn_of_slow_autocast(torch.device('meta'), torch.float16)


def test_training_and_evaluation_tell(image_folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(precision, 'measure_slowdown', lambda dtype: 7.0)
    settings = dict(data_dir=str(image_folder), img_size=32, batch_size=4, workers=0)
    config = TrainConfig(**settings, model='hdkd_student_plain', epochs=1, output=str(tmp_path), amp_dtype='bfloat16')
    run = train(config)['run']
    assert 'slower' not in caplog.text
    evaluate_model(run, EvalConfig(**settings, amp=True, amp_dtype='bfloat16', bootstrap=0))
    assert caplog.text.count('about 7 times slower') == 1
    precision._warned.clear()
    train(TrainConfig(**{**vars(config), 'amp': True, 'experiment': 'mixed'}))
    assert caplog.text.count('about 7 times slower') == 2
