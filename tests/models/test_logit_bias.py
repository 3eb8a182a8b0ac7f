"""A constant that is added to the logits."""

import pytest
import timm
import torch
from helpers import create_student, create_teacher
from torch import nn

from hdkd_timm.models.logit_bias import add_logit_bias


@pytest.mark.parametrize(
    'create',
    [
        create_student,
        create_teacher,
        lambda: timm.create_model('resnet10t', num_classes=5),
        lambda: timm.create_model('mobilenetv3_small_050', num_classes=5),
        lambda: timm.create_model('test_vit', num_classes=5, img_size=32),
    ],
)
def test_logits_are_shifted(create):
    model, x, bias = create().eval(), torch.randn(2, 3, 32, 32), [0.5, -1, 0, 2, 3]
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


@pytest.mark.parametrize('head', [nn.Identity(), nn.Linear(24, 5, bias=False), nn.Linear(24, 4)])
def test_heads_without_a_bias_are_named(head):
    model = create_teacher()
    model.head = head
    with pytest.raises(ValueError, match=rf'^X has a classifier without one bias per class \({type(head).__name__}, 5'):
        add_logit_bias(model, [0.0] * 5, 'X')
