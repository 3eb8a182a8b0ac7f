"""Which networks can be compared, and how differences are shown."""
import math

import pytest
from helpers import write_run

from hdkd_timm.analysis.comparison import choose_comparisons, compare, format_differences, format_p, match_images
from hdkd_timm.evaluation.run_results import read_networks


@pytest.mark.parametrize(('p', 'shown'), [
    (0.0496, 'p = 0.0496'), (0.04999, 'p = 0.04999'), (0.0504, 'p = 0.05'), (0.05, 'p = 0.05'), (0.012, 'p = 0.012'),
    (5e-5, 'p < 0.0001'), (1, 'p = 1')])
def test_p_values_stay_on_their_side(p, shown):
    assert format_p(p) == shown


def test_differences_have_signs_and_units():
    assert format_differences('accuracy', 0.0123) == '+1.23 points'
    assert format_differences('log_loss', -0.5, 0.25) == '−0.5000 to +0.2500'
    assert format_differences('macro_auroc', math.nan, 1.) == '–'


def test_better_is_by_the_sign_and_the_metric(tmp_path):
    """A network that is always right against one that guesses, in both orders."""
    for name, right in (('bad', 0), ('good', 1)):
        write_run(tmp_path / name, ['a', 'b', 'c'], right=right, number=10)
    for runs, better in ((('bad', 'good'), 'second'), (('good', 'bad'), 'first')):
        pair, = choose_comparisons(read_networks([tmp_path / name for name in runs]))
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
