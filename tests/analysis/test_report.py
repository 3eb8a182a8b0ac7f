"""Reports show what the run wrote, whatever its names contain, in a page without requests and scripts."""

import html
import json
import re
import shutil
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from data_helpers import tar_folder
from helpers import BROWSER, save_blank, write_images, write_run
from PIL import Image
from processes import flags
from training_helpers import STUDENT, TEACHER

from hdkd_timm import DistillConfig, TrainConfig, distill, train
from hdkd_timm.analysis.mistakes import find_mistakes
from hdkd_timm.analysis.report import write_report
from hdkd_timm.cli import main
from hdkd_timm.evaluation.paired_tests import mcnemar
from hdkd_timm.evaluation.run_results import read_networks
from hdkd_timm.utils.csv_files import write_rows
from hdkd_timm.utils.files import SUMS

NASTY = ['<img src=x onerror=alert(1)>', '"&{{ 7 * 7 }}', "b' <script>alert(2)</script>"]
SETTINGS = dict(
    model_kwargs=STUDENT,
    img_size=32,
    batch_size=8,
    epochs=2,
    workers=0,
    bootstrap=50,
    device='cpu',
)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Two runs on images whose classes, paths and run names contain markup."""
    root = tmp_path_factory.mktemp('report')
    rows = []
    for split, number, seed in (('train', 8, 0), ('val', 4, 1), ('test', 6, 2)):
        folder = root / '<b>images' / split
        write_images(folder, number=number, seed=seed)
        for name, label in zip('abc', NASTY):
            rows += [
                dict(path=str(folder / name / f'{i}.png'), label=label, split=split, group=f'{split}{name}{i // 2}')
                for i in range(number)
            ]
    shutil.copy(rows[0]['path'], rows[-1]['path'])  # a leak, with another label
    write_rows(rows, root / 'images.csv')
    common = dict(SETTINGS, data_csv=str(root / 'images.csv'), output=str(root / 'runs'))
    distill(DistillConfig(**common, experiment='<i>one', teacher_kwargs=TEACHER, student_alone=True))
    train(TrainConfig(**common, model='hdkd_student', experiment='two'))
    return root / 'runs'


def copy_to_edit(run, folder):
    """A copy of a run without checksums, so that it can be edited."""
    return shutil.copytree(run, folder, ignore=shutil.ignore_patterns(SUMS))


@pytest.fixture
def blank_plots(monkeypatch):
    """Plots are made but not drawn, for tests of the text: drawing takes most of the time of a report."""
    monkeypatch.setattr('hdkd_timm.evaluation.plots.save_figure', save_blank)


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
        assert (
            f'On 18 test images, its balanced accuracy is {100 * result["balanced_accuracy"]:.1f} %'
            f' (95 % interval {100 * low:.1f} to {100 * high:.1f})'
        ) in page.text
        assert f'{result["log_loss"]:.3f}' in page.text
        assert f'epoch {metrics["epoch"] + 1} was kept' in page.text
    assert 'student vs teacher' in page.text
    assert 'student vs student_alone' in page.text
    for words in (
        '2 epochs on 24 images of 3 classes at 32 x 32 pixels',
        'Most confident mistakes',
        'batch_size 8',
        'Pairs of duplicates: 1 equal files, 0 equal pixels',
        'with different labels: 1.',
        'Of 18 test images, 1 with equal pixels in train',
        'hdkd_timm 0.',
        'CPU, 1 threads',
    ):
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
    assert {
        f'{i}-{network}-{plot}.png'
        for i, network in enumerate(('teacher', 'student_alone', 'student'), 1)
        for plot in ('curves', 'confusion', 'roc-pr', 'reliability')
    } <= names
    assert 'classes.png' in names
    for name in names:
        with Image.open(report.parent / 'report' / name) as image:
            assert image.convert('RGB').getextrema() != ((255, 255),) * 3
    assert not list(report.parent.glob('.report*'))


@pytest.mark.usefixtures('blank_plots')
def test_several_runs(runs, tmp_path):
    folders = [runs / '<i>one' / 'student', runs / 'two']
    page = Page(write_report(folders, tmp_path / 'out', 0, check=False, resamples=50).read_text())
    first, second = read_networks(folders)
    assert (first.label, second.label) == ('<i>one/student', 'two')
    assert f'{second.label} vs {first.label}' in page.text
    test = mcnemar(first.probs.argmax(1) == first.targets, second.probs.argmax(1) == first.targets)
    assert f'Of 18 images, only {second.label} classifies {test["only_second"]} correctly' in page.text
    losses = [json.loads((folder / 'metrics.json').read_text())['test']['log_loss'] for folder in folders]
    assert f'{losses[1] - losses[0]:+.4f}'.replace('-', '−') in page.text
    assert 'two minus <i>one/student, on the same images in 9 groups' in page.text
    assert 'The images were not checked for duplicates' in page.text
    assert '★' in page.text
    assert 'The best value is not marked' not in page.text
    assert 'Settings that differ' in page.text
    assert not (runs / 'two' / 'report.html').exists()


@pytest.mark.usefixtures('blank_plots')
def test_networks_of_a_run_one_by_one(runs, tmp_path):
    """The report of a network is written into its folder; unfinished networks are listed."""
    run = shutil.copytree(runs / '<i>one', tmp_path / 'run')
    before = (run / 'report.html').read_bytes() if (run / 'report.html').exists() else None
    assert write_report([run / 'teacher'], mistakes=0, check=False) == run / 'teacher' / 'report.html'
    assert before == ((run / 'report.html').read_bytes() if before else None)
    (run / 'student' / 'metrics.json').unlink()
    page = Page(write_report([run], mistakes=0, check=False, resamples=10).read_text())
    assert 'Unfinished networks are not shown: run/student.' in page.text


@pytest.mark.usefixtures('blank_plots')
def test_one_broken_image(runs, tmp_path):
    run = copy_to_edit(runs / 'two', tmp_path / 'run')
    (network,) = read_networks([run])
    first = network.names[find_mistakes(network)[0].image]
    broken = tmp_path / 'broken.png'
    broken.write_bytes(b'broken')
    (run / 'images.csv').write_text((run / 'images.csv').read_text().replace(first, str(broken)))
    page = Page(write_report([run], mistakes=2, check=False).read_text())
    assert 'Cannot read image' in page.text
    assert (run / 'report' / 'mistake-02.png').exists()


@pytest.mark.usefixtures('blank_plots')
def test_dark_frame_is_shown(runs, tmp_path, caplog):
    """The training has warned of it."""
    run = copy_to_edit(runs / 'two', tmp_path / 'run')
    (network,) = read_networks([run])
    first = network.names[find_mistakes(network)[0].image]
    pages = [Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) + i) for i in range(2)]
    pages[0].save(tmp_path / 'dark.tif', save_all=True, append_images=pages[1:])
    (run / 'images.csv').write_text((run / 'images.csv').read_text().replace(first, f'{tmp_path}/dark.tif#1'))
    page = Page(write_report([run], mistakes=1, check=False).read_text())
    assert 'dark.tif#1' in page.text
    assert (run / 'report' / 'mistake-01.png').exists()
    assert 'nearly black' not in caplog.text


@pytest.mark.usefixtures('blank_plots')
def test_equal_images_are_one_mistake(runs, tmp_path):
    run = copy_to_edit(runs / 'two', tmp_path / 'run')
    (network,) = read_networks([run])
    wrong = [mistake.image for mistake in find_mistakes(network)]
    labels = set(network.targets[wrong])
    text = (run / 'images.csv').read_text()
    for i in wrong:  # one picture in other files; with another label it is another mistake
        Image.open(network.names[wrong[0]]).convert('RGB').save(tmp_path / f'{i}.bmp')
        text = text.replace(network.names[i], str(tmp_path / f'{i}.bmp'))
    (run / 'images.csv').write_text(text)
    page = Page(write_report([run], mistakes=5, check=False).read_text())
    assert f'The {len(labels)} most confident of {len(wrong)} misclassified images' in page.text
    assert sum(map(int, re.findall(r'and (\d+) identical to it', page.text))) == len(wrong) - len(labels) > 0
    assert len(list((run / 'report').glob('mistake-*.png'))) == len(labels)


@pytest.mark.usefixtures('blank_plots')
def test_images_that_are_gone(runs, tmp_path):
    other = copy_to_edit(runs / 'two', tmp_path / 'other')
    for name in ('predictions.csv', 'images.csv'):
        text = (other / name).read_text()
        (other / name).write_text(text.replace('<b>images', 'gone'))
    page = Page(write_report([other]).read_text())
    assert 'The images are not files, or no longer exist' in page.text
    assert 'The images could not be checked' in page.text
    assert (other / 'report' / 'classes.png').exists()


@pytest.mark.usefixtures('blank_plots')
def test_report_replaces_its_own(runs, tmp_path, capsys):
    run = shutil.copytree(runs / 'two', tmp_path / 'two')
    assert main(['report', str(run), '--no-check', '--mistakes', '9']) == 0
    assert f"The report is '{run}/report.html'" in capsys.readouterr().out
    number = len(list((run / 'report').iterdir()))
    assert main(['report', str(run), '--no-check', '--mistakes', '0']) == 0
    assert len(list((run / 'report').iterdir())) < number
    # what is no report's stays
    for file, words in (
        ('report/mine.png', "mine.png' is not a picture of a report"),
        ('report.html', "report.html' was not written by hdkd_timm"),
    ):
        (run / file).write_text('mine')
        assert main(['report', str(run), '--no-check', '--mistakes', '0']) == 1
        assert words in capsys.readouterr().err
        assert (run / file).read_text() == 'mine'
        (run / file).unlink()
    assert main(['report', str(run), '--no-check', '--out', str(run / 'metrics.json')]) == 1
    assert "metrics.json' is not a directory" in capsys.readouterr().err


def test_bad_input(runs, tmp_path, capsys):
    (tmp_path / 'empty').mkdir()
    for args, words in (
        ([str(tmp_path / 'none')], "none' does not exist, or is not a directory"),
        ([str(tmp_path / 'empty')], 'has no finished network'),
        ([str(runs / 'two'), str(runs / '<i>one')], 'needs a directory: choose one with --out'),
        ([str(runs / 'two'), f'{runs}/./two', '--out', str(tmp_path / 'out')], 'was given twice'),
    ):
        assert main(['report', *args]) == 1
        error = capsys.readouterr().err
        assert words in error
        assert error.count('\n') == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ['empty']
    run = shutil.copytree(runs / 'two', tmp_path / 'damaged')
    (run / 'predictions.csv').write_text('path,target\na,b\n')
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(ValueError, match="predictions.csv' is damaged"):
        write_report([run], tmp_path / 'new' / 'out')
    assert sorted(tmp_path.rglob('*')) == before


def test_run_ends_with_its_report(image_folder, tmp_path, capsys, monkeypatch):
    settings = dict(img_size=32, epochs=1, workers=0, batch_size=8, bootstrap=10, device='cpu')
    network = dict(model='hdkd_student', model_kwargs=STUDENT)
    args = flags(data_dir=image_folder, output=tmp_path / 'runs', **network, **settings)
    args = ['train', *args]
    assert main([*args, '--experiment', 'a']) == 0
    assert (tmp_path / 'runs' / 'a' / 'report.html').stat().st_size > 1e5
    assert main([*args, '--experiment', 'b', '--no-report']) == 0
    assert not (tmp_path / 'runs' / 'b' / 'report.html').exists()
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)  # a run is no worse without
    assert main([*args, '--experiment', 'c']) == 0
    assert "No report was written (Plots need matplotlib: pip install 'hdkd-timm[plots]'" in capsys.readouterr().out
    assert (tmp_path / 'runs' / 'c' / 'best' / 'config.json').exists()


def test_many_classes(tmp_path):
    """All of 200 classes are in the table, the worst first, with a link to each; the size of plots is limited."""
    names = [f'class {i}' for i in range(200)]
    result = write_run(tmp_path / 'run', names)
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
    write_run(tmp_path / 'run', names)
    text = write_report([tmp_path / 'run'], mistakes=0, check=False).read_text()
    page = Page(text)
    for shown in ('\\x1b[31mred', '\\u202egnp.exe', 'line\\nbreak', '=cmd|x', 'שלום', 'x' * 300, '{{ 7 * 7 }}'):
        assert shown in page.text
    assert not re.search('[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]', text)


@pytest.mark.usefixtures('blank_plots')
def test_networks_that_are_no_rivals(tmp_path):
    """No value is marked as the best between networks that were tested on different images."""
    for name in ('one', 'other'):
        write_run(tmp_path / name, ['a', 'b', 'c'])
    path = tmp_path / 'other' / 'metrics.json'
    path.write_text(path.read_text().replace('"test"', '"val"'))
    page = Page(
        write_report([tmp_path / 'one', tmp_path / 'other'], tmp_path / 'out', 0, False, resamples=10).read_text()
    )
    assert 'The best value is not marked' in page.text
    assert 'one and other: They were tested on different images, which cannot be matched.' in page.text
    assert '★' not in page.text
    assert '12 val images' in page.text
    assert 'so the results are optimistically biased' in page.text


@pytest.mark.usefixtures('blank_plots')
def test_missing_files_are_named(tmp_path):
    write_run(tmp_path / 'run', ['a', 'b', 'c'])
    (tmp_path / 'run' / 'predictions.csv').unlink()
    text = Page(write_report([tmp_path / 'run'], mistakes=1, check=False).read_text()).text
    assert 'Not shown, because files of the run are missing: predictions.csv (ROC,' in text
    assert 'Not shown: The predictions are missing' in text


def test_interrupted_while_plotting(tmp_path, monkeypatch):
    """The previous report stays, page and pictures."""
    for name in ('one', 'two'):
        write_run(tmp_path / name, ['a', 'b', 'c'], right=name == 'two')
    write_report([tmp_path / 'one'], tmp_path / 'out', 0, check=False)
    before = {path: path.read_bytes() for path in (tmp_path / 'out').rglob('*.*')}

    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr('hdkd_timm.analysis.report_plots.plot_class_counts', fail)  # the last one
    with pytest.raises(KeyboardInterrupt):
        write_report([tmp_path / 'two'], tmp_path / 'out', 0, check=False)
    assert {path: path.read_bytes() for path in (tmp_path / 'out').rglob('*.*')} == before


@pytest.mark.skipif(BROWSER is None, reason='there is no Chromium')
def test_in_a_browser(report, tmp_path):
    """A real browser shows all pictures, runs no script and requests no other file, at desktop and phone width."""
    playwright = pytest.importorskip('playwright.sync_api')

    def look(browser, path, width, scheme):
        page = browser.new_page(viewport=dict(width=width, height=800), color_scheme=scheme)
        asked, dialogs = [], []
        page.on('request', lambda request: asked.append(request.url))
        page.on('dialog', lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page.goto(path.as_uri())
        return dict(
            asked=[url for url in asked if not url.startswith('data:image/png')],
            dialogs=dialogs,
            images=page.evaluate('[...document.images].map(image => image.naturalWidth)'),
            is_wide=page.evaluate('document.documentElement.scrollWidth > innerWidth'),
            ground=page.evaluate('getComputedStyle(document.body).backgroundColor'),
        )

    bad = tmp_path / 'bad.html'  # what is seen of a page that is not so
    bad.write_text(
        '<!DOCTYPE html><img src="http://127.0.0.1:9/x.png"><img src=x onerror=alert(1)><p style="width:2000px">wide'
    )
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


def test_images_in_tar_files_are_checked_in_the_splits_of_the_run(tmp_path):
    """Each training image is there twice, so that the validation images held out of them are among those that train."""
    for split, seeds in (('train', (1, 1)), ('test', (2,))):
        for copy, seed in enumerate(seeds):
            write_images(tmp_path / split, number=6, seed=seed, suffix=f'-{copy}.png')
    (tmp_path / 'tars').mkdir()
    for split in ('train', 'test'):
        tar_folder(tmp_path / 'tars' / f'{split}.tar', tmp_path / split)
    settings = {**SETTINGS, 'model_kwargs': {}, 'epochs': 1, 'model': 'test_resnet', 'output': str(tmp_path / 'runs')}
    found = {}
    for name, folder in (('folders', tmp_path), ('tars', tmp_path / 'tars')):
        train(TrainConfig(**settings, data_dir=str(folder), val_fraction=0.25, experiment=name))
        page = Page(write_report([tmp_path / 'runs' / name], mistakes=0, resamples=10).read_text(encoding='utf-8'))
        found[name] = re.findall(r'Of \d+ (?:train|val) images, \d+ with equal pixels in \w+', page.text)
    assert found['tars'] == found['folders']
    assert len(set(found['tars'])) == 2  # above the results and below them
