"""A program of torch.export as an OpenVINO model, in float32 or quantised to int8 by NNCF."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, Sequence

import numpy as np
import torch

from ..data.loader import SplitLoader
from ..evaluation.exported import METADATA_KEY, import_openvino, openvino_core, weights_path, without_telemetry
from .torch_export import first_line, silenced

ELEMENTWISE = ['Add', 'Divide', 'Multiply', 'ReduceMax', 'ReduceMean']  # operators that stay float32 in int8 files


def convert_to_openvino(program: torch.export.ExportedProgram, input_size: Sequence[int], name: str) -> Any:
    """Convert a program to an OpenVINO model, from 'input' (batch, C, H, W) to 'logits' (batch, K).

    Args:
        program: The exported network.
        input_size: (C, H, W).
        name: Name of the network in error messages.

    Raises:
        ValueError: if it cannot be converted.
    """
    openvino = import_openvino()
    try:
        with silenced():
            model = openvino.convert_model(program)
            model.reshape([-1, *input_size])
    except Exception as e:  # exporters raise errors of many types
        raise ValueError(f"Cannot export '{name}' to OpenVINO ({type(e).__name__}: {first_line(e)}).") from e
    model.inputs[0].set_names({'input'})
    model.outputs[0].set_names({'logits'})
    return model


def serialize_openvino(model: Any, metadata: str) -> Dict[str, bytes]:
    """Contents of the .xml and the .bin file of a model, in float32 where it is not quantised.

    Args:
        model: The OpenVINO model, whose runtime info gets the metadata.
        metadata: JSON for 'hdkd_timm'; the SHA-256 of the .bin file is added, since the .xml file does not say which
            weights are its own.
    """
    openvino = import_openvino()
    values = json.loads(metadata)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'model.xml')
        openvino.save_model(model, path, compress_to_fp16=False)
        weights = weights_path(path).read_bytes()
        values['weights_sha256'] = hashlib.sha256(weights).hexdigest()
        model.set_rt_info(json.dumps(values), [METADATA_KEY])
        openvino.save_model(model, path, compress_to_fp16=False)
        return {'.xml': path.read_bytes(), '.bin': weights_path(path).read_bytes()}


def quantize_openvino(path: Path, loader: SplitLoader) -> Any:
    """Quantise an OpenVINO model to int8, with activation ranges from calibration images.

    NNCF quantises what the CPU computes in int8, convolutions and matrix products first of all, with a scale per
    channel of the weights, and corrects biases for the error of their layer. `ELEMENTWISE` operators, which sum
    branches, gate and average, stay float32, which is no slower: quantised as well, they raise the share of labels that
    int8 changes from 1.5 to 5.0 % (`hdkd_student.ham10k`, 400 training images).

    It runs in a process of its own, since NNCF has OpenVINO cores beside `openvino_core`.

    Args:
        path: The float32 model (.xml); intermediate files are written next to it.
        loader: Calibration images.

    Raises:
        ChildProcessError: if NNCF fails.
    """
    images, out = path.with_name('images.npy'), path.with_name('int8.xml')
    np.save(images, torch.cat([batch for batch, _ in loader]).numpy())
    code = f'import sys; from {__name__} import run_nncf; run_nncf(*sys.argv[1:])'
    paths = os.pathsep.join(path for path in sys.path if path)
    result = subprocess.run(
        [sys.executable, '-c', code, str(path), str(images), str(out)],
        env={**os.environ, 'PYTHONPATH': paths},
        capture_output=True,
        text=True,
    )
    if result.returncode:
        lines = result.stderr.strip().splitlines()
        raise ChildProcessError(f'NNCF cannot quantise the model ({lines[-1] if lines else result.returncode}).')
    return openvino_core().read_model(out.read_bytes(), weights_path(out).read_bytes())


def import_nncf() -> Any:
    """NNCF, imported so that it sends nothing."""
    import_openvino()
    with without_telemetry():
        import nncf
    return nncf


def run_nncf(path: str, images: str, out: str) -> None:
    """Quantise a model, see `quantize_openvino`.

    Args:
        path: The float32 model (.xml).
        images: Calibration images as an .npy file, (N, C, H, W).
        out: The int8 model to write (.xml).
    """
    nncf, openvino = import_nncf(), import_openvino()
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    calibration = np.load(images)
    quantised = nncf.quantize(
        openvino.Core().read_model(path),
        nncf.Dataset([image[None] for image in calibration]),
        preset=nncf.QuantizationPreset.MIXED,  # weights around zero, activations in their own range
        subset_size=len(calibration),
        ignored_scope=nncf.IgnoredScope(types=ELEMENTWISE, validate=False),
        advanced_parameters=AdvancedQuantizationParameters(
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX  # of all images
        ),
    )
    openvino.save_model(quantised, out, compress_to_fp16=False)
