"""The README's Python snippets and the examples run as they are."""
import os
import re
import runpy
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from helpers import TINY_STUDENT, TINY_TEACHER, write_images

import hdkd_timm  # noqa: F401
from hdkd_timm.models.checkpoint import save_model

ROOT = Path(__file__).parents[2]
SNIPPETS = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.S)


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """A folder in which `runs/first` is a finished run and `data` an image folder."""
    monkeypatch.chdir(tmp_path)
    for split, number in (('train', 6), ('test', 2)):
        write_images(tmp_path / 'data' / split, number=number)
    shutil.copy(tmp_path / 'data' / 'test' / 'a' / '0.png', tmp_path / 'image.png')
    args = dict(num_classes=3, img_size=64)
    for name in ('teacher', 'student'):
        save_model(timm.create_model(f'hdkd_{name}', **args), f'runs/first/{name}/best', list('abc'), args)
    return tmp_path


def test_snippets_are_found():
    assert len(SNIPPETS) == 5


@pytest.mark.parametrize('snippet', SNIPPETS, ids=lambda s: s.splitlines()[2][:24])
def test_snippet(snippet, run_folder, capsys):
    exec(compile(snippet, 'README.md', 'exec'), {})
    for line in re.findall(r'^# (\[.*)$', snippet, re.M):
        assert line in capsys.readouterr().out


def find_flags(text):
    """Command and flag of each --flag in the text; what stands with no command is for `distill`."""
    text = re.sub(r'(?m)^ *(python \S+\.py|torchrun|pip|hdkd run) .*', '', text.replace('\\\n', ' '))  # others' flags
    values = dict(re.findall(r'(?m)^ *([A-Z]+)="(.*)"$', text))
    for _ in range(2):  # values hold values
        text = re.sub(r'\$([A-Z]+)\b', lambda match: values.get(match[1], ''), text)
    found = set()
    for line in text.splitlines():
        for name, words in re.findall(r'(?:\bhdkd (\w+)|^)(.*?)(?=\bhdkd \w|$)', line):
            found |= {(name or 'distill', flag) for flag in re.findall(r'(?<![-\w])--[a-z][\w-]*', words)}
    return found


def test_every_flag_exists(capsys):
    from hdkd_timm.cli.main import create_parser
    found = find_flags('\n'.join((ROOT / path).read_text() for path in ('README.md', 'weights/README.md')))
    assert found >= {
        ('distill', '--split-column'), ('distill', '--class-weights'), ('distill', '--amp'), ('train', '--amp'),
        ('predict', '--out'), ('eval', '--out-dir'), ('train', '--help')}
    helps = {}
    for name in sorted({name for name, _ in found}):
        with pytest.raises(SystemExit):
            create_parser(name).parse_args(['--help-all'])
        helps[name] = capsys.readouterr().out
    assert [(name, flag) for name, flag in found if not re.search(rf'{flag}(?![-\w])', helps[name])] == []


def test_model_table():
    """The table's figures are what its command prints, at the size where they are quick to count."""
    result = subprocess.run(
        [sys.executable, ROOT / 'examples' / 'model_table.py'], capture_output=True, text=True, check=True)
    rows = dict(re.findall(r'^\| `(\w+)` \| (.*?) \|$', result.stdout, re.M))
    assert len(rows) == 5
    readme = (ROOT / 'README.md').read_text()
    for name, figures in rows.items():
        assert re.search(rf'\| `{name}` \| .*? \| {re.escape(figures)} \|', readme), (name, figures)


def test_tables_of_released_weights():
    """Both tables say what the weights' own metrics say."""
    table = runpy.run_path(str(ROOT / 'weights' / 'table.py'))
    assert table['write_table'](table['HEAD']) in (ROOT / 'weights' / 'README.md').read_text()
    shown = ['weights', 'data', 'licence', 'accuracy', 'balanced accuracy', 'macro AUROC']
    assert table['write_table'](shown) in (ROOT / 'README.md').read_text()


def run_example(name, *args):
    result = subprocess.run(
        [sys.executable, ROOT / 'examples' / name, *map(str, args)], capture_output=True, text=True,
        env=dict(os.environ, CUDA_VISIBLE_DEVICES=''))
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def two_classes(tmp_path):
    for split, number in (('train', 6), ('test', 2)):
        write_images(tmp_path / 'data' / split, classes=['p', 'q'], number=number)
    return tmp_path / 'data'


def test_finetune_example(two_classes, tmp_path):
    save_model(timm.create_model('hdkd_student', **TINY_STUDENT), tmp_path / 'model', model_args=TINY_STUDENT)
    output = run_example(
        'finetune.py', tmp_path / 'model', two_classes, '--epochs', 2, '--batch-size', 4, '--workers', 0, '--out',
        tmp_path / 'out')
    assert re.search(r'test accuracy \d+\.\d%', output)
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert list(model.pretrained_cfg['label_names']) == ['p', 'q']


def test_distill_example(two_classes, tmp_path):
    args = dict(TINY_TEACHER, num_classes=2)
    save_model(timm.create_model('hdkd_teacher', **args), tmp_path / 'teacher', list('pq'), args)
    output = run_example(
        'distill.py', tmp_path / 'teacher', two_classes, '--epochs', 2, '--batch-size', 4, '--workers', 0, '--img-size',
        32, '--out', tmp_path / 'out')
    assert 'feature_loss_3' in output
    assert re.search(r'test accuracy \d+\.\d%', output)
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).num_classes == 2


def test_cross_validation_example(two_classes, tmp_path):
    shutil.rmtree(two_classes / 'test')
    args = [
        'cross_validation.py', '--data-dir', two_classes, '--folds', 3, '--epochs', 1, '-b', 4, '-j', 0, '--img-size',
        32, '--output', tmp_path / 'runs', '--bootstrap', 0, '--device', 'cpu', '--model-kwargs', 'depths=(1,1,1,1)',
        'dims=(8,16,24)', 'embed_dim=32', 'num_heads=2', 'head_dim=8']
    output = run_example(*args)
    assert output.count('2 classes, 4 images') == 3
    mean, std = map(float, re.search(r'^balanced_accuracy +(\S+) +(\S+)$', output, re.M).groups())
    folds = [float(x) / 100 for x in re.findall(r'balanced accuracy (\S+)%', output)]
    assert mean == pytest.approx(sum(folds) / 3, abs=1e-3)
    assert std == pytest.approx(statistics.stdev(folds), abs=1e-3)
    assert run_example(*args) == output  # finished runs are not repeated
