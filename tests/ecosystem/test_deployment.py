"""Deployment: outputs of exported networks equal PyTorch's; teachers and students, other numbers of images."""

import coremltools
import numpy as np
import openvino
import pytest
import timm
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from helpers import TINY_STUDENT, TINY_TEACHER, randomize_batch_stats

import hdkd_timm

NETWORKS = {'hdkd_student': dict(TINY_STUDENT, depths=(1, 1, 1, 1)), 'hdkd_teacher': dict(TINY_TEACHER, depths=(1, 1, 1))}


@pytest.fixture(params=NETWORKS)
def model(request):
    """With `exportable=True`, as for all converters that need it."""
    model = timm.create_model(request.param, exportable=True, **NETWORKS[request.param])
    return randomize_batch_stats(model).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32)


@pytest.fixture
def expected(model, images):
    with torch.inference_mode():
        return model(images)


def test_openvino(model, images, expected):
    batch = torch.export.Dim('batch')
    program = torch.export.export(model, (images,), dynamic_shapes=[{0: batch}])
    compiled = openvino.compile_model(openvino.convert_model(program), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    np.testing.assert_allclose(compiled(images.numpy())[0], expected, atol=1e-3)
    np.testing.assert_allclose(compiled(images[1:].numpy())[0], expected[1:], atol=1e-3)


def test_openvino_reads_onnx_files(tmp_path):
    hdkd_timm.export_model('hdkd_student.brain_mri', str(tmp_path / 'student.onnx'))
    model, images = timm.create_model('hdkd_student.brain_mri', pretrained=True).eval(), torch.randn(2, 3, 224, 224)
    compiled = openvino.compile_model(tmp_path / 'student.onnx', 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    with torch.inference_mode():
        np.testing.assert_allclose(compiled(images.numpy())[0], model(images), atol=1e-3)


def test_executorch(model, images, expected):
    program = torch.export.export(model, (images,))
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    left = [str(node.target) for node in lowered.exported_program().graph.nodes if node.op == 'call_function']
    assert any('executorch_call_delegate' in name for name in left)
    assert not any('max' in name for name in left if 'softmax' not in name)  # all maxima are XNNPACK's
    method = Runtime.get().load_program(lowered.to_executorch().buffer).load_method('forward')
    torch.testing.assert_close(method.execute([images])[0], expected, atol=1e-3, rtol=0)


def test_aot_inductor(model, images, expected, tmp_path):
    path = torch._inductor.aoti_compile_and_package(
        torch.export.export(model, (images,)), package_path=str(tmp_path / 'compiled.pt2')
    )
    torch.testing.assert_close(torch._inductor.aoti_load_package(path)(images), expected, atol=1e-3, rtol=0)


def test_core_ml_converts(model, images):
    """Predictions need macOS."""
    for source in (torch.export.export(model, (images,)).run_decompositions({}), torch.jit.trace(model, images)):
        kwargs = {} if isinstance(source, torch.export.ExportedProgram) else dict(
            inputs=[coremltools.TensorType(shape=images.shape)]
        )
        description = coremltools.convert(source, **kwargs).get_spec().description
        assert list(description.input[0].type.multiArrayType.shape) == [2, 3, 32, 32]
        assert len(description.output) == 1
