import pytest
import torch
from torch import nn

from hdkd_timm.evaluation.tta import VIEWS, TestTimeAugmentation


class Corner(nn.Module):
    """Logits that depend on where things are: the corner pixels."""

    def forward(self, x):
        return torch.stack([x[:, 0, 0, 0], x[:, 0, 0, -1], x[:, 0, -1, 0]], dim=1)


def views_by_hand(x):
    return {
        'hflip': [x, x.flip(3)],
        'flips': [x, x.flip(3), x.flip(2), x.flip(2, 3)],
        'dihedral': [torch.rot90(y, k, (2, 3)) for y in (x, x.flip(3)) for k in range(4)],
    }


@pytest.mark.parametrize('name', VIEWS)
def test_mean_of_the_probabilities(name):
    x = torch.randn(4, 1, 6, 6)
    views = views_by_hand(x)[name]
    expected = sum(Corner()(view).softmax(dim=1) for view in views) / len(views)
    actual = TestTimeAugmentation(Corner(), name)(x).softmax(dim=1)
    torch.testing.assert_close(actual, expected)
    assert (actual - Corner()(x).softmax(dim=1)).abs().max() > 0.01


def test_all_views_are_different():
    x = torch.arange(9.0).view(1, 1, 3, 3)
    for name, views in VIEWS.items():
        seen = {tuple((x.transpose(2, 3) if turned else x).flip(flip).flatten().tolist()) for turned, flip in views}
        assert len(seen) == len(views) == dict(hflip=2, flips=4, dihedral=8)[name]


def test_images_that_cannot_be_turned():
    x = torch.randn(1, 1, 4, 6)
    TestTimeAugmentation(Corner(), 'flips')(x)
    with pytest.raises(ValueError, match='dihedral turns images, which must be square, got 4 x 6: use flips'):
        TestTimeAugmentation(Corner(), 'dihedral')(x)
