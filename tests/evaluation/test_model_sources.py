"""What is known of models from which others are made."""

import shutil

import pytest
from helpers import create_student, write_images

from hdkd_timm.evaluation.model_sources import (
    check_changeable,
    check_unseen,
    find_run,
    same_images,
    warn_of_calibration,
)
from hdkd_timm.models.checkpoint import save_model


@pytest.fixture
def run(tmp_path):
    """A run with two networks, as far as its files are read here."""
    write_images(tmp_path / 'data', classes=('a',), number=3)
    folder = tmp_path / 'runs' / 'r1'
    save_model(create_student(), folder / 'student' / 'best')
    (folder / 'config.yaml').write_text('epochs: 1\n')
    rows = [f'{tmp_path}/data/a/{i}.png,a,{split}' for i, split in enumerate(('train', 'train', 'val'))]
    (folder / 'images.csv').write_text('\n'.join(['path,label,split', *rows]) + '\n')
    (folder / 'student' / 'last.pth').write_bytes(b'')
    return folder


@pytest.mark.parametrize('name', ['r1', 'r1/student', 'r1/student/best', 'r1/student/last.pth'])
@pytest.mark.parametrize('prefix', ['', 'local-dir:'])
def test_the_run_of_a_model(run, name, prefix, monkeypatch):
    monkeypatch.chdir(run.parent)
    assert find_run(f'{prefix}{name}') == run.resolve()


def test_models_without_a_run(tmp_path, run):
    shutil.copytree(run / 'student' / 'best', tmp_path / 'model')
    assert find_run(tmp_path / 'model') is None
    assert find_run('hdkd_student.derm') is None


def test_training_images_are_found_however_they_are_written(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'link').symlink_to(tmp_path / 'data')
    for files in ([f'{tmp_path}/data/a/1.png'], ['data/a/1.png'], ['link/a/1.png'], ['data/../data/a/1.png']):
        with pytest.raises(
            ValueError, match=r"^1 of the 1 images of split 'val' are training images of 'runs/r1', such"
        ):
            check_unseen(['runs/r1'], files, 'val')
    check_unseen(['runs/r1', 'hdkd_student.derm'], ['data/a/2.png'], 'val')
    # names of images in datasets that are not files say nothing
    assert same_images(['0', '1'], ['0', '1']) == set()


def test_models_that_cannot_be_changed(tmp_path, run, monkeypatch):
    (tmp_path / 'model.onnx').write_bytes(b'')
    with pytest.raises(ValueError, match=r"model.onnx' is an exported file: give the model that it was made from"):
        check_changeable(['hdkd_student.derm', tmp_path / 'model.onnx'])
    monkeypatch.chdir(run)
    for names in (['x', 'x'], ['student/best', run / 'student' / 'best']):
        with pytest.raises(ValueError, match=f"Model '{names[0]}' is listed twice"):
            check_changeable(names)
    check_changeable(['hdkd_student.derm', 'hdkd_student.ham10k', 'student/best', 'student/last.pth'])


def test_calibrated_models_are_told(run, caplog):
    warn_of_calibration([run / 'student', 'hdkd_student.derm'])
    assert not caplog.text
    (run / 'student' / 'best' / 'calibration.json').write_text('{}')
    warn_of_calibration([run / 'student'])
    assert f"'{run / 'student'}' is calibrated, but its temperature does not fit the new model" in caplog.text
