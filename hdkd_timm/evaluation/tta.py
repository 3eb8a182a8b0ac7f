"""Test-time augmentation: the mean of a model's class probabilities over flipped and rotated copies of an image."""

import itertools
from typing import Dict, Tuple

import torch
from torch import nn

from .problem import Problem, SingleLabel

__all__ = ['VIEWS', 'TestTimeAugmentation']

_H, _W = 2, 3  # dimensions of (B, C, H, W)
_FLIPS: Tuple[Tuple[int, ...], ...] = ((), (_W,), (_H,), (_H, _W))
VIEWS: Dict[str, Tuple[Tuple[bool, Tuple[int, ...]], ...]] = {  # name -> (whether transposed, flipped dimensions)
    'hflip': ((False, ()), (False, (_W,))),
    'flips': tuple((False, flip) for flip in _FLIPS),
    'dihedral': tuple(itertools.product((False, True), _FLIPS)),
}


class TestTimeAugmentation(nn.Module):
    """A model whose class probabilities are the mean over views of each image.

    (B, C, H, W) -> (B, K), logits of these probabilities

    Args:
        model: Returns logits (B, K).
        views: 'hflip' (2 views), 'flips' (4: horizontal, vertical, both) or 'dihedral' (8: flips and quarter turns).
        problem: How logits become probabilities.

    Raises:
        ValueError: in a step, if an image that is not square would be turned.
    """

    __test__ = False  # not a test, whatever pytest may think of its name

    def __init__(self, model: nn.Module, views: str, problem: Problem = SingleLabel):
        super().__init__()
        self.model = model
        self.views = views
        self.problem = problem

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        if self.views == 'dihedral' and height != width:
            raise ValueError(f'--tta dihedral turns images, which must be square, got {height} x {width}: use flips.')
        total = torch.zeros(())
        views = VIEWS[self.views]
        for transposed, flip in views:
            view = (x.transpose(_H, _W) if transposed else x).flip(flip)
            total = total + self.problem.to_probs(self.model(view).float())
        return self.problem.to_logits(total / len(views))
