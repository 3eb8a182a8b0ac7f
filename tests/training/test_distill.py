"""Whole distillations, cut down to a few seconds."""

import dataclasses
import itertools
import json
import math
import shutil
from collections import Counter

import pytest
import timm
import torch
import yaml
from helpers import write_images
from training_helpers import STUDENT, TEACHER, assert_as_reported, interrupt_test, load, read_summary, save_teacher

from hdkd_timm import DistillConfig, HDKDTask, TrainConfig, distill, train
from hdkd_timm.data.loader import SplitLoader
from hdkd_timm.data.samples import SampleDataset
from hdkd_timm.evaluation.metrics import METRICS
from hdkd_timm.evaluation.run_results import format_table
from hdkd_timm.models.checkpoint import save_model


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """Settings, results and folder of a run with all networks."""
    folder = tmp_path_factory.mktemp('finished')
    for seed, (split, number) in enumerate((('train', 8), ('test', 4))):
        write_images(folder / 'data' / split, number=number, seed=seed)
    config = DistillConfig(
        data_dir=str(folder / 'data'),
        img_size=32,
        epochs=2,
        batch_size=8,
        lr=2e-3,
        workers=0,
        device='cpu',
        bootstrap=10,
        model_kwargs=STUDENT,
        teacher_kwargs=TEACHER,
        student_alone=True,
        output=str(folder / 'runs'),
        experiment='run',
    )
    return config, distill(config), folder / 'runs' / 'run'


def test_distill_to_the_end(finished):
    config, metrics, run = finished
    assert metrics['run'] == str(run)
    assert sorted(p.name for p in run.iterdir()) == [
        'SHA256SUMS',
        'config.yaml',
        'images.csv',
        'metrics.json',
        'student',
        'student_alone',
        'teacher',
    ]
    for name in ('student', 'student_alone', 'teacher'):
        assert sorted(p.name for p in (run / name).iterdir()) == [
            'SHA256SUMS',
            'best',
            'last.pth',
            'metrics.json',
            'predictions.csv',
            'summary.csv',
        ]
        assert json.loads((run / name / 'metrics.json').read_text()) == metrics['models'][name]
    assert [p.name for p in run.parent.iterdir()] == ['run']
    assert json.loads((run / 'metrics.json').read_text()) == {k: v for k, v in metrics.items() if k != 'run'}
    assert metrics['images'] == {'train': 24, 'test': 12}
    for name, result in metrics['models'].items():
        model = load(run / name)
        assert list(model.pretrained_cfg['label_names']) == ['a', 'b', 'c']
        assert result['parameters'] == sum(p.numel() for p in model.parameters())
        assert tuple(model.pretrained_cfg['input_size']) == (3, 32, 32)
        rows = read_summary(run / name)
        assert [r['epoch'] for r in rows] == ['0', '1']
        assert all(f'train_{metric}' in rows[0] for metric in METRICS)
    rows = read_summary(run / 'student')
    assert float(rows[-1]['train_feature_loss_3']) > 0
    assert 'train_feature_loss_3' not in read_summary(run / 'teacher')[0]
    assert float(rows[-1]['train_loss']) < float(rows[0]['train_loss'])
    lines = format_table(metrics).splitlines()
    assert [line.split()[0] for line in lines] == ['network', 'teacher', 'student_alone', 'student']
    assert f'{metrics["models"]["teacher"]["test"]["accuracy"]:.1%} (' in lines[1]


def test_saved_models_give_the_reported_metrics(finished):
    config, metrics, run = finished
    for name in ('teacher', 'student'):
        assert_as_reported(run / name, metrics['models'][name], config.data_dir)


def test_teacher_with_settings_of_its_own_learns(config, run):
    metrics = distill(
        dataclasses.replace(config, epochs=1, batch_size=4, teacher_epochs=10, teacher_lr=5e-3, color_jitter=0.1)
    )
    # classes differ in brightness: a network that learns at all gets this right
    assert metrics['models']['teacher']['test']['accuracy'] > 0.9
    assert [len(read_summary(run / name)) for name in ('teacher', 'student')] == [10, 1]
    values = yaml.safe_load((run / 'config.yaml').read_text())
    assert values['teacher_lr'] == 5e-3
    assert values['scale'] == [0.8, 1.0]


def test_same_seed_same_weights(finished, tmp_path):
    config, _, run = finished
    config = dataclasses.replace(config, output=str(tmp_path / 'runs'), student_alone=False)
    distill(dataclasses.replace(config, experiment='again', workers=2))
    distill(dataclasses.replace(config, experiment='other', seed=1))
    expected = load(run / 'student').head.weight
    again, other = (load(tmp_path / 'runs' / name / 'student').head.weight for name in ('again', 'other'))
    # whatever the number of loader processes, and without another network that is trained beside it
    assert torch.equal(expected, again)
    assert not torch.equal(expected, other)


def test_given_teacher_is_used_as_it_is(config, tmp_path, run):
    teacher = save_teacher(tmp_path / 'teacher')
    metrics = distill(dataclasses.replace(config, teacher_checkpoint=str(tmp_path / 'teacher')))
    assert metrics['models']['teacher']['checkpoint'] == str(tmp_path / 'teacher')
    saved = load(run / 'teacher').state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in teacher.state_dict().items())
    assert 'given' in format_table(metrics)


def test_class_weights_are_read_before_a_given_teacher_is_tested(config, tmp_path, run):
    save_teacher(tmp_path / 'teacher')
    (tmp_path / 'weights.json').write_text('{"a": 1, "b": 2}')
    config = dataclasses.replace(
        config, teacher_checkpoint=str(tmp_path / 'teacher'), class_weights=str(tmp_path / 'weights.json')
    )
    with pytest.raises(ValueError, match="class 'c' is missing"):
        distill(config)
    assert not run.exists()


@pytest.mark.parametrize('changed', ['teacher', 'class weights'])
@pytest.mark.parametrize('is_distilled', [True, False])
def test_what_a_run_takes_from_elsewhere_is_the_same_when_it_resumes(config, tmp_path, run, changed, is_distilled):
    teacher, weights = tmp_path / 'teacher', tmp_path / 'weights.json'
    save_teacher(teacher)
    weights.write_text('{"a": 1, "b": 2, "c": 1}')
    config = dataclasses.replace(
        config, epochs=1, sched='none', teacher_checkpoint=str(teacher), class_weights=str(weights), student_alone=False
    )
    start = distill
    if not is_distilled:
        start = train
        names = [field.name for field in dataclasses.fields(TrainConfig)]
        config = TrainConfig(**{name: getattr(config, name) for name in names})
    start(config)
    more = dataclasses.replace(config, epochs=2)
    if changed == 'teacher':
        kept = teacher.rename(tmp_path / 'kept')
        save_teacher(teacher)
        match = "The teacher '.*teacher' of run '.*' has other weights than when the run was started: restore it, or"
    else:
        weights.write_text('{"a": 1, "b": 3, "c": 1}')
        match = "Run '.*' was started with 2.0 for 'b' in --class-weights, not 3.0: restore it, or start another run"
    with pytest.raises(ValueError, match=match):
        start(more, resume=True)
    if changed == 'teacher':
        shutil.rmtree(teacher)
        kept.rename(teacher)
    else:
        weights.write_text('{"b": 2, "a": 1, "c": 1}')
    assert start(more, resume=True)['run'] == str(run)


def test_interrupted_test_of_a_given_teacher_goes_on(config, monkeypatch, tmp_path, run):
    save_teacher(tmp_path / 'teacher')
    config = dataclasses.replace(config, epochs=1, teacher_checkpoint=str(tmp_path / 'teacher'))
    interrupt_test(monkeypatch, distill, config)
    assert sorted(path.name for path in run.iterdir()) == ['SHA256SUMS', 'config.yaml', 'images.csv', 'inputs.json']
    metrics = distill(config, resume=True)
    assert [result['test']['images'] for result in metrics['models'].values()] == [12, 12]
    assert metrics['models']['teacher'] == json.loads((run / 'teacher' / 'metrics.json').read_text())


@pytest.mark.parametrize('told', [{}, dict(arch='hdkd_teacher_s4')])
def test_teacher_file_says_what_it_holds(config, told, tmp_path, run):
    """The default of --teacher is no word against that; its classes are brought into the order of the data."""
    model = timm.create_model('hdkd_teacher_s4', **TEACHER, img_size=32, num_classes=3).eval()
    torch.save(dict(state_dict=model.state_dict(), **told), tmp_path / 'teacher.pth')
    config = dataclasses.replace(
        config,
        model='hdkd_student_s4',
        epochs=1,
        teacher_checkpoint=str(tmp_path / 'teacher.pth'),
        teacher_label_names=('c', 'a', 'b'),
    )
    if not told:
        with pytest.raises(ValueError, match='Stage 1: '):  # of stride 2, as nothing says otherwise
            distill(config)
        return
    distill(config)
    teacher, x = load(run / 'teacher').eval(), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(teacher(x), model(x)[:, [1, 2, 0]])
    assert list(teacher.pretrained_cfg['label_names']) == ['a', 'b', 'c']


@pytest.mark.parametrize('img_size', [28, 45])
def test_grey_images_and_other_sizes(config, img_size, run):
    metrics = distill(
        dataclasses.replace(config, in_chans=1, img_size=img_size, epochs=1, channels_last=True, drop_path=0.2)
    )
    for name, result in metrics['models'].items():
        model = load(run / name)
        assert model.stages[0][0].conv.weight.shape[1] == 1
        assert tuple(model.pretrained_cfg['input_size']) == (1, img_size, img_size)
        assert len(model.pretrained_cfg['mean']) == 1
        assert_as_reported(run / name, result, config.data_dir)
    assert tuple(load(run / 'student').img_size) == (img_size, img_size)
    assert load(run / 'student').blocks[-1].drop_path.drop_prob == pytest.approx(0.2)


def test_distilling_a_distilled_student_further(config, tmp_path, run):
    """From given weights the student alone is the same network as the distilled one, and starts like it."""
    args = dict(STUDENT, img_size=32, num_classes=3)
    source = timm.create_model('hdkd_student', **args)
    save_model(source, tmp_path / 'student', list('abc'), args)
    save_teacher(tmp_path / 'teacher')
    distill(
        dataclasses.replace(
            config,
            model=f'local-dir:{tmp_path / "student"}',
            model_kwargs={},
            student_alone=True,
            epochs=1,
            teacher_checkpoint=str(tmp_path / 'teacher'),
            freeze_stages=3,
        )
    )
    student, alone, before = (m.state_dict() for m in (load(run / 'student'), load(run / 'student_alone'), source))
    assert set(alone) == set(student) == set(before)
    frozen = [name for name in before if name.startswith('stages.')]
    assert all(torch.equal(alone[name], before[name]) for name in frozen)
    for ours, theirs in itertools.combinations([student, alone, before], 2):
        assert not torch.equal(ours['head.weight'], theirs['head.weight'])


def test_cached_training_is_the_same(finished, tmp_path, monkeypatch, caplog):
    config, expected, _ = finished
    config = dataclasses.replace(config, output=str(tmp_path / 'runs'))
    opened = Counter()
    read = SampleDataset.read

    def count(self, index):
        opened[self.samples.filename(index)] += 1
        return read(self, index)

    monkeypatch.setattr(SampleDataset, 'read', count)
    caplog.set_level('INFO')
    for cache, workers in (('ram', 1), ('disk', 0)):
        caplog.clear()
        opened.clear()
        cached = dataclasses.replace(config, experiment=cache, student_alone=cache == 'disk')
        actual = distill(dataclasses.replace(cached, cache=cache, workers=workers))
        reads = Counter(opened)
        for name, result in actual['models'].items():
            assert dict(result, train_seconds=0) == dict(expected['models'][name], train_seconds=0)
        assert caplog.text.count("Cache: 24 images of split 'train' take ") == 1
        # a run may go on without it, or with another
        assert distill(cached, resume=True)['models'].keys() == actual['models'].keys()
    assert set(reads.values()) == {1}  # of 3 networks, 2 epochs and a test each
    assert len(reads) == 36
    assert len(list((tmp_path / 'runs' / '.cache').glob('*.images'))) == 2


def test_each_network_is_fed_as_it_is_normalised(config, monkeypatch):
    seen = []
    create = SplitLoader.__init__

    def record(self, dataset, data_config, *args, **kwargs):
        seen.append(('augment' in kwargs, data_config['mean']))
        create(self, dataset, data_config, *args, **kwargs)

    monkeypatch.setattr(SplitLoader, '__init__', record)
    config = dataclasses.replace(
        config, teacher_kwargs=dict(TEACHER, pretrained_cfg_overlay=dict(mean=(0.5, 0.5, 0.5)))
    )
    distill(dataclasses.replace(config, epochs=1))
    imagenet = timm.data.IMAGENET_DEFAULT_MEAN
    # of the teacher, then the student: for the checks, then for their training and test
    means = [(0.5, 0.5, 0.5), imagenet] * 2
    assert seen == [(split, mean) for mean in means for split in (True, False)]


def test_finished_teacher_survives_an_error(config, run, monkeypatch):
    original = HDKDTask.forward

    def broken(*args, **kwargs):
        if torch.is_grad_enabled():  # not the trial before the training
            raise RuntimeError('on purpose')
        return original(*args, **kwargs)

    monkeypatch.setattr(HDKDTask, 'forward', broken)
    with pytest.raises(RuntimeError, match='on purpose'):
        distill(config)
    with pytest.raises(FileExistsError, match='--resume continues it'):
        distill(config)
    before = (run / 'teacher' / 'best' / 'model.safetensors').read_bytes()
    monkeypatch.setattr(HDKDTask, 'forward', original)
    metrics = distill(config, resume=True)
    assert (run / 'teacher' / 'best' / 'model.safetensors').read_bytes() == before
    assert metrics['models']['student']['test']['images'] == 12


@pytest.mark.parametrize(
    ('changes', 'error', 'match'),
    [
        (dict(img_size=27), ValueError, '--img-size must be 28 or more, got 27'),
        (dict(epochs=0), ValueError, '--epochs must be 1 or more'),
        (dict(batch_size=25), ValueError, '24 training images are fewer than a batch of 25'),
        (dict(model='hdkd_pupil'), ValueError, "Unknown model 'hdkd_pupil': choose from hdkd_student"),
        (dict(teacher='resnet99'), ValueError, "Unknown model 'resnet99'"),
        (
            dict(teacher='resnet18', teacher_kwargs={}),
            ValueError,
            r'Stage 1: .*\(B, 8, H/2, W/2\).*\(B, 64, H/2, W/2\)',
        ),
        (dict(teacher='hdkd_teacher_s4'), ValueError, r'Stage 1: .*H/2, W/2\).*H/4, W/4\)'),
        (dict(model_kwargs=dict(STUDENT, wings=2)), ValueError, 'wings'),
        (dict(stages=(1, 5)), ValueError, 'stages must be among'),
        (dict(kd_type='warm'), ValueError, "'warm'"),
        (dict(tau=0.0), ValueError, '--tau must be above 0'),
        (dict(alpha=1.5), ValueError, '--alpha must be 0 or more and at most 1'),
        (dict(teacher_opt='wings'), ValueError, 'wings'),
        (dict(opt='wings'), ValueError, 'wings'),
        (dict(sched='tide'), ValueError, 'tide'),
        (dict(model='hdkd_student_plain'), ValueError, 'no distillation head'),
        (dict(in_chans=2), ValueError, 'in_chans 2'),
        (dict(train_fraction=2.0), ValueError, '--train-fraction must be above 0 and at most 1, got 2.0'),
        (dict(scale=(0.5, 2.0)), ValueError, r'--scale must be 0 < MIN <= MAX <= 1, got 0\.5 2\.0'),
        (dict(feature_weight=-1.0), ValueError, '--feature-weight must be 0 or more'),
        (dict(stage_exponent=math.nan), ValueError, '--stage-exponent must be 0 or more, got nan'),
        (dict(feature_weight=math.inf), ValueError, '--feature-weight .* got inf'),
        (dict(stages=(3, 3)), ValueError, 'stages must be unique'),
        (dict(data_dir='nowhere'), FileNotFoundError, 'nowhere'),
        (dict(teacher_checkpoint='nowhere'), FileNotFoundError, 'nowhere'),
        (dict(device='toaster'), ValueError, "Device 'toaster' cannot be used"),
        (dict(aa='rand-x9'), ValueError, "--aa 'rand-x9'"),
        (dict(class_weights='gone.json'), FileNotFoundError, 'gone.json'),
        (dict(early_stopping=2), ValueError, '--early-stopping needs a val split'),
        (dict(freeze_stages=9), ValueError, '--freeze-stages must be 0 to 4'),
        (dict(folds=9, fold=0), ValueError, '9 folds: expected 2 to 8'),
        (dict(mixup=0.2, batch_size=3), ValueError, '--batch-size'),
    ],
)
def test_bad_input_leaves_nothing_behind(config, changes, error, match, run):
    with pytest.raises(error, match=match):
        distill(dataclasses.replace(config, **changes))
    assert not run.parent.exists()
