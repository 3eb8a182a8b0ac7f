"""The most confident mistakes."""

import numpy as np

from hdkd_timm.analysis.mistakes import find_mistakes


def test_mistakes():
    probs = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.1, 0.9]])
    assert find_mistakes(probs, np.array([1, 1, 1, 0])).tolist() == [0, 3, 2]
    assert find_mistakes(probs, np.array([0, 1, 0, 1])).tolist() == []
