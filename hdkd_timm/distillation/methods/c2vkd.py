"""C2VKD: the last maps, by channel and by position; the average of label and teacher takes the place of the label."""

import math
from typing import Any, Dict, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import nn

from ..networks import Pair
from ..outputs import Needs, Outputs
from .base import Method, check_number


def pdd_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Pixel-wise decoupled distillation, an image in place of a pixel: the class of the image against all others.

        0.5 * mean over images of KL(p || q), p = (p_y, 1 - p_y) of the student, q = ((1 + t_y) / 2, (1 - t_y) / 2)

    t_y is the teacher's probability of the class: q is the mean of teacher and label. The divergence is from the
    student to it, so that a student that is certain of a wrong class is corrected more slowly than by cross entropy.

    Source: arXiv 2310.07265. The paper writes 1 + t_y without the half, which takes 0.5 * log(2) from the loss and
    leaves the gradient.

    Args:
        student_logits: (B, K).
        teacher_logits: (B, K).
        target: Class indices (B,), or class probabilities (B, K), of which the largest counts.

    Returns:
        Scalar loss.
    """
    target = (target.argmax(dim=1) if target.dim() > 1 else target)[:, None]
    (log_p, log_rest), (log_t, log_t_rest) = (
        _log_target_and_rest(logits.float(), target) for logits in (student_logits, teacher_logits)
    )
    log_q, log_q_rest = log_t.exp().log1p() - math.log(2), log_t_rest - math.log(2)
    divergence = log_p.exp() * (log_p - log_q) + log_rest.exp() * (log_rest - log_q_rest)
    return 0.5 * divergence.mean()


def _log_target_and_rest(logits: torch.Tensor, target: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Logarithms of the probability of the target and of all other classes together, (B,) each."""
    log_p = F.log_softmax(logits, dim=1)
    is_target = torch.arange(logits.shape[1], device=logits.device) == target  # (B, K)
    return log_p.gather(1, target)[:, 0], log_p.masked_fill(is_target, -torch.inf).logsumexp(dim=1)


def global_loss(student_map: torch.Tensor, teacher_map: torch.Tensor) -> torch.Tensor:
    """Divergence of the channels at each position, mean over B * C * H * W of q * (log q - log p).

    p and q are the softmax over the channels of the student's and the teacher's map.

    Source: visual-linguistic feature distillation, arXiv 2310.07265, as in the published code; the equations of the
    paper have the divergence in the other direction.

    Args:
        student_map: (B, C, H, W).
        teacher_map: (B, C, H, W).

    Returns:
        Scalar loss.
    """
    log_p, log_q = F.log_softmax(student_map, dim=1), F.log_softmax(teacher_map, dim=1)
    return F.kl_div(log_p, log_q, reduction='sum', log_target=True) / teacher_map.numel()


def patch_loss(student_map: torch.Tensor, teacher_map: torch.Tensor) -> torch.Tensor:
    """Which positions resemble each other: mean squared difference of two n x n matrices, n = B * H * W.

    The matrices are X X^T / (C - 1), X the vectors of all positions of all images, each divided by its norm, its mean
    over the channels then subtracted. Neither is built: |X X^T - Y Y^T|^2 is |X^T X|^2 - 2 |X^T Y|^2 + |Y^T Y|^2, whose
    matrices are C x C.

    Source: arXiv 2310.07265, as in the published code.

    Args:
        student_map: (B, C, H, W), two channels at least.
        teacher_map: (B, C, H, W).

    Returns:
        Scalar loss.
    """
    x, y = _position_vectors(student_map), _position_vectors(teacher_map)  # (n, C)
    squares = (x.T @ x).square().sum() - 2 * (x.T @ y).square().sum() + (y.T @ y).square().sum()
    return squares / (len(x) * (x.shape[1] - 1)) ** 2


def _position_vectors(features: torch.Tensor) -> torch.Tensor:
    vectors = F.normalize(features.permute(0, 2, 3, 1).flatten(0, 2), dim=1)
    return vectors - vectors.mean(dim=1, keepdim=True)


class C2VKD(Method):
    """What of C2VKD, made for segmentation, is defined for classifiers.

        loss = PDD + global_weight * global + patch_weight * patch

    The maps are those of the last stages, the student's brought to the teacher's channels by a 1x1 convolution, the
    larger resized to the smaller. Left out is the linguistic term: it needs a pre-trained attention pool that was never
    published.

    PDD holds the label, so it takes the place of the cross entropy, whose weight is 0 where this method comes first. It
    acts on the logits that count at inference, or on the class head beside a method that trains a distillation head.
    The patch term compares positions across the images of the batch; with several processes each has its own.

    Args:
        pair: The networks.
        weight: Weight of the loss.
        global_weight: Weight of `global_loss` in it.
        patch_weight: Weight of `patch_loss` in it.
        stages: One 'S:T', the stages that are compared; the last of each network if empty.

    Raises:
        ValueError: for a setting out of range, or if a network has no stages.
    """

    name = 'c2vkd'
    source = (
        'part of C2VKD, Zheng et al. 2023, arXiv 2310.07265; compared with zhengxuJosh/C2VKD at fe1ab3d, PDD with a'
        ' reconstruction, bapedragon/iBKD_Seg at d585015'
    )
    compares_logits = True
    needs_one_class = True
    ce_weight = 0.0

    def __init__(
        self,
        pair: Pair,
        *,
        weight: float = 1.0,
        global_weight: float = 0.1,
        patch_weight: float = 0.1,
        stages: Sequence[str] = (),
    ):
        self.stages = pair.match_one_stage(self.name, stages)
        # PDD trains what the cross entropy would: it does not ask for a distillation head to be trained apart
        super().__init__(weight, Needs(stages=self.stages[:1]), Needs(logits=True, stages=self.stages[1:]))
        self.global_weight = check_number(self.name, 'global_weight', global_weight, at_least=0)
        self.patch_weight = check_number(self.name, 'patch_weight', patch_weight, at_least=0)
        s, t = pair.student.stage(self.stages[0]), pair.teacher.stage(self.stages[1])
        self.project = nn.Conv2d(s.channels, t.channels, 1, bias=False)

    def describe(self) -> Dict[str, Any]:
        return {'stages': '{}:{}'.format(*self.stages)}

    def forward(
        self, student: Outputs, teacher: Outputs, target: torch.Tensor, index: Optional[torch.Tensor] = None
    ) -> Dict[str, torch.Tensor]:
        s, t = self.project(student.maps[self.stages[0]]), teacher.maps[self.stages[1]]
        with torch.autocast(s.device.type, enabled=False):
            size = [min(sides) for sides in zip(s.shape[-2:], t.shape[-2:])]
            s, t = (
                F.interpolate(x.float(), size, mode='bilinear') if list(x.shape[-2:]) != size else x.float()
                for x in (s, t)
            )
            parts = {
                'pdd_loss': pdd_loss(student.logits, teacher.logits, target),
                'global_loss': global_loss(s, t),
                'patch_loss': patch_loss(s, t),
            }
        loss = parts['pdd_loss'] + self.global_weight * parts['global_loss'] + self.patch_weight * parts['patch_loss']
        return {'loss': loss, **parts}
