"""Evaluation of a saved model with settings of its run."""

import re

import pytest
import timm
import torch
from helpers import TINY_STUDENT, TINY_TEACHER

from hdkd_timm.cli import main
from hdkd_timm.cli.eval import add_arguments
from hdkd_timm.cli.parser import CommandParser, read_settings
from hdkd_timm.evaluation.classifier import load_classifier
from hdkd_timm.evaluation.evaluate import EvalConfig
from hdkd_timm.models.checkpoint import save_model


def test_eval_with_the_settings_of_a_run(run_of_a_student, capsys):
    assert main(['eval', str(run_of_a_student), '--config', str(run_of_a_student / 'config.yaml')]) == 0
    printed = capsys.readouterr().out
    assert "12 images of split 'test'" in printed
    assert re.search(r'(?m)^macro AUROC +0\.\d{4}', printed)
    (run_of_a_student / 'other.yaml').write_text('wings: 2')
    assert main(['eval', str(run_of_a_student), '--config', str(run_of_a_student / 'other.yaml')]) == 1
    assert "Unknown setting 'wings' in" in capsys.readouterr().err


@pytest.mark.parametrize('weights', ['', 'best/model.safetensors'])
def test_the_teacher_of_a_run_is_not_built_like_its_student(tmp_path, image_folder, weights, capsys):
    """The architecture in a run's settings is for checkpoint files; a flag reaches model folders too."""
    args = dict(TINY_TEACHER, num_classes=3)
    save_model(timm.create_model('hdkd_teacher', **args), tmp_path / 'teacher' / 'best', list('abc'), args)
    config = tmp_path / 'config.yaml'
    config.write_text(f'data_dir: {image_folder}\nmodel: hdkd_student\nmodel_kwargs: {{embed_dim: 16}}\nworkers: 0\n')
    command = ['eval', str(tmp_path / 'teacher' / weights), '--config', str(config), '--bootstrap', '0']
    assert main(command) == 0
    assert main([*command, '--model-kwargs', 'embed_dim=16']) == 1
    assert "unexpected keyword argument 'embed_dim'" in capsys.readouterr().err


def test_the_settings_of_a_run_choose_the_architecture_of_a_checkpoint_file(tmp_path, image_folder, capsys):
    args = dict(TINY_STUDENT, num_classes=3)
    torch.save(timm.create_model('hdkd_student', **args).state_dict(), tmp_path / 'a.pth')
    config = tmp_path / 'config.yaml'
    config.write_text(f'data_dir: {image_folder}\nmodel: hdkd_teacher\nworkers: 0\n')
    assert main(['eval', str(tmp_path / 'a.pth'), '--config', str(config)]) == 1
    assert "not 'hdkd_teacher'" in capsys.readouterr().err


def test_size_of_the_teacher_s_images_is_its_own(tmp_path, image_folder, capsys):
    """The settings of a run have the size of its student; a file that is not a run's may choose another."""
    args = dict(TINY_TEACHER, num_classes=3)
    save_model(timm.create_model('hdkd_teacher', **args), tmp_path / 'teacher', list('abc'), args, (3, 48, 48))
    for given, size in (('epochs: 3\nteacher_img_size: 48\n', 48), ('', 32)):
        config = tmp_path / 'config.yaml'
        config.write_text(f'data_dir: {image_folder}\nimg_size: 32\nworkers: 0\n{given}')
        parser = CommandParser('eval', 'test')
        add_arguments(parser)
        parsed = parser.parse_args([str(tmp_path / 'teacher'), '--config', str(config)])
        settings = read_settings(EvalConfig, parsed, takes_run=True)
        classifier = load_classifier(tmp_path / 'teacher', settings)
        assert tuple(classifier.data_config['input_size']) == (3, size, size)
