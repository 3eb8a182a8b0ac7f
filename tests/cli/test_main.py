import dataclasses
import json
import os
import subprocess
import sys

import pytest
import timm
import torch
from helpers import TINY_STUDENT, load_reference, strip_prefix
from PIL import Image

from hdkd_timm import DistillConfig, TrainConfig
from hdkd_timm.cli.main import create_parser, main
from hdkd_timm.models.checkpoint import save_model
from hdkd_timm.training.config import recipe_names
from hdkd_timm.utils.config import to_yaml


def run(*args, **kwargs):
    return subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, timeout=300, **kwargs)


BAD_CONFIG = dict(
    unknown='wings: 2', kind='epochs: ten', choice='aug: wings', no_yaml='a: [1', no_settings='- a',
    both='dataset: hfds/a')


@pytest.mark.parametrize(('args', 'message'), [
    (['distill', '--data-dir', 'nowhere'], "Data folder 'nowhere' does not exist"),
    (['distill', '--data-dir', 'DATA', '--img-size', '20'], '--img-size must be 28 or more, got 20'),
    (['distill', '--data-dir', 'DATA', '--model', 'hdkd_pupil'], "Unknown model 'hdkd_pupil'"),
    (['distill', '--data-dir', 'DATA', '--model', 'hdkd_student.gold'], 'gold'),
    (['distill', '--data-dir', 'DATA', '--teacher', 'resnet18'], 'Stage 2'),
    (['distill', '--data-dir', 'DATA', '--teacher-checkpoint', 'gone.pth'], "'gone.pth' does not exist"),
    (['distill', '--data-dir', 'DATA', '--device', 'toaster'], 'toaster'),
    (['distill', '--data-dir', 'DATA', '--opt', 'wings'], 'wings'),
    (['distill', '--data-dir', 'DATA', '--sched', 'tide'], 'tide'),
    (['distill', '--data-dir', 'DATA', '--teacher-opt', 'wings'], 'wings'),
    (['distill', '--data-dir', 'DATA', '--recipe', 'cake'], "Unknown recipe 'cake', choose from default, paper"),
    (['distill', '--config', 'gone.yaml'], "Config file 'gone.yaml' does not exist"),
    (['distill', '--config', 'BAD/unknown'], "Unknown setting 'wings' in"),
    (['distill', '--config', 'BAD/kind'], "Setting 'epochs' in '"),
    (['train', '--config', 'BAD/choice'], "must be one of timm, paper, none, got 'wings'"),
    (['train', '--config', 'BAD/no_yaml'], 'is not a YAML file'),
    (['train', '--config', 'BAD/no_settings'], 'must hold settings'),
    (['train', '--config', 'BAD/both', '--data-csv', 'a.csv'], 'Give either --dataset or --data-csv'),
    (['train'], 'No images given: specify --data-dir, --data-csv or --dataset'),
    (['train', '--data-csv', 'gone.csv'], "CSV file 'gone.csv' does not exist"),
    (['train', '--dataset', 'hfds/DATA', '--train-split', 'nowhere'], "Cannot open split 'nowhere' of dataset"),
    (['train', '--dataset', 'wds/x', '--data-dir', 'DATA'], 'give --num-classes or --class-map'),
    (['train', '--data-dir', 'DATA', '--num-classes', '7'], '--num-classes is 7, but the data has 3 classes: a, b, c'),
    (['train', '--data-dir', 'DATA', '--model', 'local-dir:gone'], "Model folder 'gone' does not exist"),
    (['train', '--data-dir', 'DATA', '--resume', '--experiment', 'gone'], "There is no run 'runs/gone' to resume"),
    (['train', '--data-dir', 'DATA', '--resume'], '--resume needs the run: --config runs/NAME/config.yaml, or'),
    (['train', '--data-dir', 'DATA', '--model-kwargs', 'wings=2'], 'wings'),
    (['train', '--data-dir', 'DATA', '--model-kwargs', 'num_classes=9'], "'num_classes' of 'hdkd_"),
    (['train', '--data-dir', 'DATA', '--torchcompile', 'foo'], "--torchcompile 'foo' is no backend: choose from"),
    (['train', '--data-dir', 'DATA', '--aug-device'], '--aug-device is for --aug paper, not for --aug timm'),
    (['train', '--data-dir', 'DATA', '--aa', 'rand-m6', '--aug', 'paper'], "--aa 'rand-m6' is a part of --aug timm"),
    (['distill', '--data-dir', 'DATA', '--resume'], '--resume needs the run: --config runs/NAME/config.yaml, or'),
    (['distill', '--data-dir', 'DATA', '--teacher-kwargs', 'img_size=9'], "'img_size' of 'hdkd_teacher' is no arg"),
    (['train', '--data-dir', 'DATA', '--early-stopping', '3'], '--early-stopping needs a val split'),
    (['train', '--data-dir', 'DATA', '--folds', '3', '--fold', '3'], '--fold must be 0 to 2, got 3'),
    (['train', '--data-dir', 'DATA', '--freeze-stages', '7'], '--freeze-stages must be 0 to 4'),
    (['train', '--data-dir', 'DATA', '--smote', 'gone.json'], "'gone.json' does not exist"),
    (['train', '--data-dir', 'DATA', '--mixup', '0.2', '-b', '3'], '--batch-size must be even with mixup'),
    (['eval', 'gone', '--data-dir', 'DATA'], "Model 'gone' does not exist"),
    (['eval', 'several', '--data-dir', 'DATA'],
     "'several' holds several models: give one of several/student, several/teacher."),
    (['predict', 'gone', 'DATA'], "Model 'gone' does not exist"),
    (['predict', 'several', 'DATA'], "'several' holds several models: give one of several/student, several/teacher."),
    (['predict', 'DATA', 'nowhere'], "'nowhere' does not exist"),
    (['predict', 'DATA', 'DATA'], 'Cannot load'),
    (['predict', 'gone', 'DATA', '--out', 'no/where.csv'], "Folder 'no' of --out does not exist"),
    (['demo', '--data-dir', 'nowhere'], "Data folder 'nowhere' does not exist"),
    (['demo', '--img-size', '20'], '--img-size must be 28 or more, got 20'),
    (['demo', '--min-lr', 'nan'], '--min-lr must be 0 or more, got nan'),
    (['convert', 'gone.pth', 'out'], "Checkpoint 'gone.pth' does not exist"),
    (['run', 'gone.py'], "script 'gone.py' does not exist"),
])
def test_bad_input_is_one_line(args, message, image_folder, tmp_path, monkeypatch, capsys):
    for name, text in BAD_CONFIG.items():
        (tmp_path / f'{name}.yaml').write_text(text)
    for name in ('student', 'teacher'):
        (tmp_path / 'several' / name / 'best').mkdir(parents=True)
        (tmp_path / 'several' / name / 'best' / 'config.json').write_text('{}')
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob('*'))
    args = [arg.replace('DATA', str(image_folder)) for arg in args]
    args = [f"{arg.removeprefix('BAD/')}.yaml" if arg.startswith('BAD/') else arg for arg in args]
    assert main(args) == 1
    captured = capsys.readouterr()
    lines = [line for line in captured.err.strip().splitlines() if line.startswith('hdkd ')]
    assert len(lines) == 1, lines
    assert lines[0].startswith(f'hdkd {args[0]}: error: ')
    assert message in lines[0]
    assert captured.out == ''
    assert sorted(tmp_path.rglob('*')) == before


def test_debug_shows_the_traceback():
    with pytest.raises(FileNotFoundError):
        main(['distill', '--data-dir', 'nowhere', '--debug'])


def test_too_large_an_image_is_one_line(image_folder, tmp_path):
    """Pillow warns, too, of what ends in an error."""
    path = image_folder / 'train' / 'a' / '0.png'
    Image.new('L', (60, 50)).save(path)
    process = subprocess.run(
        [sys.executable, '-m', 'hdkd_timm', 'train', '--data-dir', image_folder, '--output', tmp_path],
        capture_output=True, text=True, env={**os.environ, 'HDKD_MAX_IMAGE_PIXELS': '2900'})
    assert process.returncode == 1
    line, = process.stderr.splitlines()
    assert f"Cannot read image '{path}' (ValueError: 60 x 50 pixels, more than the limit of 2,900" in line


def test_flag_errors_are_argparse_s(capsys):
    with pytest.raises(SystemExit) as e:
        main(['distill', '--aug', 'wings'])
    assert e.value.code == 2
    assert '--aug' in capsys.readouterr().err


def test_help_lists_every_setting(capsys):
    for command in ('train', 'distill', 'demo', 'eval', 'predict', 'convert', 'export', 'bench', 'run'):
        with pytest.raises(SystemExit) as e:
            main([command, '--help'])
        assert e.value.code == 0
        text = capsys.readouterr().out
        assert 'usage: hdkd ' + command in text
        words = {
            'eval': ['x'], 'predict': ['x', 'y'], 'convert': ['x', 'y'], 'export': ['x', '--out', 'y'],
            'run': ['x']}.get(command, [])
        config_cls = create_parser().parse_args([command, *words]).config_cls
        if config_cls is not None:
            assert all('--' + f.name.replace('_', '-') in text for f in dataclasses.fields(config_cls))


def catch_settings(command, monkeypatch):
    """A list of the settings that a command is called with from now on, instead of training."""
    seen = []
    monkeypatch.setattr(f'hdkd_timm.training.train.{command}', lambda config, *args: seen.append(config) or dict(
        models=dict(a=dict(parameters=1, test=dict(accuracy=1., balanced_accuracy=1., macro_auroc=1.))), run='r'))
    return seen


def test_flags_win_over_the_config_file_and_that_over_the_recipe(tmp_path, monkeypatch):
    seen = catch_settings('distill', monkeypatch)
    (tmp_path / 'c.yaml').write_text('lr: 1e-4\nbatch-size: 32\nstages: [3]\n')
    args = ['--recipe', 'paper', '--config', str(tmp_path / 'c.yaml'), '--batch-size', '64', '--data-dir', 'd']
    assert main(['distill', *args]) == 0
    assert main(['distill', '--data-dir', 'd']) == 0
    assert (seen[0].lr, seen[0].batch_size, seen[0].stages) == (1e-4, 64, (3,))
    assert (seen[0].teacher_opt, seen[0].aug, seen[0].decay_tokens, seen[0].epochs) == ('adam', 'paper', True, 200)
    assert seen[1] == DistillConfig(data_dir='d')


@pytest.mark.parametrize(('command', 'config_cls'), [('train', TrainConfig), ('distill', DistillConfig)])
def test_recipes_are_those_of_python(command, config_cls, monkeypatch):
    seen = catch_settings(command, monkeypatch)
    for name in recipe_names():
        assert main([command, '--recipe', name, '--data-dir', 'd', '--tau', '3']) == 0
        assert seen.pop() == config_cls.from_recipe(name, data_dir='d', tau=3.)


def test_demo_s_settings_can_be_turned_off():
    args = create_parser().parse_args(['demo', '--no-student-alone', '--no-channels-last'])
    assert (args.student_alone, args.channels_last) == (False, False)
    args = create_parser().parse_args(['demo'])
    assert (args.student_alone, args.channels_last, args.img_size) == (True, True, 64)


@pytest.mark.parametrize('args', [
    ['convert', 'a', 'b', '--model-kwargs', 'head_dim'], ['run'], ['run', '--debug', 's.py'], ['fly']])
def test_flag_errors(args, capsys):
    with pytest.raises(SystemExit) as e:
        main(args)
    assert e.value.code == 2
    assert 'error' in capsys.readouterr().err


def test_distill_command(image_folder, tmp_path):
    result = run(
        '-m', 'hdkd_timm', 'distill', '--data-dir', image_folder, '--img-size', 28, '--epochs', 1, '-b', 8,
        '--train-fraction', 0.99, '--output', tmp_path / 'runs', '--experiment', 'e', '--stages', 2, 3, '-j', 0,
        '--bootstrap', 5)
    assert result.returncode == 0, result.stderr
    assert 'student  epoch 1/1' in result.stderr
    assert '\r' not in result.stderr  # no bar where there is no terminal
    assert result.stdout.splitlines()[0].split() == [
        'network', 'parameters', 'test', 'accuracy', 'balanced', 'accuracy', 'macro', 'AUROC', 'training']
    assert (tmp_path / 'runs' / 'e' / 'student' / 'best' / 'model.safetensors').is_file()


@pytest.fixture
def run_of_a_student(tmp_path, image_folder):
    """The folder of a run, as far as other commands need it: its model and its settings."""
    args = dict(TINY_STUDENT, num_classes=3)
    run = tmp_path / 'a run'
    save_model(timm.create_model('hdkd_student', **args), run / 'best', list('abc'), args)
    config = TrainConfig(data_dir=str(image_folder), img_size=32, workers=0, device='cpu', bootstrap=5, aug='paper')
    (run / 'config.yaml').write_text(to_yaml(config))
    return run


def test_eval_with_the_settings_of_a_run(run_of_a_student, capsys):
    assert main(['eval', str(run_of_a_student), '--config', str(run_of_a_student / 'config.yaml')]) == 0
    assert "12 images of split 'test'" in capsys.readouterr().out
    (run_of_a_student / 'other.yaml').write_text('wings: 2')
    assert main(['eval', str(run_of_a_student), '--config', str(run_of_a_student / 'other.yaml')]) == 1
    assert "Unknown setting 'wings' in" in capsys.readouterr().err


def test_teacher_is_a_run_folder(run_of_a_student, tmp_path, capsys):
    sizes = [f'{name}={value}' for name, value in TINY_STUDENT.items() if name not in ('img_size', 'num_classes')]
    assert main([
        'train', '--config', str(run_of_a_student / 'config.yaml'), '--model-kwargs', *sizes, '--epochs', '1',
        '--teacher-checkpoint', str(run_of_a_student), '--output', str(tmp_path), '--experiment', 'next']) == 0
    assert (tmp_path / 'next' / 'best' / 'model.safetensors').is_file()


def test_convert_command(tmp_path, capsys):
    reference, _ = load_reference('student_seed0')
    torch.save(strip_prefix(reference, 'state.'), tmp_path / 'a.pth')
    assert main(['convert', str(tmp_path / 'a.pth'), str(tmp_path / 'out'), '--model-kwargs', 'head_dim=8']) == 0
    assert 'hdkd_student with 5 classes' in capsys.readouterr().out
    assert (tmp_path / 'out' / 'config.json').is_file()


SCRIPT = """
import json, os, sys
import timm
import helper
line = json.dumps(dict(
    argv=sys.argv, path=sys.path[0], name=__name__, file=__file__, helper=helper.__file__,
    models=timm.list_models('hdkd_*'), rank=os.environ.get('RANK')))
os.write(1, (line + '\\n').encode())  # at once, beside another process's
if '--raise' in sys.argv:
    raise RuntimeError('on purpose')
sys.exit(int(os.environ.get('CODE', 0)))
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / 'scripts').mkdir()
    (tmp_path / 'scripts' / 'helper.py').write_text('')
    (tmp_path / 'scripts' / 'script.py').write_text(SCRIPT)
    return tmp_path / 'scripts' / 'script.py'


def parse_script_output(result):
    return json.loads(next(line for line in result.stdout.splitlines() if line.startswith('{')))


def test_run_as_python_would(script, tmp_path):
    args = ['--help', '-x', '--', 'a b', '--data-dir=c']
    env = dict(os.environ, CODE='7')
    ours = run('-m', 'hdkd_timm', 'run', '--', 'scripts/script.py', *args, cwd=tmp_path, env=env)
    plain = run('scripts/script.py', *args, cwd=tmp_path, env=env)
    assert ours.returncode == plain.returncode == 7, ours.stderr
    ours, plain = parse_script_output(ours), parse_script_output(plain)
    assert len(ours.pop('models')) == 5
    assert plain.pop('models') == []
    assert ours == plain


def test_error_of_a_script_comes_through(script, tmp_path):
    result = run('-m', 'hdkd_timm', 'run', script, '--raise', cwd=tmp_path)
    assert result.returncode == 1
    assert 'RuntimeError: on purpose' in result.stderr
    assert 'Traceback' in result.stderr


def test_run_under_torchrun(script, tmp_path):
    result = run(
        '-m', 'torch.distributed.run', '--nproc_per_node', 2, '--master_port', 0, '--rdzv_backend', 'c10d',
        '--rdzv_endpoint', 'localhost:0', '-m', 'hdkd_timm', 'run', script, '--flag', cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    outputs = [json.loads(line) for line in result.stdout.splitlines() if line.startswith('{')]
    assert sorted(o['rank'] for o in outputs) == ['0', '1']
    assert all(o['argv'] == [str(script), '--flag'] and len(o['models']) == 5 for o in outputs)
