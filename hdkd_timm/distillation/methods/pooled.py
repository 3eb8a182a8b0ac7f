"""The lengths of the features before the classifiers, for methods that compare those."""

from typing import Tuple

from ..networks import Pair


def pooled_dims(pair: Pair, method: str) -> Tuple[int, int]:
    """Length of the pooled features of the student and of the teacher.

    Args:
        pair: The networks.
        method: Name of the method, for errors.

    Raises:
        ValueError: if a network does not return them.
    """
    dims = []
    for network in (pair.student, pair.teacher):
        # a network without stages can be asked for nothing but its logits
        if network.pooled_dim is None or not network.stages:
            raise pair.error(
                method,
                f'{network.name} does not return the features before its classifier: choose a method of the logits.',
            )
        dims.append(network.pooled_dim)
    return dims[0], dims[1]
