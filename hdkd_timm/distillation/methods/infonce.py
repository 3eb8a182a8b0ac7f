"""InfoNCE: an image's features in the student identify its features in the teacher among those of the batch."""

import math
from typing import Any, Dict, Optional

import torch
import torch.nn.functional as F
from torch import nn

from ..networks import Pair
from ..outputs import Needs, Outputs
from .base import Method, check_number, check_whole_number

MAX_SCALE = 100.0


def infonce_loss(student: torch.Tensor, teacher: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Cross entropy of finding the image itself among those of the batch, from student to teacher and back.

        (CE(S, i) + CE(S^T, i)) / 2, S = scale * student teacher^T

    Source: arXiv 1807.03748, in both directions as in arXiv 2103.00020.

    Args:
        student: Embeddings of length 1, (B, D).
        teacher: Embeddings of length 1, (B, D).
        scale: 1 / temperature.

    Returns:
        Scalar loss, log(B) for embeddings that say nothing, 0 for a batch of one.
    """
    scores = scale * student @ teacher.T  # (B, B)
    same = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, same) + F.cross_entropy(scores.T, same)) / 2


class InfoNCE(Method):
    """Contrast of the pooled features within the batch, which each network's linear layer brings to one length.

    It is the part of TAS (arXiv 2410.12342) that fits any pair of networks, between teacher and student, without the
    assistant that TAS builds of both. Its projections, directions and initial temperature are not known here: those of
    CLIP (arXiv 2103.00020) are taken. The temperature is learned, and 0.01 at least.

    The loss depends on the whole batch: other images are the negatives, also those of the same class. With several
    processes each contrasts its own batch.

    Args:
        pair: The networks.
        weight: Weight of the loss.
        dim: Length of the embeddings.
        temperature: Temperature at the start, 0.01 at least.

    Raises:
        ValueError: for a setting out of range, or if a network does not return its pooled features.
    """

    name = 'infonce'
    source = 'InfoNCE, van den Oord et al. 2018, arXiv 1807.03748; a part of TAS, Li et al. 2025, arXiv 2410.12342'

    def __init__(self, pair: Pair, *, weight: float = 1.0, dim: int = 128, temperature: float = 0.07):
        super().__init__(weight, Needs(pooled=True), Needs(pooled=True))
        dim = check_whole_number(self.name, 'dim', dim, at_least=1)
        check_number(self.name, 'temperature', temperature, at_least=1 / MAX_SCALE)
        dim_s, dim_t = pair.pooled_dims(self.name)
        self.embed_student = nn.Linear(dim_s, dim)
        self.embed_teacher = nn.Linear(dim_t, dim)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(
        self, student: Outputs, teacher: Outputs, target: torch.Tensor, index: Optional[torch.Tensor] = None
    ) -> Dict[str, torch.Tensor]:
        pooled_s: Any = student.pooled
        s, t = self.embed_student(pooled_s), self.embed_teacher(teacher.pooled)
        with torch.autocast(pooled_s.device.type, enabled=False):
            s, t = (F.normalize(x.float(), dim=1) for x in (s, t))
            with torch.no_grad():  # not in the loss, where it would have no gradient from the bound on
                self.log_scale.clamp_(max=math.log(MAX_SCALE))
            scale = self.log_scale.float().exp()
            return {'loss': infonce_loss(s, t, scale), 'temperature': 1 / scale.detach()}
