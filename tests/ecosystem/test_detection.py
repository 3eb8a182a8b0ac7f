"""torchvision's detectors: the backbone of the page learns, with frozen BatchNorms too, and the maps of a teacher."""

import runpy

import pytest
import timm
import torch
from helpers import TINY_STUDENT, TINY_TEACHER
from snippets import ECOSYSTEM, find_blocks, read_pages
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

import hdkd_timm.models  # noqa: F401, registers the networks


@pytest.fixture
def backbone(tmp_path):
    """The class of the page."""
    [(_, snippet)] = find_blocks(read_pages([ECOSYSTEM / 'detection.md']), 'python')
    (tmp_path / 'backbone.py').write_text(snippet.partition('\n\n\ndetector =')[0])
    return runpy.run_path(str(tmp_path / 'backbone.py'))['Backbone']


def test_maps_of_a_teacher():
    body = timm.create_model(
        'hdkd_teacher', features_only=True, feature_cls='dict', out_indices=(0, 1, 2), **TINY_TEACHER
    )
    maps = body(torch.randn(1, 3, 64, 96))
    assert {name: tuple(each.shape[2:]) for name, each in maps.items()} == {'0': (32, 48), '1': (16, 24), '2': (8, 12)}


@pytest.mark.parametrize('frozen', [False, True], ids=['trained', 'frozen'])
def test_detector(frozen, backbone):
    model = backbone('hdkd_student', dynamic_img_size=True, **TINY_STUDENT)
    maps = model(torch.randn(1, 3, 64, 96))
    assert [tuple(each.shape) for each in maps.values()] == [(1, 64, 16, 24), (1, 64, 8, 12), (1, 64, 4, 6)]
    if frozen:
        model.body = timm.layers.freeze_batch_norm_2d(model.body)
    detector = FasterRCNN(
        model,
        num_classes=2,
        min_size=64,
        max_size=96,
        rpn_anchor_generator=AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3),
        box_roi_pool=MultiScaleRoIAlign(list(maps), 7, 2),
    ).train()
    statistics = {k: v.clone() for k, v in model.body.state_dict().items() if k.endswith('running_mean')}
    images = [torch.rand(3, 64, 80), torch.rand(3, 50, 60)]
    targets = [dict(boxes=torch.tensor([[5.0, 5.0, 30.0, 30.0]]), labels=torch.tensor([1]))] * 2
    sum(detector(images, targets).values()).backward()
    grads = [p.grad for name, p in model.body.named_parameters() if 'stages' in name and 'weight' in name]
    assert any(grad is not None and grad.abs().sum() > 0 for grad in grads)
    moved = any(not torch.equal(model.body.state_dict()[k], v) for k, v in statistics.items())
    assert moved == (not frozen)
    assert set(detector.eval()(images)[0]) == {'boxes', 'labels', 'scores'}
