import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points, requires, version
from pathlib import Path

import pytest
import timm
import torch
from processes import TORCH, run

import hdkd_timm
from hdkd_timm.models.pretrained import RELEASES

ROOT = Path(__file__).parents[2]
FILES = {'README.md', 'config.json', 'confusion.png', 'metrics.json', 'model.safetensors', 'train.yaml'}


def test_import_registers_the_models_and_does_nothing_else():
    code = """
import sys, timm
from timm.data import get_img_extensions
before, extensions = set(sys.modules), get_img_extensions()
models = set(timm.list_models())
import hdkd_timm
loaded = {m for m in set(sys.modules) - before}
assert all(m.startswith('hdkd_timm') for m in loaded), loaded
assert loaded == {
    'hdkd_timm', 'hdkd_timm._compat', 'hdkd_timm.layers', 'hdkd_timm.layers.batch_norm', 'hdkd_timm.layers.cbam',
    'hdkd_timm.layers.gelu', 'hdkd_timm.layers.mbcsa', 'hdkd_timm.layers.mean_max', 'hdkd_timm.layers.patch_embed',
    'hdkd_timm.layers.recompute', 'hdkd_timm.layers.reparam', 'hdkd_timm.models', 'hdkd_timm.models.hdkd',
    'hdkd_timm.models.pretrained', 'hdkd_timm.models.published', 'hdkd_timm.utils', 'hdkd_timm.utils.image_size',
    'hdkd_timm.version'}, loaded
assert len(set(timm.list_models()) - models) == 5
assert get_img_extensions() == extensions
"""
    result = run('-c', code, modules=TORCH)
    assert result.returncode == 0, result.stderr


def test_lazy_names():
    for name in hdkd_timm.__all__:
        assert getattr(hdkd_timm, name) is not None
        assert name in dir(hdkd_timm)
    with pytest.raises(AttributeError, match='HDKDTrainer'):
        hdkd_timm.HDKDTrainer  # noqa: B018


def test_type_checkers_see_the_lazy_names():
    module = ast.parse(Path(hdkd_timm.__file__).read_text(encoding='utf-8'))
    (block,) = (node for node in module.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == hdkd_timm._LAZY


def test_metadata():
    assert version('hdkd-timm') == hdkd_timm.__version__
    assert not any('<' in r or '==' in r for r in requires('hdkd-timm') if 'extra' not in r)
    (script,) = (e for e in entry_points(group='console_scripts') if e.name == 'hdkd')
    assert script.value == 'hdkd_timm.cli:main'


def test_wheel_holds_the_weights(tmp_path):
    """Installed into an empty folder, without network: the released weights classify."""
    source = tmp_path / 'source'
    source.mkdir()
    for name in ('hdkd_timm', 'weights'):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.cfg', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, '-m', 'pip', '--quiet', '--disable-pip-version-check']
    subprocess.run([*pip, 'wheel', '--no-deps', '--no-build-isolation', '--wheel-dir', tmp_path, source], check=True)
    (wheel,) = tmp_path.glob('*.whl')
    with zipfile.ZipFile(wheel) as file:
        missing = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / 'hdkd_timm').rglob('*')
            if path.suffix in {'.py', '.typed', '.yaml', '.html', '.md'} and 'weights' not in path.parts
        }
        missing -= set(file.namelist())
        others = {name.partition('/')[0] for name in file.namelist()} - {'hdkd_timm'}
        weights = {name for name in file.namelist() if name.startswith('hdkd_timm/weights/')}
        (metadata,) = (name for name in file.namelist() if name.endswith('.dist-info/METADATA'))
        description = file.read(metadata).decode()
    assert not missing, f'setup.cfg misses them: {sorted(missing)}'
    assert all(name.endswith('.dist-info') for name in others)
    files = {f'{name}/{file}' for name in RELEASES for file in FILES} | {'LICENSES.md'}
    assert weights == {f'hdkd_timm/weights/{file}' for file in files}, 'scripts of maintainers stay out'
    assert '# hdkd_timm' in description
    for line in ('Author: ', 'Project-URL: Paper, https://arxiv.org/abs/2407.07516', 'Classifier: Typing :: Typed'):
        assert f'\n{line}' in description
    assert not re.search(r'\]\((?!https:)|src="(?!https:)', description), 'links that lead nowhere on a package index'
    subprocess.run([*pip, 'install', '--no-deps', '--no-index', '--target', tmp_path / 'site', wheel], check=True)
    code = f"""
import hdkd_timm, timm, torch
for name in {list(RELEASES)}:
    model = timm.create_model(name, pretrained=True, img_size=32).eval()
    torch.manual_seed(0)
    print(model(torch.randn(1, 3, 32, 32))[0, 0].item(), model.pretrained_cfg['file'])
"""
    env = {**os.environ, 'HF_ENDPOINT': 'http://127.0.0.1:9', 'HF_HOME': str(tmp_path / 'hf')}
    process = run('-c', code, cwd=tmp_path / 'site', env=env, modules=TORCH)
    assert process.returncode == 0, process.stderr
    for name, line in zip(RELEASES, process.stdout.splitlines()):
        model = timm.create_model(name, pretrained=True, img_size=32).eval()
        torch.manual_seed(0)
        file = tmp_path / 'site' / 'hdkd_timm' / 'weights' / name / 'model.safetensors'
        assert line == f'{model(torch.randn(1, 3, 32, 32))[0, 0].item()} {file}'
