"""Whole trainings on small folders, with networks cut down to a second or two."""
import csv
import dataclasses
import gc
import itertools
import json
import math
import os
import random
import shutil
import signal
import stat
import time
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from helpers import TINY_STUDENT, TINY_TEACHER, write_images
from torch.nn import functional as F

from hdkd_timm import DistillConfig, TrainConfig, distill, evaluate_model, train
from hdkd_timm.data import cache as cache_module
from hdkd_timm.data.datasets import create_datasets
from hdkd_timm.data.samples import SampleDataset
from hdkd_timm.evaluation.evaluate import format_table
from hdkd_timm.evaluation.inference import EvalConfig
from hdkd_timm.evaluation.metrics import METRICS
from hdkd_timm.models.checkpoint import save_model
from hdkd_timm.training import train as training_module
from hdkd_timm.training.run_folder import load_state
from hdkd_timm.training.train import Run
from hdkd_timm.utils.distributed import World
from hdkd_timm.utils.signals import Interrupted

STUDENT = {k: v for k, v in TINY_STUDENT.items() if k not in ('img_size', 'num_classes')}
TEACHER = {k: v for k, v in TINY_TEACHER.items() if k not in ('img_size', 'num_classes')}


@pytest.fixture
def settings(image_folder, tmp_path):
    return dict(
        data_dir=str(image_folder), img_size=32, epochs=3, batch_size=4, lr=2e-3, workers=0, device='cpu', bootstrap=10,
        model_kwargs=STUDENT, output=str(tmp_path / 'runs'), experiment='run')


@pytest.fixture
def config(settings):
    return DistillConfig(**settings, teacher_kwargs=TEACHER)


@pytest.fixture
def train_config(settings):
    return TrainConfig(**settings)


@pytest.fixture
def run(tmp_path):
    return tmp_path / 'runs' / 'run'


def load(folder):
    return timm.create_model(f'local-dir:{folder}/best', pretrained=True)


def read_summary(folder):
    with (folder / 'summary.csv').open() as file:
        return list(csv.DictReader(file))


def save_teacher(folder, **kwargs):
    args = {**TINY_TEACHER, 'num_classes': 3, **kwargs}
    teacher = timm.create_model('hdkd_teacher', **args)
    save_model(teacher, folder, list('abc'), args)
    return teacher


def assert_as_reported(folder, result, data_dir):
    """The saved model of a run has the test metrics and the predictions that the run told."""
    report, images = evaluate_model(
        str(folder), EvalConfig(data_dir=data_dir, batch_size=5, workers=0, device='cpu', bootstrap=0))
    expected = result['test']
    assert report['confusion_matrix'] == expected['confusion_matrix']
    assert {k: report[k] for k in METRICS} == pytest.approx({k: expected[k] for k in METRICS}, rel=1e-4)
    with (folder / 'predictions.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [row['path'] for row in rows] == images['names']
    probs = np.array([[float(row[f'prob_{k}']) for k in 'abc'] for row in rows])
    np.testing.assert_allclose(probs, images['probs'], atol=1e-5)
    assert [row['target'] for row in rows] == ['abc'[t] for t in images['targets']]
    assert [row['label'] for row in rows] == ['abc'[k] for k in images['probs'].argmax(axis=1)]


def interrupt_test(monkeypatch, command, config, images=12):
    """Let SIGTERM come when a network is about to be tested on so many images. Returns the bytes of last.pth then."""
    evaluate = training_module.evaluate
    saved = []

    def interrupted(model, loader, *args, **kwargs):
        if len(loader.dataset) == images:
            saved.extend(path.read_bytes() for path in run.rglob('last.pth'))
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(model, loader, *args, **kwargs)

    run = Path(config.output, config.experiment)
    with monkeypatch.context() as patch:
        patch.setattr(training_module, 'evaluate', interrupted)
        with pytest.raises(Interrupted, match=f"SIGTERM, the state of run '{run}' is saved"):
            command(config)
    return saved


def test_distill_to_the_end(config, run):
    config = dataclasses.replace(
        config, student_alone=True, epochs=4, teacher_epochs=20, teacher_lr=3e-3, color_jitter=0.1)
    metrics = distill(config)
    assert metrics['run'] == str(run)
    assert sorted(p.name for p in run.iterdir()) == [
        'SHA256SUMS', 'config.yaml', 'images.csv', 'metrics.json', 'student', 'student_alone', 'teacher']
    for name in ('student', 'student_alone', 'teacher'):
        assert sorted(p.name for p in (run / name).iterdir()) == [
            'SHA256SUMS', 'best', 'last.pth', 'metrics.json', 'predictions.csv', 'summary.csv']
        assert json.loads((run / name / 'metrics.json').read_text()) == metrics['models'][name]
    assert [p.name for p in run.parent.iterdir()] == ['run']
    assert json.loads((run / 'metrics.json').read_text()) == {k: v for k, v in metrics.items() if k != 'run'}
    assert metrics['images'] == {'train': 24, 'test': 12}
    # classes differ in brightness: a network that learns at all gets this right
    assert metrics['models']['teacher']['test']['accuracy'] > 0.9
    for name, result in metrics['models'].items():
        model = load(run / name)
        assert list(model.pretrained_cfg['label_names']) == ['a', 'b', 'c']
        assert result['parameters'] == sum(p.numel() for p in model.parameters())
        assert tuple(model.pretrained_cfg['input_size']) == (3, 32, 32)
        rows = read_summary(run / name)
        assert [r['epoch'] for r in rows] == [str(i) for i in range(20 if name == 'teacher' else 4)]
        assert all(f'train_{metric}' in rows[0] for metric in METRICS)
    rows = read_summary(run / 'student')
    assert float(rows[-1]['train_feature_loss_3']) > 0
    assert 'train_feature_loss_3' not in read_summary(run / 'teacher')[0]
    assert float(rows[-1]['train_loss']) < float(rows[0]['train_loss'])
    values = yaml.safe_load((run / 'config.yaml').read_text())
    assert values['teacher_lr'] == 3e-3
    assert values['scale'] == [0.8, 1.0]
    lines = format_table(metrics).splitlines()
    assert [line.split()[0] for line in lines] == ['network', 'teacher', 'student_alone', 'student']
    assert (f"{metrics['models']['teacher']['test']['accuracy']:.1%} (" in lines[1])


def test_train_any_timm_model(train_config, run):
    metrics = train(dataclasses.replace(
        train_config, model='resnet10t', model_kwargs=dict(stem_width=16), drop=0.1, epochs=1))
    assert list(metrics['models']) == ['resnet10t']
    assert sorted(p.name for p in run.iterdir()) == [
        'SHA256SUMS', 'best', 'config.yaml', 'images.csv', 'last.pth', 'metrics.json', 'predictions.csv',
        'summary.csv']
    model = load(run)
    assert (model.num_classes, model.drop_rate, model.conv1[0].out_channels) == (3, 0.1, 12)
    cfg = json.loads((run / 'best' / 'config.json').read_text())['pretrained_cfg']
    assert cfg['input_size'] == [3, 32, 32]  # not timm's, 176 px
    assert not {'test_input_size', 'test_crop_pct'} & set(cfg)
    assert_as_reported(run, metrics['models']['resnet10t'], train_config.data_dir)


def test_saved_models_give_the_reported_metrics(config, run):
    metrics = distill(config)
    for name in ('teacher', 'student'):
        assert_as_reported(run / name, metrics['models'][name], config.data_dir)


def test_same_seed_same_weights(config, tmp_path):
    distill(config)
    distill(dataclasses.replace(config, experiment='again', workers=2))
    distill(dataclasses.replace(config, experiment='other', seed=1))
    distill(dataclasses.replace(config, experiment='compared', student_alone=True))
    run, again, other, compared = (
        load(tmp_path / 'runs' / name / 'student').head.weight for name in ('run', 'again', 'other', 'compared'))
    assert torch.equal(run, again)  # whatever the number of loader processes
    assert torch.equal(run, compared)  # training another network beside it changes nothing
    assert not torch.equal(run, other)


def test_config_file_repeats_a_run(train_config, run, tmp_path):
    from hdkd_timm.cli import main
    train(train_config)
    assert main(['train', '--config', str(run / 'config.yaml'), '--experiment', 'again']) == 0
    assert torch.equal(load(run).head.weight, load(tmp_path / 'runs' / 'again').head.weight)


def test_best_epoch_of_val_is_kept(train_config, image_folder, monkeypatch, run):
    write_images(image_folder / 'val', number=2, seed=2)
    recalls = iter([0.2, 0.9, 0.4])
    states = []
    original = training_module.classification_metrics
    evaluate = training_module.evaluate

    def fake_metrics(probs, targets):
        metrics = original(probs, targets)
        return dict(metrics, balanced_accuracy=next(recalls)) if len(targets) == 6 else metrics

    def record(model, loader, *args):
        if len(loader.dataset) == 6:
            states.append(model.head.weight.detach().clone())
        return evaluate(model, loader, *args)

    monkeypatch.setattr(training_module, 'classification_metrics', fake_metrics)
    monkeypatch.setattr(training_module, 'evaluate', record)
    metrics = train(train_config)
    assert metrics['models']['hdkd_student']['epoch'] == 1
    kept = load(run).head.weight
    assert torch.equal(kept, states[1])
    assert not torch.equal(kept, states[2])


def test_lower_is_better_for_some_metrics(train_config, image_folder, monkeypatch):
    write_images(image_folder / 'val', number=2, seed=2)
    losses = iter([0.9, 0.1, 0.5])
    original = training_module.classification_metrics

    def fake_metrics(probs, targets):
        metrics = original(probs, targets)
        return dict(metrics, log_loss=next(losses)) if len(targets) == 6 else metrics

    monkeypatch.setattr(training_module, 'classification_metrics', fake_metrics)
    metrics = train(dataclasses.replace(train_config, select_metric='log_loss'))
    assert metrics['models']['hdkd_student']['epoch'] == 1


def test_test_split_is_touched_once(config, image_folder, monkeypatch):
    write_images(image_folder / 'val', number=2, seed=2)
    seen = []
    evaluate = training_module.evaluate

    def record(model, loader, *args):
        seen.append(len(loader.dataset))
        return evaluate(model, loader, *args)

    monkeypatch.setattr(training_module, 'evaluate', record)
    train(TrainConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(TrainConfig)}))
    assert seen == [6, 6, 6, 12]


def test_early_stopping(train_config, image_folder, monkeypatch, run):
    write_images(image_folder / 'val', number=2, seed=2)
    recalls = iter([0.2, 0.5, 0.4, 0.5, 0.9, 0.9])
    original = training_module.classification_metrics

    def fake_metrics(probs, targets):
        metrics = original(probs, targets)
        return dict(metrics, balanced_accuracy=next(recalls)) if len(targets) == 6 else metrics

    monkeypatch.setattr(training_module, 'classification_metrics', fake_metrics)
    result = train(dataclasses.replace(train_config, epochs=6, early_stopping=2))['models']['hdkd_student']
    assert (result['epoch'], result['epochs']) == (1, 4)
    assert len(read_summary(run)) == 4


def test_given_teacher_is_used_as_it_is(config, tmp_path, run):
    teacher = save_teacher(tmp_path / 'teacher')
    metrics = distill(dataclasses.replace(config, teacher_checkpoint=str(tmp_path / 'teacher')))
    assert metrics['models']['teacher']['checkpoint'] == str(tmp_path / 'teacher')
    saved = load(run / 'teacher').state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in teacher.state_dict().items())
    assert 'given' in format_table(metrics)


def test_interrupted_test_of_a_given_teacher_goes_on(config, monkeypatch, tmp_path, run):
    save_teacher(tmp_path / 'teacher')
    config = dataclasses.replace(config, epochs=1, teacher_checkpoint=str(tmp_path / 'teacher'))
    interrupt_test(monkeypatch, distill, config)
    assert sorted(path.name for path in run.iterdir()) == ['SHA256SUMS', 'config.yaml', 'images.csv']
    metrics = distill(config, resume=True)
    assert [result['test']['images'] for result in metrics['models'].values()] == [12, 12]
    assert metrics['models']['teacher'] == json.loads((run / 'teacher' / 'metrics.json').read_text())


def test_interrupted_final_test_leaves_the_state_as_it_was(train_config, image_folder, monkeypatch, run):
    write_images(image_folder / 'val', number=2, seed=2)
    original = training_module.classification_metrics  # the first epoch is the best, not the last one
    monkeypatch.setattr(
        training_module, 'classification_metrics', lambda p, t: dict(original(p, t), balanced_accuracy=0.5))
    expected = train(dataclasses.replace(train_config, experiment='unbroken'))['models']['hdkd_student']
    assert expected['epoch'] == 0
    before, = interrupt_test(monkeypatch, train, train_config)
    assert (run / 'last.pth').read_bytes() == before
    ours, unbroken = (load_state(folder / 'last.pth') for folder in (run, run.parent / 'unbroken'))
    for part in ('state_dict', 'optimizer'):
        torch.testing.assert_close(ours[part], unbroken[part], rtol=0, atol=0)
    result = train(train_config, resume=True)['models']['hdkd_student']
    assert {**result, 'train_seconds': 0} == {**expected, 'train_seconds': 0}
    assert (run / 'predictions.csv').read_text() == (run.parent / 'unbroken' / 'predictions.csv').read_text()


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
    with pytest.raises(ValueError, match=rf"not those that run '{run}' was begun with \(36 in .*, now 3[78];"):
        train(config, resume=True)
    for path in new:
        path.rmdir() if path.is_dir() else path.unlink()
    assert train(config, resume=True)['models']['hdkd_student']['test']['images'] == 12


def test_train_with_the_soft_labels_of_a_teacher(train_config, tmp_path, run):
    save_teacher(tmp_path / 'teacher')
    config = dataclasses.replace(train_config, teacher_checkpoint=str(tmp_path / 'teacher'), alpha=0.9, tau=2.)
    train(config)
    assert float(read_summary(run)[0]['train_kd_loss']) > 0
    train(dataclasses.replace(config, teacher_checkpoint=None, experiment='plain'))
    assert not torch.equal(load(run).head.weight, load(run.parent / 'plain').head.weight)


@pytest.mark.parametrize('told', [{}, dict(arch='hdkd_teacher_s4')])
def test_teacher_file_says_what_it_holds(config, told, tmp_path, run):
    """The default of --teacher is no word against that; its classes are brought into the order of the data."""
    model = timm.create_model('hdkd_teacher_s4', **TINY_TEACHER | dict(num_classes=3)).eval()
    torch.save(dict(state_dict=model.state_dict(), **told), tmp_path / 'teacher.pth')
    config = dataclasses.replace(
        config, model='hdkd_student_s4', epochs=1, teacher_checkpoint=str(tmp_path / 'teacher.pth'),
        teacher_label_names=('c', 'a', 'b'))
    if not told:
        with pytest.raises(ValueError, match='Stage 1: '):  # of stride 2, as nothing says otherwise
            distill(config)
        return
    distill(config)
    teacher, x = load(run / 'teacher').eval(), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(teacher(x), model(x)[:, [1, 2, 0]])
    assert list(teacher.pretrained_cfg['label_names']) == ['a', 'b', 'c']


def test_fine_tuning_a_model_folder(train_config, config, run):
    distill(config)
    source = f"local-dir:{run / 'student' / 'best'}"
    train(dataclasses.replace(
        train_config, model=source, model_kwargs={}, experiment='tuned', img_size=40, freeze_stages=3, epochs=1))
    tuned, before = load(run.parent / 'tuned').state_dict(), load(run / 'student').state_dict()
    frozen = [name for name in before if name.startswith('stages.')]
    assert frozen
    assert all(torch.equal(tuned[name], before[name]) for name in frozen)  # batch statistics too
    assert not torch.equal(tuned['head.weight'], before['head.weight'])
    assert tuple(load(run.parent / 'tuned').pretrained_cfg['input_size']) == (3, 40, 40)


@pytest.mark.parametrize('img_size', [28, 45])
def test_grey_images_and_other_sizes(config, img_size, run):
    metrics = distill(dataclasses.replace(
        config, in_chans=1, img_size=img_size, epochs=1, channels_last=True, drop_path=0.2))
    for name, result in metrics['models'].items():
        model = load(run / name)
        assert model.stages[0][0].conv.weight.shape[1] == 1
        assert tuple(model.pretrained_cfg['input_size']) == (1, img_size, img_size)
        assert len(model.pretrained_cfg['mean']) == 1
        assert_as_reported(run / name, result, config.data_dir)
    assert tuple(load(run / 'student').img_size) == (img_size, img_size)
    assert load(run / 'student').blocks[-1].drop_path.drop_prob == pytest.approx(0.2)


@pytest.mark.parametrize('saved', ['folder', 'file'])
def test_grey_images_with_the_soft_labels_of_a_teacher(train_config, saved, tmp_path, run):
    teacher = save_teacher(tmp_path / 'folder', in_chans=1)
    torch.save(teacher.state_dict(), tmp_path / 'file')
    metrics = train(dataclasses.replace(
        train_config, model='resnet10t', model_kwargs={}, in_chans=1, epochs=1,
        teacher_checkpoint=str(tmp_path / saved)))
    assert float(read_summary(run)[0]['train_kd_loss']) > 0
    assert_as_reported(run, metrics['models']['resnet10t'], train_config.data_dir)


def test_distilling_a_distilled_student_further(config, tmp_path, run):
    """From given weights the student alone is the same network as the distilled one, and starts like it."""
    args = {**TINY_STUDENT, 'num_classes': 3}
    source = timm.create_model('hdkd_student', **args)
    save_model(source, tmp_path / 'student', list('abc'), args)
    save_teacher(tmp_path / 'teacher')
    distill(dataclasses.replace(
        config, model=f"local-dir:{tmp_path / 'student'}", model_kwargs={}, student_alone=True, epochs=1,
        teacher_checkpoint=str(tmp_path / 'teacher'), freeze_stages=3))
    student, alone, before = (m.state_dict() for m in (load(run / 'student'), load(run / 'student_alone'), source))
    assert set(alone) == set(student) == set(before)
    frozen = [name for name in before if name.startswith('stages.')]
    assert all(torch.equal(alone[name], before[name]) for name in frozen)
    for ours, theirs in itertools.combinations([student, alone, before], 2):
        assert not torch.equal(ours['head.weight'], theirs['head.weight'])


def test_accumulated_batches_are_one(train_config, monkeypatch):
    """Steps of 2 x 4 images are those of 8, as far as no layer looks at a whole batch."""
    settings = dict(aug='none', epochs=1, opt='sgd', lr=0.1, sched='none', freeze_stages=3, clip_grad=1.)
    runs = [
        train(dataclasses.replace(train_config, experiment=name, batch_size=size, grad_accum_steps=accum, **settings))
        for name, size, accum in (('one', 8, 1), ('two', 4, 2), ('none', 4, 1))]
    one, two, none = (load(r['run']).head.weight for r in runs)
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    assert (one - none).abs().max() > 1e-4


@pytest.mark.parametrize(('accum', 'interval', 'steps'), [(1, 5, [5, 10]), (3, 4, [6, 9, 12]), (5, 4, [5, 10, 12])])
def test_recovery_interval_goes_with_accumulated_batches(train_config, accum, interval, steps, monkeypatch):
    """The state is saved at the first optimiser step in each interval of batches."""
    saved, save_state = [], training_module.save_state

    def record(state, path):
        saved.append(state['progress'][0]['step'])
        save_state(state, path)

    monkeypatch.setattr(training_module, 'save_state', record)
    train(dataclasses.replace(
        train_config, epochs=1, batch_size=2, grad_accum_steps=accum, recovery_interval=interval))
    assert saved == [*steps, 0]  # and at the end of the epoch


@pytest.fixture
def unbalanced(tmp_path):
    """A folder of 6, 3 and 1 training images of the classes."""
    for name, number in zip('abc', (6, 3, 1)):
        write_images(tmp_path / 'unbalanced' / 'train', classes=[name], number=number)
    write_images(tmp_path / 'unbalanced' / 'test', number=1)
    return tmp_path / 'unbalanced'


@pytest.mark.parametrize(('kind', 'weights'), [
    ('balanced', [10 / 18, 10 / 9, 10 / 3]),
    ('effective', [0.334000, 0.667000, 1.998999]),  # 1 / (1 + beta + ... + beta^(n-1)), mean 1
    ('weights.json', [1., 2., 5.]),
])
@pytest.mark.parametrize(('command', 'with_teacher'), [(train, False), (train, True), (distill, False)])
def test_class_weights_are_in_the_loss(
        command, with_teacher, kind, weights, config, unbalanced, monkeypatch, tmp_path, run):
    fit = training_module.fit
    losses = []

    def record(name, task, *args):
        def compare(task, args, result):
            losses.append(F.cross_entropy(logits[0], args[1], weight=torch.tensor(weights)).item())
            assert losses[-1] != pytest.approx(F.cross_entropy(logits[0], args[1]).item(), rel=1e-2)

        logits = []
        module = task.trainable_module
        if hasattr(module, 'student'):
            module = module.student.head
        module.register_forward_hook(lambda module, args, output: logits.append(output))
        task.register_forward_hook(compare)
        return fit(name, task, *args)

    monkeypatch.setattr(training_module, 'fit', record)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'weights.json').write_text(json.dumps(dict(zip('abc', weights))))
    save_teacher(tmp_path / 'teacher')
    config = dataclasses.replace(
        config, data_dir=str(unbalanced), batch_size=10, epochs=1, class_weights=kind,
        teacher_checkpoint='teacher' if with_teacher else None)
    if command is train:
        config = TrainConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(TrainConfig)})
    command(config)
    told = [
        row.get('train_ce_loss') or row.get('train_task_loss') or row['train_loss']
        for path in sorted(run.rglob('summary.csv'), reverse=True) for row in read_summary(path.parent)]
    assert [float(loss) for loss in told] == pytest.approx(losses, rel=1e-5)


@pytest.fixture(scope='module')
def distilled(tmp_path_factory):
    """Settings -> weights of a student that was distilled by them from a given teacher, on 9, 5 and 2 images."""
    folder = tmp_path_factory.mktemp('settings')
    for name, number in zip('abc', (9, 5, 2)):
        write_images(folder / 'data' / 'train', classes=[name], number=number)
    write_images(folder / 'data' / 'test', number=1)
    torch.manual_seed(0)
    save_teacher(folder / 'teacher')
    runs = {}

    def weights(**changes):
        key = str(changes)
        if key not in runs:
            run = distill(DistillConfig(**{
                **dict(
                    data_dir=str(folder / 'data'), img_size=32, epochs=1, batch_size=8, lr=2e-3, workers=0,
                    device='cpu', bootstrap=0, weight_decay=0.5, model_kwargs=STUDENT, check_images=False,
                    teacher_checkpoint=str(folder / 'teacher'), output=str(folder / 'runs'),
                    experiment=f'run{len(runs)}'), **changes}))['run']
            runs[key] = load(f'{run}/student').state_dict()
        return runs[key]

    return weights


TWO, EMA = dict(epochs=2), dict(model_ema=True)


@pytest.mark.parametrize(('setting', 'value', 'others'), [
    ('aa', 'rand-m5-n2', {}),
    ('alpha', 0.3, {}),
    ('amp', True, {}),
    ('amp_dtype', 'bfloat16', dict(amp=True)),
    ('aug', 'paper', {}),
    ('aug_device', True, dict(aug='paper')),
    ('channels_last', True, {}),
    ('class_weights', 'balanced', {}),
    ('class_weights', 'effective', {}),
    ('clip_grad', 0.01, {}),
    ('clip_mode', 'agc', dict(clip_grad=0.01)),
    ('clip_mode', 'value', dict(clip_grad=0.01)),
    ('cutmix', 0.4, {}),
    ('decay_tokens', True, {}),
    ('drop', 0.2, {}),
    ('drop_path', 0.2, {}),
    ('feature_weight', 1., {}),
    ('kd_type', 'hard', {}),
    ('layer_decay', 0.7, {}),
    ('layer_decay', 0.7, dict(decay_tokens=True)),
    ('load_size', 36, {}),
    ('min_lr', 1e-3, TWO),
    ('mixup', 0.4, {}),
    ('mixup_off_epoch', 1, dict(TWO, mixup=0.4)),
    ('model_ema', True, {}),
    ('model_ema_decay', 0.5, dict(EMA, model_ema_warmup=False)),  # few updates are warm-up alone
    ('model_ema_warmup', False, EMA),
    ('reduction', 'batchmean', {}),
    ('reprob', 0.5, {}),
    ('sampler', 'balanced', {}),
    ('sched_on_updates', True, TWO),
    ('smoothing', 0.1, {}),
    ('smoothing', 0.1, dict(mixup=0.4)),
    ('stage_exponent', 0., {}),
    ('stages', (1, 3), {}),
    ('tau', 2., {}),
    ('warmup_epochs', 1, TWO),
    ('warmup_lr', 1e-4, dict(TWO, warmup_epochs=1)),
    ('weight_decay', 0.1, {}),
], ids=lambda value: '-'.join(value) if isinstance(value, dict) else None)
def test_every_setting_changes_the_weights_and_trains(distilled, setting, value, others):
    before, after = distilled(**others), distilled(**others, **{setting: value})
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(('changes', 'level', 'words'), [
    (dict(model_ema_warmup=False), 'WARNING', 'decay 0.998, 6 updates, 99.0% of it are the first weights'),  # ^ 5
    (dict(model_ema_warmup=False, model_ema_decay=0.4), 'INFO', 'decay 0.4, 6 updates, 1.0% of it'),
    (dict(epochs=12), 'INFO', 'decay growing to 0.998, 24 updates, 0.2% of it'),
    (dict(epochs=1), 'WARNING', '2 updates, 37.0% of it'),  # 1 - 2 ^ (-2/3)
])
def test_what_is_left_of_the_first_weights_is_told(train_config, changes, level, words, caplog):
    caplog.set_level('INFO')
    described = training_module._describe_average
    config = dataclasses.replace(train_config, model_ema=True, **changes)
    average = timm.utils.ModelEmaV3(
        torch.nn.Linear(1, 1), decay=config.model_ema_decay, use_warmup=config.model_ema_warmup)
    described('net', average, config.epochs * 2)
    record, = caplog.records
    assert (record.levelname, words in record.message) == (level, True), record.message
    assert ('hardly trained' in record.message) == (level == 'WARNING')
    # and it is so: a weight that was 1 at the first update, and 0 in all the others
    linear = torch.nn.Linear(1, 1, bias=False)
    for step in range(1, config.epochs * 2 + 1):
        linear.weight.data.fill_(float(step == 1))
        if step == 1:
            average = timm.utils.ModelEmaV3(linear, decay=average.decay, use_warmup=average.use_warmup)
        average.update(linear, step=step)
    assert f'{average.module.weight.item():.1%} of it' in record.message


def test_moving_average_of_few_updates_follows_the_weights(train_config, run):
    assert train_config.model_ema_warmup
    train(dataclasses.replace(train_config, model_ema=True, epochs=4))
    state = torch.load(run / 'last.pth', weights_only=True)
    first = timm.create_model('hdkd_student', **{**TINY_STUDENT, 'num_classes': 3})
    ours, theirs = state['state_dict_ema']['head.weight'], state['state_dict']['head.weight']
    assert first.head.weight.shape == ours.shape
    assert (ours - theirs).norm() < 0.5 * theirs.norm()


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
        data_dir=str(folder / 'data'), img_size=32, epochs=2, batch_size=4, workers=0, device='cpu', bootstrap=0,
        model_kwargs=STUDENT, teacher_kwargs=TEACHER, output=str(folder / 'runs'), experiment='run', sched='none',
        teacher_sched='none')
    return config, distill(config)


@pytest.fixture
def resumed(finished, tmp_path):
    """A copy of the finished run."""
    config, _ = finished
    shutil.copytree(Path(config.output), tmp_path / 'runs')
    return dataclasses.replace(config, output=str(tmp_path / 'runs')), tmp_path / 'runs' / 'run'


@pytest.mark.parametrize('file', ['best/model.safetensors', 'best/config.json', 'metrics.json'])
def test_flipped_bits_are_found_where_they_are_read(resumed, file):
    from hdkd_timm.analysis.report import read_networks
    from hdkd_timm.models.checkpoint import load_saved
    config, run = resumed
    for name in ('teacher', 'student'):
        path = run / name / file
        good = path.read_bytes()
        reads = [lambda: distill(config, resume=True), lambda: read_networks([run / 'teacher', run / 'student'])]
        if file.startswith('best'):
            reads.append(lambda name=name: load_saved(run / name))
        for bit, read in zip(random.Random(0).sample(range(8 * len(good)), 3 * len(reads)), 3 * reads):
            flip(path, bit)
            with pytest.raises(ValueError, match=rf"{name}/{file}' is damaged, or was edited"):
                read()
            path.write_bytes(good)


@pytest.mark.parametrize(('damage', 'match'), [
    (lambda run: shutil.rmtree(run / 'teacher' / 'best'), r"teacher/best/config\.json' is missing.* --overwrite"),
    (lambda run: (run / 'teacher' / 'best' / 'model.safetensors').unlink(), r"best/model\.safetensors' is missing"),
    (lambda run: (run / 'teacher' / 'metrics.json').write_text('{'), r"teacher/metrics\.json' is damaged"),
    (lambda run: shutil.rmtree(run / 'student' / 'best'), r"student/best/config\.json' is missing"),
    (lambda run: (run / 'student' / 'last.pth').write_bytes(b'PK'), r"student/last\.pth' is"),
])
@pytest.mark.parametrize('has_sums', [True, False])
def test_what_is_missing_shows_before_anything_is_trained(resumed, damage, match, has_sums, monkeypatch):
    config, run = resumed
    (run / 'student' / 'metrics.json').unlink()  # it has its test before it
    if not has_sums:
        for path in list(run.rglob('SHA256SUMS')):
            path.unlink()
    damage(run)
    before = {path: path.is_dir() or path.read_bytes() for path in run.rglob('*')}
    monkeypatch.setattr(training_module, 'fit', lambda *args, **kwargs: pytest.fail('it trained'))
    with pytest.raises(ValueError, match=match):
        distill(config, resume=True)
    assert {path: path.is_dir() or path.read_bytes() for path in run.rglob('*')} == before


def test_damaged_results_can_be_tested_again(resumed, finished):
    """As the error says."""
    config, run = resumed
    (run / 'teacher' / 'SHA256SUMS').unlink()
    (run / 'teacher' / 'metrics.json').write_text('{"name": 3')
    with pytest.raises(ValueError, match=r'or delete it; --resume tests the network again'):
        distill(config, resume=True)
    (run / 'teacher' / 'metrics.json').unlink()
    assert distill(config, resume=True)['models']['teacher']['test'] \
        == finished[1]['models']['teacher']['test']


@pytest.mark.parametrize('sched', [
    dict(sched='none'), dict(sched='step', decay_epochs=1, warmup_epochs=0),
    dict(sched='multistep', decay_milestones=(1, 3), warmup_epochs=0), dict(sched='plateau', warmup_epochs=0),
])
@pytest.mark.parametrize('stops', [False, True])
def test_more_epochs_end_as_if_they_had_been_meant(train_config, image_folder, sched, stops, monkeypatch, run):
    write_images(image_folder / 'val', number=2, seed=2)
    config = dataclasses.replace(train_config, early_stopping=30, **sched)
    expected = train(dataclasses.replace(config, epochs=4, experiment='whole'))['models']['hdkd_student']
    short = dataclasses.replace(config, epochs=2)
    if stops:
        interrupt_test(monkeypatch, train, short)
    else:
        train(short)
    result = train(dataclasses.replace(short, epochs=4), resume=True)['models']['hdkd_student']
    assert dict(result, train_seconds=0) == dict(expected, train_seconds=0)
    assert read_summary(run) == read_summary(run.parent / 'whole')
    ours, whole = load(run).state_dict(), load(run.parent / 'whole').state_dict()
    assert all(torch.equal(ours[name], value) for name, value in whole.items())
    assert yaml.safe_load((run / 'config.yaml').read_text())['epochs'] == 4
    with pytest.raises(ValueError, match='begun with 4 epochs and cannot go on with 3: it is in epoch 4 already'):
        train(dataclasses.replace(short, epochs=3), resume=True)


@pytest.mark.parametrize('sched', [dict(sched='cosine'), dict(sched='step', warmup_epochs=0), dict(
    sched='cosine', sched_on_updates=True)])
def test_more_epochs_of_another_schedule(train_config, sched, run):
    config = dataclasses.replace(train_config, **sched)
    train(config)
    before = {path: path.is_dir() or path.read_bytes() for path in run.rglob('*')}
    with pytest.raises(ValueError, match=(
            rf"begun with 3 epochs and cannot go on with 9: the schedule '{config.sched}' .* other learning rates .*"
            rf" --model local-dir:{run / 'best'}")):
        train(dataclasses.replace(config, epochs=9), resume=True)
    assert {path: path.is_dir() or path.read_bytes() for path in run.rglob('*')} == before
    train(dataclasses.replace(config, epochs=3), resume=True)


def test_more_epochs_of_a_student_leave_its_teacher(resumed, finished):
    config, run = resumed
    weights = (run / 'teacher' / 'best' / 'model.safetensors').read_bytes()
    more = dataclasses.replace(config, epochs=3)
    with pytest.raises(ValueError, match=r'begun with 2 epochs of the teacher, .* --teacher-epochs 2\.'):
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


def test_runs_that_begin_in_one_second(train_config, monkeypatch, run):
    monkeypatch.setattr(time, 'strftime', lambda *args: '20261125-120000')
    names = [Path(train(dataclasses.replace(train_config, experiment=None, epochs=1), overwrite=overwrite)['run']).name
             for overwrite in (False, True, False)]
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


def test_moving_average_is_what_is_kept(train_config, run):
    metrics = train(dataclasses.replace(train_config, model_ema=True, model_ema_decay=0.5))
    state = torch.load(run / 'last.pth', weights_only=True)
    kept = load(run).head.weight
    assert torch.equal(kept, state['state_dict_ema']['head.weight'])
    assert not torch.equal(kept, state['state_dict']['head.weight'])
    assert metrics['models']['hdkd_student']['test']['images'] == 12


@pytest.mark.parametrize('cache', ['ram', 'disk'])
def test_cached_training_is_the_same(config, run, cache, monkeypatch, caplog):
    config = dataclasses.replace(config, epochs=2, student_alone=True)
    expected = distill(config)
    opened = Counter()
    read = SampleDataset.read

    def count(self, index):
        opened[self.samples.filename(index)] += 1
        return read(self, index)

    monkeypatch.setattr(SampleDataset, 'read', count)
    caplog.set_level('INFO')
    actual = distill(dataclasses.replace(config, cache=cache, experiment='cached', workers=1 if cache == 'ram' else 0))
    for name, result in expected['models'].items():
        assert dict(actual['models'][name], train_seconds=0) == dict(result, train_seconds=0)
    if cache == 'disk':
        assert set(opened.values()) == {1}  # of 3 networks, 2 epochs and a test each
        assert len(opened) == 36
        assert len(list((run.parent / '.cache').glob('*.images'))) == 2
    assert caplog.text.count("Cache: 24 images of split 'train' take ") == 1
    # a run may go on without it, or with another
    run_args = dataclasses.replace(config, experiment='cached', cache=None)
    assert distill(run_args, resume=True)['models'].keys() == actual['models'].keys()


def test_cache_for_another_network(train_config, image_folder):
    config = dataclasses.replace(train_config, cache='ram')
    datasets, classes = create_datasets(config)
    run = Run(config, World(torch.device('cpu')), datasets, classes, folder=Path('run'))
    model = timm.create_model('hdkd_student', **TINY_STUDENT)

    def load(interpolation):
        model.pretrained_cfg['interpolation'] = interpolation
        run.create_loaders(model, 'test')
        return run.caches['test'][1]

    first = load('bilinear')
    assert load('bilinear') is first
    first = weakref.ref(first)
    gc.collect()
    assert first() is not None
    load('nearest')
    gc.collect()
    assert first() is None


def test_cache_that_does_not_fit_leaves_nothing(train_config, run, monkeypatch):
    monkeypatch.setattr(cache_module, 'available_memory', lambda: 1000)
    with pytest.raises(MemoryError, match='--cache ram: 24 images'):
        train(dataclasses.replace(train_config, cache='ram'))
    assert not run.parent.exists()


def test_compiled_training_is_the_same(train_config, run):
    config = dataclasses.replace(train_config, epochs=1, opt='sgd', lr=0.05)  # Adam would make much of rounding noise
    train(config)
    train(dataclasses.replace(config, torchcompile='aot_eager', experiment='compiled'))
    state = load(run.parent / 'compiled').state_dict()
    for name, value in load(run).state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-4)


def test_nan_loss_ends_the_run(config, train_config, run):
    with pytest.raises(FloatingPointError, match=r'teacher: .*no finite number .*epoch 1, step \d+ \(loss .*no state'):
        distill(dataclasses.replace(config, teacher_lr=1e30, teacher_sched='none'))
    assert not run.parent.exists()  # nothing was saved that could go on
    with pytest.raises(FloatingPointError, match=r"epoch 3, step \d+ .*the last good state is '.*last\.pth'"):
        train(dataclasses.replace(
            train_config, model='hdkd_student', sched='cosine', warmup_epochs=2, warmup_lr=0., lr=1e30, epochs=5,
            min_lr=0., opt='sgd', batch_size=24, clip_grad=None))
    state = torch.load(run / 'last.pth', weights_only=True)
    assert all(torch.isfinite(value).all() for value in state['state_dict'].values())


def test_each_network_is_fed_as_it_is_normalised(config, monkeypatch):
    seen = []
    original = training_module.SplitLoader

    def record(dataset, data_config, *args, **kwargs):
        seen.append(('augment' in kwargs, data_config['mean']))
        return original(dataset, data_config, *args, **kwargs)

    create_network = training_module.create_network

    def other_mean(name, *args, **kwargs):
        model, model_args = create_network(name, *args, **kwargs)
        if 'teacher' in name:
            model.pretrained_cfg = dict(model.pretrained_cfg, mean=(0.5, 0.5, 0.5))
        return model, model_args

    monkeypatch.setattr(training_module, 'SplitLoader', record)
    monkeypatch.setattr(training_module, 'create_network', other_mean)
    distill(dataclasses.replace(config, epochs=1))
    imagenet = timm.data.IMAGENET_DEFAULT_MEAN
    # student's for the checks, teacher's for its training and test, student's for its own
    assert seen == [(split, mean) for mean in (imagenet, (0.5, 0.5, 0.5), imagenet) for split in (True, False)]


def test_plateau_schedule_is_given_its_metric(train_config, monkeypatch, run):
    original = training_module.classification_metrics
    monkeypatch.setattr(
        training_module, 'classification_metrics', lambda p, t: dict(original(p, t), balanced_accuracy=0.5))
    train(dataclasses.replace(train_config, sched='plateau', epochs=16, warmup_epochs=0, min_lr=0.))
    lrs = [float(row['lr']) for row in read_summary(run)]
    assert lrs[0] == 2e-3
    assert lrs[-1] < 1e-3


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
    assert 'they flatter' in caplog.text
    assert 'val accuracy' in format_table(metrics)


def test_tensorboard_log(train_config, run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    train(dataclasses.replace(train_config, log=('tensorboard',)))
    events = EventAccumulator(str(run / 'tensorboard'))
    events.Reload()
    values = [e.value for e in events.Scalars('train/loss')]
    assert values == pytest.approx([float(row['train_loss']) for row in read_summary(run)])


def test_finished_teacher_survives_an_error(config, run, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError('on purpose')

    original = training_module.HDKDTask.forward
    monkeypatch.setattr(training_module.HDKDTask, 'forward', broken)
    with pytest.raises(RuntimeError, match='on purpose'):
        distill(config)
    with pytest.raises(FileExistsError, match='--resume goes on with it'):
        distill(config)
    before = (run / 'teacher' / 'best' / 'model.safetensors').read_bytes()
    monkeypatch.setattr(training_module.HDKDTask, 'forward', original)
    metrics = distill(config, resume=True)
    assert (run / 'teacher' / 'best' / 'model.safetensors').read_bytes() == before
    assert metrics['models']['student']['test']['images'] == 12


def test_overwrite_replaces_a_run(train_config, run):
    train(train_config)
    first = load(run).head.weight
    train(dataclasses.replace(train_config, seed=1, epochs=1), overwrite=True)
    assert not torch.equal(load(run).head.weight, first)
    assert len(read_summary(run)) == 1


@pytest.mark.parametrize(('changes', 'match'), [
    (dict(teacher_checkpoint='student', img_size=48), r'HDKDStudent takes no image of \(3, 48, 48\)'),
    (dict(torchcompile='foo'), "--torchcompile 'foo' is no backend: choose from"),
])
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


@pytest.mark.parametrize(('changes', 'error', 'match'), [
    (dict(img_size=27), ValueError, '--img-size must be 28 or more, got 27'),
    (dict(epochs=0), ValueError, '--epochs must be 1 or more'),
    (dict(batch_size=25), ValueError, '24 training images are fewer than a batch of 25'),
    (dict(model='hdkd_pupil'), ValueError, "Unknown model 'hdkd_pupil': choose from hdkd_student"),
    (dict(teacher='resnet99'), ValueError, "Unknown model 'resnet99'"),
    (dict(teacher='resnet18', teacher_kwargs={}), ValueError, r'Stage 1: .*\(B, 8, H/2, W/2\).*\(B, 64, H/2, W/2\)'),
    (dict(teacher='hdkd_teacher_s4'), ValueError, r'Stage 1: .*H/2, W/2\).*H/4, W/4\)'),
    (dict(model_kwargs=dict(STUDENT, wings=2)), ValueError, 'wings'),
    (dict(stages=(1, 5)), ValueError, 'stages must be among'),
    (dict(kd_type='warm'), ValueError, "'warm'"),
    (dict(tau=0.), ValueError, '--tau must be above 0'),
    (dict(alpha=1.5), ValueError, '--alpha must be 0 or more and at most 1'),
    (dict(teacher_opt='wings'), ValueError, 'wings'),
    (dict(opt='wings'), ValueError, 'wings'),
    (dict(sched='tide'), ValueError, 'tide'),
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
    (dict(device='toaster'), ValueError, "Device 'toaster' cannot be used"),
    (dict(aa='rand-x9'), ValueError, "--aa 'rand-x9'"),
    (dict(class_weights='gone.json'), FileNotFoundError, 'gone.json'),
    (dict(early_stopping=2), ValueError, '--early-stopping needs a val split'),
    (dict(freeze_stages=9), ValueError, '--freeze-stages must be 0 to 4'),
    (dict(folds=9, fold=0), ValueError, '9 folds: expected 2 to 8'),
    (dict(mixup=0.2, batch_size=3), ValueError, '--batch-size'),
])
def test_bad_input_leaves_nothing_behind(config, changes, error, match, run):
    with pytest.raises(error, match=match):
        distill(dataclasses.replace(config, **changes))
    assert not run.parent.exists()
