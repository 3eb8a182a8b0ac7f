"""OFA: exits at the student's stages predict the classes, and follow the teacher's logits like the student itself."""

import math
from functools import partial
from typing import Any, Dict, List, Optional, Sequence, Union

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from timm.models.swin_transformer import PatchMerging
from timm.models.vision_transformer import Block
from torch import nn

from ..networks import NetworkInfo, Pair, StageInfo
from ..outputs import Needs, Outputs
from .base import Method, check_number

BLOCKS = (2, 4, 10, 12)  # of 12, after which a vision transformer has its exits
FINAL_GRID = 7  # rows of patches to which an exit merges them
NUM_HEADS = 4


def ofa_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, target: torch.Tensor, eps: float = 1.0, tau: float = 1.0
) -> torch.Tensor:
    """Cross entropy with the teacher's probabilities, in which the target's is raised.

        - mean over images of sum over classes of ((p_t + m)^eps - m) log p_s

    with p = softmax(logits / tau), and m = 1 for the target, else 0. With eps 1 it is the cross entropy with p_t. As in
    the published code the other classes are raised to eps too, and m is subtracted: the cross entropy is added apart.

    Source: arXiv 2310.19444.

    Args:
        student_logits: (B, K).
        teacher_logits: (B, K).
        target: Class indices (B,).
        eps: Exponent; the larger, the more the target counts.
        tau: Temperature; there is no factor tau^2.

    Returns:
        Scalar loss.
    """
    mask = F.one_hot(target, student_logits.shape[1]).to(teacher_logits.dtype)
    enhanced = (torch.softmax(teacher_logits / tau, dim=1) + mask) ** eps - mask
    return -(enhanced * F.log_softmax(student_logits / tau, dim=1)).sum(dim=1).mean()


def _downsample(in_chs: int, out_chs: int) -> nn.Sequential:
    """Two depthwise separable convolutions, the first of stride 2.  (B, in_chs, H, W) -> (B, out_chs, H / 2, W / 2)"""
    layers: List[nn.Module] = []
    for chs, stride in ((in_chs, 2), (out_chs, 1)):
        layers += [
            nn.Conv2d(in_chs, in_chs, 3, stride=stride, padding=1, groups=in_chs, bias=False),
            nn.Conv2d(in_chs, chs, 1, bias=False),
            nn.BatchNorm2d(chs),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


class ConvExit(nn.Sequential):
    """Classifier of a map: `halvings` separable downsamplings, which double the channels and end with `dim`, or a
    convolution 1x1 if there are none; average pooling; linear.  (B, in_chs, H, W) -> (B, num_classes)"""

    def __init__(self, in_chs: int, dim: int, num_classes: int, halvings: int):
        widths = [in_chs * 2**i for i in range(halvings)] + [dim]
        layers: List[nn.Module] = [_downsample(*chs) for chs in zip(widths[:-1], widths[1:])]
        super().__init__(
            *(layers or [nn.Conv2d(in_chs, dim, 1)]),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(dim, num_classes),
        )

    def forward(self, x: torch.Tensor, prefix_tokens: Optional[torch.Tensor] = None) -> torch.Tensor:
        return super().forward(x)


class TokenExit(nn.Module):
    """Classifier of patch tokens: 2 x 2 patches are merged until 7 to 13 rows are left; transformer blocks on patches
    and prefix tokens; the class token, or the mean of all tokens without one; linear.

    (B, dim, H, W), (B, P, dim) -> (B, num_classes)

    Args:
        dim: Width of the tokens.
        num_classes: Number of classes.
        grid: The smaller of the numbers of rows and columns of patches.
        depth: Number of blocks.
    """

    def __init__(self, dim: int, num_classes: int, grid: int, depth: int):
        super().__init__()
        merges = max(0, math.floor(math.log2(grid / FINAL_GRID)))
        self.mergings = nn.ModuleList([PatchMerging(dim, dim, norm_layer=nn.LayerNorm) for _ in range(merges)])
        norm_layer: Any = partial(nn.LayerNorm, eps=1e-5)
        num_heads = math.gcd(dim, NUM_HEADS)
        self.blocks = nn.Sequential(*[Block(dim, num_heads, norm_layer=norm_layer) for _ in range(depth)])
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: torch.Tensor, prefix_tokens: Optional[torch.Tensor] = None) -> torch.Tensor:
        x = x.permute(0, 2, 3, 1)  # (B, H, W, dim)
        for i, merging in enumerate(self.mergings, 1):
            x = merging(x)
            if i < len(self.mergings) or i == 1:  # as published: only the last of several has no activation
                x = F.gelu(x)
        x = x.flatten(1, 2)  # (B, N, dim)
        if prefix_tokens is None:
            return self.head(self.blocks(x).mean(dim=1))
        return self.head(self.blocks(torch.cat([prefix_tokens, x], dim=1))[:, 0])


def _is_isotropic(network: NetworkInfo) -> bool:
    """Whether it is one stack of blocks on patches, such as a vision transformer or a mixer."""
    return len(network.stages) > 1 and len({stage.stride for stage in network.stages}) == 1


def _exit_blocks(network: NetworkInfo) -> List[int]:
    return [max(1, round(len(network.stages) * block / BLOCKS[-1])) for block in BLOCKS]


def find_exit_stages(network: NetworkInfo) -> List[int]:
    """The stages that have exits: four, or as many as there are.

    Those of a stack of blocks on patches are after a sixth, a third, five sixths and all of them, those of other
    networks at the last stage of each of their four largest strides.
    """
    if _is_isotropic(network):
        return sorted(set(_exit_blocks(network)))
    last = {stage.stride: i for i, stage in enumerate(network.stages, 1)}
    return sorted(last.values())[-len(BLOCKS) :]


def count_stages_left(network: NetworkInfo, number: int) -> int:
    """How many of four stages come after one: the halvings of its map to the stride of the last stage or, in a stack of
    blocks, the exits after it."""
    if _is_isotropic(network):
        return sum(block >= number for block in _exit_blocks(network)) - 1
    return round(math.log2(network.stages[-1].stride / network.stage(number).stride))


def create_exit(pair: Pair, number: int) -> nn.Module:
    """The exit of a stage of the student, from 1."""
    stage: StageInfo = pair.student.stage(number)
    left = count_stages_left(pair.student, number)
    if stage.is_tokens or _is_isotropic(pair.student):
        exit_layers: nn.Module = TokenExit(stage.channels, pair.num_classes, min(stage.size), max(left, 1))
    else:
        dims = [network.pooled_dim or 0 for network in (pair.student, pair.teacher)]
        exit_layers = ConvExit(stage.channels, max(dims) or stage.channels, pair.num_classes, left)
    return exit_layers.apply(_init_weights)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
    elif isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class OFA(Method):
    """One for all: the teacher's logits teach the student, and classifiers (exits) at its stages, which are left away
    after the training.

        loss = logit_weight * ofa_loss of the logits + exit_weight * sum over the exits of ofa_loss

    Maps have exits of convolutions, patch tokens of transformer blocks. Nothing of the teacher but its logits is used.

    Args:
        pair: A student with stages (unless `stages` is 'none') and any teacher.
        weight: Weight of the loss. Published: 1.
        logit_weight: Weight of the loss of the logits. Published: 1.
        exit_weight: Weight of the losses of the exits. Published: 1.
        eps: Exponent of the loss. Published: 1 on CIFAR-100, up to 1.5 on ImageNet.
        exit_eps: Exponent of each exit, or one for all of them; if empty, `eps`.
        tau: Temperature. Published: 1.
        stages: Stages of the student that have exits, from 1; if empty, `find_exit_stages`; 'none' for the loss of the
            logits only.

    Raises:
        ValueError: for a setting out of range, or if the student has no such stages.
    """

    name = 'ofa'
    source = 'Hao et al. 2023, arXiv 2310.19444; tensors of OFAKD (f7bb896)'
    compares_logits = True
    needs_one_class = True

    def __init__(
        self,
        pair: Pair,
        *,
        weight: float = 1.0,
        logit_weight: float = 1.0,
        exit_weight: float = 1.0,
        eps: float = 1.0,
        exit_eps: Union[float, Sequence[float]] = (),
        tau: float = 1.0,
        stages: Sequence[str] = (),
    ):
        check_number(self.name, 'logit_weight', logit_weight, at_least=0)
        check_number(self.name, 'exit_weight', exit_weight, at_least=0)
        check_number(self.name, 'eps', eps, above=0)
        numbers = _choose_stages(pair, stages) if exit_weight else []
        if not (logit_weight or numbers):
            raise ValueError('ofa.logit_weight is 0 and there are no exits, so that nothing is distilled.')
        has_prefix_tokens = pair.student.num_prefix_tokens > 0 and any(pair.student.stage(n).is_tokens for n in numbers)
        needs = Needs(logit_weight > 0, tuple(numbers), has_prefix_tokens)
        super().__init__(weight, needs, Needs(logits=True))
        self.logit_weight = logit_weight
        self.exit_weight = exit_weight
        self.eps = eps
        self.exit_eps = dict(zip(numbers, _read_exit_eps(exit_eps, eps, len(numbers))))
        self.tau = check_number(self.name, 'tau', tau, above=0)
        self.exits = nn.ModuleDict({str(number): create_exit(pair, number) for number in numbers})

    def describe(self) -> Dict[str, Any]:
        return {'exits at stages': ' '.join(self.exits) or 'none'}

    def forward(
        self, student: Outputs, teacher: Outputs, target: torch.Tensor, index: Optional[torch.Tensor] = None
    ) -> Dict[str, torch.Tensor]:
        """As `Method.forward`; the parts are 'logit_loss' and 'exit_loss_STAGE'. Of soft targets the largest is the
        class."""
        target = target if target.ndim == 1 else target.argmax(dim=1)
        t = teacher.logits.float()
        parts: Dict[str, torch.Tensor] = {}
        loss = t.new_zeros(())
        if self.logit_weight:
            parts['logit_loss'] = ofa_loss(student.kd_logits.float(), t, target, self.eps, self.tau)
            loss = self.logit_weight * parts['logit_loss']
        for number, eps in self.exit_eps.items():
            logits = self.exits[str(number)](student.maps[number], student.prefix_tokens.get(number))
            parts[f'exit_loss_{number}'] = ofa_loss(logits.float(), t, target, eps, self.tau)
            loss = loss + self.exit_weight * parts[f'exit_loss_{number}']
        return {'loss': loss, **parts}


def _choose_stages(pair: Pair, stages: Sequence[str]) -> List[int]:
    names = [stages] if isinstance(stages, str) else [str(stage).strip() for stage in stages]
    if names == ['none']:
        return []
    if not names:
        if not pair.student.stages:
            raise pair.error('ofa', 'the student has no stages that could have exits: set ofa.stages=none.')
        return find_exit_stages(pair.student)
    if not all(name.isdecimal() for name in names) or len(set(names)) < len(names):
        raise ValueError(f"ofa.stages must be different stages of the student, from 1, or 'none', got {list(names)}.")
    try:
        for name in names:
            pair.student.stage(int(name))
    except ValueError as e:
        raise pair.error('ofa', str(e)) from e
    return [int(name) for name in names]


def _read_exit_eps(exit_eps: Union[float, Sequence[float]], eps: float, number: int) -> List[float]:
    """The exponent of each exit."""
    given = [exit_eps] if isinstance(exit_eps, (int, float)) else list(exit_eps)
    values = [check_number('ofa', 'exit_eps', value, above=0) for value in given or [eps]]
    if len(values) not in (1, number):
        raise ValueError(f'ofa.exit_eps must be one number for each of {number} exits, or one, got {values}.')
    return values * number if len(values) == 1 else values
