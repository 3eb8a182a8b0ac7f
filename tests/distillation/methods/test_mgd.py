import pytest
import torch
from helpers import strip_prefix
from method_helpers import assert_matches, load_method_reference
from pair_helpers import create_task, describe_pair, run_step

from hdkd_timm.distillation.methods import mgd
from hdkd_timm.distillation.methods.mgd import MGD, draw_keep_mask, mgd_loss
from hdkd_timm.distillation.outputs import Outputs


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('case', ['case0', 'case1'])
def test_published_losses_and_gradients(case, seed, monkeypatch):
    tensors, cases = load_method_reference('mgd', seed)
    tensors, settings = strip_prefix(tensors, f'{case}.'), cases[case]
    channels = tensors['student_map'].shape[1]
    pair = describe_pair(dict(stages=[(channels, 4)]), dict(stages=[(5, 4)]))
    method = MGD(pair, weight=settings['alpha'], mask_ratio=settings['lambda'])
    names = {key: key.replace('generate', 'generation') for key in method.state_dict()}
    method.load_state_dict({key: tensors[name] for key, name in names.items()})
    seen = []
    monkeypatch.setattr(mgd, 'draw_keep_mask', lambda *args: seen.append(args) or tensors['keep_mask'])
    student_map = tensors['student_map'].requires_grad_()
    outputs = Outputs(torch.empty(0), maps={1: student_map}), Outputs(torch.empty(0), maps={1: tensors['teacher_map']})
    loss = method.weight * method(*outputs, torch.zeros(4))['loss']
    loss.backward()
    assert_matches(loss.detach(), tensors['loss'], 'loss', 1e-5)
    assert_matches(student_map.grad, tensors['grad.student_map'], 'gradient')
    for key, name in names.items():
        assert_matches(method.get_parameter(key).grad, tensors[f'grad.{name}'], 'parameters')
    assert seen[0][1] == settings['lambda']
    assert ('align.weight' in names) == (case == 'case0')


def test_mask_of_whole_channels():
    mask = draw_keep_mask(torch.zeros(50, 40, 3, 3), 0.15)
    assert mask.shape == (50, 40, 1, 1)
    assert set(mask.unique().tolist()) == {0, 1}
    assert 0.82 < mask.mean() < 0.88
    assert not torch.equal(mask, draw_keep_mask(torch.zeros(50, 40, 3, 3), 0.15))
    assert draw_keep_mask(torch.zeros(5, 4, 3, 3), 0.0).min() == 1
    assert draw_keep_mask(torch.zeros(5, 4, 3, 3), 1.0).max() == 0


def test_mask_follows_from_the_global_seed():
    method = MGD(describe_pair(dict(stages=[(6, 4)]), dict(stages=[(6, 4)])), mask_ratio=0.5)
    outputs = [Outputs(torch.empty(0), maps={1: torch.randn(8, 6, 4, 4)}) for _ in range(2)]
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(method(*outputs, torch.zeros(8))['loss'])
    assert losses[0] == losses[1] != losses[2]


def test_half_precision_is_summed_in_float32():
    s, t = 100 * torch.randn(2, 2, 8, 16, 16)
    loss = mgd_loss(s.half(), t.half())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, mgd_loss(s, t), rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ('networks', 'stages'),
    [
        (('hdkd_student', 'hdkd_teacher'), '3:3'),
        (('mobilevit_xxs', 'resnet10t'), '5:5'),
        (('vit', 'resnet10t'), '3:3'),
    ],
)
def test_step(networks, stages):
    task = create_task('mgd', *networks)
    run_step(task)
    assert task.trainable_module.methods['mgd'].describe()['stages'] == stages


def test_maps_that_turn_out_to_differ_are_refused():
    with pytest.raises(ValueError, match=r'the generated map is \(2, 3, 4, 4\), the teacher\'s \(2, 3, 1, 1\): choose'):
        mgd_loss(torch.randn(2, 3, 4, 4), torch.randn(2, 3, 1, 1))


def test_one_graph():
    method = MGD(describe_pair(dict(stages=[(4, 4)]), dict(stages=[(6, 4)])), mask_ratio=0.0)
    args = *(Outputs(torch.empty(0), maps={1: torch.randn(2, c, 4, 4)}) for c in (4, 6)), torch.zeros(2)
    torch.testing.assert_close(torch.compile(method, backend='eager', fullgraph=True)(*args), method(*args))


def test_weight_per_entry_is_stated():
    pair = describe_pair(dict(stages=[(64, 28), (256, 7)]), dict(stages=[(192, 28), (512, 7)]))
    assert MGD(pair).describe() == {'stages': '2:2', 'weight per entry': '1.76'}
    assert MGD(pair, stages=['1:1']).describe() == {'stages': '1:1', 'weight per entry': '10.5'}


def test_bad_settings():
    pair = describe_pair(dict(stages=[(4, 8), (6, 4)]), dict(stages=[(5, 8), (7, 3)]))
    with pytest.raises(ValueError, match='maps of stages 2 and 2 are of 4 x 4 and 3 x 3 positions: name stages'):
        MGD(pair)
    with pytest.raises(ValueError, match=r"mgd\.stages must name one stage of each .* got \['1:1', '2:2'\]"):
        MGD(pair, stages=['1:1', '2:2'])
    with pytest.raises(ValueError, match=r'mgd\.mask_ratio must be a number at least 0 and at most 1, got 1\.5'):
        MGD(pair, stages=['1'], mask_ratio=1.5)
    with pytest.raises(ValueError, match=r'mgd\.weight must be a number at least 0, got -1'):
        MGD(pair, stages=['1'], weight=-1)
