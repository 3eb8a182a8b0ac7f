"""Released weights: what is shipped, what `pretrained=True` loads, and every way in which the Hub can fail."""

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import yaml
from helpers import write_images
from hub_server import hub_server
from processes import PACKAGES, run
from training_helpers import STUDENT as TINY

import hdkd_timm
from hdkd_timm import DistillConfig, distill
from hdkd_timm.cli import main
from hdkd_timm.models.checkpoint import load_model, save_model
from hdkd_timm.models.pretrained import HUB_ORG, RELEASES, WEIGHTS, find_folder, find_weights, hub_id
from hdkd_timm.sharing.hub import write_hub_folder
from hdkd_timm.utils.config import read_yaml
from hdkd_timm.utils.files import SUMS

ROOT = Path(__file__).parents[2]
TEACHER, STUDENT = 'hdkd_teacher.brain_mri', 'hdkd_student.brain_mri'
NC_TEACHER, NC_STUDENT = 'hdkd_teacher.ham10k', 'hdkd_student.ham10k'
FILES = {'README.md', 'config.json', 'confusion.png', 'metrics.json', 'model.safetensors', 'train.yaml'}
# loads models one after another, and tells a logit of each, or the error
LOAD = """
import json, sys, warnings
warnings.simplefilter('ignore')
import hdkd_timm, timm, torch
from hdkd_timm.models.pretrained import find_folder
told = []
for name in sys.argv[1:]:
    assert find_folder(name) is None
    try:
        model = timm.create_model(name, pretrained=True, img_size=32).eval()
        torch.manual_seed(0)
        told.append(['', model(torch.randn(1, 3, 32, 32))[0, 0].item()])
    except Exception as e:
        told.append([type(e).__name__, str(e)])
print(json.dumps(told))
"""


def logit(name, **kwargs):
    model = timm.create_model(name, pretrained=True, img_size=32, **kwargs).eval()
    torch.manual_seed(0)
    return model(torch.randn(1, 3, 32, 32))[0, 0].item()


def test_names():
    assert timm.list_pretrained('hdkd*') == sorted(RELEASES)
    for name in RELEASES:
        cfg = timm.get_pretrained_cfg(name)
        assert cfg.hf_hub_id == hub_id(name) == f'{HUB_ORG}/{name}'
        assert len(cfg.label_names) == cfg.num_classes
        assert timm.create_model(name, device='meta').num_classes == cfg.num_classes
    with pytest.raises(RuntimeError, match='Invalid pretrained tag'):
        timm.create_model('hdkd_student.gold', pretrained=True)


@pytest.mark.parametrize('name', RELEASES)
def test_shipped_folder(name):
    folder = find_folder(name)
    assert {path.name for path in folder.iterdir()} == FILES
    assert hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest() == RELEASES[name].sha256
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    assert {t.dtype for t in tensors.values()} == {torch.float16, torch.int64}
    cfg, config = timm.get_pretrained_cfg(name), json.loads((folder / 'config.json').read_text())
    saved = config['pretrained_cfg']
    assert (config['architecture'], saved['tag'], saved['license']) == (cfg.architecture, cfg.tag, cfg.license)
    assert tuple(saved['input_size']) == cfg.input_size
    assert tuple(config['label_names']) == cfg.label_names
    metrics = json.loads((folder / 'metrics.json').read_text())
    assert tuple(metrics['classes']) == cfg.label_names
    card = (folder / 'README.md').read_text()
    assert f'| accuracy | {metrics["test"]["accuracy"]:.1%}'.replace('%', ' %') in card
    assert yaml.safe_load(card.split('---\n')[1])['license'] == cfg.license
    assert f"timm.create_model('{name}', pretrained=True)" in card
    assert f"'{hub_id(name)}', dtype=torch.float32" in card
    assert yaml.safe_load((folder / 'train.yaml').read_text())['data'].strip() in card
    assert not any(word in path.read_text() for path in folder.glob('*.[jmy]*') for word in ('data_csv', str(ROOT)))


@pytest.mark.parametrize('name', RELEASES)
def test_registered_cfg_is_that_of_the_folder(name):
    config = json.loads((find_folder(name) / 'config.json').read_text())
    assert config['num_classes'] == config['pretrained_cfg']['num_classes']
    assert 'num_classes' not in config['model_args']  # transformers takes no second one
    saved = dict(config['pretrained_cfg'], architecture=config['architecture'], label_names=config['label_names'])
    registered = timm.get_pretrained_cfg(name).to_dict(remove_source=True)
    assert saved == json.loads(json.dumps(registered))


def test_size_of_all():
    assert sum(path.stat().st_size for path in (ROOT / 'weights').rglob('*.*')) < 70e6


@pytest.mark.parametrize('name', RELEASES)
def test_pretrained(name):
    tensors = safetensors.torch.load_file(find_folder(name) / WEIGHTS)
    model = timm.create_model(name, pretrained=True)
    assert model.pretrained_cfg['label_names'] == timm.get_pretrained_cfg(name).label_names
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, tensors[key].to(value.dtype), rtol=0, atol=0)
    from_folder = timm.create_model(f'local-dir:{find_folder(name)}', pretrained=True)
    torch.testing.assert_close(from_folder.head.weight, model.head.weight, rtol=0, atol=0)
    # other classes, size and channels, the same stages
    other = timm.create_model(name, pretrained=True, num_classes=11, img_size=(96, 80), in_chans=1).eval()
    assert other(torch.randn(1, 1, 96, 80)).shape == (1, 11)
    torch.testing.assert_close(other.stages[2].state_dict(), model.stages[2].state_dict())
    torch.testing.assert_close(other.stages[0][0].conv.weight, model.stages[0][0].conv.weight.sum(1, keepdim=True))
    features = timm.create_model(name, pretrained=True, features_only=True)
    torch.testing.assert_close(features.model.stages[1].state_dict(), model.stages[1].state_dict())


def test_ways_to_name_weights():
    first = timm.get_pretrained_cfg('hdkd_student').tag
    expected = logit(NC_STUDENT)
    assert logit('hdkd_student') == logit(f'hdkd_student.{first}')
    assert logit('hdkd_student', pretrained_cfg='ham10k') == expected
    assert logit('hdkd_student', pretrained_cfg=timm.get_pretrained_cfg(NC_STUDENT).to_dict()) == expected
    assert logit(STUDENT) != expected
    # a file of one's own wins
    assert (
        logit(
            STUDENT,
            num_classes=7,
            pretrained_cfg_overlay=dict(file=str(find_folder(NC_STUDENT) / WEIGHTS), num_classes=7),
        )
        == expected
    )
    overlay = dict(file=str(find_folder(STUDENT) / WEIGHTS))
    cfg = timm.create_model('hdkd_student', pretrained=True, pretrained_cfg_overlay=overlay).pretrained_cfg
    assert not any(cfg.get(key) for key in ('label_names', 'license', 'tag'))  # those of the weights of the tag
    overlay['label_names'] = tuple('abcd')
    cfg = timm.create_model('hdkd_student', pretrained=True, pretrained_cfg_overlay=overlay).pretrained_cfg
    assert cfg['label_names'] == tuple('abcd')
    model, args = load_model(NC_STUDENT, img_size=32)
    torch.manual_seed(0)
    assert model.eval()(torch.randn(1, 3, 32, 32))[0, 0].item() == expected


def test_random_weights_have_no_licence_and_no_labels():
    for kwargs in ({}, dict(pretrained_cfg='ham10k')):
        cfg = timm.create_model('hdkd_student', device='meta', **kwargs).pretrained_cfg
        assert not {'license', 'label_names', 'file'} & set(cfg)
    cfg = timm.create_model('hdkd_student', device='meta', pretrained_cfg_overlay=dict(license='mit')).pretrained_cfg
    assert cfg['license'] == 'mit'


def test_labels_are_those_of_the_classes(tmp_path):
    model = timm.create_model('hdkd_student', pretrained=True, num_classes=5)
    assert 'label_names' not in model.pretrained_cfg
    model = timm.create_model(STUDENT, pretrained=True)
    assert timm.create_model(STUDENT, pretrained=True, num_classes=4).pretrained_cfg['label_names'][0] == 'glioma'
    save_model(model, tmp_path / 'new', ['a', 'b', 'c', 'd'])
    assert 'glioma' not in (tmp_path / 'new' / 'config.json').read_text()
    model.reset_classifier(6)
    save_model(model, tmp_path / 'reset')
    assert 'label_names' not in timm.create_model(f'local-dir:{tmp_path / "reset"}').pretrained_cfg


def test_licence_is_warned_of_once():
    code = f"""
import hdkd_timm, timm
for name in ({NC_STUDENT!r}, {NC_STUDENT!r}, {STUDENT!r}):
    timm.create_model(name, pretrained=True)
timm.create_model({NC_TEACHER!r})
"""
    process = run('-c', code)
    assert process.returncode == 0, process.stderr
    assert process.stderr.count('UserWarning') == 1
    assert f"The weights '{NC_STUDENT}' are for non-commercial use only, cc-by-nc-4.0." in process.stderr
    assert 'ViDIR Group' in process.stderr
    assert '<string>:4: UserWarning' in process.stderr  # where the weights were asked for


def test_damaged_file(tmp_path, monkeypatch):
    shutil.copytree(find_folder(STUDENT), tmp_path / STUDENT)
    with open(tmp_path / STUDENT / WEIGHTS, 'r+b') as file:
        file.seek(100_000)
        file.write(b'\0\0\0\1')
    monkeypatch.setattr('hdkd_timm.models.pretrained.FOLDERS', (tmp_path,))
    with pytest.raises(ValueError, match='is damaged, or not of this version of hdkd_timm'):
        timm.create_model(STUDENT, pretrained=True)
    with pytest.raises(ValueError, match='is damaged, or not of this version of hdkd_timm'):
        write_hub_folder(STUDENT, tmp_path / 'out', 'us/net')


def test_push_of_released_weights(tmp_path):
    write_hub_folder(STUDENT, tmp_path / 'out', 'us/net')
    assert {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()} == {
        path.name: path.read_bytes() for path in find_folder(STUDENT).iterdir()
    }
    with pytest.raises(ValueError, match=r"hdkd_student.brain_mri' already has a model card, README\.md"):
        write_hub_folder(STUDENT, tmp_path / 'other', 'us/net', license='mit')
    # by the model's name, and what was written before, which one may have edited
    (tmp_path / 'out' / 'README.md').write_text('Mine.')
    write_hub_folder(tmp_path / 'out', tmp_path / 'again', 'us/net')
    assert (tmp_path / 'again' / 'README.md').read_text() == 'Mine.'
    write_hub_folder('hdkd_student', tmp_path / 'first', 'us/net')
    name = f'hdkd_student.{timm.get_pretrained_cfg("hdkd_student").tag}'
    assert (tmp_path / 'first' / WEIGHTS).read_bytes() == (find_folder(name) / WEIGHTS).read_bytes()


def test_commands_take_their_names(tmp_path):
    for split in ('train', 'test'):
        write_images(tmp_path / 'data' / split, timm.get_pretrained_cfg(TEACHER).label_names, number=2)
    settings = dict(
        data_dir=str(tmp_path / 'data'),
        img_size=32,
        epochs=1,
        batch_size=8,
        workers=0,
        device='cpu',
        bootstrap=0,
        output=str(tmp_path / 'runs'),
        teacher_checkpoint=TEACHER,
    )
    cards = {}
    for experiment, changes in dict(
        scratch=dict(method=('kd',), model_kwargs=TINY),
        free=dict(model=STUDENT, pretrained=True),
        nc=dict(model=NC_STUDENT, pretrained=True),
    ).items():
        folder = distill(DistillConfig(**settings, **changes, experiment=experiment))['run']
        write_hub_folder(f'{folder}/student', tmp_path / experiment, 'us/net')
        cards[experiment] = (tmp_path / experiment / 'README.md').read_text()
        assert '## Licence\n\n' in cards[experiment]
        assert '| `teacher_checkpoint` | hdkd\\_teacher.brain\\_mri |' in cards[experiment]
    metadata = {name: yaml.safe_load(card.split('---\n')[1]) for name, card in cards.items()}
    # a teacher that the run trained, from weights like those
    settings = read_yaml(f'{folder}/config.yaml')
    settings.update(teacher=NC_TEACHER, teacher_pretrained=True, teacher_checkpoint=None, pretrained=False)
    own = shutil.copytree(folder, tmp_path / 'own')
    (own / SUMS).unlink()
    (own / 'config.yaml').write_text(yaml.safe_dump(settings))
    write_hub_folder(own / 'student', tmp_path / 'of-own', 'us/net')
    card = (tmp_path / 'of-own' / 'README.md').read_text()
    assert f'cc-by-nc-4.0. Its teacher started from {NC_TEACHER}: cc-by-nc-4.0.' in card
    # what forbids something is handed on, what allows everything is for its owner to say
    assert ['license' in metadata[name] for name in ('scratch', 'free', 'nc')] == [False, False, True]
    assert metadata['nc']['license'] == 'cc-by-nc-4.0'
    assert 'The weights that the training started from: cc-by-nc-4.0.' in cards['nc']
    assert 'The weights that the training started from: cc0-1.0.' in cards['free']
    assert all('Its teacher, hdkd_teacher.brain_mri: cc0-1.0.' in card for card in cards.values())
    assert 'started from' not in cards['scratch']
    config = json.loads((tmp_path / 'scratch' / 'config.json').read_text())
    assert not {'license', 'tag'} & set(config['pretrained_cfg'])
    write_hub_folder(f'{folder}/student', tmp_path / 'other', 'us/net', license='other')
    assert (
        'other. The weights that the training started from: cc-by-nc-4.0.'
        in (tmp_path / 'other' / 'README.md').read_text()
    )

    out = tmp_path / 'predictions.csv'
    assert main(['predict', STUDENT, str(tmp_path / 'data' / 'test'), '--img-size', '32', '--out', str(out)]) == 0
    assert out.read_text().startswith('path,label,prob_glioma,prob_meningioma,prob_notumor,prob_pituitary')
    assert main(['eval', STUDENT, '--data-dir', str(tmp_path / 'data'), '--img-size', '32', '-j', '0']) == 0


@pytest.fixture(scope='module')
def bare_package(tmp_path_factory):
    """Where a copy of the package lies that came without weights."""
    folder = tmp_path_factory.mktemp('site')
    shutil.copytree(
        Path(hdkd_timm.__file__).parent, folder / 'hdkd_timm', ignore=shutil.ignore_patterns('weights', '__pycache__')
    )
    return folder


@pytest.fixture
def load(bare_package, tmp_path):
    """Load models in a process with that package, from a server or from none."""

    def load(*names, endpoint='http://127.0.0.1:9', **env):
        environment = {k: v for k, v in os.environ.items() if not k.startswith(('HF_', 'HDKD_'))}
        environment.update(
            HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path / 'hf'), HF_HUB_DISABLE_TELEMETRY='1', HF_HUB_DISABLE_XET='1'
        )
        # a process finds the package of its folder first
        process = run('-c', LOAD, *names, cwd=bare_package, env={**environment, **env}, modules=PACKAGES)
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout)

    return load


def test_hub(load, tmp_path):
    files = {name: (find_folder(name) / WEIGHTS).read_bytes() for name in RELEASES}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        expected = logit(TEACHER)
    with hub_server() as server:
        server.add(hub_id(TEACHER), {WEIGHTS: files[TEACHER], 'pytorch_model.bin': b'never asked for'})
        server.add(hub_id(NC_TEACHER), {WEIGHTS: files[NC_TEACHER]})
        server.truncated.add((hub_id(NC_TEACHER), WEIGHTS))
        server.add(hub_id(NC_STUDENT), {WEIGHTS: files[STUDENT]})
        server.add(f'friends/{TEACHER}', {WEIGHTS: files[TEACHER]})
        there, not_there, truncated, other = load(TEACHER, STUDENT, NC_TEACHER, NC_STUDENT, endpoint=server.url)
        assert there == ['', expected]
        assert not_there[0] == 'FileNotFoundError'
        assert "'hdkd_student.brain_mri' did not come with this installation" in not_there[1]
        assert f"there is no model.safetensors at 'hdkd-timm/hdkd_student.brain_mri' on {server.url}" in not_there[1]
        assert truncated[0] == 'OSError'
        assert f"downloading 'hdkd-timm/hdkd_teacher.ham10k' on {server.url} failed" in truncated[1]
        assert other[0] == 'ValueError'  # and what the cache holds now is asked for again
        assert "downloaded from 'hdkd-timm/hdkd_student.ham10k': its sha256 is not" in other[1]
        assert all(path.endswith(f'/{WEIGHTS}') for _, path in server.requests)
        # a download that was cut off goes on, a file that was refused or damaged is asked for again
        server.truncated.clear()
        server.add(hub_id(NC_STUDENT), {WEIGHTS: files[NC_STUDENT]})
        (blob,) = tmp_path.rglob(f'blobs/{RELEASES[TEACHER].sha256}')
        blob.write_bytes(files[TEACHER][:-4] + b'\1\2\3\4')
        assert [kind for kind, _ in load(NC_TEACHER, NC_STUDENT, TEACHER, endpoint=server.url)] == ['', '', '']
        # another organisation
        server.requests.clear()
        assert load(TEACHER, endpoint=server.url, HDKD_HUB_ORG='friends') == [['', expected]]
        assert all(path.startswith(f'/friends/{TEACHER}/') for _, path in server.requests)
    # what the cache holds needs no Hub
    cached, refused = load(TEACHER, STUDENT)
    assert cached == ['', expected]
    assert refused[0] == 'ConnectionError'
    assert "cannot reach 'hdkd-timm/hdkd_student.brain_mri' on http://127.0.0.1:9" in refused[1]
    cached, offline = load(TEACHER, STUDENT, HF_HUB_OFFLINE='1')
    assert cached == ['', expected]
    assert offline[0] == 'ConnectionError'
    assert 'HF_HUB_OFFLINE is set: unset it once to download it' in offline[1]
    ((kind, message),) = load(STUDENT, HDKD_HUB_ORG='a/b')
    assert kind == 'ValueError'
    assert "HDKD_HUB_ORG='a/b' is not a valid organisation name on the Hub" in message


def test_hub_names_of_weights_in_the_package(tmp_path):
    """Where the Hub cannot be reached, or does not have them, the package's file is taken, and this is told."""
    code = """
import json, sys
import hdkd_timm
from hdkd_timm.models.checkpoint import load_model
from hdkd_timm.models.pretrained import find_packaged
print(json.dumps([find_packaged(name) for name in sys.argv[1:]]))
print(load_model(sys.argv[1])[0].pretrained_cfg['tag'] if '@' in sys.argv[-1] else '')
"""
    name = f'hf-hub:{hub_id(TEACHER)}'
    others = ['hf-hub:hdkd-timm/no', f'hf-hub:other/{TEACHER}', TEACHER, f'local-dir:{hub_id(TEACHER)}', f'{name}@main']
    environment = {k: v for k, v in os.environ.items() if not k.startswith(('HF_', 'HDKD_'))}
    environment.update(HF_HOME=str(tmp_path / 'hf'), HF_HUB_DISABLE_TELEMETRY='1', HF_HUB_DISABLE_XET='1')
    offline = run('-c', code, name, *others, env={**environment, 'HF_HUB_OFFLINE': '1'}, modules=PACKAGES)
    assert offline.returncode == 0, offline.stderr
    found, tag = offline.stdout.splitlines()
    assert json.loads(found) == [TEACHER, *others]
    assert tag == 'brain_mri'
    assert (
        f"'{name}' cannot be had of the Hub (LocalEntryNotFoundError): the same file of the package" in offline.stderr
    )
    with hub_server() as server:
        server.add(hub_id(TEACHER), {WEIGHTS: b'x', 'config.json': b'{}'})
        names = [name, f'hf-hub:{hub_id(STUDENT)}']
        online = run('-c', code, *names, env={**environment, 'HF_ENDPOINT': server.url}, modules=PACKAGES)
    assert json.loads(online.stdout.splitlines()[0]) == [name, STUDENT]
    assert '(RepositoryNotFoundError)' in online.stderr


def test_cache_dir(tmp_path, monkeypatch):
    monkeypatch.setattr('hdkd_timm.models.pretrained.FOLDERS', ())
    snapshot = tmp_path / f'models--{hub_id(STUDENT).replace("/", "--")}'
    (snapshot / 'snapshots' / 'abc').mkdir(parents=True)
    (snapshot / 'refs').mkdir()
    (snapshot / 'refs' / 'main').write_text('abc')
    shutil.copy(ROOT / 'weights' / STUDENT / WEIGHTS, snapshot / 'snapshots' / 'abc' / WEIGHTS)
    assert find_weights(STUDENT, tmp_path) == str(snapshot / 'snapshots' / 'abc' / WEIGHTS)
    assert (
        timm.create_model(STUDENT, pretrained=True, cache_dir=tmp_path).pretrained_cfg['file'].startswith(str(snapshot))
    )
