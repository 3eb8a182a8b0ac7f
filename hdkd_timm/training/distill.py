"""Distillation: a teacher is trained or given, then a student learns from it, each as in `train`."""

import dataclasses
from typing import Any, Dict, NamedTuple, Optional

import torch
from timm.utils import random_seed
from torch import nn

from ..distillation.checks import check_pair
from ..evaluation.evaluate import evaluate
from ..models.checkpoint import SOURCE_PREFIXES, save_model
from ..models.hdkd import HDKDStudent
from ..utils.distributed import init_world, leave_world
from ..utils.files import write_json
from ..utils.run_files import METRICS_FILE
from .builders import create_network, create_task, create_teacher
from .config import DistillConfig, TrainConfig
from .context import RunContext, open_run, prepare_run
from .results import create_result, write_result
from .resume import read_result
from .train import check_setup
from .trainer import Trainer


class Network(NamedTuple):
    """A network of a run, the arguments that it was built with, and the settings of its training."""

    model: nn.Module
    model_args: Dict[str, Any]
    config: TrainConfig


def distill(config: DistillConfig, resume: bool = False, overwrite: bool = False) -> Dict[str, Any]:
    """Train a teacher (or use one that is given), distil it into a student, test both, save them in a run folder.

    All inputs are checked before the first step and before anything is written.

    Args:
        config: Settings.
        resume: Continue the run of this name, in the network and at the step where it stopped.
        overwrite: Replace a run of this name.

    Returns:
        As `train`, with the networks 'teacher', 'student_alone' (on demand) and 'student'.

    Raises:
        ValueError: if teacher and student do not match, see `check_pair`; and as `train`.
    """
    world = init_world(config.device)
    try:
        context = prepare_run(config, world, resume)
        networks = _create_networks(context, config)
        _check_networks(context, config, networks)
        class_weight = context.class_weights()
        with open_run(context, resume, overwrite, {name: network.config for name, network in networks.items()}):
            results = {}
            for name, network in networks.items():
                if name == 'teacher' and config.teacher_checkpoint:
                    results[name] = _test_given_teacher(context, network)
                else:
                    teacher = networks['teacher'].model if name == 'student' else None
                    task = create_task(network.model, network.config, class_weight, teacher)
                    results[name] = Trainer(name, task, *network, context.folder / name, context).run()
            metrics = dict(context.describe(), models=results)
            if world.is_primary:
                write_json(metrics, context.folder / METRICS_FILE, summed=True)
        return dict(metrics, run=str(context.folder))
    finally:
        leave_world(world)


def _create_networks(context: RunContext, config: DistillConfig) -> Dict[str, Network]:
    """The networks of a run by name, in the order of their training. Each is drawn from the seed anew."""
    num_classes = len(context.classes)
    networks = {'teacher': _prepare_teacher(context, config)}
    random_seed(config.seed)
    student = Network(*create_network(config.model, config, num_classes, **config.model_kwargs), config)
    if config.student_alone:
        random_seed(config.seed)
        kwargs = dict(config.model_kwargs)
        if isinstance(student.model, HDKDStudent) and not (
            config.pretrained or config.model.startswith(SOURCE_PREFIXES)
        ):
            kwargs.update(distilled=False)  # from given weights it starts like the distilled one
        networks['student_alone'] = Network(*create_network(config.model, config, num_classes, **kwargs), config)
    return dict(networks, student=student)


def _prepare_teacher(context: RunContext, config: DistillConfig) -> Network:
    """The teacher to train, with settings of its own, or the one that is given."""
    classes = context.classes
    settings = dataclasses.replace(
        config,
        model=config.teacher,
        opt=config.teacher_opt,
        lr=config.teacher_lr,
        weight_decay=config.teacher_weight_decay,
        sched=config.teacher_sched,
        freeze_stages=0,
        pretrained=config.teacher_pretrained,
        epochs=config.teacher_epochs or config.epochs,
    )
    random_seed(config.seed)
    if not config.teacher_checkpoint:
        return Network(*create_network(config.teacher, settings, len(classes), **config.teacher_kwargs), settings)
    # the default does not contradict what a checkpoint file says of itself
    name: Optional[str] = config.teacher if config.teacher != DistillConfig.teacher else None
    return Network(*create_teacher(config.teacher_checkpoint, config, classes, name), settings)


def _check_networks(context: RunContext, config: DistillConfig, networks: Dict[str, Network]) -> None:
    """Raise ValueError if teacher and student do not match, or for a wrong setting of either."""
    teacher, student = networks['teacher'], networks['student']
    check_pair(
        student.model, teacher.model, config.kd_type, config.stages if config.feature_weight else (), context.input_size
    )
    for network in (teacher, student):
        check_setup(context, network.model, network.config)


def _test_given_teacher(context: RunContext, network: Network) -> Dict[str, Any]:
    """Test a teacher that was not trained here, and save it beside its student. Returns what metrics.json holds."""
    folder, config, world, teacher = context.folder / 'teacher', context.config, context.world, network.model
    finished = read_result(folder, config)
    if finished is not None:
        return finished
    layout = torch.channels_last if config.channels_last else torch.preserve_format
    teacher.to(device=world.device, memory_format=layout)
    loader = context.create_loaders(teacher, context.test_split)[context.test_split]
    predicted = evaluate(teacher, loader, world, channels_last=config.channels_last, signals=context.signals)
    context.stop_if_asked()
    result = create_result(context, 'teacher', teacher, predicted, checkpoint=config.teacher_checkpoint)
    if world.is_primary:
        save_model(teacher, folder / 'best', context.classes, network.model_args, context.input_size, replace=True)
    write_result(context, folder, result, predicted)
    return result
