"""`hdkd run`: a script sees what it would see under `python`."""

import json
import os

import pytest
from processes import flags, run

SCRIPT = """
import json, os, sys
import timm
import helper
line = json.dumps(dict(
    argv=sys.argv, path=sys.path[0], name=__name__, file=__file__, helper=helper.__file__,
    models=timm.list_models('hdkd_*'), rank=os.environ.get('RANK')))
os.write(1, (line + '\\n').encode())  # at once, beside another process's
if '--raise' in sys.argv:
    raise RuntimeError('on purpose')
sys.exit(int(os.environ.get('CODE', 0)))
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / 'scripts').mkdir()
    (tmp_path / 'scripts' / 'helper.py').write_text('')
    (tmp_path / 'scripts' / 'script.py').write_text(SCRIPT)
    return tmp_path / 'scripts' / 'script.py'


def parse_script_output(result):
    return json.loads(next(line for line in result.stdout.splitlines() if line.startswith('{')))


def test_run_as_python_would(script, tmp_path):
    args = ['--help', '-x', '--', 'a b', '--data-dir=c']
    env = dict(os.environ, CODE='7')
    ours = run('-m', 'hdkd_timm', 'run', '--', 'scripts/script.py', *args, cwd=tmp_path, env=env)
    plain = run('scripts/script.py', *args, cwd=tmp_path, env=env, fresh=True)
    assert ours.returncode == plain.returncode == 7, ours.stderr
    ours, plain = parse_script_output(ours), parse_script_output(plain)
    assert len(ours.pop('models')) == 5
    assert plain.pop('models') == []
    assert ours == plain


def test_error_of_a_script_comes_through(script, tmp_path):
    result = run('-m', 'hdkd_timm', 'run', script, '--raise', cwd=tmp_path)
    assert result.returncode == 1
    assert 'RuntimeError: on purpose' in result.stderr
    assert 'Traceback' in result.stderr


def test_run_under_torchrun(script, tmp_path):
    launcher = flags(nproc_per_node=2, master_port=0, rdzv_backend='c10d', rdzv_endpoint='localhost:0')
    args = ['-m', 'torch.distributed.run', *launcher, '-m', 'hdkd_timm', 'run', script, '--flag']
    result = run(*args, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    outputs = [json.loads(line) for line in result.stdout.splitlines() if line.startswith('{')]
    assert sorted(o['rank'] for o in outputs) == ['0', '1']
    assert all(o['argv'] == [str(script), '--flag'] and len(o['models']) == 5 for o in outputs)
