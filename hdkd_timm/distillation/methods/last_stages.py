"""Which maps are compared by methods that were published for the last ones."""

from typing import Sequence, Tuple

from ..networks import Pair


def match_last_stages(pair: Pair, method: str, stages: Sequence[str] = ()) -> Tuple[int, int]:
    """The last stage of the student and the last of the teacher, whatever their strides, or those of a setting.

    Args:
        pair: The networks.
        method: Name of the method, for errors.
        stages: One 'S:T', a stage of the student and one of the teacher, from 1; empty for the last.

    Returns:
        (stage of the student, stage of the teacher).

    Raises:
        ValueError: if more than one pair of stages is named, or a stage that a network does not have.
    """
    if len(stages) > 1:
        raise ValueError(f'{method}.stages must name one stage of each network, STUDENT:TEACHER, got {list(stages)}.')
    if stages:
        return pair.match_stages(method, stages)[0]
    for network in (pair.student, pair.teacher):
        if not network.stages:
            raise pair.error(method, f'{network.name} has no stages to take a map of: choose a method of the logits.')
    return len(pair.student.stages), len(pair.teacher.stages)
