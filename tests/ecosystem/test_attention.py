"""Heat maps of other tools equal those computed by hand, and the failures that docs/ecosystem/attention.md names."""

import numpy as np
import pytest
import timm
import torch
from captum.attr import IntegratedGradients, LayerGradCam
from helpers import create_student
from timm.utils import AttentionExtract

import hdkd_timm  # noqa: F401, registers the networks


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32)


@pytest.fixture
def unfused():
    fused = timm.layers.use_fused_attn()
    timm.layers.set_fused_attn(False)
    yield
    timm.layers.set_fused_attn(bool(fused))


def test_layer_grad_cam(images):
    model = create_student().eval()
    maps = model.stages(images).detach().requires_grad_()
    tokens = model.norm(model.blocks(model._pos_embed(model.patch_embed(maps))))
    [gradient] = torch.autograd.grad(model.forward_head(tokens)[:, 1].sum(), maps)
    expected = (gradient.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True)
    found = LayerGradCam(model, model.stages).attribute(images, target=1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_integrated_gradients_sum_to_the_difference(images):
    model = create_student().eval()
    found = IntegratedGradients(model).attribute(images, target=1, n_steps=100)
    with torch.inference_mode():
        difference = (model(images) - model(torch.zeros_like(images)))[:, 1]
    np.testing.assert_allclose(found.sum((1, 2, 3)).detach(), difference, atol=0.05)


def test_patches_have_no_gradient_at_the_last_norm(images):
    model = create_student().eval()
    tokens = model.forward_features(images).detach().requires_grad_()
    model.forward_head(tokens).sum().backward()
    assert not tokens.grad[:, 2:].any()
    assert tokens.grad[:, :2].any()


def test_attention_maps(images, unfused):
    maps = AttentionExtract(create_student().eval(), method='fx')(images)
    assert list(maps) == ['blocks.0.attn.softmax', 'blocks.1.attn.softmax']
    for each in maps.values():
        torch.testing.assert_close(each.sum(-1), torch.ones(each.shape[:-1]))


def test_attention_of_a_network_that_is_built(images):
    model = create_student().eval()
    for block in model.blocks:
        block.attn.fused_attn = False
    assert len(AttentionExtract(model, method='fx')(images)) == 2


def double_backward(model, images):
    images = images.clone().requires_grad_()
    [gradient] = torch.autograd.grad(model(images)[0, 0], images, create_graph=True)
    gradient.square().sum().backward()
    return images.grad


def jvp(model, images):
    return torch.func.jvp(model, (images,), (torch.ones_like(images),))[1]


def hessian_vector(model, images):
    return torch.func.jvp(torch.func.grad(lambda x: model(x)[0, 0]), (images,), (torch.ones_like(images),))[1]


@pytest.mark.parametrize(
    ('function', 'message'),
    [
        (double_backward, 'derivative for aten::_scaled_dot_product_flash_attention_for_cpu_backward'),
        (jvp, 'Trying to use forward AD with _scaled_dot_product_flash_attention_for_cpu'),
    ],
)
def test_fused_attention_has_first_derivatives_only(function, message, images):
    with pytest.raises((RuntimeError, NotImplementedError), match=message):
        function(create_student().eval(), images)


def test_derivatives(images, unfused):
    """By central differences, in double precision."""
    model, images = create_student(exportable=True).double().eval(), images.double()
    step = 1e-5
    with torch.no_grad():
        expected = (model(images + step) - model(images - step)) / (2 * step)
    torch.testing.assert_close(jvp(model, images), expected, atol=1e-4, rtol=1e-4)
    grad = torch.func.grad(lambda x: model(x)[0, 0])
    expected = (grad(images + step) - grad(images - step)) / (2 * step)
    torch.testing.assert_close(hessian_vector(model, images), expected, atol=1e-3, rtol=1e-3)
    assert double_backward(model, images).any()


def test_forward_over_reverse_needs_the_exportable_form(images, unfused):
    with pytest.raises(NotImplementedError, match='must implement the jvp function'):
        hessian_vector(create_student().eval(), images)
    double_backward(create_student().eval(), images)
    jvp(create_student().eval(), images)
