"""DKD: the target class and the other classes are distilled apart, with weights of their own."""

import logging
from typing import Dict, Optional, Tuple

import torch
import torch.nn.functional as F

from ..networks import Pair
from ..outputs import Needs, Outputs
from .base import Method, check_number
from .kd import standardize_logits, warn_void_standardization

_logger = logging.getLogger(__name__)


def dkd_losses(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, target: torch.Tensor, tau: float = 4.0
) -> Tuple[torch.Tensor, torch.Tensor]:
    """The decoupled divergences, each tau^2 * mean over the images of KL(p_t || p_s), p = softmax(logits / tau).

    TCKD is the divergence of the two probabilities (p_y, 1 - p_y), y the target; NCKD that of the softmax over the
    K - 1 other classes. KL(p_t || p_s) over all classes is TCKD + (1 - p_y of the teacher) * NCKD for each image.

    Source: arXiv 2203.08679.

    Args:
        student_logits: (B, K).
        teacher_logits: (B, K).
        target: Class indices (B,).
        tau: Temperature.

    Returns:
        TCKD and NCKD, scalars.
    """
    (target_s, others_s), (target_t, others_t) = (
        _decouple(logits / tau, target) for logits in (student_logits, teacher_logits)
    )
    tckd = F.kl_div(target_s, target_t, reduction='batchmean', log_target=True)
    nckd = F.kl_div(others_s, others_t, reduction='batchmean', log_target=True)
    return tau**2 * tckd, tau**2 * nckd


def _decouple(logits: torch.Tensor, target: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Logarithms of (p_y, 1 - p_y), (B, 2), and of the softmax over the other classes, (B, K - 1)."""
    target = target[:, None]
    others = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = logits.gather(1, others + (others >= target))  # classes from the target on move up by one
    binary = torch.cat([logits.gather(1, target), others.logsumexp(dim=1, keepdim=True)], dim=1)
    return F.log_softmax(binary, dim=1), F.log_softmax(others, dim=1)


class DKD(Method):
    """Distillation of the logits in which the other classes weigh the same whether or not the teacher is confident.

        loss = warm-up * (alpha * TCKD + beta * NCKD)

    Args:
        pair: The networks.
        weight: Weight of the loss.
        alpha: Weight of TCKD. Published: 1.
        beta: Weight of NCKD. Published: 8 on CIFAR-100 (2 for weak teachers), 0.5 on ImageNet.
        tau: Temperature. Published: 4 on CIFAR-100, 1 on ImageNet.
        warmup: Fraction of the epochs in which the loss grows linearly, from its share in the first epoch; 0 for none.
            Published: 20 of 240 epochs.
        standardize: Standardise the logits of both networks first (arXiv 2403.01427, published with weight 9, tau 2).

    Raises:
        ValueError: for a setting out of range.
    """

    name = 'dkd'
    source = 'Zhao et al. 2022, arXiv 2203.08679; tensors of mdistiller (a08d46f)'
    compares_logits = True
    needs_one_class = True
    schedule = 'warmup'

    def __init__(
        self,
        pair: Pair,
        *,
        weight: float = 1.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        tau: float = 4.0,
        warmup: float = 20 / 240,
        standardize: bool = False,
    ):
        super().__init__(weight, Needs(logits=True), Needs(logits=True))
        self.alpha = check_number(self.name, 'alpha', alpha, at_least=0)
        self.beta = check_number(self.name, 'beta', beta, at_least=0)
        self.tau = check_number(self.name, 'tau', tau, above=0)
        self.warmup = check_number(self.name, 'warmup', warmup, at_least=0, at_most=1)
        self.standardize = standardize
        if pair.num_classes == 2:
            _logger.warning("Method 'dkd': with two classes there is one other class, NCKD is 0 and TCKD is plain KD.")
            if standardize:
                warn_void_standardization(self.name)
        self.register_buffer('ramp', torch.ones(()), persistent=False)

    def set_epoch(self, epoch: int, epochs: int) -> None:
        if self.warmup:
            self.ramp.fill_(min(1, (epoch + 1) / (self.warmup * epochs)))

    def forward(
        self, student: Outputs, teacher: Outputs, target: torch.Tensor, index: Optional[torch.Tensor] = None
    ) -> Dict[str, torch.Tensor]:
        """As `Method.forward`; the parts are 'tckd_loss' and 'nckd_loss'. Of soft targets the largest is the class."""
        s, t = student.kd_logits.float(), teacher.logits.float()
        if self.standardize:
            s, t = standardize_logits(s), standardize_logits(t)
        target = target if target.ndim == 1 else target.argmax(dim=1)
        tckd, nckd = dkd_losses(s, t, target, self.tau)
        return {'loss': self.ramp * (self.alpha * tckd + self.beta * nckd), 'tckd_loss': tckd, 'nckd_loss': nckd}
