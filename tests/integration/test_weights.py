"""Released weights are trained again and checked by the commands beside them, here on small images of our own."""

import csv
import hashlib
import json
import os
import re
import runpy
import shutil
from pathlib import Path

import pytest
import timm
import yaml
from helpers import write_images
from processes import PACKAGES, flags, run

import hdkd_timm
from hdkd_timm import DistillConfig
from hdkd_timm.models.pretrained import RELEASES, WEIGHTS

ROOT = Path(__file__).parents[2]
STUDENT, TEACHER = 'hdkd_student.brain_mri', 'hdkd_teacher.brain_mri'
CLASSES = timm.get_pretrained_cfg(STUDENT).label_names


def call(script, *args, **kwargs):
    return run(ROOT / 'weights' / script, *args, **kwargs)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    """A data set like that of the weights: images.csv has a split of its own, by groups."""
    folder = tmp_path_factory.mktemp('data')
    write_images(folder, CLASSES, number=10, size=32)
    with (folder / 'images.csv').open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['path', 'label', 'split', 'group', 'grouped_split'])
        for name in CLASSES:
            for i in range(10):
                row = [f'{name}/{i}.png', name, 'test' if i < 4 else 'train', i // 2, 'train' if i < 8 else 'test']
                writer.writerow(row)
    return folder


@pytest.fixture(scope='module')
def released(data_dir, tmp_path_factory):
    """What reproduce.py writes, of two stages and two seeds."""
    folder = tmp_path_factory.mktemp('out')
    (folder / 'tiny.yaml').write_text(
        yaml.safe_dump(
            dict(
                settings=dict(batch_size=4, val_fraction=0.25, cache=None, amp=False, bootstrap=20),
                stages=[dict(img_size=28, epochs=2, lr=1e-3), dict(img_size=32, epochs=1, lr=2e-4)],
            )
        )
    )
    args = flags(data_dir=data_dir, changes=folder / 'tiny.yaml', seeds=(1, 2), output=folder)
    args = ('reproduce.py', STUDENT, *args)
    process = call(*args)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count('sha256') == 2
    return folder


def test_reproduce(released):
    for tag in (TEACHER, STUDENT):
        folder = released / 'brain_mri-tiny-released' / tag
        metrics = json.loads((folder / 'metrics.json').read_text())
        vals = metrics['val_balanced_accuracy_of_seeds']
        assert vals[str(metrics['seed'])] == max(vals.values())
        assert list(vals) == ['1', '2']
        assert metrics['test']['images'] == 8  # of grouped_split
        runs = [released / f'brain_mri-tiny-seed{metrics["seed"]}-stage{i}' for i in (1, 2)]
        assert [stage['img_size'] for stage in metrics['stages']] == [28, 32]
        assert metrics['stages'][0]['best_epoch'] in (1, 2)
        of_run = json.loads((runs[1] / tag.split('.')[0][5:] / 'metrics.json').read_text())
        assert metrics['test']['accuracy'] == pytest.approx(of_run['test']['accuracy'], abs=0.126)  # float16, 8 images
        with (runs[0] / 'images.csv').open() as file:
            first = {row['split'] for row in csv.DictReader(file)}
        assert first == {'train', 'val'}
        settings = yaml.safe_load((runs[1] / 'config.yaml').read_text())
        assert settings['model'] == f'local-dir:{runs[0]}/student/best'
        assert settings['lr'] == 2e-4
        config = json.loads((folder / 'config.json').read_text())
        assert config['pretrained_cfg']['input_size'] == [3, 32, 32]
        assert config['pretrained_cfg']['license'] == 'cc0-1.0'
        card = (folder / 'README.md').read_text()
        assert '| 28 | 2 |' in card
        assert 'figshare (Cheng 2017)' in card
        assert re.search(r'^\| `model` \| (.*) \|$', card, re.M)[1] == tag.split('.')[0].replace('_', '\\_')
        assert ('`kd_type`' in card) == (tag == STUDENT)
        # the effective settings, which repeat it
        train = runpy.run_path(str(ROOT / 'weights' / 'reproduce.py'))['read_training'](str(folder))
        for stage in train['stages']:
            config = DistillConfig(**train['settings'], **stage)
            assert (config.batch_size, config.img_size) == (4, stage['img_size'])
        assert train['settings']['weight_decay'] == 0.05
        assert train['settings']['split_column'] == 'grouped_split'
        assert not {'lr', 'epochs', 'data_csv', 'output', 'device'} & set(train['settings'])
        assert [stage['lr'] for stage in train['stages']] == [1e-3, 2e-4]
        assert not any(str(released) in path.read_text() for path in folder.glob('*.[jmy]*'))
        timm.create_model(f'local-dir:{folder}', pretrained=True)


def test_reproduce_goes_on_with_the_same_settings_only(released, data_dir):
    changes = yaml.safe_load((released / 'tiny.yaml').read_text())
    changes['settings']['batch_size'] = 8
    other = released / 'other' / 'tiny.yaml'
    other.parent.mkdir()
    other.write_text(yaml.safe_dump(changes))
    args = ('reproduce.py', TEACHER, '--data-dir', data_dir, '--seeds', 1, '--output', released)
    process = call(*args, '--changes', other)
    assert process.returncode == 1
    assert '1 settings differ: batch_size' in process.stderr
    shutil.rmtree(released / 'brain_mri-tiny-released' / TEACHER)
    process = call(*args, '--changes', released / 'tiny.yaml')
    assert process.returncode == 0, process.stderr
    assert f"{STUDENT}' is there already" in process.stdout
    assert (released / 'brain_mri-tiny-released' / TEACHER / 'README.md').exists()


def test_check(released, data_dir, tmp_path):
    package = tmp_path / 'hdkd_timm'
    shutil.copytree(Path(hdkd_timm.__file__).parent, package, ignore=shutil.ignore_patterns('weights', '__pycache__'))
    shutil.copytree(released / 'brain_mri-tiny-released', package / 'weights')
    args = ('check.py', STUDENT, '--data-dir', data_dir)
    path = os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')])
    of_package = dict(modules=PACKAGES, env={**os.environ, 'PYTHONPATH': path})
    process = call(*args, **of_package)
    assert process.returncode == 1
    assert 'its sha256 is not' in process.stderr
    sha256 = hashlib.sha256((package / 'weights' / STUDENT / WEIGHTS).read_bytes()).hexdigest()
    source = (package / 'models' / 'pretrained.py').read_text()
    (package / 'models' / 'pretrained.py').write_text(source.replace(RELEASES[STUDENT].sha256, sha256))
    process = call(*args, **of_package)
    assert process.returncode == 0, process.stdout + process.stderr
    assert 'balanced accuracy' in process.stdout
    metrics = json.loads((package / 'weights' / STUDENT / 'metrics.json').read_text())
    metrics['test']['macro_auroc'] += 0.002
    (package / 'weights' / STUDENT / 'metrics.json').write_text(json.dumps(metrics))
    process = call(*args, **of_package)
    assert process.returncode == 1
    assert process.stdout.count('differs') == 1


def test_transfer(data_dir, tmp_path):
    args = flags(brain_mri=data_dir, img_size=32, epochs=1, train_fraction=1, seeds=(1, 2), output=tmp_path)
    args = ('transfer.py', *args)
    process = call(*args)
    assert process.returncode == 0, process.stderr
    rows = process.stdout.splitlines()[2:]
    assert [row.split(' | ')[1] for row in rows] == ['random weights', 'ham10k']
    for row, start in zip(rows, ('random', 'ham10k')):
        reports = []
        for seed in (1, 2):
            (folder,) = tmp_path.glob(f'transfer-hdkd_student-brain_mri-{start}*-{seed}')
            reports.append(json.loads((folder / 'metrics.json').read_text())['test'])
            assert yaml.safe_load((folder / 'config.yaml').read_text())['pretrained'] == (start != 'random')
        assert f' {sum(50 * report["balanced_accuracy"] for report in reports):.1f} % |' in row
    assert call(*args).stdout == process.stdout  # runs that are done are not repeated
    assert 'error: no data: name the folder' in call('transfer.py').stderr
