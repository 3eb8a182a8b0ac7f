import json
import logging
import pickle
import shutil

import pytest
import timm
import torch
from helpers import TINY_STUDENT, TINY_TEACHER, load_reference, strip_prefix
from safetensors.torch import load_file, save_file
from torch import nn

from hdkd_timm.evaluation.classifier import ModelConfig, load_classifier
from hdkd_timm.models.checkpoint import (
    convert_checkpoint,
    load_model,
    save_model,
)
from hdkd_timm.models.checkpoint_file import read_checkpoint
from hdkd_timm.models.published import convert_state_dict
from hdkd_timm.training.builders import create_teacher
from hdkd_timm.training.config import DistillConfig

# what keys and shapes of the fixtures' networks don't show: heads of 8
MODEL_KWARGS = {'teacher': {}, 'student': dict(head_dim=8), 'student_plain': dict(head_dim=8)}
NAMES = {'teacher': 'hdkd_teacher', 'student': 'hdkd_student', 'student_plain': 'hdkd_student_plain'}


def load_teacher(name, classes, in_chans=3, model_name=None, label_names=None):
    config = DistillConfig(teacher_checkpoint=str(name), in_chans=in_chans, teacher_label_names=label_names)
    return create_teacher(config, classes, model_name)


def published(name):
    """State dict, input and logits that the published code wrote."""
    reference, _ = load_reference(f'{name}_seed0')
    return strip_prefix(reference, 'state.'), reference['input'], reference['eval.logits']


def wrap(state, form):
    if 'module' in form:
        state = {f'module.{name}': value for name, value in state.items()}
    if 'state_dict' in form:
        state = {'state_dict': state, 'epoch': 3, 'optimizer': {'state': {}, 'param_groups': [{'lr': 0.1}]}}
    elif 'model' in form:
        state = {'model': state, 'best_acc': 0.9}
    return state


@pytest.mark.parametrize('form', ['bare', 'module', 'state_dict', 'model', 'state_dict module', 'safetensors'])
@pytest.mark.parametrize('name', NAMES)
def test_published_checkpoint_becomes_a_model_folder(name, form, tmp_path):
    state, x, logits = published(name)
    if form == 'safetensors':
        path = tmp_path / 'published.safetensors'
        save_file(state, path)
    else:
        path = tmp_path / 'published.pth'
        torch.save(wrap(state, form), path)
    model_name, args = convert_checkpoint(
        path, tmp_path / 'out', label_names=['v', 'w', 'x', 'y', 'z'], **MODEL_KWARGS[name])
    assert (model_name, args['num_classes']) == (NAMES[name], 5)
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == ['config.json', 'model.safetensors']
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    torch.testing.assert_close(model(x), logits, rtol=0, atol=1e-5)
    assert list(model.pretrained_cfg['label_names']) == ['v', 'w', 'x', 'y', 'z']
    assert model.pretrained_cfg['input_size'][0] == 3
    assert not list(tmp_path.glob('.out-*'))


@pytest.mark.parametrize('name', NAMES)
def test_published_checkpoint_loads_through_timm(name, tmp_path):
    state, x, logits = published(name)
    torch.save(wrap(state, 'state_dict module'), tmp_path / 'published.pth')
    kwargs = TINY_TEACHER if name == 'teacher' else TINY_STUDENT
    model = timm.create_model(
        NAMES[name], pretrained=True, **kwargs,
        pretrained_cfg_overlay=dict(file=str(tmp_path / 'published.pth'), num_classes=5, input_size=(3, 32, 32)))
    torch.testing.assert_close(model.eval()(x), logits, rtol=0, atol=1e-5)


def test_squeeze_and_excitation_checkpoint(tmp_path):
    model = timm.create_model('hdkd_teacher', **TINY_TEACHER, attn='se')
    # the CBAM network's published names, but for its attention, are the same
    names = convert_state_dict({name: torch.tensor(i) for i, name in enumerate(published('teacher')[0])})
    names = dict(zip(names, published('teacher')[0]))
    published_state = {}
    for name, value in model.state_dict().items():
        if '.attn.fc' in name:
            stage, block = name.split('.')[1:3]
            layer = {'fc1': 0, 'fc2': 2}[name.split('.')[4]]
            published_state[f'stage{int(stage) + 1}.{block}.conv.fn.6.fc.{layer}.weight'] = value[:, :, 0, 0]
        else:
            published_state[names[name]] = value
    torch.save(published_state, tmp_path / 'se.pth')
    loaded, args = load_model(tmp_path / 'se.pth')
    assert args['attn'] == 'se'
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_stride_four_is_named(tmp_path):
    model = timm.create_model('hdkd_student_s4', **TINY_STUDENT | dict(img_size=64))
    torch.save(model.state_dict(), tmp_path / 's4.pth')
    loaded, _ = load_model(tmp_path / 's4.pth', 'hdkd_student_s4', model_kwargs=dict(head_dim=8))
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(loaded.eval()(x), model.eval()(x))


@pytest.mark.parametrize(('kwargs', 'shape'), [
    (dict(in_chans=1, img_size=(48, 80), num_classes=3), (1, 48, 80)),
    (dict(in_chans=4, num_classes=2), (4, 32, 32)),
    (dict(global_pool='avg', drop_rate=0.1), (3, 32, 32)),
    (dict(dynamic_img_size=True), (3, 32, 32)),
    (dict(distilled=False, attn='se', stem_stride=4), (3, 32, 32)),
])
def test_saved_model_is_built_again(kwargs, shape, tmp_path):
    args = {**TINY_STUDENT, **kwargs}
    model = timm.create_model('hdkd_student', **args).eval().to(memory_format=torch.channels_last)
    save_model(model, tmp_path / 'm', model_args=args)
    again = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    x = torch.randn(2, *shape)
    torch.testing.assert_close(again(x), model(x), rtol=1e-4, atol=1e-5)
    assert again.pretrained_cfg['input_size'] == shape or list(again.pretrained_cfg['input_size']) == list(shape)
    weight = model.stages[1][0].conv_dw.weight  # the model itself is untouched
    assert weight.stride() == torch.empty_like(weight, memory_format=torch.channels_last).stride()


@pytest.mark.parametrize('name', ['hdkd_teacher', 'hdkd_student', 'hdkd_student_plain'])
@pytest.mark.parametrize(('source', 'target'), [(3, 1), (3, 4), (3, 6), (1, 3), (4, 1), (4, 4), (4, 3), (1, 1)])
def test_first_conv_is_adapted(name, source, target, tmp_path, caplog):
    args = {**(TINY_TEACHER if 'teacher' in name else TINY_STUDENT), 'in_chans': source}
    model = timm.create_model(name, **args)
    save_model(model, tmp_path / 'm', model_args=args)
    caplog.set_level(logging.WARNING)
    caplog.clear()
    again = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True, in_chans=target)
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
    again = timm.create_model(f"local-dir:{tmp_path / 'ramp'}", pretrained=True, img_size=(64, 64))
    assert torch.equal(again.pos_embed[:, :prefix], model.pos_embed[:, :prefix])
    grid = again.pos_embed[:, prefix:].view(4, 4, 32)
    torch.testing.assert_close(grid, grid[:1, :, :1].expand(4, 4, 32), rtol=0, atol=1e-5)
    assert (grid[0, 1:, 0] > grid[0, :-1, 0]).all()
    same = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True)
    assert same.pos_embed.shape == (1, prefix + 18, 32)
    number = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True, num_classes=9)
    assert number(torch.randn(1, 3, 48, 96)).shape == (1, 9)
    assert torch.equal(number.norm.weight, same.norm.weight)


def test_position_embedding_that_fits_is_left_alone(tmp_path):
    args = {**TINY_STUDENT, 'img_size': (64, 144)}  # 4 x 9 patches, as many as 6 x 6
    model = timm.create_model('hdkd_student', **args)
    torch.save(model.state_dict(), tmp_path / 'own.pth')
    again = timm.create_model(
        'hdkd_student', pretrained=True, **args,
        pretrained_cfg_overlay=dict(file=str(tmp_path / 'own.pth'), num_classes=5))
    assert torch.equal(again.pos_embed, model.pos_embed)


def test_plain_student_made_distilled_is_adapted(tmp_path):
    args = {**TINY_STUDENT, 'distilled': True}
    save_model(timm.create_model('hdkd_student_plain', **args), tmp_path / 'm', model_args=args)
    again = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True, num_classes=9)
    assert again(torch.randn(1, 3, 32, 32)).shape == (1, 9)


def test_model_args_need_not_be_given(tmp_path):
    model = timm.create_model('hdkd_student_s4', **{**TINY_STUDENT, 'img_size': 64})
    model.set_input_size((96, 64))
    model.reset_classifier(3, 'avg')
    save_model(model, tmp_path / 'm')
    again = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    x = torch.randn(2, 3, 96, 64)
    torch.testing.assert_close(again(x), model.eval()(x))


def test_wrong_prefix_tokens_are_explained(tmp_path):
    save_model(timm.create_model('hdkd_student', **TINY_STUDENT), tmp_path / 'm', model_args=TINY_STUDENT)
    with pytest.raises(ValueError, match='has a distillation token .* use hdkd_student for'):
        timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True, distilled=False)


class Malicious:
    def __reduce__(self):
        return print, ('executed',)


@pytest.mark.parametrize('write', [
    lambda path: torch.save({'state_dict': {}, 'extra': Malicious()}, path),
    lambda path: torch.save(nn.Linear(2, 2), path),
    lambda path: path.write_bytes(pickle.dumps(Malicious())),
])
def test_file_that_would_execute_code_is_refused(write, tmp_path, capsys):
    write(tmp_path / 'evil.pth')
    with pytest.raises(ValueError, match=r"evil\.pth'(: loading it would execute code| is damaged, or holds what)"):
        read_checkpoint(tmp_path / 'evil.pth')
    assert 'executed' not in capsys.readouterr().out


@pytest.mark.parametrize('name', ['a.pth', 'a.safetensors'])
def test_damaged_files(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=name):
        read_checkpoint(tmp_path / name)
    (tmp_path / name).write_bytes(b'no checkpoint at all')
    with pytest.raises(ValueError, match='is not a checkpoint'):
        read_checkpoint(tmp_path / name)
    state = {'stage1.0.0.weight': torch.zeros(300)}
    torch.save(state, tmp_path / name) if name.endswith('.pth') else save_file(state, tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-100])
    with pytest.raises(ValueError, match='is not a checkpoint'):
        read_checkpoint(tmp_path / name)


def test_wrong_keys_are_named(tmp_path):
    state, _, _ = published('student')
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
        load(dict(state, **{'head_cls.weight': torch.tensor(1.)}))
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


def test_nothing_is_overwritten_or_left_half_done(tmp_path):
    state, _, _ = published('teacher')
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


def test_load_teacher(tmp_path):
    model = timm.create_model('hdkd_teacher', **TINY_TEACHER | dict(num_classes=2))
    save_model(model, tmp_path / 'm', label_names=['cat', 'dog'], model_args=TINY_TEACHER | dict(num_classes=2))
    teacher, _ = load_teacher(tmp_path / 'm', ['cat', 'dog'])
    assert torch.equal(teacher.head.weight, model.head.weight)
    with pytest.raises(ValueError, match="class 'dog' is not in both"):
        load_teacher(tmp_path / 'm', ['cat', 'fox'])
    with pytest.raises(ValueError, match='the order differs'):
        load_teacher(tmp_path / 'm', ['dog', 'cat'])
    with pytest.raises(ValueError, match='takes 3 channels, the student 1'):
        load_teacher(tmp_path / 'm', ['cat', 'dog'], in_chans=1)
    torch.save(published('teacher')[0], tmp_path / 'a.pth')
    teacher, args = load_teacher(tmp_path / 'a.pth', list('vwxyz'))
    assert args['num_classes'] == 5
    with pytest.raises(ValueError, match='has 5 classes, the data 2'):
        load_teacher(tmp_path / 'a.pth', ['cat', 'dog'])
    for name, content in (('config.json', None), ('config.json', '{"a": 1}'), ('config.json', 'xx'),
                          ('model.safetensors', 'xx')):
        folder = tmp_path / f'broken {name} {content}'.replace('"', '').replace(':', '')
        shutil.copytree(tmp_path / 'm', folder)
        (folder / name).unlink() if content is None else (folder / name).write_text(content)
        with pytest.raises(ValueError, match='Cannot load .*broken .* Expected a complete model folder'):
            load_teacher(folder, ['cat', 'dog'])
    s4 = timm.create_model('hdkd_teacher_s4', **TINY_TEACHER)
    torch.save(s4.state_dict(), tmp_path / 's4.pth')
    teacher, _ = load_teacher(tmp_path / 's4.pth', list('vwxyz'), model_name='hdkd_teacher_s4')
    assert teacher.stages[0][0].conv.stride == (4, 4)
    (tmp_path / 'run').mkdir()
    (tmp_path / 'm').rename(tmp_path / 'run' / 'best')
    for name in (tmp_path / 'run', f"local-dir:{tmp_path / 'run' / 'best'}"):
        teacher, args = load_teacher(name, ['cat', 'dog'])
        assert torch.equal(teacher.head.weight, model.head.weight)
        assert tuple(args['dims']) == TINY_TEACHER['dims']
    with pytest.raises(FileNotFoundError, match='nowhere'):
        load_teacher(tmp_path / 'nowhere', ['cat', 'dog'])


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
    state, x, logits = published('student')
    torch.save(state, tmp_path / 'student.pth')
    model, args = load_model(tmp_path / 'student.pth', 'hdkd_student', model_kwargs=dict(head_dim=8))
    torch.testing.assert_close(model.eval()(x), logits, rtol=0, atol=1e-5)
    assert args['img_size'] == 32
    model, args = load_model(str(tmp_path / 'student.pth'), img_size=32, model_kwargs=dict(num_heads=2))
    assert model.blocks[0].attn.head_dim == 8
    torch.save(published('teacher')[0], tmp_path / 'teacher.pth')
    for name, stride in ((None, (2, 2)), ('hdkd_teacher_s4', (4, 4))):
        assert load_model(tmp_path / 'teacher.pth', name)[0].stages[0][0].conv.stride == stride
    with pytest.raises(ValueError, match='student with distillation token, not .hdkd_student_plain'):
        load_model(tmp_path / 'student.pth', 'hdkd_student_plain', model_kwargs=dict(head_dim=8))


def test_load_model_of_another_size(tmp_path):
    save_model(timm.create_model('hdkd_student', **TINY_STUDENT), tmp_path / 'm', model_args=TINY_STUDENT)
    model, args = load_model(tmp_path / 'm', img_size=48)
    assert tuple(model.img_size) == (48, 48)
    assert args['img_size'] == 48


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


def write_config(folder, **changes):
    """A model folder of the classes a to e whose config.json is changed: place -> values, None to leave one out."""
    save_model(timm.create_model('hdkd_teacher', **TINY_TEACHER), folder, list('abcde'), TINY_TEACHER)
    config = json.loads((folder / 'config.json').read_text())
    for place, values in changes.items():
        (config if place == 'top' else config[place]).update(values)
    (folder / 'config.json').write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(('changes', 'match'), [
    (dict(top=dict(label_names=list('abcd'))), '4 label names for the 5 classes of the model'),
    (dict(top=dict(label_names=list('abcda'))), "duplicate label name 'a'"),
    (dict(top=dict(label_names=[0, 1, 2, 3, 4])), r'label_names must be a list of names, got \[0, 1'),
    (dict(top=dict(label_names={'0': 'a', '2': 'b', '3': 'c', '4': 'd', '5': 'e'})), 'must be a list of names'),
    (dict(top=dict(num_classes=4, label_names=list('abcd')), model_args=dict(num_classes=5)),
     'num_classes contradict each other, 4 in the top level, 5 in model_args'),
    (dict(top=dict(num_classes=None), model_args=dict(num_classes=5), pretrained_cfg=dict(num_classes=None)),
     'num_classes is in model_args only: move it to the top level'),
    (dict(model_args=dict(device='meta')), "model_args hold 'device', which is not an argument of a network"),
    (dict(top=dict(num_classes=4, label_names=list('abcd')), pretrained_cfg=dict(num_classes=4)),
     r'size mismatch for head\.weight'),
    (dict(model_args=dict(features_only=True)),
     "model_args hold 'features_only', which is not an argument of a network"),
    (dict(model_args=dict(checkpoint_path='a.pth')), "model_args hold 'checkpoint_path'"),
    (dict(pretrained_cfg=dict(mean=[0.5, 0.5])), r'mean must be 3 numbers, one per channel, got .0\.5, 0\.5.'),
    (dict(pretrained_cfg=dict(std=[0.5, 0, 0.5])), 'std must be 3 numbers above 0'),
    (dict(pretrained_cfg=dict(std=[0.5, float('nan'), 0.5])), r'config\.json.: NaN is not a finite number'),
    (dict(pretrained_cfg=dict(input_size=[3, 32])), 'Cannot load|input_size must be'),
    (dict(pretrained_cfg=dict(crop_pct=0)), 'crop_pct must be a number above 0, got 0'),
    (dict(pretrained_cfg=dict(crop_mode='middle')), "crop_mode must be one of center, squash, border, got 'middle'"),
])
def test_config_that_is_wrong(changes, match, tmp_path):
    folder = write_config(tmp_path / 'm', **changes)
    with pytest.raises(ValueError, match=match):
        load_classifier(folder, ModelConfig(device='cpu'))
    with pytest.raises(ValueError, match=match):
        load_teacher(folder, list('abcde'))


def test_label_names_by_index(tmp_path):
    names = {str(i): name for i, name in enumerate('vwxyz')}
    folder = write_config(tmp_path / 'm', top=dict(label_names=names))
    assert load_classifier(folder, ModelConfig(device='cpu')).classes == list('vwxyz')


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
    model, _ = load_model(f"local-dir:{tmp_path / 'm'}", num_classes=3)
    assert (model.head.out_features, model.head_dist.out_features, model.global_pool) == (3, 3, 'avg')
    assert 'label_names' not in model.pretrained_cfg
    assert torch.equal(model.norm.weight, trained.norm.weight)
    same, _ = load_model(f"local-dir:{tmp_path / 'm'}", num_classes=5)
    assert torch.equal(same.head_dist.weight, trained.head_dist.weight)


def test_teacher_without_class_names(tmp_path):
    """Its order is asked for where trainers may have sorted them differently; the head is brought into the data's."""
    data = ['glioma', 'meningioma', 'Normal']
    model = timm.create_model('hdkd_teacher', **TINY_TEACHER | dict(num_classes=3)).eval()
    torch.save(model.state_dict(), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r'order is ambiguous: the data has glioma, meningioma, Normal; a trainer .*'
                                         r'Normal, glioma, meningioma\. Specify them by index, --teacher-label-names'):
        load_teacher(tmp_path / 'a.pth', data)
    x = torch.randn(2, 3, 32, 32)
    teacher, args = load_teacher(tmp_path / 'a.pth', data, label_names=['Normal', 'glioma', 'meningioma'])
    torch.testing.assert_close(teacher.eval()(x), model(x)[:, [1, 2, 0]])
    assert list(teacher.pretrained_cfg['label_names']) == data
    teacher, _ = load_teacher(tmp_path / 'a.pth', data, label_names=data)
    torch.testing.assert_close(teacher.eval()(x), model(x))
    with pytest.raises(ValueError, match="class 'tumour' is not in both"):
        load_teacher(tmp_path / 'a.pth', data, label_names=['Normal', 'glioma', 'tumour'])
    # a model that tells its names in another order, which the flag brings into that of the data
    student = timm.create_model('hdkd_student', **TINY_STUDENT | dict(num_classes=3)).eval()
    save_model(student, tmp_path / 'm', ['Normal', 'glioma', 'meningioma'], TINY_STUDENT | dict(num_classes=3))
    with pytest.raises(ValueError, match=r'the order differs \(repeat its names as --teacher-label-names'):
        load_teacher(tmp_path / 'm', data)
    teacher, _ = load_teacher(tmp_path / 'm', data, label_names=['Normal', 'glioma', 'meningioma'])
    torch.testing.assert_close(teacher.eval()(x), student(x)[:, [1, 2, 0]])
    with pytest.raises(ValueError, match='own class names, Normal, glioma, meningioma, which differ from the given'):
        load_teacher(tmp_path / 'm', data, label_names=data)
    # where both orders are one, nothing is asked
    load_teacher(tmp_path / 'a.pth', ['a', 'b', 'c'])


def test_teacher_file_that_leaves_a_choice(tmp_path):
    """The flags of a distillation are the student's: the teacher's go to `hdkd convert`."""
    model = timm.create_model('hdkd_student', **TINY_STUDENT)
    torch.save(model.state_dict(), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r'--model-kwargs head_dim=WIDTH\..* `hdkd convert .*a\.pth FOLDER`'):
        load_teacher(tmp_path / 'a.pth', list('abcde'))
    convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'm', head_dim=8)
    teacher, _ = load_teacher(tmp_path / 'm', list('abcde'))
    assert torch.equal(teacher.head.weight, model.head.weight)


def test_config_is_what_the_hub_reads(tmp_path):
    save_model(timm.create_model('hdkd_student', **TINY_STUDENT), tmp_path / 'm', model_args=TINY_STUDENT)
    config = json.loads((tmp_path / 'm' / 'config.json').read_text())
    assert config['architecture'] == 'hdkd_student'
    assert config['num_classes'] == config['pretrained_cfg']['num_classes'] == 5
    assert 'num_classes' not in config['model_args']  # transformers takes no second one
    assert config['pretrained_cfg']['classifier'] == ['head', 'head_dist']
    assert set(load_file(tmp_path / 'm' / 'model.safetensors')) == set(
        timm.create_model('hdkd_student', **TINY_STUDENT).state_dict())
