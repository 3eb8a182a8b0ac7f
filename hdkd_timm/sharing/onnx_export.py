"""A program of torch.export as an ONNX file."""

from typing import Any, Optional

import torch

from ..evaluation.exported import METADATA_KEY
from .torch_export import first_line, silenced


def set_metadata(proto: Any, metadata: str) -> None:
    """Set the only metadata property of a ModelProto."""
    del proto.metadata_props[:]
    proto.metadata_props.add(key=METADATA_KEY, value=metadata)


def _clean_graph(graph: Any) -> None:
    """Remove the exporter's annotations, and name the dynamic dimension 'batch'."""
    for part in [graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        del part.metadata_props[:]
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in [*graph.input, *graph.output, *graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = dim.dim_param.replace(symbol, 'batch')


def convert_to_onnx(program: torch.export.ExportedProgram, opset: Optional[int], metadata: str, name: str) -> Any:
    """Convert a program to an ONNX ModelProto, from 'input' (batch, C, H, W) to 'logits' (batch, K).

    Args:
        program: The exported network.
        opset: ONNX opset version; PyTorch's choice by default.
        metadata: JSON for the metadata property 'hdkd_timm'.
        name: Name of the network in error messages.

    Raises:
        ValueError: if it cannot be converted.
    """
    try:
        with silenced():
            proto = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=['input'], output_names=['logits'], opset_version=opset
            ).model_proto
    except Exception as e:  # exporters raise errors of many types
        raise ValueError(f"Cannot export '{name}' to ONNX ({type(e).__name__}: {first_line(e)}).") from e
    version = next(o.version for o in proto.opset_import if o.domain in ('', 'ai.onnx'))
    if opset not in (None, version):
        raise ValueError(f"Cannot export '{name}' with --opset {opset}: omit it, or use one closer to {version}.")
    _clean_graph(proto.graph)
    set_metadata(proto, metadata)
    return proto
