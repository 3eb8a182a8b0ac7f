"""Saved models as classifiers."""

import pytest

from hdkd_timm.evaluation.classifier import InferenceConfig, load_classifier

CONFIG = InferenceConfig(workers=0, device='cpu', batch_size=3)


def test_other_size_and_run_folder(model_folder, tmp_path):
    (tmp_path / 'run').mkdir()
    model_folder.rename(tmp_path / 'run' / 'best')
    classifier = load_classifier(str(tmp_path / 'run'), InferenceConfig(img_size=48, device='cpu'))
    assert classifier.data_config['input_size'] == (3, 48, 48)
    assert tuple(classifier.model.img_size) == (48, 48)


@pytest.mark.parametrize(
    ('name', 'match'),
    [('nowhere', "Model 'nowhere' does not exist"), ('local-dir:gone', "Model folder 'gone' does not exist")],
)
def test_no_such_model(name, match):
    with pytest.raises(FileNotFoundError, match=match):
        load_classifier(name, CONFIG)


def test_damaged_model_folder(model_folder):
    (model_folder / 'model.safetensors').write_bytes(b'nothing')
    with pytest.raises(ValueError, match='Cannot load'):
        load_classifier(str(model_folder), CONFIG)


def test_two_image_sizes():
    with pytest.raises(ValueError, match='--img-size 64 and --model-kwargs img_size=48: give only one of them'):
        InferenceConfig(img_size=64, model_kwargs=dict(img_size=48))
