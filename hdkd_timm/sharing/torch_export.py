"""A network as a program of torch.export, the first step of every export."""

import io
import logging
import warnings
from contextlib import contextmanager, redirect_stdout
from typing import BinaryIO, Callable, Iterator, Sequence

import torch
from timm.utils import reparameterize_model
from torch import nn


@contextmanager
def silenced() -> Iterator[None]:
    """Suppress warnings and output of exporters about their internals; errors are raised."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(disabled)


def first_line(error: Exception) -> str:
    """First line of the message of an exporter's error, which may have many."""
    return next(iter(str(error).strip().splitlines()), '')


def export_program(model: nn.Module, input_size: Sequence[int], name: str) -> torch.export.ExportedProgram:
    """Export the deploy form of a network, for batches of any size and without the paths of its source code.

    Args:
        model: The network, in eval mode.
        input_size: (C, H, W).
        name: Its name in error messages.

    Raises:
        ValueError: if it does not return logits, or cannot be exported.
    """
    x = torch.randn(2, *input_size)
    with torch.inference_mode():
        output = model(x)
    if not isinstance(output, torch.Tensor) or output.shape != (2, model.num_classes) or model.num_classes < 1:
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(f"Model '{name}' returns {shape} for two images, expected their logits (2, classes).")
    try:
        with silenced():
            program = torch.export.export(
                reparameterize_model(model).eval(), (x,), dynamic_shapes=({0: torch.export.Dim('batch')},)
            )
    except Exception as e:  # exporters raise errors of many types
        raise ValueError(f"torch.export cannot export '{name}' ({type(e).__name__}: {first_line(e)}).") from e
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop('stack_trace', None)
    return program


def serialize_program(program: torch.export.ExportedProgram, metadata: str) -> bytes:
    """Content of a .pt2 file, with metadata as the extra file 'hdkd_timm'."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={'hdkd_timm': metadata})
    return buffer.getvalue()


def load_program(file: BinaryIO) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function of a .pt2 file: images (B, C, H, W) to logits (B, K)."""
    return torch.export.load(file).module()
