"""The benchmark measures what it says; how long it takes is no matter here."""
import time

import pytest
import timm
import torch

from hdkd_timm.benchmark.benchmark import (
    STEP_FORMS,
    BenchConfig,
    StepForm,
    count_multiply_adds,
    create_inference,
    create_step,
    format_rows,
    measure_memory,
    run_benchmark,
    take_turns,
)
from hdkd_timm.cli import main
from hdkd_timm.utils import memory
from hdkd_timm.utils.csv_files import read_rows

CPU = torch.device('cpu')


def test_take_turns(monkeypatch):
    calls = []
    monkeypatch.setattr(memory, 'keep_freed_memory', lambda keep=True: calls.append('+' if keep else '-') or True)
    seconds = take_turns({
        'a': lambda: calls.append('a') or time.sleep(0.2), 'b': lambda: calls.append('b') or time.sleep(0.4)}, 3, CPU,
        kept=('b',))
    assert ''.join(calls) == 'aabb' + 3 * 'a+bbb-'
    assert 0.2 <= seconds['a'] < 0.35
    assert 0.4 <= seconds['b'] < 0.6
    calls.clear()
    take_turns({'quick': lambda: calls.append(0) or time.sleep(0.01)}, 1, CPU)
    assert 10 <= len(calls) <= 32


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


@pytest.mark.parametrize('name', ['hdkd_student', 'levit_128'])
def test_forms_of_a_network_compute_the_same(name):
    x = torch.randn(2, 3, 224, 224)
    expected = create_inference(name, 'eager', 224, CPU)(x)
    for form in ('fused', 'onnx'):
        torch.testing.assert_close(create_inference(name, form, 224, CPU)(x), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(('name', 'parameters', 'giga'), [  # as README and timm's results tables tell
    ('hdkd_student', 3_727_288, 2.025), ('hdkd_teacher', 3_948_677, 5.700), ('levit_128', None, 0.41),
    ('deit_tiny_distilled_patch16_224', 5_910_800, 1.27)])
def test_count_multiply_adds(name, parameters, giga):
    counted, multiply_adds = count_multiply_adds(name, 224)
    assert counted == (parameters or counted)
    assert multiply_adds / 1e9 == pytest.approx(giga, rel=0.02)
    assert timm.layers.use_fused_attn()


def test_command(tmp_path, capsys):
    out = tmp_path / 'bench.csv'
    args = [
        'bench', '--img-size', '32', '-b', '4', '--rounds', '1', '--models', 'hdkd_student_s4', 'resnet10t', '--forms',
        'eager', 'fused', '--inference-batches', '1', '2', '--growth-sizes', '32', '64', '--growth-batches', '2', '4',
        '--epoch-images', '16', '--no-compiled', '--no-memory', '--device', 'cpu', '-j', '0', '--out', str(out)]
    assert main(args) == 0
    shown = capsys.readouterr().out
    rows = read_rows(out)
    found = {(row['part'], row['name'], row['form'], row['img_size'], row['batch_size']) for row in rows}
    assert len(found) == len(rows)
    steps = ['stages again', 'one pass', '+ channels-last', '+ fused teacher', '+ kept memory', 'student alone',
             'teacher alone']
    assert [row['name'] for row in rows if row['part'] == 'step'] == steps
    assert {('inference', name, form, '32', batch) for name in ('hdkd_student_s4', 'resnet10t')
            for form in ('eager', 'fused', 'fused, bfloat16') for batch in '12'} < found
    assert [row['name'] for row in rows if row['part'] == 'epoch'] == ['one batch', 'files', 'files, cached']
    assert {('growth', 'image size', '', size, '4') for size in ('32', '64')} < found
    assert {('growth', 'batch size', '', '32', batch) for batch in '24'} < found
    assert all(float(row['ms']) > 0 and float(row['ratio']) > 0 for row in rows)
    for row in rows:
        assert row['machine'] in shown
        assert f"| {row['name']} |" in shown
    # the ratios are those of the times
    steps = {row['name']: row for row in rows if row['part'] == 'step'}
    for row in steps.values():
        assert float(row['ratio']) == pytest.approx(float(steps['stages again']['ms']) / float(row['ms']))
    assert main(args) == 1
    assert 'exists already: choose another --out' in capsys.readouterr().err


def test_format_rows():
    rows = [dict(part='step', name='one pass', ms=12.345, ratio=2., memory=2 ** 30), dict(part='growth', name='x'),
            dict(part='step', name='b', ms=1., ratio=1.)]
    assert format_rows(rows, 'step').splitlines() == [
        '| name | ms | ratio | memory |', '|---|---:|---:|---:|', '| one pass | 12.3 | 2.00 | 1.0 GiB |',
        '| b | 1.0 | 1.00 | - |']


@pytest.mark.parametrize(('args', 'match'), [
    (dict(models=('nothing',)), "Unknown model 'nothing' in --models"),
    (dict(out='no/where.csv'), "Folder 'no' of --out does not exist"),
])
def test_bad_input(args, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        run_benchmark(BenchConfig(**args))
    assert not list(tmp_path.iterdir())
