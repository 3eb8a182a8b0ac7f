"""CRD: an image's features in student and teacher agree, and differ from those of images of other classes."""

import logging
from typing import Any, Dict, Optional, Sequence, Tuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from ..networks import Pair
from ..outputs import Needs, Outputs
from .base import Method, check_number, check_whole_number

_logger = logging.getLogger(__name__)


def contrastive_loss(scores: torch.Tensor, num_data: int, eps: float = 1e-7) -> torch.Tensor:
    """Noise-contrastive estimation: which of 1 + k images is the positive one?

        -(1 / B) * sum over images of log(o_0 / (o_0 + c)) + sum over negatives of log(c / (o_j + c)), c = k / N

    Source: arXiv 1910.10699, equation 17 as in the published code.

    Args:
        scores: o, normalised to a mean of 1 / N, (B, 1 + k), the positive one first.
        num_data: N, number of training images.
        eps: Added to both denominators.

    Returns:
        Scalar loss, a sum over k negatives: 10 to 20 is usual.
    """
    noise = (scores.shape[1] - 1) / num_data
    positive = (scores[:, 0] / (scores[:, 0] + noise + eps)).log()
    negatives = (noise / (scores[:, 1:] + noise + eps)).log()
    return -(positive.sum() + negatives.sum()) / len(scores)


class CRD(Method):
    """Contrastive representation distillation with a memory of the features of all training images.

    Both networks' pooled features are embedded by a linear layer each, which are trained, and scaled to length 1. The
    student's embedding of an image is compared with what the memory has of the teacher's for the same image and for k
    images of other classes, and the reverse. Then the memory moves half-way to the new embeddings.

    The memory, and the constants Z that the first batch sets, are buffers that checkpoints hold, so that a run resumes
    as it was. Several processes start with the same memory, which takes the embeddings of all their batches, of one
    size, and Z is the mean of all: both are equal everywhere. The loss is that of the process's own batch.

    Args:
        pair: The networks, with the class indices of the training images (`train_targets`).
        weight: Weight of the loss; 0.8 as published.
        dim: Length of the embeddings.
        k: Negatives of an image; with fewer images of other classes, the largest number below theirs.
        temperature: Temperature of the comparison.
        momentum: What the memory keeps of itself.

    Raises:
        ValueError: for a setting out of range, without `train_targets`, with fewer than two images of other classes, or
            if a network does not return its pooled features.
    """

    name = 'crd'
    source = 'Tian et al. 2020, arXiv 1910.10699; compared with HobbitLong/RepDistiller at b84f547'
    needs_one_class = True
    needs_index = True

    def __init__(
        self,
        pair: Pair,
        *,
        weight: float = 0.8,
        dim: int = 128,
        k: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ):
        super().__init__(weight, Needs(pooled=True), Needs(pooled=True))
        self.temperature = check_number(self.name, 'temperature', temperature, above=0)
        self.momentum = check_number(self.name, 'momentum', momentum, at_least=0, at_most=1)
        dim = check_whole_number(self.name, 'dim', dim, at_least=1)
        dim_s, dim_t = pair.pooled_dims(self.name)
        targets = _check_targets(pair)
        self.k = _cap_negatives(pair, targets, check_whole_number(self.name, 'k', k, at_least=1))
        self.embed_student = nn.Linear(dim_s, dim)
        self.embed_teacher = nn.Linear(dim_t, dim)
        self.register_buffer('targets', targets, persistent=False)
        generator = torch.Generator().manual_seed(0)  # the same on all processes, whose global generators may differ
        bound = (3 / dim) ** 0.5  # embeddings of length 1 on average
        for network in ('student', 'teacher'):
            memory = torch.empty(len(targets), dim, device='cpu').uniform_(-bound, bound, generator=generator)
            self.register_buffer(f'memory_{network}', memory)
            self.register_buffer(f'z_{network}', torch.zeros(()))  # 0 until the first batch

    def describe(self) -> Dict[str, Any]:
        return {'negatives': self.k}

    def draw_negatives(self, index: torch.Tensor) -> torch.Tensor:
        """Numbers of k training images of other classes, without repetition, for each image: (B,) -> (B, k)."""
        keys = torch.rand(len(index), len(self.targets), device=index.device)
        same_class = self.targets[index][:, None] == self.targets
        return keys.masked_fill(same_class, -1).topk(self.k, dim=1, sorted=False).indices

    def forward(
        self, student: Outputs, teacher: Outputs, target: torch.Tensor, index: Optional[torch.Tensor] = None
    ) -> Dict[str, torch.Tensor]:
        """As `Method.forward`.

        Raises:
            ValueError: for class probabilities as targets: a mixed image is none of the memory's.
        """
        if target.dim() > 1 or index is None:
            raise ValueError(
                'crd compares each image with a memory of itself, so it needs the number of each, and no mixtures of'
                ' images: pass `index`, and turn mixup and cutmix off.'
            )
        index = index.to(self.targets.device)
        embedded_s, embedded_t = self.embed_student(student.pooled), self.embed_teacher(teacher.pooled)
        with torch.autocast(index.device.type, enabled=False):  # exp(1 / temperature) is beyond float16
            embedded_s, embedded_t = (F.normalize(e.float(), dim=1) for e in (embedded_s, embedded_t))
            images = torch.cat([index[:, None], self.draw_negatives(index)], dim=1)  # (B, 1 + k)
            scores_s, z_s = self.score(embedded_s, self.memory_teacher, images, self.z_student)
            scores_t, z_t = self.score(embedded_t, self.memory_student, images, self.z_teacher)
            loss_s, loss_t = (contrastive_loss(scores, len(self.targets)) for scores in (scores_s, scores_t))
            if self.training:
                self.remember(index, (embedded_s, embedded_t), (z_s, z_t))
        return {'loss': loss_s + loss_t, 'student_loss': loss_s, 'teacher_loss': loss_t}

    def score(
        self, embedded: torch.Tensor, memory: torch.Tensor, images: torch.Tensor, z: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """exp(<memory, embedding> / temperature) / Z of the images (B, 1 + k), and Z, which is set if it is 0."""
        # a copy of the memory, which changes before the backward pass, is far smaller than (1 + k) rows for each image
        scores = (embedded @ memory.float().clone().T).gather(1, images)
        scores = (scores / self.temperature).exp()
        first = _mean_of_processes(scores.detach().mean() * len(memory))
        z = torch.where(z > 0, z, first.to(z.dtype))
        return scores / z, z

    @torch.no_grad()
    def remember(self, index: torch.Tensor, embedded: Sequence[torch.Tensor], z: Sequence[torch.Tensor]) -> None:
        """Move the memory of these images, of all processes, to their embeddings, and keep Z, student's first."""
        index = _gather(index)
        # where an image is in the batch twice, all its rows are the first's: the order of writing does not matter
        first = (index[:, None] == index).int().argmax(dim=1)
        for network, e, constant in zip(('student', 'teacher'), embedded, z):
            memory = self.get_buffer(f'memory_{network}')
            moved = memory[index].float().lerp(_gather(e)[first], 1 - self.momentum)
            memory[index] = F.normalize(moved, dim=1).to(memory.dtype)
            self.get_buffer(f'z_{network}').copy_(constant)


def _check_targets(pair: Pair) -> torch.Tensor:
    if pair.train_targets is None:
        raise pair.error(
            'crd',
            'it draws images of other classes, so it needs the class index of each training image:'
            ' pass train_targets to DistillationTask, and use data with random access.',
        )
    return torch.as_tensor(pair.train_targets, dtype=torch.long)


def _cap_negatives(pair: Pair, targets: torch.Tensor, k: int) -> int:
    """k, or the largest number below that of the images of other classes, so that some are always left to chance."""
    fewest = len(targets) - int(targets.bincount().max()) if len(targets) else 0
    if fewest < 2:
        raise pair.error(
            'crd',
            f'of {len(targets)} training images {fewest} are of another class than the most frequent one, at least 2'
            ' are needed: train on more classes, or choose another method.',
        )
    if k >= fewest:
        _logger.info(
            f'crd: {fewest - 1} negatives for each image instead of {k}, because {fewest} of the {len(targets)}'
            ' training images are of another class than the most frequent one.'
        )
    return min(k, fewest - 1)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _gather(tensor: torch.Tensor) -> torch.Tensor:
    """The rows of all processes, in order of their ranks; batches must be of one size."""
    if not _is_distributed():
        return tensor
    rows = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, tensor.contiguous())
    return torch.cat(rows)


def _mean_of_processes(value: torch.Tensor) -> torch.Tensor:
    return _gather(value[None]).mean()
