"""Help and flags of the commands, and which settings win."""

import re
from pathlib import Path

import pytest

from hdkd_timm import DistillConfig, TrainConfig
from hdkd_timm.cli.main import HELP, create_parser, main
from hdkd_timm.training.config import recipe_names

# command -> its flags, which scripts of users rely on: a flag may be added, none may go
FLAGS = dict(re.findall(r'(?m)^([\w-]+): (.*)$', (Path(__file__).parent / 'flags.txt').read_text()))


def show(capsys, command, flag):
    with pytest.raises(SystemExit) as e:
        main([command, flag])
    assert e.value.code == 0
    return capsys.readouterr().out


def find_flags(text):
    return set(re.findall(r'(?m)(?<![-\w\'])--?[a-z][-\w]*', ' '.join(re.findall(r'(?m)^  (-.*?)(?:   .*)?$', text))))


@pytest.mark.parametrize('command', HELP)
def test_help(command, capsys):
    """`--help-all` shows every flag, `--help` some of them and how to see the others."""
    everything, short = (show(capsys, command, flag) for flag in ('--help-all', '--help'))
    for text in (everything, short):
        assert text.startswith(f'usage: hdkd {command} ')
    flags, common = find_flags(everything), find_flags(short)
    assert set(FLAGS[command].split()) <= flags
    assert common <= flags
    hidden = {
        action.dest
        for action in create_parser(command)._actions
        if not common.intersection(action.option_strings) and action.option_strings
    }
    if hidden:
        assert f"'hdkd {command} --help-all' also lists the other {len(hidden)}." in ' '.join(short.split())
        assert len(short.splitlines()) < 90
    else:
        assert 'also lists' not in short


def test_short_help_of_train_shows_what_people_need_first(capsys):
    assert find_flags(show(capsys, 'train', '--help')) >= {
        '--data-dir',
        '--model',
        '--pretrained',
        '--img-size',
        '--epochs',
        '--batch-size',
        '--lr',
        '--device',
        '--experiment',
    }


def test_help_of_choices_and_defaults(capsys):
    text = ' '.join(show(capsys, 'calibrate', '--help').split())
    assert 'split to evaluate on (default: val)' in text


def test_flags_win_over_the_config_file_and_that_over_the_recipe(tmp_path, trained):
    (tmp_path / 'c.yaml').write_text('lr: 1e-4\nbatch-size: 32\nstages: [3]\n')
    args = ['--recipe', 'paper', '--config', str(tmp_path / 'c.yaml'), '--batch-size', '64', '--data-dir', 'd']
    assert main(['distill', *args]) == 0
    assert main(['distill', '--data-dir', 'd']) == 0
    assert (trained[0].lr, trained[0].batch_size, trained[0].stages) == (1e-4, 64, (3,))
    assert (trained[0].teacher_opt, trained[0].aug, trained[0].decay_tokens, trained[0].epochs) == (
        'adam',
        'paper',
        True,
        200,
    )
    assert trained[1] == DistillConfig(data_dir='d')


@pytest.mark.parametrize(('command', 'config_cls'), [('train', TrainConfig), ('distill', DistillConfig)])
def test_recipes_are_those_of_python(command, config_cls, trained):
    for name in recipe_names():
        assert main([command, '--recipe', name, '--data-dir', 'd', '--lr', '3']) == 0
        assert trained.pop() == config_cls.from_recipe(name, data_dir='d', lr=3.0)
