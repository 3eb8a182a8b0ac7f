"""Exported files as networks: ONNX files in ONNX Runtime, and OpenVINO's. Each holds its classes and preprocessing."""

import functools
import hashlib
import os
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Dict, Iterator, List, Type

import torch
from torch import nn

from ..models.preprocessing import check_preprocessing
from ..utils.files import PathLike
from ..utils.parsing import parse_json

METADATA_KEY = 'hdkd_timm'  # of the JSON in an exported file
_import_lock = threading.RLock()


class ExportedModel(nn.Module):
    """A file of `export_model` in its runtime: normalised images (B, C, H, W) to logits (B, K).

    Args:
        path: The file.
        device: Where the runtime computes.

    Raises:
        FileNotFoundError: if the file, or a part of it, does not exist.
        ImportError: if the runtime is not installed.
        ValueError: if the file is damaged, the runtime cannot run it, or not on this device, or if it was not written
            by `export_model`.
    """

    what: ClassVar[str]  # in messages

    def __init__(self, path: PathLike, device: torch.device = torch.device('cpu')):
        super().__init__()
        if not os.path.isfile(path):
            raise FileNotFoundError(f"Model '{path}' does not exist, or is not a file.")
        if not self.supports(device):
            raise ValueError(self.unsupported(device))
        self.open(path, device)
        try:
            self.metadata = parse_json(self.read_metadata(), f"'{path}'")
            self.num_classes = self.metadata['num_classes']
            self.in_chans = self.metadata['data_config']['input_size'][0]
            self.pretrained_cfg = dict(
                label_names=self.metadata['label_names'], problem_type=self.metadata.get('problem_type')
            )
        except (KeyError, TypeError, ValueError) as e:
            raise ValueError(
                f"'{path}' does not specify its classes and preprocessing (metadata '{METADATA_KEY}'): export the model"
                ' with `hdkd export`.'
            ) from e
        check_preprocessing(self.metadata['data_config'], f"{self.what} '{path}'")
        stated = [list(self.metadata['data_config']['input_size']), [self.num_classes]]
        actual = self.read_shapes()
        if stated != actual:
            raise ValueError(
                f"{self.what} '{path}': its metadata state images {stated[0]} and {self.num_classes} classes, but its"
                f' input and output are {actual}: export the model again.'
            )
        self.check_parts(path)

    @classmethod
    def supports(cls, device: torch.device) -> bool:
        """Whether the runtime can compute on a device."""
        return device.type == 'cpu'

    def unsupported(self, device: torch.device) -> str:
        """The message that it cannot."""
        raise NotImplementedError

    def open(self, path: PathLike, device: torch.device) -> None:
        """Read the file into the runtime."""
        raise NotImplementedError

    def read_metadata(self) -> str:
        """The JSON in the file.

        Raises:
            KeyError: if there is none.
        """
        raise NotImplementedError

    def read_shapes(self) -> List[List[Any]]:
        """Shapes of all inputs and outputs, without the batch."""
        raise NotImplementedError

    def check_parts(self, path: PathLike) -> None:
        """Raise ValueError if files that belong together do not."""


class OnnxModel(ExportedModel):
    """An ONNX file in ONNX Runtime, on the CPU or a CUDA device; see `ExportedModel`."""

    what = 'ONNX file'

    @classmethod
    def supports(cls, device: torch.device) -> bool:
        if device.type == 'cuda':
            return 'CUDAExecutionProvider' in _import_onnxruntime().get_available_providers()
        return super().supports(device)

    def unsupported(self, device: torch.device) -> str:
        return (
            f"onnxruntime does not support device '{device}' here: use --device cpu, or install onnxruntime-gpu for"
            ' CUDA.'
        )

    def open(self, path: PathLike, device: torch.device) -> None:
        ort = _import_onnxruntime()
        providers: List[Any] = ['CPUExecutionProvider']
        if device.type == 'cuda':
            providers.insert(0, ('CUDAExecutionProvider', {'device_id': device.index or 0, 'use_tf32': 0}))
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors only; they are raised too
        try:
            self.session = ort.InferenceSession(str(path), options, providers=providers)
        except Exception as e:  # the exceptions of onnxruntime have no common base class
            raise ValueError(
                f"'{path}' is not an ONNX file that onnxruntime {ort.__version__} can run, or it is damaged"
                f' ({str(e).splitlines()[0]}).'
            ) from e

    def read_metadata(self) -> str:
        return self.session.get_modelmeta().custom_metadata_map[METADATA_KEY]

    def read_shapes(self) -> List[List[Any]]:
        return [list(value.shape[1:]) for value in (*self.session.get_inputs(), *self.session.get_outputs())]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.session.run(['logits'], {'input': x.float().cpu().numpy()})[0]).to(x.device)


class OpenVinoModel(ExportedModel):
    """An OpenVINO model (.xml, with its weights beside it in a .bin) on the CPU, in float32 and, where it is
    quantised, int8; see `ExportedModel`."""

    what = 'OpenVINO file'

    def unsupported(self, device: torch.device) -> str:
        return f"OpenVINO files are run on the CPU here, not on '{device}': use --device cpu."

    def open(self, path: PathLike, device: torch.device) -> None:
        openvino = import_openvino()
        weights = weights_path(path)
        if not weights.is_file():
            raise FileNotFoundError(f"'{weights}', the weights of '{path}', does not exist: the two belong together.")
        self.weights = weights.read_bytes()
        try:
            self.network = openvino_core().read_model(Path(path).read_bytes(), self.weights)
            options = {
                'INFERENCE_PRECISION_HINT': 'f32',  # processors with bfloat16 would compute in it
                'INFERENCE_NUM_THREADS': torch.get_num_threads(),
                'PERFORMANCE_HINT': 'LATENCY',  # all threads for one batch
            }
            self.compiled = openvino_core().compile_model(self.network, 'CPU', options)
        except Exception as e:  # RuntimeError and others, of many lines
            reason = next((line for line in reversed(str(e).strip().splitlines()) if line.strip()), type(e).__name__)
            version = openvino.__version__.split('-')[0]
            raise ValueError(
                f"'{path}' is not a model that OpenVINO {version} can run, or it or its weights are damaged"
                f' ({reason.strip()}).'
            ) from e

    def read_metadata(self) -> str:
        if not self.network.has_rt_info([METADATA_KEY]):
            raise KeyError(METADATA_KEY)
        return self.network.get_rt_info([METADATA_KEY]).astype(str)

    def read_shapes(self) -> List[List[Any]]:
        values = (*self.network.inputs, *self.network.outputs)
        shapes = [list(value.partial_shape)[1:] for value in values]
        return [[dim.get_length() if dim.is_static else None for dim in shape] for shape in shapes]

    def check_parts(self, path: PathLike) -> None:
        if self.metadata.get('weights_sha256') != hashlib.sha256(self.weights).hexdigest():
            raise ValueError(
                f"'{weights_path(path)}' does not hold the weights of '{path}', or is damaged (its SHA-256 is another):"
                ' restore both from a copy, or export the model again.'
            )
        del self.weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.compiled([x.float().cpu().contiguous().numpy()])[0]
        return torch.from_numpy(logits.copy()).to(x.device)


EXPORTED: Dict[str, Type[ExportedModel]] = {'.onnx': OnnxModel, '.xml': OpenVinoModel}  # by the end of the file's name


def find_exported(path: PathLike) -> Type[ExportedModel]:
    """The kind of an exported file."""
    return EXPORTED[Path(path).suffix]


def weights_path(path: PathLike) -> Path:
    """The file with the weights of an OpenVINO model."""
    return Path(path).with_suffix('.bin')


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as e:
        raise ImportError("ONNX files need onnxruntime: pip install 'hdkd-timm[onnx]'.") from e
    return onnxruntime


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Within it, OpenVINO and NNCF are imported without the package by which they report their use over the network,
    unless it was imported before."""
    names = ('openvino_telemetry', 'openvino_telemetry.backend')
    with _import_lock:
        blocked = [name for name in names if name not in sys.modules]
        sys.modules.update(dict.fromkeys(blocked))  # type: ignore[arg-type]  # None: it cannot be imported
        try:
            yield
        finally:
            for name in blocked:
                sys.modules.pop(name, None)


def import_openvino() -> Any:
    """OpenVINO, imported so that it sends nothing.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        with without_telemetry():
            import openvino
    except ImportError as e:
        raise ImportError("OpenVINO files need openvino: pip install 'hdkd-timm[openvino]'.") from e
    return openvino


@functools.cache
def openvino_core() -> Any:
    """OpenVINO's entry to its devices, one for the process.

    On processors with AVX-512 each sets a stack for signal handlers and takes it away again. With two at a time the
    thread is left with one that is freed (2026.4), and the next signal, such as that of a loader process that ends, is
    a segmentation fault.
    """
    return import_openvino().Core()
