"""The profile counts what a step does; how long that takes does not matter here."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hdkd_timm.benchmark.config import BenchConfig
from hdkd_timm.benchmark.inference import create_network
from hdkd_timm.benchmark.machine import Peaks
from hdkd_timm.benchmark.profile import (
    FORM,
    Operator,
    OperatorTimer,
    list_parts,
    measure_inference_profile,
    measure_profile,
    name_part,
    time_inference,
    time_step,
)
from hdkd_timm.benchmark.step import STEP_FORMS, create_training

CPU = torch.device('cpu')


@pytest.fixture
def operators(small_networks):
    return time_step(*create_training(STEP_FORMS[FORM], 2, 32, CPU), CPU)


def test_all_work_is_counted():
    """As PyTorch counts it, but for the attention kernel of CPUs, which it leaves out."""
    compute_loss, _ = create_training(STEP_FORMS[FORM], 2, 32, CPU)
    with FlopCounterMode(display=False) as counter, OperatorTimer(CPU) as timer:
        compute_loss()
    flops = [op.flops for op in timer.operators]
    attention = [op for op in timer.operators if op.part == 'attention']
    counted = counter.get_flop_counts()['Global']
    of_attention = sum(number for name, number in counted.items() if 'scaled_dot_product' in str(name))
    assert sum(flops) - sum(op.flops for op in attention) == counter.get_total_flops() - of_attention > 0
    assert all(op.flops for op in attention)


def test_work_of_attention():
    q, k, v = (torch.randn(2, 3, 7, 8, requires_grad=True) for _ in range(3))
    with OperatorTimer(CPU) as timer:
        torch.nn.functional.scaled_dot_product_attention(q, k, v).sum().backward()
    forward = 2 * (2 * 3 * 7 * 7 * 8) * 2
    assert [op.flops for op in timer.operators if op.part == 'attention'] == [forward, 2.5 * forward]


@pytest.mark.parametrize('groups', [1, 4])
def test_work_of_a_convolution(groups):
    """Forward, and two gradients of as many operations: PyTorch's count of these leaves out the groups."""
    conv = torch.nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=groups)
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    with OperatorTimer(CPU) as timer:
        conv(x).sum().backward()
    forward = 2 * (2 * 8 * 3 * 3) * (4 // groups * 9)
    found = [op for op in timer.operators if 'convolutions' in op.part]
    assert [op.flops for op in found] == [forward, 2 * forward]
    assert found[0].bytes == 4 * (x.numel() + conv.weight.numel() + 8 + 2 * 8 * 3 * 3)
    assert not any(op.flops for op in timer.operators if op not in found)


def test_parts_of_a_step(operators):
    parts = {(op.network, op.part) for op in operators}
    for network in ('teacher', 'student'):
        for part in ('convolutions 1x1', 'convolutions 3x3', 'depthwise convolutions', 'GELU'):
            assert (network, part) in parts
        assert (network, 'pools and gates (CBAM)') in parts
    assert ('student', 'BatchNorm') in parts
    assert ('teacher', 'BatchNorm') not in parts  # folded into the convolutions
    assert ('student', 'optimiser') in parts
    assert all(op.seconds > 0 and op.bytes >= 0 for op in operators)


def test_names():
    image, kernel = torch.zeros(1, 8, 4, 4), torch.zeros(8, 8, 3, 3)
    assert name_part('convolution', (image, kernel)) == 'convolutions 3x3'
    assert name_part('convolution_backward', (image, image, kernel[..., :1, :1])) == 'convolutions 1x1'
    assert name_part('convolution', (image, kernel[:, :1])) == 'depthwise convolutions'
    assert name_part('native_batch_norm_backward', ()) == 'BatchNorm'
    assert name_part('max_pool2d_with_indices_backward', ()) == 'max pooling'  # of shortcuts, not of CBAM
    assert name_part('max', ()) == 'pools and gates (CBAM)'
    assert name_part('unheard_of', ()) == 'other operators'


def test_rates_follow_from_the_times():
    def step(seconds):
        return [
            Operator('student', 'GELU', seconds, 0, 4000),
            Operator('teacher', 'convolutions 1x1', 2.0, 6000, 100),
            Operator('student', 'GELU', seconds, 0, 2000),
        ]

    rows = list_parts([step(1.0), step(9.0), step(3.0)], Peaks(flops=6000.0, bytes=2000.0))
    assert [(row['name'], row.get('form'), row['ms']) for row in rows] == [
        ('GELU', 'student', 6000.0),
        ('convolutions 1x1', 'teacher', 2000.0),
        ('all operators', None, 8000.0),
    ]
    assert rows[0]['gbytes'] == 6000 / 6 / 1e9
    assert rows[0]['ratio'] == pytest.approx((2 + 1) / 6)  # 3 seconds at the peak of memory
    assert rows[1]['gflops'] == 3000 / 1e9
    assert rows[1]['ratio'] == pytest.approx(1 / 2)
    assert rows[2]['ratio'] == pytest.approx((3 + 1) / 8)


@pytest.fixture
def quick(small_networks, monkeypatch):
    monkeypatch.setattr('hdkd_timm.benchmark.timing.MIN_SECONDS', 0.0)
    monkeypatch.setattr('hdkd_timm.benchmark.machine.MATRIX', 64)
    monkeypatch.setattr('hdkd_timm.benchmark.machine.COPIED', 2**16)


@pytest.mark.usefixtures('quick')
def test_shares():
    rows = measure_profile(BenchConfig(img_size=32, batch_size=2, rounds=1), CPU)
    parts = [row for row in rows if 'form' in row]
    total = next(row for row in rows if row['name'] == 'all operators')
    assert sum(row['share'] for row in parts) == pytest.approx(1)
    assert sum(row['ms'] for row in parts) == pytest.approx(total['ms'])


@pytest.mark.usefixtures('quick')
def test_inference():
    """Every network by itself, with the work of its fused form."""
    config = BenchConfig(img_size=32, batch_size=2, rounds=1, models=('hdkd_student', 'resnet10t'))
    attention = time_inference('levit_128', create_network('levit_128', 'fused', 224, CPU), torch.zeros(1, 3, 224, 224))
    parts = {op.part for op in attention}
    assert {'attention', 'pools and gates'} < parts
    assert not parts & {'loss', 'pools and gates (CBAM)'}
    rows = measure_inference_profile(config, CPU)
    x = torch.randn(2, 3, 32, 32)
    for name in config.models:
        own = [row for row in rows if row['form'] == name]
        *parts, total, forward = own
        assert (total['name'], forward['name']) == ('all operators', 'forward pass')
        assert sum(row['share'] for row in parts) == pytest.approx(total['share']) == pytest.approx(1)
        assert not {row['name'] for row in parts} & {'loss', 'optimiser'}
        assert ('BatchNorm' in {row['name'] for row in parts}) == (name == 'resnet10t')  # ours are folded
        assert total['roofline_ms'] == pytest.approx(total['ratio'] * total['ms'])
        assert all(row['batch_size'] == 2 and row['img_size'] == 32 for row in own)
        flops = sum(row.get('gflops', 0) * row['ms'] / 1000 * 1e9 for row in parts)
        network = create_network(name, 'fused', 32, CPU)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(x)
        assert flops >= counter.get_total_flops() * (1 - 1e-9)
        assert flops == pytest.approx(counter.get_total_flops(), rel=0.05)  # PyTorch leaves out attention
    assert [row['form'] for row in rows] == sorted(row['form'] for row in rows)
