"""Distillation methods in real processes: killed and resumed, and in two processes at a time."""

import runpy
import signal
import sys

import pytest
import torch
from helpers import write_images
from processes import TORCHRUN, flags, hdkd, run_two, start
from safetensors.torch import load_file
from training_helpers import STUDENT, save_teacher

# what has a state beside the student: a memory of the images with constants of the first batch, a schedule, and layers
METHODS = ['crd', 'dkd', 'reviewkd', 'ofa']
KILLED = """
import os
import signal
import sys
from hdkd_timm.cli import main
from hdkd_timm.training.trainer import Trainer

def record(self, *args):
    before(self, *args)
    if self.state.epoch == 1 and self.state.step == 3:
        os.kill(os.getpid(), signal.SIGKILL)

before = Trainer.record
Trainer.record = record
sys.exit(main())
"""
# one step of a student without BatchNorm, whose statistics are those of a process's own batch
STEP = """
import sys
import torch
import timm
from hdkd_timm import DistillationTask
from hdkd_timm.utils.distributed import init_world, leave_world

world = init_world('cpu')
torch.manual_seed(0)
vit = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2)
student = timm.create_model('vit_tiny_patch16_224', num_classes=3, **vit)
teacher = timm.create_model('resnet10t', num_classes=3)
methods = {'kd': {}, 'fitnet': {'projector': 'conv', 'stages': '2:3'}}
task = DistillationTask(student, teacher, list(methods), methods, input_size=(32, 32), verbose=False).train()
if world.is_distributed:
    task.prepare_distributed()
images, target = torch.randn(8, 3, 32, 32), torch.arange(8) % 3
own = slice(world.rank * 8 // world.size, (world.rank + 1) * 8 // world.size)
task(images[own], target[own])['loss'].backward()
if world.is_primary:
    module = task.trainable_module.module if world.is_distributed else task.trainable_module
    torch.save({name: p.grad for name, p in module.named_parameters() if p.grad is not None}, sys.argv[1])
leave_world(world)
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('methods')
    write_images(folder / 'data' / 'train', number=8)
    write_images(folder / 'data' / 'test', number=3, seed=1)
    save_teacher(folder / 'teacher')
    return folder


def arguments(folder, experiment, *more):
    settings = flags(
        data_dir=folder / 'data',
        output=folder / 'runs',
        experiment=experiment,
        teacher_checkpoint=folder / 'teacher',
        img_size=32,
        epochs=2,
        batch_size=4,
        workers=0,
        device='cpu',
        bootstrap=0,
        recovery_interval=2,
        model_ema=True,
        no_report=True,
        model_kwargs=STUDENT,
    )
    return ['distill', *settings, '--method', *METHODS, '--method-args', 'dkd.warmup=0.9', *more]


def test_methods_with_a_state_resume_bit_by_bit(folder):
    result = hdkd(*arguments(folder, 'whole'))
    assert result.returncode == 0, result.stderr
    process = start('-c', KILLED, *arguments(folder, 'killed'))
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    saved = torch.load(folder / 'runs' / 'killed' / 'student' / 'last.pth', weights_only=True)
    assert saved['progress'][0]['step'] == 2
    for name in ('task_state', 'task_state_ema'):
        assert {'crd.memory_student', 'crd.z_teacher'} < set(saved[name]['methods'])
        assert any(key.startswith('reviewkd.') for key in saved[name]['methods'])
    result = hdkd(*arguments(folder, 'killed', '--resume'))
    assert result.returncode == 0, result.stderr
    runs = [folder / 'runs' / name / 'student' for name in ('killed', 'whole')]
    ours, theirs = (load_file(path / 'best' / 'model.safetensors') for path in runs)
    assert all(ours[name].equal(value) for name, value in theirs.items())
    states = [torch.load(path / 'last.pth', weights_only=True)['task_state']['methods'] for path in runs]
    assert all(states[0][name].equal(value) for name, value in states[1].items())
    assert not any(name.startswith(('crd', 'reviewkd', 'ofa', 'methods')) for name in theirs)


def test_two_processes_have_the_gradient_of_one(tmp_path, monkeypatch):
    (tmp_path / 'step.py').write_text(STEP)
    monkeypatch.setattr(sys, 'argv', ['step.py', str(tmp_path / '1.pt')])
    runpy.run_path(str(tmp_path / 'step.py'))
    codes, _, errors = run_two(TORCHRUN, [tmp_path / 'step.py', tmp_path / '2.pt'])
    assert codes == [0, 0], errors
    one, two = (torch.load(tmp_path / f'{n}.pt', weights_only=True) for n in (1, 2))
    assert any(name.startswith('methods.fitnet.') for name in one)
    for name, grad in one.items():
        torch.testing.assert_close(two[name], grad, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f'{name}: {text}')
