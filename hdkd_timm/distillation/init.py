"""Starting a student from layers of its teacher, where both have stages of the same blocks."""

from typing import Dict, List, Optional, Sequence, Tuple

import torch
from torch import nn

__all__ = ['choose_layers', 'init_from_teacher', 'parse_layers']


def parse_layers(texts: Sequence[str]) -> Dict[int, Tuple[int, ...]]:
    """Stage, from 1 -> layers of the teacher's stage, from 0, one for each of the student's.

    Args:
        texts: STAGE:LAYER,LAYER,..., such as '3:0,4,8'.

    Raises:
        ValueError: for anything else, or a stage that is given twice.
    """
    layers: Dict[int, Tuple[int, ...]] = {}
    for text in texts:
        stage, colon, numbers = text.partition(':')
        parts = numbers.split(',')
        if not colon or not all(part.strip().isdecimal() for part in (stage, *parts)):
            raise ValueError(f"--init-from-teacher must be STAGE:LAYER,LAYER,..., such as 3:0,4,8, got '{text}'.")
        if int(stage) in layers:
            raise ValueError(f'--init-from-teacher names stage {int(stage)} twice: keep one of them.')
        layers[int(stage)] = tuple(int(part) for part in parts)
    return layers


def _blocks(model: nn.Module) -> List[List[nn.Module]]:
    """The blocks of each stage; none of a stage that is more than a sequence of blocks."""
    return [list(stage) if isinstance(stage, nn.Sequential) else [] for stage in getattr(model, 'stages', ())]


def _shapes(block: nn.Module) -> Dict[str, torch.Size]:
    return {name: value.shape for name, value in block.state_dict().items()}


def choose_layers(student: nn.Module, teacher: nn.Module) -> Dict[int, Tuple[int, ...]]:
    """Layers at even distances, the first and the last among them, of all stages whose blocks fit in both networks.

    A stage with one block in the student takes the teacher's first one, which alone may change the resolution.

    Returns:
        Stage, from 1 -> layers of the teacher's stage, from 0; empty if no stage fits.
    """
    chosen: Dict[int, Tuple[int, ...]] = {}
    for stage, (ours, theirs) in enumerate(zip(_blocks(student), _blocks(teacher)), start=1):
        if not ours or len(ours) > len(theirs):
            continue
        step = (len(theirs) - 1) / max(1, len(ours) - 1)
        layers = tuple(int(i * step + 0.5) for i in range(len(ours)))
        if all(_shapes(block) == _shapes(theirs[layer]) for block, layer in zip(ours, layers)):
            chosen[stage] = layers
    return chosen


def init_from_teacher(
    student: nn.Module, teacher: nn.Module, layers: Optional[Dict[int, Tuple[int, ...]]] = None
) -> Dict[int, Tuple[int, ...]]:
    """Copy blocks of the teacher's stages, weights and BatchNorm statistics, into the student's.

    After the initialisation of DistilBERT (arXiv 1910.01108), which takes every second layer of its teacher.

    Args:
        student: A timm model with `stages` of blocks; changed in place.
        teacher: A trained one, whose stages have blocks of the same shapes.
        layers: Stage, from 1 -> layers of the teacher's stage, from 0, one for each block of the student's; None for
            those of `choose_layers`.

    Returns:
        The layers that were copied.

    Raises:
        ValueError: if a stage or layer does not exist, the number of layers is not that of the student's blocks, the
            shapes of two blocks differ, or no stage fits.
    """
    if not layers:
        layers = choose_layers(student, teacher)
        if not layers:
            raise ValueError(
                f'{type(student).__name__} cannot start from {type(teacher).__name__}: they have no stage of the same'
                ' blocks. Leave --init-from-teacher out, or use a pair such as hdkd_student and hdkd_teacher.'
            )
    ours, theirs = _blocks(student), _blocks(teacher)
    for stage, chosen in layers.items():
        if not 1 <= stage <= min(len(ours), len(theirs)):
            raise ValueError(
                f'There is no stage {stage} to start from: {type(student).__name__} has {len(ours)} stages of blocks,'
                f' {type(teacher).__name__} {len(theirs)}.'
            )
        blocks, of_teacher = ours[stage - 1], theirs[stage - 1]
        if len(chosen) != len(blocks) or max(chosen) >= len(of_teacher):
            raise ValueError(
                f'Stage {stage} of {type(student).__name__} has {len(blocks)} blocks, which need as many layers of 0 to'
                f' {len(of_teacher) - 1} of {type(teacher).__name__}, got {", ".join(map(str, chosen))}.'
            )
        for i, (block, layer) in enumerate(zip(blocks, chosen)):
            if _shapes(block) != _shapes(of_teacher[layer]):
                raise ValueError(
                    f'Layer {layer} of stage {stage} of {type(teacher).__name__} has weights of other shapes than block'
                    f' {i} of {type(student).__name__}, which it is to initialise'
                    f'{": only layer 0 changes the channels, choose it here" if i == 0 and layer else ""}.'
                )
    for stage, chosen in layers.items():
        for block, layer in zip(ours[stage - 1], chosen):
            block.load_state_dict(theirs[stage - 1][layer].state_dict())
    return layers
