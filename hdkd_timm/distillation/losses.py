"""The losses of HDKD as pure functions.

Source: arXiv 2407.07516 and the published code (github omarsherif200/HDKD at f7c7dae). Shapes: B images, K classes,
maps (B, C, H, W). The teacher's tensors are constants: compute them without gradient.
"""

from typing import Dict, Optional, Sequence

import torch
import torch.nn.functional as F

KD_TYPES = ('soft', 'hard', 'none')
REDUCTIONS = ('mean', 'batchmean')


def stage_mismatch(stage: int, student_shape: object, teacher_shape: object) -> ValueError:
    """The error for a stage whose two maps cannot be compared."""
    return ValueError(
        f"Stage {stage}: the student's map is {student_shape}, the teacher's {teacher_shape}; feature distillation"
        ' needs equal shapes, choose other stages or another teacher.'
    )


def to_float32(logits: torch.Tensor) -> torch.Tensor:
    """Logits in float32 or higher precision, as autocast has them in a softmax on a GPU, but not on a CPU, where the
    divergence of two that are close would be rounding errors."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def logit_distillation_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    kd_type: str = 'soft',
    tau: float = 1.0,
    reduction: str = 'mean',
    multi_label: bool = False,
) -> torch.Tensor:
    """Distance between the student's distillation logits and the teacher's logits.

    'soft': tau^2 * KL(p_t || p_s) with p = softmax(logits / tau). As published (and in DeiT) the sum over images and
    classes is divided by B * K, `reduction='mean'`; 'batchmean' divides by B, as timm does, and is K times larger.
    'hard': cross entropy with the teacher's argmax. Of images with any number of labels, 'soft' is the
    `binary_divergence` of each, and 'hard' the binary cross entropy with the labels that the teacher finds more likely
    than not.

    Args:
        student_logits: Logits of the distillation head (B, K).
        teacher_logits: Logits of the teacher (B, K).
        kd_type: 'soft' or 'hard'.
        tau: Temperature of the soft loss, above 0.
        reduction: Reduction of the soft loss, 'mean' or 'batchmean'.
        multi_label: Whether images have any number of labels.

    Returns:
        Scalar loss.

    Raises:
        ValueError: if the shapes differ, or if `kd_type`, `tau` or `reduction` is invalid.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f'Student and teacher logits differ in shape: {tuple(student_logits.shape)} and'
            f' {tuple(teacher_logits.shape)}.'
        )
    if kd_type == 'hard' and multi_label:
        return F.binary_cross_entropy_with_logits(student_logits, (teacher_logits > 0).to(student_logits.dtype))
    if kd_type == 'hard':
        return F.cross_entropy(student_logits, teacher_logits.argmax(dim=-1))
    if kd_type != 'soft':
        raise ValueError(f"The distillation loss must be 'soft' or 'hard', got {kd_type!r}.")
    if not tau > 0:
        raise ValueError(f'tau must be above 0, got {tau}.')
    if reduction not in REDUCTIONS:
        raise ValueError(f'reduction must be one of {REDUCTIONS}, got {reduction!r}.')
    if multi_label:
        divergence = binary_divergence(student_logits, teacher_logits, tau)
        return divergence / (1 if reduction == 'batchmean' else student_logits.shape[-1])
    log_p_s, log_p_t = (F.log_softmax(to_float32(logits) / tau, dim=-1) for logits in (student_logits, teacher_logits))
    kl_sum = F.kl_div(log_p_s, log_p_t, reduction='sum', log_target=True)
    return tau**2 * kl_sum / (student_logits.numel() if reduction == 'mean' else len(student_logits))


def label_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    class_weight: Optional[torch.Tensor] = None,
    label_smoothing: float = 0.0,
    multi_label: bool = False,
) -> torch.Tensor:
    """The cross entropy with the labels; of images with any number of labels the binary one, mean over B and K.

    Args:
        logits: (B, K).
        target: Class indices (B,), or class probabilities (B, K); with `multi_label` 0 or 1 for each label, (B, K).
        class_weight: Weights of the classes, (K,), for the weighted mean over the images; with `multi_label` of the
            images that have the label.
        label_smoothing: Label smoothing: this share of the target is uniform over the classes; with `multi_label` half
            of it over each label's yes and no.
        multi_label: Whether images have any number of labels.

    Returns:
        Scalar loss.
    """
    if not multi_label:
        loss = F.cross_entropy(logits, target, weight=class_weight, label_smoothing=label_smoothing)
        if class_weight is None or target.ndim == 1:
            return loss
        return loss * len(target) / (target * class_weight).sum()  # as PyTorch does for class indices only
    target = target.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
    return F.binary_cross_entropy_with_logits(logits, target, pos_weight=class_weight)


def binary_divergence(student_logits: torch.Tensor, teacher_logits: torch.Tensor, tau: float = 1.0) -> torch.Tensor:
    """tau^2 * sum over the labels of KL(p_t || p_s), p = (sigmoid(logits / tau), 1 - sigmoid(logits / tau)), mean over
    the images.

    Source: the multi-label logits distillation of Yang et al., arXiv 2308.06453.

    Args:
        student_logits: (B, K).
        teacher_logits: (B, K).
        tau: Temperature.

    Returns:
        Scalar loss.
    """
    s, t = to_float32(student_logits) / tau, to_float32(teacher_logits) / tau
    divergence = sum(
        F.logsigmoid(sign * t).exp() * (F.logsigmoid(sign * t) - F.logsigmoid(sign * s)) for sign in (1, -1)
    )
    return tau**2 * divergence.sum() / len(student_logits)


def feature_distillation_losses(
    student_maps: Sequence[torch.Tensor],
    teacher_maps: Sequence[torch.Tensor],
    stages: Optional[Sequence[int]] = None,
    normalize: bool = False,
) -> Dict[int, torch.Tensor]:
    """Mean squared difference between the maps of each stage, unweighted, in float32 or higher precision.

    Args:
        student_maps: The student's maps, one per stage, (B, C, H, W).
        teacher_maps: The teacher's, of the same shapes.
        stages: Numbers of the stages for results and errors; 1, 2, ... if None.
        normalize: Divide the squared difference of each channel by the teacher's variance in it, over batch and
            positions, plus a tenth of the mean variance of all channels. A student that returns the teacher's means
            then has a loss of about 0.9.

    Returns:
        Stage -> scalar loss, in the order given.

    Raises:
        ValueError: if the numbers of maps differ, or the two shapes of a stage, which is named.
    """
    stages = list(range(1, len(student_maps) + 1)) if stages is None else list(stages)
    if not len(stages) == len(student_maps) == len(teacher_maps):
        raise ValueError(
            f'{len(stages)} stages, {len(student_maps)} student maps and {len(teacher_maps)} teacher maps.'
        )
    losses = {}
    for stage, s, t in zip(stages, student_maps, teacher_maps):
        if s.shape != t.shape:
            raise stage_mismatch(stage, tuple(s.shape), tuple(t.shape))
        losses[stage] = _normalized_squared_difference(s, t) if normalize else mean_squared_difference(s, t)
    return losses


def mean_squared_difference(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The MSE; for maps in half precision it is accumulated in float32, without float32 copies of them.

    The gradient has the layout of channels-last maps, (B, C, H, W): that of `F.mse_loss` is contiguous, with which the
    backward pass of the BatchNorm before it takes five times as long on a CPU.
    """
    if torch.promote_types(s.dtype, t.dtype) not in (torch.float16, torch.bfloat16):
        if s.dim() == 4 and s.stride(1) == 1:
            s, t = s.permute(0, 2, 3, 1), t.permute(0, 2, 3, 1)
        return F.mse_loss(s, t)
    with torch.autocast(s.device.type, enabled=False):
        return torch.linalg.vector_norm(s - t, dtype=torch.float32).square() / s.numel()


def _normalized_squared_difference(s: torch.Tensor, t: torch.Tensor, eps: float = 0.1) -> torch.Tensor:
    """The MSE with each channel divided by the variance of t in it, plus eps times the mean variance of all channels:
    those that hardly vary weigh at most 1 / eps times the average."""
    with torch.autocast(s.device.type, enabled=False):
        s, t = s.float(), t.float()
        variance = t.var(dim=(0, 2, 3), correction=0)
        scale = variance + eps * variance.mean() + torch.finfo(t.dtype).tiny
        return ((s - t).square().mean(dim=(0, 2, 3)) / scale).mean()


def sum_stages(losses: Dict[int, torch.Tensor], stage_exponent: float) -> torch.Tensor:
    """Sum of i^stage_exponent * loss, i = 1, 2, ... in the order of the stages."""
    return sum(i**stage_exponent * loss for i, loss in enumerate(losses.values(), start=1))


def feature_distillation_loss(
    student_maps: Sequence[torch.Tensor],
    teacher_maps: Sequence[torch.Tensor],
    stage_exponent: float = 1.0,
) -> torch.Tensor:
    """Sum over the chosen stages of i^stage_exponent * MSE, i = 1, 2, ... in the order listed.

    The weight depends on the position in the list, as published: in a list of stage 3 only, its weight is 1.

    Args:
        student_maps: The student's maps of the chosen stages, (B, C, H, W).
        teacher_maps: The teacher's, of the same shapes.
        stage_exponent: gamma; with 0 all stages have the same weight.

    Returns:
        Scalar loss.

    Raises:
        ValueError: as `feature_distillation_losses`.
    """
    return sum_stages(feature_distillation_losses(student_maps, teacher_maps), stage_exponent)


def hdkd_loss(
    cls_logits: torch.Tensor,
    dist_logits: Optional[torch.Tensor],
    teacher_logits: Optional[torch.Tensor],
    target: torch.Tensor,
    student_maps: Sequence[torch.Tensor] = (),
    teacher_maps: Sequence[torch.Tensor] = (),
    *,
    kind: str = 'soft',
    alpha: float = 0.5,
    tau: float = 1.0,
    feature_weight: float = 10.0,
    stages: Optional[Sequence[int]] = None,
    stage_exponent: float = 1.0,
    reduction: str = 'mean',
    class_weight: Optional[torch.Tensor] = None,
    label_smoothing: float = 0.0,
) -> Dict[str, torch.Tensor]:
    """The loss of HDKD and its components.

        logit = (1 - alpha) * cross_entropy(cls_logits, target) + alpha * logit_distillation_loss(dist_logits, ...)
        loss = logit + feature_weight * feature

    With kind 'none' the logit loss is the cross entropy only, and the distillation head gets no gradient.

    Args:
        cls_logits: Logits of the student's class head (B, K).
        dist_logits: Logits of its distillation head (B, K), unused with kind 'none'.
        teacher_logits: Logits of the teacher (B, K), unused with kind 'none'.
        target: Class indices (B,), or class probabilities (B, K).
        student_maps: The student's maps of the chosen stages, (B, C, H, W); empty for no feature loss.
        teacher_maps: The teacher's, of the same shapes.
        kind: Type of the logit distillation, 'soft', 'hard' or 'none'.
        alpha: Weight of the distillation in the logit loss, 0 to 1.
        tau: Temperature of the soft distillation.
        feature_weight: lambda, weight of the feature loss.
        stages: Numbers of the chosen stages for the components and errors; 1, 2, ... if None.
        stage_exponent: gamma, weights the i-th chosen stage by i^gamma.
        reduction: Reduction of the soft distillation, 'mean' (published) or 'batchmean'.
        class_weight: Weights of the classes in the cross entropy (K,); None as published.
        label_smoothing: Label smoothing of the cross entropy, 0 as published.

    Returns:
        Scalars 'loss', 'ce_loss', 'logit_loss' and, where they are part of the loss, 'kd_loss', 'feature_loss'
        (weighted sum over stages, before `feature_weight`) and 'feature_loss_<stage>' (unweighted).

    Raises:
        ValueError: if `kind` is invalid, or as the functions above.
    """
    if kind not in KD_TYPES:
        raise ValueError(f'kind must be one of {KD_TYPES}, got {kind!r}.')
    parts = {'ce_loss': label_loss(cls_logits, target, class_weight, label_smoothing)}
    if kind == 'none':
        logit_loss = parts['ce_loss']
    else:
        parts['kd_loss'] = logit_distillation_loss(dist_logits, teacher_logits, kind, tau, reduction)
        logit_loss = (1 - alpha) * parts['ce_loss'] + alpha * parts['kd_loss']
    parts['logit_loss'] = loss = logit_loss
    if len(student_maps) or len(teacher_maps):
        losses = feature_distillation_losses(student_maps, teacher_maps, stages)
        parts['feature_loss'] = sum_stages(losses, stage_exponent)
        parts.update({f'feature_loss_{stage}': part for stage, part in losses.items()})
        loss = logit_loss + feature_weight * parts['feature_loss']
    return {'loss': loss, **parts}
