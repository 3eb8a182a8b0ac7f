"""The main job: train a teacher, distil it into a student, test both.

    images of `data_dir` -> teacher by cross entropy (or one that is given)
                         -> with `student_alone`, the student without distillation token by cross entropy
                         -> student by HDKDTask
                         -> each tested once on the test split, saved as a model folder

The epoch that is kept is the best on `val/` where the data has that split, else the last one: the test split takes no
part in any choice.
"""
import copy
import csv
import dataclasses
import json
import logging
import math
import os
import shutil
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import timm
import torch
import yaml
from sklearn.metrics import balanced_accuracy_score
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask, TrainingTask
from timm.utils import AverageMeter, random_seed
from torch import nn

from .checkpoint import load_teacher, save_model
from .config import setting
from .data import create_datasets, create_split_loader
from .losses import KD_KINDS
from .models.hdkd import MIN_IMG_SIZE, HDKDStudent
from .task import HDKDTask, check_pair
from .version import __version__

_logger = logging.getLogger(__name__)


@dataclasses.dataclass
class DistillConfig:
    """Settings of `distill`, named as in timm's train.py. The defaults are the published ones but for augmentation."""
    data_dir: str = setting(help='folder with train/<class>/*, test/<class>/* and optionally val/<class>/*')
    train_fraction: float = setting(1., 'share of the training images to use, drawn per class with the seed')
    on_bad_image: str = setting('error', 'images that cannot be read end the run or are left out',
                                choices=('error', 'skip'))

    model: str = setting('hdkd_student', 'student, a timm model with a distillation head')
    teacher: str = setting('hdkd_teacher', 'teacher to train, a timm model; or what a checkpoint file of it holds')
    teacher_checkpoint: Optional[str] = setting(
        None, 'trained teacher instead: a model folder, or a checkpoint file of an HDKD network')
    student_alone: bool = setting(False, 'also train the student without distillation, to compare')
    img_size: int = setting(224, 'height and width in pixels that images are resized to')
    in_chans: int = setting(3, 'image channels, 3 (RGB) or 1 (grey)')

    kd_type: str = setting('soft', 'distillation of the logits', choices=KD_KINDS)
    alpha: float = setting(0.5, 'weight of the distillation in the logit loss')
    tau: float = setting(1., 'temperature of the soft distillation')
    feature_weight: float = setting(10., 'weight of the feature loss (lambda)')
    stages: Tuple[int, ...] = setting((1, 2, 3), 'stages whose maps are compared')
    stage_exponent: float = setting(1., 'the i-th of these stages weighs i^EXPONENT (gamma)')

    epochs: int = setting(200, 'epochs of the student')
    batch_size: int = setting(16, 'images a training step', flags=('-b',))
    opt: str = setting('adamw', "the student's optimiser")
    lr: float = setting(5e-5, "the student's learning rate")
    weight_decay: float = setting(0.05, "the student's weight decay")
    sched: str = setting('cosine', "the student's learning-rate schedule, 'none' for constant")
    warmup_epochs: Optional[int] = setting(None, 'epochs of warm-up (default: 5, at most a fifth of the epochs)')
    warmup_lr: float = setting(2e-5, 'learning rate that the warm-up starts from')
    min_lr: float = setting(2e-5, 'lowest learning rate of the schedule')
    teacher_epochs: Optional[int] = setting(None, "epochs of the teacher (default: the student's)")
    teacher_opt: str = setting('adam', "the teacher's optimiser")
    teacher_lr: float = setting(1e-3, "the teacher's learning rate")
    teacher_weight_decay: float = setting(0., "the teacher's weight decay")
    teacher_sched: str = setting('none', "the teacher's learning-rate schedule, without warm-up")

    scale: Tuple[float, float] = setting((0.8, 1.), 'random crop, share of the area', metavar=('MIN', 'MAX'))
    ratio: Tuple[float, float] = setting((0.75, 1.3333), 'random crop, aspect ratio', metavar=('MIN', 'MAX'))
    hflip: float = setting(0.5, 'probability of a horizontal flip')
    vflip: float = setting(0.5, 'probability of a vertical flip')
    color_jitter: float = setting(0.3, 'strength of random brightness, contrast and saturation')

    seed: int = setting(42, 'random seed')
    workers: int = setting(2, 'loader processes', flags=('-j',))
    device: Optional[str] = setting(None, 'cpu, cuda, mps, ... (default: the best there is)')
    channels_last: bool = setting(False, 'use the channels-last memory layout')
    output: str = setting('runs', 'folder of the runs')
    experiment: Optional[str] = setting(None, 'name of the run (default: date, time and model)')

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range; names the flag, the value and the range."""
        at_least_one, not_negative, share = '1 or more', '0 or more', 'between 0 and 1'
        ranges = {
            'img_size': (f'{MIN_IMG_SIZE} or more', lambda v: v >= MIN_IMG_SIZE),
            'train_fraction': ('above 0 and at most 1', lambda v: 0 < v <= 1),
            'scale': ('0 < MIN <= MAX <= 1', lambda v: 0 < v[0] <= v[1] <= 1),
            'ratio': ('0 < MIN <= MAX', lambda v: 0 < v[0] <= v[1]),
            **dict.fromkeys(('epochs', 'teacher_epochs', 'batch_size'), (at_least_one, lambda v: v >= 1)),
            **dict.fromkeys(('alpha', 'hflip', 'vflip'), (share, lambda v: 0 <= v <= 1)),
            **dict.fromkeys(('tau', 'lr', 'teacher_lr'), ('above 0', lambda v: v > 0)),
            **dict.fromkeys((
                'feature_weight', 'stage_exponent', 'weight_decay', 'teacher_weight_decay', 'warmup_epochs',
                'warmup_lr', 'min_lr', 'color_jitter', 'seed', 'workers'), (not_negative, lambda v: v >= 0)),
        }
        for name, (words, holds) in ranges.items():
            value = getattr(self, name)
            if value is not None and not (holds(value) and all(map(math.isfinite, _as_tuple(value)))):
                shown = ' '.join(map(str, _as_tuple(value)))
                raise ValueError(f"--{name.replace('_', '-')} must be {words}, got {shown}.")


def _as_tuple(value: Any) -> Tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def train_one_epoch(
        task: TrainingTask,
        loader: Any,
        optimizer: torch.optim.Optimizer,
        channels_last: bool = False,
) -> Dict[str, float]:
    """One pass over the training images. Returns the mean of the loss and of each of its parts, and the accuracy.

    Raises:
        FloatingPointError: if the mean loss is not a finite number.
    """
    task.train()
    sums: Dict[str, torch.Tensor] = {}
    correct, seen = 0, 0
    for input, target in loader:
        if channels_last:
            input = input.contiguous(memory_format=torch.channels_last)
        result = task(input, target)
        optimizer.zero_grad()
        result['loss'].backward()
        optimizer.step()
        correct += (result.pop('output').argmax(dim=1) == target).sum()
        seen += len(target)
        for name, value in result.items():
            sums[name] = sums.get(name, 0.) + value.detach() * len(target)
    means = {name: float(value) / seen for name, value in sums.items()}
    _check_finite(means)
    return dict(means, accuracy=float(correct) / seen)


def _check_finite(metrics: Dict[str, float]) -> None:
    if not math.isfinite(metrics['loss']):
        parts = ', '.join(f'{name} {value:g}' for name, value in metrics.items())
        raise FloatingPointError(f'The loss is no finite number any more ({parts}): try a lower learning rate.')


@torch.inference_mode()
def evaluate(model: nn.Module, loader: Any, channels_last: bool = False) -> Dict[str, float]:
    """Loss, accuracy and balanced accuracy (mean recall of the classes) of a model on all images of a loader.

    Raises:
        FloatingPointError: if the mean loss is not a finite number.
    """
    model.eval()
    loss, predictions, targets = AverageMeter(), [], []
    for input, target in loader:
        if channels_last:
            input = input.contiguous(memory_format=torch.channels_last)
        logits = model(input).float()
        loss.update(float(nn.functional.cross_entropy(logits, target)), len(target))
        predictions.append(logits.argmax(dim=1).cpu())
        targets.append(target.cpu())
    predictions, targets = torch.cat(predictions), torch.cat(targets)
    metrics = {
        'loss': loss.avg,
        'accuracy': float((predictions == targets).double().mean()),
        'balanced_accuracy': float(balanced_accuracy_score(targets, predictions)),
    }
    _check_finite(metrics)
    return metrics


def write_summary(rows: List[Dict[str, Any]], path: Path) -> None:
    """Write the rows of all epochs so far as CSV, whole or not at all."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    temporary = path.with_suffix('.tmp')
    with temporary.open('w', newline='') as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def fit(
        name: str,
        task: TrainingTask,
        loaders: Dict[str, Any],
        optimizer: torch.optim.Optimizer,
        scheduler: Optional[Any],
        epochs: int,
        rows: List[Dict[str, Any]],
        summary: Path,
        channels_last: bool = False,
) -> Dict[str, Any]:
    """Train, keep the best epoch on `val` if there is such a loader (else the last one) and test that one once.

    Returns:
        Test metrics, the epoch kept, seconds of training and the number of parameters.
    """
    model = task.get_eval_model()
    best: Dict[str, Any] = {}
    seconds = 0.
    for epoch in range(epochs):
        start = time.perf_counter()
        lr = optimizer.param_groups[0]['lr']
        train_metrics = train_one_epoch(task, loaders['train'], optimizer, channels_last)
        metrics = {f'train_{k}': v for k, v in train_metrics.items()}
        seconds += time.perf_counter() - start
        if 'val' in loaders:
            metrics.update({f'val_{k}': v for k, v in evaluate(model, loaders['val'], channels_last).items()})
            if not best or metrics['val_accuracy'] > best['accuracy']:
                best = dict(epoch=epoch, accuracy=metrics['val_accuracy'], state=copy.deepcopy(model.state_dict()))
        if scheduler is not None:
            scheduler.step(epoch + 1, metrics.get('val_accuracy', metrics['train_accuracy']))
        rows.append(dict(model=name, epoch=epoch, lr=lr, **metrics))
        write_summary(rows, summary)
        shown = '  '.join(f'{k} {v:.4f}' for k, v in metrics.items() if k.endswith(('_loss', 'accuracy')))
        _logger.info(f'{name}  epoch {epoch + 1}/{epochs}  {shown}  {seconds / (epoch + 1):.1f} s/epoch')
    if best:
        model.load_state_dict(best['state'])
    return {
        'test': evaluate(model, loaders['test'], channels_last),
        'epoch': best.get('epoch', epochs - 1),
        'epochs': epochs,
        'train_seconds': round(seconds, 1),
        'parameters': sum(p.numel() for p in model.parameters()),
    }


@contextmanager
def run_folder(output: str, experiment: str) -> Iterator[Path]:
    """A folder to write a run into, renamed from NAME.partial to NAME when all is done.

    After an error nothing is left, unless a network was finished: then the partial folder stays and is named.

    Raises:
        FileExistsError: if there is such a run, finished or not.
    """
    folder = Path(output) / experiment
    partial = folder.with_name(folder.name + '.partial')
    for path in (folder, partial):
        if path.exists():
            raise FileExistsError(f"Run '{path}' exists already: choose another --experiment, nothing is overwritten.")
    created = [path for path in (partial, *partial.parents) if not path.exists()]
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, folder)
    except BaseException:
        finished = sorted(path.parent.name for path in partial.glob('*/config.json'))
        if finished:
            _logger.warning(f"Kept what was finished ({', '.join(finished)}) in '{partial}'.")
        else:
            shutil.rmtree(partial)
            with suppress(OSError):  # another run may have come to use them
                for path in created[1:]:
                    path.rmdir()
        raise


def _create_model(
        name: str,
        config: DistillConfig,
        num_classes: int,
        **kwargs: Any,
) -> Tuple[nn.Module, Dict[str, Any]]:
    """A timm model for the data, and its arguments. The image size goes to those that take one."""
    if not timm.is_model(name.split('.')[0]):
        close = timm.list_models('hdkd_*')
        raise ValueError(f"Unknown model '{name}': choose from {', '.join(close)} or any other of timm's.")
    kwargs.update(num_classes=num_classes, in_chans=config.in_chans)
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if name.startswith('hdkd_') or (cfg is not None and cfg.fixed_input_size):
        kwargs.update(img_size=config.img_size)
    return timm.create_model(name, **kwargs), kwargs


def _create_recipe(
        model: nn.Module,
        opt: str,
        lr: float,
        weight_decay: float,
        sched: str,
        epochs: int,
        config: DistillConfig,
        warmup_epochs: int,
) -> Tuple[torch.optim.Optimizer, Optional[Any], int]:
    """timm's optimiser and schedule for a model, and the number of epochs."""
    optimizer = create_optimizer_v2(model, opt=opt, lr=lr, weight_decay=weight_decay)
    scheduler = None
    if sched != 'none':
        scheduler, _ = create_scheduler_v2(
            optimizer, sched=sched, num_epochs=epochs, warmup_epochs=warmup_epochs, warmup_lr=config.warmup_lr,
            min_lr=config.min_lr)
        if scheduler is None:  # timm < 1.0.31 takes any name
            raise ValueError(f"Unknown schedule '{sched}': choose one of timm's (cosine, step, plateau, ...) or none.")
    return optimizer, scheduler, epochs


def _pick_device(name: Optional[str]) -> torch.device:
    if name:
        return torch.device(name)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device('cpu')


def distill(config: DistillConfig) -> Dict[str, Any]:
    """Train a teacher, distil it into a student, test both and save them in a run folder.

    All inputs are checked before the first step and before anything is written.

    Returns:
        What `metrics.json` holds, and the folder as 'run'.

    Raises:
        FileNotFoundError, ValueError, FileExistsError: bad input, see `create_datasets`, `load_teacher`, `HDKDTask`
            and `run_folder`.
        FloatingPointError: if a loss is no finite number any more.
    """
    device = _pick_device(config.device)
    datasets, classes = create_datasets(
        config.data_dir, config.in_chans, config.train_fraction, config.seed, config.on_bad_image)

    # models, all that can be wrong with them
    random_seed(config.seed)
    if config.teacher_checkpoint:
        teacher, teacher_args = load_teacher(config.teacher_checkpoint, classes, config.in_chans, config.teacher)
    else:
        teacher, teacher_args = _create_model(config.teacher, config, len(classes))
    random_seed(config.seed)
    student, student_args = _create_model(config.model, config, len(classes))
    alone = None
    if config.student_alone:
        random_seed(config.seed)
        kwargs = dict(distilled=False) if isinstance(student, HDKDStudent) else {}
        alone, alone_args = _create_model(config.model, config, len(classes), **kwargs)
    input_size = (config.in_chans, config.img_size, config.img_size)
    check_pair(student, teacher, config.kd_type, config.stages if config.feature_weight else (), input_size)
    for model in filter(None, (teacher, student, alone)):
        model.to(device=device, memory_format=torch.channels_last if config.channels_last else torch.preserve_format)

    # recipes: optimiser, schedule and epochs of each network
    warmup_epochs = min(5, config.epochs // 5) if config.warmup_epochs is None else config.warmup_epochs
    recipes = {}
    if not config.teacher_checkpoint:
        recipes['teacher'] = _create_recipe(
            teacher, config.teacher_opt, config.teacher_lr, config.teacher_weight_decay, config.teacher_sched,
            config.teacher_epochs or config.epochs, config, warmup_epochs=0)
    for name, model in (('student_alone', alone), ('student', student)):
        if model is not None:
            recipes[name] = _create_recipe(
                model, config.opt, config.lr, config.weight_decay, config.sched, config.epochs, config, warmup_epochs)

    # data
    def create_loaders(model: nn.Module) -> Dict[str, Any]:
        """Loaders of all splits, normalised as the model wants it."""
        data_config = timm.data.resolve_data_config(dict(input_size=input_size), model=model)
        return {
            split: create_split_loader(
                dataset, data_config, config.batch_size, is_training=split == 'train', num_workers=config.workers,
                device=device, scale=config.scale, ratio=config.ratio, hflip=config.hflip, vflip=config.vflip,
                color_jitter=config.color_jitter)
            for split, dataset in datasets.items()}

    create_loaders(student)  # what it checks
    _logger.info(
        f"{len(classes)} classes ({', '.join(classes)}), images: "
        + ', '.join(f'{split} {len(dataset)}' for split, dataset in datasets.items()) + f'; device {device}')
    if 'val' not in datasets:
        _logger.info("No 'val' folder: the last epoch of each network is kept.")

    experiment = config.experiment or f"{time.strftime('%Y%m%d-%H%M%S')}-{config.model}"
    with run_folder(config.output, experiment) as folder:
        rows: List[Dict[str, Any]] = []
        results: Dict[str, Any] = {}

        def train(name: str, task: TrainingTask, model: nn.Module, model_args: Dict[str, Any]) -> None:
            # new workers from the same seed: each network sees the same images, whichever others are trained
            random_seed(config.seed)
            try:
                results[name] = fit(
                    name, task.to(device), create_loaders(model), *recipes[name], rows, folder / 'summary.csv',
                    config.channels_last)
            except FloatingPointError as e:
                raise FloatingPointError(f'{name}: {e}') from e
            save_model(model, folder / name, label_names=classes, model_args=model_args)

        if config.teacher_checkpoint:
            results['teacher'] = {
                'test': evaluate(teacher, create_loaders(teacher)['test'], config.channels_last),
                'checkpoint': config.teacher_checkpoint,
                'parameters': sum(p.numel() for p in teacher.parameters()),
            }
        else:
            task = ClassificationTask(teacher, nn.CrossEntropyLoss(), verbose=False)
            train('teacher', task, teacher, teacher_args)
        if alone is not None:
            task = ClassificationTask(alone, nn.CrossEntropyLoss(), verbose=False)
            train('student_alone', task, alone, alone_args)
        task = HDKDTask(
            student, teacher, kind=config.kd_type, alpha=config.alpha, tau=config.tau,
            feature_weight=config.feature_weight, stages=config.stages, stage_exponent=config.stage_exponent,
            verbose=False)
        train('student', task, student, student_args)
        if config.teacher_checkpoint:
            save_model(teacher, folder / 'teacher', label_names=classes, model_args=teacher_args)

        metrics = {
            'classes': classes,
            'images': {split: len(dataset) for split, dataset in datasets.items()},
            'img_size': config.img_size,
            'models': results,
            'versions': {
                'hdkd_timm': __version__, 'timm': timm.__version__, 'torch': torch.__version__,
                'python': sys.version.split()[0]},
        }
        (folder / 'config.yaml').write_text(yaml.safe_dump(
            {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()},
            sort_keys=False))
        (folder / 'metrics.json').write_text(json.dumps(metrics, indent=2, allow_nan=False) + '\n')
    return dict(metrics, run=str(Path(config.output) / experiment))


def format_table(metrics: Dict[str, Any]) -> str:
    """The results of `distill` as a table, a row a network."""
    lines = [f"{'network':<15}{'parameters':>12}{'test accuracy':>15}{'balanced':>10}{'training':>12}"]
    for name, result in metrics['models'].items():
        seconds = f"{result['train_seconds']:.0f} s" if 'train_seconds' in result else 'given'
        lines.append(
            f"{name:<15}{result['parameters']:>12,}{result['test']['accuracy']:>15.1%}"
            f"{result['test']['balanced_accuracy']:>10.1%}{seconds:>12}")
    return '\n'.join(lines)
