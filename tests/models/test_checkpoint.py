import json

import pytest
import timm
import torch
from helpers import (
    TINY_STUDENT,
    TINY_TEACHER,
    create_student,
    create_teacher,
    load_published,
    save_checkpoint,
    write_images,
)
from safetensors.torch import load_file, save_file

from hdkd_timm.cli import main
from hdkd_timm.evaluation.classifier import ModelConfig, load_classifier
from hdkd_timm.models.checkpoint import convert_checkpoint, load_model, read_model_config, save_model
from hdkd_timm.models.labels import match_classes

HEADS = dict(model_kwargs=dict(head_dim=8))  # which keys and shapes do not determine


@pytest.mark.parametrize(
    ('kwargs', 'shape'),
    [
        (dict(in_chans=1, img_size=(48, 80), num_classes=3), (1, 48, 80)),
        (dict(in_chans=4, num_classes=2), (4, 32, 32)),
        (dict(global_pool='avg', drop_rate=0.1), (3, 32, 32)),
        (dict(dynamic_img_size=True), (3, 32, 32)),
        (dict(distilled=False, attn='se', stem_stride=4), (3, 32, 32)),
    ],
)
def test_saved_model_is_built_again(kwargs, shape, tmp_path):
    args = {**TINY_STUDENT, **kwargs}
    model = timm.create_model('hdkd_student', **args).eval().to(memory_format=torch.channels_last)
    save_model(model, tmp_path / 'm', model_args=args)
    again = timm.create_model(f'local-dir:{tmp_path / "m"}', pretrained=True).eval()
    x = torch.randn(2, *shape)
    torch.testing.assert_close(again(x), model(x), rtol=1e-4, atol=1e-5)
    assert again.pretrained_cfg['input_size'] == shape or list(again.pretrained_cfg['input_size']) == list(shape)
    weight = model.stages[1][0].conv_dw.weight  # the model itself is untouched
    assert weight.stride() == torch.empty_like(weight, memory_format=torch.channels_last).stride()


def test_model_args_need_not_be_given(tmp_path):
    model = timm.create_model('hdkd_student_s4', **{**TINY_STUDENT, 'img_size': 64})
    model.set_input_size((96, 64))
    model.reset_classifier(3, 'avg')
    save_model(model, tmp_path / 'm')
    again = timm.create_model(f'local-dir:{tmp_path / "m"}', pretrained=True).eval()
    x = torch.randn(2, 3, 96, 64)
    torch.testing.assert_close(again(x), model.eval()(x))


@pytest.mark.parametrize(
    ('name', 'kwargs', 'size'),
    [
        ('vit_tiny_patch16_224', dict(img_size=32, depth=1, embed_dim=24, num_heads=2), (32, 32)),
        ('maxvit_rmlp_pico_rw_256', dict(img_size=64), (64, 64)),  # it does not record its size
        ('resnet10t', {}, (176, 176)),
    ],
)
def test_size_of_other_networks(name, kwargs, size, tmp_path):
    save_model(timm.create_model(name, num_classes=3, **kwargs), tmp_path / 'm', model_args=kwargs)
    classifier = load_classifier(str(tmp_path / 'm'), ModelConfig(device='cpu'))
    assert classifier.data_config['input_size'] == (3, *size)
    classifier.model(torch.randn(1, 3, *size))


def test_config_is_what_the_hub_reads(tmp_path):
    save_model(timm.create_model('hdkd_student', **TINY_STUDENT), tmp_path / 'm', model_args=TINY_STUDENT)
    config = json.loads((tmp_path / 'm' / 'config.json').read_text())
    assert config['architecture'] == 'hdkd_student'
    assert config['num_classes'] == config['pretrained_cfg']['num_classes'] == 5
    assert 'num_classes' not in config['model_args']  # transformers takes no second one
    assert config['pretrained_cfg']['classifier'] == ['head', 'head_dist']
    assert set(load_file(tmp_path / 'm' / 'model.safetensors')) == set(
        timm.create_model('hdkd_student', **TINY_STUDENT).state_dict()
    )


def test_nothing_is_overwritten_or_left_half_done(tmp_path):
    state, _, _ = load_published('teacher')
    torch.save(state, tmp_path / 'a.pth')
    out = tmp_path / 'out'
    with pytest.raises(ValueError, match='2 label names for the 5 classes'):
        convert_checkpoint(tmp_path / 'a.pth', out, label_names=['a', 'b'])
    assert not out.exists()
    convert_checkpoint(tmp_path / 'a.pth', out)
    before = (out / 'config.json').read_text()
    with pytest.raises(FileExistsError, match='nothing is overwritten'):
        convert_checkpoint(tmp_path / 'a.pth', out)
    assert (out / 'config.json').read_text() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.pth', 'out']


@pytest.mark.parametrize('name', ['{}/best', '{}', '{}/best/model.safetensors', 'local-dir:{}/best'])
def test_load_model(name, tmp_path):
    """A folder, its run and its weights file are the same model: the file alone would not tell stride, names, size."""
    args = dict(TINY_TEACHER, num_classes=2, img_size=64)
    model = timm.create_model('hdkd_teacher_s4', **args).eval()
    save_model(model, tmp_path / 'run' / 'best', ['cat', 'dog'], args, (3, 64, 64))
    loaded, loaded_args = load_model(name.format(tmp_path / 'run'))
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(loaded.eval()(x), model(x))
    assert loaded.pretrained_cfg['architecture'] == 'hdkd_teacher_s4'
    assert list(loaded.pretrained_cfg['label_names']) == ['cat', 'dog']
    assert tuple(loaded.pretrained_cfg['input_size']) == (3, 64, 64)
    assert tuple(loaded_args['dims']) == TINY_TEACHER['dims']


def test_load_model_checkpoint_file(tmp_path):
    state, x, logits = load_published('student')
    torch.save(state, tmp_path / 'student.pth')
    model, args = load_model(tmp_path / 'student.pth', 'hdkd_student', model_kwargs=dict(head_dim=8))
    torch.testing.assert_close(model.eval()(x), logits, rtol=0, atol=1e-5)
    assert args['img_size'] == 32
    model, args = load_model(str(tmp_path / 'student.pth'), img_size=32, model_kwargs=dict(num_heads=2))
    assert model.blocks[0].attn.head_dim == 8
    torch.save(load_published('teacher')[0], tmp_path / 'teacher.pth')
    for name, stride in ((None, (2, 2)), ('hdkd_teacher_s4', (4, 4))):
        assert load_model(tmp_path / 'teacher.pth', name)[0].stages[0][0].conv.stride == stride
    with pytest.raises(ValueError, match='student with distillation token, not .hdkd_student_plain'):
        load_model(tmp_path / 'student.pth', 'hdkd_student_plain', model_kwargs=dict(head_dim=8))


def test_load_model_of_another_size(tmp_path):
    save_model(timm.create_model('hdkd_student', **TINY_STUDENT), tmp_path / 'm', model_args=TINY_STUDENT)
    model, args = load_model(tmp_path / 'm', img_size=48)
    assert tuple(model.img_size) == (48, 48)
    assert args['img_size'] == 48


def test_file_of_another_size_than_224(tmp_path):
    """Its size is that of the images that it is given."""
    write_images(tmp_path / 'new', classes=['a'], number=2)
    path = save_checkpoint(tmp_path, create_student(img_size=48).state_dict())
    for args, name in (([], 'p'), (['--img-size', '64'], 'q')):
        assert (
            main(
                [
                    'predict',
                    str(path),
                    str(tmp_path / 'new'),
                    '--model-kwargs',
                    'head_dim=8',
                    '-j',
                    '0',
                    '--out',
                    str(tmp_path / name),
                    *args,
                ]
            )
            == 0
        )
    assert (tmp_path / 'p').read_text() != (tmp_path / 'q').read_text()
    model, args = load_model(path, img_size=64, **HEADS)
    assert (tuple(model.img_size), tuple(model.pretrained_cfg['input_size'])) == ((64, 64), (3, 64, 64))


def test_load_model_asks_which(tmp_path):
    for name in ('teacher', 'student'):
        save_model(timm.create_model('hdkd_teacher', **TINY_TEACHER), tmp_path / 'run' / name / 'best')
    with pytest.raises(ValueError, match=r"run' holds several models: specify one of \S+run/student, \S+run/teacher\."):
        load_model(tmp_path / 'run')
    assert load_model(tmp_path / 'run' / 'teacher')[0].num_classes == 5
    for name in (tmp_path / 'nowhere', 'nowhere', 'hdkd_student_plain'):
        with pytest.raises(FileNotFoundError, match=f"Model '{name}' does not exist: specify a model folder"):
            load_model(name)
    with pytest.raises(FileNotFoundError, match="Model folder 'nowhere' does not exist"):
        load_model('local-dir:nowhere')


@pytest.mark.parametrize(
    ('name', 'content'),
    [('config.json', None), ('config.json', '{"a": 1}'), ('config.json', 'xx'), ('model.safetensors', 'xx')],
)
def test_damaged_model_folders(name, content, tmp_path):
    save_model(create_teacher(), tmp_path / 'm', model_args=TINY_TEACHER)
    (tmp_path / 'm' / name).unlink() if content is None else (tmp_path / 'm' / name).write_text(content)
    with pytest.raises(ValueError, match='Cannot load .* Expected a complete model folder'):
        load_model(tmp_path / 'm')


def write_config(folder, **changes):
    """A model folder of the classes a to e whose config.json is changed: place -> values, None to leave one out."""
    save_model(timm.create_model('hdkd_teacher', **TINY_TEACHER), folder, list('abcde'), TINY_TEACHER)
    config = json.loads((folder / 'config.json').read_text())
    for place, values in changes.items():
        (config if place == 'top' else config[place]).update(values)
    (folder / 'config.json').write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        (dict(top=dict(label_names=list('abcd'))), '4 label names for the 5 classes of the model'),
        (dict(top=dict(label_names=list('abcda'))), "duplicate label name 'a'"),
        (dict(top=dict(label_names=[0, 1, 2, 3, 4])), r'label_names must be a list of names, got \[0, 1'),
        (dict(top=dict(label_names={'0': 'a', '2': 'b', '3': 'c', '4': 'd', '5': 'e'})), 'must be a list of names'),
        (
            dict(top=dict(num_classes=4, label_names=list('abcd')), model_args=dict(num_classes=5)),
            'num_classes contradict each other, 4 in the top level, 5 in model_args',
        ),
        (
            dict(top=dict(num_classes=None), model_args=dict(num_classes=5), pretrained_cfg=dict(num_classes=None)),
            'num_classes is in model_args only: move it to the top level',
        ),
        (dict(model_args=dict(device='meta')), "model_args hold 'device', which is not an argument of a network"),
        (
            dict(top=dict(num_classes=4, label_names=list('abcd')), pretrained_cfg=dict(num_classes=4)),
            r'size mismatch for head\.weight',
        ),
        (
            dict(model_args=dict(features_only=True)),
            "model_args hold 'features_only', which is not an argument of a network",
        ),
        (dict(model_args=dict(checkpoint_path='a.pth')), "model_args hold 'checkpoint_path'"),
        (dict(pretrained_cfg=dict(mean=[0.5, 0.5])), r'mean must be 3 numbers, one per channel, got .0\.5, 0\.5.'),
        (dict(pretrained_cfg=dict(std=[0.5, 0, 0.5])), 'std must be 3 numbers above 0'),
        (dict(pretrained_cfg=dict(std=[0.5, float('nan'), 0.5])), r'config\.json.: NaN is not a finite number'),
        (dict(pretrained_cfg=dict(input_size=[3, 32])), 'Cannot load|input_size must be'),
        (dict(pretrained_cfg=dict(crop_pct=0)), 'crop_pct must be a number above 0, got 0'),
        (
            dict(pretrained_cfg=dict(crop_mode='middle')),
            "crop_mode must be one of center, squash, border, got 'middle'",
        ),
    ],
)
def test_config_that_is_wrong(changes, match, tmp_path):
    folder = write_config(tmp_path / 'm', **changes)
    with pytest.raises(ValueError, match=match):
        load_classifier(folder, ModelConfig(device='cpu'))
    with pytest.raises(ValueError, match=match):
        match_classes(load_model(folder)[0], list('abcde'))


@pytest.mark.parametrize('number', [5, 9])
def test_weights_that_are_missing_are_named(number, tmp_path):
    """Whatever config.json says of strictness, and for other classes too, where timm takes what there is."""
    folder = write_config(tmp_path / 'm', model_args=dict(pretrained_strict=False))
    model, args = load_model(f'local-dir:{folder}', num_classes=number)  # all there
    assert model.num_classes == number
    assert 'pretrained_strict' not in args
    save_model(model, tmp_path / 'again', model_args=args)
    assert 'pretrained_strict' not in (tmp_path / 'again' / 'config.json').read_text()
    tensors = load_file(folder / 'model.safetensors')
    del tensors['stages.1.0.conv_dw.weight']
    save_file(tensors, folder / 'model.safetensors')
    for source in (folder, write_config(tmp_path / 'strict')):
        save_file(tensors, source / 'model.safetensors')
        with pytest.raises(ValueError, match=r'Missing key\(s\) in state_dict: "stages\.1\.0\.conv_dw\.weight"'):
            load_model(f'local-dir:{source}', num_classes=number)


def test_new_head_for_other_classes(tmp_path):
    args = {**TINY_STUDENT, 'global_pool': 'avg'}
    trained = timm.create_model('hdkd_student', **args)
    save_model(trained, tmp_path / 'm', list('abcde'), args)
    model, _ = load_model(f'local-dir:{tmp_path / "m"}', num_classes=3)
    assert (model.head.out_features, model.head_dist.out_features, model.global_pool) == (3, 3, 'avg')
    assert 'label_names' not in model.pretrained_cfg
    assert torch.equal(model.norm.weight, trained.norm.weight)
    same, _ = load_model(f'local-dir:{tmp_path / "m"}', num_classes=5)
    assert torch.equal(same.head_dist.weight, trained.head_dist.weight)


def test_wrong_keys_are_named(tmp_path):
    state, _, _ = load_published('student')
    path = tmp_path / 'a.pth'

    def load(state, *args, **kwargs):
        torch.save(state, path)
        return load_model(path, *args, model_kwargs={'head_dim': 8, **kwargs})

    with pytest.raises(ValueError, match=r'1 missing: head_dist\.bias'):
        load({k: v for k, v in state.items() if k != 'head_distill.bias'})
    with pytest.raises(ValueError, match=r'1 unexpected: neck\.weight'):
        load(dict(state, **{'neck.weight': torch.zeros(3)}))
    with pytest.raises(ValueError, match=r'1 of another shape: norm\.bias \(3,\) instead of \(32,\)'):
        load(dict(state, **{'DFLT_module.transformer.norm.bias': torch.zeros(3)}))
    with pytest.raises(ValueError, match=r'patch_embed\.proj\.weight. is missing'):
        load({k: v for k, v in state.items() if 'to_patch_embedding' not in k})
    with pytest.raises(ValueError, match=r'Not a checkpoint of an HDKD network.*fc\.weight'):
        load({'fc.weight': torch.zeros(3)})
    with pytest.raises(ValueError, match='16 wide, not a whole number of heads of 32: .*head_dim=WIDTH'):
        load(state, head_dim=None)
    assert load(state, head_dim=None, num_heads=2)[0].blocks[0].attn.head_dim == 8
    with pytest.raises(ValueError, match='its tensors have other shapes'):
        load(dict(state, **{'head_cls.weight': torch.tensor(1.0)}))
    with pytest.raises(ValueError, match='student with distillation token, not .hdkd_student_plain'):
        load(state, 'hdkd_student_plain')
    with pytest.raises(ValueError, match="Unknown model 'resnet18'"):
        load(state, 'resnet18')
    torch.save({1: torch.zeros(2)}, path)
    with pytest.raises(ValueError, match='keys are not strings'):
        load_model(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match='holds a list'):
        load_model(path)


@pytest.mark.parametrize(
    'change', [torch.Tensor.long, torch.Tensor.to_sparse, lambda weight: weight + 0j, lambda weight: weight.to('meta')]
)
def test_weights_that_would_be_copied_wrongly(change, tmp_path):
    weights = create_teacher().state_dict()
    weights['head.weight'] = change(weights['head.weight'])
    with pytest.raises(ValueError, match=r'1 not floating-point: head\.weight'):
        load_model(save_checkpoint(tmp_path, weights))


@pytest.mark.parametrize(
    ('name', 'size', 'pool_size'),
    [
        ('hdkd_teacher', (64, 64), [8, 8]),
        ('hdkd_teacher', (96, 100), [12, 13]),
        ('hdkd_teacher_s4', (64, 64), [4, 4]),
        ('resnet10t', (64, 96), [2, 3]),
        ('pit_ti_224', (224, 224), None),
        ('hdkd_student', (64, 64), None),
    ],
)
def test_size_of_the_last_map(name, size, pool_size, tmp_path):
    args = dict(num_classes=2, **({'img_size': size} if name.startswith('hdkd') else {}))
    model = timm.create_model(name, **args)
    save_model(model, tmp_path / 'm', ['a', 'b'], args, input_size=(3, *size))
    cfg = read_model_config(tmp_path / 'm')['pretrained_cfg']
    assert (cfg['input_size'], cfg.get('pool_size')) == ([3, *size], pool_size)
    if pool_size:
        assert list(model.forward_features(torch.zeros(1, 3, *size)).shape[-2:]) == pool_size
