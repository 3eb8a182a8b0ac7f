"""Export of a saved model to a file that needs neither timm nor this package: ONNX or OpenVINO (float32 or int8), or
torch.export.

The file maps normalised float32 images (B, C, H, W) of one size, in batches of any size, to logits (B, K). Its metadata
'hdkd_timm', as JSON, specify the preprocessing and the class names. OpenVINO's are two files: a .bin has the weights.
"""

import json
import logging
import os
import tempfile
from contextlib import ExitStack
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import timm
import torch
from torch import nn

from ..data.inspection import inspect_images
from ..data.loader import SplitLoader
from ..data.samples import SampleDataset
from ..data.sources.tables import read_csv
from ..data.targets import name_targets
from ..data.value_range import describe_ranges
from ..evaluation.classifier import Classifier, InferenceConfig, load_classifier
from ..evaluation.exported import ExportedModel, find_exported, weights_path, without_telemetry
from ..evaluation.predict import file_samples, find_images
from ..models.preprocessing import adapt_stats
from ..utils.files import PathLike, atomic_write, check_output_file
from ..utils.image_size import ImageSize
from ..version import __version__
from .onnx_export import convert_to_onnx, set_metadata
from .openvino_export import convert_to_openvino, quantize_openvino, serialize_openvino
from .quantize import compare_precisions, find_targets, quantize_onnx
from .torch_export import export_program, load_program, serialize_program

_logger = logging.getLogger(__name__)

FORMATS = {'onnx': '.onnx', 'openvino': '.xml', 'torch-export': '.pt2'}  # format -> file suffix
TITLES = {'onnx': 'ONNX', 'openvino': 'OpenVINO'}
PACKAGES = {'onnx': ('onnx', 'onnxscript', 'onnxruntime'), 'openvino': ('openvino',), 'torch-export': ()}
INT8_PACKAGES = {**PACKAGES, 'openvino': ('openvino', 'nncf')}
MIN_OPSET = 18  # PyTorch's exporter converts to older opsets only in part

# largest difference from PyTorch's logits relative to the largest logit; rounding alone causes about 1e-6
TOLERANCE = 1e-3

BATCH_SIZE = 8

Function = Callable[[torch.Tensor], torch.Tensor]
Contents = Dict[str, bytes]  # suffix -> content of each file of a model, the main one first


def import_packages(format: str, int8: bool = False) -> None:
    """Raises ImportError if a package that a format needs is not installed."""
    packages = (INT8_PACKAGES if int8 else PACKAGES)[format]
    try:
        with without_telemetry():
            for package in PACKAGES[format]:
                import_module(package)
        for package in packages:
            if find_spec(package) is None:  # NNCF is imported elsewhere
                raise ModuleNotFoundError(package)
    except ImportError as e:
        *others, last = packages
        needed = f'{", ".join(others)} and {last}' if others else last
        raise ImportError(f"{TITLES[format]} export needs {needed}: pip install 'hdkd-timm[{format}]'.") from e


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
    if int8 and format == 'torch-export':
        raise ValueError('--int8 is for --format onnx and openvino, not torch-export.')
    if opset is not None and format != 'onnx':
        raise ValueError(f'--opset is for --format onnx, not {format}.')
    if opset is not None and opset < MIN_OPSET:
        raise ValueError(f'--opset must be {MIN_OPSET} or more, got {opset}.')
    if int8 and not calibration:
        raise ValueError('--int8 needs images to calibrate the ranges: name some training images, --calibration DIR.')
    if calibration and not int8:
        raise ValueError('--calibration requires --int8.')
    if calibration_images < 1:
        raise ValueError(f'--calibration-images must be 1 or more, got {calibration_images}.')
    for path in list_files(out):
        check_output_file(path, '--out')
    if name.endswith(tuple(FORMATS.values())) and os.path.isfile(name):
        raise ValueError(f"'{name}' is already an exported file: give the model that it was exported from.")


def list_files(out: PathLike) -> List[Path]:
    """The files that are written: that of the user's choice, and OpenVINO's weights beside it."""
    path = Path(out)
    return [path, weights_path(path)] if path.suffix == FORMATS['openvino'] else [path]


def _find_calibration_images(paths: Sequence[str], multi_label: bool) -> Tuple[List[str], Dict[str, str]]:
    """Files among files, folders and the training images of CSV tables; and the class of those of a table."""
    files: List[str] = []
    labels: Dict[str, str] = {}
    for path in map(str, paths):
        if path.lower().endswith('.csv'):
            samples, names = read_csv(path, only='train', multi_label=multi_label)
            of_table = samples['train'].filenames()
            labels.update(zip(of_table, name_targets(samples['train'].targets, names)))
            files += of_table
        else:
            files += find_images([path])
    return find_images(files), labels  # each once


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


def _read_back(path: Path, format: str) -> Function:
    if format == 'torch-export':
        with open(path, 'rb') as file:
            return load_program(file)
    return find_exported(path)(path)


def _compare(classifier: Classifier, exported: Function, files: Sequence[str], name: str) -> Dict[str, Any]:
    """Compare an exported model with the original. Raises ValueError if they differ."""
    difference, largest = _max_logit_difference(classifier.model, exported, _comparison_batches(classifier, files))
    if not difference <= TOLERANCE * largest:
        raise ValueError(
            f"The logits of the exported model differ from those of '{name}' by up to {difference:.2g} (the largest"
            f' logit is {largest:.3g}), nothing is written. Try another --format or --opset.'
        )
    return dict(difference=difference, largest_logit=largest, images=len(files))


def _serialize(classifier: Classifier, format: str, opset: Optional[int], name: str) -> Contents:
    """Contents of the float32 file."""
    input_size = classifier.data_config['input_size']
    program = export_program(classifier.model, input_size, name)
    metadata = _format_metadata(classifier, 'float32')
    if format == 'onnx':
        return {'.onnx': convert_to_onnx(program, opset, metadata, name).SerializeToString()}
    if format == 'openvino':
        return serialize_openvino(convert_to_openvino(program, input_size, name), metadata)
    return {'.pt2': serialize_program(program, metadata)}


def _quantize(path: Path, loader: SplitLoader, metadata: str) -> Contents:
    """Contents of the int8 file that a float32 file becomes."""
    if path.suffix == FORMATS['openvino']:
        return serialize_openvino(quantize_openvino(path, loader), metadata)
    proto = quantize_onnx(path, loader)
    set_metadata(proto, metadata)
    return {'.onnx': proto.SerializeToString()}


def _compare_int8(
    classifier: Classifier,
    float32: ExportedModel,
    int8: ExportedModel,
    folders: Sequence[str],
    files: Sequence[str],
    labels: Dict[str, str],
) -> Dict[str, Any]:
    """The figures of the int8 file on the calibration images."""
    targets = None if classifier.is_multi_label else find_targets(folders, files, classifier.classes, labels)
    loader = _create_loader(classifier, files, targets)
    return dict(
        calibration_images=len(files), **compare_precisions(float32, int8, loader, targets is not None, classifier)
    )


def _write(folder: Path, contents: Contents) -> Path:
    """Write the files of a model to a temporary folder. Returns the main one."""
    for suffix, content in contents.items():
        Path(folder, f'model{suffix}').write_bytes(content)
    return Path(folder, f'model{next(iter(contents))}')


def _save(path: Path, out: Path) -> int:
    """Write what was checked to the files of the user's choice, the main one last. Returns the bytes of all.

    Raises:
        FileExistsError: if one was written meanwhile.
    """
    for target in list_files(out):
        check_output_file(target, '--out')
    pairs = list(zip(list_files(path), list_files(out)))
    with ExitStack() as stack:
        for source, target in pairs:  # on an error none is written; they are closed, and renamed, in reverse
            stack.enter_context(atomic_write(target, 'wb')).write(source.read_bytes())
    return sum(os.path.getsize(target) for _, target in pairs)


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
    """Export a saved model to a file, read it back and compare it with the model.

    The deploy form in eval mode (`timm.utils.reparameterize_model`) is exported, and compared with the original model
    on random images in batches of 1 and 3, and on `images`. Logits may differ by at most 1e-3 of the largest logit.

    With int8, an ONNX file has convolutions and matrix products quantised, but neither the first layer nor the heads;
    an OpenVINO file has all of them quantised, see `quantize_openvino`. Weights have a scale per channel.

    Args:
        name: A model as accepted by `load_model`.
        out: File to write, ending in .onnx or, for openvino, .xml (the weights go to a .bin file beside it), or, for
            torch-export, .pt2.
        format: 'onnx', 'openvino' or 'torch-export'.
        opset: ONNX opset version, 18 or more; PyTorch's choice by default.
        images: Image files, and folders to search for them, to include in the comparison.
        int8: Quantise the ONNX or OpenVINO file statically.
        calibration: Image files and folders to calibrate the ranges of the activations, and CSV tables, whose training
            images are used (columns path, label and split, as in the images.csv of a run).
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
        largest) and, if they are in class folders or a table, 'accuracy_float32' and 'accuracy_int8'.

    Raises:
        FileExistsError: if `out` exists.
        FileNotFoundError: if there is no such model or image, or no folder for `out`.
        ImportError: without onnx, onnxscript or onnxruntime, for ONNX; without openvino, and nncf for its int8.
        ValueError: if an argument is invalid, the model cannot be exported, or the file differs from it.
    """
    name, out = str(name), Path(out)
    _check_arguments(name, out, format, opset, int8, calibration, calibration_images)
    import_packages(format, int8)
    files = find_images(images)
    classifier = load_classifier(
        name,
        InferenceConfig(
            model_name, model_kwargs or {}, img_size, use_ema, tuple(label_names) if label_names else None, device='cpu'
        ),
    )
    calibration_files, labels = _find_calibration_images(calibration, classifier.is_multi_label)
    calibration_files = _pick_evenly(calibration_files, calibration_images)
    _check_images([*files, *calibration_files], classifier.img_mode)
    adapt_stats(classifier.model)
    cfg = classifier.model.pretrained_cfg
    classifier.data_config = dict(classifier.data_config, mean=cfg['mean'], std=cfg['std'])
    contents = _serialize(classifier, format, opset, name)
    with tempfile.TemporaryDirectory() as float32_folder, tempfile.TemporaryDirectory() as int8_folder:
        path = _write(Path(float32_folder), contents)
        report = _compare(classifier, _read_back(path, format), files, name)
        if int8:
            report.update(bytes_float32=sum(map(len, contents.values())))
            metadata = _format_metadata(classifier, 'int8')
            loader = _create_loader(classifier, calibration_files)
            paths = path, _write(Path(int8_folder), _quantize(path, loader, metadata))
            float32, int8_model = (find_exported(path)(path) for path in paths)
            report.update(_compare_int8(classifier, float32, int8_model, calibration, calibration_files, labels))
            path = paths[1]
        return dict(report, bytes=_save(path, out))
