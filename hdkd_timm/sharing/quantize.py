"""Static int8 quantisation of an ONNX file by onnxruntime, and what int8 costs."""

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import torch
from torch import nn

from ..data.loader import SplitLoader
from ..evaluation.classifier import Classifier
from ..evaluation.evaluate import evaluate
from ..utils.distributed import World
from .torch_export import silenced


class _CalibrationReader:
    """Calibration images as onnxruntime reads them, one batch at a time."""

    def __init__(self, loader: SplitLoader):
        self.batches, self.size, self.left = iter(loader), len(loader), 0

    def __len__(self) -> int:
        return self.size

    def set_range(self, start_index: int, end_index: int) -> None:
        self.left = end_index - start_index

    def get_next(self) -> Optional[Dict[str, np.ndarray]]:
        self.left -= 1
        return {'input': next(self.batches)[0].numpy()} if self.left >= 0 else None


def quantize_onnx(path: Path, loader: SplitLoader) -> Any:
    """Quantise an ONNX file to an int8 ModelProto, with activation ranges from calibration images.

    Convolutions and matrix products are quantised, with per-channel weights. The first layer and the heads are not:
    they are small, and errors there have the largest effect. At either end, 0.005 % of the values of an activation are
    clipped, because otherwise a few outliers would take most of the range (a teacher of skin lesions at 64 px with
    60.7 % accuracy drops to 56.2 % without clipping, and to 59.5 % with it).

    Args:
        path: The float32 file; intermediate files are written next to it.
        loader: Calibration images.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, quantized = (path.with_name(f'{name}.onnx') for name in ('prepared', 'int8'))
    with silenced():
        quant_pre_process(path, prepared, skip_symbolic_shape=True)  # symbolic shape inference fails on attention
        quantization.quantize_static(
            prepared,
            quantized,
            _CalibrationReader(loader),
            op_types_to_quantize=['Conv', 'MatMul'],  # linear layers on (B, C), such as heads, are Gemm
            nodes_to_exclude=[node.name for node in onnx.load(prepared).graph.node if 'input' in node.input],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.Percentile,
            extra_options={'CalibPercentile': 99.995, 'CalibStridedMinMax': 1},
        )  # one batch at a time
    return onnx.load(quantized)


def find_targets(
    folders: Sequence[str], files: Sequence[str], classes: Optional[List[str]], labels: Dict[str, str]
) -> Optional[List[int]]:
    """Class indices of image files from their labels, or else from their class folders, FOLDER/<class>/*; None if these
    have other names than the classes."""
    names = []
    for path in files:
        if path in labels:
            names.append(labels[path])
            continue
        above = [folder for folder in folders if Path(folder) in Path(path).parents]
        names.append(Path(path).relative_to(above[0]).parts[0] if above else '')
    return [classes.index(name) for name in names] if classes and set(names) <= set(classes) else None


def compare_precisions(
    float32: nn.Module,
    int8: nn.Module,
    loader: SplitLoader,
    has_targets: bool,
    classifier: Classifier,
) -> Dict[str, float]:
    """'agreement' of the labels, largest 'prob_difference' and, with targets, both accuracies."""
    world, problem = World(torch.device('cpu')), classifier.problem
    (before, targets), (after, _) = (evaluate(model, loader, world, problem=problem) for model in (float32, int8))
    labels = [problem.predict(probs, classifier.thresholds) for probs in (before, after)]
    figures = dict(
        agreement=float((labels[0] == labels[1]).mean()),
        prob_difference=float(np.abs(before - after).max()),
    )
    if has_targets:
        figures.update(
            accuracy_float32=float((before.argmax(axis=1) == targets).mean()),
            accuracy_int8=float((after.argmax(axis=1) == targets).mean()),
        )
    return figures
