import subprocess
import sys
from importlib.metadata import entry_points, requires, version

import pytest

import hdkd_timm


def test_import_registers_the_models_and_does_nothing_else():
    code = """
import sys, timm
from timm.data import get_img_extensions
before, extensions = set(sys.modules), get_img_extensions()
models = set(timm.list_models())
import hdkd_timm
loaded = {m for m in set(sys.modules) - before}
assert all(m.startswith('hdkd_timm') for m in loaded), loaded
assert loaded == {'hdkd_timm', 'hdkd_timm.models', 'hdkd_timm.models.hdkd', 'hdkd_timm.version'}, loaded
assert len(set(timm.list_models()) - models) == 5
assert get_img_extensions() == extensions
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_lazy_names():
    for name in hdkd_timm.__all__:
        assert getattr(hdkd_timm, name) is not None
        assert name in dir(hdkd_timm)
    with pytest.raises(AttributeError, match='HDKDTrainer'):
        hdkd_timm.HDKDTrainer  # noqa: B018


def test_metadata():
    assert version('hdkd-timm') == hdkd_timm.__version__
    assert not any('<' in r or '==' in r for r in requires('hdkd-timm') if 'extra' not in r)
    script, = (e for e in entry_points(group='console_scripts') if e.name == 'hdkd')
    assert script.value == 'hdkd_timm.cli:main'
