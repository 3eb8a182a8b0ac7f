"""Can a run be resumed? All that its networks need is checked before anything is trained or written."""

import dataclasses
import logging
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import nn

from ..distillation.methods import METHODS, method_settings
from ..models.checkpoint_file import read_checkpoint
from ..utils.config import read_yaml, to_yaml
from ..utils.files import check_sums
from ..utils.parsing import parse_yaml, read_json
from ..utils.run_files import CONFIG_FILE, FAST_FILE, METRICS_FILE, STATE_FILE
from .builders import create_schedule
from .config import DistillConfig, TrainConfig
from .fast import read_form
from .run_folder import load_state

_logger = logging.getLogger(__name__)

# settings that do not change what a run computes, so that it may be resumed with others (its images are compared
# separately, and `_check_epochs` looks at the epochs)
FREE_ON_RESUME = (
    'output',
    'experiment',
    'data_dir',
    'data_csv',
    'cache',
    'cache_dir',
    'workers',
    'device',
    'log',
    'recovery_interval',
    'epochs',
    'teacher_epochs',
)


def free_settings(config: TrainConfig) -> Tuple[str, ...]:
    """Names of the settings that may change when a run is resumed."""
    unused = () if config.model_ema else ('model_ema_decay', 'model_ema_warmup')
    return (*FREE_ON_RESUME, *unused)


def default_settings(config: TrainConfig) -> Dict[str, Any]:
    """The defaults of all settings as config.yaml has them, for runs of versions without some of them."""
    return parse_yaml(to_yaml(type(config)()), 'the defaults')


def read_result(folder: Path, config: TrainConfig) -> Optional[Dict[str, Any]]:
    """The results of a network in its metrics.json; None if there are none, or of fewer epochs than it is to have.

    Raises:
        ValueError: if the file is damaged.
    """
    path = folder / METRICS_FILE
    if not path.exists():
        return None
    check_sums(folder, METRICS_FILE)
    try:
        result = read_json(path)
        epochs, best = result.get('epochs', config.epochs), result.get('epoch', 0)  # a given teacher has none
        result['name'], result['classes']
        ended_early = config.early_stopping is not None and epochs - 1 - best >= config.early_stopping
        is_finished = epochs >= config.epochs or ended_early
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(
            f"'{path}' is damaged ({type(e).__name__}: {e}): restore it, or delete it, and --resume tests the network"
            ' again.'
        ) from e
    return result if is_finished else None


def check_run(networks: Dict[str, TrainConfig], folder: Path) -> None:
    """Check that the networks of a run can be resumed.

    Args:
        networks: Subfolder of the run's folder -> settings, of all networks of the run; '' for the folder itself.
        folder: Folder of the run.

    Raises:
        ValueError: if a file is missing or damaged, if a network cannot continue with these settings, or if a teacher
            would be trained further that a student already learns from.
    """
    settings = read_yaml(folder / CONFIG_FILE)
    done, before = {}, {}
    for name, config in networks.items():
        epochs = name == 'teacher' and settings.get('teacher_epochs') or settings.get('epochs', config.epochs)
        before[name] = dataclasses.replace(config, epochs=epochs)
        done[name] = _check_network(folder / name, name or config.model, before[name], config)
    teacher = before.get('teacher')
    if (
        teacher is not None
        and not teacher.teacher_checkpoint
        and done['student']
        and teacher.epochs != networks['teacher'].epochs
    ):
        raise ValueError(
            f"Run '{folder}' was started with {teacher.epochs} epochs of the teacher, from which its student already"
            f' learns: resume it with --teacher-epochs {teacher.epochs}.'
        )


def _check_network(folder: Path, name: str, before: TrainConfig, config: TrainConfig) -> int:
    """Check the files and epochs of one network. Returns how many epochs it has started.

    Raises:
        ValueError: if a file is missing or damaged, or if it cannot continue with these settings.
    """
    result = read_result(folder, before)
    needs_best, done = result is not None, 0
    if result is not None and read_result(folder, config) is not None:  # it is finished
        done = result.get('epochs', 0)
    elif (folder / STATE_FILE).exists():
        progress = load_state(folder / STATE_FILE)['progress'][0]
        needs_best |= progress['best_epoch'] is not None
        done = progress['epoch'] + (progress['step'] > 0)
        if config.fast and read_form(folder) is None:
            raise ValueError(
                f"'{folder / FAST_FILE}' is missing, which says how the steps of {name} have been computed so far:"
                ' restore it, or start the run again with --overwrite.'
            )
    elif result is not None:
        raise ValueError(
            f"'{folder / STATE_FILE}' is missing, from which {name} would continue to {config.epochs} epochs: restore"
            f' it, or keep {before.epochs} epochs.'
        )
    if needs_best:
        _check_best(folder / 'best', name)
    _check_epochs(folder, name, done, before, config)
    return done


def _check_best(folder: Path, name: str) -> None:
    """Raise ValueError if the weights that a network has kept are not whole."""
    for file in ('config.json', 'model.safetensors'):
        if not (folder / file).is_file():
            raise ValueError(
                f"'{folder / file}' is missing, a part of the best {name} so far: restore it, or start the run again"
                ' with --overwrite.'
            )
    check_sums(folder)
    read_checkpoint(folder / 'model.safetensors')


def _check_epochs(folder: Path, name: str, done: int, before: TrainConfig, config: TrainConfig) -> None:
    """Check that a network that continues to another number of epochs ends as if it had been started with that.

    Args:
        folder: Folder of the network.
        name: Its name in messages.
        done: Epochs that it has started.
        before: Its settings so far.
        config: Its settings from now on.

    Raises:
        ValueError: if it would not; says what can be done instead.
    """
    if not done or config.epochs == before.epochs:
        return
    reason = None
    if done > config.epochs:
        reason = f'it is in epoch {done} already'
    elif (name_of_method := _scheduled_method(config)) is not None:
        reason = f"the loss of the method '{name_of_method}' follows a schedule over all epochs"
    elif _learning_rates(before, done) != _learning_rates(config, done):
        reason = (
            f"the schedule '{config.sched}' (with its warm-up) has other learning rates in the epochs that are done, so"
            ' the result would belong to neither setting'
        )
    if reason:
        raise ValueError(
            f"{name} of run '{folder}' was started with {before.epochs} epochs and cannot continue with"
            f' {config.epochs}: {reason}. Resume it with {before.epochs}, or fine-tune its weights in a new run:'
            f' --model local-dir:{folder / "best"}.'
        )
    _logger.info(f'{name}  will have {config.epochs} epochs, it was started with {before.epochs}.')


def _scheduled_method(config: TrainConfig) -> Optional[str]:
    """A method whose loss depends on the number of epochs, if there is one."""
    if not isinstance(config, DistillConfig):
        return None
    for name in config.method_names:
        method = METHODS.get(name)
        if method is not None and method.schedule:
            default = method_settings(method)[method.schedule]
            if config.method_args.get(name, {}).get(method.schedule, default):
                return name
    return None


def _learning_rates(config: TrainConfig, epochs: int) -> List[float]:
    """Learning rates of the first epochs, with ten updates each, and of the start of the next one."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.lr)
    schedule = create_schedule(optimizer, config, updates_per_epoch=10)
    rates = [optimizer.param_groups[0]['lr']]
    if schedule is None:
        return rates
    for update in range(10 * epochs):
        schedule.step_update(update + 1)
        if update % 10 == 9:
            schedule.step(update // 10 + 1, 0.0)
        rates.append(optimizer.param_groups[0]['lr'])
    return rates
