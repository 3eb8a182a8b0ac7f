import pytest
import timm
import torch

from hdkd_timm.benchmark.inference import count_multiply_adds, create_inference

CPU = torch.device('cpu')


@pytest.mark.parametrize(('name', 'form'), [('hdkd_student', 'fused'), ('levit_128', 'fused'), ('resnet10t', 'onnx')])
def test_forms_of_a_network_compute_the_same(name, form):
    x = torch.randn(2, 3, 96, 96)
    expected = create_inference(name, 'eager', 96, CPU)(x)
    torch.testing.assert_close(create_inference(name, form, 96, CPU)(x), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ('name', 'parameters', 'giga'),
    [  # as in the README and timm's results tables
        ('hdkd_student', 3_727_288, 2.025),
        ('hdkd_teacher', 3_948_677, 5.700),
        ('levit_128', None, 0.41),
        ('deit_tiny_distilled_patch16_224', 5_910_800, 1.27),
    ],
)
def test_count_multiply_adds(name, parameters, giga):
    counted, multiply_adds = count_multiply_adds(name, 224)
    assert counted == (parameters or counted)
    assert multiply_adds / 1e9 == pytest.approx(giga, rel=0.02)
    assert timm.layers.use_fused_attn()
