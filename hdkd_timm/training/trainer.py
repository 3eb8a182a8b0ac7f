"""The training of one network: `Trainer.run` is the loop, its steps are the methods below it in the order of use."""

import contextlib
import dataclasses
import logging
import math
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import numpy as np
import torch
from timm.task import TrainingTask
from timm.utils import ModelEmaV3, NativeScaler, dispatch_clip_grad, distribute_bn, random_seed, unwrap_model
from torch import nn

from .._compat import set_memory_format, set_train_mode
from ..data.augment import BatchAugmentation
from ..data.sampler import derive_seed
from ..evaluation.evaluate import evaluate
from ..evaluation.metrics import LOWER_IS_BETTER
from ..evaluation.multi_label import DEFAULT_THRESHOLD, choose_thresholds
from ..models.checkpoint import save_model
from ..models.checkpoint_file import read_checkpoint
from ..utils.cgroups import available_cores
from ..utils.image_size import format_image_size
from ..utils.precision import warn_of_slow_autocast
from ..utils.run_files import METRICS_FILE, PREDICTIONS_FILE, STATE_FILE
from .builders import create_optimizer, create_schedule, freeze_stages
from .config import TrainConfig
from .context import RunContext
from .fast import MIN_STEPS, Form, default_form, describe_trial, read_form, run_trial, write_form
from .logger import EpochLog, Progress
from .results import create_result, describe_problem, write_result
from .resume import read_result
from .run_folder import load_state, save_state

_logger = logging.getLogger(__name__)

MUCH_WAITING, LITTLE_WAITING = 0.3, 0.1  # shares of an epoch's time: worth a warning, and hardly any
UNSTABLE_EPOCHS = 4  # with a single class for all validation images, after one with several: worth a warning
MAX_INITIAL_SHARE = 0.05  # of the first weights in a moving average; a larger one is warned of


@dataclasses.dataclass
class TrainState:
    """Progress of a training beside weights, optimiser and schedule; saved with them.

    Args:
        epoch: Epochs done.
        step: Batches of the current epoch that are done.
        updates: Updates of the weights since the first epoch.
        sums: Sum of each loss of the current epoch over its images.
        outputs: Logits of the current epoch, (B, K) per batch.
        targets: Class indices of the current epoch, (B,) per batch, or labels (B, K).
        rows: One row per epoch, as in summary.csv.
        best_epoch: Epoch that is kept so far; None without a val split.
        best_metric: Its metric on val, negated where lower is better.
        thresholds: Of images with any number of labels, those that the validation images of the epoch that is kept
            choose, (K,); None without any.
        single_class_epochs: Epochs that gave all validation images the same class, after one that did not.
        tells_apart: Whether an epoch gave validation images different classes.
        lr: Largest learning rate at the start of the current epoch.
        seconds: Time spent in training steps.
    """

    epoch: int = 0
    step: int = 0
    updates: int = 0
    sums: Dict[str, float] = dataclasses.field(default_factory=dict)
    outputs: List[torch.Tensor] = dataclasses.field(default_factory=list)
    targets: List[torch.Tensor] = dataclasses.field(default_factory=list)
    rows: List[Dict[str, Any]] = dataclasses.field(default_factory=list)
    best_epoch: Optional[int] = None
    best_metric: Optional[float] = None
    thresholds: Optional[List[float]] = None
    single_class_epochs: int = 0
    tells_apart: bool = False
    lr: float = 0.0
    seconds: float = 0.0

    def to(self, device: torch.device) -> 'TrainState':
        """The same with its tensors on a device, beside those of the batches to come: a file has them on the CPU."""
        outputs, targets = ([tensor.to(device) for tensor in part] for part in (self.outputs, self.targets))
        return dataclasses.replace(self, outputs=outputs, targets=targets)


@contextlib.contextmanager
def explain_batch_norm(config: TrainConfig) -> Iterator[None]:
    """What gives BatchNorm more values, if it has a single one per channel: then it cannot train.

    Raises:
        ValueError: instead of PyTorch's.
    """
    try:
        yield
    except ValueError as e:
        if 'Expected more than 1 value per channel' not in str(e):
            raise
        raise ValueError(
            f'BatchNorm cannot train on a batch of {config.batch_size} image of {format_image_size(config.img_size)}'
            ' pixels, which ends as one value per channel: use --batch-size 2 or more, or a larger --img-size.'
        ) from e


class Trainer:
    """Trains one network from scratch, or from its last saved state, and tests the epoch that is kept.

    Args:
        name: Name of the network in messages and results.
        task: Computes the loss; holds the network.
        model: The network. Afterwards it has the weights that were tested.
        model_args: Arguments that the network was built with.
        config: Its settings.
        folder: Where last.pth, best/, summary.csv, metrics.json and predictions.csv are written.
        context: What the networks of a run share: images, processes, signals.
    """

    def __init__(
        self,
        name: str,
        task: TrainingTask,
        model: nn.Module,
        model_args: Dict[str, Any],
        config: TrainConfig,
        folder: Path,
        context: RunContext,
    ):
        self.name = name
        self.task = task
        self.model = model
        self.model_args = model_args
        self.config = config
        self.folder = folder
        self.context = context
        self.world = context.world
        self.state = TrainState()
        self.log: Optional[EpochLog] = None
        self.unread: List[Tuple[int, int, Dict[str, torch.Tensor]]] = []  # step, images and losses still on the device

    def run(self) -> Dict[str, Any]:
        """Train and test. Returns what metrics.json holds.

        Raises:
            FloatingPointError: if a loss or a weight became non-finite.
            Interrupted: if a signal asked to stop; the state is saved.
            ValueError: if the saved state is damaged, or of another number of processes.
        """
        finished = read_result(self.folder, self.config)
        if finished is not None:
            self.model.load_state_dict(read_checkpoint(self.folder / 'best' / 'model.safetensors'))
            _logger.info(f'{self.name}  is finished.')
            return finished
        self.open_folder()
        self.set_up()
        self.resume()
        self.open_log()
        while not self.is_over():
            self.start_epoch()
            for images, target, *index in self.read_batches():
                images, target = self.augment(images, target)
                losses = self.train_step(images, target, *index)
                self.record(losses, target)
                if self.is_update(self.state.step - 1):
                    self.finish_update()
            metrics = self.finish_steps()
            is_best = self.validate(metrics)
            self.end_epoch(metrics, is_best)
            self.save()
            self.stop_if_asked()
        return self.test()

    # -- set-up --------------------------------------------------------------------------------------------------------

    def open_folder(self) -> None:
        """Make the folder; results of fewer epochs go."""
        self.folder.mkdir(exist_ok=True)
        self.world.barrier()  # all processes have read the results
        if self.world.is_primary:
            (self.context.folder / METRICS_FILE).unlink(missing_ok=True)
            for name in (METRICS_FILE, PREDICTIONS_FILE):
                (self.folder / name).unlink(missing_ok=True)

    def set_up(self) -> None:
        """Loaders, form of the steps, optimiser, schedule, mixed precision and augmentation of batches."""
        config, device = self.config, self.world.device
        random_seed(config.seed, self.world.rank)
        self.task.to(device)
        self.amp_dtype = getattr(torch, config.amp_dtype) if config.amp else None
        self.autocast = torch.autocast(device.type, self.amp_dtype, enabled=config.amp)
        if self.amp_dtype is not None and self.world.is_primary:
            warn_of_slow_autocast(device, self.amp_dtype)
        self.loaders = self.context.create_loaders(
            self.model,
            config.img_size,
            with_index=getattr(self.task, 'needs_index', False),
            views=getattr(self.task, 'views', None),
        )
        self.num_batches = len(self.loaders['train'])
        self.frozen = freeze_stages(self.model, config.freeze_stages)
        self.form = self.find_form()
        if self.form.channels_last:
            set_memory_format(self.task, torch.channels_last)
        self.optimizer = create_optimizer(self.task.get_trainable_module(), config)
        updates_per_epoch = math.ceil(self.num_batches / config.grad_accum_steps)
        self.scheduler: Any = create_schedule(self.optimizer, config, updates_per_epoch)
        self.scaler = NativeScaler(device=device.type) if self.amp_dtype == torch.float16 else None
        self.augment_batch = BatchAugmentation(
            config, len(self.context.classes), device, self.loaders['train'].mean, self.loaders['train'].std
        )
        self.set_up_task(updates_per_epoch)

    def find_form(self) -> Form:
        """How steps are computed: as the settings say, or with --fast as a trial finds, once for a training."""
        config, world = self.config, self.world
        form = read_form(self.folder) if config.fast else default_form(config, world.device)
        if form is not None:
            return form
        self.set_train_mode()
        steps = config.epochs * self.num_batches
        if world.is_primary and steps >= MIN_STEPS:
            _logger.info(f'{self.name}  --fast auto: trying forms of its steps.')
        num_classes = len(self.context.classes)
        form, seconds = run_trial(
            self.task, config, num_classes, steps, self.autocast, world, self.context.stop_if_asked
        )
        if world.device.type == 'cuda':
            torch.cuda.empty_cache()  # that of the copies
        if world.is_primary:
            write_form(self.folder, form, seconds, world.device)
            _logger.info(f'{self.name}  --fast auto: {describe_trial(form, seconds, steps)}')
        return form

    def set_train_mode(self) -> None:
        """Training mode of all that is trained."""
        set_train_mode(self.task)
        for module in self.frozen:
            module.eval()

    def set_up_task(self, updates_per_epoch: int) -> None:
        """Moving average of the weights, compiler and distributed training."""
        config, task = self.config, self.task
        if config.model_ema:
            task.setup_ema(decay=config.model_ema_decay, use_warmup=config.model_ema_warmup)
            if self.world.is_primary:
                describe_average(self.name, task.get_trainable_module(ema=True), config.epochs * updates_per_epoch)
        if self.form.torchcompile:
            task.compile(backend=self.form.torchcompile)
            task.compile_ema(backend=self.form.torchcompile)
        if self.world.is_distributed:
            device = self.world.device
            task.prepare_distributed(device_ids=[device] if device.type == 'cuda' else None)

    def resume(self) -> None:
        """Continue from the saved state, if there is one.

        Raises:
            ValueError: if it is damaged, or was saved by another number of processes.
        """
        path = self.folder / STATE_FILE
        if not path.exists():
            return
        saved = load_state(path)
        if len(saved['progress']) != self.world.size:
            raise ValueError(
                f"'{path}' was saved by {len(saved['progress'])} processes: resume it with as many, not"
                f' {self.world.size}.'
            )
        self.state = TrainState(**saved['progress'][self.world.rank]).to(self.world.device)
        self.task.load_checkpoint_state(saved['state_dict'], saved.get('task_state'))
        if self.config.model_ema:
            self.task.load_checkpoint_state(saved['state_dict_ema'], saved.get('task_state_ema'), ema=True)
        self.optimizer.load_state_dict(saved['optimizer'])
        if hasattr(self.scheduler, 'lr_scheduler'):  # plateau; others follow from the settings, whose epochs may differ
            self.scheduler.load_state_dict(saved['scheduler'])
            self.scheduler.lr_scheduler.load_state_dict(saved['plateau'])  # timm's state leaves its counters out
        if self.scaler is not None:
            self.scaler.load_state_dict(saved['scaler'])
        if self.world.is_primary:
            _logger.info(f'{self.name}  continues in epoch {self.state.epoch + 1}, step {self.state.step + 1}.')

    def open_log(self) -> None:
        """Start the logs, once nothing can keep the training from starting or continuing."""
        if self.world.is_primary:
            name = f'{self.context.config.experiment}/{self.name}'
            self.log = EpochLog(self.folder, name, self.config.log)

    # -- an epoch ------------------------------------------------------------------------------------------------------

    def is_over(self) -> bool:
        """Are all epochs done, or so many without a better one that the training ends early?"""
        state, patience = self.state, self.config.early_stopping or self.config.epochs
        return state.epoch >= self.config.epochs or state.epoch - 1 - (state.best_epoch or 0) >= patience

    def start_epoch(self) -> None:
        state = self.state
        self.set_train_mode()
        if hasattr(self.task, 'set_epoch'):
            self.task.set_epoch(state.epoch, self.config.epochs)
        if not state.step:
            state.lr = max(group['lr'] for group in self.optimizer.param_groups)
        self.optimizer.zero_grad()
        images = self.config.batch_size * self.world.size
        self.progress = Progress(
            f'{self.name} {state.epoch + 1}/{self.config.epochs}',
            self.num_batches * images,
            state.step * images,
            self.world.is_primary,
        )
        self.clock = self.epoch_start = time.perf_counter()
        self.waited = self.drained = 0.0  # seconds: for images, and for the accelerator to end its work

    def read_batches(self) -> Iterator[Tuple[torch.Tensor, ...]]:
        """The epoch's remaining batches, up to a signal: images (B, C, H, W), normalised, class indices (B,) and, for
        methods with a memory of the images, their numbers (B,)."""
        batches = self.loaders['train'].epoch(self.state.epoch, self.state.step)
        start = time.perf_counter()
        for batch in self.context.signals.watch(batches, self.can_save):
            self.waited += time.perf_counter() - start
            if self.state.step == self.num_batches:  # datasets without random access only estimate it
                break
            yield batch
            start = time.perf_counter()

    def augment(self, images: torch.Tensor, target: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """What is done to whole batches. Its random numbers, and those of the networks, follow from the step."""
        state = self.state
        random_seed(derive_seed(self.config.seed, state.epoch, state.step, 1), self.world.rank)  # 1: not an image's
        if self.form.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return self.augment_batch(images, target, state.epoch)

    def is_update(self, step: int) -> bool:
        """Does a batch complete the gradient of an update?"""
        return (step + 1) % self.config.grad_accum_steps == 0 or step + 1 == self.num_batches

    def group_size(self, step: int) -> int:
        """Batches of the update that a batch belongs to; the last one of an epoch may have fewer."""
        accumulated = self.config.grad_accum_steps
        return min(accumulated, self.num_batches - step // accumulated * accumulated)

    def train_step(
        self, images: torch.Tensor, target: torch.Tensor, index: Optional[torch.Tensor] = None
    ) -> Dict[str, torch.Tensor]:
        """Forward and backward pass of a batch, and the update of the weights where it completes the gradient.

        Args:
            images: (B, C, H, W).
            target: Class indices (B,) or probabilities (B, K).
            index: Number of each image in the training data, (B,), if the task needs it.

        Returns:
            'loss', its parts, and 'output', the logits (B, K).
        """
        step = self.state.step
        is_update = self.is_update(step)
        with contextlib.nullcontext() if is_update else self.task.no_sync():
            with self.autocast, explain_batch_norm(self.config):
                losses = self.task(images, target) if index is None else self.task(images, target, index)
            self.backward(losses['loss'] / self.group_size(step), is_update)
        return losses

    def backward(self, loss: torch.Tensor, is_update: bool) -> None:
        config = self.config
        second_order = getattr(self.optimizer, 'is_second_order', False)
        parameters = self.task.get_clip_parameters(exclude_head=config.clip_mode == 'agc') if config.clip_grad else None
        if self.scaler is not None:
            self.scaler(
                loss,
                self.optimizer,
                clip_grad=config.clip_grad,
                clip_mode=config.clip_mode,
                parameters=parameters,
                create_graph=second_order,
                need_update=is_update,
            )
            return
        loss.backward(create_graph=second_order)
        if is_update:
            if config.clip_grad:
                dispatch_clip_grad(parameters, config.clip_grad, mode=config.clip_mode)
            self.optimizer.step()

    def record(self, losses: Dict[str, torch.Tensor], target: torch.Tensor) -> None:
        """Keep what a step reports. An accelerator is asked for numbers now and then only: it has to wait each time."""
        state = self.state
        output = losses.pop('output')
        self.unread.append((state.step, len(target), {key: value.detach() for key, value in losses.items()}))
        state.step += 1
        state.outputs.append(output.detach().float())
        is_mixed = target.ndim > 1 and not self.config.multi_label  # class probabilities
        state.targets.append(target.argmax(dim=1) if is_mixed else target)
        interval = 1 if self.world.device.type == 'cpu' else 20
        is_due = len(self.unread) >= interval or state.step == self.num_batches
        start = time.perf_counter()
        numbers = self.read_losses() if is_due else None
        now = time.perf_counter()
        self.drained += now - start
        self.progress.update(len(target) * self.world.size, numbers)
        state.seconds += now - self.clock
        self.clock = now

    def read_losses(self) -> Dict[str, float]:
        """Add the unread losses to the sums of the epoch. Returns those of the last step.

        Raises:
            FloatingPointError: if a loss became non-finite.
        """
        numbers: Dict[str, float] = {}
        if not self.unread:
            return numbers
        values = torch.stack([torch.stack([v.float() for v in losses.values()]) for *_, losses in self.unread]).tolist()
        for (step, images, losses), row in zip(self.unread, values):
            numbers = dict(zip(losses, row))
            if not math.isfinite(numbers['loss']):
                raise self.diverged('loss', self.state.epoch, step, numbers)
            for key, value in numbers.items():
                self.state.sums[key] = self.state.sums.get(key, 0.0) + value * images
        self.unread.clear()
        return numbers

    def diverged(self, what: str, epoch: int, step: int, losses: Dict[str, float]) -> FloatingPointError:
        """The error of a training that cannot continue: names the step, the losses and the last good state."""
        path = self.folder / STATE_FILE
        kept = f"the last good state is '{path}'" if path.exists() else 'no state was saved yet'
        shown = f' ({", ".join(f"{key} {value:g}" for key, value in losses.items())})' if losses else ''
        return FloatingPointError(
            f'{self.name}: the {what} became non-finite in epoch {epoch + 1}, step {step + 1}{shown}: try a lower'
            f' learning rate or --clip-grad 1; {kept}.'
        )

    def finish_update(self) -> None:
        """What follows an update of the weights: schedule, moving average, and saving where it is due."""
        state, interval = self.state, self.config.recovery_interval
        self.optimizer.zero_grad()
        state.updates += 1
        if self.scheduler is not None:
            self.scheduler.step_update(state.updates)
        self.task.update_ema(step=state.updates)
        self.stop_if_asked()
        if interval and state.updates % interval == 0:
            self.save()

    def finish_steps(self) -> Dict[str, Any]:
        """After the last batch: the epoch's losses and metrics on the training images, of all processes."""
        state = self.state
        self.progress.close()
        self.stop_if_asked()
        self.read_losses()
        self.tell_waiting()
        if self.world.is_distributed:
            distribute_bn(self.model, self.world.size, reduce=True)
            if self.config.model_ema:
                distribute_bn(self.task.get_eval_model(ema=True), self.world.size, reduce=True)
        problem = self.config.problem
        train_probs = problem.to_probs(torch.cat(state.outputs)).cpu().numpy()
        shares = self.world.gather((state.sums, train_probs, torch.cat(state.targets).cpu().numpy()))
        probs, targets = (np.concatenate([share[i] for share in shares]) for i in (1, 2))
        losses = {key: sum(sums[key] for sums, *_ in shares) / len(targets) for key in state.sums}
        metrics = {**losses, **problem.scores(probs, targets)}
        return {f'train_{key}': value for key, value in metrics.items()}

    def tell_waiting(self) -> None:
        """Warn after the second epoch, which needs no warm-up, if an accelerator waited for its images.

        It works on its own while this process waits for images: it was idle only if it had ended whenever its losses
        were read.
        """
        config, cores = self.config, available_cores()
        waited, drained = (s / (time.perf_counter() - self.epoch_start) for s in (self.waited, self.drained))
        is_due = self.state.epoch == 1 and self.world.is_primary and self.world.device.type != 'cpu'
        if not is_due or waited < MUCH_WAITING or drained > LITTLE_WAITING:
            return
        remedies = [f'more loader processes (-j, now {config.workers} for {cores} cores)'] * (config.workers < cores)
        remedies += ['--cache ram'] * (config.cache is None)
        _logger.warning(
            f'{self.name}  {waited:.0%} of the second epoch was spent waiting for images. What may help:'
            f' {", ".join([*remedies, "--load-size for large images"])}.'
        )

    def validate(self, metrics: Dict[str, Any]) -> bool:
        """Add the metrics on val, if there is one, and keep the weights of the best epoch. Returns whether it is."""
        if 'val' not in self.loaders:
            return False
        state, config = self.state, self.config
        probs, targets = self.evaluate('val')
        scores = config.problem.scores(probs, targets)
        metrics.update({f'val_{key}': value for key, value in scores.items()})
        for label, of_class in config.problem.per_class(probs, targets, self.context.classes).items():
            metrics.update({f'val_{key}_{label}': value for key, value in of_class.items()})
        self.warn_of_collapse(probs, targets)
        name = config.select_metric or config.problem.select_metric
        if config.multi_label and math.isnan(scores[name]):
            raise ValueError(
                f'--select-metric {name} is undefined on the validation images, none of which has a label: choose'
                ' log_loss, or other validation images.'
            )
        metric = scores[name] * (-1 if name in LOWER_IS_BETTER else 1)
        is_best = state.best_metric is None or metric > state.best_metric
        if is_best:
            state.best_epoch, state.best_metric = state.epoch, metric
            if config.multi_label:
                state.thresholds = choose_thresholds(probs, targets).tolist()
            self.save_best()
        return is_best

    def warn_of_collapse(self, probs: np.ndarray, targets: np.ndarray) -> None:
        """Warn if a network that told validation images apart gives all of them one class in several later epochs."""
        state = self.state
        if self.config.multi_label or len(np.unique(targets)) == 1:
            return
        given = np.unique(probs.argmax(axis=1))
        if len(given) > 1:
            state.tells_apart = True
            return
        state.single_class_epochs += state.tells_apart
        if state.single_class_epochs == UNSTABLE_EPOCHS and self.world.is_primary:
            _logger.warning(
                f'{self.name}  {UNSTABLE_EPOCHS} epochs so far gave all {len(targets)} validation images one class'
                f" (now '{self.context.classes[given[0]]}'), after one that told them apart: the training may be"
                f' unstable, or have collapsed. Try a lower learning rate than {self.config.lr:g}.'
            )

    def evaluate(self, split: str, saves: bool = True) -> Tuple[np.ndarray, np.ndarray]:
        """Probabilities (N, K) and class indices (N,) of a split.

        Args:
            split: The split.
            saves: Whether a signal that asks to stop saves the state first.
        """
        network = self.task.get_eval_model(ema=self.config.model_ema)
        if isinstance(network, nn.parallel.DistributedDataParallel):  # it would wait for processes without an image
            network = network.module
        predicted = evaluate(
            network,
            self.loaders[split],
            self.world,
            self.amp_dtype,
            self.form.channels_last,
            self.context.signals,
            self.config.problem,
        )
        self.stop_if_asked(saves)
        return predicted

    def end_epoch(self, metrics: Dict[str, Any], is_best: bool) -> None:
        """Schedule, summary.csv and the line of the epoch."""
        state, config = self.state, self.config
        if self.scheduler is not None:
            split = 'val' if 'val' in self.loaders else 'train'
            self.scheduler.step(state.epoch + 1, metrics[f'{split}_{config.select_metric}'])
        state.rows.append(dict(model=self.name, epoch=state.epoch, lr=state.lr, **metrics))
        state.epoch, state.step = state.epoch + 1, 0
        state.sums, state.outputs, state.targets = {}, [], []
        if self.log is not None:
            self.log.write(state.rows)
            names = (
                *('train_loss', 'train_accuracy', 'val_log_loss', 'val_accuracy', 'val_mean_ap'),
                f'val_{config.select_metric}',
            )
            shown = '  '.join(f'{key} {value:.4f}' for key, value in metrics.items() if key in names)
            _logger.info(
                f'{self.name}  epoch {state.epoch}/{config.epochs}  {shown}  {state.seconds / state.epoch:.1f} s/epoch'
                f'{"  *" if is_best else ""}'
            )

    # -- saving and stopping -------------------------------------------------------------------------------------------

    def can_save(self) -> bool:
        """Can the state be saved between these batches? Not within an update, whose gradient is not part of it, nor by
        one of several processes, for which the others would wait."""
        step = self.state.step
        return not self.world.is_distributed and (step % self.config.grad_accum_steps == 0 or step == self.num_batches)

    def save(self) -> None:
        """Write last.pth, from which `resume` continues.

        Raises:
            FloatingPointError: if a loss or a weight became non-finite: the last good state stays.
        """
        self.read_losses()
        state = self.state
        if not all(torch.isfinite(p).all() for p in self.model.parameters()):
            ended = (state.epoch, state.step - 1) if state.step else (state.epoch - 1, self.num_batches - 1)
            raise self.diverged('weight', *ended, {})
        progress = self.world.gather(
            dict(vars(state), outputs=[o.cpu() for o in state.outputs], targets=[t.cpu() for t in state.targets])
        )
        if self.world.is_primary:
            save_state(self.collect_state(progress), self.folder / STATE_FILE)

    def collect_state(self, progress: List[Dict[str, Any]]) -> Dict[str, Any]:
        """What last.pth holds; `progress` is the `TrainState` of each process."""
        scheduler, scaler = self.scheduler, self.scaler
        return {
            **self.task.get_checkpoint_state(),
            **self.task.get_checkpoint_state(ema=True),
            # which network it is, for `hdkd convert`
            'arch': self.model.pretrained_cfg.get('architecture'),
            'label_names': self.context.classes,
            'model_args': {key: value for key, value in self.model_args.items() if key != 'pretrained'},
            'optimizer': self.optimizer.state_dict(),
            'scheduler': scheduler.state_dict() if scheduler is not None else None,
            'plateau': scheduler.lr_scheduler.state_dict() if hasattr(scheduler, 'lr_scheduler') else None,
            'scaler': scaler.state_dict() if scaler is not None else None,
            'progress': progress,
            # without thresholds: those of the best epoch are not those of these weights
            **({'problem_type': self.config.problem.type} if self.config.multi_label else {}),
        }

    @property
    def problem(self) -> Optional[Dict[str, Any]]:
        return describe_problem(self.config, self.context.classes, self.state.thresholds)

    def save_best(self) -> None:
        """Write the current weights to best/."""
        if self.world.is_primary:
            network = unwrap_model(self.task.get_eval_model(ema=self.config.model_ema))
            save_model(
                network,
                self.folder / 'best',
                self.context.classes,
                self.model_args,
                self.config.input_size,
                replace=True,
                problem=self.problem,
            )
        self.world.barrier()

    def stop_if_asked(self, saves: bool = True) -> None:
        self.context.stop_if_asked(self.save if saves else None)

    # -- test ----------------------------------------------------------------------------------------------------------

    def test(self) -> Dict[str, Any]:
        """Test the weights that were kept, once. Returns what metrics.json holds."""
        state = self.state
        if self.world.is_primary and state.best_epoch is not None and state.epoch < self.config.epochs:
            _logger.info(
                f'{self.name}  ended early: no better epoch on val than {state.best_epoch + 1} in'
                f' {self.config.early_stopping}.'
            )
        if 'val' not in self.loaders:
            self.save_best()
            if self.config.multi_label and self.world.is_primary:
                _logger.warning(
                    f'{self.name}  no val split chooses the thresholds of the labels: each is {DEFAULT_THRESHOLD}'
                    ' (--val-fraction).'
                )
        network = unwrap_model(self.task.get_eval_model(ema=self.config.model_ema))
        network.load_state_dict(read_checkpoint(self.folder / 'best' / 'model.safetensors'))
        # from here on a signal must not save: the weights are no longer those of the last step
        predicted = self.evaluate(self.context.test_split, saves=False)
        result = create_result(
            self.context,
            self.name,
            network,
            predicted,
            thresholds=state.thresholds,
            epoch=state.epoch - 1 if state.best_epoch is None else state.best_epoch,
            epochs=state.epoch,
            train_seconds=round(state.seconds, 1),
            **({'form': dataclasses.asdict(self.form)} if self.config.fast else {}),
        )
        if self.log is not None:
            self.log.close()
        write_result(self.context, self.folder, result, predicted, state.thresholds)
        self.model.load_state_dict(network.state_dict())  # with a moving average they are two
        return result


def describe_average(name: str, average: ModelEmaV3, updates: int) -> None:
    """Log how far a moving average follows the weights over so many updates; warn where it hardly does."""
    share = 1.0  # of the first weights
    for step in range(2, updates + 1):  # the first update copies them
        share *= average.get_decay(step)
        if share < 1e-4:
            break
    decay = f'decay {"growing to " if average.use_warmup else ""}{average.decay:g}'
    message = (
        f'{name}  moving average of the weights: {decay}, {updates} updates; {share:.1%} of it are the first weights.'
    )
    if share <= MAX_INITIAL_SHARE:
        _logger.info(message)
        return
    fitting = math.floor(1000 * 0.01 ** (1 / updates)) / 1000
    _logger.warning(
        f'{message} The network that is kept is hardly trained: train for more updates (--epochs, or a smaller'
        f' --batch-size), {"drop --no-model-ema-warmup, " if not average.use_warmup else ""}lower --model-ema-decay (to'
        f' {fitting:g}), or drop --model-ema.'
    )
