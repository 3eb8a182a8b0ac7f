"""`cache_logits`: run teachers once over the training images, and store their logits for any number of students."""

import dataclasses
import logging
from pathlib import Path
from typing import Any, Dict

import torch

from ..data.loader import SplitLoader
from ..distillation.checks import check_input
from ..distillation.task import DistillationTask
from ..utils.config import setting
from ..utils.distributed import init_world, leave_world
from ..utils.files import PathLike, check_output_file
from ..utils.image_size import to_height_width
from ..utils.memory import available_memory, format_bytes, kept_memory
from ..utils.precision import warn_of_slow_autocast
from ..utils.signals import Interrupted
from .builders import create_network
from .config import DistillConfig
from .context import RunContext, prepare_run
from .distill import create_teachers
from .logger import Progress
from .teacher_logits import (
    TeacherLogits,
    check_views,
    describe_crops,
    describe_versions,
    list_train_images,
    write_teacher_logits,
)

_logger = logging.getLogger(__name__)


@dataclasses.dataclass
class CacheLogitsConfig(DistillConfig):
    """Settings of `cache_logits`: those of `distill` that decide what teachers and student see."""

    views: int = setting(
        10,
        'fixed augmented views of each image; epoch e of a training has view e modulo N. 0 for one view without'
        ' augmentation: the student is then augmented as usual and sees another image than the teacher did',
        at_least=0,
        group='stored logits',
        common=True,
    )


def cache_logits(config: CacheLogitsConfig, out: PathLike) -> Dict[str, Any]:
    """Write the logits of trained teachers for all training images on fixed views, for `distill` with `teacher_logits`.

    Each teacher runs once over each view. The file is written whole or not at all.

    Args:
        config: Settings; images, augmentation, seed and sizes must be those of the trainings to come.
        out: File to write, .safetensors.

    Returns:
        'teachers' (names), 'views', 'images', 'classes' and 'bytes' of the file.

    Raises:
        FileExistsError: if the file exists.
        FileNotFoundError, ValueError, ImportError: for wrong settings, images or teachers, see `create_datasets` and
            `check_views`.
        MemoryError: if the logits do not fit into memory.
        FloatingPointError: if a logit is not finite in float16.
        Interrupted: if a signal asked to stop; nothing is written.
    """
    if Path(out).suffix != '.safetensors':
        raise ValueError(f"--out '{out}' must end in .safetensors.")
    check_output_file(out, '--out')
    if not config.teacher_checkpoint:
        raise ValueError('Logits are stored of trained teachers: give --teacher-checkpoint.')
    check_views(config, config.views)
    world = init_world(config.device)
    try:
        if world.is_distributed:
            raise ValueError(f'Logits are stored by one process, not {world.size}: start it without a launcher.')
        context = prepare_run(config, world, resume=False)
        images = list_train_images(context)
        teachers = create_teachers(context, dataclasses.replace(config, method=('kd',), method_args={}))
        student, _ = create_network(config.model, config, context.classes, **config.model_kwargs)
        for network in teachers.values():
            check_input(network.model, network.config.input_size)
        size = to_height_width(config.teacher_img_size) if config.teacher_img_size else None
        task = DistillationTask(
            student,
            [network.model for network in teachers.values()],
            ['kd'],
            input_size=config.input_size[1:],
            teacher_size=size,
            teachers='separate',
            verbose=False,
        ).to(world.device)
        stored = TeacherLogits(
            torch.empty(0),
            images,
            context.classes,
            [network.model.pretrained_cfg.get('architecture', name) for name, network in teachers.items()],
            list(config.teacher_checkpoint),
            config.views,
            describe_crops(config, config.views, context.data_config(student, config.img_size)),
            describe_versions(),
        )
        with context.signals, kept_memory(world.device):
            stored.logits = compute_logits(context, task, create_view_loader(context, task, config.views), stored)
            write_teacher_logits(stored, out)
    finally:
        leave_world(world)
    facts = dict(views=config.views, images=len(images), classes=context.classes)
    return dict(facts, teachers=stored.teachers, bytes=Path(out).stat().st_size)


def create_view_loader(context: RunContext, task: DistillationTask, views: int) -> SplitLoader:
    """A loader of all training images in order, whose epochs are the views; 0 for one without augmentation."""
    config = context.config
    if not views:
        plain: Dict[str, Any] = dict(aug='none', aug_device=False, load_size=None, aa=None, sampler=None)
        context = dataclasses.replace(context, config=dataclasses.replace(config, **plain))
    loaders = context.create_loaders(
        task.get_eval_model(), config.img_size, 'train', with_index=True, views=max(1, views), in_order=True
    )
    return loaders['train']


@torch.inference_mode()
def compute_logits(
    context: RunContext, task: DistillationTask, loader: SplitLoader, stored: TeacherLogits
) -> torch.Tensor:
    """Logits of all teachers, views and images, (M, V, N, K), float16.

    Raises:
        MemoryError, FloatingPointError, Interrupted: as `cache_logits`.
    """
    config, device, signals = context.config, context.world.device, context.signals
    if config.amp:
        warn_of_slow_autocast(device, getattr(torch, config.amp_dtype))
    shape = (len(stored.teachers), max(1, stored.views), len(stored.images), len(stored.classes))
    needed = 2 * shape[0] * shape[1] * shape[2] * shape[3]
    if 2 * needed > available_memory():  # the logits, and the file before it is written
        raise MemoryError(
            f'The logits of {shape[0]} teachers, {shape[1]} views and {shape[2]:,} images need'
            f' {format_bytes(2 * needed)} of memory, {format_bytes(available_memory())} are available: lower --views.'
        )
    logits = torch.empty(shape, dtype=torch.float16)
    for view in range(shape[1]):
        progress = Progress(f'view {view + 1}/{shape[1]}', shape[2])
        for images, _, index in signals.watch(loader.epoch(view)):
            with torch.autocast(device.type, getattr(torch, config.amp_dtype), enabled=config.amp):
                outputs = task.teachers(images)
            logits[:, view, index.cpu()] = torch.stack([output.logits.cpu().half() for output in outputs])
            progress.update(len(images))
        progress.close()
        if signals.received:
            raise Interrupted(signals.received, '', is_saved=False)
    for teacher, of_teacher in zip(stored.teachers, logits):
        if not torch.isfinite(of_teacher).all():
            raise FloatingPointError(
                f'Logits of teacher {teacher} are not finite in float16, whose largest number is 65504: they cannot be'
                ' stored.'
            )
    return logits
