"""Teachers of other classes than the data, or of none, of which only features are compared."""

import dataclasses
import json

import pytest
import timm
import torch
from helpers import create_student, create_teacher
from training_helpers import interrupt_test, read_summary, save_teacher

from hdkd_timm import DistillationTask, DistillConfig, distill
from hdkd_timm.analysis.report import write_report
from hdkd_timm.distillation.checks import check_pair
from hdkd_timm.distillation.methods import METHODS
from hdkd_timm.distillation.networks import NetworkInfo, Pair
from hdkd_timm.evaluation.run_results import list_unfinished, read_networks
from hdkd_timm.models.checkpoint import find_model_folder, save_model
from hdkd_timm.sharing.hub import write_hub_folder
from hdkd_timm.study.checks import check_teachers
from hdkd_timm.training.builders import compares_logits
from hdkd_timm.training.cache_logits import CacheLogitsConfig, cache_logits


def save_resnet(folder, num_classes=5):
    args = dict(num_classes=num_classes, layers=(1, 1, 1, 1))
    save_model(timm.create_model('resnet10t', **args), folder, model_args=args)


@pytest.fixture
def given(settings, tmp_path):
    """Settings with a ResNet of five classes as the teacher, for images of three."""
    save_resnet(tmp_path / 'pretrained')
    return DistillConfig(**settings, method=('fitnet',), teacher_checkpoint=str(tmp_path / 'pretrained'))


def test_its_features_teach(given, run, tmp_path, caplog):
    metrics = distill(given)
    assert f"{tmp_path / 'pretrained'}' has 5 classes, the data 3: no method compares its logits" in caplog.text
    assert list(metrics['models']) == ['student']
    assert not (run / 'teacher').exists()
    assert float(read_summary(run / 'student')[0]['train_fitnet_loss']) > 0
    assert list_unfinished([run]) == []
    assert [network.folder for network in read_networks([run])] == [run / 'student']
    page = write_report([run])
    assert page == run / 'report.html'
    assert f'distilled from {tmp_path / "pretrained"} by fitnet' in page.read_text()
    assert find_model_folder(run) == run / 'student' / 'best'
    write_hub_folder(run / 'student', tmp_path / 'hub', 'org/student')
    card = (tmp_path / 'hub' / 'README.md').read_text()
    assert '| `teacher_checkpoint` | a locally trained model (pretrained) |' in card
    assert '| `teacher` |' not in card  # none was trained


def test_a_teacher_without_classes(given, run, tmp_path):
    """As the networks of self-supervised learning are."""
    save_resnet(tmp_path / 'features', num_classes=0)
    distill(dataclasses.replace(given, teacher_checkpoint=str(tmp_path / 'features'), method=('infonce', 'at')))
    assert float(read_summary(run / 'student')[0]['train_infonce_loss']) > 0


def test_it_resumes_with_the_same_weights_only(given, run, tmp_path, monkeypatch):
    interrupt_test(monkeypatch, distill, given)
    (tmp_path / 'pretrained').rename(tmp_path / 'first')
    save_resnet(tmp_path / 'pretrained')
    with pytest.raises(ValueError, match="The teacher '.*pretrained' of run .* has other weights"):
        distill(given, resume=True)
    with pytest.raises(ValueError, match="The teacher '.*pretrained' .* is not the one now"):
        check_teachers([given], has_open=True)
    check_teachers([given], has_open=False)
    (tmp_path / 'pretrained').rename(tmp_path / 'second')
    (tmp_path / 'first').rename(tmp_path / 'pretrained')
    check_teachers([given], has_open=True)
    assert list(distill(given, resume=True)['models']) == ['student']


def test_same_classes_in_another_order(given, run, tmp_path):
    """Their number does not make them the data's, by which the teacher would be tested."""
    save_teacher(tmp_path / 'other')
    path = tmp_path / 'other' / 'config.json'
    path.write_text(json.dumps(dict(json.loads(path.read_text()), label_names=['x', 'y', 'z'])))
    (tmp_path / 'other' / 'SHA256SUMS').unlink(missing_ok=True)
    config = dataclasses.replace(given, teacher_checkpoint=str(tmp_path / 'other'))
    assert list(distill(config)['models']) == ['student']
    with pytest.raises(ValueError, match="class 'x' is not in both"):  # names that were given are meant
        distill(dataclasses.replace(config, experiment='named', teacher_label_names=('x', 'y', 'z')))
    config = dataclasses.replace(config, experiment='layers', method=('none',), init_from_teacher=())
    assert list(distill(config)['models']) == ['student']
    config = dataclasses.replace(config, experiment='stages', method=('hdkd',), init_from_teacher=None, kd_type='none')
    assert list(distill(config)['models']) == ['student']


@pytest.mark.parametrize(
    ('changes', 'names', 'match'),
    [
        (dict(method=('kd',)), ['pretrained'], 'has 5 classes, the data 3'),
        (dict(method=('fitnet', 'kd')), ['pretrained'], 'has 5 classes, the data 3'),
        (dict(method=('kd:1', 'fitnet:2'), teachers='separate'), ['pretrained', 'own'], 'has 5 classes, the data 3'),
        (dict(method=('kd',)), ['own', 'pretrained'], 'has 5 classes, the data 3'),  # averaged
        (dict(method=('warmth',)), ['pretrained'], 'has 5 classes, the data 3'),
        (dict(), ['own', 'pretrained'], r'the mean of 2 teachers .*\(--teachers separate\)'),
    ],
)
def test_logits_need_the_classes(given, run, tmp_path, changes, names, match):
    save_teacher(tmp_path / 'own')
    config = dataclasses.replace(given, teacher_checkpoint=tuple(str(tmp_path / name) for name in names), **changes)
    with pytest.raises(ValueError, match=match):
        distill(config)
    assert not run.exists()


def test_logits_of_one_and_features_of_another(given, run, tmp_path):
    save_teacher(tmp_path / 'own')
    names = tuple(str(tmp_path / name) for name in ('own', 'pretrained'))
    config = dataclasses.replace(given, teacher_checkpoint=names, method=('kd:1', 'fitnet:2'), teachers='separate')
    assert list(distill(config)['models']) == ['teacher_1', 'student']
    assert list_unfinished([run]) == []


def test_layers_of_the_first_of_two(given, tmp_path):
    save_teacher(tmp_path / 'own', num_classes=5)
    names = tuple(str(tmp_path / name) for name in ('own', 'pretrained'))
    config = dataclasses.replace(given, teacher_checkpoint=names, method=('none',), init_from_teacher=())
    assert list(distill(config)['models']) == ['student']


@pytest.mark.parametrize(
    ('names', 'match'), [(['c', 'b', 'a'], r'the order differs'), (['a', 'b'], '2 label names for the 3 classes')]
)
def test_mistakes_are_no_other_classes(given, run, tmp_path, names, match):
    save_teacher(tmp_path / 'own')
    path = tmp_path / 'own' / 'config.json'
    path.write_text(json.dumps(dict(json.loads(path.read_text()), label_names=names)))
    (tmp_path / 'own' / 'SHA256SUMS').unlink(missing_ok=True)
    with pytest.raises(ValueError, match=match):
        distill(dataclasses.replace(given, teacher_checkpoint=str(tmp_path / 'own')))
    assert not run.exists()


def test_no_logits_to_store(given, tmp_path):
    values = {field.name: getattr(given, field.name) for field in dataclasses.fields(given)}
    with pytest.raises(ValueError, match='has 5 classes, the data 3'):
        cache_logits(CacheLogitsConfig(**values), tmp_path / 'logits.safetensors')


@pytest.mark.parametrize('name', [name for name in METHODS if name != 'a2d'])
def test_methods_say_whether_they_compare_logits(name):
    """As they say what they need of the teacher, with their default settings."""
    student, teacher = (NetworkInfo.of(create(), role, (32, 32)) for role, create in ROLES.items())
    method = METHODS[name](Pair(student, teacher, torch.arange(20) % 5))
    assert method.compares_logits == method.teacher_needs.logits


ROLES = dict(student=create_student, teacher=create_teacher)


@pytest.mark.parametrize(
    ('method', 'kd_type', 'expected'),
    [
        (('hdkd',), 'soft', [True, True]),
        (('hdkd',), 'none', [False, False]),
        (('hdkd:2', 'at:1'), 'hard', [False, True]),
        (('none',), 'soft', [False, False]),
    ],
)
def test_which_teachers_are_compared(method, kd_type, expected):
    config = DistillConfig(
        data_dir='d', method=method, kd_type=kd_type, teacher_checkpoint=('a', 'b'), teachers='separate'
    )
    assert [compares_logits(config, number) for number in (1, 2)] == expected


def test_tasks_in_a_loop_of_ones_own():
    student, teacher = create_student(), create_teacher(num_classes=7)
    DistillationTask(student, teacher, ['fitnet'])
    check_pair(student, teacher, kd_type='none')
    for methods in (['fitnet', 'kd'], ['hdkd']):
        with pytest.raises(ValueError, match='num_classes of student and teacher differ: 5 and 7'):
            DistillationTask(student, teacher, methods)
