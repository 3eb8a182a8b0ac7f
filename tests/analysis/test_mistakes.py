"""The most confident mistakes."""

from types import SimpleNamespace

import numpy as np
import pytest

from hdkd_timm.analysis.mistakes import Mistake, find_mistakes
from hdkd_timm.evaluation.problem import MultiLabel, SingleLabel


def network(probs, targets, problem=SingleLabel, thresholds=None):
    return SimpleNamespace(
        probs=np.array(probs), targets=np.array(targets), classes=['a', 'b'], problem=problem, thresholds=thresholds
    )


def test_mistakes():
    probs = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.1, 0.9]]
    found = find_mistakes(network(probs, [1, 1, 1, 0]))
    assert [mistake.image for mistake in found] == [0, 3, 2]
    assert found[1] == Mistake(3, 1, 'a', 'b', 0.9)
    assert find_mistakes(network(probs, [0, 1, 0, 1])) == []


def test_wrong_labels():
    """Those furthest from the truth first, whichever side of their thresholds."""
    probs, targets = [[0.7, 0.05], [0.35, 0.2], [0.1, 0.9]], [[0, 1], [1, 0], [0, 1]]
    found = find_mistakes(network(probs, targets, MultiLabel, np.array([0.4, 0.5])))
    assert found == [
        Mistake(0, 1, 'b', 'no b', 0.05),
        Mistake(0, 0, 'no a', 'a', pytest.approx(0.7)),
        Mistake(1, 0, 'a', 'no a', 0.35),
    ]
