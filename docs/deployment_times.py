"""Size and time of the released student in each runtime: `python docs/deployment_times.py`, with the extra `ecosystem`.

All runtimes compute in float32 on as many threads as PyTorch, and take turns in one process, so that whatever else the
machine does slows all of them; times are medians. Writes docs/tables/deployment.csv; `python docs/tables.py` puts it
into the page. The network is the form for deployment, with BatchNorms fused; Core ML, which predicts on macOS only, has
a size alone.
"""

import csv
import functools
import tempfile
from pathlib import Path
from typing import Callable, Dict, Tuple

import coremltools
import onnxruntime
import openvino
import timm
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from timm.utils import reparameterize_model

import hdkd_timm
from hdkd_timm.benchmark.machine import describe_machine
from hdkd_timm.benchmark.timing import take_turns
from hdkd_timm.models.checkpoint import save_model

MODEL, BATCHES, ROUNDS = 'hdkd_student.brain_mri', (1, 8), 7
Runner = Callable[[torch.Tensor], torch.Tensor]


def create_model(exportable: bool = False) -> torch.nn.Module:
    """The student as it is deployed."""
    return reparameterize_model(timm.create_model(MODEL, pretrained=True, exportable=exportable).eval())


def export(model: torch.nn.Module) -> torch.export.ExportedProgram:
    """For batches of any size."""
    images = torch.randn(2, 3, 224, 224)
    return torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim('batch', max=64)},))


def size_of(path: Path) -> int:
    """Bytes of a file, or of all in a folder."""
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob('*') if f.is_file())


def onnx_runtime(folder: Path) -> Tuple[Runner, int]:
    path = folder / 'student.onnx'
    hdkd_timm.export_model(MODEL, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0]), size_of(path)


def open_vino(folder: Path) -> Tuple[Runner, int]:
    path = folder / 'student.xml'
    openvino.save_model(openvino.convert_model(export(create_model())), path, compress_to_fp16=False)
    hints = {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': torch.get_num_threads()}
    compiled = openvino.compile_model(path, 'CPU', hints)
    return lambda x: torch.from_numpy(compiled(x.numpy())[0]), size_of(path) + size_of(path.with_suffix('.bin'))


def executorch(folder: Path) -> Tuple[Runner, int]:
    """A program for each number of images."""
    methods = {}
    for batch in BATCHES:
        program = torch.export.export(create_model(exportable=True), (torch.randn(batch, 3, 224, 224),))
        path = folder / f'student-{batch}.pte'
        with path.open('wb') as file:
            to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().write_to_file(file)
        methods[batch] = Runtime.get().load_program(path).load_method('forward')
    return lambda x: methods[len(x)].execute([x])[0], size_of(folder / f'student-{BATCHES[0]}.pte')


def aot_inductor(folder: Path) -> Tuple[Runner, int]:
    path = str(folder / 'student.pt2')
    torch._inductor.aoti_compile_and_package(export(create_model()), package_path=path)
    return torch._inductor.aoti_load_package(path), size_of(Path(path))


def pytorch(folder: Path) -> Tuple[Runner, int]:
    save_model(timm.create_model(MODEL, pretrained=True), folder / 'pytorch')
    return create_model(), size_of(folder / 'pytorch' / 'model.safetensors')


def core_ml(folder: Path) -> int:
    program = torch.export.export(create_model(exportable=True), (torch.randn(1, 3, 224, 224),)).run_decompositions({})
    precision = coremltools.precision.FLOAT32
    coremltools.convert(program, compute_precision=precision).save(str(folder / 'student.mlpackage'))
    return size_of(folder / 'student.mlpackage')


RUNTIMES: Dict[str, Callable[[Path], Tuple[Runner, int]]] = {
    'PyTorch': pytorch,
    'ONNX Runtime': onnx_runtime,
    'OpenVINO': open_vino,
    'ExecuTorch, XNNPACK': executorch,
    'AOTInductor': aot_inductor,
}


def main() -> None:
    torch.manual_seed(0)
    device = torch.device('cpu')
    print(describe_machine(device), flush=True)
    images = {batch: torch.randn(batch, 3, 224, 224) for batch in BATCHES}
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        made = {runtime: make(Path(name)) for runtime, make in RUNTIMES.items()}
        mlpackage = core_ml(Path(name))
        expected = {batch: made['PyTorch'][0](x) for batch, x in images.items()}
        calls = {}
        for runtime, (run, _) in made.items():
            for batch, x in images.items():
                difference = (run(x) - expected[batch]).abs().max().item()
                assert difference < 1e-3, (runtime, batch, difference)
                calls[runtime, batch] = functools.partial(run, x)
        seconds = take_turns(calls, ROUNDS, device)
    rows = [
        [
            runtime,
            f'{size / 1e6:.1f}',
            *(f'{batch / seconds[runtime, batch]:.1f}' for batch in BATCHES),
            *(f'{seconds["PyTorch", batch] / seconds[runtime, batch]:.2f}' for batch in BATCHES),
        ]
        for runtime, (_, size) in made.items()
    ]
    rows.append(['Core ML', f'{mlpackage / 1e6:.1f}', '', '', '', ''])
    out = Path(__file__).parent / 'tables' / 'deployment.csv'
    with out.open('w', encoding='utf-8', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(['runtime', 'megabytes', 'batch_1', 'batch_8', 'speedup_1', 'speedup_8'])
        writer.writerows(rows)
    print(out.read_text(encoding='utf-8'), end='')


if __name__ == '__main__':
    main()
