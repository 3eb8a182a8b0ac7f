"""HDKD: soft labels for the distillation head, and the maps of stages that both networks share."""

from typing import Dict, Optional, Sequence

import torch

from ..checks import check_stages
from ..losses import KD_TYPES, REDUCTIONS, feature_distillation_losses, logit_distillation_loss, sum_stages
from ..networks import Pair
from ..outputs import Needs, Outputs
from .base import Method, check_choice, check_number


class HDKD(Method):
    """The distillation terms of `hdkd_loss`: alpha * logit loss + feature_weight * feature loss.

    Args:
        pair: A student with a distillation head (unless `kd_type` is 'none') and a teacher with the same stages.
        kd_type: Distillation of the logits, 'soft', 'hard' or 'none'.
        alpha: Weight of the distillation in the logit loss; the cross entropy has the rest.
        tau: Temperature of the soft distillation.
        feature_weight: lambda, weight of the feature loss; with 0 the maps are not computed.
        stages: Stages whose maps are compared, from 1.
        stage_exponent: gamma, weights the i-th listed stage by i^gamma.
        reduction: Reduction of the soft distillation, 'mean' over B * K as published, or 'batchmean'.
        feature_norm: Divide the squared difference of each channel by the teacher's variance over batch and positions,
            so that stages and networks of any scale weigh the same; not published.
        feature_fade: Let the weight of the feature loss fall linearly, to 0 in the last epoch; not published.

    Raises:
        ValueError: for a setting out of range, or if the pair has no such stages or head.
    """

    name = 'hdkd'
    source = 'Sherif et al. 2024, arXiv 2407.07516'
    compares_logits = True  # not with kd_type 'none'
    schedule = 'feature_fade'

    def __init__(
        self,
        pair: Pair,
        *,
        kd_type: str = 'soft',
        alpha: float = 0.5,
        tau: float = 1.0,
        feature_weight: float = 10.0,
        stages: Sequence[int] = (1, 2, 3),
        stage_exponent: float = 1.0,
        reduction: str = 'mean',
        feature_norm: bool = False,
        feature_fade: bool = False,
    ):
        needs = Needs(logits=kd_type != 'none', stages=tuple(stages) if feature_weight else ())
        super().__init__(1.0, needs, needs)
        self.stages = needs.stages
        self.kd_type = check_choice(self.name, 'kd_type', kd_type, KD_TYPES)
        self.alpha = check_number(self.name, 'alpha', alpha, at_least=0, at_most=1)
        self.tau = check_number(self.name, 'tau', tau, above=0)
        self.feature_weight = check_number(self.name, 'feature_weight', feature_weight, at_least=0)
        self.stage_exponent = check_number(self.name, 'stage_exponent', stage_exponent, at_least=0)
        self.reduction = check_choice(self.name, 'reduction', reduction, REDUCTIONS)
        self.feature_norm = feature_norm
        self.feature_fade = feature_fade
        self.multi_label = pair.multi_label
        self.ce_weight = 1.0 if kd_type == 'none' else 1 - alpha
        if kd_type == 'none' and not self.stages:
            raise pair.error(self.name, "kd_type 'none' with feature_weight 0 distils nothing: change one of them")
        check_stages(pair.student, pair.teacher, self.stages)
        if kd_type != 'none' and not pair.student.distilled:
            raise pair.error(
                self.name,
                f'{pair.student.name} has no distillation head: use a student with one (hdkd_student), or no logit'
                " distillation (hdkd.kd_type=none), or another method, such as 'kd'.",
            )
        self.register_buffer('fade', torch.ones(()), persistent=False)

    def set_epoch(self, epoch: int, epochs: int) -> None:
        if self.feature_fade:
            self.fade.fill_(1 - epoch / max(1, epochs - 1))

    def forward(
        self, student: Outputs, teacher: Outputs, target: torch.Tensor, index: Optional[torch.Tensor] = None
    ) -> Dict[str, torch.Tensor]:
        """As `Method.forward`; the parts are those of `hdkd_loss`."""
        parts: Dict[str, torch.Tensor] = {}
        loss = student.logits.new_zeros(())
        if self.kd_type != 'none':
            parts['kd_loss'] = logit_distillation_loss(
                student.dist_logits, teacher.logits, self.kd_type, self.tau, self.reduction, self.multi_label
            )
            loss = self.alpha * parts['kd_loss']
        if self.stages:
            s, t = ([outputs.maps[stage] for stage in self.stages] for outputs in (student, teacher))
            losses = feature_distillation_losses(s, t, self.stages, normalize=self.feature_norm)
            parts['feature_loss'] = sum_stages(losses, self.stage_exponent)
            parts.update({f'feature_loss_{stage}': part for stage, part in losses.items()})
            weight = self.feature_weight * self.fade if self.feature_fade else self.feature_weight
            loss = loss + weight * parts['feature_loss']
        return {'loss': loss, **parts}
