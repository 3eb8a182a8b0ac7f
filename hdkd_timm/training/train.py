"""Training of one network, in a folder from which it can be resumed.

    read the images -> build the network and check all of it -> open the folder -> Trainer.run:
        epochs of steps: batch -> task (forward, loss) -> backward -> optimiser, and now and then last.pth
        after each: metrics on `val`, the best weights to best/, one row to summary.csv
        at the end: the best weights once on `test`, metrics.json, predictions.csv

The epoch that is kept is the best on `val` where the data has that split, else the last one: the test split takes no
part in any choice. All random numbers follow from the seed, the epoch and the step, so a run that was interrupted
anywhere and resumed ends with the weights of one that was not (bit by bit on the CPU).
"""

from typing import Any, Dict

from timm.utils import random_seed
from torch import nn

from ..distillation.checks import check_input
from ..utils.distributed import init_world, leave_world
from .builders import (
    create_network,
    create_optimizer,
    create_schedule,
    create_task,
    create_teacher,
    freeze_stages,
)
from .config import TrainConfig
from .context import RunContext, open_run, prepare_run
from .inputs import describe_inputs
from .trainer import Trainer


def train(config: TrainConfig, resume: bool = False, overwrite: bool = False) -> Dict[str, Any]:
    """Train one timm model, with `teacher_checkpoint` also on its soft labels, test it and save it in a run folder.

    All inputs are checked before the first step and before anything is written.

    Args:
        config: Settings.
        resume: Continue the run of this name.
        overwrite: Replace a run of this name.

    Returns:
        'models' (name -> what its metrics.json holds), 'classes', 'images', 'img_size', 'versions', and the folder as
        'run'.

    Raises:
        FileNotFoundError, ValueError, FileExistsError, ImportError, MemoryError: bad input, see `create_datasets`,
            `create_teacher`, `smote` and `run_folder`.
        FloatingPointError: if a loss became non-finite.
        Interrupted: if a signal of `STOP_SIGNALS` asked to stop; the state is saved.
    """
    world = init_world(config.device)
    try:
        if config.teacher_checkpoint is not None and len(config.teacher_checkpoint) > 1:
            raise ValueError(
                f'hdkd train takes one teacher, got {len(config.teacher_checkpoint)}: several teach in hdkd distill'
                ' --method kd.'
            )
        context = prepare_run(config, world, resume)
        config, classes = context.config, context.classes
        random_seed(config.seed)
        model, model_args = create_network(config.model, config, classes, **config.model_kwargs)
        random_seed(config.seed)
        teacher, teachers = None, {}
        if config.teacher_checkpoint:
            teacher = create_teacher(config.teacher_checkpoint[0], config, classes).model
            check_input(teacher, config.input_size)
            teachers[config.teacher_checkpoint[0]] = teacher
        check_input(model, config.input_size)
        check_setup(context, model, config)
        class_weight = context.class_weights()
        inputs = describe_inputs(teachers, class_weight, classes, config.smote)
        task = create_task(model, config, class_weight, teacher)
        name = model.pretrained_cfg.get('architecture') or type(model).__name__
        with open_run(context, resume, overwrite, {'': config}, inputs):
            result = Trainer(name, task, model, model_args, config, context.folder, context).run()
        return dict(context.describe(), models={name: result}, run=str(context.folder))
    finally:
        leave_world(world)


def check_setup(context: RunContext, model: nn.Module, config: TrainConfig) -> None:
    """Build what the training of a network needs once, so that a wrong setting shows before anything is written.

    Raises:
        ValueError: for a wrong setting.
    """
    freeze_stages(model, config.freeze_stages)
    create_schedule(create_optimizer(model, config), config, 1)
    context.create_loaders(model, config.img_size)
