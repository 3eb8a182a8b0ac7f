import functools

import pytest
import timm
import torch
import torch.distributed as dist
from helpers import TINY_STUDENT, TINY_TEACHER, load_reference, parse_case, randomize_batch_stats, strip_prefix
from torch import nn

from hdkd_timm import DistillationTask, HDKDTask
from hdkd_timm.distillation.methods.dkd import DKD
from hdkd_timm.distillation.methods.kd import KD
from hdkd_timm.layers.reparam import is_fused
from hdkd_timm.models.published import convert_state_dict


def create_student(**kwargs):
    return timm.create_model('hdkd_student', **{**TINY_STUDENT, **kwargs})


def create_teacher(**kwargs):
    return timm.create_model('hdkd_teacher', **{**TINY_TEACHER, **kwargs})


def batch():
    return torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize('case', ['case0', 'case1', 'case2', 'case3'])
def test_reference_losses_and_gradients_in_one_step(case):
    reference, metadata = load_reference('losses_seed0')
    student, teacher = create_student(), create_teacher()
    student.load_state_dict(convert_state_dict(strip_prefix(reference, 'student_state.')))
    teacher.load_state_dict(convert_state_dict(strip_prefix(reference, 'teacher_state.')))
    task = HDKDTask(student, teacher, **parse_case(metadata[case]), verbose=False).train()
    result = task(reference['input'], reference['target'])
    result['loss'].backward()
    torch.testing.assert_close(result['loss'], reference[f'{case}.loss'], rtol=1e-5, atol=0)
    for name, grad in convert_state_dict(strip_prefix(reference, f'{case}.grad.')).items():
        if not name.endswith('pre_norm.bias'):
            error = (student.get_parameter(name).grad - grad).abs().max() / grad.abs().max()
            assert error < 1e-4, name
    state = student.state_dict()
    for name, value in convert_state_dict(strip_prefix(reference, f'{case}.running.')).items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=1e-5)


def test_teacher_is_not_replaced():
    """Its needs, size and normalisation were found out when the task was built."""
    task = HDKDTask(create_student(), create_teacher(), verbose=False)
    with pytest.raises(AttributeError, match="A task's teacher cannot be replaced: create a task of the other one"):
        task.teacher = create_teacher()
    assert 'teacher' not in dict(task.named_children())


def test_one_forward_pass_of_each_network():
    task = HDKDTask(create_student(), create_teacher(), verbose=False).train()
    calls = []
    for m in task.modules():
        if isinstance(m, nn.Conv2d):
            m.register_forward_hook(lambda m, *_: calls.append(id(m)))
    task(*batch())
    assert sorted(calls) == sorted(id(m) for m in task.modules() if isinstance(m, nn.Conv2d))


def test_weight_of_a_stage_is_its_position_in_the_list():
    student, teacher = create_student(), create_teacher()
    x, y = batch()
    plain = HDKDTask(student, teacher, verbose=False).train()(x, y)
    result = HDKDTask(student, teacher, stages=(3, 1), verbose=False).train()(x, y)
    for name in ('feature_loss_1', 'feature_loss_3'):
        torch.testing.assert_close(result[name], plain[name])
    torch.testing.assert_close(result['feature_loss'], plain['feature_loss_3'] + 2 * plain['feature_loss_1'])


def test_eval_mode_is_refused():
    with pytest.raises(ValueError, match=r'eval mode: call task\.train\(\)'):
        HDKDTask(create_student(), create_teacher(), verbose=False).eval()(*batch())


def test_teacher_is_frozen():
    task = HDKDTask(create_student(), create_teacher(), verbose=False)
    state = {name: value.clone() for name, value in task.teacher.state_dict().items()}
    task.train()
    assert not any(m.training for m in task.teacher.modules())
    assert all(m.training for m in task.trainable_module.modules())
    task(*batch())['loss'].backward()
    assert all(p.grad is None and not p.requires_grad for p in task.teacher.parameters())
    for name, value in task.teacher.state_dict().items():
        assert torch.equal(value, state[name])


def test_teacher_is_a_fused_copy():
    teacher = create_teacher()
    randomize_batch_stats(teacher)
    x, y = batch()
    expected = teacher.eval()(x).detach()
    task = HDKDTask(create_student(), teacher.train(), verbose=False).train()
    assert is_fused(task.teacher)
    assert task.teacher.stages[1][0].conv_pw.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(task.teacher(x), expected)
    # the given one can still be trained, and later changes of it are not the task's
    assert teacher.training
    assert all(p.requires_grad for p in teacher.parameters())
    with torch.no_grad():
        teacher.head.bias += 1
    torch.testing.assert_close(task.teacher(x), expected)
    assert torch.isfinite(task(x, y)['loss'])


def test_state_dict_has_no_teacher():
    """As the checkpoint of a Lightning module that holds a task; those of earlier releases had the teacher."""
    student, teacher, (x, y) = create_student(), create_teacher(), batch()
    saved = torch.nn.ModuleDict({'task': HDKDTask(student, teacher, verbose=False)})
    state = saved.state_dict()
    assert {name.split('.')[1] for name in state} == {'trainable_module'}
    earlier = {f'task.teacher.{name}': value + 1 for name, value in saved['task'].teacher.state_dict().items()}
    expected = saved['task'].train()(x, y)['loss']
    for given in (state, {**state, **earlier}):
        loaded = torch.nn.ModuleDict({'task': HDKDTask(create_student(), teacher, verbose=False)})
        loaded.load_state_dict(given)
        torch.testing.assert_close(loaded['task'].train()(x, y)['loss'], expected)
    with pytest.raises(RuntimeError, match='Missing key'):
        loaded.load_state_dict(earlier)
    with pytest.raises(RuntimeError, match=r'Unexpected key.*task\.teacherless'):
        loaded.load_state_dict({**state, 'task.teacherless': x})


def test_fused_teacher_keeps_its_dtype():
    teacher = timm.create_model('levit_128s', num_classes=5, img_size=32).double()
    student = create_student().double()
    task = HDKDTask(student, teacher, feature_weight=0.0, verbose=False, dtype=torch.float64)
    assert {p.dtype for p in task.teacher.parameters()} == {torch.float64}


def test_settings_reach_the_loss():
    student, teacher = create_student(), create_teacher()
    x, y = batch()
    weight = [1.0, 2.0, 3.0, 4.0, 5.0]
    plain = HDKDTask(student, teacher, verbose=False).train()(x, y)
    for kwargs, part in (
        (dict(class_weight=weight), 'ce_loss'),
        (dict(label_smoothing=0.3), 'ce_loss'),
        (dict(tau=3.0), 'kd_loss'),
        (dict(reduction='batchmean'), 'kd_loss'),
        (dict(alpha=0.9), 'logit_loss'),
        (dict(stage_exponent=2.0), 'feature_loss'),
        (dict(feature_weight=1.0), 'loss'),
    ):
        changed = HDKDTask(student, teacher, **kwargs, verbose=False).train()(x, y)
        assert not torch.isclose(changed[part], plain[part]), kwargs
    batchmean = HDKDTask(student, teacher, reduction='batchmean', verbose=False).train()(x, y)
    torch.testing.assert_close(batchmean['kd_loss'], 5 * plain['kd_loss'])


def test_output_is_the_mean_of_both_heads():
    student = create_student().train()
    task = HDKDTask(student, create_teacher(), verbose=False).train()
    x, y = batch()
    student.set_distilled_training()
    cls_logits, dist_logits = student(x)
    student.set_distilled_training(False)
    torch.testing.assert_close(task(x, y)['output'], (cls_logits + dist_logits) / 2)


def test_student_returns_pairs_inside_the_task_only():
    student = create_student().train()
    task = HDKDTask(student, create_teacher(), verbose=False).train()
    task(*batch())
    assert isinstance(student(batch()[0]), torch.Tensor)
    with pytest.raises(Exception, match='size'):  # an error in the middle leaves no trace either
        task(torch.randn(4, 5, 32, 32), batch()[1])
    assert isinstance(student(batch()[0]), torch.Tensor)


def test_teacher_input_is_renormalised():
    student, teacher = create_student(), create_teacher()
    teacher.pretrained_cfg = dict(teacher.pretrained_cfg, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    task = HDKDTask(student, teacher, verbose=False)
    seen = []
    task.teacher.stages[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    pixels = torch.rand(4, 3, 32, 32)

    def normalize(model):
        mean, std = (torch.tensor(model.pretrained_cfg[k]).view(1, 3, 1, 1) for k in ('mean', 'std'))
        return (pixels - mean) / std

    task(normalize(student), batch()[1])
    torch.testing.assert_close(seen[0], normalize(teacher))
    assert not HDKDTask(create_student(), create_teacher(), verbose=False).teachers.inputs[0].renormalize


def test_grey_networks():
    task = HDKDTask(create_student(in_chans=1), create_teacher(in_chans=1), verbose=False)
    assert task.teachers.inputs[0].scale.shape == (1, 1, 1, 1)
    assert torch.isfinite(task(torch.randn(4, 1, 32, 32), batch()[1])['loss'])


def test_any_timm_networks_with_equal_stages():
    teacher = timm.create_model('resnet18', num_classes=5)
    student = timm.create_model('resnet10t', num_classes=5)
    result = HDKDTask(student, teacher, kind='none', stages=[1, 2], verbose=False).train()(*batch())
    result['loss'].backward()
    assert {'feature_loss_1', 'feature_loss_2'} < set(result)
    token_only = HDKDTask(create_student(), teacher, feature_weight=0.0, verbose=False)(*batch())
    assert 'feature_loss' not in token_only


def test_compile_is_one_graph():
    depths = dict(student=(1, 1, 1, 1), teacher=(1, 1, 1))  # compilation time grows with every block
    teacher = create_teacher(depths=depths['teacher'])
    task, again = (HDKDTask(create_student(depths=depths['student']), teacher, verbose=False).train() for _ in range(2))
    again.load_state_dict(task.state_dict())
    x, y = batch()
    expected = task(x, y)
    eval_model = again.compile(backend='aot_eager', fullgraph=True)
    actual = again(x, y)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-4)
    actual['loss'].backward()
    assert again.get_eval_model() is eval_model
    torch.testing.assert_close(eval_model.eval()(x), task.get_eval_model().eval()(x), rtol=1e-4, atol=1e-4)


def test_ema_and_checkpoint_state():
    student = create_student()
    task = HDKDTask(student, create_teacher(), verbose=False).train()
    task.setup_ema(decay=0.5)
    with torch.no_grad():
        student.head.bias += 1
    task.update_ema()
    ema = task.get_eval_model(ema=True)
    torch.testing.assert_close(ema.head.bias, student.head.bias - 0.5)
    assert set(task.get_checkpoint_state()['state_dict']) == set(student.state_dict())
    assert set(task.get_checkpoint_state(ema=True)['state_dict_ema']) == set(student.state_dict())


@pytest.mark.parametrize('kind', ['soft', 'none'])
def test_distributed_data_parallel(kind, tmp_path):
    teacher = create_teacher()
    task, again = (HDKDTask(create_student(), teacher, kind=kind, verbose=False).train() for _ in range(2))
    again.load_state_dict(task.state_dict())
    dist.init_process_group('gloo', init_method=f'file://{tmp_path / "store"}', rank=0, world_size=1)
    try:
        again.prepare_distributed()
        x, y = batch()
        for _ in range(2):
            task.zero_grad()
            again.zero_grad()
            task(x, y)['loss'].backward()
            again(x, y)['loss'].backward()
        student, ddp_student = task.get_eval_model(), again.get_eval_model()
        for (name, p), q in zip(student.named_parameters(), ddp_student.parameters()):
            if p.grad is None:
                assert name.startswith('head_dist')
                assert kind == 'none'
            else:
                torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: name + m)
    finally:
        dist.destroy_process_group()


def test_warning_about_an_untrained_head(caplog):
    for settings, told in (
        (dict(kind='none'), "kind='none' leaves the distillation head untrained"),
        (dict(alpha=0.0), 'alpha 0 leaves the distillation head untrained'),
        (dict(alpha=1.0), 'The cross entropy has weight 0, which leaves the class head untrained'),
        (dict(), ''),
    ):
        caplog.clear()
        HDKDTask(create_student(), create_teacher(), **settings, verbose=False)
        assert (told in caplog.text) if told else not caplog.text
    with pytest.raises(ValueError, match="kd_type 'none' with feature_weight 0 distils nothing"):
        HDKDTask(create_student(), create_teacher(), kind='none', feature_weight=0.0, verbose=False)


def test_weight_of_the_cross_entropy_is_that_of_the_first_method_given():
    """Not of the first teacher's."""
    teachers = [create_teacher(), create_teacher()]
    for methods, expected in ((['kd:2', 'dkd:1'], KD), (['dkd:2', 'kd:1'], DKD), (['kd', 'dkd:1'], KD)):
        task = DistillationTask(create_student(), teachers, methods, teachers='separate', verbose=False)
        assert task.ce_weight == expected.ce_weight
    assert KD.ce_weight != DKD.ce_weight


def test_distillation_head_without_a_loss_is_trained_by_the_cross_entropy():
    task = DistillationTask(create_student(), create_teacher(), ['hdkd'], {'hdkd': {'kd_type': 'none'}}, verbose=False)
    task.train()(*batch())['loss'].backward()
    assert task.get_eval_model().head_dist.weight.grad.abs().sum() > 0


def test_settings_of_a_partial():
    method = functools.partial(KD, tau=2.0)
    task = DistillationTask(create_student(), create_teacher(), [method], {'kd': {'weight': 7.0}}, verbose=False)
    built = task.trainable_module.methods['kd']
    assert (built.tau, built.weight) == (2.0, 7.0)


def test_warning_where_the_cross_entropy_has_no_weight(caplog):
    student = create_student(distilled=False)
    DistillationTask(student, create_teacher(), ['kd'], ce_weight=0.0, verbose=False)
    assert not caplog.records
    DistillationTask(student, create_teacher(), ['kd'], ce_weight=0.0, label_smoothing=0.1, verbose=False)
    assert 'class weights and label smoothing have no effect' in caplog.text


def test_pair_that_does_not_match_is_refused():
    with pytest.raises(ValueError, match='num_classes of student and teacher differ: 5 and 4'):
        HDKDTask(create_student(), create_teacher(num_classes=4))
    with pytest.raises(ValueError, match="Unknown logit distillation 'warm'"):
        HDKDTask(create_student(), create_teacher(), kind='warm')
