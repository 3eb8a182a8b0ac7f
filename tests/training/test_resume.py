"""Which runs can be resumed, and that they end like uninterrupted ones."""

import dataclasses
import json
import random
import shutil
from pathlib import Path

import pytest
import yaml
from helpers import has_same_weights, write_images
from training_helpers import STUDENT, TEACHER, interrupt_test, load, read_summary

from hdkd_timm import DistillConfig, distill, train
from hdkd_timm.training.trainer import Trainer


@pytest.mark.parametrize('added', ['an image', 'a class'])
def test_resume_refuses_other_images(train_config, image_folder, added, monkeypatch, run):
    config = dataclasses.replace(train_config, epochs=1)
    interrupt_test(monkeypatch, train, config)
    before = set(image_folder.rglob('*'))
    if added == 'an image':
        write_images(image_folder / 'train', classes=['a'], number=9)
    else:
        for split in ('train', 'test'):
            write_images(image_folder / split, classes=['d'], number=1)
    new = sorted(set(image_folder.rglob('*')) - before, reverse=True)  # files before their folders
    with pytest.raises(ValueError, match=rf"not those that run '{run}' was started with \(36 in .*, now 3[78];"):
        train(config, resume=True)
    for path in new:
        path.rmdir() if path.is_dir() else path.unlink()
    assert train(config, resume=True)['models']['hdkd_student']['test']['images'] == 12


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A finished run of a teacher and a student with a val split, its settings and the results."""
    folder = tmp_path_factory.mktemp('finished')
    for split, number in (('train', 4), ('val', 2), ('test', 2)):
        write_images(folder / 'data' / split, number=number)
    config = DistillConfig(
        data_dir=str(folder / 'data'),
        img_size=32,
        epochs=2,
        batch_size=4,
        workers=0,
        device='cpu',
        bootstrap=0,
        model_kwargs=STUDENT,
        teacher_kwargs=TEACHER,
        output=str(folder / 'runs'),
        experiment='run',
        sched='none',
        teacher_sched='none',
    )
    return config, distill(config)


@pytest.fixture
def resumed(finished, tmp_path):
    """A copy of the finished run."""
    config, _ = finished
    shutil.copytree(Path(config.output), tmp_path / 'runs')
    return dataclasses.replace(config, output=str(tmp_path / 'runs')), tmp_path / 'runs' / 'run'


@pytest.mark.parametrize('file', ['best/model.safetensors', 'best/config.json', 'metrics.json'])
def test_flipped_bits_are_found_where_they_are_read(resumed, file):
    from hdkd_timm.evaluation.run_results import read_networks
    from hdkd_timm.models.checkpoint import load_model

    config, run = resumed
    for name in ('teacher', 'student'):
        path = run / name / file
        good = path.read_bytes()
        reads = [lambda: distill(config, resume=True), lambda: read_networks([run / 'teacher', run / 'student'])]
        if file.startswith('best'):
            reads.append(lambda name=name: load_model(run / name))
        for bit, read in zip(random.Random(0).sample(range(8 * len(good)), 3 * len(reads)), 3 * reads):
            flip(path, bit)
            with pytest.raises(ValueError, match=rf"{name}/{file}' is damaged, or was edited"):
                read()
            path.write_bytes(good)


@pytest.mark.parametrize(
    ('damage', 'match'),
    [
        (lambda run: shutil.rmtree(run / 'teacher' / 'best'), r"teacher/best/config\.json' is missing.* --overwrite"),
        (lambda run: (run / 'teacher' / 'best' / 'model.safetensors').unlink(), r"best/model\.safetensors' is missing"),
        (lambda run: (run / 'teacher' / 'metrics.json').write_text('{'), r"teacher/metrics\.json' is damaged"),
        (lambda run: shutil.rmtree(run / 'student' / 'best'), r"student/best/config\.json' is missing"),
        (lambda run: (run / 'student' / 'last.pth').write_bytes(b'PK'), r"student/last\.pth' is"),
    ],
)
@pytest.mark.parametrize('has_sums', [True, False])
def test_what_is_missing_shows_before_anything_is_trained(resumed, damage, match, has_sums, monkeypatch):
    config, run = resumed
    (run / 'student' / 'metrics.json').unlink()  # it has its test before it
    if not has_sums:
        for path in list(run.rglob('SHA256SUMS')):
            path.unlink()
    damage(run)
    before = {path: path.is_dir() or path.read_bytes() for path in run.rglob('*')}
    monkeypatch.setattr(Trainer, 'run', lambda self: pytest.fail('it trained'))
    with pytest.raises(ValueError, match=match):
        distill(config, resume=True)
    assert {path: path.is_dir() or path.read_bytes() for path in run.rglob('*')} == before


def test_damaged_results_can_be_tested_again(resumed, finished):
    """As the error says."""
    config, run = resumed
    (run / 'teacher' / 'SHA256SUMS').unlink()
    (run / 'teacher' / 'metrics.json').write_text('{"name": 3')
    with pytest.raises(ValueError, match=r'or delete it, and --resume tests the network again'):
        distill(config, resume=True)
    (run / 'teacher' / 'metrics.json').unlink()
    assert distill(config, resume=True)['models']['teacher']['test'] == finished[1]['models']['teacher']['test']


@pytest.mark.parametrize(
    ('sched', 'ends'),
    [
        (dict(sched='none'), [False, True]),
        (dict(sched='step', decay_epochs=1, warmup_epochs=0), [False]),
        (dict(sched='multistep', decay_milestones=(1, 3), warmup_epochs=0), [True]),
        (dict(sched='plateau', warmup_epochs=0), [False, True]),  # of a state of its own
    ],
)
def test_more_epochs_end_as_if_they_had_been_meant(train_config, image_folder, sched, ends, monkeypatch, run):
    """Also of a run that was interrupted before its test."""
    write_images(image_folder / 'val', number=2, seed=2)
    config = dataclasses.replace(train_config, batch_size=12, early_stopping=30, **sched)
    expected = train(dataclasses.replace(config, epochs=4, experiment='whole'))['models']['hdkd_student']
    for stops in ends:
        short = dataclasses.replace(config, epochs=2, experiment=f'stops-{stops}')
        if stops:
            interrupt_test(monkeypatch, train, short)
        else:
            train(short)
        result = train(dataclasses.replace(short, epochs=4), resume=True)['models']['hdkd_student']
        assert dict(result, train_seconds=0) == dict(expected, train_seconds=0)
        folder, whole = run.parent / short.experiment, run.parent / 'whole'
        assert read_summary(folder) == read_summary(whole)
        assert has_same_weights(load(folder), load(whole))
        assert yaml.safe_load((folder / 'config.yaml').read_text())['epochs'] == 4
        match = 'started with 4 epochs and cannot continue with 3: it is in epoch 4 already'
        with pytest.raises(ValueError, match=match):
            train(dataclasses.replace(short, epochs=3), resume=True)


@pytest.mark.parametrize(
    'sched', [dict(sched='cosine'), dict(sched='step', warmup_epochs=0), dict(sched='cosine', sched_on_updates=True)]
)
def test_more_epochs_of_another_schedule(train_config, sched, run):
    config = dataclasses.replace(train_config, **sched)
    train(config)
    before = {path: path.is_dir() or path.read_bytes() for path in run.rglob('*')}
    with pytest.raises(
        ValueError,
        match=(
            rf"started with 2 epochs and cannot continue with 9: the schedule '{config.sched}' .* other learning rates"
            rf' .* --model local-dir:{run / "best"}'
        ),
    ):
        train(dataclasses.replace(config, epochs=9), resume=True)
    assert {path: path.is_dir() or path.read_bytes() for path in run.rglob('*')} == before
    train(dataclasses.replace(config, epochs=2), resume=True)


def test_more_epochs_of_a_student_leave_its_teacher(resumed, finished):
    config, run = resumed
    weights = (run / 'teacher' / 'best' / 'model.safetensors').read_bytes()
    more = dataclasses.replace(config, epochs=3)
    with pytest.raises(ValueError, match=r'started with 2 epochs of the teacher, .* --teacher-epochs 2\.'):
        distill(more, resume=True)
    metrics = distill(dataclasses.replace(more, teacher_epochs=2), resume=True)
    assert (run / 'teacher' / 'best' / 'model.safetensors').read_bytes() == weights
    assert [metrics['models'][name]['epochs'] for name in ('teacher', 'student')] == [2, 3]
    assert len(read_summary(run / 'student')) == 3
    assert json.loads((run / 'metrics.json').read_text())['models']['student']['epochs'] == 3


def test_settings_of_an_average_that_is_not_there_may_differ(train_config, run):
    """Runs of earlier versions have model_ema_warmup false."""
    train(dataclasses.replace(train_config, model_ema_warmup=False, epochs=1))
    train(dataclasses.replace(train_config, model_ema_warmup=True, epochs=1), resume=True)
