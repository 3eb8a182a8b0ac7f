"""Distillations by other methods than HDKD's, and students that start from their teacher."""

import dataclasses

import pytest
import timm
import torch
from training_helpers import STUDENT, load, read_summary, save_teacher

from hdkd_timm import distill
from hdkd_timm.evaluation.run_results import list_unfinished
from hdkd_timm.models.checkpoint import save_model
from hdkd_timm.training.builders import create_distillation_task
from hdkd_timm.training.config import DistillConfig
from hdkd_timm.training.trainer import Trainer


@pytest.fixture
def given(config, tmp_path):
    """Settings with a trained teacher, of two layers in its stages 1 and 3, and one epoch."""
    save_teacher(tmp_path / 'given', depths=(2, 1, 2))
    return dataclasses.replace(config, teacher_checkpoint=str(tmp_path / 'given'), epochs=1)


def test_methods_with_settings_of_their_own(given, run):
    method_args = {'kd': {'tau': 2.0, 'weight': 30.0}, 'hdkd': {'feature_norm': True}}
    distill(dataclasses.replace(given, method=('kd', 'hdkd'), method_args=method_args, feature_weight=1e-5))
    row = read_summary(run / 'student')[0]
    parts = {name.removeprefix('train_'): float(value) for name, value in row.items() if name.endswith('_loss')}
    # weights: the cross entropy of KD, the first method, KD's own, and HDKD's settings
    assert float(row['train_loss']) == pytest.approx(
        0.1 * parts['ce_loss'] + 30 * parts['kd_loss'] + parts['hdkd_loss'], rel=1e-4
    )
    assert parts['kd_loss'] > 1e-4
    assert parts['hdkd_loss'] == pytest.approx(
        0.5 * parts['hdkd_kd_loss'] + 1e-5 * parts['hdkd_feature_loss'], rel=1e-4
    )
    student = load(run / 'student')
    assert type(student).__name__ == 'HDKDStudent'


def test_options_of_hdkd_reach_its_task(config):
    student, teacher = (timm.create_model(name, num_classes=3) for name in ('hdkd_student_s4', 'hdkd_teacher_s4'))
    config = dataclasses.replace(config, method_args={'hdkd': {'feature_fade': True, 'feature_norm': True}}, tau=3.0)
    task = create_distillation_task(student, teacher, config)
    method = task.trainable_module.methods['hdkd']
    assert (method.feature_fade, method.feature_norm, method.tau) == (True, True, 3.0)
    task.set_epoch(1, 5)
    assert method.fade == 0.75


def test_settings_of_hdkd_in_a_file_are_told(given, caplog):
    distill(dataclasses.replace(given, method=('kd',), tau=4.0))
    assert "tau 4.0: of the method 'hdkd', without effect on kd" in caplog.text


def test_losses_have_the_same_names_with_another_weight_of_the_cross_entropy(given, run):
    distill(dataclasses.replace(given, ce_weight=2.0))
    row = {name: float(value) for name, value in read_summary(run / 'student')[0].items() if name.endswith('_loss')}
    assert row['train_logit_loss'] == pytest.approx(2 * row['train_ce_loss'] + 0.5 * row['train_kd_loss'], rel=1e-4)
    assert row['train_loss'] == pytest.approx(row['train_logit_loss'] + 10 * row['train_feature_loss'], rel=1e-4)


def test_more_epochs_of_a_schedule_are_another_training(given):
    config = dataclasses.replace(given, sched='none', method_args={'hdkd': {'feature_fade': True}})
    distill(config)
    with pytest.raises(ValueError, match="the loss of the method 'hdkd' follows a schedule over all epochs"):
        distill(dataclasses.replace(config, epochs=3), resume=True)


def test_methods_are_told_the_epoch(given, run):
    distill(dataclasses.replace(given, epochs=3, method_args={'hdkd': {'feature_fade': True}}))
    weights = []
    for row in read_summary(run / 'student'):
        loss, logit, feature = (float(row[f'train_{name}']) for name in ('loss', 'logit_loss', 'feature_loss'))
        weights.append((loss - logit) / feature)
    assert weights == pytest.approx([10, 5, 0], abs=1e-3)


def test_layers_of_a_method_are_trained_from_the_seed(config, given, run, monkeypatch):
    """They start alike whatever was trained before them."""
    starts = []
    set_up = Trainer.set_up

    def keep(self):
        set_up(self)
        starts.append({name: value.clone() for name, value in self.task.get_task_state().get('methods', {}).items()})

    monkeypatch.setattr(Trainer, 'set_up', keep)
    for settings in (given, dataclasses.replace(config, epochs=1, experiment='other')):
        distill(dataclasses.replace(settings, method=('ofa',)))
    first, last = starts[0], starts[-1]
    assert set(first) == set(last)
    assert all(torch.equal(value, last[name]) for name, value in first.items())
    trained = torch.load(run / 'student' / 'last.pth', weights_only=True)['task_state']['methods']
    changed = [name for name, value in trained.items() if not torch.equal(value, first[name])]
    assert any(name.startswith('ofa.exits.1.') and name.endswith('weight') for name in changed)


def test_no_method_is_the_cross_entropy(given, run, caplog):
    """No teacher is trained, loaded or tested."""
    caplog.set_level('INFO')
    result = distill(dataclasses.replace(given, method=('none',), teacher_checkpoint=('not there',)))
    assert list(result['models']) == ['student']
    assert 'No teacher takes part: --method none' in caplog.text
    assert not (run / 'teacher').exists()
    assert list_unfinished([run]) == []
    assert [name for name in read_summary(run / 'student')[0] if name.endswith('_loss')] == [
        'train_loss',
        'train_log_loss',
    ]


def test_student_starts_from_its_teacher(given, run, monkeypatch):
    start = {}
    set_up = Trainer.set_up

    def keep(self):
        start.update({name: value.clone() for name, value in self.model.state_dict().items()})
        set_up(self)

    monkeypatch.setattr(Trainer, 'set_up', keep)
    network = dict(STUDENT, depths=(1, 1, 2, 1))
    distill(dataclasses.replace(given, model_kwargs=network, method=('none',), init_from_teacher=('1:0', '3:0,1')))
    teacher = load(run / 'teacher').state_dict()
    copied = {name for name in start if name.startswith(('stages.0.0.', 'stages.2.'))}
    assert len(copied) > 20
    assert all(torch.equal(start[name], teacher[name]) for name in copied)
    assert not torch.equal(start['stages.1.0.conv_pw.weight'], teacher['stages.1.0.conv_pw.weight'])


def test_teacher_that_takes_larger_images(given, run, tmp_path, caplog):
    teacher = timm.create_model('vit_tiny_patch16_224', num_classes=3, img_size=48, depth=1)
    save_model(teacher, tmp_path / 'vit', list('abc'), dict(num_classes=3, img_size=48, depth=1))
    caplog.set_level('INFO')
    distill(dataclasses.replace(given, teacher_checkpoint=str(tmp_path / 'vit'), method=('kd',)))
    assert 'images are resized to 48 x 48 for the teacher' in caplog.text
    assert tuple(load(run / 'teacher').pretrained_cfg['input_size']) == (3, 48, 48)
    assert tuple(load(run / 'student').pretrained_cfg['input_size']) == (3, 32, 32)


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        (dict(method=('warmth',)), "Unknown distillation method 'warmth': choose from hdkd, kd"),
        (dict(method=('kd', 'kd')), "Distillation method 'kd' is given twice"),
        (dict(method=('kd',), method_args={'kd': {'ta': 1}}), "'kd' has no setting 'ta': did you mean tau"),
        (dict(method=('kd',), method_args={'kd': {'tau': 'x'}}), "kd.tau must be a number above 0, got 'x'"),
        (dict(method_args={'hdkd': {'alpha': 1}}), 'hdkd.alpha=1: use its flag, --alpha'),
        (dict(method_args={'hdkd': {'feature_norm': 2}}), 'hdkd.feature_norm must be true or false, got 2'),
        (
            dict(method=('reviewkd',), batch_size=1),
            'A training step of reviewkd fails: BatchNorm cannot train on a batch of 1 image of 32 pixels',
        ),
        (dict(init_from_teacher=('1:5',)), 'Stage 1 of HDKDStudent has 1 blocks, .* layers of 0 to 1 of'),
        (dict(init_from_teacher=('1:1',)), 'Layer 1 of stage 1 .* other shapes than block 0 .* choose it here'),
        (dict(init_from_teacher=('4:0',)), 'There is no stage 4 to start from'),
        (dict(init_from_teacher=('a',)), "must be STAGE:LAYER,LAYER,..., such as 3:0,4,8, got 'a'"),
        (dict(teacher_img_size=64), 'needs equal shapes'),
    ],
)
def test_wrong_settings_write_nothing(given, run, changes, match):
    with pytest.raises(ValueError, match=match):
        distill(dataclasses.replace(given, **changes))
    assert not run.exists()


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        (dict(method=('none', 'kd')), '--method none is no distillation: drop it, or the others'),
        (dict(method_args={'kd': {'tau': 1}}), '--method-args kd.tau: kd is not among --method hdkd'),
        (dict(method=('kd',), method_args={'kd': 2}), 'the settings of kd must be NAME: VALUE, got 2'),
    ],
)
def test_settings_without_an_effect(changes, match):
    with pytest.raises(ValueError, match=match):
        DistillConfig(data_dir='d', **changes)
