"""Logits that are stored, and trainings from them: they must equal trainings whose teachers run."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest
import timm
import torch
from helpers import TINY_TEACHER, write_images
from training_helpers import STUDENT, interrupt_test, load, read_summary, save_teacher

from hdkd_timm import DistillConfig, distill
from hdkd_timm.data.datasets import create_datasets
from hdkd_timm.data.loader import SplitLoader
from hdkd_timm.distillation.teacher import Teachers
from hdkd_timm.evaluation.run_results import list_unfinished
from hdkd_timm.models.checkpoint import save_model
from hdkd_timm.sharing.hub import write_hub_folder
from hdkd_timm.training.cache_logits import CacheLogitsConfig, cache_logits
from hdkd_timm.training.teacher_logits import read_teacher_logits
from hdkd_timm.utils.signals import Interrupted


@pytest.fixture
def given(settings, tmp_path):
    """Settings with two trained teachers, 2 epochs of the method 'kd'."""
    torch.manual_seed(7)
    for i in (1, 2):
        save_teacher(tmp_path / f'given{i}')
    teachers = tuple(str(tmp_path / f'given{i}') for i in (1, 2))
    return DistillConfig(**settings, method=('kd',), teacher_checkpoint=teachers, teacher_kwargs={})


def store(config, out, views=3, **changes):
    """Write the logits that a training with these settings needs."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(DistillConfig)}
    return cache_logits(CacheLogitsConfig(**{**values, 'views': views, **changes}), out)


def use(config, path, **changes):
    """The same training from stored logits."""
    return dataclasses.replace(config, teacher_checkpoint=None, teacher_logits=str(path), **changes)


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'logits.safetensors'


@pytest.mark.parametrize('teachers', ['average', 'separate'])
def test_training_from_stored_logits_is_that_with_the_teachers(given, teachers, path, run, caplog):
    given = dataclasses.replace(given, teachers=teachers)
    result = store(given, path, views=2, batch_size=5)
    assert (result['teachers'], result['images'], result['views']) == (['hdkd_teacher'] * 2, 24, 2)
    distill(given)
    caplog.set_level('INFO')
    metrics = distill(use(given, path, experiment='stored', workers=1))
    assert list(metrics['models']) == ['student']
    assert "No teacher runs: the logits of hdkd_teacher, hdkd_teacher are those of '" in caplog.text
    rows, stored_rows = read_summary(run / 'student'), read_summary(run.parent / 'stored' / 'student')
    names = ['train_kd_loss'] if teachers == 'average' else ['train_kd_1_loss', 'train_kd_2_loss']
    for ours, theirs in zip(stored_rows, rows, strict=True):
        for name in ('train_loss', 'train_ce_loss', *names):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=3e-3, abs=1e-5), name
    student, other = (load(run.parent / name / 'student').state_dict() for name in ('run', 'stored'))
    for name, value in student.items():
        if value.is_floating_point():
            torch.testing.assert_close(other[name], value, rtol=2e-2, atol=2e-3, msg=lambda m, name=name: name + m)


def test_file_says_what_it_holds(given, path, tmp_path):
    store(given, path, views=2, aa='rand-m6-n2')
    stored = read_teacher_logits(path)
    assert stored.logits.shape == (2, 2, 24, 3)
    assert stored.logits.dtype == torch.float16
    assert stored.classes == ['a', 'b', 'c']
    assert stored.checkpoints == list(given.teacher_checkpoint)
    assert stored.images[0][0] == os.path.join('train', 'a', '0.png')
    assert {len(sha) for _, _, sha in stored.images} == {64}
    assert stored.crops['scale'] == [0.8, 1.0]
    assert len(stored.crops['mean']) == 3
    assert 'RandAugment' in stored.crops['transform']
    assert not torch.equal(stored.logits[:, 0], stored.logits[:, 1])
    # what was stored are the teachers' logits for the views, as any loader with `views` shows them
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ['logits.safetensors']


def test_views_repeat_and_are_of_the_image(given, path, monkeypatch):
    """Epochs with one view show the same crops, whatever the order."""
    config = given
    store(config, path, views=1)
    seen, orders = {}, []
    forward = Teachers.forward

    def record(self, images, index, epoch):
        if images.any():  # not the trial before the training
            orders.extend(index.tolist())
            for number, image in zip(index.tolist(), images):
                seen.setdefault(number, []).append(image.clone())
        return forward(self, images, index, epoch)

    monkeypatch.setattr(Teachers, 'forward', record)
    distill(use(config, path))
    assert sorted(seen) == list(range(24))
    assert orders[:24] != orders[24:]
    assert all(len(images) == 2 and torch.equal(*images) for images in seen.values())


def test_without_augmentation(given, path, caplog):
    """Views 0: the teacher saw the plain image. Other augmentation, seed and fewer images do not matter."""
    store(given, path, views=0)
    stored = read_teacher_logits(path)
    assert stored.logits.shape == (2, 1, 24, 3)
    assert stored.views == 0
    plain = dataclasses.replace(given, aug='none')
    store(plain, path.with_name('plain.safetensors'), views=1)
    assert torch.equal(read_teacher_logits(path.with_name('plain.safetensors')).logits, stored.logits)
    others = dict(seed=3, hflip=0.0, sampler='balanced', reprob=0.3, train_fraction=0.7, epochs=1)
    distill(use(given, path, **others))
    assert 'sees another image than the teacher did' in caplog.text
    with pytest.raises(ValueError, match='--mixup 0.2 is not for stored logits: it mixes two images'):
        distill(use(given, path, mixup=0.2, experiment='mixed'))


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        (dict(seed=3), 'was stored with --seed 42, not 3: use the same as hdkd cache-logits did, or store'),
        (dict(scale=(0.5, 1.0)), r'--scale \[0.8, 1.0\], not \[0.5, 1.0\]'),
        (dict(img_size=48), '--img-size 32, not 48'),
        (dict(aa='rand-m6'), '--aa None, not rand-m6'),
        (dict(model='resnet10t', model_kwargs={}), "the student's interpolation bilinear, not bicubic"),
        (dict(train_fraction=0.7), r'other training images, or of another order \(24 images in the file, 18 in the'),
        (dict(mixup=0.5), '--mixup 0.5 is not for stored logits: it mixes two images'),
        (dict(cutmix=0.5), '--cutmix 0.5 is not for stored logits'),
        (dict(sampler='balanced'), '--sampler balanced is not for stored logits: it draws an image several times'),
        (dict(reprob=0.1), '--reprob 0.1 is not for stored logits: it erases .* use --views 0, or let the teacher run'),
        (dict(aug='paper', aug_device=True), '--aug-device is not for stored logits: it augments whole batches'),
        (dict(smote='counts.json'), '--smote counts.json is not for stored logits: it makes images of others'),
        (dict(method=('at',)), "'at' needs maps .*, which stored logits of hdkd_teacher, hdkd_teacher do not have"),
        (dict(method=('hdkd',)), "'hdkd' needs maps of the stages 1, 2, 3"),
    ],
)
def test_trainings_that_see_something_else_are_refused(logits_of_one_view, changes, match):
    config, run = logits_of_one_view
    if 'smote' in changes:
        path = run.parent.parent / 'counts.json'
        path.write_text(json.dumps(dict.fromkeys('abc', 9)))
        changes = dict(smote=str(path))
        match = f'--smote {path} is not for stored logits'
    with pytest.raises(ValueError, match=match):
        distill(dataclasses.replace(config, **changes))
    assert not run.exists()


@pytest.fixture(scope='module')
def logits_of_one_view(tmp_path_factory):
    """Settings of a training with stored logits of one view, and the folder that its run would have."""
    folder = tmp_path_factory.mktemp('stored')
    write_images(folder / 'data' / 'train', number=8)
    write_images(folder / 'data' / 'test', number=4, seed=1)
    for i in (1, 2):
        save_teacher(folder / f'given{i}')
    teachers = tuple(str(folder / f'given{i}') for i in (1, 2))
    settings = dict(img_size=32, batch_size=4, epochs=1, workers=0, device='cpu', bootstrap=0, model_kwargs=STUDENT)
    config = DistillConfig(
        data_dir=str(folder / 'data'),
        method=('kd',),
        teacher_checkpoint=teachers,
        output=str(folder / 'runs'),
        experiment='run',
        **settings,
    )
    store(config, folder / 'logits.safetensors', views=1)
    return use(config, folder / 'logits.safetensors'), folder / 'runs' / 'run'


def test_other_images_and_classes_are_refused(given, path, image_folder, tmp_path):
    store(given, path, views=1)
    config = use(given, path)
    image = image_folder / 'train' / 'b' / '3.png'
    before = image.read_bytes()
    image.write_bytes((image_folder / 'train' / 'b' / '4.png').read_bytes())
    with pytest.raises(ValueError, match=r"3.png' has changed since its logits were stored in .* \(1 of 24 images\)"):
        distill(config)
    image.write_bytes(before)
    image.rename(image.with_name('9.png'))
    with pytest.raises(ValueError, match='no logits for training image .*9.png'):
        distill(config)
    image.with_name('9.png').rename(image)
    image_folder.rename(tmp_path / 'moved')
    assert distill(dataclasses.replace(config, epochs=1, data_dir=str(tmp_path / 'moved')))['images']['train'] == 24
    for split in ('train', 'test'):
        (tmp_path / 'moved' / split / 'c').rename(tmp_path / 'moved' / split / 'd')
    with pytest.raises(ValueError, match='stored with the classes a, b, c, not a, b, d'):
        distill(dataclasses.replace(config, experiment='other', data_dir=str(tmp_path / 'moved')))


def test_interrupted_training_ends_like_a_whole_one(given, path, monkeypatch, run, tmp_path):
    store(given, path, views=2)
    config = use(given, path, recovery_interval=1)
    distill(dataclasses.replace(config, experiment='whole'))
    interrupt_test(monkeypatch, distill, config)
    distill(config, resume=True)
    ours, whole = (load(run.parent / name / 'student').state_dict() for name in ('run', 'whole'))
    assert all(torch.equal(ours[name], value) for name, value in whole.items())
    origin = json.loads((run / 'teacher_logits.json').read_text())
    assert origin['checkpoints'] == list(given.teacher_checkpoint)


def test_training_stopped_between_two_epochs(given, path, monkeypatch, run):
    """The view of an epoch follows from its number, also after a resume."""
    store(given, path, views=2)
    config = use(given, path)
    distill(dataclasses.replace(config, experiment='whole'))
    read, epochs = SplitLoader.epoch, []

    def stop(self, epoch, start=0):
        epochs.append(epoch)
        if epoch == 1 and epochs.count(1) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self, epoch, start)

    monkeypatch.setattr(SplitLoader, 'epoch', stop)
    with pytest.raises(Interrupted):
        distill(config)
    distill(config, resume=True)
    assert epochs == [0, 1, 1]
    ours, whole = (load(run.parent / name / 'student').state_dict() for name in ('run', 'whole'))
    assert all(torch.equal(ours[name], value) for name, value in whole.items())


def test_card_names_the_teachers_of_stored_logits_and_no_paths(given, path, run, tmp_path):
    store(given, path, views=1)
    distill(use(given, path, epochs=1))
    assert list_unfinished([run]) == []
    write_hub_folder(run / 'student', tmp_path / 'hub', 'org/student')
    card = (tmp_path / 'hub' / 'README.md').read_text()
    assert '| `teacher_checkpoint` | a locally trained model (given1) a locally trained model (given2) |' in card
    assert '| `teacher_logits` | logits.safetensors |' in card
    for file in (tmp_path / 'hub').iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file


def test_resume_with_other_logits_is_refused(given, path, monkeypatch, run):
    store(given, path, views=1)
    config = use(given, path, epochs=1)
    interrupt_test(monkeypatch, distill, config)
    path.unlink()
    store(dataclasses.replace(given, teacher_checkpoint=given.teacher_checkpoint[::-1]), path, views=1)
    with pytest.raises(ValueError, match=f"Run '{run}' was started with other logits than '{path}' has now"):
        distill(config, resume=True)


def test_damaged_and_other_files(given, path, tmp_path):
    store(given, path, views=1)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match='is damaged: a checksum in it is wrong'):
        read_teacher_logits(path)
    path.write_bytes(data[:1000])
    with pytest.raises(ValueError, match='is not a file of hdkd cache-logits, or is damaged'):
        read_teacher_logits(path)
    with pytest.raises(ValueError, match='has no logits of teachers'):
        read_teacher_logits(tmp_path / 'given1' / 'model.safetensors')
    with pytest.raises(FileNotFoundError, match="'gone' does not exist: hdkd cache-logits writes it"):
        read_teacher_logits('gone')


def test_signal_writes_nothing(given, path, monkeypatch):
    read = SplitLoader.epoch

    def stop(self, epoch, start=0):
        for i, batch in enumerate(read(self, epoch, start)):
            if (epoch, i) == (1, 2):
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(SplitLoader, 'epoch', stop)
    before = sorted(path.parent.iterdir())
    with pytest.raises(Interrupted, match='SIGTERM, nothing was written'):
        store(given, path)
    assert sorted(path.parent.iterdir()) == before


def test_logits_beyond_float16(given, path, tmp_path):
    args = dict(TINY_TEACHER, num_classes=3)
    teacher = timm.create_model('hdkd_teacher', **args)
    with torch.no_grad():
        teacher.head.bias[0] = 1e6
    save_model(teacher, tmp_path / 'large', list('abc'), args)
    config = dataclasses.replace(given, teacher_checkpoint=(str(tmp_path / 'large'),))
    with pytest.raises(FloatingPointError, match='Logits of teacher hdkd_teacher are not finite in float16'):
        store(config, path, views=1)
    assert not path.exists()


@pytest.mark.parametrize(
    ('changes', 'out', 'error', 'match'),
    [
        (dict(teacher_checkpoint=None), 'a.safetensors', ValueError, 'give --teacher-checkpoint'),
        (dict(), 'a.pth', ValueError, r"--out 'a.pth' must end in .safetensors"),
        (dict(), 'no/where.safetensors', FileNotFoundError, "Directory 'no' of --out does not exist"),
        (dict(mixup=0.2), 'a.safetensors', ValueError, '--mixup 0.2 is not for stored logits'),
        (dict(views=-1), 'a.safetensors', ValueError, '--views must be 0 or more, got -1'),
        (dict(teacher_checkpoint=('gone',)), 'a.safetensors', FileNotFoundError, 'gone'),
    ],
)
def test_wrong_settings(given, changes, out, error, match, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=match):
        store(given, out, **changes)


def test_file_is_not_overwritten(given, path):
    path.write_text('precious')
    with pytest.raises(FileExistsError, match='nothing is overwritten'):
        store(given, path)


def test_stored_logits_are_those_of_the_views(given, path):
    """Computed here once more, from the views of a loader."""
    store(given, path, views=2)
    stored = read_teacher_logits(path).logits
    datasets, _ = create_datasets(given)
    teacher = timm.create_model(f'local-dir:{given.teacher_checkpoint[1]}', pretrained=True).eval()
    cfg = dict(input_size=(3, 32, 32), interpolation='bilinear', crop_pct=1.0, crop_mode='center')
    cfg.update(mean=teacher.pretrained_cfg['mean'], std=teacher.pretrained_cfg['std'])
    loader = SplitLoader(datasets['train'], cfg, 4, given, 0, seed=given.seed, views=2, with_index=True)
    for epoch in (1, 2):
        for images, _, index in loader.epoch(epoch):
            with torch.no_grad():
                expected = teacher(images)
            np.testing.assert_allclose(stored[1, epoch % 2, index].float(), expected, rtol=2e-3, atol=2e-3)
