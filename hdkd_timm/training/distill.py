"""Distillation: a teacher is trained or given, then a student learns from it, each as in `train`. Several teachers can
be given, or the logits that they computed before."""

import copy
import dataclasses
import logging
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Union

import torch
from timm.task import TrainingTask
from timm.utils import random_seed
from torch import nn

from ..distillation.checks import check_input, check_pair
from ..distillation.init import init_from_teacher, parse_layers
from ..distillation.teacher import StoredLogits, find_teacher_size
from ..evaluation.classifier import match_thresholds
from ..evaluation.evaluate import evaluate
from ..evaluation.run_results import is_teacher
from ..models.checkpoint import SOURCE_PREFIXES, save_model
from ..models.hdkd import HDKDStudent
from ..utils.distributed import init_world, leave_world
from ..utils.files import write_json
from ..utils.image_size import format_image_size, to_height_width
from ..utils.run_files import METRICS_FILE
from .builders import create_distillation_task, create_network, create_task, create_teacher, example_batch
from .config import DistillConfig, TrainConfig
from .context import RunContext, open_run, prepare_run
from .fast import default_form
from .inputs import describe_inputs
from .results import create_result, describe_problem, write_result
from .resume import read_result
from .teacher_logits import keep_origin, load_teacher_logits
from .train import check_setup
from .trainer import Trainer, explain_batch_norm

_logger = logging.getLogger(__name__)


class Network(NamedTuple):
    """A network of a run, the arguments that it was built with, and the settings of its training.

    Args:
        model: The network.
        model_args: Its arguments.
        config: Settings of its training.
        has_classes: Whether its classes are those of the data. A given teacher, of which only features are compared,
            may have others, or none.
    """

    model: nn.Module
    model_args: Dict[str, Any]
    config: TrainConfig
    has_classes: bool = True


def distill(config: DistillConfig, resume: bool = False, overwrite: bool = False) -> Dict[str, Any]:
    """Train a teacher (or use one that is given), distil it into a student, test both, save them in a run folder.

    All inputs are checked before the first step and before anything is written.

    Args:
        config: Settings.
        resume: Continue the run of this name, in the network and at the step where it stopped.
        overwrite: Replace a run of this name.

    Returns:
        As `train`, with the networks 'teacher' ('teacher_1', ... where there are several; none with stored logits,
        where no teacher takes part, or of other classes than the data), 'student_alone' (on demand) and 'student'.

    Raises:
        ValueError: if teacher and student do not match, see `check_pair`, or stored logits do not fit, see
            `load_teacher_logits`; and as `train`.
    """
    world = init_world(config.device)
    try:
        context = prepare_run(config, world, resume)
        networks = _create_networks(context, config)
        stored = _load_stored(context, config, networks)
        _check_networks(context, config, networks, stored)
        class_weight = context.class_weights()
        configs = {name: network.config for name, network in networks.items()}
        given = [network.model for network in _list_teachers(networks)] if config.teacher_checkpoint else []
        teachers = dict(zip(config.teacher_checkpoint or (), given))
        untested = [name for name, network in networks.items() if not network.has_classes]
        inputs = describe_inputs(teachers, class_weight, context.classes, config.smote, untested)
        with open_run(context, resume, overwrite, configs, inputs):
            results = {}
            if config.teacher_logits:
                keep_origin(context, config)
            if not config.has_teacher and world.is_primary:
                _logger.info('No teacher takes part: --method none trains the student by cross entropy alone.')
            for name, network in networks.items():
                if is_teacher(name) and config.teacher_checkpoint:
                    if network.has_classes:
                        results[name] = _test_given_teacher(context, name, network)
                else:
                    task = _create_task(context, networks, name, class_weight, stored)
                    of_network = (network.model, network.model_args, network.config)
                    results[name] = Trainer(name, task, *of_network, context.folder / name, context).run()
            metrics = dict(context.describe(), models=results)
            if world.is_primary:
                write_json(metrics, context.folder / METRICS_FILE, summed=True)
        return dict(metrics, run=str(context.folder))
    finally:
        leave_world(world)


def check_distillation(config: DistillConfig) -> None:
    """Check all inputs of a distillation, as `distill` does first; nothing is trained or written.

    Raises:
        FileNotFoundError, ValueError, ImportError, MemoryError: as `distill`.
    """
    world = init_world(config.device)
    try:
        context = prepare_run(config, world, resume=False)
        networks = _create_networks(context, config)
        _check_networks(context, config, networks, _load_stored(context, config, networks))
    finally:
        leave_world(world)


def _create_networks(context: RunContext, config: DistillConfig) -> Dict[str, Network]:
    """The networks of a run by name, in the order of their training. Each is drawn from the seed anew."""
    networks = create_teachers(context, config)
    random_seed(config.seed)
    student = Network(*create_network(config.model, config, context.classes, **config.model_kwargs), config)
    if config.student_alone:
        random_seed(config.seed)
        kwargs = dict(config.model_kwargs)
        if isinstance(student.model, HDKDStudent) and not (
            config.pretrained or config.model.startswith(SOURCE_PREFIXES)
        ):
            kwargs.update(distilled=False)  # from given weights it starts like the distilled one
        networks['student_alone'] = Network(*create_network(config.model, config, context.classes, **kwargs), config)
    return dict(networks, student=student)


def create_teachers(context: RunContext, config: DistillConfig) -> Dict[str, Network]:
    """The teacher to train, or those that are given, by name: 'teacher', or 'teacher_1', ... of several.

    None where logits are stored, or no teacher takes part. The settings of a given one name it alone as
    `teacher_checkpoint`.
    """
    if config.teacher_logits or not config.has_teacher:
        return {}
    given = config.teacher_checkpoint or ()
    if len(given) <= 1:
        return {'teacher': _prepare_teacher(context, config, given[0] if given else None)}
    return {f'teacher_{i}': _prepare_teacher(context, config, name, i) for i, name in enumerate(given, 1)}


def _load_stored(context: RunContext, config: DistillConfig, networks: Dict[str, Network]) -> Optional[StoredLogits]:
    """The stored logits of the teachers, if they are to be used."""
    if not config.teacher_logits or config.method == ('none',):
        return None
    stored = load_teacher_logits(context, config, networks['student'].model)
    if context.world.is_primary:
        _describe_stored(config, stored)
    return stored


def _describe_stored(config: DistillConfig, stored: StoredLogits) -> None:
    """Log which views the student sees; warn where they are not those of the teachers."""
    names = ', '.join(stored.names)
    if stored.views is None:
        _logger.warning(
            f"'{config.teacher_logits}' has the logits of {names} for images without augmentation: the student, which"
            ' is augmented as usual, sees another image than the teacher did (--views 1 or more stores those of the'
            ' same).'
        )
        return
    times = f', about {config.epochs / stored.views:.3g} times each' if config.epochs > stored.views else ''
    _logger.info(
        f"No teacher runs: the logits of {names} are those of '{config.teacher_logits}', and the student sees its"
        f' {stored.views} views of each image{times}.'
    )


def _prepare_teacher(
    context: RunContext, config: DistillConfig, checkpoint: Optional[str] = None, number: int = 1
) -> Network:
    """The teacher to train, with settings of its own, or the one that is given, the N-th of several."""
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
        img_size=config.teacher_img_size or config.img_size,
        teacher_checkpoint=None if checkpoint is None else (checkpoint,),
    )
    random_seed(config.seed)
    if checkpoint is None:
        return Network(*create_network(config.teacher, settings, classes, **config.teacher_kwargs), settings)
    # the default does not contradict what a checkpoint file says of itself
    name: Optional[str] = config.teacher if config.teacher != DistillConfig.teacher else None
    teacher, model_args, has_classes = create_teacher(checkpoint, config, classes, name, number)
    size = find_teacher_size(teacher, to_height_width(settings.img_size))
    if size is not None and config.teacher_img_size:
        raise ValueError(
            f"--teacher-img-size {format_image_size(config.teacher_img_size)}: teacher '{checkpoint}' takes images of"
            f' {size[0]} x {size[1]} pixels only, leave it out.'
        )
    if size:
        settings = dataclasses.replace(settings, img_size=size)
    return Network(teacher, model_args, settings, has_classes)


def _list_teachers(networks: Dict[str, Network]) -> List[Network]:
    return [network for name, network in networks.items() if is_teacher(name)]


def _check_networks(
    context: RunContext, config: DistillConfig, networks: Dict[str, Network], stored: Optional[StoredLogits]
) -> None:
    """Raise ValueError if teachers and student do not match, or for a wrong setting of either."""
    teachers, student = _list_teachers(networks), networks['student']
    if config.method == ('hdkd',) and len(teachers) == 1 and teachers[0].config.img_size == config.img_size:
        stages = config.stages if config.feature_weight else ()
        check_pair(student.model, teachers[0].model, config.kd_type, stages, config.input_size)
    for network in (*teachers, student):
        check_input(network.model, network.config.input_size)
        check_setup(context, network.model, network.config)
    with torch.random.fork_rng(devices=()):
        copies = dict(networks, student=student._replace(model=copy.deepcopy(student.model)))
        verbose, device = context.world.is_primary, context.world.device
        task = _create_task(context, copies, 'student', None, stored, verbose).to(device).train()
        images, *others = example_batch(task, config, len(context.classes), min(2, config.batch_size), device)
        try:
            with torch.no_grad(), explain_batch_norm(config):
                task(torch.zeros_like(images), *others)
        except ValueError as e:
            raise ValueError(f'A training step of {" ".join(config.method)} fails: {e}') from e


def _create_task(
    context: RunContext,
    networks: Dict[str, Network],
    name: str,
    class_weight: Optional[torch.Tensor],
    stored: Optional[StoredLogits] = None,
    verbose: bool = False,
) -> TrainingTask:
    """The task of a network; the student's has the teachers, from the layers of whose first one it may start."""
    model, config = networks[name].model, networks[name].config
    if name != 'student' or not isinstance(config, DistillConfig):
        return create_task(model, config, class_weight)
    teachers = _list_teachers(networks)
    if config.init_from_teacher is not None:
        layers = init_from_teacher(model, teachers[0].model, parse_layers(config.init_from_teacher))
        if verbose:
            words = ', '.join(f'stage {stage}: {" ".join(map(str, chosen))}' for stage, chosen in layers.items())
            whose = "the teacher's" if len(teachers) == 1 else "the first teacher's"
            _logger.info(f'The student starts from layers of {whose} stages ({words}).')
    random_seed(config.seed)  # whatever was trained before
    targets = getattr(context.datasets['train'], 'targets', None)  # streamed datasets have none
    given: Union[nn.Module, Sequence[nn.Module], None] = stored
    size = config.teacher_img_size
    if teachers:
        given = [teacher.model for teacher in teachers]
    if len(teachers) == 1:
        given, size = teachers[0].model, teachers[0].config.img_size
    return create_distillation_task(model, given, config, class_weight, targets, size, verbose)


def _test_given_teacher(context: RunContext, name: str, network: Network) -> Dict[str, Any]:
    """Test a teacher that was not trained here, and save it beside its student. Returns what metrics.json holds."""
    folder, config, world, teacher = context.folder / name, network.config, context.world, network.model
    finished = read_result(folder, config)
    if finished is not None:
        return finished
    channels_last = default_form(config, world.device).channels_last
    layout = torch.channels_last if channels_last else torch.preserve_format
    teacher.to(device=world.device, memory_format=layout)
    loader = context.create_loaders(teacher, config.img_size, context.test_split)[context.test_split]
    predicted = evaluate(
        teacher,
        loader,
        world,
        channels_last=channels_last,
        signals=context.signals,
        problem=config.problem,
    )
    context.stop_if_asked()
    (checkpoint,) = config.teacher_checkpoint or ('',)
    thresholds: Optional[List[float]] = None
    if config.multi_label:
        limits = teacher.pretrained_cfg.get('thresholds')
        thresholds = match_thresholds(limits, context.classes, len(context.classes), f"Teacher '{checkpoint}'").tolist()
    result = create_result(context, name, teacher, predicted, thresholds, checkpoint=checkpoint)
    if world.is_primary:
        save_model(
            teacher,
            folder / 'best',
            context.classes,
            network.model_args,
            config.input_size,
            replace=True,
            problem=describe_problem(config, context.classes, thresholds),
        )
    write_result(context, folder, result, predicted, thresholds)
    return result
