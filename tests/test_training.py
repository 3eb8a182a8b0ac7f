"""The main job on small folders with networks cut down to a second or two."""
import csv
import dataclasses
import json
import math

import pytest
import timm
import torch
import yaml
from conftest import TINY_STUDENT, TINY_TEACHER, write_images
from hdkd_timm.train import evaluate, format_table

from hdkd_timm import DistillConfig, distill
from hdkd_timm import train as train_module
from hdkd_timm.checkpoint import save_model


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch):
    """The models of the fixtures under the names of the full ones."""
    create_model = timm.create_model

    def create_small(name, **kwargs):
        if name.startswith('hdkd_'):
            base = TINY_TEACHER if 'teacher' in name else TINY_STUDENT
            kwargs = {**base, **kwargs}
        return create_model(name, **kwargs)

    monkeypatch.setattr(train_module.timm, 'create_model', create_small)
    create_args = train_module._create_model

    def create_with_args(name, *args, **kwargs):
        model, model_args = create_args(name, *args, **kwargs)
        base = TINY_TEACHER if 'teacher' in name else TINY_STUDENT
        return model, {**base, **model_args} if name.startswith('hdkd_') else model_args

    monkeypatch.setattr(train_module, '_create_model', create_with_args)


@pytest.fixture
def config(image_folder, tmp_path):
    return DistillConfig(
        data_dir=str(image_folder), img_size=32, epochs=3, batch_size=4, lr=2e-3, workers=0, device='cpu',
        output=str(tmp_path / 'runs'), experiment='run')


def load(tmp_path, name):
    return timm.create_model(f"local-dir:{tmp_path / 'runs' / 'run' / name}", pretrained=True)


def test_distill_to_the_end(config, tmp_path):
    config = dataclasses.replace(
        config, student_alone=True, epochs=4, teacher_epochs=20, teacher_lr=3e-3, color_jitter=0.1)
    metrics = distill(config)
    run = tmp_path / 'runs' / 'run'
    assert metrics['run'] == str(run)
    assert sorted(p.name for p in run.iterdir()) == [
        'config.yaml', 'metrics.json', 'student', 'student_alone', 'summary.csv', 'teacher']
    assert [p.name for p in run.parent.iterdir()] == ['run']
    assert json.loads((run / 'metrics.json').read_text()) == {k: v for k, v in metrics.items() if k != 'run'}
    assert metrics['images'] == {'train': 24, 'test': 12}
    # classes differ in brightness: a network that learns at all gets this right
    assert metrics['models']['teacher']['test']['accuracy'] > 0.9
    for name, result in metrics['models'].items():
        model = load(tmp_path, name)
        assert list(model.pretrained_cfg['label_names']) == ['a', 'b', 'c']
        assert result['parameters'] == sum(p.numel() for p in model.parameters())
        assert tuple(model.pretrained_cfg['input_size']) == (3, 32, 32)
    with (run / 'summary.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [(r['model'], r['epoch']) for r in rows] == [
        (name, str(epoch)) for name, epochs in (('teacher', 20), ('student_alone', 4), ('student', 4))
        for epoch in range(epochs)]
    assert float(rows[-1]['train_feature_loss_3']) > 0
    assert rows[0]['train_feature_loss_3'] == ''
    assert float(rows[19]['train_loss']) < float(rows[0]['train_loss'])
    settings = yaml.safe_load((run / 'config.yaml').read_text())
    assert DistillConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}) == config
    lines = format_table(metrics).splitlines()
    assert [line.split()[0] for line in lines] == ['network', 'teacher', 'student_alone', 'student']


def test_saved_models_give_the_reported_accuracy(config, image_folder, tmp_path):
    metrics = distill(config)
    datasets, _ = train_module.create_datasets(image_folder)
    for name in ('teacher', 'student'):
        model = load(tmp_path, name)
        loader = train_module.create_split_loader(
            datasets['test'], timm.data.resolve_data_config(model=model), 5, num_workers=0)
        again = evaluate(model, loader)
        assert again['accuracy'] == metrics['models'][name]['test']['accuracy']
        assert again['loss'] == pytest.approx(metrics['models'][name]['test']['loss'], rel=1e-4)


def test_same_seed_same_weights(config, tmp_path):
    config = dataclasses.replace(config, workers=1)
    distill(config)
    distill(dataclasses.replace(config, experiment='again'))
    distill(dataclasses.replace(config, experiment='other', seed=1))
    distill(dataclasses.replace(config, experiment='compared', student_alone=True))
    run, again, other, compared = (
        timm.create_model(f"local-dir:{tmp_path / 'runs' / name / 'student'}", pretrained=True).head.weight
        for name in ('run', 'again', 'other', 'compared'))
    assert torch.equal(run, again)
    assert torch.equal(run, compared)  # training another network beside it changes nothing
    assert not torch.equal(run, other)


def test_best_epoch_of_val_is_kept(config, image_folder, monkeypatch, tmp_path):
    write_images(image_folder / 'val', number=2, seed=2)
    accuracies = iter([0.2, 0.9, 0.4])
    states = []

    def fake_evaluate(model, loader, *args):
        if len(loader.dataset) == 6:  # val
            states.append(model.head.weight.detach().clone())
            return dict(loss=0., accuracy=next(accuracies), balanced_accuracy=0.)
        return evaluate(model, loader, *args)

    monkeypatch.setattr(train_module, 'evaluate', fake_evaluate)
    config = dataclasses.replace(config, teacher_checkpoint=str(tmp_path / 'teacher'))
    args = {**TINY_TEACHER, 'num_classes': 3}
    save_model(timm.create_model('hdkd_teacher', **args), tmp_path / 'teacher', list('abc'), args)
    metrics = distill(config)
    assert metrics['models']['student']['epoch'] == 1
    kept = load(tmp_path, 'student').head.weight
    assert torch.equal(kept, states[1])
    assert not torch.equal(kept, states[2])


def test_given_teacher_is_used_as_it_is(config, tmp_path):
    args = {**TINY_TEACHER, 'num_classes': 3}
    teacher = timm.create_model('hdkd_teacher', **args)
    save_model(teacher, tmp_path / 'teacher', list('abc'), args)
    metrics = distill(dataclasses.replace(config, teacher_checkpoint=str(tmp_path / 'teacher')))
    assert metrics['models']['teacher']['checkpoint'] == str(tmp_path / 'teacher')
    saved = load(tmp_path, 'teacher').state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in teacher.state_dict().items())
    assert 'given' in format_table(metrics)


def test_grey_images_and_other_sizes(config):
    for name, img_size in (('grey', 28), ('odd', 45)):
        metrics = distill(dataclasses.replace(
            config, experiment=name, in_chans=1, img_size=img_size, epochs=1, channels_last=True))
        assert math.isfinite(metrics['models']['student']['test']['loss'])


def test_nan_loss_ends_the_run(config, tmp_path):
    for epochs in (1, 4):  # with one epoch and one step it shows in the test alone
        with pytest.raises(FloatingPointError, match='teacher: .*no finite number .*lower learning rate'):
            distill(dataclasses.replace(config, teacher_lr=1e30, epochs=epochs, batch_size=24))
        assert not (tmp_path / 'runs').exists()


def test_each_network_is_fed_as_it_is_normalised(config, monkeypatch):
    seen = []
    original = train_module.create_split_loader

    def record(dataset, data_config, *args, is_training=False, **kwargs):
        seen.append((is_training, data_config['mean']))
        return original(dataset, data_config, *args, is_training=is_training, **kwargs)

    create_model = train_module._create_model

    def other_mean(name, *args, **kwargs):
        model, model_args = create_model(name, *args, **kwargs)
        if 'teacher' in name:
            model.pretrained_cfg = dict(model.pretrained_cfg, mean=(0.5, 0.5, 0.5))
        return model, model_args

    monkeypatch.setattr(train_module, 'create_split_loader', record)
    monkeypatch.setattr(train_module, '_create_model', other_mean)
    distill(dataclasses.replace(config, epochs=1))
    imagenet = timm.data.IMAGENET_DEFAULT_MEAN
    # student's for the checks, teacher's for its training and test, student's for its own
    assert seen == [(split, mean) for mean in (imagenet, (0.5, 0.5, 0.5), imagenet) for split in (True, False)]


def test_plateau_schedule_is_given_its_metric(config, monkeypatch, tmp_path):
    monkeypatch.setattr(train_module, 'train_one_epoch', lambda *args: dict(loss=1., accuracy=0.5))
    distill(dataclasses.replace(config, sched='plateau', epochs=16, teacher_epochs=1, warmup_epochs=0, min_lr=0.))
    with (tmp_path / 'runs' / 'run' / 'summary.csv').open() as file:
        lrs = [float(row['lr']) for row in csv.DictReader(file) if row['model'] == 'student']
    assert lrs[0] == 2e-3
    assert lrs[-1] < 1e-3


def test_finished_teacher_survives_an_error(config, tmp_path, monkeypatch, caplog):
    def broken(*args, **kwargs):
        raise KeyboardInterrupt

    original = train_module.HDKDTask.forward
    monkeypatch.setattr(train_module.HDKDTask, 'forward', broken)
    with pytest.raises(KeyboardInterrupt):
        distill(config)
    partial = tmp_path / 'runs' / 'run.partial'
    assert 'teacher' in caplog.text
    assert str(partial) in caplog.text
    monkeypatch.setattr(train_module.HDKDTask, 'forward', original)
    with pytest.raises(FileExistsError, match=r'run\.partial'):
        distill(config)
    metrics = distill(dataclasses.replace(
        config, experiment='more', teacher_checkpoint=str(partial / 'teacher')))
    assert metrics['models']['teacher']['test']['accuracy'] > 0


@pytest.mark.parametrize(('changes', 'error', 'match'), [
    (dict(img_size=27), ValueError, '--img-size must be 28 or more, got 27'),
    (dict(epochs=0), ValueError, '--epochs must be 1 or more'),
    (dict(batch_size=25), ValueError, '24 training images are fewer than a batch of 25'),
    (dict(model='hdkd_pupil'), ValueError, "Unknown model 'hdkd_pupil': choose from hdkd_student"),
    (dict(teacher='resnet99'), ValueError, "Unknown model 'resnet99'"),
    (dict(teacher='resnet18'), ValueError, r'Stage 1: .*\(B, 8, H/2, W/2\).*\(B, 64, H/2, W/2\)'),
    (dict(teacher='hdkd_teacher_s4'), ValueError, r'Stage 1: .*H/2, W/2\).*H/4, W/4\)'),
    (dict(stages=(1, 5)), ValueError, 'stages must be among'),
    (dict(kd_type='warm'), ValueError, "'warm'"),
    (dict(tau=0.), ValueError, '--tau must be above 0'),
    (dict(alpha=1.5), ValueError, '--alpha must be between 0 and 1'),
    (dict(teacher='deit_tiny_patch16_224', feature_weight=0., img_size=32, teacher_opt='wings'), ValueError, 'wings'),
    (dict(model='hdkd_student_plain'), ValueError, 'no distillation head'),
    (dict(in_chans=2), ValueError, 'in_chans 2'),
    (dict(train_fraction=2.), ValueError, '--train-fraction must be above 0 and at most 1, got 2.0'),
    (dict(scale=(0.5, 2.)), ValueError, r'--scale must be 0 < MIN <= MAX <= 1, got 0\.5 2\.0'),
    (dict(feature_weight=-1.), ValueError, '--feature-weight must be 0 or more'),
    (dict(stage_exponent=math.nan), ValueError, '--stage-exponent must be 0 or more, got nan'),
    (dict(feature_weight=math.inf), ValueError, '--feature-weight .* got inf'),
    (dict(stages=(3, 3)), ValueError, 'stages must differ'),
    (dict(data_dir='nowhere'), FileNotFoundError, 'nowhere'),
    (dict(teacher_checkpoint='nowhere'), FileNotFoundError, 'nowhere'),
])
def test_bad_input_leaves_nothing_behind(config, changes, error, match, tmp_path):
    with pytest.raises(error, match=match):
        distill(dataclasses.replace(config, **changes))
    assert not (tmp_path / 'runs').exists()


def test_no_run_is_overwritten(config, tmp_path):
    (tmp_path / 'runs' / 'run').mkdir(parents=True)
    with pytest.raises(FileExistsError, match='nothing is overwritten'):
        distill(config)
