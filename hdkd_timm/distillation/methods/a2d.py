"""A2D's attention alignment: the attention of each of the teacher's heads is a mixture of the student's heads."""

from typing import Any, Dict, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ..networks import NetworkInfo, Pair
from ..outputs import Needs, Outputs
from .base import Method, check_choice, check_number

REDUCTIONS = ('sum', 'mean')


def attention_alignment_loss(
    student_maps: torch.Tensor, teacher_maps: torch.Tensor, reduction: str = 'sum'
) -> torch.Tensor:
    """Divergence of each of the teacher's attention matrices, both through a softmax over all of their entries.

        sum over images and matrices of KL(softmax(A_t) || softmax(A_s))

    The teacher's matrix holds probabilities already; a second softmax, over N * N entries between 0 and 1, makes it
    nearly uniform, as in the published code. So the divergence of a matrix is tiny.

    Source: arXiv 2403.01479.

    Args:
        student_maps: What was made of the student's attention, (B, M, N, N).
        teacher_maps: Attention of all heads of the teacher after the softmax, (B, M, N, N).
        reduction: 'sum' as published, or 'mean' over images and matrices.

    Returns:
        Scalar loss.
    """
    log_p, log_q = (F.log_softmax(maps.flatten(2), dim=2) for maps in (student_maps, teacher_maps))
    divergence = F.kl_div(log_p, log_q, reduction='sum', log_target=True)
    return divergence / (log_q.shape[0] * log_q.shape[1]) if reduction == 'mean' else divergence


class A2D(Method):
    """Alignment of attention: a 1x1 convolution of the student's attention, all heads of all blocks, yields a matrix
    for each head of each of the teacher's blocks. No choice of heads or layers is needed.

        loss = decay^(epoch - 1) * attention_alignment_loss, epoch from 1

    It is the alignment of A2D for an encoder, not its loss of the labels and the teacher's probabilities: add 'kd' with
    tau 1. The networks need attention over one grid of patches; their class and other prefix tokens are dropped, which
    is not published (A2D is made for translation, where both have the same tokens). The loss is a sum over images and
    matrices, so its balance with the cross entropy depends on the batch of a process, and on both networks.

    Args:
        pair: Two vision transformers, or a hybrid student, whose patches form the same grid.
        weight: beta, weight of the loss.
        decay: Factor of the loss from one epoch to the next.
        reduction: 'sum' as published, or 'mean' over images and matrices.

    Raises:
        ValueError: for a setting out of range, or if a network has no attention over its patches or the grids differ.
    """

    name = 'a2d'
    source = 'Jin et al. 2024, arXiv 2403.01479; the alignment compared with ncsoft/Align-to-Distill at 08340a2'

    def __init__(self, pair: Pair, *, weight: float = 1.0, decay: float = 0.9, reduction: str = 'sum'):
        super().__init__(weight, Needs(attention=True), Needs(attention=True))
        self.decay = check_number(self.name, 'decay', decay, above=0, at_most=1)
        self.reduction = check_choice(self.name, 'reduction', reduction, REDUCTIONS)
        _check_grids(pair)
        self.networks = (pair.student, pair.teacher)
        self.align = nn.Conv2d(sum(pair.student.attention_heads), sum(pair.teacher.attention_heads), 1)
        self.register_buffer('fade', torch.ones(()), persistent=False)

    def describe(self) -> Dict[str, Any]:
        return {'heads': '{} to {}'.format(*(sum(network.attention_heads) for network in self.networks))}

    def set_epoch(self, epoch: int, epochs: int) -> None:
        self.fade.fill_(self.decay**epoch)

    def forward(
        self, student: Outputs, teacher: Outputs, target: torch.Tensor, index: Optional[torch.Tensor] = None
    ) -> Dict[str, torch.Tensor]:
        with torch.autocast(student.attention[0].device.type, enabled=False):  # differences are tiny
            s, t = (
                patch_attention(outputs.attention, network)
                for outputs, network in zip((student, teacher), self.networks)
            )
            return {'loss': self.fade * attention_alignment_loss(self.align(s), t, self.reduction)}


def patch_attention(attention: Sequence[torch.Tensor], network: NetworkInfo) -> torch.Tensor:
    """Attention from patches to patches of all heads of all blocks, in float32.

    Args:
        attention: Of each block, (B, heads, P + N, P + N), P prefix tokens first.
        network: The network that it is of.

    Returns:
        (B, blocks * heads, N, N), block by block. Rows sum to less than 1 where there are prefix tokens.

    Raises:
        ValueError: if the attention is not over the patches, as in XCiT.
    """
    prefix, (height, width) = network.num_prefix_tokens, network.token_grid or (0, 0)
    for matrix in attention:
        if matrix.shape[-1] != prefix + height * width:
            raise ValueError(
                f'a2d: the attention of {network} is over {matrix.shape[-1]} tokens or channels, not its {prefix}'
                f' prefix tokens and {height} x {width} patches: choose another method.'
            )
    return torch.cat([matrix[:, :, prefix:, prefix:].float() for matrix in attention], dim=1)


def _check_grids(pair: Pair) -> None:
    for network in (pair.student, pair.teacher):
        if network.token_grid is None or not network.attention_heads:
            raise pair.error(
                'a2d',
                f'{network.name} has no blocks of attention over its patches: both need them, choose vision'
                " transformers, or another method, such as 'kd' or 'ickd'.",
            )
    grids = [network.token_grid for network in (pair.student, pair.teacher)]
    if grids[0] != grids[1]:
        s, t = ('{} x {}'.format(*grid) for grid in grids if grid)
        raise pair.error(
            'a2d',
            f'their patches form grids of {s} and {t}, which must be equal: choose another size of patches or images'
            " for one of them, or another method, such as 'ickd'.",
        )
