"""Which networks can be compared, and how differences are shown."""

import math

import pytest
from helpers import write_run

from hdkd_timm.analysis.comparison import (
    choose_comparisons,
    compare,
    format_differences,
    format_p,
    list_mismatches,
    match_images,
)
from hdkd_timm.evaluation.run_results import read_networks


@pytest.mark.parametrize(
    ('p', 'shown'),
    [
        (0.0496, 'p = 0.0496'),
        (0.04999, 'p = 0.04999'),
        (0.0504, 'p = 0.05'),
        (0.05, 'p = 0.05'),
        (0.012, 'p = 0.012'),
        (5e-5, 'p < 0.0001'),
        (1, 'p = 1'),
    ],
)
def test_p_values_stay_on_their_side(p, shown):
    assert format_p(p) == shown


def test_differences_have_signs_and_units():
    assert format_differences('accuracy', 0.0123) == '+1.23 points'
    assert format_differences('log_loss', -0.5, 0.25) == '−0.5000 to +0.2500'
    assert format_differences('macro_auroc', math.nan, 1.0) == '–'


def test_better_is_by_the_sign_and_the_metric(tmp_path):
    """A network that is always right against one that guesses, in both orders."""
    for name, right in (('bad', 0), ('good', 1)):
        write_run(tmp_path / name, ['a', 'b', 'c'], right=right, number=10)
    for runs, better in ((('bad', 'good'), 'second'), (('good', 'bad'), 'first')):
        (pair,) = choose_comparisons(read_networks([tmp_path / name for name in runs]))
        found = compare(*pair, resamples=50, seed=0)
        assert {row['better'] for row in found['rows'] if row['name'] in ('accuracy', 'log loss')} == {better}
        assert (found['first'], found['second'], found['images'], found['groups']) == (*runs, 30, 0)
        assert sorted([found['only_first'], found['only_second']])[0] == 0
        assert found[f'only_{better}'] > 10
        assert found['is_significant']


def test_the_same_network_does_not_differ(tmp_path):
    for name in ('one', 'two'):
        write_run(tmp_path / name, ['a', 'b', 'c'])
    first, second = read_networks([tmp_path / 'one', tmp_path / 'two'])
    match = match_images(first, second)
    assert (match.problem, match.indices.tolist(), match.is_moved) == (None, list(range(12)), False)
    found = compare(first, second, resamples=20, seed=0)
    assert {row['better'] for row in found['rows']} == {None}
    assert not found['is_significant']


def edit(path, change):
    assert change(path.read_text()) != path.read_text()
    path.write_text(change(path.read_text()))


def test_images_in_another_order_and_folder_are_matched(tmp_path):
    for name in ('one', 'two'):
        write_run(tmp_path / name, ['a', 'b', 'c'])
    (tmp_path / 'two' / 'images.csv').unlink()  # the names are those of predictions.csv
    edit(
        tmp_path / 'two' / 'predictions.csv',
        lambda text: '\n'.join([text.splitlines()[0], *text.replace('/data/', '/moved/').splitlines()[:0:-1]]) + '\n',
    )
    first, second = read_networks([tmp_path / 'one', tmp_path / 'two'])
    match = match_images(first, second)
    assert match.problem is None
    assert match.is_moved
    assert match.indices.tolist() == list(range(12))[::-1]
    assert [compare(first, second, resamples=10, seed=0)[key] for key in ('only_first', 'only_second')] == [0, 0]


def other_split(run):
    edit(run / 'metrics.json', lambda text: text.replace('"test"', '"val"'))


def another_image(run):
    for name in ('predictions.csv', 'images.csv'):
        edit(run / name, lambda text: text.replace('/data/3.png', '/data/other.png'))


def no_predictions(run):
    (run / 'predictions.csv').unlink()


def no_paths(run):
    for name in ('predictions.csv', 'images.csv'):
        edit(run / name, lambda text: text.replace('/data/', ''))
    edit(run / 'config.yaml', lambda text: f'{text}dataset: torch/other\n')


def other_contents(run):
    edit(run / 'images.csv', lambda text: add_digests(text).replace('sum of 2.png', 'another'))


def add_digests(text):
    """A table of images with the column sha256."""
    head, *rows = text.splitlines()
    digests = [f'sum of {row.split(",")[0].rpartition("/")[2]}' for row in rows]
    return '\n'.join([f'{head},sha256', *(f'{row},{digest}' for row, digest in zip(rows, digests))]) + '\n'


@pytest.mark.parametrize(
    ('change', 'problem'),
    [
        (other_split, 'different images'),
        (another_image, 'different images'),
        (no_predictions, 'are missing'),
        (no_paths, 'have no paths'),
        (other_contents, '1 images of the same names have other contents (SHA-256 in images.csv)'),
    ],
)
def test_networks_that_cannot_be_compared(change, problem, tmp_path):
    for name in ('one', 'two'):
        write_run(tmp_path / name, ['a', 'b', 'c'])
    if change is other_contents:
        edit(tmp_path / 'one' / 'images.csv', add_digests)
    change(tmp_path / 'two')
    networks = read_networks([tmp_path / 'one', tmp_path / 'two'])
    found = compare(*networks, resamples=10, seed=0)
    assert problem in found['problem']
    assert list_mismatches(networks) == [f'one and two: {found["problem"]}']


def test_networks_with_other_classes_cannot_be_compared(tmp_path):
    for name, names in (('one', ['a', 'b', 'c']), ('two', ['a', 'b', 'd'])):
        write_run(tmp_path / name, names)
    assert match_images(*read_networks([tmp_path / 'one', tmp_path / 'two'])).problem == 'Their classes differ.'
