"""Models pushed to and loaded from a Hub, with the real client and a local server; errors say what to do."""

import json
import os
import shutil
from pathlib import Path

import pytest
import timm
import torch
import yaml
from helpers import TINY_STUDENT, write_images
from hub_server import hub_server
from processes import PACKAGES
from processes import run as run_python
from safetensors.torch import load_file, save

from hdkd_timm import TrainConfig, train
from hdkd_timm.models.pretrained import find_folder
from hdkd_timm.sharing.hub import write_hub_folder
from hdkd_timm.utils.files import SUMS

RELEASED = 'hdkd_student.ham10k'
STUDENT = {k: v for k, v in TINY_STUDENT.items() if k not in ('img_size', 'num_classes')}
# runs commands one after another, each with changes to the environment, and tells how each ended
DRIVER = """
import contextlib, io, json, os, sys
from hdkd_timm.cli import main
ended = []
for env, args in json.loads(sys.argv[1]):
    os.environ.update(env)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(args)
    ended.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(ended))
"""
LOAD = """
import sys
import hdkd_timm, timm, torch
for name in sys.argv[1:]:
    size = {} if name.startswith('hf-hub:us/net') else {'img_size': 32}
    model = timm.create_model(name, pretrained=True, **size).eval()
    torch.manual_seed(0)
    print(list(model.pretrained_cfg['label_names']), model(torch.randn(1, 3, 32, 32)).tolist())
"""


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('hub')
    write_images(folder / 'data' / 'train', number=8)
    write_images(folder / 'data' / 'test', number=4, seed=1)
    metrics = train(
        TrainConfig(
            data_dir=str(folder / 'data'),
            img_size=32,
            epochs=1,
            batch_size=4,
            workers=0,
            device='cpu',
            bootstrap=10,
            model_kwargs=STUDENT,
            output=str(folder / 'runs'),
            experiment='run',
        )
    )
    return metrics['run']


@pytest.fixture(scope='module')
def server():
    with hub_server() as server:
        yield server


def call(code, *args, server=None, **env):
    environment = {k: v for k, v in os.environ.items() if not k.startswith('HF_')}
    environment.update(
        HF_ENDPOINT=server.url if server else 'http://127.0.0.1:9',
        HF_HUB_DISABLE_TELEMETRY='1',
        HF_HUB_DISABLE_XET='1',
        **env,
    )
    return run_python('-c', code, *args, env=environment, modules=PACKAGES)


def drive(commands, **kwargs):
    process = call(DRIVER, json.dumps(commands), **kwargs)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_push_and_load(run, server, tmp_path):
    home = str(tmp_path / 'hf')
    (tmp_path / 'data.md').write_text('Squares, drawn by the tests.')
    push = ['push', run, 'us/net', '--license', 'cc0-1.0', '--data-card', str(tmp_path / 'data.md')]
    (code, out, err), (released_code, _, released_err) = drive(
        [[{'HF_TOKEN': 'writer'}, push], [{}, ['push', RELEASED, 'us/released']]], server=server, HF_HOME=home
    )
    assert code == 0, err
    assert released_code == 0, released_err
    assert f'Pushed to {server.url}/us/net.' in out
    files = server.repos['us/net']['commits'][-1][1]
    assert set(files) == {
        'README.md',
        'config.json',
        'model.safetensors',
        'train.yaml',
        'metrics.json',
        'confusion.png',
    }
    assert files['model.safetensors'] == Path(run, 'best', 'model.safetensors').read_bytes()

    model = timm.create_model(f'local-dir:{run}/best', pretrained=True).eval()
    torch.manual_seed(0)
    expected = f'{model.pretrained_cfg["label_names"]} {model(torch.randn(1, 3, 32, 32)).tolist()}\n'
    loaded = call(LOAD, 'hf-hub:us/net', 'hf-hub:us/released', RELEASED, server=server, HF_HOME=home)
    *_, pushed, shipped = loaded.stdout.splitlines()
    assert loaded.stdout.startswith(expected), loaded.stderr
    assert pushed == shipped
    assert "The weights 'us/released' are for non-commercial use only" in loaded.stderr
    files = server.repos['us/released']['commits'][-1][1]
    assert files == {path.name: path.read_bytes() for path in find_folder(RELEASED).iterdir()}
    # what was loaded once is there without network
    loaded = call(LOAD, 'hf-hub:us/net', HF_HOME=home, HF_HUB_OFFLINE='1')
    assert loaded.stdout == expected, loaded.stderr
    # an older revision stays
    first = server.repos['us/net']['commits'][-1][0]
    server.add('us/net', {'model.safetensors': b'broken'})
    loaded = call(LOAD, f'hf-hub:us/net@{first}', server=server, HF_HOME=str(tmp_path / 'other'))
    assert loaded.stdout == expected, loaded.stderr


def test_push_that_fails(run, server, tmp_path):
    server.add('us/public', {})
    ended = drive(
        [
            [{'HF_TOKEN': ''}, ['push', run, 'us/new']],
            [{'HF_TOKEN': 'secret-reader'}, ['push', run, 'us/new']],
            [{'HF_TOKEN': 'reader'}, ['push', run, 'us/new']],
            [{'HF_TOKEN': 'writer'}, ['push', run, 'us/public', '--private']],
            [{}, ['push', run, 'no/such/name']],
            [{}, ['push', str(tmp_path / 'gone'), 'us/new']],
            [{}, ['push', str(tmp_path), 'us/new']],
            [{}, ['push', run, 'us/new', '--license', 'mine']],
            [{}, ['push', run, 'us/hidden', '--private']],
            [{'HF_TOKEN': 'secret-reader-é'}, ['push', run, 'us/new']],
        ],
        server=server,
        HF_HOME=str(tmp_path),
    )
    assert [code for code, *_ in ended] == 8 * [1] + [0, 1], ended[-2:]
    errors = [err for _, _, err in ended]
    for i, words in enumerate(
        [
            'you are not logged in. Log in with `hf auth login`, or set HF_TOKEN',
            'you are not logged in',
            'your token has no write access there',
            "'us/public' already exists and is public",
            "'no/such/name' is not a valid name",
            "gone' does not exist",
            'is not a model folder: it has no config.json',
            "The Hub rejects the model card of 'us/new': ",
            '',
            'contains invalid characters',
        ]
    ):
        assert words in errors[i]
        assert not words or errors[i].count('\n') == 1
        assert 'secret-reader' not in errors[i]
    assert 'must be one of [apache-2.0, cc0-1.0, cc-by-nc-4.0]' in errors[7]
    assert 'us/new' not in server.repos
    assert server.repos['us/hidden']['private']
    assert not server.repos['us/public']['commits'][-1][1]
    ended = drive([[{}, ['push', run, 'us/new']], [{}, ['push', run, 'us/new']]], HF_HOME=str(tmp_path), HF_TOKEN='x')
    assert "Cannot reach 'us/new' on http://127.0.0.1:9" in ended[0][2]
    ((code, _, err),) = drive([[{}, ['push', run, 'us/new']]], HF_HOME=str(tmp_path), HF_HUB_OFFLINE='1')
    assert code == 1
    assert 'HF_HUB_OFFLINE is set, unset it' in err


def test_config_on_the_hub_that_is_wrong(run, server, tmp_path):
    """It is checked like that of a folder, and all weights are required whatever it says."""
    image = str(Path(run).parents[1] / 'data' / 'test' / 'a' / '0.png')
    config = json.loads(Path(run, 'best', 'config.json').read_text())
    weights = load_file(Path(run, 'best', 'model.safetensors'))
    fewer = {name: value for name, value in weights.items() if name != 'blocks.0.attn.qkv.weight'}
    args, cfg = config['model_args'], config['pretrained_cfg']
    cases = {
        'good': (config, weights, ''),
        'strict': ({**config, 'model_args': {**args, 'pretrained_strict': False}}, fewer, 'Missing key(s)'),
        'checkpoint': (
            {**config, 'model_args': {**args, 'checkpoint_path': image}},
            weights,
            "model_args hold 'checkpoint_path'",
        ),
        'two': ({**config, 'num_classes': 4}, weights, 'num_classes contradict each other, 4 in the top level, 3 in'),
        'names': ({**config, 'label_names': ['a', 'b']}, weights, '2 label names for the 3 classes'),
        'mean': ({**config, 'pretrained_cfg': {**cfg, 'mean': [0.5, 0.5]}}, weights, 'mean must be 3 numbers'),
        'list': ([1], weights, "config.json' must be a mapping of names to values"),
        'none': (None, weights, 'config.json'),
        'repeated': (json.dumps(config)[:-1] + ', "num_classes": 5}', weights, "duplicate key 'num_classes'"),
    }
    for name, (changed, tensors, _) in cases.items():
        text = changed if isinstance(changed, str) else json.dumps(changed)
        files = {'model.safetensors': save(tensors), **({} if changed is None else {'config.json': text.encode()})}
        server.add(f'us/{name}', files)
    ended = drive(
        [
            [{}, ['predict', f'hf-hub:us/{name}', image, '-j', '0', '--out', str(tmp_path / f'{name}.csv')]]
            for name in cases
        ],
        server=server,
        HF_HOME=str(tmp_path / 'hf'),
    )
    for (name, (_, _, words)), (code, _, err) in zip(cases.items(), ended, strict=True):
        assert words in err, name
        assert code == bool(words), (name, err)
        assert (tmp_path / f'{name}.csv').exists() == (not words)


def test_temperature_goes_with_the_model(run, server, tmp_path):
    images = str(Path(run).parents[1] / 'data' / 'test')
    folder = shutil.copytree(run, tmp_path / 'run')
    predict = ['predict', 'hf-hub:us/sure', images, '-j', '0', '--calibrated', '--out']
    flags = ['--data-dir', str(Path(images).parent), '--split', 'train', '-j', '0']
    write_hub_folder(folder, tmp_path / 'before', 'us/sure')
    server.add('us/sure', {path.name: path.read_bytes() for path in (tmp_path / 'before').iterdir()})
    first, calibrated, local = drive(
        [
            [{}, [*predict, str(tmp_path / 'none.csv')]],
            [{}, ['calibrate', str(folder), *flags]],
            [{}, ['predict', str(folder), *predict[2:], str(tmp_path / 'local.csv')]],
        ],
        server=server,
        HF_HOME=str(tmp_path / 'hf'),
    )
    assert first[0] == 1
    assert "'hf-hub:us/sure' is not calibrated" in first[2]
    assert calibrated[0] == local[0] == 0, (calibrated, local)
    write_hub_folder(folder, tmp_path / 'after', 'us/sure')
    server.add('us/sure', {path.name: path.read_bytes() for path in (tmp_path / 'after').iterdir()})
    ((code, _, err),) = drive(
        [[{}, [*predict, str(tmp_path / 'hub.csv')]]], server=server, HF_HOME=str(tmp_path / 'hf')
    )
    assert code == 0, err
    assert (tmp_path / 'hub.csv').read_text() == (tmp_path / 'local.csv').read_text()


def test_hub_folder(run, tmp_path):
    write_hub_folder(run, tmp_path / 'out', 'us/net', data='From *nowhere*.')
    settings = yaml.safe_load((tmp_path / 'out' / 'train.yaml').read_text())
    assert settings['epochs'] == 1
    card = (tmp_path / 'out' / 'README.md').read_text()
    for file in ('train.yaml', 'README.md', 'metrics.json', 'config.json'):
        assert str(tmp_path.parent) not in (tmp_path / 'out' / file).read_text()
        assert 'data_dir' not in (tmp_path / 'out' / file).read_text()
    metrics = json.loads((tmp_path / 'out' / 'metrics.json').read_text())
    metadata = yaml.safe_load(card.split('---\n')[1])
    assert metadata['library_name'] == 'timm'
    values = {m['type']: m['value'] for m in metadata['model-index'][0]['results'][0]['metrics']}
    assert values['accuracy'] == pytest.approx(metrics['test']['accuracy'], abs=1e-4)
    assert f'| accuracy | {metrics["test"]["accuracy"]:.1%}'.replace('%', ' %') in card
    assert '| train | 8 | 8 | 8 | 24 |' in card
    assert 'From *nowhere*.' in card
    assert 'Epoch 1 of 1, the last one' in card  # metrics.json and summary.csv count from 0, people from 1
    assert 'Not a medical device' in card
    with pytest.raises(FileExistsError):
        write_hub_folder(run, tmp_path / 'out', 'us/net')


def test_settings_tell_no_paths(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / 'run')
    settings = yaml.safe_load((folder / 'config.yaml').read_text())
    settings.update(
        class_weights='/home/me/weights.json',
        model='local-dir:/home/me/runs/first/student/best',
        dataset='hfds//home/me/scans',
    )
    (folder / 'config.yaml').write_text(yaml.safe_dump(settings))
    (folder / SUMS).unlink()  # it was edited on purpose
    write_hub_folder(folder, tmp_path / 'out', 'us/net')
    for file in (tmp_path / 'out').glob('*.*'):
        assert b'/home/me' not in file.read_bytes()
    assert yaml.safe_load((tmp_path / 'out' / 'train.yaml').read_text())['dataset'] == 'hfds/scans'
    with pytest.raises(FileNotFoundError, match='config.yaml. is not a directory'):
        write_hub_folder(folder / 'config.yaml', tmp_path / 'other', 'us/net')


def test_num_classes_of_a_run_of_before(run, tmp_path):
    """transformers rejects a second one among the arguments."""
    shutil.copytree(Path(run) / 'best', tmp_path / 'best')
    config = json.loads((tmp_path / 'best' / 'config.json').read_text())
    config['model_args']['num_classes'] = 3
    (tmp_path / 'best' / 'config.json').write_text(json.dumps(config))
    (tmp_path / 'best' / SUMS).unlink()  # there was none
    assert timm.create_model(f'local-dir:{tmp_path / "best"}', pretrained=True).num_classes == 3
    write_hub_folder(tmp_path / 'best', tmp_path / 'out', 'us/net')
    config = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert config['num_classes'] == 3
    assert 'num_classes' not in config['model_args']
