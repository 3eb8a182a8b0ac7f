"""What a distillation method sees of a timm network: logits, maps of its stages, pooled features, attention."""

import dataclasses
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.loader import adapt_to_chs
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers.attention_maps import attention_layers, collect_attention

__all__ = ['Needs', 'Outputs', 'forward_outputs', 'forward_stages', 'get_channel_stats', 'has_distillation_head']


class Outputs(NamedTuple):
    """What a network computed for a batch, as far as it was asked for.

    Args:
        logits: (B, K); of the class head where the network has two and trains both, else as at inference.
        dist_logits: (B, K), of the distillation head in distilled training.
        maps: Stage, from 1 -> (B, C, H, W).
        prefix_tokens: Stage -> class and other prefix tokens, (B, P, C), of stages that consist of tokens.
        pooled: Features before the classifier, (B, C).
        attention: Attention of each block after the softmax, (B, heads, N, N); N includes the prefix tokens.
    """

    logits: torch.Tensor
    dist_logits: Optional[torch.Tensor] = None
    maps: Dict[int, torch.Tensor] = {}
    prefix_tokens: Dict[int, torch.Tensor] = {}
    pooled: Optional[torch.Tensor] = None
    attention: Sequence[torch.Tensor] = ()

    @property
    def kd_logits(self) -> torch.Tensor:
        """The logits that learn from the teacher: the distillation head's where there is one."""
        return self.logits if self.dist_logits is None else self.dist_logits


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a method takes of a network. `a | b` is what both take.

    Args:
        logits: Whether a loss acts on the logits, so that a distillation head is trained by it.
        stages: Stages whose maps are needed, from 1.
        prefix_tokens: Whether the prefix tokens of the stages are needed too, of a network that has some.
        pooled: Whether the pooled features are needed.
        attention: Whether the attention of the blocks is needed.
    """

    logits: bool = False
    stages: Tuple[int, ...] = ()
    prefix_tokens: bool = False
    pooled: bool = False
    attention: bool = False

    def __or__(self, other: 'Needs') -> 'Needs':
        return Needs(
            self.logits or other.logits,
            tuple(dict.fromkeys(self.stages + other.stages)),
            self.prefix_tokens or other.prefix_tokens,
            self.pooled or other.pooled,
            self.attention or other.attention,
        )

    def beyond_logits(self) -> str:
        """What is needed beside the logits, in words; '' if nothing is."""
        maps = f'maps of the stages {", ".join(map(str, self.stages))}' if self.stages else ''
        extra = [maps, 'pooled features' if self.pooled else '', 'attention' if self.attention else '']
        return ' and '.join(filter(None, extra)) or ('prefix tokens' if self.prefix_tokens else '')


def forward_outputs(model: nn.Module, x: torch.Tensor, needs: Needs) -> Outputs:
    """All that is needed of a network, from one forward pass.

    Args:
        model: A timm model; with `forward_intermediates` and `forward_head` if more than logits are needed.
        x: Images (B, C, H, W).
        needs: What to return.
    """
    if not needs.attention:
        return _forward(model, x, needs)
    with collect_attention(attention_layers(model)) as attention:
        outputs = _forward(model, x, needs)
    return outputs._replace(attention=attention)


def _forward(model: nn.Module, x: torch.Tensor, needs: Needs) -> Outputs:
    if not (needs.stages or needs.pooled):
        logits = model(x)
        return Outputs(*logits) if isinstance(logits, tuple) else Outputs(logits)
    maps: Dict[int, torch.Tensor] = {}
    prefix_tokens: Dict[int, torch.Tensor] = {}
    if needs.stages:
        in_network_order = sorted(needs.stages)
        # not all networks have the argument, for which pairs of a map and its prefix tokens are returned
        options = dict(return_prefix_tokens=True) if needs.prefix_tokens else {}
        features, found = model.forward_intermediates(x, [stage - 1 for stage in in_network_order], **options)
        maps = dict(zip(in_network_order, found))
        if options:
            prefix_tokens = {stage: pair[1] for stage, pair in maps.items() if pair[1] is not None}
            maps = {stage: pair[0] for stage, pair in maps.items()}
        for of_stage in maps.values():
            _keep_layout(of_stage)
    else:
        features = model.forward_features(x)
    logits = model.forward_head(features)
    pooled = _pool(model, features) if needs.pooled else None
    cls_logits, dist_logits = logits if isinstance(logits, tuple) else (logits, None)
    return Outputs(cls_logits, dist_logits, maps, prefix_tokens, pooled)


def _pool(model: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """The features before the classifier. The BatchNorms of some heads have counted the batch for the logits: here they
    normalise by it in the same way, and leave their statistics as they are."""
    counting = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    for norm in counting:
        norm.track_running_stats = False
    try:
        return model.forward_head(features, pre_logits=True)
    finally:
        for norm in counting:
            norm.track_running_stats = True


def _keep_layout(x: torch.Tensor) -> None:
    """Have the gradient of a channels-last map arrive channels-last, whatever a loss makes of it: with a contiguous one
    the backward pass of the BatchNorm before it takes five times as long on a CPU."""
    if x.requires_grad and x.dim() == 4 and x.stride(1) == 1 and not torch.compiler.is_compiling():
        x.register_hook(lambda grad: grad.contiguous(memory_format=torch.channels_last))


def forward_stages(model: nn.Module, x: torch.Tensor, stages: Sequence[int]) -> Tuple[Any, List[torch.Tensor]]:
    """Logits, and maps of the stages, from one forward pass.

    Args:
        model: A timm model; with `forward_intermediates` and `forward_head` if stages are given.
        x: Images (B, C, H, W).
        stages: Stages from 1, in any order; may be empty.

    Returns:
        What the model returns, logits (B, K) or in distilled training a pair of them, and the maps (B, C_i, H_i, W_i)
        in the order of `stages`.
    """
    outputs = _forward(model, x, Needs(stages=tuple(stages)))
    logits = outputs.logits if outputs.dist_logits is None else (outputs.logits, outputs.dist_logits)
    return logits, [outputs.maps[stage] for stage in stages]


def has_distillation_head(model: nn.Module) -> bool:
    """Whether a model returns the pair (class logits, distillation logits) after `set_distilled_training()`."""
    return getattr(model, 'distilled', hasattr(model, 'set_distilled_training'))


def get_channel_stats(model: nn.Module) -> Tuple[torch.Tensor, torch.Tensor]:
    """Mean and std that normalise a model's input, (1, C, 1, 1) each, adapted to its channels as timm's loader does."""
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    in_chans = getattr(model, 'in_chans', 3)
    mean, std = (
        torch.tensor(adapt_to_chs(cfg.get(key) or default, in_chans), dtype=torch.float64).view(1, -1, 1, 1)
        for key, default in (('mean', IMAGENET_DEFAULT_MEAN), ('std', IMAGENET_DEFAULT_STD))
    )
    return mean, std
