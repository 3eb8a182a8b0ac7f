"""The benchmark measures what it says; how long that takes does not matter here."""

import pytest
from processes import flags

from hdkd_timm.benchmark import timing
from hdkd_timm.benchmark.benchmark import run_benchmark
from hdkd_timm.benchmark.config import BenchConfig
from hdkd_timm.cli import main
from hdkd_timm.utils.csv_files import read_rows


@pytest.mark.usefixtures('small_networks')
def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(timing, 'MIN_SECONDS', 0.0)  # a call a timing
    monkeypatch.setattr(timing, 'LATENCY_CALLS', 3)
    out = tmp_path / 'bench.csv'
    settings = dict(img_size=32, batch_size=4, rounds=1, device='cpu', workers=0, epoch_images=16, out=out)
    settings.update(models=['hdkd_student_s4', 'resnet10t'], forms=['eager', 'fused'], inference_batches=[1, 2])
    settings.update(growth_sizes=[32, 64], growth_batches=[2, 4], no_compiled=True, no_memory=True)
    args = ['bench', *flags(**settings)]
    assert main(args) == 0
    shown = capsys.readouterr().out
    rows = read_rows(out)
    found = {(row['part'], row['name'], row['form'], row['img_size'], row['batch_size']) for row in rows}
    assert len(found) == len(rows)
    steps = [
        'stages again',
        'one pass',
        '+ channels-last',
        '+ fused teacher',
        '+ kept memory',
        'student alone',
        'teacher alone',
    ]
    assert [row['name'] for row in rows if row['part'] == 'step'] == steps
    assert {
        ('inference', name, form, '32', batch)
        for name in ('hdkd_student_s4', 'resnet10t')
        for form in ('eager', 'fused', 'fused, bfloat16')
        for batch in '12'
    } < found
    profile = {row['name'] for row in rows if row['part'] == 'profile'}
    assert {'convolutions 1x1', 'BatchNorm', 'GELU', 'loss', 'optimiser', 'all operators', 'step'} < profile
    inference = {(row['name'], row['form']) for row in rows if row['part'] == 'inference-profile'}
    for name in ('hdkd_student_s4', 'resnet10t'):
        assert {(part, name) for part in ('convolutions 1x1', 'all operators', 'forward pass')} < inference
    assert [row['name'] for row in rows if row['part'] == 'epoch'] == ['one batch', 'files', 'files, cached']
    assert {('growth', 'image size', '', size, '4') for size in ('32', '64')} < found
    assert {('growth', 'batch size', '', '32', batch) for batch in '24'} < found
    assert all(float(row['ms']) > 0 and float(row['ratio'] or 1) > 0 for row in rows)
    for row in rows:
        assert row['machine'] in shown
        assert f'| {row["name"]} |' in shown
    for row in rows:
        is_single = (row['part'], row['batch_size']) == ('inference', '1')
        assert bool(row['p50_ms']) == bool(row['p95_ms']) == is_single
        assert not is_single or 0 < float(row['p50_ms']) <= float(row['p95_ms'])
    # the ratios follow from the times
    steps = {row['name']: row for row in rows if row['part'] == 'step'}
    for row in steps.values():
        assert float(row['ratio']) == pytest.approx(float(steps['stages again']['ms']) / float(row['ms']))
    assert main(args) == 1
    assert 'already exists: choose another --out' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('args', 'match'),
    [
        (dict(models=('nothing',)), "Unknown model 'nothing' in --models"),
        (dict(out='no/where.csv'), "Directory 'no' of --out does not exist"),
    ],
)
def test_bad_input(args, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        run_benchmark(BenchConfig(**args))
    assert not list(tmp_path.iterdir())
