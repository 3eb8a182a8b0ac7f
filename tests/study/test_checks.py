"""What all runs of a study share is compared: images, teachers, settings."""

import dataclasses
import os
import shutil

import pytest
import torch
import yaml
from helpers import write_run
from training_helpers import save_teacher

from hdkd_timm.analysis.report import write_report
from hdkd_timm.data.datasets import create_datasets
from hdkd_timm.data.samples import list_images
from hdkd_timm.models.checkpoint import load_model, save_model
from hdkd_timm.study.checks import check_held_out, check_images, check_teachers, is_finished, update_paths
from hdkd_timm.study.config import StudyConfig, list_runs
from hdkd_timm.utils.config import read_yaml, to_yaml
from hdkd_timm.utils.csv_files import write_rows


def start_runs(config, folder):
    """The runs of a study as far as they are compared: settings, images and given teachers. Returns their settings."""
    configs = [run.config for run in list_runs(config, folder)]
    for of_run in configs:
        run = folder / 'runs' / of_run.experiment
        run.mkdir(parents=True)
        (run / 'config.yaml').write_text(to_yaml(of_run))
        write_rows(list_images(*create_datasets(of_run)), run / 'images.csv')
        for name in of_run.teacher_checkpoint or ():
            save_model(load_model(name)[0], run / 'teacher' / 'best', list('abc'), replace=True)
    return configs


def test_same_images(settings, image_folder, tmp_path):
    """Of the started runs and now; without runs to train, of the runs: the images may be elsewhere."""
    configs = start_runs(StudyConfig(**settings, methods=('none', 'kd'), seeds=(1, 2)), tmp_path / 'study')
    check_images(configs, has_open=True)
    added = image_folder / 'test' / 'a' / 'new.png'
    shutil.copy(next((image_folder / 'train' / 'a').iterdir()), added)
    with pytest.raises(ValueError, match="run '.*none-1' are not those now .*a/new.png' of split test is not in both"):
        check_images(configs, has_open=True)
    added.rename(image_folder / 'train' / 'a' / 'new.png')
    with pytest.raises(ValueError, match='of split train is not in both.*restore them, or choose another --experiment'):
        check_images(configs, has_open=True)
    check_images(configs, has_open=False)
    shutil.rmtree(tmp_path / 'study' / 'runs' / 'kd-2')
    start_runs(StudyConfig(**settings, methods=('kd',), seeds=(2,)), tmp_path / 'study')
    with pytest.raises(ValueError, match="run '.*kd-2' are not those in run '.*none-1' .*new.png' of split train"):
        check_images(configs, has_open=False)


def test_changed_contents(settings, image_folder, tmp_path):
    configs = start_runs(StudyConfig(**settings, methods=('none',), seeds=(1,)), tmp_path / 'study')
    images = sorted((image_folder / 'test' / 'b').iterdir())
    shutil.copy(images[1], images[0])
    with pytest.raises(ValueError, match=rf"'{images[0]}' of split \w+ differs in size or SHA-256 \(1 of"):
        check_images(configs, has_open=True)


def test_same_test_images_at_all_fractions(settings, image_folder, tmp_path):
    few = StudyConfig(**settings, methods=('none',), seeds=(1,), train_fractions=(0.5,))
    configs = start_runs(few, tmp_path / 'study')
    shutil.copy(next((image_folder / 'train' / 'a').iterdir()), image_folder / 'test' / 'a' / 'new.png')
    all_images = dataclasses.replace(few, train_fractions=(1.0,))
    configs += start_runs(all_images, tmp_path / 'study')
    with pytest.raises(ValueError, match="run '.*none-1-1' are not those in run '.*none-0.5-1'.*of split test"):
        check_images(configs, has_open=False)


def test_held_out_images_that_would_differ(settings, image_folder, tmp_path):
    settings.update(methods=('none',), val_fraction=0.25, train_fractions=(0.5, 1.0))
    check_held_out(StudyConfig(**settings))  # results are those on test
    shutil.rmtree(image_folder / 'test')
    with pytest.raises(ValueError, match='--train-fractions with --val-fraction needs a test split'):
        check_held_out(StudyConfig(**settings))
    with pytest.raises(ValueError, match='--train-fractions with --folds needs a test split'):
        check_held_out(StudyConfig(**dict(settings, folds=3)))
    check_held_out(StudyConfig(**dict(settings, train_fractions=(0.5,))))


def test_same_teacher(settings, tmp_path):
    configs = start_runs(StudyConfig(**settings, methods=('kd', 'none'), seeds=(1, 2)), tmp_path / 'study')
    check_teachers(configs, has_open=True)
    shutil.rmtree(tmp_path / 'given')
    torch.manual_seed(1)
    save_teacher(tmp_path / 'given')  # retrained
    with pytest.raises(ValueError, match="teacher '.*given' of run '.*kd-1' is not the one now.*the same teacher"):
        check_teachers(configs, has_open=True)
    check_teachers(configs, has_open=False)
    check_teachers(configs, has_open=True, untrained=[str(tmp_path / 'given')])
    shutil.rmtree(tmp_path / 'study' / 'runs' / 'kd-2')
    start_runs(StudyConfig(**settings, methods=('kd',), seeds=(2,)), tmp_path / 'study')
    with pytest.raises(ValueError, match="of run '.*kd-2' is not the one in run '.*kd-1'"):
        check_teachers(configs, has_open=False)


def test_paths_that_are_spelled_otherwise(settings, image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = StudyConfig(**settings, methods=('kd',), seeds=(1,))
    start_runs(given, tmp_path / 'study')
    other = dict(settings, data_dir=os.path.relpath(image_folder) + '/', teacher_checkpoint='given/')
    (run,) = list_runs(StudyConfig(**other, methods=('kd',), seeds=(1,)), tmp_path / 'study')
    assert not is_finished(run.config, tmp_path / 'study')
    update_paths(run.config)  # as the run itself compares them
    assert read_yaml(tmp_path / 'study' / 'runs' / 'kd-1' / 'config.yaml') == yaml.safe_load(to_yaml(run.config))
    (run,) = list_runs(StudyConfig(**dict(other, lr=0.5), methods=('kd',), seeds=(1,)), tmp_path / 'study')
    with pytest.raises(
        ValueError, match='started with lr .*: repeat the settings of the study, .*study/config.yaml, or'
    ):
        is_finished(run.config, tmp_path / 'study')


def test_a_study_that_was_moved(settings, tmp_path):
    """Its own teacher has moved with it."""
    settings.update(teacher_checkpoint=None)
    config = StudyConfig(**settings, methods=('kd',), seeds=(1,))
    save_teacher(tmp_path / 'old' / 'teacher' / 'best')
    start_runs(config, tmp_path / 'old')
    moved = (tmp_path / 'old').rename(tmp_path / 'new')
    (run,) = list_runs(config, moved)
    assert not is_finished(run.config, moved)
    update_paths(run.config)
    saved = read_yaml(moved / 'runs' / 'kd-1' / 'config.yaml')
    assert saved['teacher_checkpoint'] == [str(moved / 'teacher' / 'best')]
    check_teachers([run.config], has_open=True)


def test_a_report_of_a_study_is_refused(settings, tmp_path):
    write_run(tmp_path / 'study' / 'teacher', ['a', 'b'])
    (tmp_path / 'study' / 'config.yaml').write_text(to_yaml(StudyConfig(**settings, methods=('kd',))))
    with pytest.raises(ValueError, match="study' is a study, whose page is '.*study.html'"):
        write_report([tmp_path / 'study'])
