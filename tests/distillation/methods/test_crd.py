import copy
import subprocess
import sys

import crd_process
import pytest
import torch
from helpers import strip_prefix
from method_helpers import assert_matches, load_method_reference
from pair_helpers import create_task, describe_pair, run_step

from hdkd_timm.distillation.methods.crd import CRD, contrastive_loss
from hdkd_timm.distillation.outputs import Outputs

STUDENT = dict(stages=[(4, 8)], pooled_dim=5)
TEACHER = dict(stages=[(4, 8)], pooled_dim=7)
TARGETS = torch.arange(20) % 5
PAIR = describe_pair(STUDENT, TEACHER, TARGETS)
NAMES = {
    f'embed_{network}.{part}': f'embed_{network[0]}.linear.{part}'
    for network in ('student', 'teacher')
    for part in ('weight', 'bias')
}


def outputs(student_features, teacher_features):
    return Outputs(torch.empty(0), pooled=student_features), Outputs(torch.empty(0), pooled=teacher_features)


def random_outputs():
    return outputs(torch.randn(4, 5), torch.randn(4, 7))


@pytest.mark.parametrize('seed', [0, 1])
def test_published_losses_gradients_and_memory_of_two_steps(seed, monkeypatch):
    tensors, _ = load_method_reference('crd', seed)
    method = CRD(PAIR, dim=6, k=8)
    state = {key: tensors[name] for key, name in NAMES.items()}
    state.update({f'memory_{network}': tensors[f'memory_{network}.0'] for network in ('student', 'teacher')})
    method.load_state_dict(state, strict=False)
    for number in (1, 2):
        step = strip_prefix(tensors, f'step{number}.')
        monkeypatch.setattr(method, 'draw_negatives', lambda _, step=step: step['contrast_index'][:, 1:])
        features = step['student_feature'].requires_grad_()
        method.zero_grad()
        result = method(*outputs(features, step['teacher_feature']), TARGETS[step['index']], step['index'])
        result['loss'].backward()
        assert_matches(result['loss'].detach(), step['loss'], 'loss', 1e-5)
        assert_matches(features.grad, step['grad.student_feature'], 'gradient')
        for key, name in NAMES.items():
            assert_matches(method.get_parameter(key).grad, step[f'grad.{name}'], 'parameters')
        for network in ('student', 'teacher'):
            memory = method.get_buffer(f'memory_{network}')
            assert_matches(memory, tensors[f'memory_{network}.{number}'], 'memory', 1e-5)
            torch.testing.assert_close(
                method.get_buffer(f'z_{network}'), step[f'z_{network}'].squeeze(), rtol=1e-5, atol=0
            )


def test_negatives_are_other_images_of_other_classes():
    method = CRD(PAIR, k=10)
    index = torch.tensor([0, 7, 7, 19])
    drawn = method.draw_negatives(index)
    assert drawn.shape == (4, 10)
    for image, negatives in zip(index, drawn):
        assert (TARGETS[negatives] != TARGETS[image]).all()
        assert len(negatives.unique()) == 10
    again = torch.cat([method.draw_negatives(index) for _ in range(30)], dim=1)
    assert len(again[0].unique()) == 16  # all of them have their turn
    torch.manual_seed(3)
    drawn = method.draw_negatives(index)
    torch.manual_seed(3)
    assert torch.equal(method.draw_negatives(index), drawn)


def test_negatives_are_fewer_than_images_of_other_classes(caplog):
    caplog.set_level('INFO')
    assert CRD(PAIR, k=15).describe() == {'negatives': 15}
    assert not caplog.records
    assert CRD(PAIR).k == 15
    assert 'crd: 15 negatives for each image instead of 16384, because 16 of the 20 training images' in caplog.text
    unequal = torch.tensor([0] * 15 + [1] * 5)
    assert CRD(describe_pair(STUDENT, TEACHER, unequal)).k == 4


def test_z_is_that_of_the_first_batch():
    method, index = CRD(PAIR), torch.arange(4)
    method(*random_outputs(), TARGETS[:4], index)
    z = method.z_student.clone()
    assert 5 < z < 100  # the mean over 20 images of exp of small numbers
    method(*random_outputs(), TARGETS[:4], index)
    assert method.z_student == z


def test_memory_moves_half_way():
    method, index = CRD(PAIR, momentum=0.25), torch.tensor([3, 8, 3, 1])  # an image may be in a batch twice
    before = method.memory_student.clone()
    features = random_outputs()
    embedded = torch.nn.functional.normalize(method.embed_student(features[0].pooled), dim=1)
    method(*features, TARGETS[index], index)
    expected = torch.nn.functional.normalize(0.25 * before[[3, 8, 1]] + 0.75 * embedded[[0, 1, 3]], dim=1)
    torch.testing.assert_close(method.memory_student[[3, 8, 1]], expected)
    others = [i for i in range(20) if i not in (3, 8, 1)]
    assert torch.equal(method.memory_student[others], before[others])


def test_evaluation_leaves_the_memory_alone():
    method = CRD(PAIR).eval()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method(*random_outputs(), TARGETS[:4], torch.arange(4))
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_half_precision_is_scored_in_float32():
    method, index = CRD(PAIR), torch.arange(4)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = method(*random_outputs(), TARGETS[:4], index)['loss']
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


@pytest.mark.parametrize('networks', [('hdkd_student', 'hdkd_teacher'), ('vit', 'resnet10t')])
def test_step(networks):
    task = create_task('crd', *networks, train_targets=TARGETS, k=8)
    assert task.needs_index
    run_step(task, TARGETS[[4, 9, 12, 2]], torch.tensor([4, 9, 12, 2]))
    with pytest.raises(ValueError, match='pass their numbers as `index`'):
        task(torch.randn(4, 3, 32, 32), TARGETS[:4])
    with pytest.raises(ValueError, match='needs the number of each, and no mixtures of images'):
        task(torch.randn(4, 3, 32, 32), torch.rand(4, 5), torch.arange(4))


def test_one_graph():
    method = CRD(PAIR, k=8)
    again = copy.deepcopy(method)
    compiled = torch.compile(again, backend='eager', fullgraph=True)
    for step in range(2):
        args = (*random_outputs(), TARGETS[:4], torch.arange(4))
        torch.manual_seed(step)
        expected = method(*args)
        torch.manual_seed(step)
        torch.testing.assert_close(compiled(*args), expected)
    for name, value in method.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)


def train(task, optimizer, steps):
    for step in steps:
        torch.manual_seed(step)  # as the trainer does
        index = torch.randperm(20)[:4]
        optimizer.zero_grad()
        task(torch.randn(4, 3, 32, 32), TARGETS[index], index)['loss'].backward()
        optimizer.step()


def test_resumed_training_is_equal_bit_by_bit(tmp_path):
    def create():
        task = create_task('crd', train_targets=TARGETS, ce_weight=1.0, k=8)
        return task, torch.optim.AdamW(task.trainable_module.parameters(), lr=1e-3)

    task, optimizer = create()
    train(task, optimizer, [0, 1])
    saved = dict(
        student=task.get_eval_model().state_dict(),
        teacher=task.teacher.state_dict(),
        methods=task.get_task_state(),
        optimizer=optimizer.state_dict(),
    )
    torch.save(saved, tmp_path / 'state.pt')
    train(task, optimizer, [2, 3])

    torch.manual_seed(5)
    again, optimizer = create()
    saved = torch.load(tmp_path / 'state.pt', weights_only=True)
    again.get_eval_model().load_state_dict(saved['student'])
    again.teacher.load_state_dict(saved['teacher'])
    again.load_task_state(saved['methods'])
    optimizer.load_state_dict(saved['optimizer'])
    train(again, optimizer, [2, 3])

    expected = task.trainable_module.state_dict()
    assert {'methods.crd.memory_student', 'methods.crd.memory_teacher', 'methods.crd.z_student'} < set(expected)
    for name, value in again.trainable_module.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_memory_is_equal_on_all_processes(tmp_path):
    process = subprocess.Popen([sys.executable, crd_process.__file__, '1', str(tmp_path)])
    crd_process.train(0, tmp_path)
    assert process.wait() == 0
    states, others = (torch.load(tmp_path / f'memory{rank}.pt', weights_only=True) for rank in range(2))
    for state, other in zip(states, others):
        assert set(state) == {'memory_student', 'memory_teacher', 'z_student', 'z_teacher'}
        for name, value in state.items():
            assert torch.equal(value, other[name]), name
    assert states[0]['z_student'] == 0
    assert 5 < states[1]['z_student'] == states[3]['z_student']
    for before, after, batches in zip(states, states[1:], crd_process.BATCHES):
        for name in ('memory_student', 'memory_teacher'):  # it has the images of both
            changed = (after[name] != before[name]).any(dim=1).nonzero().flatten()
            assert changed.tolist() == sorted({*batches[0], *batches[1]})


def test_scores_as_good_as_chance_have_the_loss_of_chance():
    loss = contrastive_loss(torch.full((3, 9), 0.4), num_data=20)  # each 1 / 2: the score is c
    torch.testing.assert_close(loss, torch.tensor(9 * 0.6931472), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        (dict(weight=-1), r'crd\.weight must be a number at least 0, got -1'),
        (dict(temperature=0), r'crd\.temperature must be a number above 0, got 0'),
        (dict(momentum=1.5), r'crd\.momentum must be a number at least 0 and at most 1, got 1\.5'),
        (dict(k=0), r'crd\.k must be a number at least 1, got 0'),
        (dict(dim=2.5), r'crd\.dim must be a whole number, got 2\.5'),
    ],
)
def test_bad_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        CRD(PAIR, **settings)


@pytest.mark.parametrize(
    ('student', 'targets', 'match'),
    [
        (STUDENT, None, 'needs the class index of each training image: pass train_targets to DistillationTask'),
        (STUDENT, torch.zeros(8, dtype=torch.long), 'of 8 training images 0 are of another class'),
        (STUDENT, torch.empty(0, dtype=torch.long), 'of 0 training images 0 are of another class'),
        (dict(STUDENT, pooled_dim=None), TARGETS, 'student does not return the features before its classifier'),
    ],
)
def test_pairs_that_cannot_have_it(student, targets, match):
    with pytest.raises(ValueError, match=f"Method 'crd' for .*{match}"):
        CRD(describe_pair(student, TEACHER, targets))
