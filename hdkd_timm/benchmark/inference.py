"""Images per second of our networks and of others of timm's, in several forms."""

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

import timm
import torch
from timm.utils import reparameterize_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..data.phantoms import write_phantoms
from ..evaluation.exported import find_exported
from ..models.checkpoint import save_model
from ..sharing.export import FORMATS, export_model
from ..utils.memory import keep_freed_memory
from .config import EXPORTS, BenchConfig
from .step import NUM_CLASSES
from .tables import Row
from .timing import measure_latency, take_turns


def count_multiply_adds(name: str, img_size: int) -> Tuple[int, int]:
    """Parameters of a timm model, and multiply-adds of its convolutions and matrix products for one image."""
    was_fused = timm.layers.use_fused_attn()
    timm.layers.set_fused_attn(False)  # attention as matrix products, which every release of torch counts
    try:
        model = timm.create_model(name, **_size_args(name, img_size)).eval()
    finally:
        timm.layers.set_fused_attn(bool(was_fused))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, img_size, img_size))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


def _size_args(name: str, img_size: int) -> Dict[str, int]:
    """Arguments for a timm model that takes images of this size; ours get the published number of classes."""
    if name.startswith('hdkd'):
        return dict(img_size=img_size, num_classes=NUM_CLASSES)
    return dict(img_size=img_size) if timm.get_pretrained_cfg(name).fixed_input_size else {}


def create_network(name: str, form: str, img_size: int, device: torch.device) -> nn.Module:
    """A timm model with random weights; all forms but 'eager' are fused and channels-last."""
    torch.manual_seed(0)
    model = timm.create_model(name, **_size_args(name, img_size)).eval().to(device)
    return model if form == 'eager' else reparameterize_model(model).to(memory_format=torch.channels_last)


def create_inference(
    name: str,
    form: str,
    img_size: int,
    device: torch.device,
    amp_dtype: Optional[torch.dtype] = None,
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A timm model with random weights in one of `FORMS`: all but 'eager' are fused, those of PyTorch channels-last."""
    if form in EXPORTS:
        return _export(create_network(name, 'eager', img_size, torch.device('cpu')), *EXPORTS[form], img_size)
    model = create_network(name, form, img_size, device)
    forward = torch.compile(model) if form == 'compiled' else model

    def infer(x: torch.Tensor) -> torch.Tensor:
        if form != 'eager':
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast(device.type, amp_dtype) if amp_dtype else nullcontext():
            return forward(x)

    return infer


def _export(model: nn.Module, format: str, int8: bool, img_size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        path, images = Path(folder), Path(folder) / 'images'
        save_model(model, path / 'model', model_args=dict(num_classes=model.num_classes))
        write_phantoms(images, num_train=2, num_test=1, size=img_size)
        out = path / f'model{FORMATS[format]}'
        export_model(
            str(path / 'model'),
            out,
            format,
            int8=int8,
            calibration=[str(images)] if int8 else (),
            img_size=img_size,
        )
        return find_exported(out)(out)


def _create_forms(name: str, config: BenchConfig, device: torch.device) -> Dict[str, Callable[..., Any]]:
    """Form -> network in this form, for those of the settings that this machine has."""
    forms = [form for form in config.forms if device.type == 'cpu' or form not in ('kept', *EXPORTS)]
    if not keep_freed_memory(False):
        forms = [form for form in forms if form != 'kept']
    infer = {form: create_inference(name, form, config.img_size, device) for form in forms}
    if config.amp:
        infer.update(
            {
                f'{form}, {config.amp_dtype}': create_inference(
                    name, form, config.img_size, device, getattr(torch, config.amp_dtype)
                )
                for form in ('fused', 'compiled')
                if form in forms
            }
        )
    return infer


def measure_inference(config: BenchConfig, device: torch.device) -> Iterator[Row]:
    """Time each network, form and batch size."""
    for name in config.models:
        parameters, multiply_adds = count_multiply_adds(name, config.img_size)
        infer = _create_forms(name, config, device)
        for batch_size in config.inference_batches:
            torch.compiler.reset()  # one graph per batch size
            x = torch.randn(batch_size, 3, config.img_size, config.img_size, device=device)
            calls = {form: (lambda call=call, x=x: call(x)) for form, call in infer.items()}
            kept = tuple({'kept'} & set(infer))
            seconds = take_turns(calls, config.rounds, device, kept)
            latency = measure_latency(calls, config.rounds, device, kept) if batch_size == 1 else {}
            slowest = seconds.get('eager', max(seconds.values()))
            for form, value in seconds.items():
                yield dict(
                    part='inference',
                    name=name,
                    form=form,
                    img_size=config.img_size,
                    batch_size=batch_size,
                    ms=1000 * value,
                    images_per_second=batch_size / value,
                    ratio=slowest / value,
                    **dict(zip(('p50_ms', 'p95_ms'), (1000 * value for value in latency.get(form, ())))),
                    parameters=parameters,
                    multiply_adds=multiply_adds,
                )
