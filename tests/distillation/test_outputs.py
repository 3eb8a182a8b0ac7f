import copy

import pytest
import timm
import torch
from helpers import TINY_STUDENT, TINY_TEACHER
from torch import nn

from hdkd_timm.distillation.losses import mean_squared_difference
from hdkd_timm.distillation.methods.at import at_loss
from hdkd_timm.distillation.methods.ickd import ickd_loss
from hdkd_timm.distillation.methods.reviewkd import hierarchical_context_loss
from hdkd_timm.distillation.outputs import (
    Needs,
    forward_outputs,
    forward_stages,
    get_channel_stats,
    has_distillation_head,
)


def test_logits_and_maps_in_the_order_of_the_stages():
    model = timm.create_model('hdkd_teacher', **TINY_TEACHER).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.forward_intermediates(x, intermediates_only=True)
        for stages in ([1, 2, 3], [3, 1], [2]):
            logits, maps = forward_stages(model, x, stages)
            assert torch.equal(logits, model(x))
            assert len(maps) == len(stages)
            assert all(torch.equal(m, expected[stage - 1]) for m, stage in zip(maps, stages))
        logits, maps = forward_stages(model, x, [])
        assert torch.equal(logits, model(x))
        assert maps == []


def test_pair_of_logits_in_distilled_training():
    model = timm.create_model('hdkd_student', **TINY_STUDENT).train()
    model.set_distilled_training()
    for stages in ([], [1, 3]):
        logits, _ = forward_stages(model, torch.randn(2, 3, 32, 32), stages)
        assert [tuple(part.shape) for part in logits] == [(2, 5), (2, 5)]


@pytest.mark.parametrize('layout', [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize('loss', [at_loss, ickd_loss, hierarchical_context_loss, mean_squared_difference])
def test_gradients_have_the_layout_of_the_maps(loss, layout):
    """With which backward passes are fast, whatever the loss makes of them."""
    torch.manual_seed(0)
    model = timm.create_model('hdkd_teacher', **TINY_TEACHER).to(memory_format=layout)
    x = torch.randn(2, 3, 64, 64).contiguous(memory_format=layout)
    seen = {}
    _, maps = forward_stages(model, x, [1, 2, 3])
    for stage, of_stage in enumerate(maps, 1):
        of_stage.register_hook(lambda grad, stage=stage: seen.update({stage: grad.is_contiguous(memory_format=layout)}))
    sum(loss(of_stage, torch.randn_like(of_stage)) for of_stage in maps).backward()
    assert seen == {1: True, 2: True, 3: True}


def test_channel_stats():
    model = timm.create_model('hdkd_teacher', **TINY_TEACHER)
    model.pretrained_cfg = dict(model.pretrained_cfg, mean=(0.1, 0.2, 0.6), std=(0.4, 0.5, 0.6))
    mean, std = get_channel_stats(model)
    assert mean.shape == std.shape == (1, 3, 1, 1)
    assert mean.flatten().tolist() == [0.1, 0.2, 0.6]
    assert std.flatten().tolist() == [0.4, 0.5, 0.6]
    grey = timm.create_model('hdkd_teacher', **TINY_TEACHER, in_chans=1)
    grey.pretrained_cfg = model.pretrained_cfg
    torch.testing.assert_close(get_channel_stats(grey)[0].item(), 0.3)  # one value for one channel, their mean
    assert get_channel_stats(nn.Linear(2, 2))[0].flatten().tolist() == [0.485, 0.456, 0.406]  # ImageNet's by default


def test_distillation_heads_of_this_package_and_of_timm():
    names = dict(
        hdkd_student=True,
        hdkd_student_plain=False,
        hdkd_teacher=False,
        deit_tiny_distilled_patch16_224=True,
        deit_tiny_patch16_224=False,
        levit_128s=True,
        resnet18=False,
    )
    for name, expected in names.items():
        model = timm.create_model(name, device='meta')
        assert has_distillation_head(model) == expected, name


@pytest.mark.parametrize('compiled', [False, True])
def test_norms_of_the_head_count_a_batch_once(compiled):
    """mobilenetv4 has a BatchNorm behind the pooling, where the pooled features pass once more."""
    model = timm.create_model('mobilenetv4_conv_small_050', num_classes=5).train()
    plain = copy.deepcopy(model)
    x = torch.randn(4, 3, 64, 64)
    forward = torch.compile(forward_outputs, backend='eager') if compiled else forward_outputs
    outputs = forward(model, x, Needs(logits=True, pooled=True))
    torch.testing.assert_close(outputs.logits, plain(x))
    torch.testing.assert_close(model.classifier(outputs.pooled), outputs.logits)
    for name, value in plain.named_buffers():
        torch.testing.assert_close(model.get_buffer(name), value, msg=lambda m, name=name: f'{name}: {m}')
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))
