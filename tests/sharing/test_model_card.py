"""Model cards: what is told of names and numbers is what they are."""
import pytest

from hdkd_timm.evaluation.metrics import METRIC_NAMES
from hdkd_timm.evaluation.plots import _fit, find_confused, format_percent
from hdkd_timm.sharing.model_card import _results, _training, escape


@pytest.mark.parametrize(('text', 'shown'), [
    ('<b>|a|', '&#60;b&#62;&#124;a&#124;'), ('a_b*c', 'a\\_b\\*c'), ('[x](y)', '\\[x\\](y)'), ('# a', '\\# a'),
    ('http://evil.example', 'http&#58;//evil.example'), ('www.evil.example', 'www&#46;evil.example'),
    ('@user', '&#64;user'), ('$x$', '&#36;x&#36;'), ('- a', '&#45; a'), ('a\nb', 'a b'), ('a & b', 'a &#38; b'),
    ('\x1b[m\u202ea', '\\\\x1b\\[m\\\\u202ea'), ('0.001', '0.001'), ('plain name', 'plain name')])
def test_escape(text, shown):
    assert escape(text) == shown


@pytest.mark.parametrize(('share', 'shown'), [
    (1, '100 %'), (0.998, '>99 %'), (0.99, '99 %'), (0.004, '<1 %'), (0, '0 %'), (0.5, '50 %')])
def test_percent_without_decimals(share, shown):
    assert format_percent(share) == shown


def test_counts_of_many_classes_are_rows():
    few = _training({}, {}, {'train': {'a': 1, 'b': 2}}, None)
    assert '| train | 1 | 2 | 3 |' in few
    many = _training({}, {}, {'train': {f'c{i}': i for i in range(50)}, 'test': {'c3': 7}}, None)
    assert '| class | train | test |' in many
    assert '| c3 | 3 | 7 |' in many
    assert f'| all | {sum(range(50)):,} | 7 |' in many


def test_most_confused():
    matrix = [[5, 0, 0, 1], [0, 5, 3, 0], [0, 0, 5, 0], [0, 0, 0, 5]]
    assert find_confused(matrix) == [0, 1, 2, 3]
    assert find_confused(matrix, 2) == [1, 2]
    assert find_confused([[3, 0], [0, 3]]) == []


def test_long_names_differ():
    names = [f'{"a long beginning that is the same " * 2}{end}' for end in ('left', 'right')]
    assert len({_fit(name) for name in names}) == 2
    assert all(len(_fit(name)) == 24 for name in names)


def test_results_tell_of_each_class_how_sure_its_recall_is():
    """Of a result of before as well, which has no intervals of classes."""
    scores = dict(precision=0.5, recall=1., f1=2 / 3, support=12)
    metrics = dict.fromkeys(METRIC_NAMES, 0.9)
    report = dict(metrics, images=24, per_class={'a': dict(scores, recall_95=[0.7354, 1.]), 'b': scores})
    shown = _results(report, 'test')
    assert '| a | 0.500 | 1.000 | 0.735 to 1.000 | 0.667 | 12 |' in shown
    assert '| b | 0.500 | 1.000 | – | 0.667 | 12 |' in shown
    assert '| accuracy | 90.0 % | – |' in shown
