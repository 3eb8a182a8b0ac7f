"""README and docs say what is so: snippets run, commands parse, links lead somewhere, tables come from files. And the
examples run."""

import ast
import csv
import importlib
import os
import re
import runpy
import shlex
import shutil
import statistics
from importlib.util import find_spec

import numpy as np
import pytest
import timm
import yaml
from helpers import TINY_STUDENT, TINY_TEACHER, write_images
from PIL import Image
from processes import flags, run
from snippets import DOCS, ECOSYSTEM, ROOT, check_snippet, find_blocks, name_snippets, read_pages

import hdkd_timm
from hdkd_timm.cli.main import create_parser, main
from hdkd_timm.distillation.methods import METHODS, convert_settings
from hdkd_timm.models.checkpoint import save_model
from hdkd_timm.training.config import HDKD_FLAGS

TEXTS = read_pages([*ROOT.glob('*.md'), *DOCS.glob('**/*.md'), ROOT / 'weights' / 'README.md'])
# those of other libraries are run by tests/ecosystem
SNIPPETS = find_blocks({page: text for page, text in TEXTS.items() if ECOSYSTEM not in (ROOT / page).parents}, 'python')


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """A folder in which `runs/first` is a finished run and `data` an image folder."""
    folder = tmp_path_factory.mktemp('work')
    for split, number in (('train', 6), ('test', 2)):
        write_images(folder / 'data' / split, number=number)
    shutil.copy(folder / 'data' / 'test' / 'a' / '0.png', folder / 'image.png')
    args = dict(num_classes=3, img_size=64)
    for name in ('teacher', 'student'):
        save_model(
            timm.create_model(f'hdkd_{name}', **args), folder / 'runs' / 'first' / name / 'best', list('abc'), args
        )
    return folder


def test_snippets_are_found():
    pages = {page for page, _ in SNIPPETS}
    assert pages >= {'README.md', 'docs/quickstart.md', 'docs/training.md', 'docs/distillation.md', 'docs/extending.md'}
    left = {'CHANGELOG.md', *read_pages(ECOSYSTEM.glob('*.md'))}
    assert ''.join(text for page, text in TEXTS.items() if page not in left).count('```python') == len(SNIPPETS)


@pytest.mark.parametrize(('page', 'snippet'), SNIPPETS, ids=name_snippets(SNIPPETS))
def test_snippet(page, snippet, runs, monkeypatch, capsys):
    """It runs, and prints what a comment below a print shows."""
    monkeypatch.chdir(runs)
    check_snippet(page, snippet, capsys)


def find_commands(text):
    """The `hdkd` commands of shell code, with variables and placeholders filled in."""
    text = re.sub(r'\s+#.*', '', text.replace('\\\n', ' '))
    values = dict(re.findall(r'(?m)^ *([A-Z]+)="(.*)"$', text))
    for _ in range(3):  # values hold values
        text = re.sub(r'\$([A-Z]+)\b', lambda match: values.get(match[1], '1'), text)
    commands = re.findall(r'(?m)^ *(?:torchrun .* -m hdkd_timm|hdkd) +(.+)$', text)
    return [shlex.split(command.replace('MORE', '9')) for command in commands]


COMMANDS = [(page, command) for page, code in find_blocks(TEXTS, 'bash') for command in find_commands(code)]


def test_commands_are_found():
    assert {command[0] for _, command in COMMANDS} >= {
        'train',
        'distill',
        'eval',
        'predict',
        'average',
        'adjust',
        'calibrate',
        'explain',
        'convert',
        'export',
        'check',
        'report',
        'push',
        'bench',
        'run',
    }


def find_flags(text):
    return set(re.findall(r'(?<![-\w])--[a-z][\w-]*', text))


def read_help(command, capsys):
    """Help of a command with all of its flags; the arguments before it are parsed first."""
    for flag in ('--help-all', '--help'):  # some commands have the latter alone
        with pytest.raises(SystemExit) as end:
            main([*command, flag])
        printed = capsys.readouterr()
        if end.value.code in (0, None):
            return printed.out
    raise AssertionError(f'hdkd {shlex.join(command)}: {printed.err}')


@pytest.mark.parametrize('page', sorted({page for page, _ in COMMANDS}))
def test_commands_parse(page, capsys):
    for _, command in (found for found in COMMANDS if found[0] == page):
        if command[0] != 'run':  # its arguments are the script's
            text = read_help([word for word in command if word not in ('--help', '--help-all')], capsys)
            assert find_flags(' '.join(command)) <= find_flags(text), command


def test_settings_of_methods_in_commands():
    """`--method-args` of the pages are settings that the methods have."""
    found = [command for _, command in COMMANDS if '--method-args' in command]
    assert len(found) > 10
    for command in found:
        for method, settings in create_parser('distill').parse_args(command[1:]).method_args.items():
            converted = convert_settings(method, METHODS[method], settings)
            assert not (method == 'hdkd' and set(converted) & set(HDKD_FLAGS)), command


def test_flags_in_the_text_exist(capsys):
    """Each `--flag` in code within a sentence or table belongs to a command, or to the script that trains weights."""
    known = {'--reparam', '--device-modules', '--signal', '--help-all'}  # of timm's scripts, of SLURM
    for name in sorted({command[0] for _, command in COMMANDS}):
        known |= find_flags(read_help([name], capsys))
    known |= find_flags(runpy.run_path(str(ROOT / 'weights' / 'reproduce.py'))['create_parser']().format_help())
    for page, text in TEXTS.items():
        if page == 'docs/ecosystem/timm-scripts.md':  # flags of other scripts
            continue
        prose = re.sub(r'```.*?```', '', text, flags=re.S)
        codes = [code for code in re.findall(r'`([^`]+)`', prose) if not code.startswith('python ')]
        assert {flag for code in codes for flag in find_flags(code)} <= known, page


def slug(title):
    """Anchor of a heading, as on GitHub."""
    return re.sub(r'[^\w\- ]', '', title.replace('`', '').lower()).replace(' ', '-')


def test_links_lead_somewhere():
    checked = 0
    for page, text in TEXTS.items():
        prose = re.sub(r'```.*?```', '', text, flags=re.S)
        links = re.findall(r'\]\(([^)\s]+)\)', prose) + re.findall(r'<img src="([^"]+)"', prose)
        for link in links:
            if link.startswith('https://'):
                continue
            path, _, anchor = link.partition('#')
            target = (ROOT / page).parent / path if path else ROOT / page
            assert target.exists(), f'{page}: {link}'
            checked += 1
            if anchor:
                titles = re.findall(r'(?m)^#+ (.+)$', target.read_text(encoding='utf-8'))
                assert anchor in map(slug, titles), f'{page}: {link}'
    assert checked > 60


def test_modules_in_the_text_exist():
    """Paths of modules in code, from the repository or from the package."""
    checked = 0
    for page, text in TEXTS.items():
        for path in re.findall(r'`([\w/]+/\w+\.py)`', text):
            assert (ROOT / path).exists() or (ROOT / 'hdkd_timm' / path).exists(), f'{page}: {path}'
            checked += 1
    assert checked > 15


def test_all_pages_are_in_the_navigation():
    class Loader(yaml.SafeLoader):
        """Reads MkDocs' settings, which may name Python objects."""

    def flatten(value):
        if isinstance(value, dict):
            return [page for item in value.values() for page in flatten(item)]
        return [page for item in value for page in flatten(item)] if isinstance(value, list) else [value]

    settings = yaml.load((ROOT / 'mkdocs.yml').read_text(encoding='utf-8'), Loader)
    assert sorted(flatten(settings['nav'])) == sorted(
        path.relative_to(DOCS).as_posix() for path in DOCS.glob('**/*.md')
    )


def test_api_lists_all_public_names():
    listed = re.findall(r'(?m)^::: hdkd_timm\.(\w+)$', TEXTS['docs/api.md'])
    assert sorted(listed) == sorted(set(hdkd_timm.__all__) - {'models', '__version__'})


def test_readme_is_short():
    assert len(TEXTS['README.md'].splitlines()) <= 150


def test_model_tables():
    """The figures are what their command prints."""
    rows = dict(re.findall(r'^\| `(\w+)` \| (.*?) \|$', run_example('model_table.py'), re.M))
    assert len(rows) == 5
    for page in ('README.md', 'docs/models.md'):
        for name, figures in rows.items():
            assert re.search(rf'\| `{name}` \| .*? \| {re.escape(figures)} \|', TEXTS[page]), (page, name, figures)


def test_tables_of_released_weights():
    """They say what the weights' own metrics say."""
    table = runpy.run_path(str(ROOT / 'weights' / 'table.py'))
    assert table['write_table'](table['HEAD']) in TEXTS['weights/README.md']
    shown = ['weights', 'data', 'licence', 'size', 'accuracy', 'balanced accuracy', 'macro AUROC']
    assert table['write_table'](shown) in TEXTS['README.md']


def test_measured_tables():
    """The pages show what docs/tables/ and docs/studies/ hold: `python docs/tables.py` writes them."""
    tables = runpy.run_path(str(DOCS / 'tables.py'))
    marked = [name for text in TEXTS.values() for _, name, *_ in tables['MARKED'].findall(text)]
    studies = [f'study_{path.parent.name}' for path in (DOCS / 'studies').glob('*/study.yaml')]
    files = [path.stem for path in (DOCS / 'tables').glob('*.csv')]
    assert sorted(marked) == sorted(['released', 'peers', *studies, *files])
    for page, text in TEXTS.items():
        assert tables['fill'](text) == text, page


def test_picture_of_imports():
    """It shows what the rooms import now: `python docs/draw_imports.py` draws it."""
    draw = runpy.run_path(str(DOCS / 'draw_imports.py'))
    assert draw['PICTURE'].read_text(encoding='utf-8') == draw['draw']()
    rooms = {path.parent.name for path in (ROOT / 'hdkd_timm').glob('*/__init__.py')}
    listed = set(re.findall(r'(?m)^\| `(\w+)/` \|', TEXTS['docs/architecture.md'].split('beside the package')[0]))
    assert rooms == listed


def run_example(name, *args):
    result = run(ROOT / 'examples' / name, *args, env=dict(os.environ, CUDA_VISIBLE_DEVICES=''))
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def two_classes(tmp_path):
    for split, number in (('train', 6), ('test', 2)):
        write_images(tmp_path / 'data' / split, classes=['p', 'q'], number=number)
    return tmp_path / 'data'


def test_finetune_example(two_classes, tmp_path):
    save_model(timm.create_model('hdkd_student', **TINY_STUDENT), tmp_path / 'model', model_args=TINY_STUDENT)
    args = flags(epochs=2, batch_size=4, workers=0, out=tmp_path / 'out')
    output = run_example('finetune.py', tmp_path / 'model', two_classes, *args)
    assert re.search(r'test accuracy \d+\.\d%', output)
    model = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True)
    assert list(model.pretrained_cfg['label_names']) == ['p', 'q']


def test_distill_example(two_classes, tmp_path):
    args = dict(TINY_TEACHER, num_classes=2)
    save_model(timm.create_model('hdkd_teacher', **args), tmp_path / 'teacher', list('pq'), args)
    args = flags(epochs=2, batch_size=4, workers=0, img_size=32, out=tmp_path / 'out')
    output = run_example('distill.py', tmp_path / 'teacher', two_classes, *args)
    assert 'feature_loss_3' in output
    assert re.search(r'test accuracy \d+\.\d%', output)
    assert timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).num_classes == 2


def test_cross_validation_example(two_classes, tmp_path):
    shutil.rmtree(two_classes / 'test')
    network = dict(depths=(1, 1, 1, 1), dims=(8, 16, 24), embed_dim=32, num_heads=2, head_dim=8)
    settings = dict(folds=3, epochs=1, batch_size=4, workers=0, img_size=32, bootstrap=0, device='cpu')
    args = flags(data_dir=two_classes, output=tmp_path / 'runs', model_kwargs=network, **settings)
    args = ['cross_validation.py', *args]
    output = run_example(*args)
    assert output.count('2 classes, 4 images') == 3
    mean, std = map(float, re.search(r'^balanced_accuracy +(\S+) +(\S+)$', output, re.M).groups())
    folds = [float(x) / 100 for x in re.findall(r'balanced accuracy (\S+) %', output)]
    assert mean == pytest.approx(sum(folds) / 3, abs=1e-3)
    assert std == pytest.approx(statistics.stdev(folds), abs=1e-3)
    assert run_example(*args) == output  # finished runs are not repeated


def save_medmnist(path, shape, labels):
    rng = np.random.default_rng(0)
    arrays = {f'{split}_images': rng.integers(0, 256, (4, *shape), np.uint8) for split in ('train', 'val', 'test')}
    np.savez(path, **arrays, **{f'{split}_labels': np.array(labels, np.uint8) for split in ('train', 'val', 'test')})
    return arrays


@pytest.mark.parametrize(
    ('shape', 'labels', 'names', 'header', 'cells'),
    [
        ((28, 28), [[1], [0], [0], [1]], ['x', 'y'], ['path', 'label', 'split'], ['y']),
        ((28, 28), [1, 0, 10, 1], [], ['path', 'label', 'split'], ['01']),
        ((8, 8, 3), [[0, 1, 1]] * 4, ['p', 'q', 'r'], ['path', 'p', 'q', 'r', 'split'], ['0', '1', '1']),
    ],
)
def test_medmnist_example(shape, labels, names, header, cells, tmp_path):
    arrays = save_medmnist(tmp_path / 'small.npz', shape, labels)
    output = run_example(
        'medmnist.py', tmp_path / 'small.npz', tmp_path / 'out', *(['--labels', *names] if names else [])
    )
    assert '12 images' in output
    with (tmp_path / 'out' / 'images.csv').open(encoding='utf-8', newline='') as file:
        rows = list(csv.reader(file))
    assert rows[:2] == [header, ['train/000000.png', *cells, 'train']]
    assert [row[-1] for row in rows[1:]] == ['train'] * 4 + ['val'] * 4 + ['test'] * 4
    with Image.open(tmp_path / 'out' / rows[-1][0]) as image:
        assert np.array_equal(np.asarray(image), arrays['test_images'][-1])


def test_medmnist_example_of_volumes(tmp_path):
    save_medmnist(tmp_path / 'volumes.npz', (8, 8, 8), [[1]] * 4)
    result = run(ROOT / 'examples' / 'medmnist.py', tmp_path / 'volumes.npz', tmp_path / 'out')
    assert result.returncode == 2
    assert 'has images of shape (8, 8, 8), not (H, W) or (H, W, 3)' in result.stderr
    assert not (tmp_path / 'out').exists()


SCRIPTS = sorted([*DOCS.glob('**/*.py'), *ROOT.glob('weights/*.py'), *ROOT.glob('examples/**/*.py')])


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_scripts_import_what_the_package_has(script):
    """Also those that need packages of extras, and no test runs."""
    for node in ast.walk(ast.parse(script.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'hdkd_timm':
            module = importlib.import_module(node.module)
            names = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            has_modules = hasattr(module, '__path__')
            missing = [name for name in names if not (has_modules and find_spec(f'{node.module}.{name}'))]
            assert not missing, f'{node.module} has no {missing}'
