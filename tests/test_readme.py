"""The README's Python snippets and the examples run as they are."""
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from conftest import TINY_STUDENT, write_images

import hdkd_timm  # noqa: F401
from hdkd_timm.checkpoint import save_model

ROOT = Path(__file__).parent.parent
SNIPPETS = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.S)


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """A folder in which `runs/first` is a finished run."""
    monkeypatch.chdir(tmp_path)
    args = dict(num_classes=3, img_size=64)
    for name in ('teacher', 'student'):
        save_model(timm.create_model(f'hdkd_{name}', **args), f'runs/first/{name}', list('abc'), args)
    return tmp_path


def test_snippets_are_found():
    assert len(SNIPPETS) == 3


@pytest.mark.parametrize('snippet', SNIPPETS, ids=lambda s: s.splitlines()[2][:24])
def test_snippet(snippet, run_folder, capsys):
    exec(compile(snippet, 'README.md', 'exec'), {})
    for line in re.findall(r'^# (\[.*)$', snippet, re.M):
        assert line in capsys.readouterr().out


def test_every_command_s_flags_exist(capsys):
    from hdkd_timm.cli import create_parser
    text = (ROOT / 'README.md').read_text()
    commands = re.findall(r'hdkd (distill|convert|demo)\b([^\n`#]*)', text)
    assert {name for name, _ in commands} >= {'distill', 'convert'}
    helps = {}
    for name, flags in commands:
        if name not in helps:
            with pytest.raises(SystemExit):
                create_parser().parse_args([name, '--help'])
            helps[name] = capsys.readouterr().out
        for flag in re.findall(r'--[a-z-]+', flags):
            assert flag in helps[name], (name, flag)


def test_model_table():
    """The table's figures are what its command prints, at the size where they are quick to count."""
    result = subprocess.run(
        [sys.executable, ROOT / 'examples' / 'model_table.py'], capture_output=True, text=True, check=True)
    rows = dict(re.findall(r'^\| `(\w+)` \| (.*?) \|$', result.stdout, re.M))
    assert len(rows) == 5
    readme = (ROOT / 'README.md').read_text()
    for name, figures in rows.items():
        assert re.search(rf'\| `{name}` \| .*? \| {re.escape(figures)} \|', readme), (name, figures)


def test_finetune_example(tmp_path):
    for split, number in (('train', 6), ('test', 2)):
        write_images(tmp_path / 'data' / split, classes=['p', 'q'], number=number)
    args = {**TINY_STUDENT}
    save_model(timm.create_model('hdkd_student', **args), tmp_path / 'model', model_args=args)
    result = subprocess.run(
        [sys.executable, ROOT / 'examples' / 'finetune.py', tmp_path / 'model', tmp_path / 'data', '--epochs', '2',
         '--batch-size', '4', '--workers', '0', '--out', tmp_path / 'out'], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert re.search(r'test accuracy \d+\.\d%', result.stdout)
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert list(model.pretrained_cfg['label_names']) == ['p', 'q']
