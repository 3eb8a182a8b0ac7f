import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import load_reference, strip_prefix

from hdkd_timm import DistillConfig
from hdkd_timm.cli import create_parser, main


def run(*args, **kwargs):
    return subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, timeout=300, **kwargs)


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
    (['demo', '--data-dir', 'nowhere'], "Data folder 'nowhere' does not exist"),
    (['demo', '--img-size', '20'], '--img-size must be 28 or more, got 20'),
    (['demo', '--min-lr', 'nan'], '--min-lr must be 0 or more, got nan'),
    (['convert', 'gone.pth', 'out'], "Checkpoint 'gone.pth' does not exist"),
    (['run', 'gone.py'], "script 'gone.py' does not exist"),
])
def test_bad_input_is_one_line(args, message, image_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob('*'))
    args = [str(image_folder) if arg == 'DATA' else arg for arg in args]
    assert main(args) == 1
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith(f'hdkd {args[0]}: error: ')
    assert message in lines[0]
    assert captured.out == ''
    assert sorted(tmp_path.rglob('*')) == before


def test_debug_shows_the_traceback():
    with pytest.raises(FileNotFoundError):
        main(['distill', '--data-dir', 'nowhere', '--debug'])


def test_flag_errors_are_argparse_s(capsys):
    with pytest.raises(SystemExit) as e:
        main(['distill'])
    assert e.value.code == 2
    assert '--data-dir' in capsys.readouterr().err


def test_help_lists_every_setting(capsys):
    for command in ('distill', 'demo', 'convert', 'run'):
        with pytest.raises(SystemExit) as e:
            main([command, '--help'])
        assert e.value.code == 0
        text = capsys.readouterr().out
        assert 'usage: hdkd ' + command in text
        if command in ('distill', 'demo'):
            assert all('--' + f.name.replace('_', '-') in text for f in dataclasses.fields(DistillConfig))


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
        '--train-fraction', 0.99, '--output', tmp_path / 'runs', '--experiment', 'e', '--stages', 2, 3, '-j', 0)
    assert result.returncode == 0, result.stderr
    assert 'student  epoch 1/1' in result.stderr
    assert result.stdout.splitlines()[0].split() == [
        'network', 'parameters', 'test', 'accuracy', 'balanced', 'training']
    assert (tmp_path / 'runs' / 'e' / 'student' / 'model.safetensors').is_file()


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
print(json.dumps(dict(
    argv=sys.argv, path=sys.path[0], name=__name__, file=__file__, helper=helper.__file__,
    models=timm.list_models('hdkd_*'), rank=os.environ.get('RANK'))))
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
