"""timm's contract for all five models, on small images; at full width where that is quick."""

import logging

import pytest
import timm
import torch
from helpers import TINY_STUDENT, TINY_TEACHER, randomize_batch_stats
from timm.data import resolve_data_config
from timm.models import create_feature_extractor, group_parameters
from timm.optim import create_optimizer_v2
from timm.utils import reparameterize_model
from torch import nn

import hdkd_timm  # noqa: F401
from hdkd_timm.layers.reparam import is_fused
from hdkd_timm.models.checkpoint import save_model
from hdkd_timm.models.hdkd import HDKDStudent, HDKDTeacher

MODELS = ['hdkd_teacher', 'hdkd_student', 'hdkd_student_plain', 'hdkd_teacher_s4', 'hdkd_student_s4']
STUDENTS = [name for name in MODELS if 'student' in name]
# what takes long: each kind of head, and both stems
KINDS = ['hdkd_teacher', 'hdkd_student_plain', 'hdkd_student_s4']
# published parameter counts; stride 4 leaves fewer positions to embed
PARAMETERS = {
    'hdkd_teacher': 3_948_677,
    'hdkd_student': 3_727_288,
    'hdkd_student_plain': 3_724_977,
    'hdkd_teacher_s4': 3_948_677,
    'hdkd_student_s4': 3_727_288 - (14 * 14 - 7 * 7) * 256,
}
SIZE = 64


def create(name, **kwargs):
    return timm.create_model(name, **{'img_size': SIZE, 'num_classes': 7, **kwargs})


def create_tiny(name, **kwargs):
    """For what depends on the code of the layers alone, and takes long on many and wide ones."""
    return create(name, **{**(TINY_STUDENT if is_student(name) else TINY_TEACHER), 'img_size': SIZE, **kwargs})


def create_shallow(name, **kwargs):
    """One layer of each kind, for what takes long on each."""
    return create_tiny(name, **{'depths': (1, 1, 1, 1) if is_student(name) else (1, 1, 1), **kwargs})


def images(batch_size=2, chans=3, size=SIZE):
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(batch_size, chans, height, width)


def is_student(name):
    return name in STUDENTS


def is_distilled(name):
    return name in ('hdkd_student', 'hdkd_student_s4')


def stem_stride(name):
    return 4 if name.endswith('_s4') else 2


def num_prefix(name):
    return 2 if is_distilled(name) else 1


def saved_bytes(fn):
    """Bytes that autograd keeps for the backward pass of fn(), each storage once."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = fn()
    return sum(storages.values()), output


def test_registered():
    assert sorted(timm.list_models('hdkd_*')) == sorted(MODELS)


@pytest.mark.parametrize('name', MODELS)
def test_defaults_are_the_published_ones(name):
    model = timm.create_model(name, num_classes=7, device='meta')
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert timm.create_model(name, device='meta').num_classes == timm.get_pretrained_cfg(name).num_classes
    config = resolve_data_config(model=model)
    assert config['input_size'] == (3, 224, 224)
    assert (config['crop_pct'], config['crop_mode'], config['interpolation']) == (1.0, 'squash', 'bilinear')


@pytest.mark.parametrize('name', MODELS)
def test_forward(name):
    model = create(name, num_classes=5).eval()
    x = images()
    logits, features = model(x), model.forward_features(x)
    assert logits.shape == (2, 5)
    map_size = SIZE // stem_stride(name) // 4
    if is_student(name):
        assert features.shape == (2, num_prefix(name) + (map_size // 2) ** 2, 256)
        assert model.num_prefix_tokens == num_prefix(name)
    else:
        assert features.shape == (2, 192, map_size, map_size)
    hidden = model.forward_head(features, pre_logits=True)
    assert hidden.shape == (2, model.head_hidden_size)
    torch.testing.assert_close(model.forward_head(features), logits)
    classifier = model.get_classifier()
    if is_distilled(name):
        torch.testing.assert_close((classifier[0](features[:, 0]) + classifier[1](features[:, 1])) / 2, logits)
        torch.testing.assert_close(hidden, features[:, :2].mean(dim=1))
    else:
        torch.testing.assert_close(classifier(hidden), logits)


@pytest.mark.parametrize('name', MODELS)
def test_every_parameter_gets_a_gradient(name):
    model = create(name, num_classes=3).train()
    model(images()).square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('name', MODELS)
def test_pretrained_cfg(name):
    model = timm.create_model(name, device='meta')
    cfg, state = model.pretrained_cfg, model.state_dict()
    classifiers = (cfg['classifier'],) if isinstance(cfg['classifier'], str) else cfg['classifier']
    assert tuple(classifiers) == (('head', 'head_dist') if is_distilled(name) else ('head',))
    assert all(f'{c}.weight' in state for c in classifiers)
    assert cfg['first_conv'] == 'stages.0.0.conv'
    assert state['stages.0.0.conv.weight'].shape[1] == 3
    assert bool(cfg['fixed_input_size']) == is_student(name)
    maps = model.forward_intermediates(torch.empty(1, 3, 224, 224, device='meta'), 1, intermediates_only=True)
    # the features of students are tokens: a pool size would tell others, fastai for one, that they are a map
    assert cfg['pool_size'] == (None if is_student(name) else tuple(maps[0].shape[-2:]))
    assert timm.get_pretrained_cfg(name).input_size == (3, 224, 224)
    if not timm.models.is_model_pretrained(name):
        with pytest.raises(RuntimeError, match='No pretrained weights exist'):
            timm.create_model(name, pretrained=True)


@pytest.mark.parametrize('name', MODELS)
def test_reset_classifier(name):
    model = create_tiny(name, dtype=torch.bfloat16).train()
    x = images(batch_size=4).bfloat16()
    model.reset_classifier(11)
    heads = model.get_classifier() if is_distilled(name) else (model.get_classifier(),)
    assert all(h.weight.dtype == torch.bfloat16 and h.training and h.weight.shape[0] == 11 for h in heads)
    assert model(x).shape == (4, 11)
    model.eval()
    model.reset_classifier(0)
    assert not any(m.training for m in model.modules())
    assert model(x).shape == (4, model.head_hidden_size)
    model.reset_classifier(0, '')
    unpooled = model(x)
    assert unpooled.ndim == (3 if is_student(name) else 4)
    model.reset_classifier(3, 'avg')
    assert model.num_classes == 3
    assert model(x).shape == (4, 3)
    with pytest.raises(ValueError, match='global_pool'):
        model.reset_classifier(3, 'median')
    assert create_tiny(name, num_classes=0, global_pool='').eval()(images()).ndim == unpooled.ndim


def test_unpooled_teacher_gives_a_map_of_logits_whose_mean_is_the_pooled_one():
    model = create('hdkd_teacher', num_classes=3).eval()
    unpooled = create('hdkd_teacher', num_classes=3, global_pool='').eval()
    unpooled.load_state_dict(model.state_dict())
    x = images()
    assert unpooled(x).shape == (2, 3, SIZE // 8, SIZE // 8)
    torch.testing.assert_close(unpooled(x).mean((2, 3)), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', MODELS)
def test_features_only(name):
    model = create(name, features_only=True).eval()
    stride = stem_stride(name)
    reductions = [stride, stride * 2, stride * 4] + ([stride * 8] if is_student(name) else [])
    channels = [64, 96, 192] + ([256] if is_student(name) else [])
    assert model.feature_info.reduction() == reductions
    assert model.feature_info.channels() == channels
    outputs = model(images())
    assert [o.shape for o in outputs] == [(2, c, SIZE // r, SIZE // r) for c, r in zip(channels, reductions)]
    loss = sum(o.square().mean() for o in outputs)
    loss.backward()
    # the tokens' last residual branch is all that the last map does not read
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_features_only_of_a_non_square_image():
    outputs = timm.create_model('hdkd_student', features_only=True, img_size=(192, 144))(images(1, size=(192, 144)))
    assert [tuple(o.shape) for o in outputs] == [(1, 64, 96, 72), (1, 96, 48, 36), (1, 192, 24, 18), (1, 256, 12, 9)]


@pytest.mark.parametrize('feature_cls', ['list', 'hook', 'fx'])
@pytest.mark.parametrize('name', ['hdkd_teacher', 'hdkd_student'])
def test_features_only_by_other_extractors(name, feature_cls):
    x = images()
    expected = create_tiny(name).eval()
    model = create_tiny(name, features_only=True, feature_cls=feature_cls, out_indices=(0, 2)).eval()
    state = expected.state_dict()
    names = {k: k.replace('stages_', 'stages.').replace('graph_module.', '') for k in model.state_dict()}
    model.load_state_dict({k: state[v] for k, v in names.items()})
    maps = expected.forward_intermediates(x, [0, 2], intermediates_only=True)
    for actual, reference in zip(model(x), maps):
        torch.testing.assert_close(actual, reference)


@pytest.mark.parametrize('name', MODELS)
def test_forward_intermediates(name):
    model = create_tiny(name).eval()
    x = images()
    number = 4 if is_student(name) else 3
    features, maps = model.forward_intermediates(x)
    assert len(maps) == number
    torch.testing.assert_close(features, model.forward_features(x))
    for info, m in zip(model.feature_info, maps):
        assert m.shape == (2, info['num_chs'], SIZE // info['reduction'], SIZE // info['reduction'])
    for indices, expected in ((2, maps[-2:]), ([0, 2], [maps[0], maps[2]]), ([-1], maps[-1:])):
        for actual, reference in zip(model.forward_intermediates(x, indices, intermediates_only=True), expected):
            torch.testing.assert_close(actual, reference)
    for stage in range(3):
        early, _ = model.forward_intermediates(x, [stage], stop_early=True)
        torch.testing.assert_close(early, maps[stage])
    flat = model.forward_intermediates(x, output_fmt='NLC', intermediates_only=True)
    for actual, reference in zip(flat, maps):
        torch.testing.assert_close(actual, reference.flatten(2).transpose(1, 2))
    result = model.forward_intermediates(x, output_dict=True)
    torch.testing.assert_close(result['image_features'], features)
    assert len(result['image_intermediates']) == number
    assert set(model.forward_intermediates(x, output_dict=True, intermediates_only=True)) == {'image_intermediates'}
    if is_student(name):
        ((last, prefix),) = model.forward_intermediates(
            x, 1, return_prefix_tokens=True, norm=True, output_fmt='NLC', intermediates_only=True
        )
        torch.testing.assert_close(torch.cat([prefix, last], dim=1), features)
        pairs = model.forward_intermediates(x, return_prefix_tokens=True, intermediates_only=True)
        assert [p.shape[1] for _, p in pairs] == [0, 0, 0, num_prefix(name)]
        result = model.forward_intermediates(x, output_dict=True, return_prefix_tokens=True)
        assert len(result['image_intermediates_prefix']) == 4
    with pytest.raises(ValueError, match='out of range'):
        model.forward_intermediates(x, [number])
    with pytest.raises(ValueError, match='last 9'):
        model.forward_intermediates(x, 9)
    with pytest.raises(ValueError, match='NHWC'):
        model.forward_intermediates(x, output_fmt='NHWC')


@pytest.mark.parametrize('name', MODELS)
def test_prune_intermediate_layers(name):
    x = images()
    for last in range(4 if is_student(name) else 3):
        torch.manual_seed(0)
        model = create_tiny(name).train()
        with torch.no_grad():
            reference = model.eval().forward_intermediates(x, [last], intermediates_only=True)[0]
        assert model.prune_intermediate_layers([last - len(model.feature_info)], prune_norm=True) == [last]
        actual = model.forward_intermediates(x, [last], intermediates_only=True)[0]
        torch.testing.assert_close(actual, reference)
        actual.square().mean().backward()
        assert [n for n, p in model.named_parameters() if p.grad is None] == []
        if last < 3:
            torch.testing.assert_close(model(x), reference)
            assert model.num_features == reference.shape[1]


@pytest.mark.parametrize('name', MODELS)
def test_pruned_network_takes_a_new_classifier(name):
    model = create_tiny(name).eval()
    model.prune_intermediate_layers([1])
    x = images()
    features = model.forward_features(x)
    assert features.shape[1] == model.num_features == 16
    model.reset_classifier(3)
    assert model(x).shape == (2, 3, *features.shape[-2:])
    model.reset_classifier(3, 'avg')
    assert model(x).shape == (2, 3)
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), features.mean((2, 3)))
    if is_student(name):
        assert model.num_prefix_tokens == 0
        assert model.get_classifier() is model.head
        assert model(images(size=50)).shape == (2, 3)  # the stages take any size
        with pytest.raises(ValueError, match='no class token'):
            model.reset_classifier(3, 'token')
        with pytest.raises(ValueError, match='no distillation token'):
            model.set_distilled_training()
    torch.jit.script(model)


@pytest.mark.parametrize('name', STUDENTS)
def test_classifier_of_the_cfg_follows_the_heads(name):
    for distilled in (True, False):
        model = timm.create_model(name, distilled=distilled, device='meta')
        assert model.pretrained_cfg['classifier'] == (('head', 'head_dist') if distilled else 'head')


@pytest.mark.parametrize('name', STUDENTS)
def test_set_input_size(name):
    model = create(name).eval()
    prefix = model.pos_embed[:, : num_prefix(name)].clone()
    model.set_input_size((96, 80))
    assert model(images(size=(96, 80))).shape == (2, 7)
    torch.testing.assert_close(model.pos_embed[:, : num_prefix(name)], prefix)
    with pytest.raises(AssertionError, match=r"Image height \(64\) doesn't match the model's \(96\)"):
        model(images())
    model.set_input_size((SIZE, SIZE))
    assert model(images()).shape == (2, 7)
    with pytest.raises(ValueError, match='27'):
        model.set_input_size(27)


@pytest.mark.parametrize('name', MODELS)
def test_recorded_model_args(name):
    models = timm.models
    if not hasattr(models, 'get_model_args'):
        pytest.skip('timm < 1.0.31 records nothing')
    model = create(name, in_chans=1, num_classes=4)
    model.set_input_size((96, 80))
    model.reset_classifier(6, 'max')
    args = models.get_model_args(model)
    assert tuple(args['img_size']) == (96, 80)
    assert (args['in_chans'], args['num_classes'], args['global_pool']) == (1, 6, 'max')
    assert models.get_model_input_config(model)['input_size'] == (1, 96, 80)
    again = timm.create_model(name, **args)
    again.load_state_dict(model.state_dict())


@pytest.mark.parametrize('name', MODELS)
def test_input_arguments_of_timm_s_scripts(name):
    if not hasattr(timm.models, 'resolve_model_input_args'):
        pytest.skip('timm < 1.0.31 has no such function')
    args = timm.models.resolve_model_input_args(name, dict(img_size=96, in_chans=1), num_classes=3)
    model = timm.create_model(**args)
    assert (model.in_chans, model.num_classes) == (1, 3)
    assert model(images(chans=1, size=96)).shape == (2, 3)


@pytest.mark.parametrize('name', STUDENTS)
@pytest.mark.parametrize('size', [(28, 28), (28, 45), (61, 33), (100, 51)])
def test_any_size(name, size):
    stride = stem_stride(name) * 4
    x = images(size=size)
    for pad in (True, False):
        fixed = create_tiny(name, img_size=size, num_classes=7, dynamic_img_pad=pad).eval()
        rows, cols = -(-size[0] // stride), -(-size[1] // stride)
        assert fixed.forward_intermediates(x, [2], intermediates_only=True)[0].shape[-2:] == (rows, cols)
        grid = (-(-rows // 2), -(-cols // 2)) if pad else (rows // 2, cols // 2)
        assert fixed.forward_features(x).shape[1] == num_prefix(name) + grid[0] * grid[1]
        assert fixed(x).shape == (2, 7)
        dynamic = create_tiny(name, img_size=size, num_classes=7, dynamic_img_size=True, dynamic_img_pad=pad).eval()
        dynamic.load_state_dict(fixed.state_dict())
        torch.testing.assert_close(dynamic(x), fixed(x))


@pytest.mark.parametrize('name', STUDENTS)
def test_dynamic_img_size(name):
    model = create(name, dynamic_img_size=True).eval()
    fixed = create(name).eval()
    fixed.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(images(size=64).fill_(0.5)), fixed(images(size=64).fill_(0.5)))
    x = images(size=(96, 51))
    fixed.set_input_size((96, 51))
    torch.testing.assert_close(model(x), fixed(x))
    with pytest.raises(AssertionError, match='28 pixels'):
        model(images(size=27))


@pytest.mark.parametrize('name', ['hdkd_teacher', 'hdkd_teacher_s4'])
def test_teacher_takes_any_size(name):
    model = timm.create_model(name, num_classes=7).eval()
    stride = stem_stride(name) * 4
    for size in ((28, 28), (61, 33)):
        assert model.forward_features(images(size=size)).shape[-2:] == (-(-size[0] // stride), -(-size[1] // stride))
        assert model(images(size=size)).shape == (2, 7)


def test_smallest_grey_student_trains():
    model = timm.create_model('hdkd_student', num_classes=8, img_size=28, in_chans=1).train()
    optimizer = create_optimizer_v2(model, opt='adamw', lr=1e-3, weight_decay=0.05)
    x, y = images(8, chans=1, size=28), torch.arange(8)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize('name', STUDENTS)
def test_distilled_training(name):
    model = create(name)
    if not is_distilled(name):
        with pytest.raises(ValueError, match='no distillation token'):
            model.set_distilled_training()
        model.set_distilled_training(False)
        return
    assert model.train()(images()).shape == (2, 7)
    model.set_distilled_training()
    pair = model(images())
    assert isinstance(pair, tuple)
    assert [p.shape for p in pair] == [(2, 7), (2, 7)]
    assert model.eval()(images()).shape == (2, 7)
    model.train().set_distilled_training(False)
    assert model(images()).shape == (2, 7)


@pytest.mark.parametrize('name', MODELS)
def test_group_matcher(name):
    model = create(name)
    fine = group_parameters(model, model.group_matcher(), reverse=True)
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert set(fine) == {n for n, _ in model.named_parameters()}
    order = [
        'stages.0.0.conv.weight',
        'stages.0.1.conv.weight',
        'stages.1.0.conv_pw.weight',
        'stages.1.1.conv_pw.weight',
        'stages.2.0.conv_pw.weight',
    ]
    if is_student(name):
        order += ['pos_embed', 'blocks.0.attn.qkv.weight', 'blocks.2.attn.qkv.weight', 'head.weight']
        assert fine['pos_embed'] == fine['cls_token'] == fine['patch_embed.proj.weight']
        assert fine['norm.weight'] == fine['blocks.2.attn.qkv.weight']
        if is_distilled(name):
            assert fine['head_dist.weight'] == fine['head.weight']
    else:
        order += ['head.weight']
    depths = [fine[n] for n in order]
    assert depths == sorted(set(depths))
    assert coarse['stages.0.0.conv.weight'] == coarse['stages.0.1.conv.weight'] == 0
    assert coarse['stages.1.0.conv_pw.weight'] == coarse['stages.1.1.conv_pw.weight'] == 1

    optimizer = create_optimizer_v2(model, opt='adamw', lr=1.0, weight_decay=0.05, layer_decay=0.5)
    scales = {id(p): g['lr_scale'] for g in optimizer.param_groups for p in g['params']}
    params = dict(model.named_parameters())
    by_depth = [scales[id(params[n])] for n in order]
    assert by_depth == sorted(set(by_depth))
    assert by_depth[-1] == 1.0


@pytest.mark.parametrize('name', MODELS)
def test_no_weight_decay(name):
    model = create(name)
    names = {n for n, _ in model.named_parameters()}
    tokens = {'pos_embed', 'cls_token', 'dist_token'} & names
    assert model.no_weight_decay() & names == tokens
    optimizer = create_optimizer_v2(model, opt='adamw', weight_decay=0.05)
    decayed = {id(p) for g in optimizer.param_groups if g['weight_decay'] > 0 for p in g['params']}
    for n, p in model.named_parameters():
        assert (id(p) in decayed) == (p.ndim > 1 and n not in tokens), n


@pytest.mark.parametrize('name', MODELS)
def test_grad_checkpointing(name):
    x = images(batch_size=4)
    torch.manual_seed(0)
    model, again = (create_tiny(name, drop_path_rate=0.2).train() for _ in range(2))
    again.load_state_dict(model.state_dict())
    again.set_grad_checkpointing()

    def run(m, forward):
        torch.manual_seed(1)
        size, output = saved_bytes(lambda: forward(m))
        output.square().mean().backward()
        return size, output

    for forward in (lambda m: m(x), lambda m: m.forward_intermediates(x)[0]):
        model.zero_grad()
        again.zero_grad()
        full, output = run(model, forward)
        less, output_again = run(again, forward)
        torch.testing.assert_close(output_again, output)
        assert less < 0.5 * full
        for (n, p), q in zip(model.named_parameters(), again.parameters()):
            if p.grad is not None:
                torch.testing.assert_close(q.grad, p.grad, msg=lambda m, n=n: f'{n}: {m}')
        # the second forward pass of a checkpointed block counts no batch twice
        for (n, b), c in zip(model.named_buffers(), again.buffers()):
            torch.testing.assert_close(c, b, msg=lambda m, n=n: f'{n}: {m}')


def test_grad_checkpointing_with_synchronised_batch_norm():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(timm.create_model('hdkd_teacher', **TINY_TEACHER)).train()
    model.set_grad_checkpointing()
    model(images(size=32)).mean().backward()
    counts = {int(m.num_batches_tracked) for m in model.modules() if isinstance(m, nn.SyncBatchNorm)}
    assert counts == {1}


@pytest.mark.parametrize('name', MODELS)
def test_meta_device(name):
    model = create(name, device='meta')
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {'meta'}
    model = model.to_empty(device='cpu')
    model.init_weights()
    assert torch.isfinite(model.eval()(images())).all()
    for n, p in model.named_parameters():
        assert torch.isfinite(p).all(), n
        if n in ('pos_embed', 'cls_token', 'dist_token'):
            assert 0.85 < p.std() < 1.15, n


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('name', MODELS)
def test_half_precision(name, dtype):
    model = create_tiny(name).eval()
    x = images()
    expected = model(x)
    built = create_tiny(name, dtype=dtype)
    assert {t.dtype for t in (*built.parameters(), *built.buffers()) if t.is_floating_point()} == {dtype}
    actual = model.to(dtype)(x.to(dtype))
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.float(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize('name', MODELS)
def test_channels_last(name):
    model = randomize_batch_stats(create_tiny(name).eval())
    x = images()
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', KINDS)
def test_compile_fullgraph(name):
    model = create_shallow(name, img_size=32).eval()
    x = images(size=32)
    compiled = torch.compile(model, fullgraph=True, backend='eager')  # below, what comes after the graph
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize('name', ['hdkd_teacher', 'hdkd_student'])
@pytest.mark.parametrize('grad_checkpointing', [False, True])
def test_compile_fullgraph_in_training(name, grad_checkpointing):
    depths = (1, 1, 1 + grad_checkpointing)  # checkpoints are of several layers
    depths = (1, *depths) if is_student(name) else depths
    attn = 'se' if is_student(name) else 'cbam'  # the stages are the same, and half of the time is that of CBAM
    model, again = (create_tiny(name, img_size=32, depths=depths, attn=attn).train() for _ in range(2))
    again.load_state_dict(model.state_dict())
    again.set_grad_checkpointing(grad_checkpointing)
    if is_student(name):
        model.set_distilled_training()
        again.set_distilled_training()
    x = images(size=32)

    def loss(m):
        output = m(x)
        return sum(o.square().mean() for o in output) if isinstance(output, tuple) else output.square().mean()

    loss(model).backward()
    loss(torch.compile(again, fullgraph=True, backend='aot_eager')).backward()
    for (n, p), q in zip(model.named_parameters(), again.named_parameters()):
        torch.testing.assert_close(q[1].grad, p.grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=n: f'{n}: {m}')
    for (n, b), c in zip(model.named_buffers(), again.buffers()):
        torch.testing.assert_close(c, b, msg=lambda m, n=n: f'{n}: {m}')


def test_compile_inductor():
    """With SE: code for CBAM is made in the tests of the layer."""
    model = create_shallow('hdkd_student', img_size=32, attn='se').eval()
    x = images(size=32)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', KINDS)
def test_export(name):
    model = create_shallow(name).eval()
    batch = torch.export.Dim('batch', min=1, max=64)
    exported = torch.export.export(model, (images(),), dynamic_shapes=({0: batch},)).module()
    x = images(batch_size=5)
    torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('name', 'kwargs'),
    [
        ('hdkd_teacher', {}),  # with CBAM, on which the time of the others would go
        ('hdkd_student', dict(attn='se', dynamic_img_size=True, dynamic_img_pad=True)),
        ('hdkd_student', dict(attn='se', dynamic_img_size=True, dynamic_img_pad=False)),
    ],
)
def test_export_with_dynamic_image_size(name, kwargs):
    auto = torch.export.Dim.AUTO
    model = create_shallow(name, img_size=32, **kwargs).eval()
    x = images(size=(64, 80))
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: auto, 2: auto, 3: auto},)).module()
    for size in ((96, 48), (61, 33)):
        x = images(batch_size=3, size=size)
        torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('attn', ['cbam', 'se'])
@pytest.mark.parametrize('name', MODELS)
def test_reparameterize(name, attn):
    model = randomize_batch_stats(create_shallow(name, attn=attn)).eval()
    x = images()
    with torch.no_grad():
        expected, expected_maps = model(x), model.forward_intermediates(x, intermediates_only=True)
        fused = reparameterize_model(model)
        torch.testing.assert_close(fused(x), expected, rtol=0, atol=1e-4)
        for ours, theirs in zip(fused.forward_intermediates(x, intermediates_only=True), expected_maps):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert is_fused(fused)
        assert not is_fused(model)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
        once = fused(x)
        assert reparameterize_model(fused, inplace=True) is fused
        assert torch.equal(fused(x), once)
        assert torch.equal(model(x), expected)  # the copy was folded, not this one
        reparameterize_model(model, inplace=True)
        assert torch.equal(model(x), once)
        assert torch.equal(torch.jit.script(model)(x), once)
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), once)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_reparameterize_half_precision(dtype):
    model = randomize_batch_stats(create_tiny('hdkd_student')).eval()
    expected = reparameterize_model(model).to(dtype)
    fused = reparameterize_model(model.to(dtype))
    for (name, ours), theirs in zip(fused.state_dict().items(), expected.state_dict().values()):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, rtol=4 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps, msg=name)


def test_fused_model_says_what_it_is_not(tmp_path):
    model = create('hdkd_student')
    fused = reparameterize_model(model)  # of a model in training mode
    fused.eval()(images())
    with pytest.raises(RuntimeError, match='the model is fused .*, the state dict is not: load it into a new model'):
        fused.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match='the state dict is fused .*, the model is not'):
        model.load_state_dict(fused.state_dict())
    with pytest.raises(RuntimeError, match='fused for inference, its BatchNorms are folded away: call eval'):
        fused.train()(images())
    with pytest.raises(ValueError, match='This HDKDStudent is fused for inference .*: save the model'):
        save_model(fused, tmp_path / 'fused')
    assert not (tmp_path / 'fused').exists()
    fused.load_state_dict(reparameterize_model(create('hdkd_student')).state_dict())
    model.load_state_dict(dict(model.named_parameters()), strict=False)  # without the statistics, as averages are


@pytest.mark.parametrize('name', MODELS)
def test_autocast(name):
    model = create_tiny(name).train()
    x = images(batch_size=4)
    expected = model(x)
    with torch.autocast('cpu', torch.bfloat16):
        actual = model(x)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.float(), expected, rtol=0.2, atol=0.2)
    actual.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('training', [False, True])
def test_torchscript(name, training):
    dynamic = dict(dynamic_img_size=True) if is_student(name) else {}
    model = create_shallow(name, scriptable=True, **dynamic)
    model.train(training)
    scripted = torch.jit.script(model)
    x = images(batch_size=3)
    torch.testing.assert_close(scripted(x), model(x), rtol=1e-4, atol=1e-4)
    if is_student(name):
        fixed = create_shallow(name, scriptable=True).train(training)
        torch.testing.assert_close(torch.jit.script(fixed)(x), fixed(x), rtol=1e-4, atol=1e-4)


def test_trace(tmp_path):
    model, x = create_shallow('hdkd_student').eval(), images()
    traced = torch.jit.trace(model, x)
    traced.save(tmp_path / 'traced.pt')
    torch.testing.assert_close(torch.jit.load(tmp_path / 'traced.pt')(x), model(x))


@pytest.mark.parametrize('name', MODELS)
def test_fx_feature_extraction(name):
    model = create_tiny(name).eval()
    x = images()
    nodes = {'stages.0': 'a', 'stages.2.1.conv_pwl': 'b', **({'blocks.1': 'c'} if is_student(name) else {})}
    outputs = create_feature_extractor(model, nodes)(x)
    torch.testing.assert_close(outputs['a'], model.forward_intermediates(x, [0], intermediates_only=True)[0])
    assert set(outputs) == set(nodes.values())
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x))


def test_onnx_export(tmp_path):
    pytest.importorskip('onnxscript')
    onnx = pytest.importorskip('onnx')
    model = create_shallow('hdkd_student', img_size=32).eval()
    torch.onnx.export(model, (images(size=32),), tmp_path / 'student.onnx', dynamo=True, verbose=False)
    onnx.checker.check_model(str(tmp_path / 'student.onnx'))


def test_constructor_arguments_do_what_they_say():
    x = images(size=32)

    def student(**kwargs):
        torch.manual_seed(0)
        return HDKDStudent(**{**TINY_STUDENT, **kwargs})

    def count(module, kind):
        return sum(isinstance(m, kind) for m in module.modules())

    def drops(model):
        """Outputs of two passes in training mode differ, in eval mode they don't."""
        model.train()
        varies = not torch.equal(model(x), model(x))
        model.eval()
        assert torch.equal(model(x), model(x))
        return varies

    assert not drops(student())
    for name in ('drop_rate', 'pos_drop_rate', 'proj_drop_rate', 'attn_drop_rate', 'drop_path_rate'):
        assert drops(student(**{name: 0.5})), name
    for name in ('drop_rate', 'drop_path_rate'):
        assert drops(HDKDTeacher(**TINY_TEACHER, **{name: 0.5})), name
    assert len(student(depths=(1, 2, 2, 4)).blocks) == 4
    assert [len(s) for s in HDKDTeacher(**{**TINY_TEACHER, 'depths': (3, 1, 4)}).stages] == [3, 1, 4]
    assert student(dims=(8, 24, 32)).feature_info[2]['num_chs'] == 32
    assert student(embed_dim=48).num_features == 48
    assert student(patch_size=4).forward_features(x).shape[1] == 2 + 1
    assert student(num_heads=4).blocks[0].attn.num_heads == 4
    assert student(head_dim=16).blocks[0].attn.qkv.weight.shape[0] == 3 * 2 * 16
    assert student(mlp_ratio=3).blocks[0].mlp.fc1.weight.shape[0] == 3 * 32
    assert student(stem_stride=4).feature_info[0]['reduction'] == 4
    assert 'stages.1.0.attn.channel.fc1.weight' in student().state_dict()
    assert 'stages.1.0.attn.fc1.weight' in student(attn='se').state_dict()
    assert student(distilled=False).dist_token is None
    assert student(in_chans=5)(images(chans=5, size=32)).shape == (2, 5)
    assert count(student(), nn.BatchNorm2d) == count(student(attn='se'), nn.BatchNorm2d)
    for pool in ('token', 'avg', 'max', 'avgmax'):
        assert student(global_pool=pool)(x).shape == (2, 5)
    assert student(global_pool='')(x).shape == (2, 2 + 4, 5)
    for pool in ('avg', 'max', 'avgmax'):
        assert HDKDTeacher(**TINY_TEACHER, global_pool=pool)(x).shape == (2, 5)
    assert HDKDTeacher(**TINY_TEACHER, hidden_size=17).head_hidden_size == 17


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        (dict(img_size=27), '27 x 27'),
        (dict(img_size=(28, 20)), '28 x 20'),
        (dict(img_size='64'), r"img_size must be one whole number, or height and width, .*, got '64'"),
        (dict(img_size=64.0), r'img_size must be one whole number, .*, got 64\.0'),
        (dict(img_size=(3, 64, 64)), r'img_size must be one whole number, .*, got \(3, 64, 64\)'),
        (dict(attn='eca'), "'eca'"),
        (dict(stem_stride=3), 'stem_stride'),
        (dict(depths=(1, 2)), 'depths'),
        (dict(dims=(3, 16, 24)), '16 hidden channels'),
        (dict(global_pool='median'), 'median'),
    ],
)
@pytest.mark.parametrize('name', ['hdkd_teacher', 'hdkd_student'])
def test_bad_arguments(name, kwargs, match):
    with pytest.raises(ValueError, match=match):
        timm.create_model(name, **kwargs)


@pytest.mark.parametrize('name', MODELS)
def test_unknown_argument(name):
    with pytest.raises(TypeError, match='dropout'):
        timm.create_model(name, dropout=0.1)


def test_initialisation_is_the_published_one():
    model = timm.create_model('hdkd_student')
    assert abs(model.pos_embed.std() - 1) < 0.02
    assert abs(model.cls_token.std() - 1) < 0.2
    for m in model.modules():
        if isinstance(m, nn.Linear):  # PyTorch's default, uniform within 1 / sqrt(inputs)
            bound = m.in_features**-0.5
            assert 0.9 * bound < m.weight.abs().max() <= bound
        elif isinstance(m, nn.BatchNorm2d):
            assert (m.eps, m.momentum) == (1e-5, 0.1)
        elif isinstance(m, nn.LayerNorm):
            assert m.eps == 1e-5
        elif isinstance(m, nn.GELU):
            assert m.approximate == 'none'


# -- checkpoints of other sizes, channels and heads --------------------------------------------------------------------


@pytest.mark.parametrize('name', ['hdkd_teacher', 'hdkd_student', 'hdkd_student_plain'])
@pytest.mark.parametrize(('source', 'target'), [(3, 1), (3, 4), (3, 6), (1, 3), (4, 1), (4, 4), (4, 3), (1, 1)])
def test_first_conv_is_adapted(name, source, target, tmp_path, caplog):
    args = {**(TINY_TEACHER if 'teacher' in name else TINY_STUDENT), 'in_chans': source}
    model = timm.create_model(name, **args)
    save_model(model, tmp_path / 'm', model_args=args)
    caplog.set_level(logging.WARNING)
    caplog.clear()
    again = timm.create_model(f'local-dir:{tmp_path / "m"}', pretrained=True, in_chans=target)
    assert not caplog.records
    before, after = model.stages[0][0].conv.weight, again.stages[0][0].conv.weight
    if target == 1:
        expected = before.sum(dim=1, keepdim=True)
    else:
        expected = before[:, [i % source for i in range(target)]] * (source / target)
    torch.testing.assert_close(after, expected)
    assert again.pretrained_cfg['first_conv'] == 'stages.0.0.conv'
    assert again(torch.randn(2, target, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize('distilled', [True, False])
def test_position_embedding_is_resampled(distilled, tmp_path):
    args = {**TINY_STUDENT, 'img_size': (48, 96), 'distilled': distilled}
    model = timm.create_model('hdkd_student', **args)
    save_model(model, tmp_path / 'm', model_args=args)
    prefix = 1 + distilled
    with torch.no_grad():  # a ramp along the width stays one
        ramp = torch.linspace(0, 1, 6).repeat(3).view(1, 18, 1)
        model.pos_embed[:, prefix:] = ramp
    save_model(model, tmp_path / 'ramp', model_args=args)
    again = timm.create_model(f'local-dir:{tmp_path / "ramp"}', pretrained=True, img_size=(64, 64))
    assert torch.equal(again.pos_embed[:, :prefix], model.pos_embed[:, :prefix])
    grid = again.pos_embed[:, prefix:].view(4, 4, 32)
    torch.testing.assert_close(grid, grid[:1, :, :1].expand(4, 4, 32), rtol=0, atol=1e-5)
    assert (grid[0, 1:, 0] > grid[0, :-1, 0]).all()
    same = timm.create_model(f'local-dir:{tmp_path / "m"}', pretrained=True)
    assert same.pos_embed.shape == (1, prefix + 18, 32)
    number = timm.create_model(f'local-dir:{tmp_path / "m"}', pretrained=True, num_classes=9)
    assert number(torch.randn(1, 3, 48, 96)).shape == (1, 9)
    assert torch.equal(number.norm.weight, same.norm.weight)


def test_position_embedding_that_fits_is_left_alone(tmp_path):
    args = {**TINY_STUDENT, 'img_size': (64, 144)}  # 4 x 9 patches, as many as 6 x 6
    model = timm.create_model('hdkd_student', **args)
    torch.save(model.state_dict(), tmp_path / 'own.pth')
    again = timm.create_model(
        'hdkd_student',
        pretrained=True,
        **args,
        pretrained_cfg_overlay=dict(file=str(tmp_path / 'own.pth'), num_classes=5),
    )
    assert torch.equal(again.pos_embed, model.pos_embed)


def test_plain_student_made_distilled_is_adapted(tmp_path):
    args = {**TINY_STUDENT, 'distilled': True}
    save_model(timm.create_model('hdkd_student_plain', **args), tmp_path / 'm', model_args=args)
    again = timm.create_model(f'local-dir:{tmp_path / "m"}', pretrained=True, num_classes=9)
    assert again(torch.randn(1, 3, 32, 32)).shape == (1, 9)


def test_wrong_prefix_tokens_are_explained(tmp_path):
    save_model(timm.create_model('hdkd_student', **TINY_STUDENT), tmp_path / 'm', model_args=TINY_STUDENT)
    with pytest.raises(ValueError, match='has a distillation token, .*: use hdkd_student for'):
        timm.create_model(f'local-dir:{tmp_path / "m"}', pretrained=True, distilled=False)
