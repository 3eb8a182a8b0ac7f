"""The command as a whole: which commands there are, and that what goes wrong is one line."""

import ast
import os
import re
import sys

import pytest
from PIL import Image
from processes import TORCH, flags, hdkd, run

from hdkd_timm.cli.main import COMMANDS, main

BAD_CONFIG = dict(
    unknown='wings: 2',
    kind='epochs: ten',
    choice='aug: wings',
    bound='lr: -1',
    no_yaml='a: [1',
    no_settings='- a',
    both='dataset: hfds/a',
)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
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
        (['train', '--config', 'BAD/bound'], "bound.yaml' must be above 0, got -1.0"),
        (['train', '--config', 'BAD/no_yaml'], 'YAML file (while parsing'),
        (['train', '--config', 'BAD/no_settings'], 'must hold settings'),
        (['train', '--config', 'BAD/both', '--data-csv', 'a.csv'], 'Give either --dataset or --data-csv'),
        (['train'], 'No images given: specify --data-dir, --data-csv or --dataset'),
        (['train', '--data-csv', 'gone.csv'], "CSV file 'gone.csv' does not exist"),
        (['train', '--dataset', 'hfds/DATA', '--train-split', 'nowhere'], "Cannot open split 'nowhere' of dataset"),
        (['train', '--dataset', 'wds/x', '--data-dir', 'DATA'], 'give --num-classes or --class-map'),
        (
            ['train', '--data-dir', 'DATA', '--num-classes', '7'],
            '--num-classes is 7, but the data has 3 classes: a, b, c',
        ),
        (['train', '--data-dir', 'DATA', '--model', 'local-dir:gone'], "Model folder 'gone' does not exist"),
        (['train', '--data-dir', 'DATA', '--resume', '--experiment', 'gone'], "There is no run 'runs/gone' to resume"),
        (['train', '--data-dir', 'DATA', '--resume'], '--resume needs to know the run: --config runs/NAME/config.yaml'),
        (['train', '--data-dir', 'DATA', '--model-kwargs', 'wings=2'], 'wings'),
        (['train', '--data-dir', 'DATA', '--model-kwargs', 'num_classes=9'], "'num_classes' of 'hdkd_"),
        (
            ['train', '--data-dir', 'DATA', '--torchcompile', 'foo'],
            "--torchcompile 'foo' is not a backend: choose from",
        ),
        (['train', '--data-dir', 'DATA', '--aug-device'], '--aug-device is for --aug paper, not for --aug timm'),
        (
            ['train', '--data-dir', 'DATA', '--aa', 'rand-m6', '--aug', 'paper'],
            "--aa 'rand-m6' is a part of --aug timm",
        ),
        (
            ['distill', '--data-dir', 'DATA', '--resume'],
            '--resume needs to know the run: --config runs/NAME/config.yaml',
        ),
        (
            ['distill', '--data-dir', 'DATA', '--teacher-kwargs', 'img_size=9'],
            "'img_size' of 'hdkd_teacher' cannot be set",
        ),
        (['train', '--data-dir', 'DATA', '--early-stopping', '3'], '--early-stopping needs a val split'),
        (['train', '--data-dir', 'DATA', '--folds', '3', '--fold', '3'], '--fold must be 0 to 2, got 3'),
        (['train', '--data-dir', 'DATA', '--fold', '1'], '--fold 1 has no effect without --folds'),
        (
            ['eval', 'gone', '--data-dir', 'DATA', '--group-column', 'patient'],
            "--group-column 'patient' has no effect without a table: give the table with --data-csv FILE, or drop",
        ),
        (['train', '--data-dir', 'DATA', '--freeze-stages', '7'], '--freeze-stages must be 0 to 4'),
        (['train', '--data-dir', 'DATA', '--smote', 'gone.json'], "'gone.json' does not exist"),
        (['train', '--data-dir', 'DATA', '--mixup', '0.2', '-b', '3'], '--batch-size must be even with mixup'),
        (['eval', 'gone', '--data-dir', 'DATA'], "Model 'gone' does not exist"),
        (
            ['eval', 'several', '--data-dir', 'DATA'],
            "'several' holds several models: specify one of several/student, several/teacher.",
        ),
        (['predict', 'gone', 'DATA'], "Model 'gone' does not exist"),
        (['predict', 'several', 'DATA'], "'several' holds several models: specify one of several/student, several/tea"),
        (['predict', 'DATA', 'nowhere'], "'nowhere' does not exist"),
        (['predict', 'DATA', 'DATA'], 'Cannot load'),
        (['predict', 'gone', 'DATA', '--out', 'no/where.csv'], "Directory 'no' of --out does not exist"),
        (
            ['predict', 'gone', 'DATA', '--out', 'p.XLSX'],
            "'p.XLSX' of --out cannot be written as .xlsx: use .csv or .jsonl",
        ),
        (
            ['check', 'DATA', '--write-split', 's.jsonl'],
            "'s.jsonl' of --write-split cannot be written as .jsonl: use .csv.",
        ),
        (['demo', '--data-dir', 'nowhere'], "Data folder 'nowhere' does not exist"),
        (['demo', '--img-size', '20'], '--img-size must be 28 or more, got 20'),
        (['demo', '--min-lr', 'nan'], '--min-lr must be 0 or more, got nan'),
        (['convert', 'gone.pth', 'out'], "Checkpoint 'gone.pth' does not exist"),
        (['run', 'gone.py'], "script 'gone.py' does not exist"),
    ],
)
def test_bad_input_is_one_line(args, message, image_folder, tmp_path, monkeypatch, capsys):
    for name, text in BAD_CONFIG.items():
        (tmp_path / f'{name}.yaml').write_text(text)
    for name in ('student', 'teacher'):
        (tmp_path / 'several' / name / 'best').mkdir(parents=True)
        (tmp_path / 'several' / name / 'best' / 'config.json').write_text('{}')
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob('*'))
    args = [arg.replace('DATA', str(image_folder)) for arg in args]
    args = [f'{arg.removeprefix("BAD/")}.yaml' if arg.startswith('BAD/') else arg for arg in args]
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
    env = {**os.environ, 'HDKD_MAX_IMAGE_PIXELS': '2900'}
    process = hdkd('train', *flags(data_dir=image_folder, output=tmp_path), env=env)
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert f"Cannot read image '{path}' (ValueError: 60 x 50 pixels, more than the limit of 2,900" in line


def test_wrong_choice_is_an_error_of_usage(capsys):
    with pytest.raises(SystemExit) as e:
        main(['distill', '--aug', 'wings'])
    assert e.value.code == 2
    assert '--aug' in capsys.readouterr().err


@pytest.mark.parametrize(
    'args', [['convert', 'a', 'b', '--model-kwargs', 'head_dim'], ['run'], ['run', '--debug', 's.py'], ['fly']]
)
def test_errors_of_usage(args, capsys):
    with pytest.raises(SystemExit) as e:
        main(args)
    assert e.value.code == 2
    assert 'error' in capsys.readouterr().err


def test_help_lists_the_commands_in_groups(capsys):
    with pytest.raises(SystemExit) as e:
        main(['--help'])
    assert e.value.code == 0
    sections = dict(re.findall(r'(?m)^([a-z ]+):\n((?:  .*\n)+)', capsys.readouterr().out))
    assert sections.pop('options')
    assert {heading: re.findall(r'(?m)^  ([\w-]+)', lines) for heading, lines in sections.items()} == {
        heading: list(commands) for heading, commands in COMMANDS.items()
    }


def test_help_without_a_command(capsys):
    with pytest.raises(SystemExit) as e:
        main([])
    assert e.value.code == 0
    assert capsys.readouterr().out.startswith('usage: hdkd COMMAND ...')


# modules that are imported by the list of commands, and then by the options of all commands
IMPORTS = """
import sys, hdkd_timm
from io import StringIO
before = set(sys.modules)
from hdkd_timm.cli import main

def imported(*commands):
    for args in commands:
        sys.stdout = sys.stderr = StringIO()
        try:
            main(args)
        except SystemExit:
            pass
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    return sorted(set(sys.modules) - before)

print(imported(['--help'], ['fly'], []))
for name in ('train', 'distill', 'eval', 'predict', 'calibrate', 'explain'):
    imported([name, '--help'], [name, '--batch-size', 'many'])
print(sorted(sys.modules))
"""


@pytest.fixture(scope='module')
def imported():
    """Those modules, of a process."""
    result = run('-c', IMPORTS, modules=TORCH)
    assert result.returncode == 0, result.stderr
    return [ast.literal_eval(line) for line in result.stdout.splitlines()]


def test_help_loads_no_command(imported):
    """Neither the list of commands nor a mistake in their name waits for what commands import."""
    assert [
        name
        for name in imported[0]
        if name.partition('.')[0] in ('sklearn', 'scipy', 'torchvision')
        or (name.startswith('hdkd_timm') and not name.startswith(('hdkd_timm.cli', 'hdkd_timm.utils')))
    ] == []
    assert 'hdkd_timm.cli.main' in imported[0]


def test_options_wait_for_no_numerical_package(imported):
    """The options of a command and a mistake in them: scikit-learn and SciPy's statistics would double the time."""
    assert 'hdkd_timm.cli.explain' in imported[1]
    assert not {'sklearn', 'scipy.optimize', 'scipy.stats', 'matplotlib'} & set(imported[1])


def test_output_that_nobody_reads(monkeypatch, capsys):
    """As in `hdkd ... | head`: no message, and the code of SIGPIPE."""
    reading, writing = os.pipe()
    with os.fdopen(writing, 'w') as stream:
        os.close(reading)
        monkeypatch.setattr(sys, 'stdout', stream)
        assert main(['distill', '--method', 'list']) == 141
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize(
    ('args', 'expected'),
    [
        (
            ['train', '--data-dir', 'x', '--method', 'dkd'],
            '--method dkd (--method is an option of hdkd distill, hdkd demo',
        ),
        (['predict', 'm', 'x', '--fraction=1', '--topk=2'], '--fraction=1 --topk=2\n'),
    ],
)
def test_flags_of_other_commands(args, expected, capsys):
    with pytest.raises(SystemExit):
        main(args)
    assert f'unrecognized arguments: {expected}' in capsys.readouterr().err
