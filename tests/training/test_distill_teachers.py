"""Distillations with several teachers, and what reads their runs."""

import dataclasses
import json

import pytest
import torch
import yaml
from helpers import save_blank, write_images
from training_helpers import STUDENT, load, read_summary, save_teacher

from hdkd_timm import DistillConfig, TrainConfig, distill, train
from hdkd_timm.analysis.report import write_report
from hdkd_timm.evaluation.run_results import format_table, list_unfinished, read_networks
from hdkd_timm.sharing.hub import write_hub_folder
from hdkd_timm.utils.config import check_settings


@pytest.fixture
def given(settings, tmp_path):
    """Settings with two trained teachers, and one epoch of the method 'kd'."""
    for i in (1, 2):
        save_teacher(tmp_path / f'given{i}')
    teachers = tuple(str(tmp_path / f'given{i}') for i in (1, 2))
    return DistillConfig(**dict(settings, epochs=1), method=('kd',), teacher_checkpoint=teachers)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A finished run of a student with two teachers of which each teaches it by two methods, and its results."""
    folder = tmp_path_factory.mktemp('several')
    write_images(folder / 'data' / 'train', number=4)
    write_images(folder / 'data' / 'test', number=4, seed=1)
    for i in (1, 2):
        save_teacher(folder / f'given{i}')
    config = DistillConfig(
        data_dir=str(folder / 'data'),
        img_size=32,
        epochs=2,
        batch_size=4,
        workers=0,
        device='cpu',
        bootstrap=0,
        model_kwargs=STUDENT,
        method=('kd', 'at'),
        teachers='separate',
        student_alone=True,
        teacher_checkpoint=tuple(str(folder / f'given{i}') for i in (1, 2)),
        output=str(folder / 'runs'),
        experiment='run',
    )
    return config, distill(config), folder / 'runs' / 'run'


def test_each_teacher_is_tested_and_saved(finished):
    config, metrics, run = finished
    assert list(metrics['models']) == ['teacher_1', 'teacher_2', 'student_alone', 'student']
    for i, name in enumerate(config.teacher_checkpoint, 1):
        result = metrics['models'][f'teacher_{i}']
        assert (result['checkpoint'], result['name']) == (name, f'teacher_{i}')
        saved = load(run / f'teacher_{i}').state_dict()
        assert all(torch.equal(saved[key], value) for key, value in load_given(name).items())
    lines = format_table(metrics).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ['teacher_1', 'teacher_2', 'student_alone', 'student']
    row = read_summary(run / 'student')[-1]
    parts = {name: float(row[f'train_{name}_loss']) for name in ('ce', 'kd_1', 'kd_2', 'at_1', 'at_2')}
    at = 1000 / 2
    expected = 0.1 * parts['ce'] + 0.45 * (parts['kd_1'] + parts['kd_2']) + at * (parts['at_1'] + parts['at_2'])
    assert float(row['train_loss']) == pytest.approx(expected, rel=1e-4)


def load_given(folder):
    from safetensors.torch import load_file

    return load_file(f'{folder}/model.safetensors')


def test_results_and_report_have_all_teachers(finished, monkeypatch, tmp_path):
    monkeypatch.setattr('hdkd_timm.evaluation.plots.save_figure', save_blank)
    config, _, run = finished
    networks = read_networks([run])
    assert [network.label for network in networks] == ['teacher_1', 'teacher_2', 'student_alone', 'student']
    assert list_unfinished([run]) == []
    page = write_report([run], tmp_path / 'report.html', mistakes=0, check=False).read_text()
    assert 'teacher_2' in page
    assert f'distilled from {", ".join(config.teacher_checkpoint)} by kd and at' in page


def test_finished_run_is_not_repeated(finished, caplog):
    config, metrics, run = finished
    caplog.set_level('INFO')
    assert distill(config, resume=True)['models'] == metrics['models']
    assert 'student  is finished' in caplog.text
    with pytest.raises(ValueError, match='was started with teachers .separate., not .average.'):
        distill(dataclasses.replace(config, teachers='average', method=('kd',)), resume=True)
    with pytest.raises(ValueError, match='was started with teacher_checkpoint'):
        distill(dataclasses.replace(config, teacher_checkpoint=config.teacher_checkpoint[::-1]), resume=True)


def test_model_cards_name_the_teachers_and_no_paths(finished, tmp_path):
    config, _, run = finished
    write_hub_folder(run / 'student', tmp_path / 'hub', 'org/student')
    card = (tmp_path / 'hub' / 'README.md').read_text()
    assert '| `teacher_checkpoint` | a locally trained model (given1) a locally trained model (given2) |' in card
    settings = yaml.safe_load((tmp_path / 'hub' / 'train.yaml').read_text())
    assert settings['teacher_checkpoint'] == [f'a locally trained model (given{i})' for i in (1, 2)]
    write_hub_folder(run / 'teacher_2', tmp_path / 'teacher', 'org/teacher')
    assert str(run.parent.parent) not in (tmp_path / 'teacher' / 'metrics.json').read_text()


def test_run_of_an_earlier_version_is_resumed(settings, tmp_path, run):
    """Its config.yaml has the teacher as text, and no settings of later versions."""
    save_teacher(tmp_path / 'given')
    config = DistillConfig(
        **dict(settings, epochs=2, sched='none'), method=('kd',), teacher_checkpoint=str(tmp_path / 'given')
    )
    assert config.teacher_checkpoint == (str(tmp_path / 'given'),)
    metrics = distill(config)
    assert metrics['models']['teacher']['checkpoint'] == str(tmp_path / 'given')
    values = yaml.safe_load((run / 'config.yaml').read_text())
    assert values['teacher_checkpoint'] == [str(tmp_path / 'given')]
    values = dict(values, teacher_checkpoint=str(tmp_path / 'given'))
    del values['teachers'], values['teacher_logits'], values['split_seed']
    (run / 'config.yaml').write_text(yaml.safe_dump(values))
    (run / 'SHA256SUMS').unlink()
    old = DistillConfig(**check_settings(values, [DistillConfig], 'config.yaml'))
    assert (old.teacher_checkpoint, old.teachers) == (config.teacher_checkpoint, 'average')
    more = distill(dataclasses.replace(old, epochs=3), resume=True)
    whole = distill(dataclasses.replace(config, epochs=3, experiment='whole'))
    assert more['models']['student']['epochs'] == 3
    assert more['models']['student']['test'] == whole['models']['student']['test']
    ours, theirs = (load(run.parent / name / 'student').state_dict() for name in ('run', 'whole'))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    with pytest.raises(ValueError, match='was started with teacher_checkpoint'):
        distill(dataclasses.replace(old, teacher_checkpoint=None), resume=True)


@pytest.mark.parametrize('value', [None, 'a', ['a'], ['a', 'b']])
def test_setting_of_a_file(value):
    expected = None if value is None else tuple(value)
    for config_cls in (DistillConfig, TrainConfig):
        found = check_settings({'teacher_checkpoint': value}, [config_cls], 'config.yaml')
        assert config_cls(data_dir='d', **found).teacher_checkpoint == expected


def test_student_starts_from_its_first_teacher(given, run, caplog):
    caplog.set_level('INFO')
    distill(dataclasses.replace(given, init_from_teacher=('3:0',)))
    assert "The student starts from layers of the first teacher's stages (stage 3: 0)." in caplog.text
    metrics = json.loads((run / 'metrics.json').read_text())
    assert list(metrics['models']) == ['teacher_1', 'teacher_2', 'student']


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        (dict(method=('hdkd',)), r"'hdkd' needs maps .*, which the mean of 2 teachers .*\(--teachers separate\)"),
        (dict(method=('fitnet',)), "'fitnet' needs maps of the stages 2"),
        (dict(teacher_img_size=64, method=('warmth',)), "Unknown distillation method 'warmth'"),
    ],
)
def test_wrong_settings_write_nothing(given, run, changes, match):
    with pytest.raises(ValueError, match=match):
        distill(dataclasses.replace(given, **changes))
    assert not run.exists()


def test_other_classes_and_order(given, tmp_path, run):
    """Each teacher is matched by class names."""
    save_teacher(tmp_path / 'other', num_classes=3)
    path = tmp_path / 'other' / 'config.json'
    values = json.loads(path.read_text())
    values['label_names'] = ['c', 'a', 'b']
    path.write_text(json.dumps(values))
    (tmp_path / 'other' / 'SHA256SUMS').unlink(missing_ok=True)
    config = dataclasses.replace(given, teacher_checkpoint=(given.teacher_checkpoint[0], str(tmp_path / 'other')))
    distill(config)
    before = load_given(tmp_path / 'other')['head.weight']
    assert torch.equal(load(run / 'teacher_2').state_dict()['head.weight'], before[[1, 2, 0]])
    values['label_names'] = ['a', 'b', 'x']
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="Teacher .*other': .*class 'x' is not in both"):
        distill(dataclasses.replace(config, experiment='wrong'))


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        (dict(teacher_checkpoint=('a', 'a')), "--teacher-checkpoint names 'a' twice"),
        (dict(teacher_checkpoint=('a', 'b'), teacher_label_names=('x',)), '--teacher-label-names is for one teacher'),
        (dict(teacher_checkpoint='a', teacher_logits='f'), "--teacher-logits 'f' is instead of a teacher"),
        (dict(teacher_logits='f', init_from_teacher=()), '--init-from-teacher needs a teacher, not --teacher-logits'),
        (dict(teachers='sum'), "--teachers must be one of average, separate, got 'sum'"),
    ],
)
def test_settings_that_contradict_each_other(changes, match):
    with pytest.raises(ValueError, match=match):
        DistillConfig(data_dir='d', **changes)


def test_train_takes_one_teacher(train_config, run):
    config = dataclasses.replace(train_config, teacher_checkpoint=('a', 'b'))
    with pytest.raises(ValueError, match='hdkd train takes one teacher, got 2: several teach in hdkd distill'):
        train(config)
    assert not run.exists()


def test_a_method_of_each_teacher(given, run):
    """The logits of one and the stages of the other; HDKD's flags are settings of 'hdkd:2'."""
    config = dataclasses.replace(given, method=('kd:1', 'hdkd:2'), teachers='separate', feature_weight=5.0)
    distill(config)
    row = read_summary(run / 'student')[0]
    expected = 0.1 * float(row['train_ce_loss']) + 0.9 * float(row['train_kd_1_loss']) + float(row['train_hdkd_2_loss'])
    assert float(row['train_loss']) == pytest.approx(expected, rel=1e-3)
    assert float(row['train_hdkd_2_feature_loss']) > 0
