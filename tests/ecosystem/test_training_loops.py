"""Lightning and accelerate: tasks train the student alone, and what they save leaves out the teacher."""

import runpy

import lightning
import torch
from accelerate import Accelerator
from helpers import create_student, create_teacher
from safetensors.torch import load_file
from snippets import ECOSYSTEM, find_blocks, read_pages

from hdkd_timm import HDKDTask
from hdkd_timm.cli.main import main


def loader():
    data = torch.utils.data.TensorDataset(torch.randn(8, 3, 32, 32), torch.randint(5, (8,)))
    return torch.utils.data.DataLoader(data, batch_size=4)


def copy_weights(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def is_changed(module, before):
    return any(not torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_lightning(tmp_path):
    """The module of the page."""
    [(_, snippet)] = find_blocks(read_pages([ECOSYSTEM / 'lightning.md']), 'python')
    (tmp_path / 'module.py').write_text(snippet.partition('\n\n\nteacher =')[0])
    module = runpy.run_path(str(tmp_path / 'module.py'))['Distillation'](create_student(), create_teacher(), lr=1e-3)
    student, teacher = copy_weights(module.task.trainable_module), copy_weights(module.task.teacher)
    options = dict(accelerator='cpu', logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer = lightning.Trainer(max_epochs=1, **options)
    trainer.fit(module, loader(), loader())
    assert {'loss', 'ce_loss', 'kd_loss', 'feature_loss_3', 'val_accuracy'} <= set(trainer.callback_metrics)
    assert is_changed(module.task.trainable_module, student)
    assert not is_changed(module.task.teacher, teacher)
    assert not module.task.teacher.training

    trainer.save_checkpoint(tmp_path / 'distilled.ckpt')
    state = torch.load(tmp_path / 'distilled.ckpt', weights_only=True)['state_dict']
    assert {name.split('.')[1] for name in state} == {'trainable_module'}
    trainer = lightning.Trainer(max_epochs=2, **options)  # resumes, with the teacher that the module has
    trainer.fit(module, loader(), loader(), ckpt_path=tmp_path / 'distilled.ckpt')
    assert trainer.current_epoch == 2
    args = ['--label-names', *'abcde', '--model-kwargs', 'head_dim=8']
    assert not main(['convert', str(tmp_path / 'distilled.ckpt'), str(tmp_path / 'folder'), *args])
    weights = load_file(tmp_path / 'folder' / 'model.safetensors')
    torch.testing.assert_close(weights['head.weight'], state['task.trainable_module.student.head.weight'])


def test_accelerate(tmp_path):
    accelerator = Accelerator(cpu=True)
    task = HDKDTask(create_student(), create_teacher())
    optimizer = torch.optim.AdamW(task.trainable_module.parameters(), lr=1e-3)
    student, teacher = copy_weights(task.trainable_module), copy_weights(task.teacher)
    task, optimizer, batches = accelerator.prepare(task, optimizer, loader())
    task.train()
    for images, targets in batches:
        accelerator.backward(task(images, targets)['loss'])
        optimizer.step()
        optimizer.zero_grad()
    assert is_changed(task.trainable_module, student)
    assert not is_changed(task.teacher, teacher)

    accelerator.save_state(tmp_path)
    saved = load_file(tmp_path / 'model.safetensors')
    assert {name.split('.')[0] for name in saved} == {'trainable_module'}
    trained = copy_weights(task.trainable_module)
    task.trainable_module.load_state_dict(student)
    accelerator.load_state(tmp_path)
    assert not is_changed(task.trainable_module, trained)
    assert not is_changed(task.teacher, teacher)
