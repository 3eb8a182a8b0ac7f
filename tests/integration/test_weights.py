"""Released weights are trained again and checked by the commands beside them, here on small images of our own."""

import csv
import gzip
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
from PIL import Image
from processes import PACKAGES, flags, run

import hdkd_timm
from hdkd_timm import DistillConfig
from hdkd_timm.models.pretrained import RELEASES, WEIGHTS
from hdkd_timm.study.config import StudyConfig, list_runs

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
    """What reproduce.py writes, of two runs of each network and two seeds."""
    folder = tmp_path_factory.mktemp('out')
    (folder / 'tiny.yaml').write_text(
        yaml.safe_dump(
            dict(
                settings=dict(
                    batch_size=4,
                    val_fraction=0.25,
                    cache=None,
                    amp=False,
                    bootstrap=20,
                    method=['hdkd'],
                    method_args={},
                ),
                runs={
                    'teacher-1': dict(img_size=28, epochs=2),
                    'teacher': dict(start='teacher-1', img_size=32, epochs=1, lr=2e-4),
                    'student-1': dict(
                        teachers=['teacher-1'], img_size=28, batch_size=None, epochs=2, lr=1e-3, init_from_teacher=[]
                    ),
                    'student': dict(
                        teachers=['teacher'],
                        img_size=32,
                        batch_size=None,
                        epochs=1,
                        lr=2e-4,
                        views=1,
                        feature_weight=0,
                    ),
                },
            )
        )
    )
    args = flags(data_dir=data_dir, changes=folder / 'tiny.yaml', seeds=(1, 2), output=folder)
    args = ('reproduce.py', 'brain_mri', *args)
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
        name = tag.split('.')[0][5:]
        runs = [released / f'brain_mri-tiny-seed{metrics["seed"]}-{run}' for run in (f'{name}-1', name)]
        assert [(stage['run'], stage['img_size']) for stage in metrics['stages']] == [(f'{name}-1', 28), (name, 32)]
        assert metrics['stages'][0]['best_epoch'] in (1, 2)
        networks = [run / 'student' if tag == STUDENT else run for run in runs]
        of_run = json.loads((networks[1] / 'metrics.json').read_text())
        assert metrics['test']['accuracy'] == pytest.approx(of_run['test']['accuracy'], abs=0.126)  # float16, 8 images
        with (runs[0] / 'images.csv').open() as file:
            first = {row['split'] for row in csv.DictReader(file)}
        assert first == {'train', 'val'}
        settings = yaml.safe_load((runs[1] / 'config.yaml').read_text())
        assert settings['model'] == f'local-dir:{networks[0]}/best'
        assert settings['lr'] == 2e-4
        config = json.loads((folder / 'config.json').read_text())
        assert config['pretrained_cfg']['input_size'] == [3, 32, 32]
        assert config['pretrained_cfg']['license'] == 'cc0-1.0'
        card = (folder / 'README.md').read_text()
        assert f'| `{name}-1` | `hdkd_{name}` | 28 | 2 |' in card
        assert f'`{name}` goes on from the best epoch of `{name}-1`.' in card
        assert ('`student` is distilled from `teacher`.' in card) == (tag == STUDENT)
        assert 'No network has seen other images than these.' in card
        assert 'figshare (Cheng 2017)' in card
        assert re.search(r'^\| `model` \| (.*) \|$', card, re.M)[1] == tag.split('.')[0].replace('_', '\\_')
        assert ('`kd_type`' in card) == (tag == STUDENT)
        # the effective settings, which repeat it
        record = yaml.safe_load((folder / 'train.yaml').read_text())
        assert list(record['runs']) == (
            ['teacher-1', 'teacher'] if tag == TEACHER else ['teacher-1', 'teacher', 'student-1', 'student']
        )
        for settings in record['runs'].values():
            own = {key: value for key, value in settings.items() if key not in ('start', 'teachers', 'views')}
            config = DistillConfig(**{**record['settings'], **own})
            assert (config.batch_size, config.img_size) == (4, settings['img_size'])
        assert record['settings']['weight_decay'] == 0.05
        assert record['settings']['split_column'] == 'grouped_split'
        assert not {'lr', 'epochs', 'data_csv', 'output', 'device'} & set(record['settings'])
        assert (record['runs'][f'{name}-1']['lr'], record['runs'][name]['lr']) == (1e-3, 2e-4)
        assert record['runs'][name]['start'] == f'{name}-1'
        if tag == STUDENT:
            assert (record['runs'][name]['teachers'], record['runs'][name]['views']) == (['teacher'], 1)
            assert yaml.safe_load((runs[1] / 'config.yaml').read_text())['teacher_logits']
        assert not any(str(released) in path.read_text() for path in folder.glob('*.[jmy]*'))
        timm.create_model(f'local-dir:{folder}', pretrained=True)


def test_reproduce_goes_on_with_the_same_settings_only(released, data_dir):
    changes = yaml.safe_load((released / 'tiny.yaml').read_text())
    changes['settings']['batch_size'] = 8
    other = released / 'other' / 'tiny.yaml'
    other.parent.mkdir()
    other.write_text(yaml.safe_dump(changes))
    args = ('reproduce.py', 'brain_mri', '--data-dir', data_dir, '--seeds', 1, '--output', released)
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


def test_transfer(data_dir):
    """All released students and random weights, on each data set."""
    values = yaml.safe_load((ROOT / 'weights' / 'transfer.yaml').read_text())
    config = StudyConfig(
        **{**values, 'seeds': (42,), 'train_fractions': (0.1,), 'data_csv': str(data_dir / 'images.csv')}
    )
    runs = list(list_runs(config, Path('out')))
    starts = {run.config.model for run in runs if run.config.pretrained}
    assert starts == {tag for tag in RELEASES if tag.startswith('hdkd_student.')}
    assert [run.arm for run in runs if not run.config.pretrained] == [config.baseline]
    assert {run.config.teacher_checkpoint for run in runs} == {None}


REPRODUCE = runpy.run_path(str(ROOT / 'weights' / 'reproduce.py'))
PLANS = sorted(path.stem for path in (ROOT / 'weights' / 'plans').glob('*.yaml'))


def create_trainings(plan, **kwargs):
    places = dict(csvs=(Path('all.csv'), Path('train.csv')), output=Path('out'), prefix='p')
    return REPRODUCE['Trainings'](plan, **{**dict(seed=None, given={}, sources={}), **places, **kwargs})


@pytest.mark.parametrize(
    ('data', 'changes'),
    [*((data, None) for data in PLANS), ('brain_mri', 'split-official'), ('brain_mri', 'split-grouped')],
)
def test_plans(data, changes):
    """The runs of every plan are ones that `train` and `distill` take, and its releases are all released."""
    plan = REPRODUCE['read_plan'](data, changes and ROOT / 'weights' / f'{changes}.yaml')
    trainings = create_trainings(plan)
    for name, settings in plan.runs.items():
        config = DistillConfig(**trainings.settings(name))
        assert config.experiment == f'p-{name}'
        assert config.data_csv == ('all.csv' if name in plan.releases.values() else 'train.csv')
        assert ('start' in settings) == config.model.startswith('local-dir:')
    released = {tag for tag in RELEASES if tag.partition('.')[2] == data}
    assert released == {tag for tag in plan.releases if tag.partition('.')[2] == data}


def test_runs_of_a_plan(tmp_path):
    (tmp_path / 'changes.yaml').write_text(
        yaml.safe_dump(
            dict(
                runs={
                    'lite': dict(model='tf_efficientnet_lite0.in1k', pretrained=True, lr=5e-4),
                    'chain': dict(start='lite', teachers=['teacher-1']),
                }
            ),
            sort_keys=False,
        )
    )
    plan = REPRODUCE['read_plan']('brain_mri', tmp_path / 'changes.yaml')
    assert plan.needed(['chain']) == ['teacher-1', 'lite', 'chain']
    assert plan.needed(['student']) == ['lite0-1', 'lite0', 'student-1', 'student']
    assert plan.needed(['student'], given=['lite0', 'student-1']) == ['lite0', 'student-1', 'student']
    assert plan.lineage('student') == ['student-1', 'student']
    given = {'teacher-1': Path('mine/student')}
    trainings = create_trainings(plan, seed=7, given=given, sources={'tf_efficientnet_lite0.in1k': 'local-dir:there'})
    lite, chain = (trainings.settings(run) for run in ('lite', 'chain'))
    assert (lite['model'], lite['pretrained'], lite['seed'], lite['lr']) == ('local-dir:there', False, 7, 5e-4)
    assert chain['model'] == 'local-dir:out/p-lite/best'
    assert chain['teacher_checkpoint'] == ('mine/student/best',)
    trainings.train('teacher-1')  # nothing: it is given
    assert create_trainings(plan).settings('lite')['pretrained']


def test_card_of_runs_behind_a_given_one():
    """What they saw is told, though their results are not known."""
    plan = REPRODUCE['read_plan']('brain_mri')
    text = REPRODUCE['describe_runs'](plan, 'student', plan.needed(['student']), [], 'a CPU')
    assert '`lite0-1` starts from `tf_efficientnet_lite0.in1k`, pretrained on ImageNet.' in text
    assert 'Not in the table, trained before: `lite0-1`, `lite0`, `student-1`, `student`.' in text
    assert 'No network has seen' not in text
    plan = REPRODUCE['read_plan']('ham10k')
    text = REPRODUCE['describe_runs'](plan, 'student', ['student'], [], 'a CPU')
    assert '`student` starts from `hdkd_student.derm`, trained on HAM10000 (Tschandl' in text
    assert 'on ImageNet' not in text.partition(plan.note[:20])[0]


@pytest.mark.parametrize(
    ('runs', 'match'),
    [
        ({'a': dict(start='b', epochs=1)}, r"Run 'a' of .*brain_mri\.yaml.* needs 'b', which is no earlier run"),
        ({'a': dict(wings=2)}, "Unknown setting 'wings' in run 'a'"),
    ],
)
def test_wrong_plans(runs, match, tmp_path):
    (tmp_path / 'changes.yaml').write_text(yaml.safe_dump(dict(runs=runs)))
    with pytest.raises(ValueError, match=match):
        REPRODUCE['read_plan']('brain_mri', tmp_path / 'changes.yaml')


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (
            ['--runs', 'student_s4'],
            "--runs 'student_s4' is none of the plan: hdkd_teacher.brain_mri, hdkd_student.brain",
        ),
        (['--given', 'lite2=there'], "--given 'lite2' is none of the plan"),
        (['--given', 'teacher-1'], "--given must be NAME=VALUE, got 'teacher-1'"),
        (['--sources', 'resnet18=local-dir:there'], "--sources 'resnet18' is the model of no run of the plan"),
    ],
)
def test_runs_that_a_plan_does_not_have(args, message, data_dir):
    process = call('reproduce.py', 'brain_mri', '--data-dir', data_dir, *args)
    assert process.returncode == 1
    assert message in process.stderr


@pytest.fixture
def prepare(tmp_path):
    """prepare.py with small data sets: `write_split` gives one its names."""
    module = runpy.run_path(str(ROOT / 'weights' / 'prepare.py'))
    module['prepare'].__globals__['SPLITS'] = tmp_path / 'splits'
    (tmp_path / 'splits').mkdir()

    def write_split(name, rows):
        with gzip.open(tmp_path / 'splits' / f'{name}.csv.gz', 'wt', newline='') as file:
            csv.writer(file).writerows([['name', 'label', 'split', 'group'], *rows])

    return module['prepare'], write_split


def test_prepare_a_download(prepare, tmp_path):
    prepare, write_split = prepare
    write_split('busi', [['benign_1', 'benign', 'train', '0'], ['malignant_2', 'malignant', 'test', '1']])
    for folder, name in (('a b', 'benign (1)'), ('b', 'malignant (2)'), ('b', 'malignant (2)_mask')):
        (tmp_path / 'download' / folder).mkdir(parents=True, exist_ok=True)
        image = Image.new('L', (448, 224), 255)
        image.paste(80, (112, 0, 336, 224))  # the central square
        image.save(tmp_path / 'download' / folder / f'{name}.png')
    (tmp_path / 'download' / 'labels.csv').write_text('no image')
    others = prepare('busi', tmp_path / 'download', tmp_path / 'out')
    assert [path.name for path in others] == ['malignant (2)_mask.png']
    with (tmp_path / 'out' / 'images.csv').open(newline='') as file:
        assert list(csv.DictReader(file)) == [
            {'path': 'benign/benign_1.png', 'label': 'benign', 'split': 'train', 'group': '0'},
            {'path': 'malignant/malignant_2.png', 'label': 'malignant', 'split': 'test', 'group': '1'},
        ]
    with Image.open(tmp_path / 'out' / 'benign' / 'benign_1.png') as copy:
        assert copy.size == (224, 224)
        assert copy.getextrema() == (80, 80)
    with pytest.raises(FileExistsError, match='nothing is overwritten'):
        prepare('busi', tmp_path / 'download', tmp_path / 'out')


def test_prepare_keeps_no_aspect_ratio(prepare, tmp_path):
    prepare, write_split = prepare
    write_split('ham10000', [['ISIC_1', 'nv', 'train', '0']])
    image = Image.new('RGB', (448, 224), 'white')
    image.paste((80, 80, 80), (224, 0, 448, 224))
    for folder in ('part_1', 'PART_1'):  # the same image twice, as in the set's copy on Kaggle
        (tmp_path / 'download' / folder).mkdir(parents=True)
        image.save(tmp_path / 'download' / folder / 'ISIC_1.jpg')
    assert prepare('ham10000', tmp_path / 'download', tmp_path / 'out') == []
    with Image.open(tmp_path / 'out' / 'nv' / 'ISIC_1.webp') as copy:
        assert copy.size == (224, 224)
        assert abs(copy.getpixel((50, 100))[0] - 255) < 5
        assert abs(copy.getpixel((170, 100))[0] - 80) < 5


def test_prepare_names_what_is_missing_or_ambiguous(prepare, tmp_path):
    prepare, write_split = prepare
    write_split('chest_xray', [['a', 'normal', 'train', '0'], ['b', 'normal', 'test', '1']])
    for folder, colour in (('x', 0), ('y', 255)):
        (tmp_path / 'download' / folder).mkdir(parents=True)
        Image.new('L', (32, 32), colour).save(tmp_path / 'download' / folder / 'b.jpeg')
    with pytest.raises(ValueError, match='different images of one name'):
        prepare('chest_xray', tmp_path / 'download', tmp_path / 'out')
    (tmp_path / 'download' / 'y' / 'b.jpeg').unlink()
    with pytest.raises(FileNotFoundError, match="1 of 2 images are not in .*, the first is 'a'"):
        prepare('chest_xray', tmp_path / 'download', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('name', RELEASES)
def test_split_tables_are_those_of_the_weights(name):
    """Their labels, as many images of each class and split as the card says, and no group on two sides."""
    module = runpy.run_path(str(ROOT / 'weights' / 'prepare.py'))
    card = (ROOT / 'weights' / name / 'README.md').read_text()
    sets = {'brain': 'brain_tumor_mri', 'ham10k': 'ham10000', 'derm': 'ham10000', 'chest': 'chest_xray'}
    rows = module['read_split'](next(data for tag, data in sets.items() if name.partition('.')[2].startswith(tag)))
    column = 'grouped_split' if 'grouped_split' in rows[0] else 'split'
    labels = timm.get_pretrained_cfg(name).label_names
    assert len({row['name'] for row in rows}) == len(rows)
    assert [sum(row['label'] == label and row[column] == 'test' for row in rows) for label in labels] == [
        int(cell.replace(',', '')) for cell in re.search(r'^\| test \|(.*)\|$', card, re.M)[1].split('|')[:-1]
    ]
    sides = {}
    for row in rows:
        sides.setdefault(row['group'], set()).add(row[column])
    assert all(len(side) == 1 for side in sides.values())
