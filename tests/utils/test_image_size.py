"""Image sizes of one number and of two, on the command line, in files and in Python."""

import argparse

import numpy as np
import pytest

from hdkd_timm import DistillConfig, TrainConfig
from hdkd_timm.cli.main import create_parser
from hdkd_timm.evaluation.classifier import InferenceConfig
from hdkd_timm.utils.config import check_settings, from_arguments, to_yaml
from hdkd_timm.utils.image_size import (
    format_image_size,
    join_image_sizes,
    parse_image_size,
    simplify_image_size,
    to_height_width,
)
from hdkd_timm.utils.parsing import parse_yaml


@pytest.mark.parametrize(
    ('text', 'size', 'height_width', 'shown'),
    [
        ('224', 224, (224, 224), '224'),
        ('192x256', (192, 256), (192, 256), '192 x 256'),
        ('64x64', 64, (64, 64), '64'),
    ],
)
def test_sizes(text, size, height_width, shown):
    assert parse_image_size(text) == size
    assert to_height_width(size) == height_width
    assert format_image_size(size) == shown


@pytest.mark.parametrize('text', ['', 'x', '224x', '1x2x3', '-5', '2.5', '192,256'])
def test_what_is_no_size(text):
    with pytest.raises(argparse.ArgumentTypeError, match='expected one number, or height and width'):
        parse_image_size(text)


@pytest.mark.parametrize(
    ('arguments', 'joined'),
    [
        (['--img-size', '192', '256', 'a'], ['--img-size', '192x256', 'a']),
        (['--img-size', '192', 'a', '256'], ['--img-size', '192', 'a', '256']),
        (['a', '--img-size', '192'], ['a', '--img-size', '192']),
        (['-b', '8', '16'], ['-b', '8', '16']),
        (['--', '--img-size', '1', '2'], ['--', '--img-size', '1', '2']),
    ],
)
def test_two_numbers_are_one_argument(arguments, joined):
    assert join_image_sizes(arguments, ['--img-size']) == joined


def test_a_folder_called_like_a_number_is_no_width(tmp_path, monkeypatch):
    (tmp_path / '2023').mkdir()
    monkeypatch.chdir(tmp_path)
    assert join_image_sizes(['--img-size', '64', '2023'], ['--img-size']) == ['--img-size', '64', '2023']


@pytest.mark.parametrize('command', ['train', 'distill', 'cache-logits', 'demo', 'study'])
def test_flags_of_trainings(command):
    required = ['--out', 'x'] if command == 'cache-logits' else []
    args = create_parser(command).parse_args([*required, '--img-size', '96', '64', '--batch-size', '8'])
    assert (args.img_size, args.batch_size) == ((96, 64), 8)
    assert create_parser(command).parse_args([*required, '--img-size', '96']).img_size == 96


def test_flag_before_paths():
    for size, expected in ((['96', '64'], (96, 64)), (['96'], 96)):
        args = create_parser('predict').parse_args(['--img-size', *size, 'MODEL', 'IMAGES'])
        assert (args.checkpoint, args.paths) == ('MODEL', ['IMAGES'])
        assert from_arguments(InferenceConfig, args).img_size == expected


def test_a_wrong_flag_names_what_is_expected(capsys):
    with pytest.raises(SystemExit):
        create_parser('train').parse_args(['--img-size', 'large'])
    assert "--img-size: expected one number, or height and width (192 256), got 'large'" in capsys.readouterr().err


@pytest.mark.parametrize('size', [96, (96, 64)])
def test_files_of_settings(size):
    config = DistillConfig(img_size=size, teacher_img_size=size)
    values = check_settings(parse_yaml(to_yaml(config), 'x'), [DistillConfig], 'x')
    assert DistillConfig(**values) == config
    assert config.input_size == (3, 96, 96 if size == 96 else 64)


def test_a_square_of_two_numbers_is_one():
    assert TrainConfig(img_size=(64, 64)) == TrainConfig(img_size=64) == TrainConfig(img_size=[64, 64])
    assert DistillConfig(teacher_img_size=[64, 96]).teacher_img_size == (64, 96)


@pytest.mark.parametrize('size', [(64,), (64, 64, 64), (64, 64.5), (True, 64), 'ab', 64.0])
def test_wrong_sizes_in_python(size):
    with pytest.raises(ValueError, match='--img-size must be one whole number, or height and width, such as .*, got'):
        TrainConfig(img_size=size)


def test_integers_of_numpy_are_numbers():
    assert simplify_image_size((np.int64(64), np.int32(96)), 'img_size') == (64, 96)


def test_both_numbers_have_the_bounds():
    with pytest.raises(ValueError, match='--img-size must be 28 or more, got 8'):
        TrainConfig(img_size=(224, 8))
    with pytest.raises(ValueError, match='--teacher-img-size must be 28 or more, got 8'):
        DistillConfig(teacher_img_size=(8, 224))
    with pytest.raises(ValueError, match="Setting 'img_size' in x must be 28 or more, got 8"):
        check_settings(dict(img_size=[224, 8]), [TrainConfig], 'x')


@pytest.mark.parametrize('size', [[64], [64, 64, 64], '64x64', [64, 'a'], None, 6.4])
def test_wrong_sizes_in_files(size):
    with pytest.raises(ValueError, match="Setting 'img_size' in x must be"):
        check_settings(dict(img_size=size), [TrainConfig], 'x')
