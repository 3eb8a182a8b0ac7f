"""`--fast auto`: the form of the steps is found by a trial, recorded, and computes what it does when set by hand."""

import copy
import dataclasses
import json
import random

import numpy as np
import pytest
import timm
import torch
from helpers import has_same_weights
from timm.utils import random_seed
from training_helpers import STUDENT, TEACHER, load, save_teacher

from hdkd_timm import DistillConfig, TrainConfig, distill, train
from hdkd_timm.distillation.teacher import StoredLogits
from hdkd_timm.training import fast
from hdkd_timm.training.builders import create_distillation_task, create_task, freeze_stages
from hdkd_timm.training.fast import EAGER_FORMS, MIN_STEPS, Form, run_trial
from hdkd_timm.training.run_folder import load_state
from hdkd_timm.utils.distributed import World

PLAIN, CHANNELS_LAST = EAGER_FORMS
COMPILED = 'channels-last compiled'
FIRST = {'plain': 300.0, 'channels-last': 200.0, COMPILED: 10.0}  # seconds of a step with which the compiled form wins


@pytest.fixture
def measure(monkeypatch):
    """Seconds of a step in each form -> a trial, also of short trainings, that measures them. Returns its rounds."""

    def patch(seconds=FIRST, share=10.0, backend='eager'):
        def time_in_turns(calls, rounds, world, stop_if_asked):
            seen.append((list(map(str, calls)), rounds))
            for call in calls.values():
                call()
            return {form: seconds[str(form)] for form in calls}

        seen = []
        monkeypatch.setattr(fast, 'MAX_SHARE', share)
        monkeypatch.setattr(fast, 'BACKEND', backend)
        monkeypatch.setattr(fast, 'time_in_turns', time_in_turns)
        return seen

    return patch


@pytest.fixture
def no_trial(monkeypatch):
    monkeypatch.setattr(fast, 'create_step', lambda *args: pytest.fail('there was a trial'))


@pytest.mark.parametrize(
    ('seconds', 'flags', 'told'),
    [
        ({'plain': 0.1, 'channels-last': 0.2}, {}, 'plain, 100 ms a step (channels-last 200).'),
        (
            {'plain': 0.214, 'channels-last': 0.182},
            dict(channels_last=True),
            'channels-last, 182 ms a step (plain 214).',
        ),
        (
            FIRST,
            dict(channels_last=True, torchcompile='eager'),
            'channels-last compiled, 10000 ms a step (plain 300000, channels-last 200000).',
        ),
    ],
    ids=['plain', 'channels-last', 'compiled'],
)
def test_run_is_that_of_the_flags(train_config, seconds, flags, told, measure, run, caplog):
    """Bit by bit: weights, moving average and predictions."""
    caplog.set_level('INFO')
    config = dataclasses.replace(train_config, model_kwargs={**STUDENT, 'drop_path_rate': 0.2})
    config.model_ema = not flags.get('torchcompile')  # it would be compiled, too
    measure(seconds)
    result = train(dataclasses.replace(config, fast='auto'))['models']['hdkd_student']
    assert f'hdkd_student  --fast auto: {told}' in caplog.messages
    expected = train(dataclasses.replace(config, experiment='by-hand', **flags))['models']['hdkd_student']
    states = [load_state(folder / 'last.pth') for folder in (run, run.parent / 'by-hand')]
    for name in ('state_dict', 'state_dict_ema', 'optimizer'):
        torch.testing.assert_close(*(state.get(name) for state in states), rtol=0, atol=0)
    assert has_same_weights(load(run), load(run.parent / 'by-hand'))
    assert (run / 'predictions.csv').read_bytes() == (run.parent / 'by-hand' / 'predictions.csv').read_bytes()
    form = {'channels_last': False, 'torchcompile': None, **flags}
    assert result.pop('form') == form
    assert 'form' not in expected
    assert dict(result, train_seconds=0) == dict(expected, train_seconds=0)
    record = json.loads((run / 'fast.json').read_text())
    assert record.pop('device').startswith('CPU, ')
    assert record == {**form, 'milliseconds': {name: 1000 * value for name, value in seconds.items()}}
    assert ' fast.json\n' in (run / 'SHA256SUMS').read_text()
    assert not (run.parent / 'by-hand' / 'fast.json').exists()


def test_each_network_has_a_trial_of_its_own(config, measure, run):
    seen = measure({'plain': 0.1, 'channels-last': 0.2})
    result = distill(dataclasses.replace(config, fast='auto', student_alone=True, epochs=1))
    assert len(seen) == 3
    assert {name: of_one['form']['channels_last'] for name, of_one in result['models'].items()} == {
        'teacher': False,
        'student_alone': False,
        'student': False,
    }
    assert len(list(run.glob('*/fast.json'))) == 3


def test_resumed_with_the_recorded_form(train_config, measure, monkeypatch, run):
    """Not with the one that this machine would find, nor with the default: the weights are those of one training."""
    config = dataclasses.replace(train_config, fast='auto', sched='none', epochs=2)
    measure({'plain': 0.1, 'channels-last': 0.2})
    train(dataclasses.replace(config, epochs=1))
    monkeypatch.setattr(fast, 'create_step', lambda *args: pytest.fail('there was a trial'))
    before = (run / 'fast.json').read_bytes()
    result = train(config, resume=True)['models']['hdkd_student']
    assert result['form'] == dict(channels_last=False, torchcompile=None)
    assert (run / 'fast.json').read_bytes() == before
    train(dataclasses.replace(config, fast=None, experiment='by-hand'))
    assert has_same_weights(load(run), load(run.parent / 'by-hand'))
    with pytest.raises(ValueError, match="was started with fast 'auto', not None"):
        train(dataclasses.replace(config, fast=None), resume=True)


def test_overwritten_run_has_a_new_trial(train_config, measure, run):
    config = dataclasses.replace(train_config, fast='auto', epochs=1)
    for seconds, expected in ((0.1, False), (0.3, True)):
        measure({'plain': seconds, 'channels-last': 0.2})
        train(config, overwrite=True)
        assert json.loads((run / 'fast.json').read_text())['channels_last'] == expected


@pytest.mark.parametrize('has_sums', [True, False])
@pytest.mark.parametrize(
    ('content', 'match'),
    [
        ('{', r"fast\.json'.* is damaged"),
        ('{"channels_last": 1, "torchcompile": null}', r"fast\.json'.* is damaged"),
        ('[]', r"fast\.json'.* is damaged"),
        (None, r"fast\.json' is missing, .*steps of hdkd_student"),
    ],
)
def test_damaged_record(train_config, run, content, match, has_sums):
    config = dataclasses.replace(train_config, fast='auto', sched='none', epochs=1)
    train(config)
    if not has_sums:
        (run / 'SHA256SUMS').unlink()
        match += '.* with --overwrite'
    (run / 'fast.json').write_text(content) if content else (run / 'fast.json').unlink()
    with pytest.raises(ValueError, match=match):
        train(dataclasses.replace(config, epochs=2), resume=True)
    assert train(config, resume=True)['models']['hdkd_student']['epochs'] == 1  # it is finished


@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_no_trial_of_few_steps(train_config, device, no_trial):
    form, seconds = run_trial(
        None, dataclasses.replace(train_config, fast='auto'), 3, MIN_STEPS - 1, None, World(torch.device(device))
    )
    assert (form, seconds) == (Form(channels_last=device == 'cpu'), {})


def test_few_steps_are_told(train_config, no_trial, run, caplog):
    caplog.set_level('INFO')
    train(dataclasses.replace(train_config, fast='auto'))
    told = 'channels-last, without a trial: 6 steps are too few for one (fewer than 400).'
    assert f'hdkd_student  --fast auto: {told}' in caplog.messages
    record = json.loads((run / 'fast.json').read_text())
    assert (record['channels_last'], record['torchcompile'], record['milliseconds']) == (True, None, {})


def test_given_teacher_is_tested_without_a_trial(config, tmp_path, no_trial, run):
    save_teacher(tmp_path / 'given')
    config = dataclasses.replace(config, teacher_checkpoint=str(tmp_path / 'given'), epochs=1)
    results = [
        distill(dataclasses.replace(config, **changes))['models']['teacher']['test']
        for changes in (dict(fast='auto'), dict(channels_last=True, experiment='by-hand'))
    ]
    assert results[0] == results[1]
    assert not (run / 'teacher' / 'fast.json').exists()


@pytest.mark.parametrize('name', ['channels_last', 'torchcompile'])
@pytest.mark.parametrize('config_cls', [TrainConfig, DistillConfig])
def test_contradiction(config_cls, name):
    value = True if name == 'channels_last' else 'inductor'
    with pytest.raises(ValueError, match=f'--fast auto .*--{name.replace("_", "-")}: drop one of them'):
        config_cls(data_dir='d', fast='auto', **{name: value})


class Task:
    """A task of tiny networks, and its settings, for trials without a run."""

    def __init__(self, settings, kind):
        changes = {
            'multi-label': dict(multi_label=True, select_metric='macro_auroc', method=('kd',)),
            'crd': dict(method=('crd', 'kd')),
            'stored': dict(method=('kd',)),
            'mixup': dict(mixup=0.2),
            'frozen': dict(freeze_stages=2, amp=True, amp_dtype='bfloat16'),
        }.get(kind, {})
        config_cls = TrainConfig if kind == 'train' else DistillConfig
        self.config = config_cls(**{**settings, 'fast': 'auto', **changes})
        random_seed(0)
        student = timm.create_model('hdkd_student', **STUDENT, img_size=32, num_classes=3, drop_rate=0.1)
        teacher = timm.create_model('hdkd_teacher', **TEACHER, img_size=32, num_classes=3)
        if kind == 'stored':
            teacher = StoredLogits(torch.randn(1, 2, 24, 3))
        if kind == 'train':
            self.task = create_task(student, self.config, None, teacher)
        else:
            self.task = create_distillation_task(student, teacher, self.config, train_targets=np.arange(24) % 3)
        self.task.train()
        for module in freeze_stages(student, self.config.freeze_stages):
            module.eval()

    def try_forms(self, steps=MIN_STEPS, world=None):
        amp_dtype = torch.bfloat16 if self.config.amp else None
        autocast = torch.autocast('cpu', amp_dtype, enabled=self.config.amp)
        return run_trial(self.task, self.config, 3, steps, autocast, world or World(torch.device('cpu')))


def random_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize('kind', ['hdkd', 'train', 'multi-label', 'crd', 'stored', 'mixup', 'frozen'])
def test_trial_leaves_no_trace(settings, kind):
    """The forms are really timed, of all kinds of tasks and targets."""
    made = Task(settings, kind)
    task = made.task
    state, modes = copy.deepcopy(task.state_dict()), [module.training for module in task.modules()]
    numbers = random_states()
    form, seconds = made.try_forms()
    assert list(seconds) == [PLAIN, CHANNELS_LAST]
    assert seconds[form] == min(seconds.values()) > 0
    assert random_states() == numbers
    torch.testing.assert_close(task.state_dict(), state, rtol=0, atol=0)
    assert [module.training for module in task.modules()] == modes
    assert all(p.grad is None and p.is_contiguous() for p in task.get_trainable_module().parameters())


@pytest.mark.parametrize(
    ('steps', 'rounds'), [(MIN_STEPS, 3), (500, 4), (600, 5), (10**5, 5)], ids=lambda value: str(value)
)
def test_rounds_are_those_of_the_budget(settings, steps, rounds, measure):
    seen = measure({'plain': 1e-3, 'channels-last': 2e-3}, share=0.02)
    made = Task(settings, 'train')
    assert made.try_forms(steps) == (PLAIN, {PLAIN: 1e-3, CHANNELS_LAST: 2e-3})
    assert seen == [(['plain', 'channels-last'], rounds)]


@pytest.mark.parametrize(
    ('steps', 'compiled', 'tried', 'taken'),
    [
        (16_000, 0.1, False, False),  # 2 % of them are 320 s, of which the other steps of the trial leave 298
        (16_200, 0.1, True, True),
        (16_200, 0.99, True, False),  # the start is not paid for
        (10**6, 0.99, True, True),
        (10**6, 1.1, True, False),
    ],
)
def test_compiled_where_its_start_pays(settings, steps, compiled, tried, taken, measure, monkeypatch):
    monkeypatch.setattr(fast, 'create_step', lambda *args: lambda: None)
    seen = measure({'plain': 1.0, 'channels-last': 2.0, 'compiled': compiled}, share=0.02)
    form, seconds = Task(settings, 'train').try_forms(steps)
    assert [forms for forms, _ in seen[1:]] == [['plain', 'compiled']] * tried
    assert len(seconds) == 2 + tried
    assert form == Form(torchcompile='eager' if taken else None)


def test_failing_compiler_is_left_out(settings, measure, caplog):
    def broken(graph, inputs):
        raise RuntimeError('no C++ compiler')

    measure(FIRST, backend=broken)
    form, seconds = Task(settings, 'hdkd').try_forms(100)
    assert (form, list(seconds)) == (CHANNELS_LAST, [PLAIN, CHANNELS_LAST])
    (record,) = (record for record in caplog.records if record.levelname == 'WARNING')
    assert record.message.startswith('--fast auto leaves out channels-last compiled: it fails here (')
    assert 'no C++ compiler' in record.message


def test_slowest_process_counts(settings, monkeypatch):
    """Each process measures otherwise, in turns; all take the same form."""

    class Two(World):
        def gather(self, value):
            return [value, {PLAIN: 5.0, CHANNELS_LAST: 3.0}]

    clock = iter([9.0, 9.0, 1.0, 4.0, 1.0, 4.0, 7.0, 4.0])  # the first two are the warm-up
    monkeypatch.setattr(fast, 'time_call', lambda call, device: next(clock))
    form, seconds = Task(settings, 'train').try_forms(world=Two(torch.device('cpu')))
    assert (form, seconds) == (CHANNELS_LAST, {PLAIN: 5.0, CHANNELS_LAST: 4.0})


def test_compiler_that_fails_elsewhere_is_left_out(settings, measure):
    answers = iter([True, True, False])  # of the other process: both forms without a compiler run there

    class Two(World):
        def gather(self, value):
            return [value, next(answers)]

    seen = measure(FIRST)
    form, _ = Task(settings, 'hdkd').try_forms(100, Two(torch.device('cpu')))
    assert (form, len(seen)) == (CHANNELS_LAST, 1)


def test_forms_without_memory_are_left_out(settings, monkeypatch, caplog):
    """Where no copy of the task fits into memory, the training goes on without a trial."""

    def create_step(form, *args):
        def step():
            raise torch.OutOfMemoryError('out of memory')

        return step

    monkeypatch.setattr(fast, 'create_step', create_step)
    assert Task(settings, 'train').try_forms() == (CHANNELS_LAST, {})
    assert [record.message for record in caplog.records] == [
        f'--fast auto leaves out {form}: it fails here (out of memory).' for form in ('plain', 'channels-last')
    ]


def test_trial_stops_if_asked(settings):
    made = Task(settings, 'train')

    def stop():
        raise KeyboardInterrupt

    numbers = random_states()
    with pytest.raises(KeyboardInterrupt):
        run_trial(
            made.task, made.config, 3, MIN_STEPS, torch.autocast('cpu', enabled=False), World(torch.device('cpu')), stop
        )
    assert random_states() == numbers
