"""Labels of image files."""

import csv
import os
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from helpers import TINY_STUDENT, write_images
from PIL import Image

from hdkd_timm import EvalConfig, evaluate_model, predict
from hdkd_timm.cli import main
from hdkd_timm.data import image_io
from hdkd_timm.evaluation.classifier import InferenceConfig
from hdkd_timm.evaluation.predict import drop_bad_images, find_images
from hdkd_timm.evaluation.temperature import write_temperature
from hdkd_timm.models.checkpoint import save_model

CONFIG = InferenceConfig(workers=0, device='cpu', batch_size=3)


def expected_probs(model_folder, files, mode='RGB'):
    model = timm.create_model(f'local-dir:{model_folder}', pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    with torch.no_grad():
        return torch.stack(
            [model(transform(Image.open(f).convert(mode))[None]).softmax(dim=1)[0] for f in files]
        ).numpy()


def test_predict_as_timm_would_by_hand(model_folder, image_folder):
    files, probs, classes = predict(str(model_folder), [str(image_folder / 'test')], CONFIG)
    assert len(files) == 12
    assert classes == ['a', 'b', 'c']
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    np.testing.assert_allclose(probs, expected_probs(model_folder, files), atol=1e-5)


def test_test_time_augmentation(model_folder, image_folder):
    """The mean over flips, each calibrated; also of `evaluate_model`, whose results name it."""
    write_temperature(model_folder, 2.0, {})
    files = find_images([str(image_folder / 'test')])
    model = timm.create_model(f'local-dir:{model_folder}', pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    x = torch.stack([transform(Image.open(f).convert('RGB')) for f in files])
    with torch.no_grad():
        expected = sum((model(view) / 2).softmax(dim=1) for view in (x, x.flip(3))) / 2
    config = replace(CONFIG, tta='hflip', calibrated=True)
    _, probs, _ = predict(str(model_folder), [str(image_folder / 'test')], config)
    np.testing.assert_allclose(probs, expected, atol=1e-5)
    eval_config = EvalConfig(data_dir=str(image_folder), workers=0, device='cpu', bootstrap=0, tta='dihedral')
    report, images = evaluate_model(str(model_folder), eval_config)
    assert report['tta'] == 'dihedral'
    assert np.abs(images['probs'] - predict(str(model_folder), images['names'], CONFIG)[1]).max() > 1e-4


def test_grey_model(tmp_path, image_folder):
    args = dict(TINY_STUDENT, num_classes=3, in_chans=1)
    save_model(timm.create_model('hdkd_student', **args), tmp_path / 'grey', list('abc'), args)
    files, probs, _ = predict(str(tmp_path / 'grey'), [str(image_folder / 'test')], CONFIG)
    expected = expected_probs(tmp_path / 'grey', files, 'L')
    np.testing.assert_allclose(probs, expected, atol=1e-5)
    config = EvalConfig(data_dir=str(image_folder), workers=0, device='cpu', bootstrap=0)
    np.testing.assert_allclose(evaluate_model(str(tmp_path / 'grey'), config)[1]['probs'], expected, atol=1e-5)
    with pytest.raises(ValueError, match='expects 1 channels, not --in-chans 3'):
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
        str(one),
        *(str(image_folder / 'test' / 'c' / f'{i}.png') for i in range(4)),
    ]
    probs = np.array([[float(row[f'prob_{k}']) for k in 'abc'] for row in rows])
    assert [row['label'] for row in rows] == ['abc'[k] for k in probs.argmax(axis=1)]
    assert main(args) == 1
    assert 'nothing is overwritten' in capsys.readouterr().err


def test_find_images(image_folder, tmp_path):
    assert len(find_images([str(image_folder)])) == 36
    with pytest.raises(FileNotFoundError, match="'nowhere' does not exist"):
        find_images(['nowhere'])
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='No images in directory'):
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
    assert '6 images are named more than once: each is used once.' in caplog.text


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
        f"Ignored 2 files in '{folder}', without an image suffix: b/x.zip, named.xyz (by suffix: .xyz 1, .zip 1).",
        '13 images, by suffix: .png 12, .jfif 1.',
    ]
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
    assert 'Skipped a directory: Cannot read directory' in caplog.text


def test_paths_that_are_no_images(tmp_path):
    os.mkfifo(tmp_path / 'pipe.png')
    os.symlink('gone.png', tmp_path / 'broken.png')
    with pytest.raises(ValueError, match=r"pipe\.png' is neither a regular file nor a directory"):
        find_images([str(tmp_path / 'pipe.png')])
    with pytest.raises(FileNotFoundError, match=r"broken\.png' is a link to 'gone\.png', which does not exist"):
        find_images([str(tmp_path / 'broken.png')])
    with pytest.raises(ValueError, match=r"Cannot read image '.*broken\.png' \(FileNotFoundError.*; 2 unreadable"):
        drop_bad_images(find_images([str(tmp_path)]), 'RGB')


def test_bad_images(model_folder, image_folder, caplog):
    (image_folder / 'test' / 'a' / '0.png').write_text('no image')
    with pytest.raises(ValueError, match=r"Cannot read image '.*a/0\.png'.*--on-bad-image skip"):
        predict(str(model_folder), [str(image_folder / 'test')], CONFIG)
    assert len(predict(str(model_folder), [str(image_folder / 'test')], CONFIG, on_bad_image='skip')[0]) == 11
    assert f"Skipped unreadable image '{image_folder}/test/a/0.png' (UnidentifiedImageError" in caplog.text
    assert 'Skipped 1 of 12 images, which cannot be read.' in caplog.text
    with pytest.raises(ValueError, match='None of the 1 images can be read'):
        predict(str(model_folder), [str(image_folder / 'test' / 'a' / '0.png')], CONFIG, on_bad_image='skip')


@pytest.mark.parametrize('workers', [0, 2])
def test_truncated_images(model_folder, image_folder, caplog, workers):
    """Their headers are whole: they are found as they are labelled, and told as if they had been found before."""
    config = replace(CONFIG, workers=workers)
    test = image_folder / 'test'
    for name in ('b/1.png', 'c/3.png'):
        content = (test / name).read_bytes()
        (test / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"^Cannot read image '\S*b/1\.png' \(.*\); 2 unreadable in total\. Fix or"):
        predict(str(model_folder), [str(test)], config)
    files, probs, _ = predict(str(model_folder), [str(test)], config, on_bad_image='skip')
    assert [os.path.relpath(file, test) for file in files] == [
        f'{k}/{i}.png' for k in 'abc' for i in range(4) if f'{k}/{i}.png' not in ('b/1.png', 'c/3.png')
    ]
    np.testing.assert_allclose(probs, expected_probs(model_folder, files), atol=1e-5)
    assert 'Skipped 2 of 12 images, which cannot be read.' in caplog.text


def count_reads(monkeypatch, fail_first='', flag=None):
    """Names of the files whose pixels are read; reading one fails the first time, in whatever process."""
    read, names = image_io._read, []

    def count(file, mode, name, *args):
        names.append(os.path.basename(os.path.dirname(name)) + '/' + os.path.basename(name))
        if names[-1] == fail_first and not flag.exists():
            flag.touch()
            raise OSError('The share is gone')
        return read(file, mode, name, *args)

    monkeypatch.setattr(image_io, '_read', count)
    return names


@pytest.mark.parametrize('on_bad_image', ['error', 'skip'])
def test_each_image_is_read_once(model_folder, image_folder, monkeypatch, on_bad_image):
    names = count_reads(monkeypatch)
    predict(str(model_folder), [str(image_folder / 'test')], CONFIG, on_bad_image)
    assert names == [f'{k}/{i}.png' for k in 'abc' for i in range(4)]


@pytest.mark.parametrize('workers', [0, 2])
def test_an_image_that_can_be_read_only_the_second_time(
    model_folder, image_folder, tmp_path, monkeypatch, caplog, workers
):
    flag = tmp_path / 'failed'
    count_reads(monkeypatch, 'b/1.png', flag)
    arguments = str(model_folder), [str(image_folder / 'test')], replace(CONFIG, workers=workers)
    files, probs, _ = predict(*arguments, on_bad_image='skip')
    assert len(files) == len(probs) == 11
    assert "b/1.png' (it could be read only the second time)" in caplog.text
    flag.unlink()
    with pytest.raises(ValueError, match=r"^Cannot read image '\S*b/1\.png' \(OSError: The share is gone\)\.$"):
        predict(*arguments)


def test_nearly_black_images_are_told_as_by_reading_them_all(model_folder, image_folder, caplog):
    """Of two kinds, with other bright images of one of them."""
    test = image_folder / 'test'
    for name in ('a/0.png', 'b/2.png', 'c/1.png'):
        grey = np.asarray(Image.open(test / name).convert('L'))
        Image.fromarray(grey.astype(np.uint16) << 4 if name.startswith('a') else grey // 10).save(test / name)
    drop_bad_images(find_images([str(test)]), 'RGB')
    expected = [record.getMessage() for record in caplog.records]
    assert expected[0].startswith('3 of 12 images use so little of their value range')
    caplog.clear()
    predict(str(model_folder), [str(test)], CONFIG)
    assert [record.getMessage() for record in caplog.records if record.levelname == 'WARNING'] == expected
