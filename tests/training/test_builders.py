"""Network, optimiser and schedule from the settings."""

import math
import re

import pytest
import timm
import torch
from helpers import TINY_STUDENT, TINY_TEACHER
from torch import nn

from hdkd_timm.distillation.checks import check_input
from hdkd_timm.models.checkpoint import convert_checkpoint, load_model, save_model
from hdkd_timm.models.pretrained import find_folder
from hdkd_timm.training.builders import (
    create_network,
    create_optimizer,
    create_schedule,
    create_task,
    create_teacher,
    freeze_stages,
)
from hdkd_timm.training.config import DistillConfig, TrainConfig, read_recipe
from hdkd_timm.utils.config import check_settings

SIZES = {name: value for name, value in TINY_STUDENT.items() if name not in ('img_size', 'num_classes')}


def student():
    return timm.create_model('hdkd_student', **TINY_STUDENT)


def paper(**changes):
    return DistillConfig(**{**check_settings(read_recipe('paper'), [DistillConfig], 'paper'), **changes})


def test_network_for_the_data():
    config = DistillConfig(img_size=48, in_chans=1, drop=0.25, drop_path=0.5)
    model, kwargs = create_network('hdkd_student', config, 'abcdef', **SIZES)
    assert kwargs == dict(SIZES, img_size=48, in_chans=1, num_classes=6, drop_rate=0.25, drop_path_rate=0.5)
    assert model.pos_embed.shape == (1, 2 + 3 * 3, 32)
    assert model(torch.zeros(2, 1, 48, 48)).shape == (2, 6)
    assert model.head_drop.p == 0.25
    again = timm.create_model('hdkd_student', **kwargs)  # the arguments rebuild it
    assert [p.shape for p in again.parameters()] == [p.shape for p in model.parameters()]


@pytest.mark.parametrize(
    ('name', 'kwargs', 'takes_size'),
    [
        ('hdkd_teacher', {k: v for k, v in TINY_TEACHER.items() if k not in ('img_size', 'num_classes')}, True),
        ('vit_tiny_patch16_224', dict(depth=1, embed_dim=24), True),  # of one size, which is told
        ('resnet18', dict(channels=(8, 8, 8, 8)), False),  # takes any
    ],
)
def test_image_size_goes_to_those_that_take_one(name, kwargs, takes_size):
    model, arguments = create_network(name, DistillConfig(img_size=64), 'abc', **kwargs)
    assert ('img_size' in arguments) == takes_size
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 3)
    if name.startswith('vit'):
        assert model.pos_embed.shape[1] == 1 + 4 * 4


@pytest.mark.parametrize('key', ['num_classes', 'in_chans', 'img_size', 'pretrained'])
@pytest.mark.parametrize('name', ['resnet10t', 'hdkd_student', 'local-dir:model'])
def test_arguments_that_follow_from_the_settings(name, key):
    with pytest.raises(ValueError, match=f"^'{key}' of '{name}' cannot be set by --model-kwargs: it follows from"):
        create_network(name, DistillConfig(img_size=32), 'abcde', **{key: 1})


@pytest.mark.parametrize('in_chans', [1, 3])
@pytest.mark.parametrize(('name', 'kwargs'), [('resnet10t', {}), ('hdkd_student', SIZES)])
def test_mean_and_std_are_of_as_many_channels(name, kwargs, in_chans):
    model, _ = create_network(name, DistillConfig(img_size=32, in_chans=in_chans), 'abcde', **kwargs)
    assert model(torch.zeros(2, in_chans, 32, 32)).shape == (2, 5)
    for key in ('mean', 'std'):
        stats, of_colours = model.pretrained_cfg[key], getattr(timm.get_pretrained_cfg(name), key)
        assert stats == (of_colours if in_chans == 3 else pytest.approx((sum(of_colours) / 3,)))


def test_part_of_an_image_that_a_network_sees(tmp_path, caplog):
    """timm's networks see the centre, which is told and can be changed; the saved network keeps it."""
    caplog.set_level('INFO')
    for name, changes, crop, told in (
        ('hdkd_student', {}, (1.0, 'squash'), ''),
        ('resnet10t', {}, (0.875, 'center'), '87.5% of the shorter side (crop_pct, crop_mode center)'),
        ('resnet10t', dict(crop_pct=1.0), (1.0, 'center'), '100.0% of the shorter side'),
        ('resnet10t', dict(crop_pct=0.5, crop_mode='squash'), (0.5, 'squash'), '50.0% of each side'),
        ('resnet10t', dict(crop_pct=1.0, crop_mode='squash'), (1.0, 'squash'), ''),
    ):
        caplog.clear()
        model, _ = create_network(name, DistillConfig(img_size=32, **changes), 'abc')
        assert (told in caplog.text) if told else ('sees only the centre' not in caplog.text)
        config = timm.data.resolve_data_config({}, model=model)
        assert (config['crop_pct'], config['crop_mode']) == crop
    save_model(model, tmp_path / 'model', list('abc'))
    config = timm.data.resolve_data_config({}, model=load_model(tmp_path / 'model')[0])
    assert (config['crop_pct'], config['crop_mode']) == (1.0, 'squash')


def test_network_of_a_folder(tmp_path):
    trained = student()
    save_model(trained, tmp_path / 'model', list('abcde'), TINY_STUDENT)
    model, _ = create_network(f'local-dir:{tmp_path / "model"}', DistillConfig(img_size=32), 'abcde')
    assert torch.equal(model.head.weight, trained.head.weight)
    model, _ = create_network(f'local-dir:{tmp_path / "model"}', DistillConfig(img_size=32, in_chans=1), 'abcde')
    assert len(model.pretrained_cfg['mean']) == len(model.pretrained_cfg['std']) == 1
    with pytest.raises(FileNotFoundError, match='nowhere'):
        create_network('local-dir:nowhere', DistillConfig(), 'abcde')


@pytest.mark.parametrize('is_folder', [False, True])
def test_head_of_weights_of_other_classes_is_new(is_folder, tmp_path, caplog):
    released = find_folder('hdkd_student_s4.chest_xray')
    name = f'local-dir:{released}' if is_folder else 'hdkd_student_s4'
    trained, _ = load_model(str(released))

    def create(classes, img_size=224):
        caplog.clear()
        with caplog.at_level('INFO', 'hdkd_timm'):
            return create_network(name, DistillConfig(img_size=img_size, pretrained=True), classes)[0]

    same = create(['normal', 'pneumonia'])
    assert not caplog.messages
    assert torch.equal(same.head.weight, trained.head.weight)
    other = create(['pneumonia', 'tuberculosis'])
    assert caplog.messages == [f"'{name}' starts with a new head: its weights know normal, pneumonia."]
    for head, old in zip(other.get_classifier(), trained.get_classifier(), strict=True):
        assert torch.cosine_similarity(head.weight.flatten(), old.weight.flatten(), dim=0) < 0.5
    torch.testing.assert_close(other.stages[0].state_dict(), trained.stages[0].state_dict())
    if is_folder:
        trained.pretrained_cfg = dict(trained.pretrained_cfg, label_names=None)
        save_model(trained, tmp_path / 'nameless')
        name = f'local-dir:{tmp_path / "nameless"}'
        assert torch.equal(create(['a', 'b']).head.weight, trained.head.weight)
        assert caplog.messages == [
            f"'{name}' keeps the head of its weights, which do not say what their 2 classes are."
        ]
        create(['a', 'b', 'c'])
        assert not caplog.messages  # it is new, as their number tells
        name = f'local-dir:{released}'
    create(['normal', 'pneumonia'], (64, 96))
    assert caplog.messages == [
        f"'{name}' starts from weights for images of 224 x 224 pixels, and is trained at 64 x 96 (--img-size)."
    ]


@pytest.mark.parametrize('name', ['test_efficientnet', 'test_vit', 'hdkd_student'])
@pytest.mark.parametrize('is_folder', [False, True])
def test_new_head_of_a_pretrained_network_starts_small(name, is_folder, tmp_path):
    """timm draws that of EfficientNets by the number of classes, so that fewer classes give larger logits."""
    kwargs = SIZES if name == 'hdkd_student' else {}
    trained = timm.create_model(name, num_classes=10, **kwargs)
    save_model(trained, tmp_path / 'model', model_args=dict(kwargs, num_classes=10))

    def create(number):
        classes = [str(i) for i in range(number)]
        if is_folder:
            return create_network(f'local-dir:{tmp_path / "model"}', DistillConfig(img_size=32), classes)[0]
        overlay = dict(file=str(tmp_path / 'model' / 'model.safetensors'), num_classes=10, input_size=(3, 224, 224))
        return create_network(
            name, DistillConfig(img_size=32, pretrained=True), classes, pretrained_cfg_overlay=overlay, **kwargs
        )[0]

    model = create(3)
    heads = model.get_classifier() if name == 'hdkd_student' else (model.get_classifier(),)
    for head in heads:
        assert head.weight.shape[0] == 3
        assert 0 < head.weight.std() < 1.5 / math.sqrt(3 * head.in_features)
    if name == 'test_efficientnet':  # else the test would show nothing
        raw = timm.create_model(name, num_classes=3).classifier
        assert raw.weight.std() > 4 / math.sqrt(3 * raw.in_features)
    first = next(iter(trained.parameters()))
    torch.testing.assert_close(next(iter(model.parameters())), first)
    kept = create(10)  # a head that fits is that of the weights
    heads, old = kept.get_classifier(), trained.get_classifier()
    for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (heads, old)), strict=True):
        assert torch.equal(a.weight, b.weight)


def test_head_of_random_networks_is_timm_s():
    torch.manual_seed(0)
    expected = timm.create_model('test_efficientnet', num_classes=3, in_chans=3).classifier.weight
    torch.manual_seed(0)
    assert torch.equal(create_network('test_efficientnet', DistillConfig(), 'abc')[0].classifier.weight, expected)


@pytest.mark.parametrize(
    ('name', 'kwargs', 'message'),
    [
        ('hdkd_pupil', {}, "Unknown model 'hdkd_pupil': choose from hdkd_student, hdkd_student_plain"),
        (
            'resnet18',
            dict(colour='red'),
            "Cannot build 'resnet18' with {'colour': 'red', 'in_chans': 3, 'num_classes': 5}",
        ),
        ('hdkd_student', dict(colour='red'), "Cannot build 'hdkd_student' with {'colour': 'red'"),
        ('vit_tiny_patch16_224', dict(embed_dim=25), "Cannot build 'vit_tiny_patch16_224' with {'embed_dim': 25"),
        ('vit_tiny_patch16_224', dict(num_heads=0), "Cannot build 'vit_tiny_patch16_224' with {'num_heads': 0"),
        ('hdkd_student', dict(num_heads=0), 'num_heads and head_dim must be 1 or more, got 0 and 32.'),
    ],
)
def test_network_that_cannot_be_built(name, kwargs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        create_network(name, DistillConfig(img_size=32), 'abcde', **kwargs)


def frozen_names(model):
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


@pytest.mark.parametrize(
    ('number', 'prefixes'),
    [
        (0, ()),
        (1, ('stages.0.',)),
        (2, ('stages.0.', 'stages.1.')),
        (3, ('stages.',)),
        (4, ('stages.', 'patch_embed.', 'blocks.', 'cls_token', 'dist_token', 'pos_embed')),
    ],
)
def test_frozen_stages_of_the_student(number, prefixes):
    model = student()
    modules = freeze_stages(model, number)
    assert frozen_names(model) == {name for name, _ in model.named_parameters() if name.startswith(prefixes)}
    # the modules whose statistics must not move either
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert {name for name in norms if any(model.get_submodule(name) is module for module in modules)} == {
        name for name in norms if name.startswith(prefixes)
    }
    assert model not in modules


@pytest.mark.parametrize(
    ('number', 'prefixes'),
    [
        (1, ('conv1', 'bn1')),
        (2, ('conv1', 'bn1', 'layer1')),
        (4, ('conv1', 'bn1', 'layer1', 'layer2', 'layer3')),
        (5, ('conv1', 'bn1', 'layer')),
    ],
)
def test_frozen_stages_of_another_network(number, prefixes):
    model = timm.create_model('resnet18', channels=(8, 8, 8, 8), num_classes=3)
    freeze_stages(model, number)
    assert frozen_names(model) == {name for name, _ in model.named_parameters() if name.startswith(prefixes)}
    assert 'conv1.weight' in frozen_names(model)  # the stem
    assert 'fc.weight' not in frozen_names(model)


def test_frozen_stages_of_a_network_of_tokens():
    model = timm.create_model('deit_tiny_distilled_patch16_224', depth=3, embed_dim=24, num_classes=3)
    freeze_stages(model, 2)  # of a transformer each block is one; the tokens come in before the first
    assert frozen_names(model) == {
        name
        for name, _ in model.named_parameters()
        if name.startswith(('cls_token', 'dist_token', 'pos_embed', 'patch_embed.', 'blocks.0.', 'blocks.1.'))
    }
    assert len(frozen_names(model)) > 25


@pytest.mark.parametrize('number', [5, -1])
def test_too_many_frozen_stages(number):
    model = student()
    with pytest.raises(ValueError, match=f'must be 0 to 4, the number of stages of HDKDStudent, got {number}'):
        freeze_stages(model, number)
    assert not frozen_names(model)
    with pytest.raises(ValueError, match='must be 0 to 0, the number of stages of Linear, got 1'):
        freeze_stages(nn.Linear(1, 1), 1)


def decayed_names(model, optimizer):
    ids = {id(p) for group in optimizer.param_groups for p in group['params'] if group['weight_decay']}
    return {name for name, parameter in model.named_parameters() if id(parameter) in ids}


TOKENS = {'cls_token', 'dist_token', 'pos_embed'}


@pytest.mark.parametrize('layer_decay', [None, 0.5])
def test_weight_decay(layer_decay):
    model = student()
    matrices = {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
    assert matrices > TOKENS
    for config, expected in ((paper(), matrices), (DistillConfig(), matrices - TOKENS)):
        config.layer_decay = layer_decay
        optimizer = create_optimizer(model, config)
        assert decayed_names(model, optimizer) == expected
        assert {group['weight_decay'] for group in optimizer.param_groups} == {0, 0.05}
        assert sum(len(group['params']) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_optimizer_of_the_paper():
    optimizer = create_optimizer(student(), paper())
    assert type(optimizer) is torch.optim.AdamW
    assert {group['lr'] for group in optimizer.param_groups} == {5e-5}
    assert {(group['betas'], group['eps']) for group in optimizer.param_groups} == {((0.9, 0.999), 1e-8)}
    optimizer = create_optimizer(
        timm.create_model('hdkd_teacher', **TINY_TEACHER), paper(opt='adam', lr=1e-3, weight_decay=0.0, sched='none')
    )
    assert type(optimizer) is torch.optim.Adam
    assert {(group['lr'], group['weight_decay']) for group in optimizer.param_groups} == {(1e-3, 0)}


@pytest.mark.parametrize(
    ('opt', 'message'),
    [
        ('wings', "Unknown optimiser 'wings': choose one of timm's (adamw, sgd, lion, ...)."),
        ('lookahead_wings', "Unknown optimiser 'lookahead_wings'"),
        pytest.param(
            'fusedadam',
            "Optimiser 'fusedadam' cannot be used here: ",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason='it may be usable'),
        ),
    ],
)
def test_optimizer_that_cannot_be_had(opt, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        create_optimizer(student(), DistillConfig(opt=opt))


def test_optimizer_names_as_timm_reads_them():
    assert type(create_optimizer(student(), DistillConfig(opt='AdamW'))) is torch.optim.AdamW
    assert type(create_optimizer(student(), DistillConfig(opt='lookahead_adamw'))).__name__ == 'Lookahead'


def test_frozen_parameters_are_not_optimised():
    model = student()
    freeze_stages(model, 2)
    for config in (DistillConfig(), paper()):
        optimizer = create_optimizer(model, config)
        ids = {id(p) for group in optimizer.param_groups for p in group['params']}
        assert ids == {id(p) for p in model.parameters() if p.requires_grad}


def rates(model, optimizer):
    of = {id(p): group['lr'] for group in optimizer.param_groups for p in group['params']}
    return {name: of[id(parameter)] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize('decay_tokens', [False, True])
def test_layer_decay(decay_tokens):
    model = student()
    plain = rates(model, create_optimizer(model, DistillConfig(sched='none', decay_tokens=decay_tokens)))
    assert set(plain.values()) == {1e-3}
    config = DistillConfig(sched='none', layer_decay=0.5, decay_tokens=decay_tokens)
    constant = rates(model, create_optimizer(model, config))
    assert constant['head.weight'] == constant['head_dist.weight'] == 1e-3
    names = [
        'stages.0.0.conv.weight',
        'stages.1.0.conv_pwl.weight',
        'stages.2.0.conv_pwl.weight',
        'patch_embed.proj.weight',
        'blocks.0.mlp.fc1.weight',
        'blocks.1.mlp.fc1.weight',
        'head.weight',
    ]
    scales = [math.log2(constant[name] / 1e-3) for name in names]
    assert scales == sorted(scales)
    assert scales == pytest.approx([round(scale) for scale in scales])  # powers of a half
    assert len(set(scales)) == len(scales)
    # a schedule gives the same rates once the warm-up is over
    config.sched, config.warmup_epochs, config.min_lr, config.epochs = 'cosine', 0, 0.0, 10
    optimizer = create_optimizer(model, config)
    create_schedule(optimizer, config, 10).step(5)
    half = rates(model, optimizer)
    assert all(half[name] == pytest.approx(constant[name] / 2) for name in constant)


def lr_of_epochs(config, epochs):
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=config.lr)
    scheduler = create_schedule(optimizer, config, updates_per_epoch=10)
    found = []
    for epoch in epochs:
        for update in range(10):
            found.append(optimizer.param_groups[0]['lr'])
            scheduler.step_update(epoch * 10 + update + 1)
        scheduler.step(epoch + 1, 0.5)
    return found


def test_schedule_of_the_paper():
    found = lr_of_epochs(paper(), range(200))
    assert all(len(set(found[i : i + 10])) == 1 for i in range(0, 2000, 10))  # once an epoch
    warmup = [2e-5 + epoch * 3e-5 / 5 for epoch in range(5)]
    cosine = [2e-5 + 0.5 * 3e-5 * (1 + math.cos(math.pi * epoch / 200)) for epoch in range(5, 200)]
    assert found[::10] == pytest.approx([*warmup, *cosine])
    assert found[0] == 2e-5
    assert max(found) < 5e-5  # the warm-up takes the cosine's first epochs
    assert found[-1] == pytest.approx(2e-5, abs=1e-8)


def test_schedule_of_the_defaults():
    for epochs, warmup in ((100, 5), (10, 2), (4, 0)):  # at most a fifth
        found = lr_of_epochs(DistillConfig(epochs=epochs), range(epochs))[::10]
        assert found.index(max(found)) == warmup
        if warmup:
            assert found[0] == pytest.approx(1e-5)
        assert found[-1] < 0.2 * max(found)
    assert lr_of_epochs(DistillConfig(epochs=10, warmup_epochs=0), [0])[0] == 1e-3


def test_schedule_by_steps():
    found = lr_of_epochs(DistillConfig(epochs=10, warmup_epochs=2, sched_on_updates=True), range(10))
    assert len(set(found)) > 95
    assert found[:20] == pytest.approx([1e-5 + update * 99e-5 / 20 for update in range(20)])
    assert found[50] == pytest.approx(1e-5 + 99e-5 / 2)


@pytest.mark.filterwarnings('ignore:PlateauLRScheduler is deprecated')
@pytest.mark.parametrize(
    ('settings', 'epochs'),
    [  # how many have the rate 1, then 1 / 10, ...
        (dict(sched='step'), (3, 3, 3)),
        (dict(sched='step', decay_epochs=4), (4, 4, 1)),
        (dict(sched='multistep'), (2, 3, 4)),  # the third and the sixth of nine are the first with a lower one
        (dict(sched='multistep', decay_milestones=(2, 8)), (1, 6, 2)),
        (dict(sched='plateau'), (9,)),
        (dict(sched='plateau', patience_epochs=2), (4, 3, 2)),
    ],
)
@pytest.mark.parametrize('decay_rate', [None, 0.5])
def test_schedules_that_fall_by_steps(settings, epochs, decay_rate):
    settings = settings if decay_rate is None else dict(settings, decay_rate=decay_rate)
    found = lr_of_epochs(DistillConfig(epochs=9, warmup_epochs=0, lr=1.0, **settings), range(9))[::10]
    assert found == pytest.approx([(decay_rate or 0.1) ** i for i, number in enumerate(epochs) for _ in range(number)])


@pytest.mark.filterwarnings('ignore:PlateauLRScheduler is deprecated')
@pytest.mark.parametrize(('select_metric', 'mode'), [('balanced_accuracy', 'max'), ('log_loss', 'min')])
def test_plateau_schedule_knows_what_is_better(select_metric, mode):
    config = DistillConfig(sched='plateau', select_metric=select_metric, warmup_epochs=0, epochs=40)
    for sign, falls in ((1, mode == 'min'), (-1, mode == 'max')):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.lr)
        scheduler = create_schedule(optimizer, config, 10)
        for epoch in range(40):
            scheduler.step(epoch + 1, sign * epoch)
        assert (optimizer.param_groups[0]['lr'] < config.lr) == falls


def test_constant_and_unknown_schedules():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    assert create_schedule(optimizer, DistillConfig(sched='none'), 10) is None
    with pytest.raises(ValueError, match='cosin'):
        create_schedule(optimizer, DistillConfig(sched='cosin'), 10)


def test_input_that_a_network_takes():
    model = student().train()
    check_input(model, (3, 32, 32))
    assert model.training
    assert model.stages[0][0].bn.num_batches_tracked == 0
    for size in ((1, 32, 32), (3, 64, 64)):
        with pytest.raises(ValueError, match=re.escape(f'HDKDStudent does not accept an image of {size}: ')):
            check_input(model, size)
        assert model.training


# -- create_teacher ----------------------------------------------------------------------------------------------------


def load_teacher(name, classes, model_name=None, **settings):
    model, model_args, has_classes = create_teacher(str(name), DistillConfig(**settings), classes, model_name)
    assert has_classes
    return model, model_args


def test_teacher_in_any_form(tmp_path):
    model = create_saved_teacher()
    args = {**TINY_TEACHER, 'num_classes': 2}
    save_model(model, tmp_path / 'run' / 'best', ['cat', 'dog'], args)
    torch.save(model.state_dict(), tmp_path / 'a.pth')
    best = tmp_path / 'run' / 'best'
    for name in (best, tmp_path / 'run', f'local-dir:{best}', tmp_path / 'a.pth'):
        teacher, loaded_args = load_teacher(name, ['cat', 'dog'])
        assert torch.equal(teacher.head.weight, model.head.weight)
        assert tuple(loaded_args['dims']) == TINY_TEACHER['dims']
    teacher, _ = load_teacher(tmp_path / 'a.pth', ['cat', 'dog'], 'hdkd_teacher_s4')
    assert teacher.stages[0][0].conv.stride == (4, 4)
    teacher, _ = load_teacher(tmp_path / 'a.pth', ['cat', 'dog'], teacher_label_names=('dog', 'cat'))
    assert torch.equal(teacher.head.weight, model.head.weight[[1, 0]])


def test_teacher_that_does_not_fit(tmp_path):
    save_model(create_saved_teacher(), tmp_path / 'm', ['cat', 'dog'])
    with pytest.raises(ValueError, match=r"Teacher '.*m': its classes .* class 'dog' is not in both"):
        load_teacher(tmp_path / 'm', ['cat', 'fox'])
    with pytest.raises(ValueError, match='takes 3 channels, the student 1'):
        load_teacher(tmp_path / 'm', ['cat', 'dog'], in_chans=1)
    with pytest.raises(FileNotFoundError, match='nowhere'):
        load_teacher(tmp_path / 'nowhere', ['cat', 'dog'])


@pytest.mark.parametrize(
    ('settings', 'gets'),
    [
        (dict(img_size=32), None),
        (dict(img_size=48), '48 x 48'),
        (dict(img_size=(32, 48)), '32 x 48'),
        (dict(img_size=48, teacher_img_size=32), None),
        (dict(img_size=32, teacher_img_size=64), '64 x 64'),
    ],
)
def test_teacher_of_another_size(settings, gets, tmp_path, caplog):
    """A network for one size only is no such case: its images are resized."""
    save_model(
        create_saved_teacher(), tmp_path / 'teacher', ['cat', 'dog'], {**TINY_TEACHER, 'num_classes': 2, 'img_size': 32}
    )
    args = dict(img_size=32, num_classes=2, embed_dim=24, depth=1, num_heads=2)
    save_model(timm.create_model('vit_tiny_patch16_224', **args), tmp_path / 'vit', ['cat', 'dog'], args)
    load_teacher(tmp_path / 'vit', ['cat', 'dog'], **settings)
    assert 'is for images of' not in caplog.text
    load_teacher(tmp_path / 'teacher', ['cat', 'dog'], **settings)
    said = f"teacher' is for images of 32 x 32 pixels, as its config says, and gets {gets}, on which"
    assert ('is for images of' in caplog.text) == (said in caplog.text) == (gets is not None)


def test_teacher_file_that_leaves_a_choice(tmp_path):
    """The model flags of a distillation are the student's: those of the teacher are for `hdkd convert`."""
    model = timm.create_model('hdkd_student', **TINY_STUDENT)
    torch.save(model.state_dict(), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r'--model-kwargs head_dim=WIDTH\..* `hdkd convert .*a\.pth FOLDER`'):
        load_teacher(tmp_path / 'a.pth', list('abcde'))
    convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'm', head_dim=8)
    teacher, _ = load_teacher(tmp_path / 'm', list('abcde'))
    assert torch.equal(teacher.head.weight, model.head.weight)


def create_saved_teacher():
    return timm.create_model('hdkd_teacher', **{**TINY_TEACHER, 'num_classes': 2})


def test_soft_labels_are_compared_in_float32_under_autocast():
    """timm's task takes the softmax of the logits as they are, which a CPU's autocast leaves in bfloat16."""
    networks = [timm.create_model('test_resnet', num_classes=3) for _ in range(2)]
    task = create_task(networks[0], TrainConfig(img_size=32, alpha=0.5, tau=4.0), None, networks[1]).eval()
    images, target = torch.randn(8, 3, 32, 32), torch.arange(8) % 3
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        result = task(images, target)
        logits = [network(images) for network in networks]
    assert result['output'].dtype == torch.float32
    p_s, p_t = (torch.log_softmax(part / 4, dim=1) for part in logits)
    torch.testing.assert_close(result['kd_loss'], 16 * (p_t.exp() * (p_t - p_s)).sum(dim=1).mean())
