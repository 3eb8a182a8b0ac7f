"""Choices by validation images."""

import pytest

from hdkd_timm.evaluation.candidates import choose, format_candidates, rank

CANDIDATES = [
    {'tau': 0.0, 'accuracy': 0.9, 'log_loss': 0.5, 'macro_f1': float('nan')},
    {'tau': 0.5, 'accuracy': 0.9, 'log_loss': 0.4, 'macro_f1': 0.2},
    {'tau': 1.0, 'accuracy': 0.8, 'log_loss': 0.7, 'macro_f1': 0.3},
]


def test_the_best_with_the_smallest_effort_is_chosen():
    assert choose(CANDIDATES, 'accuracy', lambda each: each['tau'])['tau'] == 0
    assert choose(CANDIDATES, 'accuracy', lambda each: -each['tau'])['tau'] == 0.5
    assert choose(CANDIDATES, 'log_loss', lambda each: each['tau'])['tau'] == 0.5  # lower is better


def test_metrics_that_the_images_do_not_have():
    with pytest.raises(
        ValueError, match=r'--select-metric kappa is not a metric of these images: choose from accuracy'
    ):
        rank(CANDIDATES[0], 'kappa')
    with pytest.raises(ValueError, match='The macro F1 of these images is not defined'):
        choose(CANDIDATES, 'macro_f1', lambda each: 0)


def test_table():
    assert format_candidates(CANDIDATES[1:], 'tau', 1.0, 'macro_f1').splitlines() == [
        'tau     accuracy   macro F1   log loss',
        '0.5       90.0 %      0.200      0.400',
        '1         80.0 %      0.300      0.700  *',
    ]
    assert 'macro F1' not in format_candidates(CANDIDATES, 'tau', 1.0, 'accuracy')
    shares = [{'shares': [1 / 3, 2 / 3], 'accuracy': 0.5}]
    assert format_candidates(shares, 'shares', [1 / 3, 2 / 3], 'accuracy').splitlines()[1].startswith('0.333 0.667 ')
