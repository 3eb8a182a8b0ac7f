"""Sinkhorn: optimal transport between the student's and the teacher's features of a batch, in any order."""

import math
from typing import Any, Dict, Optional

import torch
import torch.nn.functional as F
from torch import nn

from ..networks import Pair
from ..outputs import Needs, Outputs
from .base import Method, check_number, check_whole_number


def sinkhorn_plan(cost: torch.Tensor, regularization: float, iterations: int) -> torch.Tensor:
    """The entropic transport plan between two uniform distributions, by Sinkhorn's iteration of logarithms.

    Minimises <P, cost> - regularization * entropy(P) over P with rows and columns that sum to 1 / B. Columns do after
    any number of iterations, rows in the limit; the smaller the regularization, the more it takes.

    Source: Cuturi 2013, arXiv 1306.0895.

    Args:
        cost: (B, B).
        regularization: Above 0; the plan is the more spread out, the larger it is.
        iterations: Number of iterations.

    Returns:
        The plan, (B, B), a constant.
    """
    with torch.no_grad():
        log_kernel, log_marginal = -cost / regularization, -math.log(len(cost))
        columns = torch.zeros_like(log_kernel[:1])  # (1, B)
        for _ in range(iterations):
            rows = log_marginal - (log_kernel + columns).logsumexp(dim=1, keepdim=True)  # (B, 1)
            columns = log_marginal - (log_kernel + rows).logsumexp(dim=0, keepdim=True)
        return (log_kernel + rows + columns).exp()


def sinkhorn_loss(
    student: torch.Tensor, teacher: torch.Tensor, regularization: float = 0.1, iterations: int = 100
) -> torch.Tensor:
    """Cost of moving the student's features onto the teacher's, sum of P_ij * (1 - cos(t_i, s_j)).

    The plan P is that of `sinkhorn_plan` and held fixed in the gradient, which is that of the regularised cost at the
    optimum (envelope theorem). Computed in float32.

    Source: the local term of WCoRD, arXiv 2012.08674.

    Args:
        student: (B, D).
        teacher: (B, D).
        regularization: As in `sinkhorn_plan`.
        iterations: As in `sinkhorn_plan`.

    Returns:
        Scalar loss, between 0 and 2.
    """
    with torch.autocast(student.device.type, enabled=False):
        cost = 1 - F.normalize(teacher.float(), dim=1) @ F.normalize(student.float(), dim=1).T
        return (sinkhorn_plan(cost, regularization, iterations) * cost).sum()


class Sinkhorn(Method):
    """Optimal transport between the student's and the teacher's pooled features of a batch.

    It is the local term of WCoRD (arXiv 2012.08674), not WCoRD: its global term, a contrast with a critic, is not
    public. A permutation of the batch costs nothing: distributions are matched, not images. The student's features are
    brought to the teacher's length by a linear layer. The teacher's are taken as they are: were both embedded, both
    would shrink to one point, which costs nothing either.

    The loss depends on the whole batch, and is 1 - cos for a batch of one. With several processes each has its own.

    Args:
        pair: The networks.
        weight: Weight of the loss.
        regularization: Weight of the entropy of the plan.
        iterations: Iterations of Sinkhorn's algorithm.

    Raises:
        ValueError: for a setting out of range, or if a network does not return its pooled features.
    """

    name = 'sinkhorn'
    source = 'local term of WCoRD, Chen et al. 2021, arXiv 2012.08674; the plan compared with POT 0.9.7'

    def __init__(self, pair: Pair, *, weight: float = 0.05, regularization: float = 0.1, iterations: int = 100):
        super().__init__(weight, Needs(pooled=True), Needs(pooled=True))
        self.regularization = check_number(self.name, 'regularization', regularization, above=0)
        self.iterations = check_whole_number(self.name, 'iterations', iterations, at_least=1)
        self.embed = nn.Linear(*pair.pooled_dims(self.name))

    def forward(
        self, student: Outputs, teacher: Outputs, target: torch.Tensor, index: Optional[torch.Tensor] = None
    ) -> Dict[str, torch.Tensor]:
        pooled_t: Any = teacher.pooled
        return {'loss': sinkhorn_loss(self.embed(student.pooled), pooled_t, self.regularization, self.iterations)}
