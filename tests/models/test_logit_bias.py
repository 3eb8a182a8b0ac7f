"""A constant that is added to the logits."""

import pytest
import timm
import torch
from helpers import create_student, create_teacher
from torch import nn

from hdkd_timm._compat import image_size
from hdkd_timm.models.hdkd import HDKDTeacher
from hdkd_timm.models.logit_bias import add_logit_bias


@pytest.mark.parametrize(
    'create',
    [
        create_student,
        create_teacher,
        lambda: timm.create_model('resnet10t', num_classes=5),
        lambda: timm.create_model('mobilenetv3_small_050', num_classes=5),
        lambda: timm.create_model('test_vit', num_classes=5, img_size=32),
        lambda: timm.create_model('deit_tiny_distilled_patch16_224', num_classes=5, img_size=32, depth=1),  # two heads
        lambda: timm.create_model('levit_128s', num_classes=5),  # heads with a norm of their own
        lambda: timm.create_model('crossvit_tiny_240', num_classes=5),  # a list of heads
    ],
)
def test_logits_are_shifted(create):
    model, bias = create().eval(), [0.5, -1, 0, 2, 3]
    x = torch.randn(2, 3, *image_size(model)) if not isinstance(model, HDKDTeacher) else torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model(x)
        add_logit_bias(model, bias)
        torch.testing.assert_close(model(x), before + torch.tensor(bias))


def test_both_heads_of_a_distilled_network_are_shifted():
    model, bias = create_student(), torch.arange(5.0)
    model.set_distilled_training(True)
    model.train()
    before = [head.bias.detach().clone() for head in (model.head, model.head_dist)]
    add_logit_bias(model, bias.tolist())
    for head, old in zip((model.head, model.head_dist), before):
        torch.testing.assert_close(head.bias.detach(), old + bias)


@pytest.mark.parametrize(
    'head', [nn.Identity(), nn.Linear(24, 5, bias=False), nn.Linear(24, 4), nn.Sequential(nn.Linear(128, 5), nn.Tanh())]
)
def test_heads_whose_logits_cannot_be_shifted(head):
    model = create_teacher()
    model.head = head
    before = [parameter.detach().clone() for parameter in head.parameters()]
    error = rf'^X has a classifier without a bias that is added to its 5 logits \({type(head).__name__}\)'
    with pytest.raises(ValueError, match=error):
        add_logit_bias(model, [1.0, 0, 0, 0, 0], 'X')
    for parameter, old in zip(head.parameters(), before):
        torch.testing.assert_close(parameter.detach(), old)
