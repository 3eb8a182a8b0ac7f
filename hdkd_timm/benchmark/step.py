"""A training step of HDKD in several forms, next to one that runs the stages again for each map, as published."""

import dataclasses
import gc
import multiprocessing
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import timm
import torch
from timm.utils import reparameterize_model
from torch import nn

from ..distillation.hdkd_task import HDKDTask
from ..distillation.losses import hdkd_loss
from ..utils.memory import keep_freed_memory
from .config import BenchConfig
from .tables import Row
from .timing import take_turns

STAGES = (1, 2, 3)
NUM_CLASSES = 7  # as published


@dataclasses.dataclass(frozen=True)
class StepForm:
    """How a training step is computed."""

    repeat_stages: bool = False  # once for each of their maps
    channels_last: bool = False
    fused: bool = False  # the teacher
    kept: bool = False  # freed memory, see `keep_freed_memory`
    compiled: bool = False
    amp: bool = False


STEP_FORMS = {
    'stages again': StepForm(repeat_stages=True),
    'one pass': StepForm(),
    '+ channels-last': StepForm(channels_last=True),
    '+ fused teacher': StepForm(channels_last=True, fused=True),
    '+ kept memory': StepForm(channels_last=True, fused=True, kept=True),
    '+ compiled': StepForm(channels_last=True, fused=True, kept=True, compiled=True),
    '+ mixed precision': StepForm(channels_last=True, fused=True, kept=True, compiled=True, amp=True),
}


def _published_loss(
    student: nn.Module,
    teacher: nn.Module,
    images: torch.Tensor,
    targets: torch.Tensor,
) -> torch.Tensor:
    """The loss as the published loop computes it: one pass for the logits, and one from the image for each map."""
    student.set_distilled_training(True)
    cls_logits, dist_logits = student(images)
    student.set_distilled_training(False)
    with torch.no_grad():
        teacher_logits = teacher(images)
    student_maps, teacher_maps = [], []
    for stage in STAGES:
        student_maps.append(student.stages[:stage](images))
        with torch.no_grad():
            teacher_maps.append(teacher.stages[:stage](images))
    return hdkd_loss(cls_logits, dist_logits, teacher_logits, targets, student_maps, teacher_maps)['loss']


def _create_task(form: StepForm, student: nn.Module, teacher: nn.Module, device: torch.device) -> HDKDTask:
    task = HDKDTask(student, teacher, verbose=False).to(device).train()
    if not form.fused:
        task.teachers.models[0] = teacher
        if not form.channels_last:  # undo the task's conversion of the teacher's images
            teacher.register_forward_pre_hook(lambda module, args: args[0].contiguous())
            forward_intermediates = teacher.forward_intermediates
            teacher.forward_intermediates = lambda x, *args: forward_intermediates(x.contiguous(), *args)
    if form.compiled:
        task.compile()
    return task


def create_training(
    form: StepForm,
    batch_size: int,
    img_size: int,
    device: torch.device,
    amp_dtype: torch.dtype = torch.bfloat16,
) -> Tuple[Callable[[], torch.Tensor], torch.optim.Optimizer]:
    """The loss of HDKD with the full networks on random images, and the optimiser of the student, AdamW."""
    torch.manual_seed(0)
    args = dict(img_size=img_size, num_classes=NUM_CLASSES)
    teacher = timm.create_model('hdkd_teacher', **args).to(device).eval().requires_grad_(False)
    student = timm.create_model('hdkd_student', **args).to(device)
    images = torch.randn(batch_size, 3, img_size, img_size, device=device)
    targets = torch.randint(student.num_classes, (batch_size,), device=device)
    if form.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
        student.to(memory_format=torch.channels_last)
        teacher.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-5)
    if form.repeat_stages:
        for module in student.modules():  # with a hook a layer keeps what its backward pass needs, as published
            module.register_forward_hook(lambda *_: None)
    task = None if form.repeat_stages else _create_task(form, student, teacher, device)

    def compute_loss() -> torch.Tensor:
        with torch.autocast(device.type, amp_dtype, enabled=form.amp):
            return _published_loss(student, teacher, images, targets) if task is None else task(images, targets)['loss']

    return compute_loss, optimizer


def create_step(
    form: StepForm,
    batch_size: int,
    img_size: int,
    device: torch.device,
    amp_dtype: torch.dtype = torch.bfloat16,
) -> Callable[[], torch.Tensor]:
    """A training step of HDKD with the full networks: forward, loss, backward, AdamW. It returns the loss."""
    compute_loss, optimizer = create_training(form, batch_size, img_size, device, amp_dtype)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = compute_loss()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _resident_bytes(key: str) -> int:
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def _measure_memory(form: StepForm, batch_size: int, img_size: int, device: torch.device, results: Any) -> None:
    """Put into a queue how many bytes a step takes at its peak, on top of weights, gradients and optimiser state."""
    keep_freed_memory(form.kept)
    step = create_step(form, batch_size, img_size, device)
    step()
    step()
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        results.put(torch.cuda.max_memory_allocated() - before)
        return
    keep_freed_memory(False)  # gives back what was kept
    keep_freed_memory(form.kept)
    before = _resident_bytes('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')  # resets the peak
    step()
    results.put(_resident_bytes('VmHWM') - before)


def measure_memory(form: StepForm, config: BenchConfig, device: torch.device) -> Optional[int]:
    """Peak memory in bytes of a step in a process of its own, on top of what persists between steps; None if the system
    does not report it."""
    if device.type != 'cuda' and not Path('/proc/self/clear_refs').exists():
        return None
    context = multiprocessing.get_context('spawn')
    results = context.SimpleQueue()
    process = context.Process(target=_measure_memory, args=(form, config.batch_size, config.img_size, device, results))
    process.start()
    process.join()
    return results.get() if process.exitcode == 0 else None


def _check_losses(steps: Dict[str, Callable[[], torch.Tensor]], forms: Dict[str, StepForm]) -> None:
    """Raise RuntimeError unless the third step of all forms has the same loss: else the comparison is meaningless."""
    losses = {name: [float(step()) for _ in range(3)][-1] for name, step in steps.items()}
    expected = losses['stages again']
    for name, loss in losses.items():
        if not abs(loss / expected - 1) < (5e-2 if forms[name].amp else 1e-3):
            raise RuntimeError(f"The loss of step '{name}' is {loss}, but that of step 'stages again' is {expected}.")


def measure_steps(config: BenchConfig, device: torch.device) -> List[Row]:
    """Time the HDKD step in all its forms, and student and teacher alone in the last of them."""
    amp_dtype = getattr(torch, config.amp_dtype)
    has_kept = device.type == 'cpu' and keep_freed_memory(False)
    forms = {
        name: form
        for name, form in STEP_FORMS.items()
        if (config.compiled or not form.compiled)
        and (config.amp or not form.amp)
        and (has_kept or not form.kept or form.compiled)
    }
    steps = {
        name: create_step(form, config.batch_size, config.img_size, device, amp_dtype) for name, form in forms.items()
    }
    _check_losses(steps, forms)
    last = list(forms.values())[-1]
    steps.update(_create_parts(last, config, device, amp_dtype))
    kept = tuple(name for name in steps if has_kept and forms.get(name, last).kept)
    seconds = take_turns(steps, config.rounds, device, kept)
    rows = []
    for name, value in seconds.items():
        memory = measure_memory(forms[name], config, device) if config.memory and name in forms else None
        rows.append(
            dict(
                part='step',
                name=name,
                img_size=config.img_size,
                batch_size=config.batch_size,
                ms=1000 * value,
                ratio=seconds['stages again'] / value,
                memory=memory,
            )
        )
    return rows


def _create_parts(
    form: StepForm,
    config: BenchConfig,
    device: torch.device,
    amp_dtype: torch.dtype,
) -> Dict[str, Callable[[], Any]]:
    """The lower bound of any HDKD step: the student's own training step, and a forward pass of the fused teacher."""
    student = timm.create_model('hdkd_student', img_size=config.img_size, num_classes=NUM_CLASSES).to(device)
    teacher = reparameterize_model(timm.create_model('hdkd_teacher', num_classes=NUM_CLASSES).eval()).to(device)
    images = torch.randn(config.batch_size, 3, config.img_size, config.img_size, device=device)
    targets = torch.randint(student.num_classes, (config.batch_size,), device=device)
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-5)
    images = images.contiguous(memory_format=torch.channels_last)
    forward_student, forward_teacher = (model.to(memory_format=torch.channels_last) for model in (student, teacher))
    if form.compiled:
        forward_student, forward_teacher = torch.compile(student), torch.compile(teacher)

    def train_student() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, amp_dtype, enabled=form.amp):
            loss = nn.functional.cross_entropy(forward_student(images), targets)
        loss.backward()
        optimizer.step()

    def run_teacher() -> None:
        with torch.no_grad(), torch.autocast(device.type, amp_dtype, enabled=form.amp):
            forward_teacher(images)

    return {'student alone': train_student, 'teacher alone': run_teacher}
