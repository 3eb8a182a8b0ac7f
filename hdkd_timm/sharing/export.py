"""Export of a saved model to one file that needs neither timm nor this package: ONNX (float32 or int8) or torch.export.

The file maps normalised float32 images (B, C, H, W) of one size, in batches of any size, to logits (B, K). Its metadata
'hdkd_timm', as JSON, specify the preprocessing and the class names.
"""

import json
import logging
import os
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import timm
import torch
from torch import nn

from ..data.inspection import inspect_images
from ..data.loader import SplitLoader
from ..data.samples import SampleDataset
from ..data.value_range import describe_ranges
from ..evaluation.classifier import Classifier, InferenceConfig, OnnxModel, load_classifier
from ..evaluation.predict import file_samples, find_images
from ..models.preprocessing import adapt_stats
from ..utils.files import PathLike, atomic_write, check_output_file
from ..utils.image_size import ImageSize
from ..version import __version__
from .onnx_export import convert_to_onnx, set_metadata
from .quantize import compare_precisions, find_targets, quantize
from .torch_export import export_program, load_program, serialize_program

_logger = logging.getLogger(__name__)

FORMATS = {'onnx': '.onnx', 'torch-export': '.pt2'}  # format -> file suffix
PACKAGES = {'onnx': ('onnx', 'onnxscript', 'onnxruntime'), 'torch-export': ()}
MIN_OPSET = 18  # PyTorch's exporter converts to older opsets only in part

# largest difference from PyTorch's logits relative to the largest logit; rounding alone causes about 1e-6
TOLERANCE = 1e-3

BATCH_SIZE = 8

Function = Callable[[torch.Tensor], torch.Tensor]


def import_packages(format: str) -> None:
    """Raises ImportError if a package that a format needs is not installed."""
    try:
        for package in PACKAGES[format]:
            import_module(package)
    except ImportError as e:
        *others, last = PACKAGES[format]
        raise ImportError(f"ONNX export needs {', '.join(others)} and {last}: pip install 'hdkd-timm[onnx]'.") from e


def _check_arguments(
    name: str,
    out: Path,
    format: str,
    opset: Optional[int],
    int8: bool,
    calibration: Sequence[str],
    calibration_images: int,
) -> None:
    """Raises the errors of `export_model` that don't depend on the model or the images."""
    if format not in FORMATS:
        raise ValueError(f"--format must be one of {', '.join(FORMATS)}, got '{format}'.")
    if out.suffix != FORMATS[format]:
        raise ValueError(f"--out of --format {format} must end in {FORMATS[format]}, got '{out}'.")
    if format != 'onnx' and (int8 or opset is not None):
        raise ValueError(f'{"--int8" if int8 else "--opset"} is for --format onnx, not {format}.')
    if opset is not None and opset < MIN_OPSET:
        raise ValueError(f'--opset must be {MIN_OPSET} or more, got {opset}.')
    if int8 and not calibration:
        raise ValueError('--int8 needs images to calibrate the ranges: name some training images, --calibration DIR.')
    if calibration and not int8:
        raise ValueError('--calibration requires --int8.')
    if calibration_images < 1:
        raise ValueError(f'--calibration-images must be 1 or more, got {calibration_images}.')
    check_output_file(out, '--out')
    if name.endswith(tuple(FORMATS.values())) and os.path.isfile(name):
        raise ValueError(f"'{name}' is already an exported file: give the model that it was exported from.")


def _pick_evenly(files: List[str], number: int) -> List[str]:
    """At most `number` files, evenly spaced over all."""
    indices = np.linspace(0, len(files) - 1, min(number, len(files))).round().astype(int)
    return [files[i] for i in indices]


def _check_images(files: Sequence[str], img_mode: str) -> None:
    """Raises ValueError if an image cannot be read; warns about images that appear nearly black."""
    records = inspect_images(files, img_mode)
    bad = [(path, record.error) for path, record in zip(files, records) if record.error]
    if bad:
        path, error = bad[0]
        raise ValueError(f"Cannot read image '{path}' ({error}); {len(bad)} unreadable in total.")
    warning = describe_ranges([record.values for record in records], files)
    if warning:
        _logger.warning(warning)


def _format_metadata(classifier: Classifier, precision: str) -> str:
    cfg = classifier.model.pretrained_cfg
    return json.dumps(
        dict(
            architecture=cfg.get('architecture'),
            num_classes=classifier.model.num_classes,
            label_names=classifier.classes,
            data_config=classifier.data_config,
            precision=precision,
            license=cfg.get('license'),
            **_describe_problem(classifier),
            versions=dict(hdkd_timm=__version__, timm=timm.__version__, torch=torch.__version__),
        )
    )


def _describe_problem(classifier: Classifier) -> Dict[str, Any]:
    """What the file says of images with any number of labels."""
    if classifier.thresholds is None:
        return {}
    limits = zip(classifier.classes or (), classifier.thresholds.tolist())
    return dict(problem_type=classifier.problem.type, thresholds=dict(limits))


def _create_loader(
    classifier: Classifier,
    files: Sequence[str],
    targets: Optional[Sequence[int]] = None,
) -> SplitLoader:
    dataset = SampleDataset(file_samples(files, targets), classifier.img_mode)
    return SplitLoader(dataset, classifier.data_config, BATCH_SIZE, num_workers=0)


def _comparison_batches(classifier: Classifier, files: Sequence[str]) -> Iterator[torch.Tensor]:
    """Random images in batches of 1 and 3, then those of the files."""
    generator = torch.Generator().manual_seed(0)
    for batch_size in (1, 3):
        yield torch.randn(batch_size, *classifier.data_config['input_size'], generator=generator)
    if files:
        yield from (x for x, _ in _create_loader(classifier, files))


def _max_logit_difference(model: nn.Module, exported: Function, batches: Iterable[torch.Tensor]) -> Tuple[float, float]:
    """Largest difference between the logits of both, and the largest logit; NaN if any is NaN."""
    differences, logits = [], []
    with torch.inference_mode():
        for x in batches:
            expected = model(x)
            differences.append((exported(x) - expected).abs().max())
            logits.append(expected.abs().max())
    return float(torch.stack(differences).max()), float(torch.stack(logits).max())


def _read_back(path: PathLike, format: str) -> Function:
    if format == 'onnx':
        return OnnxModel(path)
    with open(path, 'rb') as file:
        return load_program(file)


def _compare(classifier: Classifier, exported: Function, files: Sequence[str], name: str) -> Dict[str, Any]:
    """Compare an exported model with the original. Raises ValueError if they differ."""
    difference, largest = _max_logit_difference(classifier.model, exported, _comparison_batches(classifier, files))
    if not difference <= TOLERANCE * largest:
        raise ValueError(
            f"The logits of the exported model differ from those of '{name}' by up to {difference:.2g} (the largest"
            f' logit is {largest:.3g}), nothing is written. Try another --format or --opset.'
        )
    return dict(difference=difference, largest_logit=largest, images=len(files))


def _serialize(classifier: Classifier, format: str, opset: Optional[int], name: str) -> bytes:
    """Content of the float32 file."""
    program = export_program(classifier.model, classifier.data_config['input_size'], name)
    metadata = _format_metadata(classifier, 'float32')
    if format == 'onnx':
        return convert_to_onnx(program, opset, metadata, name).SerializeToString()
    return serialize_program(program, metadata)


def _write_float32(
    file: Any,
    content: bytes,
    classifier: Classifier,
    format: str,
    files: Sequence[str],
    name: str,
) -> Dict[str, Any]:
    """Write the float32 file, and compare it with the model."""
    file.write(content)
    file.flush()
    return _compare(classifier, _read_back(file.name, format), files, name)


def _write_int8(
    file: Any,
    content: bytes,
    classifier: Classifier,
    files: Sequence[str],
    folders: Sequence[str],
    calibration_files: Sequence[str],
    name: str,
) -> Dict[str, Any]:
    """Quantise a float32 ONNX file, and compare it with the model, and the int8 file with it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'float32.onnx'
        path.write_bytes(content)
        float32 = OnnxModel(path)
        report = _compare(classifier, float32, files, name)
        proto = quantize(path, _create_loader(classifier, calibration_files))
    set_metadata(proto, _format_metadata(classifier, 'int8'))
    file.write(proto.SerializeToString())
    file.flush()
    targets = None if classifier.is_multi_label else find_targets(folders, calibration_files, classifier.classes)
    loader = _create_loader(classifier, calibration_files, targets)
    return dict(
        report,
        bytes_float32=len(content),
        calibration_images=len(calibration_files),
        **compare_precisions(float32, OnnxModel(file.name), loader, targets is not None, classifier),
    )


def export_model(
    name: str,
    out: PathLike,
    format: str = 'onnx',
    opset: Optional[int] = None,
    images: Sequence[str] = (),
    int8: bool = False,
    calibration: Sequence[str] = (),
    calibration_images: int = 200,
    img_size: Optional[ImageSize] = None,
    model_name: Optional[str] = None,
    model_kwargs: Optional[Dict[str, Any]] = None,
    use_ema: bool = True,
    label_names: Optional[Sequence[str]] = None,
) -> Dict[str, Any]:
    """Export a saved model to one file, read it back and compare it with the model.

    The deploy form in eval mode (`timm.utils.reparameterize_model`) is exported, and compared with the original model
    on random images in batches of 1 and 3, and on `images`. Logits may differ by at most 1e-3 of the largest logit.

    With int8, the convolutions and matrix products between the first layer and the heads are quantised, with weights
    per channel; everything else stays float32.

    Args:
        name: A model as accepted by `load_model`.
        out: File to write, ending in .onnx or, for torch-export, .pt2.
        format: 'onnx' or 'torch-export'.
        opset: ONNX opset version, 18 or more; PyTorch's choice by default.
        images: Image files, and folders to search for them, to include in the comparison.
        int8: Quantise the ONNX file statically.
        calibration: Image files and folders to calibrate the ranges of the activations.
        calibration_images: Largest number of these, spread evenly.
        img_size: Height and width of the images in pixels, one number for both, or two; the model's by default.
        model_name: Model name of a checkpoint file, where its keys are ambiguous (`_s4`).
        model_kwargs: Further model arguments, where the keys are ambiguous.
        use_ema: Use the EMA weights of a checkpoint file that has both.
        label_names: Class names in index order, for a model without class names.

    Returns:
        'difference' and 'largest_logit' of the comparison, its number of 'images' that were not random, and the size of
        the file in 'bytes'. With int8, the comparison is that of the float32 model, and there are also 'bytes_float32',
        'calibration_images' and, on these images, 'agreement' (share with the same label), 'prob_difference' (the
        largest) and, if they are in class folders, 'accuracy_float32' and 'accuracy_int8'.

    Raises:
        FileExistsError: if `out` exists.
        FileNotFoundError: if there is no such model or image, or no folder for `out`.
        ImportError: without onnx, onnxscript or onnxruntime, for ONNX.
        ValueError: if an argument is invalid, the model cannot be exported, or the file differs from it.
    """
    name, out = str(name), Path(out)
    _check_arguments(name, out, format, opset, int8, calibration, calibration_images)
    import_packages(format)
    files, calibration_files = find_images(images), _pick_evenly(find_images(calibration), calibration_images)
    classifier = load_classifier(
        name,
        InferenceConfig(
            model_name, model_kwargs or {}, img_size, use_ema, tuple(label_names) if label_names else None, device='cpu'
        ),
    )
    _check_images([*files, *calibration_files], classifier.img_mode)
    adapt_stats(classifier.model)
    cfg = classifier.model.pretrained_cfg
    classifier.data_config = dict(classifier.data_config, mean=cfg['mean'], std=cfg['std'])
    content = _serialize(classifier, format, opset, name)
    with atomic_write(out, 'wb') as file:
        if int8:
            report = _write_int8(file, content, classifier, files, calibration, calibration_files, name)
        else:
            report = _write_float32(file, content, classifier, format, files, name)
        return dict(report, bytes=os.path.getsize(file.name))
