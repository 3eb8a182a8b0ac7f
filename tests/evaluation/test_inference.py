import csv
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from helpers import TINY_STUDENT, write_images
from PIL import Image

from hdkd_timm import TrainConfig, evaluate_model, predict, train
from hdkd_timm.cli import main
from hdkd_timm.evaluation.inference import (
    EvalConfig,
    InferenceConfig,
    _name_classes,
    calibrate_model,
    drop_bad_images,
    find_images,
    load_classifier,
)
from hdkd_timm.models.checkpoint import save_model

CONFIG = InferenceConfig(workers=0, device='cpu', batch_size=3)


@pytest.fixture
def model_folder(tmp_path):
    """A saved student of the classes a, b, c."""
    args = dict(TINY_STUDENT, num_classes=3)
    save_model(timm.create_model('hdkd_student', **args), tmp_path / 'model', list('abc'), args)
    return tmp_path / 'model'


def expected_probs(model_folder, files, mode='RGB'):
    model = timm.create_model(f'local-dir:{model_folder}', pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    with torch.no_grad():
        return torch.stack([
            model(transform(Image.open(f).convert(mode))[None]).softmax(dim=1)[0] for f in files]).numpy()


def test_predict_as_timm_would_by_hand(model_folder, image_folder):
    files, probs, classes = predict(str(model_folder), [str(image_folder / 'test')], CONFIG)
    assert len(files) == 12
    assert classes == ['a', 'b', 'c']
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    np.testing.assert_allclose(probs, expected_probs(model_folder, files), atol=1e-5)


def test_grey_model(tmp_path, image_folder):
    args = dict(TINY_STUDENT, num_classes=3, in_chans=1)
    save_model(timm.create_model('hdkd_student', **args), tmp_path / 'grey', list('abc'), args)
    files, probs, _ = predict(str(tmp_path / 'grey'), [str(image_folder / 'test')], CONFIG)
    expected = expected_probs(tmp_path / 'grey', files, 'L')
    np.testing.assert_allclose(probs, expected, atol=1e-5)
    config = EvalConfig(data_dir=str(image_folder), workers=0, device='cpu', bootstrap=0)
    np.testing.assert_allclose(evaluate_model(str(tmp_path / 'grey'), config)[1]['probs'], expected, atol=1e-5)
    with pytest.raises(ValueError, match='takes 1 channels, not --in-chans 3'):
        evaluate_model(str(tmp_path / 'grey'), replace(config, in_chans=3))


def test_predict_command(model_folder, image_folder, tmp_path, capsys):
    one = image_folder / 'test' / 'b' / '1.png'
    out = tmp_path / 'out.csv'
    args = ['predict', str(model_folder), str(one), str(image_folder / 'test' / 'c'), '--out', str(out), '-j', '0']
    assert main(args) == 0
    assert '5 images labelled' in capsys.readouterr().out
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ['path', 'label', 'prob_a', 'prob_b', 'prob_c']
    assert [row['path'] for row in rows] == [
        str(one), *(str(image_folder / 'test' / 'c' / f'{i}.png') for i in range(4))]
    probs = np.array([[float(row[f'prob_{k}']) for k in 'abc'] for row in rows])
    assert [row['label'] for row in rows] == ['abc'[k] for k in probs.argmax(axis=1)]
    assert main(args) == 1
    assert 'nothing is overwritten' in capsys.readouterr().err


def test_model_without_label_names(tmp_path, image_folder):
    args = dict(TINY_STUDENT, num_classes=3)
    save_model(timm.create_model('hdkd_student', **args), tmp_path / 'model', model_args=args)
    assert predict(str(tmp_path / 'model'), [str(image_folder / 'test')], CONFIG)[2] == ['0', '1', '2']
    config = EvalConfig(data_dir=str(image_folder), workers=0, bootstrap=0, device='cpu')
    report, _ = evaluate_model(str(tmp_path / 'model'), config)
    assert report['classes'] == ['a', 'b', 'c']
    write_images(image_folder / 'test', classes=['d'], number=1)
    with pytest.raises(ValueError, match='has 3 classes without names, the data 4'):
        evaluate_model(str(tmp_path / 'model'), config)


BRIGHTNESS = dict(dark=40, Middle=120, white=200)  # in code-point order Middle, dark, white


@pytest.fixture
def bright_folder(tmp_path):
    """Images of three classes that differ in brightness alone, whose names have two orders."""
    for name, brightness in BRIGHTNESS.items():
        (tmp_path / 'bright' / 'test' / name).mkdir(parents=True)
        for i in range(4):
            Image.new('RGB', (32, 32), (brightness + i,) * 3).save(tmp_path / 'bright' / 'test' / name / f'{i}.png')
    return tmp_path / 'bright'


def save_right_model(folder, order, label_names=None):
    """A model that is always right where its classes have this order: each is the nearest brightness."""
    model = timm.create_model('hdkd_teacher', dims=(4, 4, 4), depths=(1, 1, 1), num_classes=3, img_size=32)

    class Nearest(type(model)):
        def forward(self, x):
            grey = x.mean(dim=(1, 2, 3)) * 0.2256 + 0.449
            centres = torch.tensor([BRIGHTNESS[name] / 255 for name in order])
            return -100 * (grey[:, None] - centres).abs()

    save_model(model, folder, label_names, dict(dims=(4, 4, 4), depths=(1, 1, 1), img_size=32))
    return Nearest


@pytest.mark.parametrize(('order', 'right'), [
    (['Middle', 'dark', 'white'], 1.), (['dark', 'Middle', 'white'], 1 / 3)])
def test_order_of_classes_without_names(order, right, bright_folder, tmp_path, monkeypatch, caplog):
    """torchvision's ImageFolder sorts by code point: that is taken, said, and both figures told."""
    nearest = save_right_model(tmp_path / 'model', order)
    real = load_classifier

    def load(*args):
        classifier = real(*args)
        classifier.model.__class__ = nearest
        return classifier

    monkeypatch.setattr('hdkd_timm.evaluation.inference.load_classifier', load)
    config = EvalConfig(data_dir=str(bright_folder), workers=0, bootstrap=0, device='cpu')
    report, images = evaluate_model(str(tmp_path / 'model'), config)
    assert report['classes'] == ['Middle', 'dark', 'white']
    assert report['classes_guessed'] is True
    assert report['accuracy'] == pytest.approx(right)
    other = 4 / 3 - right
    assert f'as text, like ImageFolder of torchvision (Middle, dark, white): accuracy {right:.1%}' in caplog.text
    assert f'of the data (dark, Middle, white) it would be {other:.1%}' in caplog.text
    caplog.clear()
    report, _ = evaluate_model(str(tmp_path / 'model'), replace(config, label_names=tuple(order)))
    assert report['accuracy'] == 1
    assert 'classes_guessed' not in report
    assert not caplog.records
    with pytest.raises(ValueError, match='by a guess of their order no temperature is found'):
        calibrate_model(str(tmp_path / 'model'), replace(config, split='test'))
    with pytest.raises(ValueError, match='2 label names for the 3 classes'):
        evaluate_model(str(tmp_path / 'model'), replace(config, label_names=('a', 'b')))
    assert main(['predict', str(tmp_path / 'model'), str(bright_folder), '-j', '0', '--out', str(tmp_path / 'p.csv'),
                 '--label-names', *order]) == 0
    rows = list(csv.DictReader((tmp_path / 'p.csv').open()))
    assert all(row['label'] in row['path'] for row in rows)


def test_names_of_a_model_win(model_folder, image_folder, caplog):
    config = EvalConfig(data_dir=str(image_folder), workers=0, bootstrap=0, device='cpu', label_names=('a', 'b', 'c'))
    assert 'classes_guessed' not in evaluate_model(str(model_folder), config)[0]
    with pytest.raises(ValueError, match='tells its classes, a, b, c, which are not those given, c, b, a: leave'):
        evaluate_model(str(model_folder), replace(config, label_names=('c', 'b', 'a')))


def test_order_that_a_dataset_gives_is_its_own(model_folder, tmp_path):
    """Not sorted by anybody, as that of a class map."""
    classifier = replace(load_classifier(str(model_folder), CONFIG), classes=None)
    assert _name_classes(classifier, ['b', 'a', 'c'], 'm') == ['b', 'a', 'c']
    assert _name_classes(classifier, ['a', 'B', 'c'], 'm') == ['B', 'a', 'c']
    assert _name_classes(classifier, ['2', '3', '10'], 'm') == ['10', '2', '3']


def test_eval_of_some_of_the_classes(model_folder, tmp_path):
    """A folder of class folders without splits; a class of the model has no images there."""
    write_images(tmp_path / 'new', classes=['a', 'c'], number=3)
    report, images = evaluate_model(
        str(model_folder), EvalConfig(data_dir=str(tmp_path / 'new'), workers=0, bootstrap=10, device='cpu'))
    assert images['targets'].tolist() == [0, 0, 0, 2, 2, 2]
    assert report['per_class']['b']['support'] == 0
    np.testing.assert_allclose(images['probs'], expected_probs(model_folder, images['names']), atol=1e-5)
    assert report['accuracy'] == np.mean(images['probs'].argmax(axis=1) == images['targets'])
    write_images(tmp_path / 'new', classes=['d'], number=1)
    with pytest.raises(ValueError, match="Class 'd' of the data is none of model"):
        evaluate_model(str(model_folder), EvalConfig(data_dir=str(tmp_path / 'new'), workers=0, device='cpu'))


def test_eval_command(model_folder, image_folder, tmp_path, capsys):
    args = [
        'eval', str(model_folder), '--data-dir', str(image_folder), '-j', '0', '--split', 'train', '--bootstrap', '5']
    assert main([*args, '--out-dir', str(tmp_path / 'report')]) == 0
    text = capsys.readouterr().out
    assert "24 images of split 'train'" in text
    assert 'balanced accuracy' in text
    assert '95 % interval' in text
    assert sorted(p.name for p in (tmp_path / 'report').iterdir()) == ['metrics.json', 'predictions.csv']
    assert main([*args, '--out-dir', str(tmp_path / 'report')]) == 1
    assert 'nothing is overwritten' in capsys.readouterr().err


def test_eval_on_a_run_s_own_val_images(image_folder, tmp_path):
    """A run's config tells eval the split that the run has drawn: its seed, its fraction."""
    model_kwargs = {k: v for k, v in TINY_STUDENT.items() if k not in ('img_size', 'num_classes')}
    run = train(TrainConfig(
        data_dir=str(image_folder), img_size=32, model_kwargs=model_kwargs, epochs=1, batch_size=4, workers=0,
        device='cpu', bootstrap=0, seed=7, val_fraction=0.25, output=str(tmp_path / 'runs'), experiment='run'))['run']
    assert main([
        'eval', run, '--config', f'{run}/config.yaml', '--split', 'val', '--out-dir', str(tmp_path / 'report')]) == 0

    def column(path, name, **where):
        with open(path) as file:
            return [row[name] for row in csv.DictReader(file) if all(row[k] == v for k, v in where.items())]

    names = column(tmp_path / 'report' / 'predictions.csv', 'path')
    assert names == column(f'{run}/images.csv', 'path', split='val')
    assert len(names) == 6
    report = json.loads((tmp_path / 'report' / 'metrics.json').read_text())
    assert report['log_loss'] == pytest.approx(float(column(f'{run}/summary.csv', 'val_log_loss')[0]), rel=1e-4)


def test_other_size_and_run_folder(model_folder, tmp_path):
    (tmp_path / 'run').mkdir()
    model_folder.rename(tmp_path / 'run' / 'best')
    classifier = load_classifier(str(tmp_path / 'run'), InferenceConfig(img_size=48, device='cpu'))
    assert classifier.data_config['input_size'] == (3, 48, 48)
    assert tuple(classifier.model.img_size) == (48, 48)


def test_find_images(image_folder, tmp_path):
    assert len(find_images([str(image_folder)])) == 36
    with pytest.raises(FileNotFoundError, match="'nowhere' does not exist"):
        find_images(['nowhere'])
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='No images in folder'):
        find_images([str(tmp_path / 'empty')])


def test_each_image_once(image_folder, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(image_folder)
    os.symlink('..', 'test/a/up')
    os.symlink(image_folder / 'test', tmp_path / 'link')
    os.symlink('0.png', 'test/a/other name.png')  # another name in one folder is another image
    expected = sorted([*(f'test/{c}/{i}.png' for c in 'abc' for i in range(4)), 'test/a/other name.png'])
    assert sorted(find_images(['test'])) == expected
    assert "Skipped 'test/a/up': it is the same directory as 'test'." in caplog.text
    assert 'named more than once' not in caplog.text
    found = find_images(['test/b/1.png', './test/b/1.png', 'test', str(tmp_path / 'link' / 'c')])
    assert found[0] == 'test/b/1.png'
    assert sorted(found) == expected
    assert '6 images are named more than once: each is taken once.' in caplog.text


def test_what_is_left_out_of_folders_is_named(image_folder, caplog):
    caplog.set_level('INFO', logger='hdkd_timm')
    folder = image_folder / 'test'
    with Image.open(folder / 'a' / '0.png') as image:
        image.save(folder / 'a' / '0.jfif', 'JPEG')
        image.save(folder / 'named.xyz', 'PNG')
    (folder / 'b' / 'x.zip').touch()
    (folder / 'b' / 'notes.txt').touch()
    write_images(folder, classes=['.ipynb_checkpoints', '__MACOSX'], number=1)
    assert len(find_images([str(folder)])) == 13
    assert [record.message for record in caplog.records] == [
        f"Ignored 2 files in '{folder}', without an image suffix: b/x.zip, named.xyz (by suffix: .xyz 1, .zip"
        ' 1).', '13 images, by suffix: .png 12, .jfif 1.']
    # who names a file means it
    assert find_images([str(folder / 'named.xyz')]) == [str(folder / 'named.xyz')]


def test_folders_that_cannot_be_read(image_folder, monkeypatch, caplog):
    scandir = os.scandir

    def scan(path='.'):  # a file mode stops nobody who is root
        if str(path).endswith('test/b'):
            raise PermissionError(13, 'Permission denied', str(path))
        return scandir(path)

    monkeypatch.setattr('os.scandir', scan)
    with pytest.raises(OSError, match="Cannot read directory '.*test/b' .PermissionError: Permission denied"):
        find_images([str(image_folder / 'test')])
    assert len(find_images([str(image_folder / 'test')], 'skip')) == 8
    assert "Skipped a directory: Cannot read directory" in caplog.text


def test_paths_that_are_no_images(tmp_path):
    os.mkfifo(tmp_path / 'pipe.png')
    os.symlink('gone.png', tmp_path / 'broken.png')
    with pytest.raises(ValueError, match=r"pipe\.png' is neither a regular file nor a directory"):
        find_images([str(tmp_path / 'pipe.png')])
    with pytest.raises(FileNotFoundError, match=r"broken\.png' is a link to 'gone\.png', which does not exist"):
        find_images([str(tmp_path / 'broken.png')])
    with pytest.raises(ValueError, match=r"Cannot read image '.*broken\.png' \(FileNotFoundError.*; 2 such"):
        drop_bad_images(find_images([str(tmp_path)]), 'RGB')


def test_bad_images(model_folder, image_folder, caplog):
    (image_folder / 'test' / 'a' / '0.png').write_text('no image')
    with pytest.raises(ValueError, match=r"Cannot read image '.*a/0\.png'.*--on-bad-image skip"):
        predict(str(model_folder), [str(image_folder / 'test')], CONFIG)
    assert len(predict(str(model_folder), [str(image_folder / 'test')], CONFIG, on_bad_image='skip')[0]) == 11
    assert f"Left out image '{image_folder}/test/a/0.png', cannot read it (UnidentifiedImageError" in caplog.text
    assert 'Left out 1 of 12 images, which cannot be read.' in caplog.text
    with pytest.raises(ValueError, match='None of the images'):
        predict(str(model_folder), [str(image_folder / 'test' / 'a' / '0.png')], CONFIG, on_bad_image='skip')


@pytest.mark.parametrize(('name', 'match'), [
    ('nowhere', "Model 'nowhere' does not exist"), ('local-dir:gone', "Model folder 'gone' does not exist")])
def test_no_such_model(name, match):
    with pytest.raises(FileNotFoundError, match=match):
        load_classifier(name, CONFIG)


def test_damaged_model_folder(model_folder):
    (model_folder / 'model.safetensors').write_bytes(b'nothing')
    with pytest.raises(ValueError, match='Cannot load'):
        load_classifier(str(model_folder), CONFIG)


def test_two_image_sizes():
    with pytest.raises(ValueError, match='--img-size 64 and --model-kwargs img_size=48: give one of them'):
        InferenceConfig(img_size=64, model_kwargs=dict(img_size=48))
