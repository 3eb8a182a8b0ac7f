"""DIST: the student's probabilities correlate with the teacher's, within each image and within each class."""

import logging
from typing import Dict, Optional, Tuple

import torch

from ..networks import Pair
from ..outputs import Needs, Outputs
from .base import Method, check_number

_logger = logging.getLogger(__name__)


def dist_losses(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, tau: float = 4.0
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Means of tau^2 * (1 - Pearson's correlation) of two matrices of probabilities, softmax(logits / tau).

    The inter-class loss correlates the rows, the classes of an image, the intra-class loss the columns, the images of
    the batch for a class. Without a class or an image to vary over, a correlation is 0 and has no gradient.

    Source: arXiv 2205.10536.

    Args:
        student_logits: (B, K).
        teacher_logits: (B, K).
        tau: Temperature.

    Returns:
        The inter-class and the intra-class loss, scalars.
    """
    p_s, p_t = (torch.softmax(logits / tau, dim=1) for logits in (student_logits, teacher_logits))
    inter, intra = (tau**2 * (1 - _correlate(p_s, p_t, dim).mean()) for dim in (1, 0))
    return inter, intra


def _correlate(a: torch.Tensor, b: torch.Tensor, dim: int, eps: float = 1e-8) -> torch.Tensor:
    """Pearson's correlation over a dimension of two matrices."""
    a, b = (x - x.mean(dim=dim, keepdim=True) for x in (a, b))
    norms = torch.linalg.vector_norm(a, dim=dim) * torch.linalg.vector_norm(b, dim=dim)
    return (a * b).sum(dim=dim) / (norms + eps)


class DIST(Method):
    """Distillation of the logits by correlations, which leave the size of the probabilities to the student.

        loss = beta * inter-class loss + gamma * intra-class loss

    The intra-class loss depends on the batch as a whole: with one image it is constant, with few it is noisy. In
    distributed training the batch is that of each process, as published.

    Args:
        pair: The networks.
        weight: Weight of the loss. Published: 2.
        beta: Weight of the inter-class loss. Published: 1.
        gamma: Weight of the intra-class loss. Published: 1.
        tau: Temperature. Published: 4 on CIFAR-100, 1 on ImageNet.

    Raises:
        ValueError: for a setting out of range.
    """

    name = 'dist'
    source = 'Huang et al. 2022, arXiv 2205.10536; tensors of image_classification_sota (6f7a70a)'
    compares_logits = True
    needs_one_class = True

    def __init__(self, pair: Pair, *, weight: float = 2.0, beta: float = 1.0, gamma: float = 1.0, tau: float = 4.0):
        super().__init__(weight, Needs(logits=True), Needs(logits=True))
        self.beta = check_number(self.name, 'beta', beta, at_least=0)
        self.gamma = check_number(self.name, 'gamma', gamma, at_least=0)
        self.tau = check_number(self.name, 'tau', tau, above=0)
        if pair.num_classes == 2 and beta:
            _logger.warning(
                "Method 'dist': the correlation over two classes is 1 or -1 whatever the logits, so that the"
                ' inter-class loss teaches nothing and the intra-class loss is left; set dist.beta=0.'
            )

    def forward(
        self, student: Outputs, teacher: Outputs, target: torch.Tensor, index: Optional[torch.Tensor] = None
    ) -> Dict[str, torch.Tensor]:
        """As `Method.forward`; the parts are 'inter_loss' and 'intra_loss'."""
        inter, intra = dist_losses(student.kd_logits.float(), teacher.logits.float(), self.tau)
        return {'loss': self.beta * inter + self.gamma * intra, 'inter_loss': inter, 'intra_loss': intra}
