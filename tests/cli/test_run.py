"""`hdkd run`: a script sees what it would see under `python`."""

import json
import os
import sys

import pytest
import timm
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


def test_modules_beside_a_script_come_first(script, tmp_path):
    """As in a checkout of timm, whose `timm` is not the installed one."""
    package = tmp_path / 'scripts' / 'timm'
    package.mkdir()
    installed = os.path.dirname(timm.__file__)
    (package / '__init__.py').write_text(
        f'__path__.append({installed!r})\nexec(open({installed + "/__init__.py"!r}).read())\nIS_CHECKOUT = True\n'
    )
    source = SCRIPT.replace('argv=sys.argv', 'checkout=timm.IS_CHECKOUT, argv=sys.argv')
    script.write_text(source)
    env = dict(os.environ, CODE='7')
    result = run('-m', 'hdkd_timm', 'run', 'scripts/script.py', '-x', '--', 'a b', cwd=tmp_path, env=env)
    assert result.returncode == 7, result.stderr
    output = parse_script_output(result)
    assert len(output.pop('models')) == 5
    folder = os.path.realpath(script.parent)
    assert output == dict(
        checkout=True,
        argv=['scripts/script.py', '-x', '--', 'a b'],
        path=folder,
        name='__main__',
        file=str(tmp_path / 'scripts' / 'script.py'),
        helper=os.path.join(folder, 'helper.py'),
        rank=None,
    )


def test_scripts_that_start_scripts(script, tmp_path):
    """timm's bulk_runner.py starts a command for each model: the form of it that the page names."""
    bulk = tmp_path / 'scripts' / 'bulk.py'
    bulk.write_text(
        'import subprocess, sys, timm\n'
        'assert timm.is_model("hdkd_student")\n'
        'print(subprocess.check_output([*sys.argv[1:], "--model", "hdkd_student"], text=True))\n'
    )
    hdkd = os.path.join(os.path.dirname(sys.executable), 'hdkd')
    result = run('-m', 'hdkd_timm', 'run', bulk, hdkd, 'run', script, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    output = parse_script_output(result)
    assert output['argv'] == [str(script), '--model', 'hdkd_student']
    assert len(output['models']) == 5
