"""What differs between the releases of timm that this package supports (>= 1.0.29), and names of timm that are private
because it has no public ones.

Every difference came with timm 1.0.31: once that is the oldest supported release, the functions here become plain calls
of timm, or nothing.
"""

import inspect
import math
from typing import Any, Dict, Iterator, Optional, Tuple, Type, Union

import timm.models
import torch
from timm.layers import to_2tuple
from timm.models import adapt_input_conv
from torch import nn
from torch.utils.data import IterableDataset

# timm >= 1.0.31 records the arguments that rebuild a model
_RECORDS_MODEL_ARGS = hasattr(timm.models, 'get_model_args')
# timm >= 1.0.31 adapts a first convolution of any number of input channels, older releases one of three
ADAPTS_FIRST_CONV = 'base_chans' in inspect.signature(adapt_input_conv).parameters


# -- models ------------------------------------------------------------------------------------------------------------


def adapt_first_conv(weight: torch.Tensor, in_chans: int) -> torch.Tensor:
    """Weight of a first convolution for another number of input channels, by the rule of timm >= 1.0.31: summed for
    one channel, otherwise repeated and scaled. (O, C, kH, kW) -> (O, in_chans, kH, kW)"""
    chans = weight.shape[1]
    if in_chans == chans:
        return weight
    if in_chans == 1:
        return weight.sum(dim=1, keepdim=True)
    repeated = weight.repeat(1, math.ceil(in_chans / chans), 1, 1)[:, :in_chans]
    return repeated * (chans / in_chans)


def record_model_args(model: nn.Module, model_cls: Type[nn.Module], model_args: Dict[str, Any]) -> None:
    """Record the arguments of `model_cls` that rebuild a model, where timm does not (< 1.0.31)."""
    if not _RECORDS_MODEL_ARGS:
        parameters = set(inspect.signature(model_cls).parameters) - {'device', 'dtype'}
        model._model_args = {k: v for k, v in model_args.items() if k in parameters}


def update_model_input_size(model: nn.Module, img_size: Tuple[int, int]) -> None:
    """Record another image size among the arguments that rebuild a model."""
    if _RECORDS_MODEL_ARGS:
        from timm.models._input import update_model_input_size  # timm's own models use it; it has no public name

        update_model_input_size(model, img_size)
    else:
        model._model_args = dict(getattr(model, '_model_args', {}), img_size=img_size)


def image_size(model: nn.Module, default: Union[None, int, Tuple[int, int]] = None) -> Tuple[int, int]:
    """Height and width in pixels of the images that a model was built for: its own, or `default`, or those of its
    `pretrained_cfg`, which timm >= 1.0.31 keeps up to date and older releases leave as they are for the weights."""
    size = getattr(model, 'img_size', None) or getattr(getattr(model, 'patch_embed', None), 'img_size', None) or default
    if size is not None:
        return to_2tuple(size)
    height, width = (getattr(model, 'pretrained_cfg', None) or {}).get('input_size', (3, 224, 224))[-2:]
    return height, width


def remove_model_arg(model: nn.Module, name: str) -> None:
    """Remove one of the arguments that timm recorded for rebuilding a model, which has no public function for that."""
    if hasattr(model, '_model_args'):
        model._model_args = {k: v for k, v in model._model_args.items() if k != name}


def complete_model_args(model: nn.Module, model_args: Optional[Dict[str, Any]]) -> Optional[Dict[str, Any]]:
    """Arguments for `timm.models.save_for_hf`, which adds the recorded ones and the current classes, channels and
    pooling to the given ones from timm 1.0.31 on; before that they are added here."""
    if _RECORDS_MODEL_ARGS:
        return model_args
    pool = getattr(model, 'global_pool', None)
    pool = getattr(pool, 'pool_type', pool)
    return {
        **getattr(model, '_model_args', {}),
        **(model_args or {}),
        'num_classes': model.num_classes,
        'in_chans': model.in_chans,
        **({'global_pool': pool} if isinstance(pool, str) else {}),
    }


def reset_classifier(model: nn.Module, num_classes: int) -> None:
    """`model.reset_classifier(num_classes)` that keeps the pooling, which models of timm < 1.0.31 may reset to their
    default."""
    default = inspect.signature(model.reset_classifier).parameters.get('global_pool')
    pool = getattr(getattr(model, 'global_pool', None), 'pool_type', None)
    if default is not None and isinstance(default.default, str) and pool:
        model.reset_classifier(num_classes, pool)
    else:
        model.reset_classifier(num_classes)


# -- data --------------------------------------------------------------------------------------------------------------


def iterate_batches(loader: Any) -> Iterator[Any]:
    """The batches of a timm loader; timm < 1.0.31 fails on a loader that has none."""
    if isinstance(loader.dataset, IterableDataset) or len(loader):
        yield from loader


# -- training ----------------------------------------------------------------------------------------------------------


def create_scheduler(optimizer: torch.optim.Optimizer, sched: str, **kwargs: Any) -> Any:
    """The schedule of `timm.scheduler.create_scheduler_v2`.

    Raises:
        ValueError: if timm has no such schedule. From 1.0.31 on timm raises it, before that it returns None.
    """
    from timm.scheduler import create_scheduler_v2

    scheduler, _ = create_scheduler_v2(optimizer, sched=sched, **kwargs)
    if scheduler is None:
        raise ValueError(f'Unknown schedule: {sched}')
    return scheduler


def set_memory_format(task: nn.Module, memory_format: torch.memory_format) -> None:
    """`task.to(memory_format=...)`, which fails for a `TrainingTask` of timm < 1.0.31."""
    for module in task.children():
        module.to(memory_format=memory_format)


def set_train_mode(task: nn.Module) -> None:
    """`task.train()` whose frozen teacher stays in eval mode; in timm < 1.0.31 it would train with its own batch
    statistics."""
    task.train()
    if hasattr(task, 'teacher'):
        task.teacher.eval()
