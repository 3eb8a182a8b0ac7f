"""How a network's images are prepared, as its `pretrained_cfg` or timm's data config says: checks and channels."""

import math
from typing import Any, Dict

from timm.data.loader import adapt_to_chs
from torch import nn

__all__ = ['adapt_stats', 'check_preprocessing']

_CHOICES = {
    'crop_mode': ('center', 'squash', 'border'),
    'interpolation': ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos', 'random'),
}


def adapt_stats(model: nn.Module) -> None:
    """Give the mean and std in a timm model's `pretrained_cfg` one value per input channel."""
    for key in ('mean', 'std'):
        stats = tuple(adapt_to_chs(model.pretrained_cfg[key], model.in_chans))
        model.pretrained_cfg = dict(model.pretrained_cfg, **{key: stats})


def check_preprocessing(cfg: Dict[str, Any], what: str) -> None:
    """Check that images can be prepared by a `pretrained_cfg` or by timm's data config.

    Raises:
        ValueError: if a size, mean, std, crop or interpolation is invalid; names it and its value.
    """
    size = cfg.get('input_size')
    if not (
        isinstance(size, (list, tuple))
        and len(size) == 3
        and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in size)
    ):
        raise ValueError(f'{what}: input_size must be (channels, height, width), got {size}.')
    for key, lowest in (('mean', -math.inf), ('std', 0)):
        stats = cfg.get(key)
        if not (
            isinstance(stats, (list, tuple))
            and len(stats) in (1, 3, size[0])
            and all(_is_number(value) and value > lowest for value in stats)
        ):
            raise ValueError(
                f'{what}: {key} must be {size[0]} numbers{" above 0" if key == "std" else ""}, one per channel, got'
                f' {stats}.'
            )
    if not (_is_number(cfg.get('crop_pct')) and cfg['crop_pct'] > 0):
        raise ValueError(f'{what}: crop_pct must be a number above 0, got {cfg.get("crop_pct")}.')
    for key, choices in _CHOICES.items():
        if cfg.get(key) not in choices:
            raise ValueError(f'{what}: {key} must be one of {", ".join(choices)}, got {cfg.get(key)!r}.')


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
