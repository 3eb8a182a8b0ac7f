"""Checks before a training: do a teacher and a student match, and does a network accept the images?"""

from typing import List, Optional, Sequence, Tuple

import torch
from torch import nn

from .losses import KD_TYPES, feature_distillation_losses, stage_mismatch
from .networks import NetworkInfo
from .outputs import forward_stages, has_distillation_head

__all__ = ['check_input', 'check_pair', 'check_stages']


def check_pair(
    student: nn.Module,
    teacher: nn.Module,
    kd_type: str = 'soft',
    stages: Sequence[int] = (1, 2, 3),
    input_size: Optional[Tuple[int, int, int]] = None,
) -> None:
    """Check that a teacher can be distilled into a student.

    Args:
        student: timm model.
        teacher: timm model.
        kd_type: Logit distillation, 'soft', 'hard' or 'none'.
        stages: Stages whose maps are compared, from 1; may be empty.
        input_size: (C, H, W) of an image that is passed through both networks, in addition to comparing their
            `feature_info`.

    Raises:
        ValueError: if a network does not have a stage or the two maps of a stage differ (the stage and both shapes are
            named), if the numbers of input channels differ, if a network does not accept the image, or if `kd_type` is
            not 'none' and the numbers of classes differ or the student has no distillation head.
    """
    if kd_type not in KD_TYPES:
        raise ValueError(f'Unknown logit distillation {kd_type!r}: choose from {", ".join(KD_TYPES)}.')
    size = (0, 0) if input_size is None else input_size[1:]
    check_stages(NetworkInfo.of(student, 'student', size), NetworkInfo.of(teacher, 'teacher', size), stages)
    for name in ('in_chans',) if kd_type == 'none' else ('num_classes', 'in_chans'):
        of_student, of_teacher = getattr(student, name, None), getattr(teacher, name, None)
        if of_student != of_teacher:
            raise ValueError(f'{name} of student and teacher differ: {of_student} and {of_teacher}.')
    if kd_type != 'none' and not has_distillation_head(student):
        raise ValueError(
            f'{type(student).__name__} has no distillation head: use a student with one (hdkd_student), or no logit'
            " distillation ('none')."
        )
    if input_size is not None:
        student_maps, teacher_maps = (check_input(model, input_size, stages) for model in (student, teacher))
        feature_distillation_losses(student_maps, teacher_maps, stages)


def check_stages(student: NetworkInfo, teacher: NetworkInfo, stages: Sequence[int]) -> None:
    """Compare the maps of two networks at the chosen stages by what their `feature_info` says.

    Raises:
        ValueError: if a network does not have a stage, or the two maps of one differ; names the stage and both shapes.
    """
    if len(set(stages)) < len(stages):
        raise ValueError(f'stages must be unique, got {list(stages)}.')
    for network in (student, teacher) if stages else ():
        if not network.stages:
            raise ValueError(
                f'The {network.role} {network.name} has no forward_intermediates(), so it has no stages to compare.'
            )
        if min(stages) < 1 or max(stages) > len(network.stages):
            raise ValueError(
                f'stages must be among 1 to {len(network.stages)}, the stages of {network}, got {list(stages)}.'
            )
    for stage in stages:
        infos = [network.stage(stage) for network in (student, teacher)]
        shapes = [f'(B, {info.channels}, H/{info.stride}, W/{info.stride})' for info in infos]
        if shapes[0] != shapes[1]:
            raise stage_mismatch(stage, *shapes)


def check_input(model: nn.Module, input_size: Tuple[int, int, int], stages: Sequence[int] = ()) -> List[torch.Tensor]:
    """Check that a network accepts images of a size, (C, H, W). Returns its maps of the stages, (1, C_i, H_i, W_i).

    Raises:
        ValueError: if it does not.
    """
    param = next(model.parameters())
    was_training = model.training
    try:
        with torch.no_grad():
            image = torch.zeros(1, *input_size, device=param.device, dtype=param.dtype)
            return forward_stages(model.eval(), image, stages)[1]
    except (AssertionError, RuntimeError) as e:
        raise ValueError(f'{type(model).__name__} does not accept an image of {input_size}: {e}') from e
    finally:
        model.train(was_training)
