"""KD: the student's class probabilities follow the teacher's."""

import logging
from typing import Dict, Optional

import torch
import torch.nn.functional as F

from ..losses import binary_divergence, to_float32
from ..networks import Pair
from ..outputs import Needs, Outputs
from .base import Method, check_choice, check_number

_logger = logging.getLogger(__name__)

FORMS = ('batchmean', 'mean', 'mse')


def standardize_logits(logits: torch.Tensor, eps: float = 1e-7) -> torch.Tensor:
    """Logits with mean 0 and standard deviation 1 (of K - 1 degrees of freedom) for each image, (B, K) -> (B, K).

    Source: logit standardisation, arXiv 2403.01427. With two classes the result is +-0.71 whatever the logits.
    """
    return (logits - logits.mean(dim=1, keepdim=True)) / (logits.std(dim=1, keepdim=True) + eps)


def kd_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    tau: float = 4.0,
    form: str = 'batchmean',
    multi_label: bool = False,
) -> torch.Tensor:
    """tau^2 * KL(p_t || p_s), p = softmax(logits / tau), or the mean squared difference of the logits; of images with
    any number of labels the `binary_divergence`.

    Args:
        student_logits: (B, K).
        teacher_logits: (B, K).
        tau: Temperature.
        form: The divergence divided by B ('batchmean', arXiv 1503.02531 and timm), by B * K ('mean', HDKD and DeiT), or
            the squared difference of the logits over B * K ('mse', arXiv 1312.6184), which has no temperature.
        multi_label: Whether images have any number of labels.

    Returns:
        Scalar loss.
    """
    if form == 'mse':
        return F.mse_loss(student_logits, teacher_logits)
    if multi_label:
        divergence = binary_divergence(student_logits, teacher_logits, tau)
        return divergence / (student_logits.shape[1] if form == 'mean' else 1)
    log_p_s, log_p_t = (F.log_softmax(to_float32(logits) / tau, dim=1) for logits in (student_logits, teacher_logits))
    divergence = F.kl_div(log_p_s, log_p_t, reduction='batchmean', log_target=True)
    return tau**2 * divergence / (student_logits.shape[1] if form == 'mean' else 1)


def warn_void_standardization(method: str) -> None:
    """Warn that standardised logits of two classes carry nothing but which one is larger."""
    _logger.warning(
        f"Method '{method}': with two classes standardised logits are +-0.71 whatever the logits, so that the student"
        f' learns nothing from the teacher; drop {method}.standardize.'
    )


class KD(Method):
    """Distillation of the logits.

    Args:
        pair: The networks.
        weight: Weight of the loss.
        tau: Temperature.
        form: 'batchmean', 'mean' or 'mse', see `kd_loss`.
        standardize: Standardise the logits of both networks first (arXiv 2403.01427, published with weight 9, tau 2).

    Raises:
        ValueError: for a setting out of range.
    """

    name = 'kd'
    source = 'Hinton et al. 2015, arXiv 1503.02531'
    compares_logits = True
    ce_weight = 0.1

    def __init__(
        self,
        pair: Pair,
        *,
        weight: float = 0.9,
        tau: float = 4.0,
        form: str = 'batchmean',
        standardize: bool = False,
    ):
        super().__init__(weight, Needs(logits=True), Needs(logits=True))
        self.tau = check_number(self.name, 'tau', tau, above=0)
        self.form = check_choice(self.name, 'form', form, FORMS)
        self.standardize = standardize
        self.multi_label = pair.multi_label
        if standardize and pair.multi_label:
            raise pair.error(
                self.name, 'logits are standardised over classes, not over labels of their own: drop kd.standardize.'
            )
        if standardize and pair.num_classes == 2:
            warn_void_standardization(self.name)

    def forward(
        self, student: Outputs, teacher: Outputs, target: torch.Tensor, index: Optional[torch.Tensor] = None
    ) -> Dict[str, torch.Tensor]:
        s, t = student.kd_logits, teacher.logits
        if self.standardize:
            s, t = standardize_logits(s.float()), standardize_logits(t.float())
        return {'loss': kd_loss(s, t, self.tau, self.form, self.multi_label)}
