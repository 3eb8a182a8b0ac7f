"""A saved model as one file that needs neither timm nor this package: ONNX, float32 or int8, or torch.export's.

The file takes float32 images (B, C, H, W) of one size, normalised, in batches of any size, and returns logits (B, K).
How images are to be prepared, and the names of the classes, are in its metadata under 'hdkd_timm', as JSON.
"""
import io
import json
import logging
import os
import tempfile
import warnings
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import timm
import torch
from timm.utils import reparameterize_model
from torch import nn

from ..data.inspection import inspect_images
from ..data.loader import SplitLoader
from ..data.value_range import describe_ranges
from ..evaluation.evaluate import evaluate
from ..evaluation.inference import Classifier, InferenceConfig, OnnxModel, find_images, image_dataset, load_classifier
from ..models.checkpoint import adapt_stats
from ..utils.distributed import World
from ..utils.files import PathLike, atomic_write
from ..version import __version__

_logger = logging.getLogger(__name__)

FORMATS = {'onnx': '.onnx', 'torch-export': '.pt2'}  # and what their files end in
PACKAGES = {'onnx': ('onnx', 'onnxscript', 'onnxruntime'), 'torch-export': ()}
MIN_OPSET = 18  # of PyTorch's exporter, it converts to older ones in part only

# largest difference from PyTorch's logits over the largest logit; rounding alone makes about 1e-6
TOLERANCE = 1e-3

BATCH_SIZE = 8


def import_packages(format: str) -> None:
    """Raises ImportError if a package is missing that a format needs."""
    try:
        for package in PACKAGES[format]:
            import_module(package)
    except ImportError as e:
        *others, last = PACKAGES[format]
        raise ImportError(
            f"ONNX export needs {', '.join(others)} and {last}: pip install 'hdkd-timm[onnx]'.") from e


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and words of exporters, which tell of their own workings; what goes wrong raises."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(disabled)


def _metadata(classifier: Classifier, precision: str) -> str:
    cfg = classifier.model.pretrained_cfg
    return json.dumps(dict(
        architecture=cfg.get('architecture'), num_classes=classifier.model.num_classes,
        label_names=classifier.classes, data_config=classifier.data_config, precision=precision,
        license=cfg.get('license'),
        versions=dict(hdkd_timm=__version__, timm=timm.__version__, torch=torch.__version__)))


def _export_program(model: nn.Module, input_size: Sequence[int], name: str) -> torch.export.ExportedProgram:
    """The model's deploy form, for batches of any size, without the traces of where its code lies."""
    x = torch.randn(2, *input_size)
    with torch.inference_mode():
        output = model(x)
    if not isinstance(output, torch.Tensor) or output.shape != (2, model.num_classes) or model.num_classes < 1:
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(f"Model '{name}' gives {shape} for two images, expected their logits (2, classes).")
    try:
        with _quiet():
            program = torch.export.export(
                reparameterize_model(model).eval(), (x,), dynamic_shapes=({0: torch.export.Dim('batch')},))
    except Exception as e:  # exporters raise errors of many types
        raise ValueError(f"torch.export cannot export '{name}' ({type(e).__name__}: {_first_line(e)}).") from e
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop('stack_trace', None)
    return program


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), '')


def _convert_to_onnx(program: torch.export.ExportedProgram, opset: Optional[int], name: str) -> Any:
    """The program as an ONNX ModelProto."""
    try:
        with _quiet():
            proto = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=['input'], output_names=['logits'],
                opset_version=opset).model_proto
    except Exception as e:
        raise ValueError(f"Cannot export '{name}' to ONNX ({type(e).__name__}: {_first_line(e)}).") from e
    version = next(o.version for o in proto.opset_import if o.domain in ('', 'ai.onnx'))
    if opset not in (None, version):
        raise ValueError(f"Cannot export '{name}' with --opset {opset}: leave it out, or take one nearer to {version}.")
    graph = proto.graph
    for part in [proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        del part.metadata_props[:]
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in [*graph.input, *graph.output, *graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = dim.dim_param.replace(symbol, 'batch')
    return proto


class _Batches:
    """Calibration images as onnxruntime reads them, a batch at a time."""

    def __init__(self, loader: SplitLoader):
        self.batches, self.size, self.left = iter(loader), len(loader), 0

    def __len__(self) -> int:
        return self.size

    def set_range(self, start_index: int, end_index: int) -> None:
        self.left = end_index - start_index

    def get_next(self) -> Optional[Dict[str, np.ndarray]]:
        self.left -= 1
        return {'input': next(self.batches)[0].numpy()} if self.left >= 0 else None


def _quantize(path: Path, loader: SplitLoader) -> Any:
    """The ModelProto of an ONNX file in int8, with the ranges that activations have on these images.

    Convolutions and matrix products are, by channel of their weights. The layer that reads the image and the heads are
    not: they are small, and errors there the largest. Of an activation's values 0.005 % at either end are clipped, or
    a few outliers would take most of the range (a teacher of skin lesions at 64 px, 60.7 % accurate, falls to 56.2 %
    without and to 59.5 % with that).
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process
    prepared, quantized = (path.with_name(f'{name}.onnx') for name in ('prepared', 'int8'))
    with _quiet():
        quant_pre_process(path, prepared, skip_symbolic_shape=True)  # which fails on attention
        quantization.quantize_static(
            prepared, quantized, _Batches(loader),
            op_types_to_quantize=['Conv', 'MatMul'],  # linear layers on (B, C), as heads are, are Gemm
            nodes_to_exclude=[node.name for node in onnx.load(prepared).graph.node if 'input' in node.input],
            per_channel=True, activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.Percentile,
            extra_options={'CalibPercentile': 99.995, 'CalibStridedMinMax': 1})  # a batch at a time
    return onnx.load(quantized)


def _largest_difference(
        model: nn.Module,
        exported: Callable[[torch.Tensor], torch.Tensor],
        batches: Iterable[torch.Tensor],
) -> Tuple[float, float]:
    """Between the logits of both, and the largest logit. NaN where one is."""
    differences, logits = [], []
    with torch.inference_mode():
        for x in batches:
            expected = model(x)
            differences.append((exported(x) - expected).abs().max())
            logits.append(expected.abs().max())
    return float(torch.stack(differences).max()), float(torch.stack(logits).max())


def _find_targets(folders: Sequence[str], files: Sequence[str], classes: Optional[List[str]]) -> Optional[List[int]]:
    """Class indices of files below class folders FOLDER/<class>/*, None where these are not the model's classes."""
    names = []
    for path in files:
        above = [folder for folder in folders if Path(folder) in Path(path).parents]
        names.append(Path(path).relative_to(above[0]).parts[0] if above else None)
    return [classes.index(name) for name in names] if classes and set(names) <= set(classes) else None


def _compare_precisions(
        float32: nn.Module,
        int8: nn.Module,
        loader: SplitLoader,
        has_targets: bool,
) -> Dict[str, float]:
    world = World(torch.device('cpu'))
    (before, targets), (after, _) = evaluate(float32, loader, world), evaluate(int8, loader, world)
    figures = dict(
        agreement=float((before.argmax(axis=1) == after.argmax(axis=1)).mean()),
        prob_difference=float(np.abs(before - after).max()))
    if has_targets:
        figures.update(
            accuracy_float32=float((before.argmax(axis=1) == targets).mean()),
            accuracy_int8=float((after.argmax(axis=1) == targets).mean()))
    return figures


def export_model(
        name: str,
        out: PathLike,
        format: str = 'onnx',
        opset: Optional[int] = None,
        images: Sequence[str] = (),
        int8: bool = False,
        calibration: Sequence[str] = (),
        calibration_images: int = 200,
        img_size: Optional[int] = None,
        model_name: Optional[str] = None,
        model_kwargs: Optional[Dict[str, Any]] = None,
        use_ema: bool = True,
        label_names: Optional[Sequence[str]] = None,
) -> Dict[str, Any]:
    """Export a saved model to one file, read it back and compare it with the model.

    What is exported is the deploy form (`timm.utils.reparameterize_model`) in eval mode, what it is compared with the
    model as it is: on random images in batches of 1 and 3, and on `images`. The largest difference of logits may be
    1e-3 of the largest logit.

    In int8 are the convolutions and matrix products between the first layer and the heads, by channel of their
    weights; all else stays float32.

    Args:
        name: As `load_saved` takes it.
        out: File to write, ending in .onnx or, for torch-export, .pt2.
        format: 'onnx' or 'torch-export'.
        opset: ONNX opset version, 18 or more; PyTorch's choice by default.
        images: Image files, and folders that are searched for them, to compare on too.
        int8: Quantise the ONNX file, statically.
        calibration: Image files and folders for the ranges of the activations.
        calibration_images: How many of these to take at most, spread evenly.
        img_size: Height and width of the images in pixels, the model's by default.
        model_name: Model name of a checkpoint file, where its keys leave a choice (`_s4`).
        model_kwargs: Its other arguments, where the keys leave a choice.
        use_ema: Of a checkpoint file that holds a moving average of the weights too, take that.
        label_names: Class names by index, of a model that tells none.

    Returns:
        'difference' and 'largest_logit' of the comparison, 'images' of it that were no random ones, 'bytes' of the
        file. For int8 the comparison is that of the float32 model, and there are 'bytes_float32',
        'calibration_images', and on these 'agreement' (share of images with the same label), 'prob_difference' (the
        largest), and where they lie in class folders 'accuracy_float32' and 'accuracy_int8'.

    Raises:
        FileExistsError: if `out` exists.
        FileNotFoundError: if there is no such model, image or folder for `out`.
        ImportError: without onnx, onnxscript or onnxruntime, for ONNX.
        ValueError: if an argument is none of the above, the model cannot be exported, or the file differs from it.
    """
    out = Path(out)
    if format not in FORMATS:
        raise ValueError(f"--format must be one of {', '.join(FORMATS)}, got '{format}'.")
    if out.suffix != FORMATS[format]:
        raise ValueError(f"--out of --format {format} must end in {FORMATS[format]}, got '{out}'.")
    if format != 'onnx' and (int8 or opset is not None):
        raise ValueError(f"{'--int8' if int8 else '--opset'} is for --format onnx, not {format}.")
    if opset is not None and opset < MIN_OPSET:
        raise ValueError(f'--opset must be {MIN_OPSET} or more, got {opset}.')
    if int8 and not calibration:
        raise ValueError('--int8 needs images to set its ranges by: name some of the training, --calibration DIR.')
    if calibration and not int8:
        raise ValueError('--calibration is for --int8, which is not given.')
    if calibration_images < 1:
        raise ValueError(f'--calibration-images must be 1 or more, got {calibration_images}.')
    if out.exists():
        raise FileExistsError(f"'{out}' exists already: choose another --out, nothing is overwritten.")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"Folder '{out.parent}' of --out does not exist.")
    if str(name).endswith(tuple(FORMATS.values())) and os.path.isfile(name):
        raise ValueError(f"'{name}' is an exported file already: give the model that it was exported from.")
    import_packages(format)
    files, calibration_files = find_images(images), find_images(calibration)
    picked = np.linspace(
        0, len(calibration_files) - 1, min(calibration_images, len(calibration_files))).round().astype(int)
    calibration_files = [calibration_files[i] for i in picked]

    classifier = load_classifier(str(name), InferenceConfig(
        model_name, model_kwargs or {}, img_size, use_ema, tuple(label_names) if label_names else None, device='cpu'))
    paths = [*files, *calibration_files]
    records = inspect_images(paths, classifier.img_mode)
    bad = [(path, record.error) for path, record in zip(paths, records) if record.error]
    if bad:
        path, error = bad[0]
        raise ValueError(f"Cannot read image '{path}' ({error}); {len(bad)} such.")
    dark = describe_ranges([record.values for record in records], paths)
    if dark:
        _logger.warning(dark)
    model = classifier.model
    adapt_stats(model)
    data_config = classifier.data_config = dict(
        classifier.data_config, **{key: model.pretrained_cfg[key] for key in ('mean', 'std')})

    def load(paths: Sequence[str], targets: Optional[Sequence[int]] = None) -> SplitLoader:
        return SplitLoader(
            image_dataset(paths, classifier.img_mode, targets), data_config, BATCH_SIZE, num_workers=0)

    def batches() -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        for batch_size in (1, 3):
            yield torch.randn(batch_size, *data_config['input_size'], generator=generator)
        yield from (x for x, _ in load(files)) if files else ()

    def read(path: str) -> Callable[[torch.Tensor], torch.Tensor]:
        if format == 'onnx':
            return OnnxModel(path)
        with open(path, 'rb') as program_file:
            return torch.export.load(program_file).module()

    def check(exported: Callable[[torch.Tensor], torch.Tensor]) -> Dict[str, Any]:
        difference, largest = _largest_difference(model, exported, batches())
        if not difference <= TOLERANCE * largest:
            raise ValueError(
                f"The logits of the exported model differ from those of '{name}' by up to {difference:.2g} (the largest"
                f' logit is {largest:.3g}), nothing is written. Try another --format or --opset.')
        return dict(difference=difference, largest_logit=largest, images=len(files))

    program = _export_program(model, data_config['input_size'], str(name))
    buffer = io.BytesIO()
    if format == 'onnx':
        proto = _convert_to_onnx(program, opset, str(name))
        _set_metadata(proto, _metadata(classifier, 'float32'))
        buffer.write(proto.SerializeToString())
    else:
        torch.export.save(program, buffer, extra_files={'hdkd_timm': _metadata(classifier, 'float32')})

    with tempfile.TemporaryDirectory() as folder, atomic_write(out, 'wb') as file:
        if not int8:
            file.write(buffer.getvalue())
            file.flush()
            report = check(read(file.name))
        else:
            float32_file = Path(folder) / 'float32.onnx'
            float32_file.write_bytes(buffer.getvalue())
            float32 = read(float32_file)
            report = check(float32)
            targets = _find_targets(calibration, calibration_files, classifier.classes)
            proto = _quantize(float32_file, load(calibration_files))
            _set_metadata(proto, _metadata(classifier, 'int8'))
            file.write(proto.SerializeToString())
            file.flush()
            report.update(
                bytes_float32=len(buffer.getvalue()), calibration_images=len(calibration_files),
                **_compare_precisions(
                    float32, read(file.name), load(calibration_files, targets), targets is not None))
        return dict(report, bytes=os.path.getsize(file.name))


def _set_metadata(proto: Any, metadata: str) -> None:
    del proto.metadata_props[:]
    proto.metadata_props.add(key='hdkd_timm', value=metadata)
