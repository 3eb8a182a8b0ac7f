"""Images that are no squares, from the training to every command that reads the model."""

import csv
import json

import numpy as np
import pytest
import timm
import torch
import yaml
from helpers import write_images
from PIL import Image
from training_helpers import STUDENT, TEACHER, assert_as_reported, load, save_teacher

from hdkd_timm import DistillConfig, distill
from hdkd_timm.cli import main
from hdkd_timm.evaluation.classifier import InferenceConfig
from hdkd_timm.evaluation.predict import predict


@pytest.fixture(scope='module')
def distilled(tmp_path_factory):
    """A distillation at 48 x 32 pixels from a teacher at 64 x 40, its settings and results."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('sizes')
    write_images(folder / 'data' / 'train', number=6)
    write_images(folder / 'data' / 'test', number=2, seed=1)
    config = DistillConfig(
        data_dir=str(folder / 'data'),
        img_size=(48, 32),
        teacher_img_size=(64, 40),
        epochs=1,
        batch_size=4,
        workers=0,
        device='cpu',
        bootstrap=0,
        model_kwargs=STUDENT,
        teacher_kwargs=TEACHER,
        method=('kd', 'at'),
        cache='ram',
        output=str(folder / 'runs'),
        experiment='run',
    )
    return config, distill(config), folder / 'runs' / 'run'


def test_networks_have_the_sizes(distilled):
    _, metrics, run = distilled
    assert metrics['img_size'] == (48, 32)
    assert json.loads((run / 'metrics.json').read_text())['img_size'] == [48, 32]
    assert load(run / 'student').img_size == (48, 32)
    assert tuple(load(run / 'teacher').pretrained_cfg['input_size'][1:]) == (64, 40)


def test_results_are_those_of_the_saved_models(distilled):
    config, metrics, run = distilled
    for name in ('teacher', 'student'):
        assert_as_reported(run / name, metrics['models'][name], config.data_dir)


def test_settings_are_those_of_the_run(distilled, capsys):
    _, _, run = distilled
    settings = yaml.safe_load((run / 'config.yaml').read_text())
    assert (settings['img_size'], settings['teacher_img_size']) == ([48, 32], [64, 40])
    command = ['distill', '--config', str(run / 'config.yaml'), '--resume', '--no-report']
    assert main(command) == 0
    assert main([*command, '--img-size', '32', '48']) == 1
    assert 'img_size' in capsys.readouterr().err


def test_prediction_is_that_of_the_image_resized(distilled, tmp_path):
    _, _, run = distilled
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (30, 70, 3), dtype=np.uint8)).save(tmp_path / 'a.png')
    model = load(run / 'student').eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    x = transform(Image.open(tmp_path / 'a.png'))
    assert x.shape == (3, 48, 32)
    with torch.inference_mode():
        expected = model(x[None]).softmax(1)
    _, probs, _ = predict(str(run / 'student'), [tmp_path / 'a.png'], InferenceConfig(workers=0, device='cpu'))
    np.testing.assert_allclose(probs, expected, atol=1e-5)


def test_every_command_takes_it(distilled, tmp_path, capsys):
    config, _, run = distilled
    model, images = str(run / 'student'), config.data_dir + '/test'
    common = ['-j', '0', '--device', 'cpu']
    onnx = str(tmp_path / 'a.onnx')
    assert main(['export', model, '--out', onnx, '--images', images]) == 0
    for i, name in enumerate((model, onnx)):
        out = str(tmp_path / f'{i}.csv')
        assert main(['predict', name, images, '--out', out, *common]) == 0
        with open(out) as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 6
    assert main(['explain', model, images + '/a', '--out', str(tmp_path / 'maps'), '--device', 'cpu']) == 0
    assert Image.open(next((tmp_path / 'maps').glob('**/*.png'))).size[0] > 0
    assert main(['report', str(run)]) == 0
    assert '48 x 32' in (run / 'report.html').read_text() or '48 × 32' in (run / 'report.html').read_text()
    assert main(['push', model, 'us/net', '--out', str(tmp_path / 'hub')]) == 0
    assert '`img_size` | 48 32' in ' '.join((tmp_path / 'hub' / 'README.md').read_text().replace('\\', '').split())
    capsys.readouterr()
    assert (
        main(['eval', onnx, '--data-dir', config.data_dir, '--bootstrap', '0', '--img-size', '32', '48', *common]) == 1
    )
    assert 'expects images of 48 x 32 pixels, not --img-size 32 48' in capsys.readouterr().err


def test_another_size_for_a_trained_model(distilled, tmp_path):
    _, _, run = distilled
    onnx = str(tmp_path / 'a.onnx')
    assert main(['export', str(run / 'student'), '--out', onnx, '--img-size', '32', '64']) == 0
    config = InferenceConfig(workers=0, device='cpu', img_size=(32, 64))
    write_images(tmp_path / 'images', number=2)
    expected, found = (predict(name, [tmp_path / 'images'], config)[1] for name in (str(run / 'student'), onnx))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_training_state_of_a_run(distilled):
    """`last.pth` is the state of a run whose config.yaml holds a list."""
    _, _, run = distilled
    command = ['predict', str(run / 'student' / 'last.pth'), str(run.parents[1] / 'data' / 'test'), '--device', 'cpu']
    assert main([*command, '-j', '0', '--out', str(run.parents[1] / 'state.csv')]) == 0


def test_a_teacher_of_one_size_that_is_no_square(distilled, tmp_path, capsys):
    """A trained student as the teacher: it takes the size that it was trained at, and no other."""
    config, _, run = distilled
    common = ['--data-dir', config.data_dir, '--method', 'kd', '--epochs', '1', '-b', '4', '-j', '0', '--device', 'cpu']
    common += ['--bootstrap', '0', '--output', str(tmp_path), '--experiment', 'x', '--no-report', '--img-size', '32']
    common += ['--model-kwargs', *(f'{name}={value!r}' for name, value in STUDENT.items())]
    common += ['--teacher-checkpoint', str(run / 'student')]
    assert main(['distill', *common, '--teacher-img-size', '64', '48']) == 1
    assert 'takes images of 48 x 32 pixels only' in capsys.readouterr().err
    assert main(['distill', *common]) == 0
    assert load(tmp_path / 'x' / 'teacher').img_size == (48, 32)
    assert load(tmp_path / 'x' / 'student').img_size == (32, 32)


def test_smote_and_stored_logits(distilled, tmp_path):
    config, _, run = distilled
    save_teacher(tmp_path / 'given')
    (tmp_path / 'counts.json').write_text(json.dumps(dict(a=8, b=6, c=6)))
    common = ['--data-dir', config.data_dir, '--img-size', '48', '32', '-b', '4', '-j', '0', '--device', 'cpu']
    student = ['--model-kwargs', *(f'{name}={value!r}' for name, value in STUDENT.items())]
    train = ['train', *common, *student, '--epochs', '1', '--bootstrap', '0', '--no-report', '--output', str(tmp_path)]
    assert main([*train, '--smote', str(tmp_path / 'counts.json'), '--experiment', 'smote']) == 0
    logits = str(tmp_path / 'logits.safetensors')
    store = ['cache-logits', *common, *student, '--teacher-checkpoint', str(tmp_path / 'given'), '--views', '1']
    assert main([*store, '--out', logits]) == 0
    learn = ['distill', *common, *student, '--method', 'kd', '--teacher-logits', logits, '--epochs', '1']
    learn += ['--bootstrap', '0', '--no-report', '--output', str(tmp_path), '--experiment', 'stored']
    assert main(learn) == 0
    assert main([*learn, '--img-size', '32', '48', '--experiment', 'other']) == 1
