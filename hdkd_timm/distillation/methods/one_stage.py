"""Which two maps are compared by methods that compare one."""

from typing import Sequence, Tuple

from ..networks import Pair


def match_one_stage(pair: Pair, method: str, stages: Sequence[str] = (), same_stride: bool = False) -> Tuple[int, int]:
    """A stage of the student and one of the teacher.

    Args:
        pair: The networks.
        method: Name of the method, for errors.
        stages: One 'S:T', a stage of the student and one of the teacher, from 1; empty for the last.
        same_stride: Whether the last are those of the largest stride that both have, and not of each network.

    Returns:
        (stage of the student, stage of the teacher).

    Raises:
        ValueError: if more than one pair of stages is named, for a stage that a network does not have, or if a network
            has no stages, or none of the other's strides if `same_stride`.
    """
    if len(stages) > 1:
        raise ValueError(f'{method}.stages must name one stage of each network, STUDENT:TEACHER, got {list(stages)}.')
    if stages or same_stride:
        return pair.match_stages(method, stages)[-1]
    for network in (pair.student, pair.teacher):
        if not network.stages:
            raise pair.error(method, f'{network.name} has no stages to take a map of: choose a method of the logits.')
    return len(pair.student.stages), len(pair.teacher.stages)
