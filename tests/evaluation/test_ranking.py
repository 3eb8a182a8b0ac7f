"""Areas under the curves of weighted images, against scikit-learn's with these weights."""

import numpy as np
import pytest
import sklearn.metrics as sk

from hdkd_timm.evaluation.ranking import Ranking


@pytest.fixture(params=[0, 1, 2])
def images(request):
    """Scores with ties, some of 40 images with the label, and weights of 5 resamples."""
    rng = np.random.default_rng(request.param)
    scores = rng.random(40).round(1 if request.param else 3)
    positive = rng.random(40) < 0.3
    weights = rng.multinomial(40, [1 / 40] * 40, size=5).T.astype(float)
    return scores, positive, weights


@pytest.mark.parametrize(
    ('name', 'expected'), [('auroc', sk.roc_auc_score), ('average_precision', sk.average_precision_score)]
)
def test_areas(name, expected, images):
    scores, positive, weights = images
    found = getattr(Ranking(scores, positive), name)(weights)
    assert found == pytest.approx([expected(positive, scores, sample_weight=column) for column in weights.T])


def test_images_that_were_not_drawn_have_no_effect(images):
    scores, positive, weights = images
    drawn = weights[:, 0] > 0
    for name in ('auroc', 'average_precision'):
        everything = getattr(Ranking(scores, positive), name)(weights[:, :1])
        of_drawn = getattr(Ranking(scores[drawn], positive[drawn]), name)(weights[drawn, :1])
        assert everything == pytest.approx(of_drawn)


def test_undefined_areas():
    ones = np.ones((3, 1))
    none, every = (Ranking(np.array([0.1, 0.5, 0.9]), np.full(3, value)) for value in (False, True))
    assert np.isnan(none.auroc(ones)).all()
    assert np.isnan(none.average_precision(ones)).all()
    assert np.isnan(every.auroc(ones)).all()
    assert every.average_precision(ones) == [1]


def test_placements(images):
    scores, positive, _ = images
    found = Ranking(scores, positive).placements()
    others = scores[~positive]
    expected = [(others < s).mean() + (others == s).mean() / 2 if p else 0 for s, p in zip(scores, positive)]
    np.testing.assert_allclose(found, expected)
