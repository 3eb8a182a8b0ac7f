"""Studies in real processes, of tiny networks: forked ones, but for one that starts as `run_study` starts it."""

import csv
import shutil
import signal
import time

import pytest
import yaml
from helpers import write_images
from processes import start
from training_helpers import TEACHER, save_teacher

from hdkd_timm.cli import main
from hdkd_timm.study.config import StudyConfig, list_runs
from hdkd_timm.study.runs import _find_error, run_study, teacher_config
from hdkd_timm.utils.csv_files import read_rows
from hdkd_timm.utils.parsing import to_yaml


def write_settings(path, **settings):
    path.write_text(to_yaml(settings))
    return str(path)


def test_a_study_from_its_teacher_to_its_page(settings, forked_runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    settings.pop('teacher_checkpoint')
    teacher = dict(dims=settings['model_kwargs']['dims'], depths=(2, 1, 2))
    arms = dict(alone=dict(method='none'), kd=dict(method='kd', method_args=dict(kd=dict(tau=2.0))))
    path = write_settings(
        tmp_path / 'study.yaml',
        **settings,
        teacher_kwargs=teacher,
        arms=arms,
        seeds=[4],
        val_fraction=0.25,
    )
    assert main(['study', '--config', path, '--jobs', '2']) == 0
    folder = tmp_path / 'runs' / 'study'
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].startswith('| arm | seeds | val balanced accuracy | test balanced accuracy')
    assert (folder / 'results.md').read_text().startswith('| arm |')
    assert (folder / 'comparison.png').read_bytes()[:4] == b'\x89PNG'
    assert 'difference to alone' in (folder / 'study.html').read_text()
    with (folder / 'results.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [row['arm'] for row in rows] == ['alone', 'kd']
    saved = [yaml.safe_load((folder / 'runs' / f'{arm}-4' / 'config.yaml').read_text()) for arm in arms]
    assert [values['method'] for values in saved] == [['none'], ['kd']]
    assert [values['teacher_checkpoint'] for values in saved] == [None, [str(folder / 'teacher' / 'best')]]
    times = {file: file.stat().st_mtime_ns for file in folder.rglob('last.pth')}
    assert len(times) == 3
    # a second time, with one more seed, only that is trained
    assert main(['study', '--config', path, '--seeds', '4', '5']) == 0
    assert {file: file.stat().st_mtime_ns for file in folder.rglob('last.pth') if file in times} == times
    assert sorted(run.name for run in (folder / 'runs').iterdir()) == ['alone-4', 'alone-5', 'kd-4', 'kd-5']
    # the runs of other settings are not taken for its own
    capsys.readouterr()
    others = shutil.copytree(settings['data_dir'], tmp_path / 'others')
    assert main(['study', '--config', path, '--data-dir', str(others)]) == 1
    assert f"was started with data_dir '{settings['data_dir']}'" in capsys.readouterr().err
    assert yaml.safe_load((folder / 'config.yaml').read_text())['data_dir'] == settings['data_dir']
    assert main(['study', '--config', path, '--lr', '0.1']) == 1
    assert 'was started with lr 0.001' in capsys.readouterr().err


def test_learning_curve(settings, forked_runs, tmp_path, capsys, caplog):
    given = settings.pop('teacher_checkpoint')
    path = write_settings(tmp_path / 'study.yaml', **settings, teacher_kwargs=TEACHER)
    args = ['study', '--config', path, '--methods', 'none', 'kd', '--seeds', '1', '--train-fractions', '1', '0.25']
    assert main([*args, '--jobs', '2']) == 0
    folder = tmp_path / 'runs' / 'study'
    lines = [line.split(' | ') for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:3] == ['| arm', 'training images', 'seeds']
    assert [line[:2] for line in lines[2:6]] == [
        ['| none', '6 (25 %)'],
        ['| kd', '6 (25 %)'],
        ['| none', '24 (100 %)'],
        ['| kd', '24 (100 %)'],
    ]
    assert '25 and 100 % of the training images' in (folder / 'results.md').read_text()
    assert (folder / 'learning_curve.png').read_bytes()[:4] == b'\x89PNG'
    assert 'by the number of training images' in (folder / 'study.html').read_text()
    for fraction in ('0.25', '1'):  # the teacher of the students has seen what they have
        networks = [folder / f'teacher-{fraction}', folder / 'runs' / f'kd-{fraction}-1']
        seen = [{row['path'] for row in read_rows(run / 'images.csv') if row['split'] == 'train'} for run in networks]
        assert seen[0] == seen[1]
    assert 'may know more images' not in caplog.text
    assert main([*args, '--teacher-checkpoint', given, '--experiment', 'given']) == 0
    assert 'The given teacher is that of all fractions: it may know more images than its students.' in caplog.text


def test_a_study_without_distillation_needs_no_teacher(settings, forked_runs, tmp_path, capsys):
    """As one that compares starting points."""
    del settings['teacher_checkpoint']
    arms = {'random': dict(method='none'), 'plain': dict(method='none', model='hdkd_student_plain')}
    path = write_settings(tmp_path / 'study.yaml', **settings, arms=arms, seeds=[1])
    folder = tmp_path / 'runs' / 'study'
    assert main(['study', '--config', path, '--only', 'plain']) == 0
    assert [run.name for run in (folder / 'runs').iterdir()] == ['plain-1']
    assert main(['study', '--config', path, '--only', 'random', '--seeds', '1', '2']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(' | ')[:2] for line in lines if line.startswith(('| plain', '| random'))] == [
        ['| plain', '1'],
        ['| random', '2'],
        ['| plain', '1 of 2'],
    ]
    assert not (folder / 'teacher').exists()


def test_wrong_arm_stops_it_before_anything_is_trained(settings, tmp_path):
    arms = dict(kd=dict(method='kd'), wrong=dict(method='kd', method_args=dict(kd=dict(tau=-1))))
    with pytest.raises(ValueError, match=r"Arm 'wrong': kd\.tau must be a number above 0"):
        run_study(StudyConfig(**settings, arms=arms))
    assert not (tmp_path / 'runs').exists()


def test_a_run_that_fails_is_told_and_the_others_go_on(settings, forked_runs, tmp_path, capsys, caplog):
    path = write_settings(
        tmp_path / 'study.yaml',
        **settings,
    )
    taken = tmp_path / 'runs' / 'study' / 'runs' / 'kd-1'
    taken.mkdir(parents=True)
    (taken / 'notes.txt').write_text('mine')  # no run, and not to be written into
    assert main(['study', '--config', path, '--methods', 'none', 'kd', '--seeds', '1']) == 1
    assert 'kd-1  failed: hdkd distill: error:' in caplog.text
    assert '| none | 1 |' in capsys.readouterr().out
    assert 'kd-1 failed' in (tmp_path / 'runs' / 'study' / 'study.html').read_text()
    assert (taken / 'notes.txt').read_text() == 'mine'


def test_warnings_of_the_runs_are_repeated(settings, forked_runs, image_folder, tmp_path, caplog):
    """Once, by the run that has them first: all have the same images."""
    (image_folder / 'notes').mkdir()
    write_images(image_folder / 'notes', ('a',), 1)
    path = write_settings(tmp_path / 'study.yaml', **settings)
    args = ['study', '--config', path, '--methods', 'none', 'kd', '--seeds', '1', '--val-fraction', '0.25']
    assert main(args) == 0
    warnings = [record.getMessage() for record in caplog.records if record.levelname == 'WARNING']
    assert len(set(warnings)) == len(warnings)
    for text in ('Ignored 1 folder in', 'and the val split has fewer than 5 images of 3 of 3 classes'):
        (warning,) = [warning for warning in warnings if text in warning]
        assert warning.startswith('none-1  ')
        for run in ('none-1', 'kd-1'):
            log = (tmp_path / 'runs' / 'study' / 'logs' / f'{run}.log').read_text()
            assert f'\nWarning: {warning.removeprefix("none-1  ")}\n' in f'\n{log}'


def test_a_signal_reaches_the_runs(settings, tmp_path):
    path = write_settings(
        tmp_path / 'study.yaml',
        **dict(settings, epochs=2000),
    )
    args = ['study', '--config', path, '--methods', 'none', '--seeds', '1']
    process = start('-m', 'hdkd_timm', *args, start_new_session=True)
    state = tmp_path / 'runs' / 'study' / 'runs' / 'none-1' / 'student' / 'last.pth'
    while not state.exists() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert f"Resume with: hdkd study --config '{tmp_path / 'runs' / 'study'}/config.yaml'\n" in err
    log = (tmp_path / 'runs' / 'study' / 'logs' / 'none-1.log').read_text()
    assert 'SIGTERM, the state is saved' in log


def test_flags_without_an_effect(settings, tmp_path, capsys):
    path = write_settings(tmp_path / 'study.yaml', **settings)
    assert main(['study', '--config', path, '--methods', 'kd', 'dkd', '--tau', '4']) == 1
    assert "--tau is a setting of the method 'hdkd', which no arm has: drop it" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(['study', '--config', path, '--methods', 'kd', '--seed', '7'])  # not short for --seeds
    assert 'unrecognized arguments: --seed 7' in capsys.readouterr().err


def test_a_started_run_of_other_settings(settings, tmp_path):
    """It shows before anything is trained, not when its turn comes."""
    folder = tmp_path / 'runs' / 'study' / 'runs' / 'kd-1'
    folder.mkdir(parents=True)
    (folder / 'config.yaml').write_text('lr: 0.5')
    with pytest.raises(ValueError, match='kd-1.* was started with .*settings differ'):
        run_study(StudyConfig(**settings, methods=('kd',), seeds=(1,)))


def test_teacher_has_its_own_settings(settings, tmp_path):
    config = StudyConfig(
        **settings, teacher_lr=0.5, teacher_epochs=7, teacher='resnet18', seeds=(8, 9), methods=('kd',)
    )
    teacher = teacher_config(config, tmp_path)
    assert (teacher.model, teacher.lr, teacher.epochs, teacher.seed) == ('resnet18', 0.5, 7, 42)
    assert (teacher.output, teacher.experiment, teacher.model_kwargs) == (str(tmp_path), 'teacher', {})
    assert (teacher.split_seed, next(list_runs(config, tmp_path)).config.split_seed) == (42, 42)
    teacher = teacher_config(config, tmp_path, 0.05)
    assert (teacher.train_fraction, teacher.experiment) == (0.05, 'teacher-0.05')


def test_the_error_is_that_of_the_own_process(tmp_path):
    """A process that a killed study has left writes to the same log."""
    log = tmp_path / 'kd-1.log'
    log.write_text('hdkd distill: error: an earlier one.\n')
    start = log.stat().st_size
    assert _find_error(log, start) == ''
    with log.open('a') as file:
        file.write('hdkd distill: error: Another process is writing.\nstudent epoch 60/60 loss 1.2\n')
    assert _find_error(log, start) == 'hdkd distill: error: Another process is writing.'


def test_a_study_that_is_continued(settings, forked_runs, tmp_path, capsys, caplog):
    """Other images and another teacher are refused before anything is trained; no arm and no seed is lost."""
    path = write_settings(tmp_path / 'study.yaml', **settings)
    args = ['study', '--config', path, '--seeds', '1']
    assert main([*args, '--methods', 'none', 'kd']) == 0
    folder = tmp_path / 'runs' / 'study'
    files = {file: file.read_bytes() for file in folder.glob('results.*')}
    assert main([*args, '--methods', 'kd']) == 0
    assert 'also has finished runs that this command does not name (1: none-1)' in caplog.text
    assert {file: file.read_bytes() for file in files} == files
    assert list(yaml.safe_load((folder / 'config.yaml').read_text())['arms']) == ['none', 'kd']
    capsys.readouterr()
    save_teacher(tmp_path / 'other')  # another one
    shutil.rmtree(tmp_path / 'given')
    (tmp_path / 'other').rename(tmp_path / 'given')
    assert main(['study', '--config', path, '--seeds', '2', '--methods', 'kd']) == 1
    assert "The teacher '" in capsys.readouterr().err
    image = next((tmp_path / 'data' / 'train' / 'a').iterdir())
    shutil.move(image, tmp_path / 'data' / 'test' / 'a' / 'moved.png')
    assert main(['study', '--config', path, '--seeds', '2', '--methods', 'none']) == 1
    assert f"'train/a/{image.name}' of split train is not in both" in capsys.readouterr().err
    assert sorted(run.name for run in (folder / 'runs').iterdir()) == ['kd-1', 'none-1']
