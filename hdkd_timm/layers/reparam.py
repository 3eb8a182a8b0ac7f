"""Structural reparametrisation: BatchNorms folded into the convolutions around them, for inference."""

from typing import Optional

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

__all__ = ['ReparamLayer', 'fold_batch_norms', 'is_fused']


def fold_batch_norms(conv: nn.Conv2d, norm: nn.Module, pre_norm: Optional[nn.Module] = None) -> None:
    """Set the weight and bias of a convolution, in place, so that it includes the BatchNorms around it.

    Exact for a norm after any convolution, and for one before a 1x1 convolution without padding.

    Args:
        conv: Convolution, with or without stride and groups, without bias.
        norm: BatchNorm after it.
        pre_norm: BatchNorm before it.
    """
    weight, bias = conv.weight.detach().float(), None
    if pre_norm is not None:
        scale = pre_norm.weight.float() * torch.rsqrt(pre_norm.running_var.float() + pre_norm.eps)
        shift = pre_norm.bias.float() - pre_norm.running_mean.float() * scale
        bias = weight[:, :, 0, 0] @ shift
        weight = weight * scale[:, None, None]
    weight, bias = fuse_conv_bn_weights(
        weight,
        bias,
        norm.running_mean.float(),
        norm.running_var.float(),
        norm.eps,
        norm.weight.float(),
        norm.bias.float(),
    )
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=conv.weight.requires_grad)
    conv.weight.data = weight.to(conv.weight.dtype)


class ReparamLayer(nn.Module):
    """A layer whose BatchNorms can be folded into its convolutions by timm's `reparameterize_model`."""

    fused: bool

    def __init__(self):
        super().__init__()
        self.fused = False

    @torch.jit.ignore
    def _fold(self) -> None:
        raise NotImplementedError

    @torch.jit.ignore
    def reparameterize(self) -> None:
        """Fold the BatchNorms in place, using their running statistics. A second call does nothing."""
        if not self.fused:
            with torch.no_grad():
                self._fold()
            self.fused = True
            self.eval()

    def _check_mode(self) -> None:
        if self.fused and self.training:
            raise RuntimeError(
                'This model is fused for inference, its BatchNorms are folded away: call eval(), or build a new model'
                ' and load its weights to train it.'
            )

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        # the convolutions that absorb a BatchNorm have a bias if and only if they are fused
        convs = [name for name, m in self.named_children() if isinstance(m, nn.Conv2d)]
        has_weights = any(f'{prefix}{name}.weight' in state_dict for name in convs)
        if has_weights and self.fused != any(f'{prefix}{name}.bias' in state_dict for name in convs):
            message = 'the {} is fused (timm.utils.reparameterize_model), the {} is not: {}.'.format(
                *(
                    ('model', 'state dict', 'load it into a new model, and fuse that')
                    if self.fused
                    else ('state dict', 'model', 'use the state dict of a model that is not fused')
                )
            )
            if message not in error_msgs:
                error_msgs.append(message)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def is_fused(model: nn.Module) -> bool:
    """Whether BatchNorms of the model are folded away by `timm.utils.reparameterize_model`."""
    return any(getattr(m, 'fused', False) for m in model.modules())
