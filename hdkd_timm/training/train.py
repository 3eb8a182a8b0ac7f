"""Training: `train` fits one network, `distill` a teacher and a student, in a folder that can be resumed.

    read the images -> build the networks -> for each network:
        epochs of steps: batch -> task (forward, loss) -> backward -> optimiser, and now and then last.pth
        after each: metrics on `val`, the best weights to best/, a row to summary.csv
        at the end: the best weights once on `test`, metrics.json, predictions.csv

The epoch that is kept is the best on `val` where the data has that split, else the last one: the test split takes no
part in any choice. All random numbers follow from the seed, the epoch and the step, so a run that was broken anywhere
and resumed ends with the weights of one that was not (bit by bit on the CPU).
"""
import contextlib
import dataclasses
import functools
import logging
import math
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import numpy as np
import timm
import torch
from timm.task import ClassificationTask, LogitDistillationTask, TrainingTask
from timm.utils import ModelEmaV3, NativeScaler, dispatch_clip_grad, distribute_bn, random_seed, unwrap_model
from torch import nn
from torchvision import transforms

from ..data.augment import BatchAugmentation
from ..data.cache import CachedDataset, cache_images
from ..data.imbalance import class_weights, count_classes, sample_weights, smote
from ..data.loader import SplitLoader, derive_seed
from ..data.samples import create_datasets, list_images, name_image
from ..distillation.task import HDKDTask, check_input, check_pair
from ..evaluation.evaluate import evaluate, write_predictions
from ..evaluation.metrics import LOWER_IS_BETTER, classification_metrics, full_report, per_class_metrics
from ..models.checkpoint import SOURCE_PREFIXES, load_teacher, read_checkpoint, save_model
from ..models.hdkd import HDKDStudent
from ..utils.config import flag, read_yaml, to_yaml
from ..utils.distributed import World, describe_device, init_world, leave_world
from ..utils.files import add_sums, check_sums, with_free_name, write_json
from ..utils.memory import kept_memory
from ..utils.parsing import read_json
from ..utils.run_files import CONFIG_FILE, IMAGES_FILE, METRICS_FILE, PREDICTIONS_FILE, STATE_FILE
from ..utils.signals import Interrupted, Signals
from ..version import __version__
from .builders import create_network, create_optimizer, create_schedule, freeze_stages
from .config import DistillConfig, TrainConfig
from .logger import EpochLog, Progress, check_logs
from .run_folder import keep_images, load_state, run_folder, save_state

_logger = logging.getLogger(__name__)

# settings that don't change what a run computes, so that it can go on with others (its images are compared apart, and
# `_check_epochs` looks at the epochs)
FREE_ON_RESUME = (
    'output', 'experiment', 'data_dir', 'data_csv', 'cache', 'cache_dir', 'workers', 'device', 'log',
    'recovery_interval', 'epochs', 'teacher_epochs')
LEFT_OF_FIRST_WEIGHTS = 0.05  # in a moving average, above which it is warned of


@dataclasses.dataclass
class Run:
    """What the networks of a run share."""
    config: TrainConfig
    world: World
    datasets: Dict[str, Any]
    classes: List[str]
    folder: Path = Path()
    signals: Signals = dataclasses.field(default_factory=Signals)
    caches: Dict[str, Tuple[str, CachedDataset]] = dataclasses.field(default_factory=dict)  # by split, with transform

    @property
    def input_size(self) -> Tuple[int, int, int]:
        return self.config.in_chans, self.config.img_size, self.config.img_size

    @property
    def train_targets(self) -> np.ndarray:
        return self.datasets['train'].targets

    def create_loaders(self, model: nn.Module, only: Optional[str] = None) -> Dict[str, SplitLoader]:
        """Loaders of all splits, or of one, normalised as the model wants it; cached once the run's folder is open."""
        config, world = self.config, self.world
        data_config = timm.data.resolve_data_config(dict(input_size=self.input_size), model=model)
        loaders = {}
        for split, dataset in self.datasets.items():
            if only not in (None, split):
                continue
            args: Dict[str, Any] = {}
            if split == 'train':
                args = dict(
                    augment=config, weights=sample_weights(config.sampler, self.train_targets)
                    if config.sampler else None)
            loaders[split] = SplitLoader(
                dataset, data_config, config.batch_size, num_workers=config.workers, device=world.device,
                seed=config.seed, rank=world.rank, world_size=world.size, local_size=world.local_size,
                cache=functools.partial(self._cache, split) if config.cache and self.folder.name else None, **args)
        return loaders

    def _cache(self, split: str, dataset: Any, front: transforms.Compose) -> CachedDataset:
        """The cache of a split, for one network after another that wants its images alike."""
        wanted = repr(front)
        if split in self.caches and self.caches[split][0] != wanted:
            del self.caches[split]  # the network before is trained: its memory first
        if split not in self.caches:
            folder = Path(self.config.cache_dir or Path(self.config.output) / '.cache')
            self.caches[split] = wanted, cache_images(
                dataset, front, self.config.cache, folder, f"split '{split}'", self.world)
        return self.caches[split][1]

    def class_weights(self) -> Optional[torch.Tensor]:
        """Weights of the classes in the cross entropy, (K,)."""
        kind = self.config.class_weights
        return None if kind is None else torch.tensor(
            class_weights(kind, self.train_targets, self.classes), dtype=torch.float32)

    def describe(self) -> Dict[str, Any]:
        """What metrics.json tells beside the results."""
        return {
            'classes': self.classes,
            'images': {split: len(dataset) for split, dataset in self.datasets.items()},
            'img_size': self.config.img_size,
            **self.describe_environment(),
        }

    def describe_environment(self) -> Dict[str, Any]:
        """What the figures of a network may depend on beside its settings."""
        return {
            'versions': {
                'hdkd_timm': __version__, 'timm': timm.__version__, 'torch': torch.__version__,
                'python': sys.version.split()[0]},
            'device': describe_device(self.world.device),
            'processes': self.world.size,
        }


def _image_names(dataset: Any, number: int) -> List[str]:
    """Names of the images as in images.csv, numbers where a dataset has none."""
    if not hasattr(dataset, 'samples'):
        return [str(i) for i in range(number)]
    return [name_image(dataset.samples, i) for i in range(number)]


def _image_groups(dataset: Any) -> Optional[np.ndarray]:
    return dataset.samples.groups if hasattr(dataset, 'samples') else None


# -- one network -------------------------------------------------------------------------------------------------------

@dataclasses.dataclass
class TrainState:
    """How far the training of a network is, beside its weights and optimiser; saved with them."""
    epoch: int = 0
    step: int = 0  # batches of this epoch that are done
    updates: int = 0
    sums: Dict[str, float] = dataclasses.field(default_factory=dict)  # of this epoch's losses, over its images
    outputs: List[torch.Tensor] = dataclasses.field(default_factory=list)  # of this epoch, (B, K) each
    targets: List[torch.Tensor] = dataclasses.field(default_factory=list)  # (B,) each
    rows: List[Dict[str, Any]] = dataclasses.field(default_factory=list)
    best_epoch: Optional[int] = None
    best_metric: Optional[float] = None
    lr: float = 0.  # at the start of this epoch
    seconds: float = 0.


def _diverged(name: str, epoch: int, step: int, what: str, parts: Dict[str, float], folder: Path) -> str:
    """Words for a training that can't go on; names the step, the losses and where to go back to."""
    saved = folder / STATE_FILE
    kept = f"the last good state is '{saved}'" if saved.exists() else 'no state was saved yet'
    shown = f" ({', '.join(f'{key} {value:g}' for key, value in parts.items())})" if parts else ''
    return (
        f'{name}: the {what} is no finite number any more in epoch {epoch + 1}, step {step + 1}{shown}: try a lower'
        f' learning rate or --clip-grad 1; {kept}.')


def _read_losses(
        name: str,
        state: TrainState,
        losses: List[Tuple[int, int, Dict[str, torch.Tensor]]],
        folder: Path,
) -> Dict[str, float]:
    """Add the losses of some steps (step, number of images, parts) to the sums of the epoch. Returns the last ones.

    Raises:
        FloatingPointError: if a loss is no finite number.
    """
    numbers: Dict[str, float] = {}
    values = torch.stack([torch.stack([v.float() for v in parts.values()]) for *_, parts in losses]).tolist()
    for (step, images, parts), row in zip(losses, values):
        numbers = dict(zip(parts, row))
        if not math.isfinite(numbers['loss']):
            raise FloatingPointError(_diverged(name, state.epoch, step, 'loss', numbers, folder))
        for key, value in numbers.items():
            state.sums[key] = state.sums.get(key, 0.) + value * images
    losses.clear()
    return numbers


def _describe_average(name: str, average: ModelEmaV3, updates: int) -> None:
    """Tell how far the moving average follows the weights, and warn where it hardly does."""
    left = 1.
    for step in range(2, updates + 1):  # the first copies the weights
        left *= average.get_decay(step)
        if left < 1e-4:
            break
    decay = f"decay {'growing to ' if average.use_warmup else ''}{average.decay:g}"
    told = f'{name}  moving average of the weights: {decay}, {updates} updates, {left:.1%} of it are the first weights.'
    if left <= LEFT_OF_FIRST_WEIGHTS:
        _logger.info(told)
        return
    fitting = math.floor(1000 * 0.01 ** (1 / updates)) / 1000
    _logger.warning(
        f'{told} The network that is kept is hardly trained: train for more updates (--epochs, or a smaller'
        f" --batch-size), {'leave --no-model-ema-warmup out, ' if not average.use_warmup else ''}lower"
        f' --model-ema-decay (to {fitting:g}), or leave --model-ema out.')


def read_result(folder: Path, config: TrainConfig) -> Optional[Dict[str, Any]]:
    """What metrics.json of a network holds, None if it is not there or of fewer epochs than it is to be trained for.

    Raises:
        ValueError: if it is damaged.
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
            f"'{path}' is damaged ({type(e).__name__}: {e}): restore it, or delete it; --resume tests the network again"
            ' then.') from e
    return result if is_finished else None


def fit(
        name: str,
        task: TrainingTask,
        model: nn.Module,
        model_args: Dict[str, Any],
        config: TrainConfig,
        folder: Path,
        run: Run,
) -> Dict[str, Any]:
    """Train one network from its first step, or from the last that was saved, to its test results.

    Args:
        name: Name of the network in messages.
        task: What computes the loss, with the network in it.
        model: The network.
        model_args: Arguments that it was built with.
        config: Its settings.
        folder: Where last.pth, best/, summary.csv, metrics.json and predictions.csv are written.
        run: Data, processes and signals.

    Returns:
        What metrics.json holds.

    Raises:
        FloatingPointError: if a loss is no finite number any more.
        Interrupted: if a signal asked to stop; the state is saved.
    """
    world, classes, signals = run.world, run.classes, run.signals
    finished = read_result(folder, config)
    if finished is not None:
        model.load_state_dict(read_checkpoint(folder / 'best' / 'model.safetensors'))
        _logger.info(f'{name}  is finished.')
        return finished
    device = world.device
    folder.mkdir(exist_ok=True)
    world.barrier()  # all have read them
    if world.is_primary:
        for path in (run.folder / METRICS_FILE, folder / METRICS_FILE, folder / PREDICTIONS_FILE):  # of fewer epochs
            path.unlink(missing_ok=True)

    # network, optimiser, schedule
    random_seed(config.seed, world.rank)
    task.to(device)
    if config.channels_last:
        for module in task.children():  # the task itself can't take it in timm < 1.0.31
            module.to(memory_format=torch.channels_last)
    loaders = run.create_loaders(model)
    frozen = freeze_stages(model, config.freeze_stages)
    optimizer = create_optimizer(model, config)
    second_order = getattr(optimizer, 'is_second_order', False)
    num_batches = len(loaders['train'])
    accum = config.grad_accum_steps
    scheduler = create_schedule(optimizer, config, updates_per_epoch=math.ceil(num_batches / accum))
    amp_dtype = getattr(torch, config.amp_dtype) if config.amp else None
    scaler = NativeScaler(device=device.type) if amp_dtype == torch.float16 else None
    autocast = torch.autocast(device.type, amp_dtype, enabled=config.amp)
    augment_batch = BatchAugmentation(config, len(classes), device, loaders['train'].mean, loaders['train'].std)
    if config.model_ema:
        task.setup_ema(decay=config.model_ema_decay, use_warmup=config.model_ema_warmup)
        if world.is_primary:
            _describe_average(
                name, task.get_trainable_module(ema=True), config.epochs * math.ceil(num_batches / accum))
    if config.torchcompile:
        task.compile(backend=config.torchcompile)
        task.compile_ema(backend=config.torchcompile)
    if world.is_distributed:
        task.prepare_distributed(device_ids=[device] if device.type == 'cuda' else None)

    # the state that was saved
    state = TrainState()
    if (folder / STATE_FILE).exists():
        saved = load_state(folder / STATE_FILE)
        if len(saved['progress']) != world.size:
            raise ValueError(
                f"'{folder / STATE_FILE}' was saved by {len(saved['progress'])} processes: resume it with as many, not"
                f' {world.size}.')
        state = TrainState(**saved['progress'][world.rank])
        task.load_checkpoint_state(saved['state_dict'])
        if config.model_ema:
            task.load_checkpoint_state(saved['state_dict_ema'], ema=True)
        optimizer.load_state_dict(saved['optimizer'])
        if hasattr(scheduler, 'lr_scheduler'):  # plateau; others follow from the settings, whose epochs may be more now
            scheduler.load_state_dict(saved['scheduler'])
            scheduler.lr_scheduler.load_state_dict(saved['plateau'])  # it leaves its counters out
        if scaler is not None:
            scaler.load_state_dict(saved['scaler'])
        if world.is_primary:
            _logger.info(f'{name}  goes on in epoch {state.epoch + 1}, step {state.step + 1}.')

    losses: List[Tuple[int, int, Dict[str, torch.Tensor]]] = []  # of steps that the device was not asked about yet

    clock = time.perf_counter()

    def lap(counts: bool = True) -> None:
        nonlocal clock
        now = time.perf_counter()
        state.seconds += now - clock if counts else 0.
        clock = now

    def save() -> None:
        if losses:
            _read_losses(name, state, losses, folder)
        if not all(torch.isfinite(p).all() for p in model.parameters()):
            ended = (state.epoch, state.step - 1) if state.step else (state.epoch - 1, num_batches - 1)
            raise FloatingPointError(_diverged(name, *ended, 'weight', {}, folder))
        shares = world.gather(dict(
            vars(state), outputs=[o.cpu() for o in state.outputs], targets=[t.cpu() for t in state.targets]))
        if world.is_primary:
            save_state({
                **task.get_checkpoint_state(),
                **task.get_checkpoint_state(ema=True),
                # which network it is, for `hdkd convert`
                'arch': model.pretrained_cfg.get('architecture'), 'label_names': classes,
                'model_args': {key: value for key, value in model_args.items() if key != 'pretrained'},
                'optimizer': optimizer.state_dict(),
                'scheduler': scheduler.state_dict() if scheduler is not None else None,
                'plateau': scheduler.lr_scheduler.state_dict() if hasattr(scheduler, 'lr_scheduler') else None,
                'scaler': scaler.state_dict() if scaler is not None else None, 'progress': shares,
            }, folder / STATE_FILE)

    def stop_if_asked(saves: bool = True) -> None:
        signum = world.max(signals.received or 0)
        if signum:
            if saves:
                save()
            raise Interrupted(signum, run.folder)

    def evaluate_split(split: str) -> Tuple[np.ndarray, np.ndarray]:
        network = task.get_eval_model(ema=config.model_ema)
        if isinstance(network, nn.parallel.DistributedDataParallel):  # it would wait for processes without an image
            network = network.module
        result = evaluate(network, loaders[split], world, amp_dtype, config.channels_last, signals)
        stop_if_asked(saves=is_training)  # after it, the weights are those of the best epoch
        return result

    def save_best() -> None:
        if world.is_primary:
            network = unwrap_model(task.get_eval_model(ema=config.model_ema))
            save_model(network, folder / 'best', classes, model_args, run.input_size, replace=True)
        world.barrier()

    def is_complete() -> bool:
        """Can all be saved now? What some batches of an update added to its gradients can't, and all processes wait for
        each other."""
        return not world.is_distributed and (state.step % accum == 0 or state.step == num_batches)

    log = EpochLog(folder, f'{run.config.experiment}/{name}', config.log) if world.is_primary else None
    check_interval = 1 if device.type == 'cpu' else 20  # asking an accelerator for numbers makes it wait
    is_training = True
    patience = config.early_stopping or config.epochs
    while state.epoch < config.epochs and state.epoch - 1 - (state.best_epoch or 0) < patience:
        epoch = state.epoch
        task.train()
        for module in frozen:
            module.eval()
        if hasattr(task, 'teacher'):
            task.teacher.eval()  # timm < 1.0.31 would train with its teacher's batch statistics
        lap(counts=False)
        if not state.step:
            state.lr = max(group['lr'] for group in optimizer.param_groups)
        images = config.batch_size * world.size
        bar = Progress(
            f'{name} {epoch + 1}/{config.epochs}', num_batches * images, state.step * images, world.is_primary)
        optimizer.zero_grad()
        batches = loaders['train'].epoch(epoch, state.step)
        for input, target in signals.watch(batches, is_complete):
            step = state.step
            if step == num_batches:  # datasets without random access only estimate it
                break
            random_seed(derive_seed(config.seed, epoch, step, 1), world.rank)  # 1: not those of an image
            if config.channels_last:
                input = input.contiguous(memory_format=torch.channels_last)
            input, target = augment_batch(input, target, epoch)
            is_update = (step + 1) % accum == 0 or step + 1 == num_batches
            group_size = min(accum, num_batches - step // accum * accum)  # the last may be smaller
            with contextlib.nullcontext() if is_update else task.no_sync():
                with autocast:
                    result = task(input, target)
                if scaler is None:
                    (result['loss'] / group_size).backward(create_graph=second_order)
                    if is_update and config.clip_grad:
                        dispatch_clip_grad(
                            task.get_clip_parameters(exclude_head=config.clip_mode == 'agc'), config.clip_grad,
                            mode=config.clip_mode)
                    if is_update:
                        optimizer.step()
                else:
                    scaler(
                        result['loss'] / group_size, optimizer, clip_grad=config.clip_grad, clip_mode=config.clip_mode,
                        parameters=task.get_clip_parameters(exclude_head=config.clip_mode == 'agc'),
                        create_graph=second_order, need_update=is_update)

            # what is told of the step
            state.step += 1
            state.outputs.append(result.pop('output').detach().float())
            state.targets.append(target if target.ndim == 1 else target.argmax(dim=1))
            losses.append((step, len(target), {key: value.detach() for key, value in result.items()}))
            asks = len(losses) >= check_interval or state.step == num_batches
            parts = _read_losses(name, state, losses, folder) if asks else None
            bar.update(len(target) * world.size, parts)
            lap()
            if not is_update:
                continue
            optimizer.zero_grad()
            state.updates += 1
            if scheduler is not None:
                scheduler.step_update(state.updates)
            task.update_ema(step=state.updates)
            stop_if_asked()
            if config.recovery_interval and state.step % config.recovery_interval < group_size:
                save()
        bar.close()
        stop_if_asked()
        if losses:
            _read_losses(name, state, losses, folder)

        # the end of an epoch
        if world.is_distributed:
            distribute_bn(model, world.size, reduce=True)
            if config.model_ema:
                distribute_bn(task.get_eval_model(ema=True), world.size, reduce=True)
        shares = world.gather((
            state.sums, torch.cat(state.outputs).softmax(dim=1).cpu().numpy(), torch.cat(state.targets).cpu().numpy()))
        seen = sum(len(targets) for *_, targets in shares)
        metrics = {f'train_{key}': sum(sums[key] for sums, *_ in shares) / seen for key in state.sums}
        train_probs, train_targets = (np.concatenate([share[i] for share in shares]) for i in (1, 2))
        metrics.update({f'train_{k}': v for k, v in classification_metrics(train_probs, train_targets).items()})
        is_best = False
        if 'val' in loaders:
            probs, targets = evaluate_split('val')
            val = classification_metrics(probs, targets)
            metrics.update({f'val_{key}': value for key, value in val.items()})
            for label, scores in per_class_metrics(probs, targets, classes).items():
                metrics.update({f'val_{key}_{label}': value for key, value in scores.items()})
            metric = val[config.select_metric] * (-1 if config.select_metric in LOWER_IS_BETTER else 1)
            is_best = state.best_metric is None or metric > state.best_metric
            if is_best:
                state.best_epoch, state.best_metric = epoch, metric
                save_best()
        if scheduler is not None:
            scheduler.step(
                epoch + 1, metrics[f"{'val' if 'val' in loaders else 'train'}_{config.select_metric}"])
        state.rows.append(dict(model=name, epoch=epoch, lr=state.lr, **metrics))
        state.epoch, state.step = epoch + 1, 0
        state.sums, state.outputs, state.targets = {}, [], []
        if world.is_primary:
            log.write(state.rows)
            shown = [f'{k} {metrics[k]:.4f}' for k in metrics if k in (
                'train_loss', 'train_accuracy', 'val_log_loss', 'val_accuracy', f'val_{config.select_metric}')]
            _logger.info(
                f"{name}  epoch {epoch + 1}/{config.epochs}  {'  '.join(shown)}"
                f"  {state.seconds / (epoch + 1):.1f} s/epoch{'  *' if is_best else ''}")
        save()
        stop_if_asked()

    # the test of the epoch that is kept
    is_training = False
    if world.is_primary and state.epoch < config.epochs:
        _logger.info(f'{name}  ended early: no better epoch on val than {state.best_epoch + 1} in {patience}.')
    if 'val' not in loaders:
        save_best()
    network = unwrap_model(task.get_eval_model(ema=config.model_ema))
    network.load_state_dict(read_checkpoint(folder / 'best' / 'model.safetensors'))
    split = 'test' if 'test' in loaders else 'val'
    probs, targets = evaluate_split(split)
    dataset = loaders[split].dataset
    result = {
        'name': name,
        'classes': classes,
        'epoch': state.epoch - 1 if state.best_epoch is None else state.best_epoch,
        'epochs': state.epoch,
        'train_seconds': round(state.seconds, 1),
        'parameters': sum(p.numel() for p in network.parameters()),
        **run.describe_environment(),
        split: full_report(
            probs, targets, classes, _image_groups(dataset), config.bootstrap, config.seed,
            stop_if_asked=functools.partial(stop_if_asked, saves=False), progress=world.is_primary),
    }
    if world.is_primary:
        log.close()
        write_predictions(folder / PREDICTIONS_FILE, _image_names(dataset, len(targets)), probs, classes, targets)
        add_sums(folder, PREDICTIONS_FILE)
        write_json(result, folder / METRICS_FILE, summed=True)
    world.barrier()
    model.load_state_dict(network.state_dict())  # with a moving average they are two
    return result


# -- runs --------------------------------------------------------------------------------------------------------------

def _prepare(config: TrainConfig, world: World, resume: bool) -> Run:
    """Read the images: all that can be wrong with them shows here."""
    if resume and config.experiment is None:
        raise ValueError(
            '--resume needs the run: --config runs/NAME/config.yaml, or its settings and --experiment NAME.')
    check_logs(config.log)
    if config.torchcompile:
        backends = torch.compiler.list_backends(exclude_tags=())
        if config.torchcompile not in backends:
            raise ValueError(
                f"--torchcompile '{config.torchcompile}' is no backend: choose from {', '.join(backends)}.")
    datasets, classes = create_datasets(config, config.batch_size)
    if config.early_stopping and 'val' not in datasets:
        raise ValueError('--early-stopping needs a val split: add one, or take --val-fraction or --folds.')
    targets = getattr(datasets['train'], 'targets', None)
    for name in ('class_weights', 'sampler', 'smote'):
        if targets is None and getattr(config, name) in ('balanced', 'effective'):
            raise ValueError(f"{flag(name)} needs a dataset with random access, '{config.dataset}' has none.")
    if config.cache and targets is None:
        raise ValueError(f"--cache needs a dataset with random access, '{config.dataset}' has none.")
    if config.smote:
        if targets is None:
            raise ValueError(f"--smote needs a dataset with random access, '{config.dataset}' has none.")
        datasets['train'] = smote(
            datasets['train'], config.smote, classes, (config.img_size, config.img_size), seed=config.seed)
    return Run(config, world, datasets, classes)


def _rates(config: TrainConfig, epochs: int) -> List[float]:
    """The learning rates of so many first epochs, of ten updates each, and of the start of the next."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.lr)
    schedule = create_schedule(optimizer, config, updates_per_epoch=10)
    rates = [optimizer.param_groups[0]['lr']]
    for update in range(10 * epochs if schedule is not None else 0):
        schedule.step_update(update + 1)
        if update % 10 == 9:
            schedule.step(update // 10 + 1, 0.)
        rates.append(optimizer.param_groups[0]['lr'])
    return rates


def _check_epochs(folder: Path, name: str, done: int, before: TrainConfig, config: TrainConfig) -> None:
    """Can a network go on for another number of epochs than it was begun with, and be what it had been from the start?

    Args:
        folder: Folder of the network.
        name: Its name in messages.
        done: Epochs that are done, the one that it is in included.
        before: Its settings until now.
        config: Its settings from now on.

    Raises:
        ValueError: if it can't; tells what can be done instead.
    """
    if done and config.epochs != before.epochs:
        reason = None
        if done > config.epochs:
            reason = f'it is in epoch {done} already'
        elif _rates(before, done) != _rates(config, done):
            reason = (
                f"the schedule '{config.sched}' (with its warm-up) has other learning rates in the epochs that are"
                ' done, so that the result would be that of neither')
        if reason:
            raise ValueError(
                f"{name} of run '{folder}' was begun with {before.epochs} epochs and cannot go on with"
                f' {config.epochs}: {reason}. Resume it as it was begun, or train on from its weights in a new run:'
                f" --model local-dir:{folder / 'best'}.")
        _logger.info(f'{name}  is to have {config.epochs} epochs, it was begun with {before.epochs}.')


def _check_network(folder: Path, name: str, before: TrainConfig, config: TrainConfig) -> int:
    """Look at all that a network needs to go on. Returns how many epochs are done, the one that it is in included.

    Raises:
        ValueError: if something is damaged or missing, or if it can't go on with these settings.
    """
    result = read_result(folder, before)
    is_over = result is not None and read_result(folder, config) is not None
    needs_best, done = result is not None, 0
    if is_over:
        done = result.get('epochs', 0)
    elif (folder / STATE_FILE).exists():
        state = TrainState(**load_state(folder / STATE_FILE)['progress'][0])
        needs_best |= state.best_epoch is not None
        done = state.epoch + (state.step > 0)
    elif result is not None:
        raise ValueError(
            f"'{folder / STATE_FILE}' is missing, from which {name} would go on with {config.epochs} epochs: restore"
            f' it, or leave it at {before.epochs} epochs.')
    if needs_best:
        for file in ('config.json', 'model.safetensors'):
            if not (folder / 'best' / file).is_file():
                raise ValueError(
                    f"'{folder / 'best' / file}' is missing, a part of the best network of {name} so far: restore it,"
                    ' or begin the run anew with --overwrite.')
        check_sums(folder / 'best')
        read_checkpoint(folder / 'best' / 'model.safetensors')
    _check_epochs(folder, name, done, before, config)
    return done


def _check_run(networks: Dict[str, TrainConfig], folder: Path) -> None:
    """Look at all that the networks of a run need to go on, before anything is trained or written.

    Args:
        networks: Folder in that of the run -> settings, of all networks of the run; '' for the folder itself.
        folder: Folder of the run.

    Raises:
        ValueError: as `_check_network`; if a teacher were trained on that a student learns from already.
    """
    told = read_yaml(folder / CONFIG_FILE)
    done, before = {}, {}
    for name, config in networks.items():
        epochs = name == 'teacher' and told.get('teacher_epochs') or told.get('epochs', config.epochs)
        before[name] = dataclasses.replace(config, epochs=epochs)
        done[name] = _check_network(folder / name, name or config.model, before[name], config)
    teacher = before.get('teacher')
    if teacher is not None and not teacher.teacher_checkpoint and done['student'] \
            and teacher.epochs != networks['teacher'].epochs:
        raise ValueError(
            f"Run '{folder}' was begun with {teacher.epochs} epochs of the teacher, from which its student learns"
            f' already: resume it with --teacher-epochs {teacher.epochs}.')


@contextlib.contextmanager
def _open_folder(run: Run, resume: bool, overwrite: bool, networks: Dict[str, TrainConfig]) -> Iterator[None]:
    """The run's folder, which the first process opens for all.

    Args:
        run: The run, which gets its folder, and a name if it has none.
        resume: As `run_folder` takes it.
        overwrite: As `run_folder` takes it.
        networks: As `_check_run` takes them.
    """
    config, world = run.config, run.world
    free = FREE_ON_RESUME if config.model_ema else (*FREE_ON_RESUME, 'model_ema_decay', 'model_ema_warmup')
    with contextlib.ExitStack() as stack:
        def open_as(experiment: str, overwrite: bool) -> TrainConfig:
            named = dataclasses.replace(config, experiment=experiment)
            run.folder = stack.enter_context(run_folder(
                named.output, experiment, to_yaml(named), resume, overwrite, free,
                functools.partial(_check_run, networks)))
            return named

        error = None
        if world.is_primary:
            try:
                if config.experiment:
                    run.config = open_as(config.experiment, overwrite)
                else:
                    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.model.split('/')[-1]}"
                    run.config = with_free_name(
                        Path(config.output, name), lambda path: open_as(path.name, overwrite=False))
                keep_images(list_images(run.datasets, run.classes), run.folder)
                add_sums(run.folder, IMAGES_FILE)
            except Exception as e:
                error = e
        error, run.folder, run.config = world.gather((error, run.folder, run.config))[0]
        if error is not None:
            raise error
        if world.is_primary:
            counts = ''
            if hasattr(run.datasets['train'], 'targets'):
                numbers = count_classes(run.train_targets, run.classes)
                counts = f" (training: {', '.join(f'{k} {v}' for k, v in numbers.items())})"
            _logger.info(
                f'{len(run.classes)} classes{counts}, images: '
                + ', '.join(f'{split} {len(dataset)}' for split, dataset in run.datasets.items())
                + f'; device {world.device}' + (f', {world.size} processes' if world.is_distributed else ''))
            if 'val' not in run.datasets:
                _logger.info("No val split: the last epoch is kept.")
            if 'test' not in run.datasets:
                _logger.warning('No test split: the results are those of the best epoch on val, they flatter.')
        with run.signals, kept_memory(world.device):
            yield


def train(config: TrainConfig, resume: bool = False, overwrite: bool = False) -> Dict[str, Any]:
    """Train one timm model, with `teacher_checkpoint` by its soft labels too, test it and save it in a run folder.

    All inputs are checked before the first step and before anything is written.

    Args:
        config: Settings.
        resume: Go on with the run of this name.
        overwrite: Replace a run of this name.

    Returns:
        'models' (name -> what its metrics.json holds), 'classes', 'images', 'img_size', 'versions', and the folder as
        'run'.

    Raises:
        FileNotFoundError, ValueError, FileExistsError, ImportError, MemoryError: bad input, see `create_datasets`,
            `load_teacher`, `smote` and `run_folder`.
        FloatingPointError: if a loss is no finite number any more.
        Interrupted: if a signal of `STOP_SIGNALS` asked to stop; the state is saved.
    """
    world = init_world(config.device)
    try:
        run = _prepare(config, world, resume)
        config, classes = run.config, run.classes
        random_seed(config.seed)
        model, model_args = create_network(config.model, config, len(classes), **config.model_kwargs)
        random_seed(config.seed)
        criterion = nn.CrossEntropyLoss(run.class_weights(), label_smoothing=config.loss_smoothing)
        if config.teacher_checkpoint:
            teacher, _ = load_teacher(
                config.teacher_checkpoint, classes, config.in_chans, label_names=config.teacher_label_names)
            check_input(teacher, run.input_size)
            task: TrainingTask = LogitDistillationTask(
                model, teacher.requires_grad_(False), criterion, task_loss_weight=1 - config.alpha,
                temperature=config.tau, verbose=False)
        else:
            task = ClassificationTask(model, criterion, verbose=False)
        check_input(model, run.input_size)
        freeze_stages(model, config.freeze_stages)
        create_schedule(create_optimizer(model, config), config, 1)
        run.create_loaders(model)
        name = model.pretrained_cfg.get('architecture') or type(model).__name__
        with _open_folder(run, resume, overwrite, {'': config}):
            result = fit(name, task, model, model_args, config, run.folder, run)
        return dict(run.describe(), models={name: result}, run=str(run.folder))
    finally:
        leave_world(world)


def distill(config: DistillConfig, resume: bool = False, overwrite: bool = False) -> Dict[str, Any]:
    """Train a teacher (or take one that is given), distil it into a student, test both, save them in a run folder.

    All inputs are checked before the first step and before anything is written.

    Args:
        config: Settings.
        resume: Go on with the run of this name, in the network and at the step where it stopped.
        overwrite: Replace a run of this name.

    Returns:
        As `train`, with the networks 'teacher', 'student_alone' (on demand) and 'student'.

    Raises:
        As `train`; ValueError if teacher and student don't fit, see `check_pair`.
    """
    world = init_world(config.device)
    try:
        run = _prepare(config, world, resume)
        config, classes = run.config, run.classes
        teacher_config = dataclasses.replace(
            config, model=config.teacher, opt=config.teacher_opt, lr=config.teacher_lr,
            weight_decay=config.teacher_weight_decay, sched=config.teacher_sched, freeze_stages=0,
            pretrained=config.teacher_pretrained, epochs=config.teacher_epochs or config.epochs)

        # networks, all that can be wrong with them
        random_seed(config.seed)
        if config.teacher_checkpoint:
            # the default is no word on what a file holds, which may say it itself
            name = config.teacher if config.teacher != DistillConfig.teacher else None
            teacher, teacher_args = load_teacher(
                config.teacher_checkpoint, classes, config.in_chans, name, config.teacher_label_names)
        else:
            teacher, teacher_args = create_network(
                config.teacher, teacher_config, len(classes), **config.teacher_kwargs)
        random_seed(config.seed)
        student, student_args = create_network(config.model, config, len(classes), **config.model_kwargs)
        alone = None
        if config.student_alone:
            random_seed(config.seed)
            kwargs = dict(config.model_kwargs)
            if isinstance(student, HDKDStudent) and not (config.pretrained or config.model.startswith(SOURCE_PREFIXES)):
                kwargs.update(distilled=False)  # from given weights it starts like the distilled one
            alone, alone_args = create_network(config.model, config, len(classes), **kwargs)
        check_pair(
            student, teacher, config.kd_type, config.stages if config.feature_weight else (), run.input_size)
        freeze_stages(student, config.freeze_stages)
        for model, settings in ((teacher, teacher_config), (student, config)):
            create_schedule(create_optimizer(model, settings), settings, 1)
        run.create_loaders(student)
        weight = run.class_weights()

        networks = {'teacher': teacher_config, **({'student_alone': config} if alone is not None else {})}
        with _open_folder(run, resume, overwrite, {**networks, 'student': config}):
            results: Dict[str, Any] = {}

            def fit_network(name: str, task: TrainingTask, *network: Any, settings: TrainConfig = config) -> None:
                results[name] = fit(name, task, *network, settings, run.folder / name, run)

            def classification(model: nn.Module) -> TrainingTask:
                criterion = nn.CrossEntropyLoss(weight, label_smoothing=config.loss_smoothing)
                return ClassificationTask(model, criterion, verbose=False)

            if config.teacher_checkpoint:
                results['teacher'] = _test_given(run, teacher, teacher_args)
            else:
                fit_network('teacher', classification(teacher), teacher, teacher_args, settings=teacher_config)
            if alone is not None:
                fit_network('student_alone', classification(alone), alone, alone_args)
            task = HDKDTask(
                student, teacher, kind=config.kd_type, alpha=config.alpha, tau=config.tau,
                feature_weight=config.feature_weight, stages=config.stages, stage_exponent=config.stage_exponent,
                reduction=config.reduction, class_weight=weight, label_smoothing=config.loss_smoothing, verbose=False)
            fit_network('student', task, student, student_args)

            metrics = dict(run.describe(), models=results)
            if run.world.is_primary:
                write_json(metrics, run.folder / METRICS_FILE, summed=True)
        return dict(metrics, run=str(run.folder))
    finally:
        leave_world(world)


def _test_given(run: Run, teacher: nn.Module, teacher_args: Dict[str, Any]) -> Dict[str, Any]:
    """Test a teacher that was not trained here, and put it beside its student."""
    folder, config, world = run.folder / 'teacher', run.config, run.world
    finished = read_result(folder, config)
    if finished is not None:
        return finished
    split = 'test' if 'test' in run.datasets else 'val'
    layout = torch.channels_last if config.channels_last else torch.preserve_format
    teacher.to(device=world.device, memory_format=layout)
    loader = run.create_loaders(teacher, split)[split]
    predicted = evaluate(teacher, loader, world, channels_last=config.channels_last, signals=run.signals)

    def stop_if_asked() -> None:
        signum = world.max(run.signals.received or 0)
        if signum:
            raise Interrupted(signum, run.folder)

    stop_if_asked()
    dataset = run.datasets[split]
    result = {
        'name': 'teacher',
        'classes': run.classes,
        'checkpoint': config.teacher_checkpoint,
        'parameters': sum(p.numel() for p in teacher.parameters()),
        **run.describe_environment(),
        split: full_report(
            *predicted, run.classes, _image_groups(dataset), config.bootstrap, config.seed,
            stop_if_asked=stop_if_asked, progress=world.is_primary),
    }
    if world.is_primary:
        save_model(teacher, folder / 'best', run.classes, teacher_args, run.input_size, replace=True)
        probs, targets = predicted
        write_predictions(folder / PREDICTIONS_FILE, _image_names(dataset, len(targets)), probs, run.classes, targets)
        add_sums(folder, PREDICTIONS_FILE)
        write_json(result, folder / METRICS_FILE, summed=True)
    return result


