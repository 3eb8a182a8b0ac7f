"""transformers: model folders of every kind load, predict as `hdkd predict` does, and are trained."""

import json

import numpy as np
import pytest
import timm
import torch
from helpers import TINY_STUDENT, write_images
from processes import run as run_python
from timm.models import save_for_hf
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments, pipeline

from hdkd_timm import TrainConfig, train
from hdkd_timm.evaluation.classifier import InferenceConfig
from hdkd_timm.evaluation.predict import predict
from hdkd_timm.models.checkpoint import convert_checkpoint, save_model
from hdkd_timm.models.pretrained import find_folder
from hdkd_timm.sharing.hub import write_hub_folder

SIZES = {k: v for k, v in TINY_STUDENT.items() if k not in ('img_size', 'num_classes')}


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Model folders of every kind, of the classes a, b, c, and images."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('integrations')
    write_images(folder / 'data' / 'train', number=4)
    write_images(folder / 'data' / 'test', number=2, seed=1)
    args = dict(TINY_STUDENT, num_classes=3)
    model = timm.create_model('hdkd_student', **args)
    save_model(model, folder / 'saved', list('abc'), args)
    torch.save(model.state_dict(), folder / 'model.pth')
    convert_checkpoint(folder / 'model.pth', folder / 'converted', label_names=list('abc'), head_dim=8)
    run = train(
        TrainConfig(
            data_dir=str(folder / 'data'),
            img_size=32,
            epochs=1,
            batch_size=4,
            workers=0,
            device='cpu',
            bootstrap=0,
            model_kwargs=SIZES,
            output=str(folder),
            experiment='run',
        )
    )['run']
    write_hub_folder(run, folder / 'pushed', 'us/net')
    return folder


@pytest.mark.parametrize('name', ['saved', 'converted', 'run/best', 'pushed', 'hdkd_student.brain_mri'])
def test_transformers_pipeline(name, folders):
    """Labels and probabilities are those of `hdkd predict`."""
    folder = find_folder(name) or folders / name
    image = str(folders / 'data' / 'test' / 'b' / '0.png')
    found = {each['label']: each['score'] for each in pipeline('image-classification', str(folder), top_k=None)(image)}
    _, (probs,), classes = predict(str(folder), [image], InferenceConfig(workers=0, device='cpu'))
    assert set(found) == set(classes)
    np.testing.assert_allclose([found[label] for label in classes], probs, atol=1e-3)


def test_images_with_any_number_of_labels(tmp_path):
    """The pipeline takes sigmoids, as `hdkd predict` does, since config.json has the problem type."""
    args = dict(TINY_STUDENT, num_classes=3)
    problem = dict(problem_type='multi_label_classification', thresholds=dict(a=0.5, b=0.4, c=0.6))
    save_model(timm.create_model('hdkd_student', **args), tmp_path / 'saved', list('abc'), args, problem=problem)
    write_images(tmp_path / 'data', number=1)
    image = str(tmp_path / 'data' / 'b' / '0.png')
    pipe = pipeline('image-classification', str(tmp_path / 'saved'), top_k=None)
    assert pipe.model.config.problem_type == 'multi_label_classification'
    found = {each['label']: each['score'] for each in pipe(image)}
    _, (probs,), classes = predict(str(tmp_path / 'saved'), [image], InferenceConfig(workers=0, device='cpu'))
    np.testing.assert_allclose([found[label] for label in classes], probs, atol=1e-3)
    assert probs.sum() > 1.2


def test_transformers_trainer(folders, tmp_path):
    halves = AutoModelForImageClassification.from_pretrained(find_folder('hdkd_student.brain_mri'))
    assert halves.dtype == torch.float16  # as the card warns
    model = AutoModelForImageClassification.from_pretrained(folders / 'saved', dtype=torch.float32)
    assert model.dtype == torch.float32
    assert model.config.id2label == {0: 'a', 1: 'b', 2: 'c'}
    before = model.timm_model.head.weight.detach().clone()
    rows = [dict(pixel_values=torch.randn(3, 32, 32), labels=i % 3) for i in range(6)]
    trainer = Trainer(
        model,
        TrainingArguments(
            str(tmp_path), max_steps=1, per_device_train_batch_size=6, report_to=[], use_cpu=True, save_strategy='no'
        ),
        train_dataset=rows,
    )
    assert trainer.train().training_loss > 0
    assert not torch.equal(model.timm_model.head.weight, before)
    other = AutoModelForImageClassification.from_pretrained(
        folders / 'saved', num_labels=2, ignore_mismatched_sizes=True
    )
    assert other(torch.randn(1, 3, 32, 32)).logits.shape == (1, 2)


IMPORT_IS_NEEDED = """
import sys
from transformers import AutoModel

try:
    AutoModel.from_pretrained(sys.argv[1])
except Exception as e:
    print(e)
import hdkd_timm
print(AutoModel.from_pretrained(sys.argv[1]).timm_model.default_cfg['architecture'])
"""


def test_import_is_needed(folders):
    result = run_python('-c', IMPORT_IS_NEEDED, folders / 'saved', fresh=True)
    assert result.returncode == 0, result.stderr
    *failed, loaded = result.stdout.splitlines()
    assert "The model architecture 'hdkd_student' is not supported in your version of timm" in ''.join(failed)
    assert loaded == 'hdkd_student'


def test_folder_of_timm_itself(tmp_path):
    """timm 1.0.31 writes the number of classes twice, for its own networks too: the page says so until that ends."""
    save_for_hf(timm.create_model('resnet18'), tmp_path, safe_serialization=True)
    if 'num_classes' in json.loads((tmp_path / 'config.json').read_text()).get('model_args', {}):
        with pytest.raises(TypeError, match="multiple values for keyword argument 'num_classes'"):
            AutoModelForImageClassification.from_pretrained(tmp_path)
    else:
        assert AutoModelForImageClassification.from_pretrained(tmp_path).num_labels == 1000
