"""Reports: what they tell is what the run wrote, whatever its names hold, in a page that asks for nothing."""
import html
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers import BROWSER, write_images
from PIL import Image

from hdkd_timm import DistillConfig, TrainConfig, distill, train
from hdkd_timm.analysis.report import _format_p, find_mistakes, read_networks, write_report
from hdkd_timm.cli import main
from hdkd_timm.evaluation.evaluate import write_predictions
from hdkd_timm.evaluation.metrics import full_report
from hdkd_timm.evaluation.paired_tests import mcnemar
from hdkd_timm.evaluation.plots import plot_class_counts, plot_reliability
from hdkd_timm.utils.files import SUMS, write_json, write_rows

NASTY = ['<img src=x onerror=alert(1)>', '"&{{ 7 * 7 }}', "b' <script>alert(2)</script>"]
SETTINGS = dict(
    model_kwargs=dict(dims=(8, 16, 24), depths=(1, 2, 2, 2), embed_dim=32, num_heads=2, head_dim=8),
    img_size=32, batch_size=8, epochs=2, workers=0, bootstrap=50, device='cpu')


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """A folder with two runs on images whose classes, paths and run names hold markup."""
    root = tmp_path_factory.mktemp('report')
    rows = []
    for split, number, seed in (('train', 8, 0), ('val', 4, 1), ('test', 6, 2)):
        folder = root / '<b>images' / split
        write_images(folder, number=number, seed=seed)
        for name, label in zip('abc', NASTY):
            rows += [
                dict(path=str(folder / name / f'{i}.png'), label=label, split=split, group=f'{split}{name}{i // 2}')
                for i in range(number)]
    shutil.copy(rows[0]['path'], rows[-1]['path'])  # a leak, with another label
    write_rows(rows, root / 'images.csv')
    common = dict(SETTINGS, data_csv=str(root / 'images.csv'), output=str(root / 'runs'))
    distill(DistillConfig(
        **common, experiment='<i>one', teacher_kwargs=dict(dims=(8, 16, 24), depths=(1, 1, 1)), student_alone=True))
    train(TrainConfig(**common, model='hdkd_student', experiment='two'))
    return root / 'runs'


def copy_to_edit(run, folder):
    """A copy of a run without checksums, which would tell that it was edited."""
    return shutil.copytree(run, folder, ignore=shutil.ignore_patterns(SUMS))


class Page(HTMLParser):
    """Elements, attributes and visible text of a page."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self._silent = [], [], False
        self.feed(text)
        self.text = ' '.join(' '.join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._silent = tag == 'style'

    def handle_endtag(self, tag):
        self._silent = self._silent and tag != 'style'

    def handle_data(self, data):
        if not self._silent:
            self.words.append(data)


@pytest.fixture(scope='module')
def report(runs):
    return write_report([runs / '<i>one'], mistakes=3, resamples=50)


def test_page_tells_the_results(runs, report):
    page = Page(report.read_text(encoding='utf-8'))
    for name in ('teacher', 'student_alone', 'student'):
        metrics = json.loads((runs / '<i>one' / name / 'metrics.json').read_text())
        result = metrics['test']
        low, high = result['intervals_95']['balanced_accuracy']
        assert (f"On 18 test images its balanced accuracy is {100 * result['balanced_accuracy']:.1f} %"
                f' (95 % interval {100 * low:.1f} to {100 * high:.1f})') in page.text
        assert f"{result['log_loss']:.3f}" in page.text
        assert f"epoch {metrics['epoch'] + 1} was kept" in page.text
    assert 'student against teacher' in page.text
    assert 'student against student_alone' in page.text
    for words in ('2 epochs on 24 images of 3 classes at 32 x 32 pixels', 'Most confident mistakes', 'batch_size 8',
                  'alike: 1 equal files, 0 equal pixels', 'with different labels: 1.',
                  'Of 18 test images 1 with equal pixels in train', 'hdkd_timm 0.', 'CPU, 1 threads'):
        assert words in page.text, words


def test_page_asks_for_nothing_and_runs_nothing(report):
    text = report.read_text(encoding='utf-8')
    page = Page(text)
    tags = [tag for tag, _ in page.elements]
    assert 'script' not in tags
    assert 'link' not in tags
    assert 'b' not in tags  # of the folder
    for tag, attrs in page.elements:
        assert not any(name.startswith('on') for name in attrs)
        for name in ('src', 'href'):
            assert attrs.get(name, '#').startswith(('data:image/png;base64,', '#'))
        if tag == 'img':
            assert len(attrs['alt']) > 20
            assert int(attrs['width']) > 0
    assert not re.search(r'url\(|@import', text)
    assert all(label in page.text for label in (' '.join(name.split()) for name in NASTY))
    assert '49' not in page.text.split('"&')[1][:20]  # names are no templates
    assert html.escape(NASTY[0], quote=False) in text


def test_pictures_are_files_too(report):
    names = {path.name for path in (report.parent / 'report').iterdir()}
    assert {f'{i}-{network}-{plot}.png' for i, network in enumerate(('teacher', 'student_alone', 'student'), 1)
            for plot in ('curves', 'confusion', 'roc-pr', 'reliability')} <= names
    assert 'classes.png' in names
    for name in names:
        with Image.open(report.parent / 'report' / name) as image:
            assert image.convert('RGB').getextrema() != ((255, 255),) * 3
    assert not list(report.parent.glob('.report*'))


def test_several_runs(runs, tmp_path):
    folders = [runs / '<i>one' / 'student', runs / 'two']
    page = Page(write_report(folders, tmp_path / 'out', 0, check=False, resamples=50).read_text())
    first, second = read_networks(folders)
    assert (first.label, second.label) == ('<i>one/student', 'two')
    assert f'{second.label} against {first.label}' in page.text
    test = mcnemar(first.probs.argmax(1) == first.targets, second.probs.argmax(1) == first.targets)
    assert f"Of 18 images, {test['only_second']} are right by {second.label} alone" in page.text
    losses = [json.loads((folder / 'metrics.json').read_text())['test']['log_loss'] for folder in folders]
    assert f'{losses[1] - losses[0]:+.4f}'.replace('-', '−') in page.text
    assert 'two minus <i>one/student, for the same images in 9 groups' in page.text
    assert 'Duplicates were not looked for' in page.text
    assert 'Those that differ' in page.text
    assert not (runs / 'two' / 'report.html').exists()


def test_runs_that_cannot_be_paired(runs, tmp_path):
    other = copy_to_edit(runs / 'two', tmp_path / 'other')
    lines = (other / 'predictions.csv').read_text().splitlines()
    last = lines[-1].split('/test/')[1][:5]
    for name in ('predictions.csv', 'images.csv'):  # as many images, one of them is another
        text = (other / name).read_text()
        (other / name).write_text(text.replace(f'/test/{last}', f'/test/other-{last}'))
    page = Page(write_report([runs / 'two', other], tmp_path / 'out', 0, check=False, resamples=50).read_text())
    assert 'Their images are not the same' in page.text
    assert 'No best is marked' in page.text
    assert '★' not in page.text
    shutil.copy(runs / 'two' / 'images.csv', other)
    # in another order, and another folder, they are
    moved = [line.replace('/test/', '/moved/') for line in lines[1:]]
    (other / 'predictions.csv').write_text('\n'.join([lines[0], *moved[::-1]]) + '\n')
    page = Page(write_report([runs / 'two', other], tmp_path / 'out', 0, check=False, resamples=50).read_text())
    assert 'Of 18 images, 0 are right by other alone and 0 by two alone' in page.text
    (other / 'predictions.csv').unlink()
    page = Page(write_report([runs / 'two', other], tmp_path / 'out', 1, check=False, resamples=50).read_text())
    assert 'The predictions of one of them were not kept' in page.text
    assert 'Not shown: The predictions were not kept' in page.text


def test_networks_of_a_run_one_by_one(runs, tmp_path):
    """The report of one stays with it; what is not finished is told."""
    run = shutil.copytree(runs / '<i>one', tmp_path / 'run')
    before = (run / 'report.html').read_bytes() if (run / 'report.html').exists() else None
    assert write_report([run / 'teacher'], mistakes=0, check=False) == run / 'teacher' / 'report.html'
    assert before == ((run / 'report.html').read_bytes() if before else None)
    (run / 'student' / 'metrics.json').unlink()
    page = Page(write_report([run], mistakes=0, check=False, resamples=10).read_text())
    assert 'Not finished, and not shown: run/student.' in page.text


def test_stars_are_for_the_same_images(runs, tmp_path):
    """A run that was tested on val is no rival."""
    other = copy_to_edit(runs / 'two', tmp_path / 'other')
    assert '★' in write_report([runs / 'two', other], tmp_path / 'a', 0, False, resamples=10).read_text()
    metrics = json.loads((other / 'metrics.json').read_text())
    metrics['val'] = metrics.pop('test')
    (other / 'metrics.json').write_text(json.dumps(metrics))
    page = write_report([runs / 'two', other], tmp_path / 'b', 0, False, resamples=10).read_text()
    assert '★' not in page
    assert '18 val images' in page


def test_one_broken_image(runs, tmp_path):
    run = copy_to_edit(runs / 'two', tmp_path / 'run')
    network, = read_networks([run])
    first = network.names[find_mistakes(network.probs, network.targets)[0]]
    broken = tmp_path / 'broken.png'
    broken.write_bytes(b'broken')
    (run / 'images.csv').write_text((run / 'images.csv').read_text().replace(first, str(broken)))
    page = Page(write_report([run], mistakes=2, check=False).read_text())
    assert 'Cannot read image' in page.text
    assert (run / 'report' / 'mistake-02.png').exists()


def test_equal_images_are_one_mistake(runs, tmp_path):
    run = copy_to_edit(runs / 'two', tmp_path / 'run')
    network, = read_networks([run])
    wrong = find_mistakes(network.probs, network.targets)
    labels = set(network.targets[wrong])
    text = (run / 'images.csv').read_text()
    for i in wrong:  # one picture in other files; with another label it is another mistake
        Image.open(network.names[wrong[0]]).convert('RGB').save(tmp_path / f'{i}.bmp')
        text = text.replace(network.names[i], str(tmp_path / f'{i}.bmp'))
    (run / 'images.csv').write_text(text)
    page = Page(write_report([run], mistakes=5, check=False).read_text())
    assert f'The surest {len(labels)} of {len(wrong)} wrong images' in page.text
    assert sum(map(int, re.findall(r'and (\d+) equal to it', page.text))) == len(wrong) - len(labels) > 0
    assert len(list((run / 'report').glob('mistake-*.png'))) == len(labels)


def test_images_that_are_gone(runs, tmp_path):
    other = copy_to_edit(runs / 'two', tmp_path / 'other')
    for name in ('predictions.csv', 'images.csv'):
        text = (other / name).read_text()
        (other / name).write_text(text.replace('<b>images', 'gone'))
    page = Page(write_report([other]).read_text())
    assert 'The images are no files, or are gone' in page.text
    assert 'The images could not be looked at' in page.text
    assert (other / 'report' / 'classes.png').exists()


def test_names_in_predictions_do_not_matter(runs, tmp_path):
    """What an older run called them, relative to a folder that is forgotten."""
    other = copy_to_edit(runs / 'two', tmp_path / 'other')
    text = (other / 'predictions.csv').read_text()
    (other / 'predictions.csv').write_text(text.replace(str(runs.parent), '.'))
    networks = read_networks([runs / 'two', other])
    assert networks[0].names == networks[1].names
    assert networks[0].groups.tolist() == networks[1].groups.tolist()
    assert len(set(networks[0].groups)) == 9


def test_mistakes():
    probs = np.array([[.9, .1], [.2, .8], [.6, .4], [.1, .9]])
    assert find_mistakes(probs, np.array([1, 1, 1, 0])).tolist() == [0, 3, 2]
    assert find_mistakes(probs, np.array([0, 1, 0, 1])).tolist() == []


def test_report_replaces_its_own(runs, tmp_path, capsys):
    run = shutil.copytree(runs / 'two', tmp_path / 'two')
    assert main(['report', str(run), '--no-check', '--mistakes', '9']) == 0
    assert f"The report is '{run}/report.html'" in capsys.readouterr().out
    number = len(list((run / 'report').iterdir()))
    assert main(['report', str(run), '--no-check', '--mistakes', '0']) == 0
    assert len(list((run / 'report').iterdir())) < number
    # what is no report's stays
    for file, words in (('report/mine.png', "mine.png' is no picture of a report"),
                        ('report.html', "report.html' is no page of hdkd_timm")):
        (run / file).write_text('mine')
        assert main(['report', str(run), '--no-check', '--mistakes', '0']) == 1
        assert words in capsys.readouterr().err
        assert (run / file).read_text() == 'mine'
        (run / file).unlink()
    assert main(['report', str(run), '--no-check', '--out', str(run / 'metrics.json')]) == 1
    assert "metrics.json' is no folder" in capsys.readouterr().err


def test_bad_input(runs, tmp_path, capsys):
    (tmp_path / 'empty').mkdir()
    for args, words in (
            ([str(tmp_path / 'none')], "none' does not exist, or is no folder"),
            ([str(tmp_path / 'empty')], 'holds no finished network'),
            ([str(runs / 'two'), str(runs / '<i>one')], 'needs a folder of its own: name it, --out FOLDER'),
            ([str(runs / 'two'), f'{runs}/./two', '--out', str(tmp_path / 'out')], 'was given twice')):
        assert main(['report', *args]) == 1
        error = capsys.readouterr().err
        assert words in error
        assert error.count('\n') == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ['empty']
    run = shutil.copytree(runs / 'two', tmp_path / 'damaged')
    (run / 'predictions.csv').write_text('path,target\na,b\n')
    with pytest.raises(ValueError, match="predictions.csv' is damaged"):
        write_report([run])


def test_run_ends_with_its_report(image_folder, tmp_path, capsys, monkeypatch):
    args = ['train', '--data-dir', str(image_folder), '--output', str(tmp_path / 'runs'), '--model', 'resnet10t',
            '--img-size', '32', '--epochs', '1', '-j', '0', '-b', '8', '--bootstrap', '10', '--device', 'cpu']
    assert main([*args, '--experiment', 'a']) == 0
    assert (tmp_path / 'runs' / 'a' / 'report.html').stat().st_size > 1e5
    assert main([*args, '--experiment', 'b', '--no-report']) == 0
    assert not (tmp_path / 'runs' / 'b' / 'report.html').exists()
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)  # a run is no worse without
    assert main([*args, '--experiment', 'c']) == 0
    assert 'No report was written (Pictures need matplotlib: pip install' in capsys.readouterr().out
    assert (tmp_path / 'runs' / 'c' / 'best' / 'config.json').exists()


def fake_run(folder, names, number=4, right=0.5, seed=0):
    """The folder of a run of classes of these names, so many test images of each, without images."""
    (folder / 'best').mkdir(parents=True)
    rng = np.random.default_rng(seed)
    targets = np.arange(len(names)).repeat(number)
    probs = rng.dirichlet(np.ones(len(names)), size=len(targets))
    is_right = rng.random(len(targets)) < right
    probs[is_right] = 0.1 * probs[is_right] + 0.9 * np.eye(len(names))[targets[is_right]]
    images = [f'/data/{i}.png' for i in range(len(targets))]
    write_predictions(folder / 'predictions.csv', images, probs, names, targets)
    write_rows([dict(path=image, label=names[k], split=split) for split in ('train', 'test')
                for image, k in zip(images, targets)], folder / 'images.csv')
    write_rows([dict(epoch=0, train_loss=1.5, val_log_loss=1.)], folder / 'summary.csv')
    (folder / 'config.yaml').write_text('model: hdkd_student\n')
    report = full_report(probs, targets, names, None, 0, 1)
    write_json(dict(
        name='student', parameters=5, epoch=0, epochs=1, train_seconds=2., classes=names, test=report),
        folder / 'metrics.json')
    write_json(dict(architecture='hdkd_student', pretrained_cfg=dict(input_size=[3, 32, 32])),
               folder / 'best' / 'config.json')
    return report


def test_many_classes(tmp_path):
    """Each of 200 classes is in the table, the worst first, with a link to it; no picture is huge."""
    names = [f'class {i}' for i in range(200)]
    result = fake_run(tmp_path / 'run', names)
    page = Page(write_report([tmp_path / 'run'], mistakes=0, check=False).read_text())
    rows = [attrs['id'] for tag, attrs in page.elements if tag == 'tr' and 'id' in attrs]
    scores = [result['per_class'][names[int(row.split('-')[2]) - 1]]['f1'] for row in rows]
    assert len(set(rows)) == 200
    assert scores == sorted(scores)
    links = [attrs['href'] for tag, attrs in page.elements if tag == 'a' and attrs['href'].startswith('#class-')]
    assert links == [f'#class-1-{i + 1}' for i in range(200)]  # in the order of the classes
    assert all(len(attrs['alt']) < 1500 for tag, attrs in page.elements if tag == 'img')
    counts = np.array(result['confusion_matrix']) * (1 - np.eye(200, dtype=int))
    assert f'{counts.max()} {100 * counts.max() / 4:.0f} % of 4' in page.text.split('Most frequent confusions')[1]
    for name in ('classes', 'confused', 'confusion', 'roc-pr'):
        with Image.open(tmp_path / 'run' / 'report' / f'{name}.png') as image:
            assert max(image.size) < 2500, name


def test_names_that_control(tmp_path):
    names = ['\x1b[31mred', '\u202egnp.exe', 'line\nbreak', '=cmd|x', 'שלום', 'x' * 300, '{{ 7 * 7 }}']
    fake_run(tmp_path / 'run', names)
    text = write_report([tmp_path / 'run'], mistakes=0, check=False).read_text()
    page = Page(text)
    for shown in ('\\x1b[31mred', '\\u202egnp.exe', 'line\\nbreak', '=cmd|x', 'שלום', 'x' * 300, '{{ 7 * 7 }}'):
        assert shown in page.text
    assert not re.search('[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]', text)


@pytest.mark.parametrize(('file', 'change', 'message'), [
    ('predictions.csv', lambda text: text[:text.rindex('/data')], 'do not belong together: 11 rows of test images'),
    ('predictions.csv', lambda text: text.replace(',a,', ',b,', 1), 'do not belong together: 12 rows'),
    ('predictions.csv', lambda text: text[:-30], "predictions.csv' is damaged"),
    ('predictions.csv', lambda text: text.splitlines()[0] + '\n', 'do not belong together: 0 rows'),
    ('predictions.csv', lambda text: re.sub(r'0\.\d+', 'nan', text, count=1), 'is damaged'),
    ('predictions.csv', lambda text: text.replace('prob_b', 'prob_a'), "two columns are named 'prob_a'"),
    ('metrics.json', lambda text: text.replace('"recall"', '"recal"', 1), "metrics.json' is damaged"),
    ('metrics.json', lambda text: text.replace('"images": 12', '"images": 13'), "metrics.json' is damaged"),
    ('metrics.json', lambda text: text.replace('"epochs": 1,', '"epochs": 1, "epochs": 2,'), "'epochs' is there twice"),
    ('metrics.json', lambda text: '[1]', "metrics.json' is damaged"),
    ('metrics.json', lambda text: text.replace('"parameters": 5,', ''), "metrics.json' is damaged .KeyError"),
    ('summary.csv', lambda text: text.replace('1.5', 'x'), "summary.csv' is damaged"),
    ('images.csv', lambda text: text.replace('label', 'lable'), "images.csv' is damaged"),
    ('config.yaml', lambda text: text * 2, "config.yaml' line 2: 'model' is there twice"),
])
def test_damaged_files(file, change, message, tmp_path):
    """One line that names the file, and no half of a report."""
    fake_run(tmp_path / 'run', ['a', 'b', 'c'])
    path = tmp_path / 'run' / file
    assert change(path.read_text()) != path.read_text()
    path.write_text(change(path.read_text()))
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(ValueError, match=message) as caught:
        write_report([tmp_path / 'run'], tmp_path / 'new' / 'out', 0, check=False)
    assert '\n' not in str(caught.value)
    assert sorted(tmp_path.rglob('*')) == before


def test_missing_files_are_told(tmp_path):
    fake_run(tmp_path / 'run', ['a', 'b', 'c'])
    assert 'are missing' not in write_report([tmp_path / 'run'], mistakes=0, check=False).read_text()
    for name in ('config.yaml', 'images.csv', 'summary.csv', 'best/config.json', 'predictions.csv'):
        (tmp_path / 'run' / name).rename(tmp_path / 'moved')
        text = write_report([tmp_path / 'run'], tmp_path / 'out', 0, check=False).read_text()
        assert f'{name} (' in text.split('are missing')[1][:300], name
        (tmp_path / 'moved').rename(tmp_path / 'run' / name)


def test_other_classes_have_no_best(tmp_path):
    """As many images of other classes are no contest."""
    fake_run(tmp_path / 'one', ['a', 'b', 'c'])
    fake_run(tmp_path / 'two', ['a', 'b', 'd'], seed=1)
    text = Page(write_report([tmp_path / 'one', tmp_path / 'two'], tmp_path / 'out', 0, check=False).read_text()).text
    assert '★' not in text
    assert 'one and two: Their classes are not the same.' in text


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError])
@pytest.mark.parametrize('number', range(6))
def test_interrupted_at_any_file(error, number, tmp_path, monkeypatch):
    """The report of before is whole, or the new one: page and pictures of one and the same."""
    names = ['a', 'b', 'c']
    fake_run(tmp_path / 'one', names, right=0)
    fake_run(tmp_path / 'two', names, right=1)
    out = tmp_path / 'out'
    first = write_report([tmp_path / 'one'], out, 0, check=False).read_bytes()
    pictures = {path.name: path.read_bytes() for path in (out / 'report').iterdir()}
    calls = []

    def count(function):
        def wrapped(*args):
            calls.append(args)
            if len(calls) == number + 1:
                raise error('stop')
            return function(*args)
        return wrapped

    monkeypatch.setattr(Path, 'rename', count(Path.rename))
    monkeypatch.setattr(Path, 'replace', count(Path.replace))
    monkeypatch.setattr('hdkd_timm.analysis.report.plot_reliability', count(plot_reliability))
    monkeypatch.setattr('hdkd_timm.analysis.report.plot_class_counts', count(plot_class_counts))
    if number < 5:
        with pytest.raises(error):
            write_report([tmp_path / 'two'], out, 0, check=False)
        assert (out / 'report.html').read_bytes() == first
        assert {path.name: path.read_bytes() for path in (out / 'report').iterdir()} == pictures
    else:
        write_report([tmp_path / 'two'], out, 0, check=False)
        assert (out / 'report.html').read_bytes() != first
    assert sorted(path.name for path in out.iterdir()) == ['report', 'report.html']


@pytest.mark.parametrize(('p', 'shown'), [
    (0.0496, 'p = 0.0496'), (0.04999, 'p = 0.04999'), (0.0504, 'p = 0.05'), (0.05, 'p = 0.05'), (0.012, 'p = 0.012'),
    (5e-5, 'p < 0.0001'), (1, 'p = 1')])
def test_p_values_stay_on_their_side(p, shown):
    assert _format_p(p) == shown


@pytest.mark.skipif(BROWSER is None, reason='there is no Chromium')
def test_in_a_browser(report, tmp_path):
    """A real browser shows all pictures, runs no script and asks for no other file, on a desktop and on a phone."""
    playwright = pytest.importorskip('playwright.sync_api')

    def look(browser, path, width, scheme):
        page = browser.new_page(viewport=dict(width=width, height=800), color_scheme=scheme)
        asked, dialogs = [], []
        page.on('request', lambda request: asked.append(request.url))
        page.on('dialog', lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page.goto(path.as_uri())
        return dict(
            asked=[url for url in asked if not url.startswith('data:image/png')], dialogs=dialogs,
            images=page.evaluate('[...document.images].map(image => image.naturalWidth)'),
            is_wide=page.evaluate('document.documentElement.scrollWidth > innerWidth'),
            ground=page.evaluate('getComputedStyle(document.body).backgroundColor'))

    bad = tmp_path / 'bad.html'  # what is seen of a page that is not so
    bad.write_text(
        '<!DOCTYPE html><img src="http://127.0.0.1:9/x.png"><img src=x onerror=alert(1)><p style="width:2000px">wide')
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=['--no-sandbox'])
        desktop, phone = look(browser, report, 1280, 'light'), look(browser, report, 390, 'dark')
        other = look(browser, bad, 390, 'light')
        browser.close()
    for seen in (desktop, phone):
        assert seen['asked'] == [report.as_uri()]
        assert seen['dialogs'] == []
        assert len(seen['images']) > 10
        assert min(seen['images']) > 100
        assert not seen['is_wide']
    assert (desktop['ground'], phone['ground']) == ('rgb(255, 255, 255)', 'rgb(21, 23, 26)')
    assert (len(other['asked']), other['dialogs'], other['images'], other['is_wide']) == (3, ['1'], [0, 0], True)
