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

import hdkd_timm.models  # noqa: F401, registers the networks

NETWORKS = {
    'hdkd_student': dict(TINY_STUDENT, depths=(1, 1, 1, 1)),
    'hdkd_teacher': dict(TINY_TEACHER, depths=(1, 1, 1)),
}


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


def test_executorch():
    """The network of `exportable=True`, which is compared by the page's snippet, and why it is needed."""
    model = timm.create_model('hdkd_teacher', **NETWORKS['hdkd_teacher']).eval()
    with pytest.raises(RuntimeError, match='amax.default only supports dim == 2 or dim == 3'):
        lower(torch.export.export(model, (torch.randn(1, 3, 32, 32),)))
    model, images = (
        timm.create_model('hdkd_teacher', exportable=True, **NETWORKS['hdkd_teacher']),
        torch.randn(1, 3, 32, 32),
    )
    randomize_batch_stats(model).eval()
    program = lower(torch.export.export(model, (images,))).to_executorch()
    method = Runtime.get().load_program(program.buffer).load_method('forward')
    with torch.inference_mode():
        torch.testing.assert_close(method.execute([images])[0], model(images), atol=1e-3, rtol=0)


def lower(program):
    return to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])


def test_core_ml_converts(model, images):
    """Predictions need macOS."""
    for source in (torch.export.export(model, (images,)).run_decompositions({}), torch.jit.trace(model, images)):
        kwargs = (
            {}
            if isinstance(source, torch.export.ExportedProgram)
            else dict(inputs=[coremltools.TensorType(shape=images.shape)])
        )
        description = coremltools.convert(source, **kwargs).get_spec().description
        assert list(description.input[0].type.multiArrayType.shape) == [2, 3, 32, 32]
        assert len(description.output) == 1
