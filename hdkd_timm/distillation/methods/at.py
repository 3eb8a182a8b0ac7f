"""AT: student and teacher agree where in the image the map of a stage is active."""

from typing import Any, Dict, Optional, Sequence

import torch
import torch.nn.functional as F

from ..networks import Pair
from ..outputs import Needs, Outputs
from .base import Method, check_number


def attention_map(x: torch.Tensor, p: float = 2.0) -> torch.Tensor:
    """Mean over the channels of |x|^p, as a vector of length 1 for each image, (B, C, H, W) -> (B, H * W)."""
    return F.normalize(x.abs().pow(p).mean(dim=1).flatten(1), dim=1)


def at_loss(student_map: torch.Tensor, teacher_map: torch.Tensor, p: float = 2.0) -> torch.Tensor:
    """Mean squared difference of the attention maps, over images and positions, in float32.

    Source: arXiv 1612.03928, and its code (attention-transfer), which takes the mean where the paper has a norm.

    Args:
        student_map: (B, C_s, H_s, W_s).
        teacher_map: (B, C_t, H_t, W_t). Where the sizes differ, the larger map is average-pooled to the smaller size.
        p: Exponent.

    Returns:
        Scalar loss.
    """
    with torch.autocast(student_map.device.type, enabled=False):
        s, t = student_map.float(), teacher_map.float()
        if s.shape[2:] != t.shape[2:]:
            size = [min(of_s, of_t) for of_s, of_t in zip(s.shape[2:], t.shape[2:])]
            s, t = F.adaptive_avg_pool2d(s, size), F.adaptive_avg_pool2d(t, size)
        return (attention_map(s, p) - attention_map(t, p)).square().mean()


class AT(Method):
    """Attention transfer: the loss is the sum over the stages of `at_loss`. It has no layers.

    Args:
        pair: Networks with stages; channels and sizes of the maps may differ.
        weight: Weight of the loss. Published: 1000.
        p: Exponent of the attention map. Published: 2.
        stages: 'S:T', stages of student and teacher to compare, from 1, or 'S'; if empty, the last stage of each stride
            that both have, the stem's included.

    Raises:
        ValueError: for a setting out of range, or if the pair has no such stages.
    """

    name = 'at'
    source = 'Zagoruyko and Komodakis 2017, arXiv 1612.03928; tensors of RepDistiller (b84f547)'

    def __init__(self, pair: Pair, *, weight: float = 1000.0, p: float = 2.0, stages: Sequence[str] = ()):
        pairs = pair.match_stages(self.name, stages)
        super().__init__(weight, *(Needs(stages=tuple(dict.fromkeys(numbers))) for numbers in zip(*pairs)))
        self.pairs = pairs
        self.p = check_number(self.name, 'p', p, at_least=1)

    def describe(self) -> Dict[str, Any]:
        return {'stages': ' '.join(f'{s}:{t}' for s, t in self.pairs)}

    def forward(
        self, student: Outputs, teacher: Outputs, target: torch.Tensor, index: Optional[torch.Tensor] = None
    ) -> Dict[str, torch.Tensor]:
        """As `Method.forward`; the parts are 'loss_STAGE', by the student's stage."""
        losses = {f'loss_{s}': at_loss(student.maps[s], teacher.maps[t], self.p) for s, t in self.pairs}
        return {'loss': torch.stack(list(losses.values())).sum(), **losses}
