"""Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391): which regions of an image support a class."""

from contextlib import ExitStack
from typing import Any, Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import nn


class NoMapsError(ValueError):
    """A network does not have the layers that an explanation needs."""


def _select_feature_map(
    model: nn.Module,
    outputs: Dict[str, Any],
    channels: Dict[str, int],
) -> Tuple[torch.Tensor, bool]:
    """The output of the last stage with a feature map (four dimensions), and whether its channels are last.

    Args:
        model: The network.
        outputs: Stage name -> output.
        channels: Stage name -> number of channels, as far as timm's `feature_info` has it.
    """
    for name, output in reversed(outputs.items()):
        if isinstance(output, torch.Tensor) and output.ndim == 4:
            first, last = (output.shape[axis] == channels.get(name) for axis in (1, 3))
            is_last = last if first != last else getattr(model, 'output_fmt', 'NCHW') == 'NHWC'
            return output, is_last
    raise NoMapsError(
        f'{type(model).__name__} has no stage with a feature map (looked at {", ".join(outputs) or "none"}): choose a'
        ' layer with an output (B, K, h, w).'
    )


def _forward_with_outputs(
    model: nn.Module,
    images: torch.Tensor,
    layers: Dict[str, nn.Module],
) -> Tuple[torch.Tensor, Dict[str, Any]]:
    """Logits, and the output of each layer."""
    outputs: Dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            outputs[name] = output

        return hook

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(keep(name)).remove)
        return model(images), outputs


@torch.enable_grad()
def grad_cam(
    model: nn.Module,
    images: torch.Tensor,
    targets: Optional[torch.Tensor] = None,
    layer: Optional[str] = None,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Grad-CAM maps, equations 1 and 2 of the paper.

    Args:
        model: A timm model in eval mode.
        images: (B, C, H, W), normalised.
        targets: Class index of each image, (B,); the predicted class by default.
        layer: Module with an output (B, K, h, w); by default the last stage with a feature map, stage 3 in HDKD.

    Returns:
        Maps (B, H, W) with values from 0 to 1, the maximum of each map (all 0 if nothing supports the class); and the
        logits (B, classes).

    Raises:
        ValueError: if there is no such layer; `NoMapsError` if no layer has a feature map.
    """
    infos = [] if layer else getattr(model, 'feature_info', [])
    channels = {info['module']: info.get('num_chs', 0) for info in infos}
    modules = dict(model.named_modules())
    if layer and layer not in modules:
        raise ValueError(f"{type(model).__name__} has no layer '{layer}': choose one of its named_modules().")
    names = [layer] if layer else [name for name in channels if name in modules]
    logits, outputs = _forward_with_outputs(
        model,
        images.detach().requires_grad_(),  # so that frozen networks have gradients too
        {name: modules[name] for name in names},
    )
    maps, channels_last = _select_feature_map(model, outputs, channels)
    if targets is None:
        targets = logits.argmax(dim=1)
    score = logits.gather(1, targets[:, None]).sum()  # in eval mode, images don't influence each other
    (gradient,) = torch.autograd.grad(score, maps)
    if channels_last:
        maps, gradient = maps.permute(0, 3, 1, 2), gradient.permute(0, 3, 1, 2)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    cam = (weights * maps).sum(dim=1, keepdim=True).relu().detach().float()  # (B, 1, h, w)
    cam = F.interpolate(cam, size=images.shape[-2:], mode='bilinear', align_corners=False)[:, 0]
    return cam / cam.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(cam.dtype).tiny), logits.detach()
