"""What a distillation method knows of a student and a teacher before the first batch, to build its layers."""

import dataclasses
import inspect
import math
from typing import Any, List, Optional, Sequence, Tuple

import torch
from torch import nn

from ..layers.attention_maps import attention_layers
from .outputs import has_distillation_head

__all__ = ['NetworkInfo', 'Pair', 'StageInfo']


@dataclasses.dataclass(frozen=True)
class StageInfo:
    """A stage of a network: where its map is taken.

    Args:
        module: Name of its module, as in `feature_info`.
        channels: Channels of its map.
        stride: Pixels of the image per position of the map.
        size: Height and width of its map.
        is_tokens: Whether it is a sequence of patch tokens, beside which there may be prefix tokens.
    """

    module: str
    channels: int
    stride: int
    size: Tuple[int, int]
    is_tokens: bool


@dataclasses.dataclass(frozen=True)
class NetworkInfo:
    """A timm network as a method sees it.

    Args:
        role: 'student' or 'teacher'.
        name: Its architecture.
        num_classes: Number of classes.
        stages: Its stages; stage 1 is the first. Empty where it has no `forward_intermediates`.
        pooled_dim: Length of the features before its classifier; None if unknown.
        num_prefix_tokens: Class and other tokens that precede the patch tokens; 0 if they cannot be had of a stage.
        attention_heads: Heads of the attention of each block that has one.
        token_grid: Rows and columns of patch tokens that the attention is over; None without blocks of attention.
        distilled: Whether it has a distillation head.
    """

    role: str
    name: str
    num_classes: int
    stages: Tuple[StageInfo, ...]
    pooled_dim: Optional[int]
    num_prefix_tokens: int
    attention_heads: Tuple[int, ...]
    token_grid: Optional[Tuple[int, int]]
    distilled: bool

    @classmethod
    def of(cls, model: nn.Module, role: str, input_size: Tuple[int, int]) -> 'NetworkInfo':
        """Read it off a timm model.

        Args:
            model: The model.
            role: 'student' or 'teacher'.
            input_size: Height and width of its images.
        """
        cfg = getattr(model, 'pretrained_cfg', None) or {}
        has_stages = hasattr(model, 'forward_intermediates') and hasattr(model, 'forward_head')
        infos = getattr(model, 'feature_info', None) if has_stages else None
        has_tokens = hasattr(model, 'num_prefix_tokens')
        embed = getattr(model, 'patch_embed', None)
        is_padded = any(getattr(embed, name, None) is True for name in ('pad', 'dynamic_img_pad'))  # ours, timm's
        stages = [_stage_info(info, input_size, has_tokens, is_padded) for info in infos or []]
        layers: List[Any] = attention_layers(model)
        tokens = [stage for stage in stages if stage.is_tokens]
        return cls(
            role,
            cfg.get('architecture') or type(model).__name__,
            getattr(model, 'num_classes', 0),
            tuple(stages),
            getattr(model, 'head_hidden_size', None) or getattr(model, 'num_features', None),
            getattr(model, 'num_prefix_tokens', 0) if _returns_prefix_tokens(model) else 0,
            tuple(layer.num_heads for layer in layers),
            tokens[-1].size if layers and tokens else None,
            has_distillation_head(model),
        )

    def __str__(self) -> str:
        return f'the {self.role} {self.name}'

    def stage(self, number: int) -> StageInfo:
        """A stage by its number, from 1.

        Raises:
            ValueError: if there is no such stage; names those that there are.
        """
        if not 1 <= number <= len(self.stages):
            has = f'stages 1 to {len(self.stages)} (strides {self.strides})' if self.stages else 'no stages'
            raise ValueError(f'The {self.role} {self.name} has {has}, not a stage {number}.')
        return self.stages[number - 1]

    @property
    def strides(self) -> str:
        return ', '.join(str(stage.stride) for stage in self.stages)


def _returns_prefix_tokens(model: nn.Module) -> bool:
    """Whether the stages of a model can be had with their prefix tokens; XCiT and CaiT add them after all blocks."""
    forward = getattr(model, 'forward_intermediates', None)
    return forward is not None and 'return_prefix_tokens' in inspect.signature(forward).parameters


def _stage_info(info: Any, input_size: Tuple[int, int], has_tokens: bool, is_padded: bool) -> StageInfo:
    stride, module = info['reduction'], info['module']
    is_tokens = has_tokens and module.startswith('blocks')
    # patches do not overlap, and what is left is cut off or padded; strided convolutions are padded
    round_size = math.floor if is_tokens and not is_padded else math.ceil
    height, width = (round_size(size / stride) for size in input_size)
    return StageInfo(module, info['num_chs'], stride, (height, width), is_tokens)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A student, its teacher, and the training data as far as methods with a memory of it need it.

    Args:
        student: The student.
        teacher: The teacher.
        train_targets: Class index of each training image, (N,), or labels, (N, K); None if unknown.
        multi_label: Whether an image has any number of labels, instead of one class.
    """

    student: NetworkInfo
    teacher: NetworkInfo
    train_targets: Optional[torch.Tensor] = None
    multi_label: bool = False

    @property
    def num_classes(self) -> int:
        return self.student.num_classes

    def error(self, method: str, reason: str) -> ValueError:
        """The error of a method that this pair cannot have.

        Args:
            method: Name of the method.
            reason: What is missing, and the way out, as the end of a sentence.
        """
        return ValueError(f"Method '{method}' for {self.student} and {self.teacher}: {reason}")

    def match_stages(self, method: str, stages: Sequence[str] = ()) -> List[Tuple[int, int]]:
        """Which stage of the student is compared with which of the teacher.

        Args:
            method: Name of the method, for errors.
            stages: 'S:T', a stage of the student and one of the teacher, from 1, or 'S', the same in both. If empty,
                each stride that both have, with the last stage of this stride.

        Returns:
            (stage of the student, stage of the teacher), at least one.

        Raises:
            ValueError: if a stage is not one of the network's, is named twice, or if no stride is that of both.
        """
        if stages:
            return self._parse_stages(method, stages)
        last = [{stage.stride: i for i, stage in enumerate(n.stages, 1)} for n in (self.student, self.teacher)]
        pairs = [(last[0][stride], last[1][stride]) for stride in sorted(last[0]) if stride in last[1]]
        if not pairs:
            raise self.error(
                method,
                f'they have no stage of the same stride (strides {self.student.strides or "unknown"} and'
                f' {self.teacher.strides or "unknown"}): name stages, {method}.stages=STUDENT:TEACHER, or choose a'
                ' method of the logits.',
            )
        return pairs

    def match_one_stage(self, method: str, stages: Sequence[str] = (), same_stride: bool = False) -> Tuple[int, int]:
        """A stage of the student and one of the teacher, for methods that compare one.

        Args:
            method: Name of the method, for errors.
            stages: One 'S:T', a stage of the student and one of the teacher, from 1; empty for the last.
            same_stride: Whether the last are those of the largest stride that both have, and not of each network.

        Returns:
            (stage of the student, stage of the teacher).

        Raises:
            ValueError: if more than one pair of stages is named, for a stage that a network does not have, or if a
                network has no stages, or none of the other's strides if `same_stride`.
        """
        if len(stages) > 1:
            raise ValueError(
                f'{method}.stages must name one stage of each network, STUDENT:TEACHER, got {list(stages)}.'
            )
        if stages or same_stride:
            return self.match_stages(method, stages)[-1]
        for network in (self.student, self.teacher):
            if not network.stages:
                raise self.error(
                    method, f'{network.name} has no stages to take a map of: choose a method of the logits.'
                )
        return len(self.student.stages), len(self.teacher.stages)

    def pooled_dims(self, method: str) -> Tuple[int, int]:
        """Length of the features before the classifier, of the student and of the teacher.

        Args:
            method: Name of the method, for errors.

        Raises:
            ValueError: if a network does not return them.
        """
        dims = []
        for network in (self.student, self.teacher):
            # a network without stages can be asked for nothing but its logits
            if network.pooled_dim is None or not network.stages:
                raise self.error(
                    method,
                    f'{network.name} does not return the features before its classifier: choose another method.',
                )
            dims.append(network.pooled_dim)
        return dims[0], dims[1]

    def _parse_stages(self, method: str, stages: Sequence[str]) -> List[Tuple[int, int]]:
        pairs = []
        for text in stages:
            numbers = str(text).split(':')
            if not 1 <= len(numbers) <= 2 or not all(number.strip().isdecimal() for number in numbers):
                raise ValueError(f"{method}.stages must be STUDENT:TEACHER, such as 2:3, or one number, got '{text}'.")
            pairs.append((int(numbers[0]), int(numbers[-1])))
        if len({s for s, _ in pairs}) < len(pairs):
            raise ValueError(f'{method}.stages must name a stage of the student once, got {list(stages)}.')
        for of_student, of_teacher in pairs:
            try:
                self.student.stage(of_student)
                self.teacher.stage(of_teacher)
            except ValueError as e:
                raise self.error(method, str(e)) from e
        return pairs
