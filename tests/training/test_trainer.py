"""The loop of a training and its steps."""

import dataclasses
import itertools
import json
import re
import time

import numpy as np
import pytest
import timm
import torch
from helpers import TINY_STUDENT, TINY_TEACHER, write_images
from timm.utils import unwrap_model
from torch.nn import functional as F
from training_helpers import interrupt_test, load, predict_val, read_summary, save_teacher

from hdkd_timm import DistillConfig, TrainConfig, distill, train
from hdkd_timm.data.datasets import create_datasets
from hdkd_timm.data.loader import SplitLoader
from hdkd_timm.distillation.losses import hdkd_loss
from hdkd_timm.training.builders import create_network, create_task
from hdkd_timm.training.context import RunContext
from hdkd_timm.training.run_folder import load_state, save_state
from hdkd_timm.training.trainer import Trainer, TrainState, describe_average
from hdkd_timm.utils.distributed import World


@pytest.fixture
def make_trainer(settings, tmp_path):
    """Settings -> a trainer that is about to train on its first batch; with a teacher, of its student."""

    def make(teacher=None, **changes):
        values = {**settings, 'batch_size': 4, 'aug': 'none', **changes}
        config = TrainConfig(**values) if teacher is None else DistillConfig(**values)
        datasets, classes = create_datasets(config)
        context = RunContext(config, World(torch.device('cpu')), datasets, classes)
        torch.manual_seed(0)
        model, model_args = create_network(config.model, config, classes, **config.model_kwargs)
        task = create_task(model, config, context.class_weights(), teacher)
        trainer = Trainer('net', task, model, model_args, config, tmp_path / 'net', context)
        trainer.set_up()
        trainer.start_epoch()
        return trainer

    return make


def next_batch(trainer):
    """The batch of the trainer's place in the epoch."""
    return trainer.augment(*next(iter(trainer.read_batches())))


def step(trainer, batch=None):
    """All that is done with a batch, the next one by default, up to an update. Returns its losses."""
    images, target = batch or next_batch(trainer)
    losses = trainer.train_step(images, target)
    trainer.record(dict(losses), target)
    return losses


@pytest.mark.parametrize(
    ('setting', 'arguments'),
    [
        (dict(kd_type='hard'), dict(kind='hard')),
        (dict(alpha=0.3), {}),
        (dict(tau=2.0), {}),
        (dict(reduction='batchmean'), {}),
        (dict(feature_weight=1.0), {}),
        (dict(stages=(1, 3)), {}),
        (dict(stage_exponent=0.0), {}),
        (dict(smoothing=0.1), dict(label_smoothing=0.1)),
        (dict(class_weights='effective'), dict(class_weight=torch.tensor([0.5, 1.0, 1.5]))),
    ],
    ids=lambda value: '-'.join(value),
)
def test_settings_of_the_loss(make_trainer, setting, arguments, monkeypatch):
    """Each is the argument of `hdkd_loss` of its name, or the one that is given here."""
    monkeypatch.setattr(RunContext, 'class_weights', lambda self: arguments.get('class_weight'))
    torch.manual_seed(1)
    teacher = timm.create_model('hdkd_teacher', **{**TINY_TEACHER, 'num_classes': 3}).eval()
    teacher.head.weight.data *= 50  # of one that is sure, as trained ones are
    small = dict(feature_weight=0.01)  # or the other parts would hardly be seen
    trainer = make_trainer(teacher, **{**small, **setting})
    images, target = next_batch(trainer)
    stages = setting.get('stages', (1, 2, 3))
    indices = [stage - 1 for stage in stages]
    with torch.no_grad():
        teacher_features, teacher_maps = teacher.forward_intermediates(images, indices)
        trainer.model.set_distilled_training(True)
        features, maps = trainer.model.forward_intermediates(images, indices)
        logits = trainer.model.forward_head(features)
        trainer.model.set_distilled_training(False)

        def loss(**arguments):
            arguments = {**small, **arguments}
            return hdkd_loss(*logits, teacher.forward_head(teacher_features), target, maps, teacher_maps, **arguments)

        expected = loss(**(arguments or setting))['loss']
    assert trainer.train_step(images, target)['loss'].item() == pytest.approx(expected.item(), rel=1e-4)
    if 'stages' not in setting:
        assert expected.item() != pytest.approx(loss()['loss'].item(), rel=1e-4)


def test_logs_start_once_the_state_is_read(make_trainer):
    """A run that cannot continue, as of two processes, opens none at Weights & Biases."""
    trainer = make_trainer()
    trainer.folder.mkdir()
    save_state({'progress': [{}, {}]}, trainer.folder / 'last.pth')
    with pytest.raises(ValueError, match='was saved by 2 processes'):
        trainer.run()
    assert trainer.log is None
    assert [path.name for path in trainer.folder.iterdir() if path.name != 'SHA256SUMS'] == ['last.pth']


@pytest.mark.parametrize('clip_mode', ['norm', 'value', 'agc'])
@pytest.mark.parametrize('amp', [False, True])
def test_clipped_gradients(make_trainer, clip_mode, amp):
    args = dict(amp=amp, amp_dtype='bfloat16')
    free, clipped = make_trainer(**args), make_trainer(clip_grad=0.01, clip_mode=clip_mode, **args)
    for trainer in (free, clipped):
        trainer.train_step(*next_batch(trainer))
    grads, limited = ({name: p.grad for name, p in trainer.model.named_parameters()} for trainer in (free, clipped))
    if clip_mode == 'norm':
        norm = torch.stack([grad.norm() for grad in grads.values()]).norm()
        expected = {name: grad * 0.01 / norm for name, grad in grads.items()}
    elif clip_mode == 'value':
        expected = {name: grad.clamp(-0.01, 0.01) for name, grad in grads.items()}
    else:  # at most a part of the norm of the weight, but for the last head
        assert torch.equal(limited['head_dist.weight'], grads['head_dist.weight'])
        weight = dict(make_trainer().model.named_parameters())['patch_embed.proj.weight'].flatten(1)
        allowed = 0.01 * weight.norm(dim=1).clamp(min=1e-3)
        assert (limited['patch_embed.proj.weight'].flatten(1).norm(dim=1) <= allowed * 1.001).all()
        assert (grads['patch_embed.proj.weight'].flatten(1).norm(dim=1) > allowed).any()
        return
    for name, grad in limited.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ('changes', 'dtype', 'layout'),
    [
        ({}, torch.float32, torch.contiguous_format),
        (dict(amp=True), torch.float16, torch.contiguous_format),
        (dict(amp=True, amp_dtype='bfloat16'), torch.bfloat16, torch.contiguous_format),
        (dict(channels_last=True), torch.float32, torch.channels_last),
    ],
)
def test_precision_and_memory_layout(make_trainer, changes, dtype, layout):
    trainer = make_trainer(**changes)
    before = trainer.model.head.weight.detach().clone()
    seen = []
    trainer.model.stages[1].register_forward_hook(lambda module, args, output: seen.append(output))
    losses = step(trainer)
    assert seen[0].dtype == dtype
    assert seen[0].is_contiguous(memory_format=layout)
    assert trainer.model.head.weight.dtype == torch.float32
    assert torch.isfinite(losses['loss'])
    assert not torch.equal(trainer.model.head.weight, before)


def test_moving_average_by_hand(make_trainer):
    trainer = make_trainer(model_ema=True, model_ema_decay=0.7, model_ema_warmup=False)
    weights = []
    for _ in range(3):
        step(trainer)
        trainer.finish_update()
        weights.append(trainer.model.head.weight.detach().clone())
    expected = weights[0]  # the first update copies
    for weight in weights[1:]:
        expected = 0.7 * expected + 0.3 * weight
    torch.testing.assert_close(unwrap_model(trainer.task.get_eval_model(ema=True)).head.weight, expected)


@pytest.mark.parametrize(
    ('changes', 'shape'),
    [
        ({}, (4,)),
        (dict(smoothing=0.1), (4,)),
        (dict(mixup=0.4), (4, 3)),
        (dict(cutmix=0.4), (4, 3)),
        (dict(mixup=0.4, mixup_off_epoch=1), (4, 3)),
    ],
)
def test_batches_are_mixed(make_trainer, changes, shape):
    trainer = make_trainer(**changes)
    _, target = next_batch(trainer)
    assert target.shape == shape


def test_random_numbers_follow_from_the_step(make_trainer):
    """A resumed run draws what the uninterrupted one did, and no two steps draw the same."""
    trainer = make_trainer(mixup=1.0)
    images, target = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    seen = []
    for trainer.state.epoch, trainer.state.step in ((0, 0), (0, 1), (1, 0), (0, 0)):
        seen.append(trainer.augment(images.clone(), target.clone())[1])
    assert torch.equal(seen[0], seen[3])
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_weights_that_are_not_finite_are_not_saved(make_trainer):
    """An update can break the weights while the loss of its step was finite."""
    trainer = make_trainer()
    trainer.folder.mkdir()
    step(trainer)
    trainer.save()
    path = trainer.folder / 'last.pth'
    before = path.read_bytes()
    with torch.no_grad():
        trainer.model.head.weight[0, 0] = float('inf')
    with pytest.raises(FloatingPointError, match=r"the weight became non-finite in epoch 1, step 1: .*'.*last\.pth'"):
        trainer.save()
    assert path.read_bytes() == before


def test_training_images_are_augmented_as_set(make_trainer):
    """In each way otherwise, and the same at the same place of a training."""
    settings = [
        {},
        dict(aug='timm'),
        dict(aug='paper'),
        dict(aug='timm', aa='rand-m9-n3'),
        dict(reprob=1.0),
        dict(load_size=36),
        dict(aug='paper', aug_device=True),
    ]
    batches = [next_batch(make_trainer(**changes))[0] for changes in settings]
    for ours, theirs in itertools.combinations(batches, 2):
        assert not torch.equal(ours, theirs)
    for changes, batch in zip(settings, batches):
        assert torch.equal(next_batch(make_trainer(**changes))[0], batch)


def test_balanced_sampler_draws_all_classes_alike(make_trainer, unbalanced):
    trainer = make_trainer(data_dir=str(unbalanced), sampler='balanced', batch_size=2)
    probabilities = trainer.loaders['train'].sampler.probabilities
    assert np.bincount(trainer.context.train_targets, probabilities) == pytest.approx([1 / 3] * 3)


def test_learning_rate_by_updates_or_epochs(make_trainer):
    for on_updates in (False, True):
        trainer = make_trainer(sched_on_updates=on_updates, epochs=2, warmup_epochs=1, warmup_lr=1e-4, min_lr=1e-5)
        rates = []
        for _ in range(6):
            rates.append(trainer.optimizer.param_groups[0]['lr'])
            step(trainer)
            trainer.finish_update()
        expected = [1e-4 + (2e-3 - 1e-4) * i / 6 if on_updates else 1e-4 for i in range(6)]
        assert rates == pytest.approx(expected)


def test_best_epoch_of_val_is_kept(train_config, image_folder, monkeypatch, run):
    write_images(image_folder / 'val', number=2, seed=2)
    predict_val(monkeypatch, 1, 5, 3)
    states = []
    validate = Trainer.validate

    def record(self, metrics):
        states.append(self.model.head.weight.detach().clone())
        return validate(self, metrics)

    monkeypatch.setattr(Trainer, 'validate', record)
    metrics = train(dataclasses.replace(train_config, epochs=3))
    assert metrics['models']['hdkd_student']['epoch'] == 1
    assert [float(row['val_accuracy']) for row in read_summary(run)] == pytest.approx([1 / 6, 5 / 6, 1 / 2])
    kept = load(run).head.weight
    assert torch.equal(kept, states[1])
    assert not torch.equal(kept, states[2])


def test_lower_is_better_for_some_metrics(train_config, image_folder, monkeypatch):
    write_images(image_folder / 'val', number=2, seed=2)
    predict_val(monkeypatch, 1, 5, 3)
    metrics = train(dataclasses.replace(train_config, epochs=3, select_metric='log_loss'))
    assert metrics['models']['hdkd_student']['epoch'] == 1


def test_test_split_is_touched_once(train_config, image_folder, monkeypatch):
    write_images(image_folder / 'val', number=2, seed=2)
    seen = []
    read = SplitLoader.__iter__

    def record(loader):
        seen.append(len(loader.dataset))
        return read(loader)

    monkeypatch.setattr(SplitLoader, '__iter__', record)
    train(train_config)
    assert seen == [24, 6, 24, 6, 12]


def test_early_stopping(train_config, image_folder, monkeypatch, run):
    write_images(image_folder / 'val', number=2, seed=2)
    predict_val(monkeypatch, 1, 3, 2, 3, 6, 6)
    result = train(dataclasses.replace(train_config, epochs=6, early_stopping=2))['models']['hdkd_student']
    assert (result['epoch'], result['epochs']) == (1, 4)
    assert len(read_summary(run)) == 4


def test_interrupted_final_test_leaves_the_state_as_it_was(train_config, image_folder, monkeypatch, run):
    write_images(image_folder / 'val', number=2, seed=2)
    predict_val(monkeypatch, *[3] * 6)  # the first epoch is the best, not the last one
    expected = train(dataclasses.replace(train_config, experiment='unbroken'))['models']['hdkd_student']
    assert expected['epoch'] == 0
    (before,) = interrupt_test(monkeypatch, train, train_config)
    assert (run / 'last.pth').read_bytes() == before
    ours, unbroken = (load_state(folder / 'last.pth') for folder in (run, run.parent / 'unbroken'))
    for part in ('state_dict', 'optimizer'):
        torch.testing.assert_close(ours[part], unbroken[part], rtol=0, atol=0)
    result = train(train_config, resume=True)['models']['hdkd_student']
    assert {**result, 'train_seconds': 0} == {**expected, 'train_seconds': 0}
    assert (run / 'predictions.csv').read_text() == (run.parent / 'unbroken' / 'predictions.csv').read_text()


def test_accumulated_batches_are_one(train_config, monkeypatch):
    """Steps of 2 x 4 images are those of 8, as far as no layer looks at a whole batch."""
    settings = dict(aug='none', epochs=1, opt='sgd', lr=0.1, sched='none', freeze_stages=3, clip_grad=1.0)
    runs = [
        train(dataclasses.replace(train_config, experiment=name, batch_size=size, grad_accum_steps=accum, **settings))
        for name, size, accum in (('one', 8, 1), ('two', 4, 2), ('none', 4, 1))
    ]
    one, two, none = (load(r['run']).head.weight for r in runs)
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    assert (one - none).abs().max() > 1e-4


def test_gradient_is_that_of_the_batches_of_its_update(make_trainer):
    trainer = make_trainer(batch_size=2, grad_accum_steps=2, opt='sgd', lr=1e-9, sched='none')
    gradients, batch = [], next_batch(trainer)
    for _ in range(4):
        step(trainer, batch)
        gradients.append(trainer.model.stages[0][0].conv.weight.grad.clone())
        if trainer.is_update(trainer.state.step - 1):
            trainer.finish_update()
    torch.testing.assert_close(gradients[1], 2 * gradients[0])
    torch.testing.assert_close(gradients[2:], gradients[:2], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(('accum', 'interval', 'steps'), [(1, 5, [5, 10]), (3, 2, [6, 12]), (5, 2, [10])])
def test_recovery_interval_counts_optimiser_steps(train_config, accum, interval, steps, monkeypatch):
    saved, collect_state = [], Trainer.collect_state

    def record(self, progress):
        saved.append(progress[0]['step'])
        return collect_state(self, progress)

    monkeypatch.setattr(Trainer, 'collect_state', record)
    train(dataclasses.replace(train_config, epochs=1, batch_size=2, grad_accum_steps=accum, recovery_interval=interval))
    assert saved == [*steps, 0]  # and at the end of the epoch


@pytest.fixture
def unbalanced(tmp_path):
    """A folder of 6, 3 and 1 training images of the classes."""
    for name, number in zip('abc', (6, 3, 1)):
        write_images(tmp_path / 'unbalanced' / 'train', classes=[name], number=number)
    write_images(tmp_path / 'unbalanced' / 'test', number=1)
    return tmp_path / 'unbalanced'


@pytest.mark.parametrize(
    ('kind', 'weights'),
    [
        ('balanced', [10 / 18, 10 / 9, 10 / 3]),
        ('effective', [0.334000, 0.667000, 1.998999]),  # 1 / (1 + beta + ... + beta^(n-1)), mean 1
        ('weights.json', [1.0, 2.0, 5.0]),
    ],
)
@pytest.mark.parametrize(('command', 'with_teacher'), [(train, False), (train, True), (distill, False)])
def test_class_weights_are_in_the_loss(
    command, with_teacher, kind, weights, config, unbalanced, monkeypatch, tmp_path, run
):
    run_trainer = Trainer.run
    losses = []

    def record(self):
        def compare(task, args, result):
            losses.append(F.cross_entropy(logits[0], args[1], weight=torch.tensor(weights)).item())
            assert losses[-1] != pytest.approx(F.cross_entropy(logits[0], args[1]).item(), rel=1e-2)

        logits = []
        module = self.task.trainable_module
        if hasattr(module, 'student'):
            module = module.student.head
        module.register_forward_hook(lambda module, args, output: logits.append(output))
        self.task.register_forward_hook(compare)
        return run_trainer(self)

    monkeypatch.setattr(Trainer, 'run', record)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'weights.json').write_text(json.dumps(dict(zip('abc', weights))))
    save_teacher(tmp_path / 'teacher')
    config = dataclasses.replace(
        config,
        data_dir=str(unbalanced),
        batch_size=10,
        epochs=1,
        class_weights=kind,
        teacher_checkpoint='teacher' if with_teacher else None,
    )
    if command is train:
        config = TrainConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(TrainConfig)})
    command(config)
    told = [
        row.get('train_ce_loss') or row.get('train_task_loss') or row['train_loss']
        for path in sorted(run.rglob('summary.csv'), reverse=True)
        for row in read_summary(path.parent)
    ]
    assert [float(loss) for loss in told] == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize(
    ('changes', 'level', 'words'),
    [
        (dict(model_ema_warmup=False), 'WARNING', 'decay 0.998, 6 updates; 99.0% of it are the first weights'),  # ^ 5
        (dict(model_ema_warmup=False, model_ema_decay=0.4), 'INFO', 'decay 0.4, 6 updates; 1.0% of it'),
        (dict(epochs=12), 'INFO', 'decay growing to 0.998, 24 updates; 0.2% of it'),
        (dict(epochs=1), 'WARNING', '2 updates; 37.0% of it'),  # 1 - 2 ^ (-2/3)
    ],
)
def test_what_is_left_of_the_first_weights_is_told(train_config, changes, level, words, caplog):
    caplog.set_level('INFO')
    config = dataclasses.replace(train_config, **{'model_ema': True, 'epochs': 3, **changes})
    average = timm.utils.ModelEmaV3(
        torch.nn.Linear(1, 1), decay=config.model_ema_decay, use_warmup=config.model_ema_warmup
    )
    describe_average('net', average, config.epochs * 2)
    (record,) = caplog.records
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


def test_moving_average_is_what_is_kept(train_config, run):
    metrics = train(dataclasses.replace(train_config, model_ema=True, model_ema_decay=0.5))
    state = torch.load(run / 'last.pth', weights_only=True)
    kept = load(run).head.weight
    assert torch.equal(kept, state['state_dict_ema']['head.weight'])
    assert not torch.equal(kept, state['state_dict']['head.weight'])
    assert metrics['models']['hdkd_student']['test']['images'] == 12


def test_compiled_training_is_the_same(train_config, run):
    config = dataclasses.replace(train_config, epochs=1, opt='sgd', lr=0.05)  # Adam makes much of rounding noise
    train(config)
    # what follows the graph, of a step forward and back, is tested with the networks
    train(dataclasses.replace(config, torchcompile='eager', experiment='compiled'))
    state = load(run.parent / 'compiled').state_dict()
    for name, value in load(run).state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-4)


def test_nan_loss_ends_the_run(config, train_config, run):
    with pytest.raises(FloatingPointError, match=r'teacher: .*non-finite .*epoch 1, step \d+ \(loss .*no state'):
        distill(dataclasses.replace(config, teacher_lr=1e30, teacher_sched='none'))
    assert not run.parent.exists()  # nothing was saved that could go on
    with pytest.raises(FloatingPointError, match=r"epoch 3, step \d+ .*the last good state is '.*last\.pth'"):
        train(
            dataclasses.replace(
                train_config,
                model='hdkd_student',
                sched='cosine',
                warmup_epochs=2,
                warmup_lr=0.0,
                lr=1e30,
                epochs=5,
                min_lr=0.0,
                opt='sgd',
                batch_size=24,
                clip_grad=None,
            )
        )
    state = torch.load(run / 'last.pth', weights_only=True)
    assert all(torch.isfinite(value).all() for value in state['state_dict'].values())


def test_plateau_schedule_is_given_its_metric(train_config, image_folder, monkeypatch, run):
    write_images(image_folder / 'val', number=2, seed=2)
    predict_val(monkeypatch, *[3] * 5)
    settings = dict(sched='plateau', epochs=5, patience_epochs=2, warmup_epochs=0, min_lr=0.0)
    train(dataclasses.replace(train_config, batch_size=24, **settings))
    lrs = [float(row['lr']) for row in read_summary(run)]
    assert lrs[0] == 2e-3
    assert lrs[-1] < 1e-3


@pytest.mark.parametrize(
    ('device', 'epoch', 'waited', 'drained', 'changes', 'told'),
    [
        (
            'meta',
            1,
            8,
            0,
            {},
            r'(7\d|80)% of the second epoch .* \(-j, now 0 for \d+ cores\), --cache ram, --load-size',
        ),
        ('meta', 1, 8, 0, dict(cache='ram'), r'cores\), --load-size'),
        ('meta', 1, 8, 0, dict(workers=10**4), 'help: --cache ram'),
        ('meta', 1, 8, 2, {}, None),  # the accelerator had work all the time
        ('meta', 1, 2, 0, {}, None),  # little
        ('meta', 0, 8, 0, {}, None),  # the first epoch reads the images
        ('cpu', 1, 8, 0, {}, None),  # which loader processes would share with the training
    ],
)
def test_waiting_for_images_is_told(make_trainer, device, epoch, waited, drained, changes, told, caplog):
    trainer = make_trainer()
    trainer.config = dataclasses.replace(trainer.config, **changes)
    trainer.world = World(torch.device(device))
    trainer.state.epoch = epoch
    trainer.epoch_start -= 10
    trainer.waited, trainer.drained = waited, drained
    caplog.clear()
    trainer.tell_waiting()
    assert re.search(told, caplog.text) if told else not caplog.text


def probs_of(*classes):
    return np.eye(2)[list(classes)] * 0.5 + 0.25


APART, SAME, OTHER = probs_of(0, 1, 1), probs_of(1, 1, 1), probs_of(0, 0, 0)


@pytest.mark.parametrize(
    ('epochs', 'told'),
    [
        ([APART, *[SAME] * 4], 'b'),
        ([APART, *[OTHER] * 9], 'a'),  # once
        ([APART, SAME, APART, *[SAME] * 2, APART, OTHER], 'a'),  # not in a row
        ([APART, *[SAME] * 3, APART, APART], None),
        ([SAME] * 9, None),  # it has learned nothing yet, as in a warm-up
        ([*[SAME] * 9, APART, *[SAME] * 4], 'b'),
    ],
)
def test_collapse_is_told(make_trainer, epochs, told, caplog):
    trainer = make_trainer()
    trainer.context.classes = ['a', 'b']
    caplog.clear()
    for probs in epochs:
        trainer.warn_of_collapse(probs, np.array([0, 1, 1]))
    assert len(caplog.records) == bool(told)
    message = f"net  4 epochs so far gave all 3 validation images one class (now '{told}')"
    assert not told or message in caplog.text


def test_validation_images_of_one_class_show_no_collapse(make_trainer, caplog):
    trainer = make_trainer()
    caplog.clear()
    for probs in [APART, *[SAME] * 9]:
        trainer.warn_of_collapse(probs, np.array([1, 1, 1]))
    assert not caplog.records


def test_collapse_is_told_after_an_epoch_and_kept_with_the_state(make_trainer, monkeypatch, caplog):
    trainer = make_trainer(val_fraction=0.25)
    trainer.open_folder()
    n, k = len(trainer.loaders['val'].dataset), len(trainer.context.classes)
    outputs = iter([np.eye(k)[np.arange(n) % k], *[np.eye(k)[np.zeros(n, int)]] * 4])
    monkeypatch.setattr(trainer, 'evaluate', lambda split: (next(outputs), np.arange(n) % k))
    for _ in range(4):
        trainer.validate({})
        trainer.save()
        trainer.state = TrainState(**load_state(trainer.folder / 'last.pth')['progress'][0])
    assert (trainer.state.single_class_epochs, 'collapsed' in caplog.text) == (3, False)
    trainer.validate({})
    assert f"one class (now '{trainer.context.classes[0]}'), after one that told them apart" in caplog.text


def test_time_of_waiting_is_that_of_the_loader(make_trainer, monkeypatch):
    trainer = make_trainer()
    batches = trainer.read_batches()
    read = trainer.loaders['train'].dataset.__class__.__getitem__

    def read_slowly(self, i):
        time.sleep(0.05)
        return read(self, i)

    monkeypatch.setattr(trainer.loaders['train'].dataset.__class__, '__getitem__', read_slowly)
    next(batches)
    waited = trainer.waited
    assert waited > 4 * 0.05  # the images of a batch
    time.sleep(0.2)  # what is done with it
    assert trainer.waited == waited


def test_batch_norm_of_a_single_value_names_the_way_out(make_trainer):
    trainer = make_trainer(model='resnet10t', model_kwargs={}, batch_size=1)
    with pytest.raises(
        ValueError, match='a batch of 1 image of 32 pixels, .*: use --batch-size 2 or more, or a larger'
    ):
        step(trainer)
    step(make_trainer(model='resnet10t', model_kwargs={}, batch_size=1, img_size=64))


def test_outputs_of_a_resumed_epoch_are_on_the_device_of_those_to_come(train_config, make_trainer, monkeypatch):
    """A file has them on the CPU, from where `torch.cat` does not take them to those of an accelerator."""
    state = TrainState(step=1, outputs=[torch.zeros(2, 3)], targets=[torch.zeros(2, dtype=torch.long)], lr=0.1)
    moved = state.to(torch.device('meta'))
    assert [part.device.type for part in (*moved.outputs, *moved.targets)] == ['meta', 'meta']
    assert (moved.step, moved.lr) == (1, 0.1)

    devices, to = [], TrainState.to
    monkeypatch.setattr(TrainState, 'to', lambda self, device: devices.append(device) or to(self, device))
    for epochs in (1, 2):
        train(dataclasses.replace(train_config, epochs=epochs, sched='none'), resume=epochs > 1)
    assert devices == [torch.device('cpu')]
