import pytest
import timm
import torch
from helpers import TINY_STUDENT, TINY_TEACHER, load_published
from safetensors.torch import save_file

from hdkd_timm.models.checkpoint import convert_checkpoint, load_model
from hdkd_timm.models.published import convert_state_dict

# heads of 8, which keys and shapes do not determine
MODEL_KWARGS = {'teacher': {}, 'student': dict(head_dim=8), 'student_plain': dict(head_dim=8)}
NAMES = {'teacher': 'hdkd_teacher', 'student': 'hdkd_student', 'student_plain': 'hdkd_student_plain'}


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
    state, x, logits = load_published(name)
    if form == 'safetensors':
        path = tmp_path / 'published.safetensors'
        save_file(state, path)
    else:
        path = tmp_path / 'published.pth'
        torch.save(wrap(state, form), path)
    model_name, args = convert_checkpoint(
        path, tmp_path / 'out', label_names=['v', 'w', 'x', 'y', 'z'], **MODEL_KWARGS[name]
    )
    assert (model_name, args['num_classes']) == (NAMES[name], 5)
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == ['config.json', 'model.safetensors']
    model = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).eval()
    torch.testing.assert_close(model(x), logits, rtol=0, atol=1e-5)
    assert list(model.pretrained_cfg['label_names']) == ['v', 'w', 'x', 'y', 'z']
    assert model.pretrained_cfg['input_size'][0] == 3
    assert not list(tmp_path.glob('.out-*'))


@pytest.mark.parametrize('name', NAMES)
def test_published_checkpoint_loads_through_timm(name, tmp_path):
    state, x, logits = load_published(name)
    torch.save(wrap(state, 'state_dict module'), tmp_path / 'published.pth')
    kwargs = TINY_TEACHER if name == 'teacher' else TINY_STUDENT
    model = timm.create_model(
        NAMES[name],
        pretrained=True,
        **kwargs,
        pretrained_cfg_overlay=dict(file=str(tmp_path / 'published.pth'), num_classes=5, input_size=(3, 32, 32)),
    )
    torch.testing.assert_close(model.eval()(x), logits, rtol=0, atol=1e-5)


def test_squeeze_and_excitation_checkpoint(tmp_path):
    model = timm.create_model('hdkd_teacher', **TINY_TEACHER, attn='se')
    # the CBAM network's published names, but for its attention, are the same
    names = convert_state_dict({name: torch.tensor(i) for i, name in enumerate(load_published('teacher')[0])})
    names = dict(zip(names, load_published('teacher')[0]))
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
