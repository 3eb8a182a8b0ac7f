"""Whole trainings of one network, cut down to a second or two."""

import csv
import dataclasses
import json
import os
import stat
import time
from pathlib import Path

import pytest
import timm
import torch
import yaml
from helpers import TINY_STUDENT
from training_helpers import assert_as_reported, load, read_summary, save_teacher

from hdkd_timm import distill, train
from hdkd_timm.data import cache as cache_module
from hdkd_timm.evaluation.run_results import format_table
from hdkd_timm.models.checkpoint import save_model


def test_train_any_timm_model(train_config, run):
    network = dict(stem_width=16, channels=(8, 16, 16, 32))
    metrics = train(dataclasses.replace(train_config, model='resnet10t', model_kwargs=network, drop=0.1, epochs=1))
    assert list(metrics['models']) == ['resnet10t']
    assert sorted(p.name for p in run.iterdir()) == [
        'SHA256SUMS',
        'best',
        'config.yaml',
        'images.csv',
        'last.pth',
        'metrics.json',
        'predictions.csv',
        'summary.csv',
    ]
    model = load(run)
    assert (model.num_classes, model.drop_rate, model.conv1[0].out_channels) == (3, 0.1, 12)
    cfg = json.loads((run / 'best' / 'config.json').read_text())['pretrained_cfg']
    assert cfg['input_size'] == [3, 32, 32]  # not timm's, 176 px
    assert not {'test_input_size', 'test_crop_pct'} & set(cfg)
    assert_as_reported(run, metrics['models']['resnet10t'], train_config.data_dir)


def test_config_file_repeats_a_run(train_config, run, tmp_path):
    from hdkd_timm.cli import main

    train(train_config)
    assert main(['train', '--config', str(run / 'config.yaml'), '--experiment', 'again', '--no-report']) == 0
    assert torch.equal(load(run).head.weight, load(tmp_path / 'runs' / 'again').head.weight)


def test_train_with_the_soft_labels_of_a_teacher(train_config, tmp_path, run):
    save_teacher(tmp_path / 'teacher')
    config = dataclasses.replace(train_config, teacher_checkpoint=str(tmp_path / 'teacher'), alpha=0.9, tau=2.0)
    train(config)
    assert float(read_summary(run)[0]['train_kd_loss']) > 0
    train(dataclasses.replace(config, teacher_checkpoint=None, experiment='plain'))
    assert not torch.equal(load(run).head.weight, load(run.parent / 'plain').head.weight)


def test_fine_tuning_a_model_folder(train_config, config, run):
    distill(config)
    source = f'local-dir:{run / "student" / "best"}'
    train(
        dataclasses.replace(
            train_config, model=source, model_kwargs={}, experiment='tuned', img_size=40, freeze_stages=3, epochs=1
        )
    )
    tuned, before = load(run.parent / 'tuned').state_dict(), load(run / 'student').state_dict()
    frozen = [name for name in before if name.startswith('stages.')]
    assert frozen
    assert all(torch.equal(tuned[name], before[name]) for name in frozen)  # batch statistics too
    assert not torch.equal(tuned['head.weight'], before['head.weight'])
    assert tuple(load(run.parent / 'tuned').pretrained_cfg['input_size']) == (3, 40, 40)


@pytest.mark.parametrize('saved', ['folder', 'file'])
def test_grey_images_with_the_soft_labels_of_a_teacher(train_config, saved, tmp_path, run):
    teacher = save_teacher(tmp_path / 'folder', in_chans=1)
    torch.save(teacher.state_dict(), tmp_path / 'file')
    metrics = train(
        dataclasses.replace(
            train_config,
            model='resnet10t',
            model_kwargs=dict(channels=(8, 16, 16, 32)),
            in_chans=1,
            epochs=1,
            teacher_checkpoint=str(tmp_path / saved),
        )
    )
    assert float(read_summary(run)[0]['train_kd_loss']) > 0
    assert_as_reported(run, metrics['models']['resnet10t'], train_config.data_dir)


def test_runs_that_begin_in_one_second(train_config, monkeypatch, run):
    monkeypatch.setattr(time, 'strftime', lambda *args: '20261125-120000')
    names = [
        Path(train(dataclasses.replace(train_config, experiment=None, epochs=1), overwrite=overwrite)['run']).name
        for overwrite in (False, True, False)
    ]
    assert names == [f'20261125-120000-hdkd_student{end}' for end in ('', '-2', '-3')]
    assert yaml.safe_load((run.parent / names[1] / 'config.yaml').read_text())['experiment'] == names[1]


def test_files_of_a_run_have_the_modes_of_the_user(train_config, run):
    before = os.umask(0o022)
    try:
        train(dataclasses.replace(train_config, epochs=1))
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (run, *run.rglob('*'))}
    assert set(modes.values()) == {0o644, 0o755}, modes
    assert modes[run / 'best' / 'model.safetensors'] == 0o644


def test_cache_that_does_not_fit_leaves_nothing(train_config, run, monkeypatch):
    monkeypatch.setattr(cache_module, 'available_memory', lambda: 1000)
    with pytest.raises(MemoryError, match='--cache ram: 24 images'):
        train(dataclasses.replace(train_config, cache='ram'))
    assert not run.parent.exists()


def test_folds(train_config, image_folder):
    for path in (image_folder / 'test').rglob('*.png'):
        path.unlink()
    for path in (image_folder / 'test').iterdir():
        path.rmdir()
    (image_folder / 'test').rmdir()
    names = []
    for fold in range(4):
        run = train(dataclasses.replace(train_config, experiment=f'fold{fold}', folds=4, fold=fold, epochs=1))['run']
        with open(f'{run}/predictions.csv') as file:
            names += [row['path'] for row in csv.DictReader(file)]
    assert len(names) == len(set(names)) == 24


def test_val_in_the_place_of_a_missing_test_split(train_config, image_folder, caplog):
    (image_folder / 'test').rename(image_folder / 'val')
    metrics = train(dataclasses.replace(train_config, epochs=1))
    assert metrics['models']['hdkd_student']['val']['images'] == 12
    assert 'optimistically biased' in caplog.text
    assert 'val accuracy' in format_table(metrics)


def test_tensorboard_log(train_config, run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(dataclasses.replace(train_config, log=('tensorboard',)))
    events = EventAccumulator(str(run / 'tensorboard'))
    events.Reload()
    values = [e.value for e in events.Scalars('train/loss')]
    assert values == pytest.approx([float(row['train_loss']) for row in read_summary(run)])


def test_overwrite_replaces_a_run(train_config, run):
    train(train_config)
    first = load(run).head.weight
    train(dataclasses.replace(train_config, seed=1, epochs=1), overwrite=True)
    assert not torch.equal(load(run).head.weight, first)
    assert len(read_summary(run)) == 1


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        (dict(teacher_checkpoint='student', img_size=48), r'HDKDStudent does not accept an image of \(3, 48, 48\)'),
        (dict(torchcompile='foo'), "--torchcompile 'foo' is not a backend: choose from"),
    ],
)
def test_refused_overwrite_leaves_the_old_run_alone(train_config, changes, match, monkeypatch, tmp_path, run):
    args = {**TINY_STUDENT, 'num_classes': 3}
    save_model(timm.create_model('hdkd_student', **args), tmp_path / 'student', list('abc'), args)
    monkeypatch.chdir(tmp_path)
    train(dataclasses.replace(train_config, epochs=1))

    def content():
        return {path: (path.stat().st_mtime_ns, path.is_dir() or path.read_bytes()) for path in (run, *run.rglob('*'))}

    before = content()
    with pytest.raises(ValueError, match=match):
        train(dataclasses.replace(train_config, **changes), overwrite=True)
    assert content() == before
    assert load(run).num_classes == 3
