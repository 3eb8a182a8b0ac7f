from pathlib import Path

import pytest

from hdkd_timm.study.config import StudyConfig, keep_former, list_arms, list_runs
from hdkd_timm.utils.config import to_yaml


def test_arms_of_methods_and_models(settings):
    config = StudyConfig(**settings, methods=('none', 'hdkd+kd'), models=('hdkd_student', 'resnet10t'))
    assert list_arms(config) == {
        'hdkd_student_none': dict(method=('none',), model='hdkd_student'),
        'hdkd_student_hdkd+kd': dict(method=('hdkd', 'kd'), model='hdkd_student'),
        'resnet10t_none': dict(method=('none',), model='resnet10t'),
        'resnet10t_hdkd+kd': dict(method=('hdkd', 'kd'), model='resnet10t'),
    }


def test_runs_have_the_settings_of_the_study_and_of_their_arm(settings):
    arms = {'a': {'method': 'kd', 'method-args': {'kd': {'tau': 2}}, 'lr': '1e-4'}, 'b': None}
    runs = list(list_runs(StudyConfig(**settings, arms=arms, seeds=(3, 5), tau=2.0), Path('out')))
    assert [run.name for run in runs] == ['a-3', 'b-3', 'a-5', 'b-5']
    config = runs[2].config
    assert (config.seed, config.lr, config.method, config.method_args) == (5, 1e-4, ('kd',), {'kd': {'tau': 2}})
    assert (config.output, config.experiment) == ('out/runs', 'a-5')
    assert config.teacher_checkpoint == (settings['teacher_checkpoint'],)
    assert (runs[3].config.method, runs[3].config.tau, runs[3].config.epochs) == (('hdkd',), 2.0, 1)


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        (dict(), 'A study needs arms'),
        (dict(arms={'a/b': {}}), "Arm 'a/b': use letters"),
        (dict(arms={1: {}}), 'The name of an arm must be text, but YAML reads 1: put it in quotes'),
        (dict(arms={True: {}}, models=('resnet18',)), r'reads True: put it in quotes \(unquoted yes, no, on and off'),
        (
            dict(methods=('kd',), train_fractions=(0.1, 0.1000001)),
            "--train-fractions 0.1 and 0.1000001 would both name their runs 'ARM-0.1-SEED'",
        ),
        (dict(arms={'a': 3}), "Arm 'a' must hold settings"),
        (dict(arms={'a': dict(seed=3)}), "Arm 'a' sets 'seed', which is the same for all arms"),
        (dict(arms={'a': dict(val_fraction=0.2)}), "Arm 'a' sets 'val_fraction', which is the same for all arms"),
        (dict(arms={'a': dict(method='kd', tau=2.0)}), "Arm 'a' sets 'tau', a setting of the method 'hdkd', not of kd"),
        (dict(arms={'a': dict(model='resnet18')}, models=('resnet18',)), "Arm 'a' has a model of its own: leave --mod"),
        (
            dict(methods=('kd',), method_args={'hdkd': {'feature_norm': True}}),
            'no method_args of its own: give them to',
        ),
        (
            dict(arms={'a': dict(teacher_epochs=50)}),
            "Arm 'a' sets 'teacher_epochs', but a study trains one teacher for all arms: move it out, or train",
        ),
        (dict(arms={'a': dict(teacher='resnet50')}), "Arm 'a' sets 'teacher', but a study trains one teacher"),
        (dict(arms={'a': dict(wings=2)}), "Unknown setting 'wings' in arm 'a'"),
        (dict(arms={'a': dict(lr=-1.0)}), "Setting 'lr' in arm 'a' must be above 0"),
        (dict(arms={'a': dict(method=('kd', 'none'))}), "Arm 'a': --method none is no distillation"),
        (dict(arms={'kd': {}}, methods=('kd',)), "Arm 'kd' is both in the file and among --methods"),
        (dict(methods=('kd',), baseline='none'), "--baseline 'none' is none of the arms: kd"),
        (dict(methods=('kd',), only=('kd', 'dkd')), "--only 'dkd' is none of the arms: kd"),
        (dict(methods=('kd',), seeds=(1, 1)), '--seeds names 1 twice'),
        (dict(methods=('kd', 'kd')), '--methods names kd twice'),
        (dict(methods=('kd',), train_fractions=(0.1, 0.1)), '--train-fractions names 0.1 twice'),
        (
            dict(methods=('kd',), train_fractions=(0.1,), train_fraction=0.5),
            '--train-fraction and --train-fractions contr',
        ),
        (dict(methods=('kd',), train_fractions=(0.1, 1.5)), '--train-fractions must be above 0 and at most 1, got 1.5'),
        (dict(arms={'a': dict(train_fraction=0.5)}), "Arm 'a' sets 'train_fraction', which is the same for all arms"),
    ],
)
def test_wrong_settings(settings, changes, match):
    with pytest.raises(ValueError, match=match):
        list(list_runs(StudyConfig(**settings, **changes), Path('out')))


def test_every_arm_is_trained_with_every_fraction_of_the_images(settings):
    """From few images to many, each with a teacher that has seen no others."""
    settings.update(teacher_checkpoint=None)
    config = StudyConfig(**settings, methods=('none', 'kd'), seeds=(3, 5), train_fractions=(1.0, 0.01))
    runs = list(list_runs(config, Path('out')))
    assert [run.name for run in runs[:5]] == ['none-0.01-3', 'kd-0.01-3', 'none-1-3', 'kd-1-3', 'none-0.01-5']
    assert [(run.arm, run.seed, run.fraction) for run in runs[1:3]] == [('kd', 3, 0.01), ('none', 3, 1.0)]
    kd, none = runs[1].config, runs[2].config
    assert (kd.train_fraction, kd.teacher_checkpoint) == (0.01, ('out/teacher-0.01/best',))
    assert (none.train_fraction, none.teacher_checkpoint) == (1.0, None)
    assert runs[3].config.teacher_checkpoint == ('out/teacher-1/best',)


def test_teachers_and_stored_logits_of_arms(settings):
    """What an arm names replaces what the study has of the other kind."""
    arms = {
        'none': {'method': 'none'},
        'start': {'method': 'none', 'init_from_teacher': []},
        'one': {},
        'two': {'teacher_checkpoint': ['a', 'b'], 'teachers': 'separate'},
        'stored': {'teacher_logits': 'f', 'method': 'kd'},
    }
    settings.update(teacher_checkpoint='t')
    runs = list(list_runs(StudyConfig(**settings, arms=arms, seeds=(1,)), Path('out')))
    found = [(run.config.teacher_checkpoint, run.config.teacher_logits) for run in runs]
    assert found == [(None, None), (('t',), None), (('t',), None), (('a', 'b'), None), (None, 'f')]
    del arms['start']  # which stored logits cannot do
    settings.update(teacher_checkpoint=None, teacher_logits='g')
    runs = list(list_runs(StudyConfig(**settings, arms=arms, seeds=(1,)), Path('out')))
    found = [(run.config.teacher_checkpoint, run.config.teacher_logits) for run in runs]
    assert found == [(None, None), (None, 'g'), (('a', 'b'), None), (None, 'f')]


def finish(config, folder):
    """What `keep_former` sees of a study whose runs are finished."""
    folder.mkdir()
    (folder / 'config.yaml').write_text(to_yaml(config))
    for run in list_runs(config, folder):
        (folder / 'runs' / run.name).mkdir(parents=True)
        (folder / 'runs' / run.name / 'metrics.json').write_text('{}')


def test_arms_and_seeds_of_earlier_commands_are_kept(settings, tmp_path):
    folder = tmp_path / 'study'
    former = StudyConfig(**settings, methods=('none', 'kd'), models=('resnet10t',), seeds=(1, 2))
    finish(former, folder)
    config = keep_former(StudyConfig(**settings, methods=('at',), seeds=(3,)), folder)
    arms = {f'resnet10t_{name}': dict(method=(name,), model='resnet10t') for name in ('none', 'kd')}
    assert list_arms(config) == {**arms, 'at': dict(method=('at',))}
    assert config.seeds == (3, 1, 2)
    assert config.baseline is None
    # what has no results is nothing to keep, and more than before is taken as it is given
    (folder / 'runs' / 'resnet10t_kd-2' / 'metrics.json').unlink()
    (folder / 'runs' / 'resnet10t_kd-1' / 'metrics.json').unlink()
    assert list(list_arms(keep_former(StudyConfig(**settings, methods=('at',)), folder))) == ['resnet10t_none', 'at']
    more = StudyConfig(**settings, methods=('at', 'none'), models=('resnet10t',), seeds=(5, 2, 1))
    assert keep_former(more, folder) == more


def test_fractions_of_earlier_commands_are_kept(settings, tmp_path):
    folder = tmp_path / 'study'
    finish(StudyConfig(**settings, methods=('kd',), train_fractions=(0.1, 1.0), baseline='kd'), folder)
    config = keep_former(StudyConfig(**settings, methods=('none',), train_fractions=(0.5,)), folder)
    assert (config.train_fractions, config.baseline, list(config.arms)) == ((0.5, 0.1, 1.0), 'kd', ['kd', 'none'])
    with pytest.raises(ValueError, match='was started with --train-fractions, and a table cannot have both'):
        keep_former(StudyConfig(**settings, methods=('kd',)), folder)


def test_an_arm_names_the_architecture_of_its_own_teacher_s_file(settings):
    arms = {'a': dict(teacher='resnet18', teacher_checkpoint='resnet.pth'), 'b': {}}
    runs = list(list_runs(StudyConfig(**settings, arms=arms, seeds=(1,)), Path('out')))
    assert [run.config.teacher_checkpoint for run in runs] == [('resnet.pth',), (settings['teacher_checkpoint'],)]
    assert runs[0].config.teacher == 'resnet18'
