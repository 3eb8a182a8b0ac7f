"""Several teachers, and stored logits in their place."""

import pytest
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers import create_student, create_teacher

from hdkd_timm import HDKDTask
from hdkd_timm.distillation.task import DistillationTask
from hdkd_timm.distillation.teacher import StoredLogits, average_logits

RESNET = dict(num_classes=5)


def batch(size=32):
    return torch.randn(4, 3, size, size), torch.tensor([0, 1, 2, 3])


def kd(student, teacher, tau=4.0):
    """Hinton's loss, written out."""
    p = F.softmax(teacher / tau, dim=1)
    return tau**2 * (p * (p.log() - F.log_softmax(student / tau, dim=1))).sum(dim=1).mean()


def resnets(*seeds):
    for seed in seeds:
        torch.manual_seed(seed)
        yield timm.create_model('resnet10t', **RESNET).eval()


def test_average_of_probabilities():
    logits = torch.tensor([[[0.0, 0.0, 0.0]], [[50.0, 0.0, 0.0]]])
    probs = average_logits(logits).softmax(dim=1)
    torch.testing.assert_close(probs, torch.tensor([[2 / 3, 1 / 6, 1 / 6]]))
    assert average_logits(logits.half() * 100).isfinite().all()
    torch.testing.assert_close(average_logits(logits[1:]), logits[1].log_softmax(dim=1))


def test_mean_of_teachers_is_one_method():
    (student, *teachers), (x, y) = resnets(1, 2, 3), batch()
    task = DistillationTask(student, teachers, ['kd'], verbose=False).train()
    result = task(x, y)
    assert [name for name in result if 'kd' in name] == ['kd_loss']
    mean = sum(teacher(x).softmax(dim=1) for teacher in teachers) / 2
    torch.testing.assert_close(result['kd_loss'], kd(student.train()(x), mean.log()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result['loss'], 0.1 * result['ce_loss'] + 0.9 * result['kd_loss'])


def test_each_teacher_by_itself():
    (student, *teachers), (x, y) = resnets(1, 2, 3), batch()
    task = DistillationTask(student, teachers, ['kd'], teachers='separate', verbose=False).train()
    result = task(x, y)
    output = student.train()(x)
    for i, teacher in enumerate(teachers, 1):
        torch.testing.assert_close(result[f'kd_{i}_loss'], kd(output, teacher(x)), rtol=1e-4, atol=1e-5)
    parts = result['kd_1_loss'] + result['kd_2_loss']
    torch.testing.assert_close(result['loss'], 0.1 * result['ce_loss'] + 0.45 * parts)


def test_methods_of_one_teacher():
    (student, *teachers), (x, y) = resnets(1, 2, 3), batch()
    args = dict(teachers='separate', verbose=False)
    task = DistillationTask(student, teachers, ['kd:1', 'at:2', 'dist'], {'kd': {'tau': 2.0}}, **args).train()
    weights = {name: method.weight for name, method in task.trainable_module.methods.items()}
    assert weights == {'kd_1': 0.9, 'dist_1': 1, 'at_2': 1000, 'dist_2': 1}
    assert [needs.stages != () for needs in task.teachers.needs] == [False, True]
    result = task(x, y)
    torch.testing.assert_close(result['kd_1_loss'], kd(student.train()(x), teachers[0](x), 2.0), rtol=1e-4, atol=1e-5)
    one = DistillationTask(student, teachers[1], ['at'], verbose=False).train()
    torch.testing.assert_close(result['at_2_loss'], one(x, y)['at_loss'])


@pytest.mark.parametrize(
    ('methods', 'how', 'match'),
    [
        (['kd:3', 'dist'], 'separate', "'kd:3': there is no teacher 3, only 2"),
        (['kd:1', 'dist:1'], 'separate', 'Teacher 2, resnet10t, has no distillation method'),
        (['kd', 'kd:2'], 'separate', "'kd' is given twice"),
        (['kd:0'], 'separate', "'kd:0': use NAME, or NAME:N"),
        (['kd:x'], 'separate', "'kd:x': use NAME, or NAME:N"),
        (['no:1'], 'separate', "Unknown distillation method 'no'"),
        (['kd:1'], 'average', r"'kd:1' is of one teacher, but the teachers are averaged: .*--teachers separate"),
    ],
)
def test_wrong_methods_of_one_teacher(methods, how, match):
    student, *teachers = resnets(1, 2, 3)
    with pytest.raises(ValueError, match=match):
        DistillationTask(student, teachers, methods, teachers=how, verbose=False)


def test_layers_and_needs_of_each_pair():
    """A map is taken of the teacher that has the stage, and each pair has a projector of its own."""
    torch.manual_seed(0)
    student, (x, y) = timm.create_model('resnet10t', **RESNET), batch()
    teachers = [timm.create_model(name, **RESNET).eval() for name in ('resnet10t', 'mobilenetv3_small_050')]
    task = DistillationTask(
        student, teachers, ['fitnet', 'kd'], {'fitnet': {'stages': '3'}}, teachers='separate', verbose=False
    ).train()
    methods = task.trainable_module.methods
    assert list(methods) == ['fitnet_1', 'kd_1', 'fitnet_2', 'kd_2']
    assert [m.weight for m in methods.values()] == [50, 0.45, 50, 0.45]
    assert methods['fitnet_1'].projectors['3'].is_identity
    assert not methods['fitnet_2'].projectors['3'].is_identity
    result = task(x, y)
    result['loss'].backward()
    assert all(p.grad.abs().sum() > 0 for p in methods['fitnet_2'].parameters())
    hint = teachers[1].forward_intermediates(x, [2], intermediates_only=True)[0]
    found = student.train().forward_intermediates(x, [2], intermediates_only=True)[0]
    projected = methods['fitnet_2'].projectors['3'](found, hint.shape[2:])
    torch.testing.assert_close(result['fitnet_2_loss'], F.mse_loss(projected, hint), rtol=1e-3, atol=1e-5)
    names = set(task.get_task_state()['methods'])
    assert {name.split('.')[0] for name in names} == {'fitnet_2'}


def test_one_teacher_has_the_names_that_it_always_had():
    student, teacher = create_student(), create_teacher()
    one = DistillationTask(student, [teacher], ['fitnet', 'at'], teachers='separate', verbose=False)
    plain = DistillationTask(student, teacher, ['fitnet', 'at'], verbose=False)
    assert list(one.state_dict()) == list(plain.state_dict())
    assert list(one.trainable_module.methods) == ['fitnet', 'at']
    assert one.trainable_module.methods['fitnet'].weight == 100
    assert 'head.weight' in one.teacher.state_dict()
    hdkd = HDKDTask(student, teacher, verbose=False).train()
    x, y = batch()
    again = DistillationTask(student, [teacher], verbose=False).train()
    assert torch.equal(hdkd(x, y)['loss'], again(x, y)['loss'])


def test_each_teacher_sees_its_own_input(caplog):
    (student, first), (x, y) = resnets(1, 2), batch()
    torch.manual_seed(3)
    second = timm.create_model('vit_tiny_patch16_224', num_classes=5, img_size=48, depth=1)
    second.pretrained_cfg = dict(
        second.pretrained_cfg, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3), fixed_input_size=True
    )
    caplog.set_level('INFO')
    task = DistillationTask(student, [first, second], ['kd'], teachers='separate', input_size=(32, 32))
    assert 'resnet10t, vit_tiny_patch16_224 into resnet10t: kd_1 (weight 0.45), kd_2 (weight 0.45)' in caplog.text
    assert 'images are resized to 48 x 48 for the teacher' in caplog.text
    seen = []
    for teacher in task.teacher:
        teacher.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    task.train()(x, y)
    assert not any(m.training for m in task.teacher.modules())
    torch.testing.assert_close(seen[0], x)
    assert seen[1].shape == (4, 3, 48, 48)
    mean, std = (torch.tensor(student.pretrained_cfg[key]).view(3, 1, 1) for key in ('mean', 'std'))
    other_mean, other_std = (torch.tensor(second.pretrained_cfg[key]).view(3, 1, 1) for key in ('mean', 'std'))
    expected = ((x * std + mean - other_mean) / other_std).mean(dim=(2, 3))
    torch.testing.assert_close(seen[1].mean(dim=(2, 3)), expected, rtol=0.05, atol=0.1)


@pytest.mark.parametrize(
    ('method', 'match'),
    [
        (
            'hdkd',
            r"'hdkd' needs maps of the stages 1, 2, 3 of the teacher, which the mean of 2 teachers \(hdkd_teacher",
        ),
        ('at', r"'at' needs maps .* teachers='separate' \(--teachers separate\), or choose a method of the logits"),
        ('crd', "'crd' needs pooled features of the teacher"),
    ],
)
def test_mean_has_nothing_but_logits(method, match):
    targets = torch.arange(20) % 5
    student, teachers = create_student(), [create_teacher(), create_teacher()]
    with pytest.raises(ValueError, match=match):
        DistillationTask(student, teachers, [method], train_targets=targets, verbose=False)
    with pytest.raises(
        ValueError, match=f"'{method}' needs .*, which stored logits of stored logits 1 do not have: let"
    ):
        DistillationTask(student, StoredLogits(torch.zeros(1, 1, 20, 5)), [method], train_targets=targets)
    DistillationTask(student, teachers, [method], train_targets=targets, teachers='separate', verbose=False)


def test_hdkd_without_maps_takes_the_mean():
    (x, y), teachers = batch(), [create_teacher(), create_teacher()]
    task = DistillationTask(create_student(), teachers, ['hdkd'], {'hdkd': {'feature_weight': 0}}, verbose=False)
    assert set(task.train()(x, y)) == {'output', 'loss', 'ce_loss', 'hdkd_loss', 'hdkd_kd_loss'}


def test_wrong_teachers():
    student, teacher = create_student(), create_teacher()
    with pytest.raises(ValueError, match='at least one teacher'):
        DistillationTask(student, [], ['kd'])
    with pytest.raises(ValueError, match="teachers must be one of average, separate, got 'sum'"):
        DistillationTask(student, teacher, ['kd'], teachers='sum')
    with pytest.raises(ValueError, match='num_classes of student and teacher differ: 5 and 4'):
        DistillationTask(student, [teacher, create_teacher(num_classes=4)], ['kd'])
    with pytest.raises(ValueError, match='Stored logits cannot be one of several teachers'):
        DistillationTask(student, [teacher, StoredLogits(torch.zeros(1, 1, 9, 5))], ['kd'])
    with pytest.raises(ValueError, match='num_classes of student and teacher differ: 5 and 7'):
        DistillationTask(student, StoredLogits(torch.zeros(1, 1, 9, 7)), ['kd'])
    with pytest.raises(ValueError, match=r'\(teachers, views, images, classes\), got \(9, 5\)'):
        StoredLogits(torch.zeros(9, 5))
    with pytest.raises(ValueError, match='2 teachers have stored logits, got 1 names'):
        StoredLogits(torch.zeros(2, 1, 9, 5), ['a'])


def test_stored_logits_by_epoch_and_number():
    logits = torch.arange(2 * 3 * 10 * 5).reshape(2, 3, 10, 5).half()
    stored, index = StoredLogits(logits), torch.tensor([9, 0, 4])
    assert stored.views == 3
    assert stored(index, 0).dtype == torch.float32
    for epoch, view in ((0, 0), (2, 2), (3, 0), (7, 1)):
        assert torch.equal(stored(index, epoch), logits[:, view, index].float())
    assert stored.state_dict() == {}  # checkpoints are as small as ever
    assert StoredLogits(logits, is_same_view=False).views is None


@pytest.mark.parametrize('mode', ['average', 'separate'])
def test_stored_logits_are_as_good_as_their_teachers(mode):
    (student, *teachers), (x, y) = resnets(1, 2, 3), batch()
    index = torch.tensor([3, 1, 0, 2])
    with torch.no_grad():
        views = [torch.stack([teacher(image) for teacher in teachers]) for image in (x, x.flip(3))]  # (M, B, K) each
    logits = torch.zeros(2, 2, 4, 5)
    for view, of_view in enumerate(views):
        logits[:, view, index] = of_view
    running = DistillationTask(student, teachers, ['kd', 'dkd'], teachers=mode, verbose=False).train()
    stored = DistillationTask(student, StoredLogits(logits), ['kd', 'dkd'], teachers=mode, verbose=False).train()
    assert stored.needs_index
    assert stored.views == 2
    for epoch in (0, 1, 2):
        for task in (running, stored):
            task.set_epoch(epoch, 3)
        image = x.flip(3) if epoch == 1 else x
        expected, actual = running(image, y), stored(image, y, index)
        assert expected.keys() == actual.keys()
        for name, value in expected.items():
            torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-4, msg=lambda m, name=name: name + m)
    with pytest.raises(ValueError, match='The logits are stored by training images: pass their numbers as `index`'):
        stored(x, y)


def test_several_teachers_compiled():
    (student, *teachers), (x, y) = resnets(1, 2, 3), batch()
    task = DistillationTask(student, teachers, ['kd'], teachers='separate', verbose=False).train()
    again = DistillationTask(student, teachers, ['kd'], teachers='separate', verbose=False).train()
    again.compile(backend='aot_eager', fullgraph=True)
    expected, actual = task(x, y), again(x, y)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-4)


def test_stored_logits_with_distributed_data_parallel(tmp_path):
    (student,), (x, y) = resnets(1), batch()
    stored = StoredLogits(torch.randn(2, 1, 4, 5))
    task = DistillationTask(student, stored, ['kd'], verbose=False).train()
    expected = task(x, y, torch.arange(4))['loss']
    dist.init_process_group('gloo', init_method=f'file://{tmp_path / "store"}', rank=0, world_size=1)
    try:
        task.prepare_distributed()
        loss = task(x, y, torch.arange(4))['loss']
        loss.backward()
        torch.testing.assert_close(loss, expected)
        assert task.views == 1
    finally:
        dist.destroy_process_group()
