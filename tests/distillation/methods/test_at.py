import pytest
import timm
import torch
from method_helpers import assert_matches, create_pair, load_method_reference
from pair_helpers import PAIRS, create_task, run_step

from hdkd_timm.distillation.methods.at import AT, at_loss, attention_map
from hdkd_timm.distillation.outputs import Outputs

LOGITS, TARGET = torch.zeros(4, 5), torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize('seed', [0, 1])
def test_published_losses_and_gradients(seed):
    tensors, cases = load_method_reference('at', seed)
    assert len(cases) == 4
    for case, settings in cases.items():
        s = tensors[f'{case}.student_map'].clone().requires_grad_()
        method = AT(create_pair(), p=settings['p'], stages=['2:1'])
        student, teacher = Outputs(LOGITS, maps={2: s}), Outputs(LOGITS, maps={1: tensors[f'{case}.teacher_map']})
        loss = method(student, teacher, TARGET)['loss']
        loss.backward()
        assert_matches(loss.detach(), tensors[f'{case}.loss'], 'loss', 1e-5)
        assert_matches(s.grad, tensors[f'{case}.grad.student_map'], 'gradient')


def test_attention_map():
    x = torch.zeros(1, 2, 2, 2)
    x[0, :, 0, 1], x[0, 1, 1, 0] = torch.tensor([-3.0, 1.0]), -2.0
    torch.testing.assert_close(attention_map(x), torch.tensor([[0, 5.0, 2, 0]]) / 29**0.5)
    torch.testing.assert_close(attention_map(x, p=1), torch.tensor([[0, 2.0, 1, 0]]) / 5**0.5)


def test_sizes_are_met_in_each_direction_by_itself():
    s, t = torch.randn(2, 3, 4, 8), torch.randn(2, 5, 8, 4)
    pooled = [torch.nn.functional.adaptive_avg_pool2d(x, 4) for x in (s, t)]
    torch.testing.assert_close(at_loss(s, t), at_loss(*pooled))


def test_half_precision_and_empty_maps():
    s, t = 300 * torch.randn(2, 3, 4, 4), 300 * torch.randn(2, 5, 4, 4)
    torch.testing.assert_close(at_loss(s.half(), t.half()), at_loss(s, t), rtol=1e-2, atol=0)
    zero = torch.zeros(2, 3, 4, 4, requires_grad=True)
    at_loss(zero, t).backward()
    assert zero.grad.isfinite().all()


def test_stages_and_settings_reach_the_loss():
    student, teacher = timm.create_model('resnet10t', num_classes=5), timm.create_model('mobilevit_xxs', num_classes=5)
    method = AT(create_pair(student, teacher), weight=5.0, p=3.0, stages=['2:3', '4'])
    assert method.describe() == {'stages': '2:3 4:4'}
    assert method.student_needs.stages == (2, 4)
    assert method.teacher_needs.stages == (3, 4)
    maps = {stage: torch.randn(4, 8, 6, 6) for stage in (2, 3, 4)}
    others = {stage: torch.randn(4, 8, 6, 6) for stage in (2, 3, 4)}
    result = method(Outputs(LOGITS, maps=maps), Outputs(LOGITS, maps=others), TARGET)
    expected = {'loss_2': at_loss(maps[2], others[3], 3.0), 'loss_4': at_loss(maps[4], others[4], 3.0)}
    torch.testing.assert_close(result, {'loss': sum(expected.values()), **expected})
    assert method.weight == 5
    assert AT(create_pair()).describe() == {'stages': '1:1 2:2 3:3'}


@pytest.mark.parametrize('pair', ['hdkd', 'cnn'])
def test_step(pair):
    result = run_step(create_task('at', *PAIRS[pair]), soft_targets=True)
    stages = [name for name in result if name.startswith('at_loss_')]
    assert len(stages) == dict(hdkd=3, cnn=5)[pair]


def test_vision_transformers():
    result = run_step(create_task('at', *PAIRS['vits'], stages=['2:3', '4:6']))
    assert {'at_loss_2', 'at_loss_4'} < set(result)


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        (dict(p=0.5), r'at\.p must be a number at least 1, got 0\.5'),
        (dict(weight=-1), r'at\.weight must be a number at least 0, got -1'),
        (dict(stages=['4']), r"Method 'at' .*hdkd_teacher has stages 1 to 3"),
    ],
)
def test_bad_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        AT(create_pair(), **settings)


def test_no_common_stride():
    student = timm.create_model('vit_tiny_patch16_224', num_classes=5, img_size=32, patch_size=8, depth=1)
    teacher = timm.create_model('vit_tiny_patch16_224', num_classes=5, img_size=32, depth=1)
    with pytest.raises(ValueError, match=r'no stage of the same stride.*at\.stages=STUDENT:TEACHER'):
        AT(create_pair(student, teacher))
