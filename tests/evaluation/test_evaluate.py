"""Tests of saved models on a split, and the report of a split."""

import csv
import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from helpers import TINY_STUDENT, random_split, randomize_batch_stats, write_images
from PIL import Image

from hdkd_timm import EvalConfig, TrainConfig, evaluate_model, predict, train
from hdkd_timm.cli import main
from hdkd_timm.evaluation import bootstrap as bootstrap_module
from hdkd_timm.evaluation import evaluate as evaluate_module
from hdkd_timm.evaluation.bootstrap import bootstrap_intervals
from hdkd_timm.evaluation.calibrate import calibrate_model
from hdkd_timm.evaluation.classifier import InferenceConfig, load_classifier
from hdkd_timm.evaluation.evaluate import _order_classes, evaluate
from hdkd_timm.evaluation.metrics import METRICS, WeightedImages, classification_metrics
from hdkd_timm.evaluation.predict import find_images, predict_files
from hdkd_timm.evaluation.single_label import single_label_report
from hdkd_timm.layers.reparam import is_fused
from hdkd_timm.models.checkpoint import save_model
from hdkd_timm.utils.signals import Interrupted

CONFIG = InferenceConfig(workers=0, device='cpu', batch_size=3)


@pytest.mark.parametrize(
    ('settings', 'channels_last'),
    [({}, True), (dict(channels_last=False), False), (dict(channels_last=True), True), (dict(tta='hflip'), True)],
)
def test_networks_run_in_their_fastest_form(settings, channels_last, image_folder, tmp_path, monkeypatch):
    """With folded BatchNorms and, on the CPU by default, channels-last: the same probabilities. The classifier's own
    network stays as it is."""
    args = dict(TINY_STUDENT, num_classes=3)
    model = randomize_batch_stats(timm.create_model('hdkd_student', **args))
    for head in model.get_classifier():
        torch.nn.init.normal_(head.weight)
    save_model(model, tmp_path / 'model', list('abc'), args)
    config = replace(CONFIG, **settings)
    classifier = load_classifier(str(tmp_path / 'model'), replace(config, channels_last=None))
    before = {name: value.clone() for name, value in classifier.model.state_dict().items()}
    files = find_images([str(image_folder / 'test')])
    seen = []

    def run(model, *args, **kwargs):
        network = getattr(model, 'model', model)  # within test-time augmentation
        convs = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
        wide = [conv for conv in convs if conv.kernel_size != (1, 1) and conv.weight.shape[1] > 1]
        seen.append((is_fused(network), {conv.weight.is_contiguous() for conv in wide}, args[3]))
        return evaluate(model, *args, **kwargs)

    monkeypatch.setattr(evaluate_module, 'evaluate', run)
    _, probs, _ = predict_files(classifier, files, config)
    assert seen == [(True, {not channels_last}, channels_last)]
    with monkeypatch.context() as patch:
        patch.setattr(evaluate_module, '_fastest_form', lambda classifier, channels_last: (classifier.model, False))
        _, expected, _ = predict_files(classifier, files, config)
    assert seen[1][0] is False
    assert expected.std() > 0.01
    np.testing.assert_allclose(probs, expected, atol=1e-5)
    assert classifier.model.state_dict().keys() == before.keys()
    for name, value in classifier.model.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.is_contiguous()


def test_model_without_label_names(tmp_path, image_folder):
    args = dict(TINY_STUDENT, num_classes=3)
    save_model(timm.create_model('hdkd_student', **args), tmp_path / 'model', model_args=args)
    assert predict(str(tmp_path / 'model'), [str(image_folder / 'test')], CONFIG)[2] == ['0', '1', '2']
    config = EvalConfig(data_dir=str(image_folder), workers=0, bootstrap=0, device='cpu')
    report, _ = evaluate_model(str(tmp_path / 'model'), config)
    assert report['classes'] == ['a', 'b', 'c']
    write_images(image_folder / 'test', classes=['d'], number=1)
    with pytest.raises(ValueError, match='has 3 classes without names, the data has 4'):
        evaluate_model(str(tmp_path / 'model'), config)


BRIGHTNESS = dict(dark=40, Middle=120, white=200)  # in code-point order Middle, dark, white


@pytest.fixture
def bright_folder(tmp_path):
    """Images of three classes that differ only in brightness, and whose names have two orders."""
    for name, brightness in BRIGHTNESS.items():
        (tmp_path / 'bright' / 'test' / name).mkdir(parents=True)
        for i in range(4):
            Image.new('RGB', (32, 32), (brightness + i,) * 3).save(tmp_path / 'bright' / 'test' / name / f'{i}.png')
    return tmp_path / 'bright'


def save_right_model(folder, order, label_names=None):
    """A model that is always right if its classes have this order: it predicts the nearest brightness."""
    model = timm.create_model('hdkd_teacher', dims=(4, 4, 4), depths=(1, 1, 1), num_classes=3, img_size=32)

    class Nearest(type(model)):
        def forward(self, x):
            grey = x.mean(dim=(1, 2, 3)) * 0.2256 + 0.449
            centres = torch.tensor([BRIGHTNESS[name] / 255 for name in order])
            return -100 * (grey[:, None] - centres).abs()

    save_model(model, folder, label_names, dict(dims=(4, 4, 4), depths=(1, 1, 1), img_size=32))
    return Nearest


@pytest.mark.parametrize(('order', 'right'), [(['Middle', 'dark', 'white'], 1.0), (['dark', 'Middle', 'white'], 1 / 3)])
def test_order_of_classes_without_names(order, right, bright_folder, tmp_path, monkeypatch, caplog):
    """The order of torchvision's ImageFolder, by code point, is assumed, and the accuracy of both orders is logged."""
    nearest = save_right_model(tmp_path / 'model', order)
    real = load_classifier

    def load(*args):
        classifier = real(*args)
        classifier.model.__class__ = nearest
        return classifier

    for module in ('evaluation.evaluate', 'cli.predict'):
        monkeypatch.setattr(f'hdkd_timm.{module}.load_classifier', load)
    config = EvalConfig(data_dir=str(bright_folder), workers=0, bootstrap=0, device='cpu')
    report, images = evaluate_model(str(tmp_path / 'model'), config)
    assert report['classes'] == ['Middle', 'dark', 'white']
    assert report['classes_guessed'] is True
    assert report['accuracy'] == pytest.approx(right)
    other = 4 / 3 - right
    assert f'sorted as text like torchvision.ImageFolder (Middle, dark, white), accuracy {right:.1%}' in caplog.text
    assert f'of the data (dark, Middle, white), accuracy {other:.1%}' in caplog.text
    caplog.clear()
    report, _ = evaluate_model(str(tmp_path / 'model'), replace(config, label_names=tuple(order)))
    assert report['accuracy'] == 1
    assert 'classes_guessed' not in report
    assert 'sorted as text' not in caplog.text
    with pytest.raises(ValueError, match='with a guessed class order it cannot be calibrated'):
        calibrate_model(str(tmp_path / 'model'), replace(config, split='test'))
    with pytest.raises(ValueError, match='2 label names for the 3 classes'):
        evaluate_model(str(tmp_path / 'model'), replace(config, label_names=('a', 'b')))
    assert (
        main(
            [
                'predict',
                str(tmp_path / 'model'),
                str(bright_folder),
                '-j',
                '0',
                '--out',
                str(tmp_path / 'p.csv'),
                '--label-names',
                *order,
            ]
        )
        == 0
    )
    rows = list(csv.DictReader((tmp_path / 'p.csv').open()))
    assert all(row['label'] in row['path'] for row in rows)


def test_names_of_a_model_win(model_folder, image_folder, caplog):
    config = EvalConfig(data_dir=str(image_folder), workers=0, bootstrap=0, device='cpu', label_names=('a', 'b', 'c'))
    assert 'classes_guessed' not in evaluate_model(str(model_folder), config)[0]
    with pytest.raises(
        ValueError, match='has its own class names, a, b, c, which differ from the given ones, c, b, a: omit'
    ):
        evaluate_model(str(model_folder), replace(config, label_names=('c', 'b', 'a')))


def test_order_that_a_dataset_gives_is_its_own(model_folder, tmp_path):
    """An order that is not sorted, such as that of a class map, is kept."""
    classifier = replace(load_classifier(str(model_folder), CONFIG), classes=None)
    assert _order_classes(classifier, ['b', 'a', 'c'], 'm') == ['b', 'a', 'c']
    assert _order_classes(classifier, ['a', 'B', 'c'], 'm') == ['B', 'a', 'c']
    assert _order_classes(classifier, ['2', '3', '10'], 'm') == ['10', '2', '3']


def test_eval_of_some_of_the_classes(model_folder, tmp_path):
    """Class folders without splits; one class of the model has no images."""
    write_images(tmp_path / 'new', classes=['a', 'c'], number=3)
    report, images = evaluate_model(
        str(model_folder), EvalConfig(data_dir=str(tmp_path / 'new'), workers=0, bootstrap=10, device='cpu')
    )
    assert images['targets'].tolist() == [0, 0, 0, 2, 2, 2]
    assert report['per_class']['b']['support'] == 0
    np.testing.assert_allclose(images['probs'], predict(str(model_folder), images['names'], CONFIG)[1], atol=1e-5)
    assert report['accuracy'] == np.mean(images['probs'].argmax(axis=1) == images['targets'])
    write_images(tmp_path / 'new', classes=['d'], number=1)
    with pytest.raises(ValueError, match="Class 'd' of the data is not a class of model"):
        evaluate_model(str(model_folder), EvalConfig(data_dir=str(tmp_path / 'new'), workers=0, device='cpu'))


@pytest.mark.parametrize(
    ('present', 'predicted', 'words'),
    [
        ('ac', 'a', "the class b of model 'MODEL', which the means leave out."),
        (
            'ac',
            'b',
            "the class b of model 'MODEL', which the means leave out; macro F1 alone counts those that are"
            ' predicted (b), as 0.',
        ),
        (
            'a',
            'a',
            "the classes b, c of model 'MODEL', which the means leave out. With images of one class,"
            " macro AUROC and Cohen's kappa cannot be computed.",
        ),
        ('abc', 'a', None),
    ],
)
def test_classes_without_images_are_told(present, predicted, words, tmp_path, caplog, capsys):
    """Scores that are undefined are not shown as 0, and no mean is said to be over classes that it leaves out."""
    write_images(tmp_path / 'new', classes=list(present), number=3)
    args = dict(TINY_STUDENT, num_classes=3)
    model = timm.create_model('hdkd_student', **args)
    for head in model.get_classifier():
        torch.nn.init.zeros_(head.weight)
        head.bias.data = 9.0 * torch.tensor([label == predicted for label in 'abc'])
    save_model(model, tmp_path / 'model', list('abc'), args)
    assert main(['eval', str(tmp_path / 'model'), '--data-dir', str(tmp_path / 'new'), '-j', '0']) == 0
    told = [record.message for record in caplog.records if 'No image has' in record.message]
    assert told == ([f'No image has {words}'.replace('MODEL', str(tmp_path / 'model'))] if words else [])
    lines = {line.split('  ')[0]: line[24:].split() for line in capsys.readouterr().out.splitlines()}
    for label in 'abc':
        *scores, support = lines[label][:4]
        assert support == str(3 * (label in present))
        assert (scores == ['–'] * 3) == (label not in present and label != predicted)
        assert (scores[1] == '–') == (label not in present)
    if present == 'a':
        assert lines['macro AUROC'] == lines["Cohen's kappa"] == ['–']
    assert 'nan' not in str(lines)


def test_eval_command(model_folder, image_folder, tmp_path, capsys):
    args = [
        'eval',
        str(model_folder),
        '--data-dir',
        str(image_folder),
        '-j',
        '0',
        '--split',
        'train',
        '--bootstrap',
        '5',
    ]
    assert main([*args, '--out-dir', str(tmp_path / 'report')]) == 0
    text = capsys.readouterr().out
    assert "24 images of split 'train'" in text
    assert 'balanced accuracy' in text
    assert '95 % interval' in text
    assert sorted(p.name for p in (tmp_path / 'report').iterdir()) == ['metrics.json', 'predictions.csv']
    assert main([*args, '--out-dir', str(tmp_path / 'report')]) == 1
    assert 'nothing is overwritten' in capsys.readouterr().err


def test_eval_on_a_run_s_own_val_images(image_folder, tmp_path):
    """The config of a run determines the split that it drew: seed and fraction."""
    model_kwargs = {k: v for k, v in TINY_STUDENT.items() if k not in ('img_size', 'num_classes')}
    run = train(
        TrainConfig(
            data_dir=str(image_folder),
            img_size=32,
            model_kwargs=model_kwargs,
            epochs=1,
            batch_size=4,
            workers=0,
            device='cpu',
            bootstrap=0,
            seed=7,
            val_fraction=0.25,
            output=str(tmp_path / 'runs'),
            experiment='run',
        )
    )['run']
    assert (
        main(['eval', run, '--config', f'{run}/config.yaml', '--split', 'val', '--out-dir', str(tmp_path / 'report')])
        == 0
    )

    def column(path, name, **where):
        with open(path) as file:
            return [row[name] for row in csv.DictReader(file) if all(row[k] == v for k, v in where.items())]

    names = column(tmp_path / 'report' / 'predictions.csv', 'path')
    assert names == column(f'{run}/images.csv', 'path', split='val')
    assert len(names) == 6
    report = json.loads((tmp_path / 'report' / 'metrics.json').read_text())
    assert report['log_loss'] == pytest.approx(float(column(f'{run}/summary.csv', 'val_log_loss')[0]), rel=1e-4)


def test_full_report():
    probs, targets = random_split(3, number=50)
    report = single_label_report(probs, targets, ['a', 'b', 'c'], resamples=20, seed=1)
    assert set(report) == {'images', *METRICS, 'intervals_95', 'per_class', 'confusion_matrix'}
    assert report['images'] == 50
    assert {name: report[name] for name in METRICS} == classification_metrics(probs, targets)
    assert report['intervals_95'] == bootstrap_intervals(probs, targets, resamples=20, seed=1)
    assert list(report['per_class']['a']) == ['precision', 'recall', 'f1', 'support', 'precision_95', 'recall_95']
    groups = np.arange(50) // 2
    grouped = single_label_report(probs, targets, ['a', 'b', 'c'], groups, resamples=20, seed=1)
    assert grouped['intervals_95'] == bootstrap_intervals(probs, targets, groups, 20, seed=1)
    assert list(report['per_class']) == ['a', 'b', 'c']
    matrix = np.zeros((3, 3), int)
    np.add.at(matrix, (targets, probs.argmax(axis=1)), 1)
    assert report['confusion_matrix'] == matrix.tolist()
    assert 'intervals_95' not in single_label_report(probs, targets, ['a', 'b', 'c'], resamples=0)


def test_a_final_test_stops_in_its_bootstrap_and_goes_on(tmp_path, monkeypatch):
    """A signal during the final test raises Interrupted; the resumed run has the results of an uninterrupted one."""
    write_images(tmp_path / 'data' / 'train')
    write_images(tmp_path / 'data' / 'test', number=4, seed=1)
    config = TrainConfig(
        data_dir=str(tmp_path / 'data'),
        img_size=32,
        epochs=1,
        batch_size=6,
        workers=0,
        device='cpu',
        bootstrap=64,
        model_kwargs={k: v for k, v in TINY_STUDENT.items() if k not in ('img_size', 'num_classes')},
        output=str(tmp_path / 'runs'),
        experiment='run',
    )
    whole = train(replace(config, experiment='whole'))['models']['hdkd_student']
    monkeypatch.setattr(bootstrap_module, 'CHUNK_SIZE', 1)
    parts = []
    original = WeightedImages.metrics

    def interrupted(self, weights):
        if weights.shape[1] > 1:
            parts.append(weights.shape[1])
            if len(parts) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
        return original(self, weights)

    with monkeypatch.context() as patch:
        patch.setattr(WeightedImages, 'metrics', interrupted)
        with pytest.raises(Interrupted):
            train(config)
    assert parts == [16, 16]  # of 64 draws
    assert not (tmp_path / 'runs' / 'run' / 'metrics.json').exists()
    resumed = train(config, resume=True)['models']['hdkd_student']
    assert resumed['test'] == whole['test']
