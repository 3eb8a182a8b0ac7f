"""Distil a trained teacher into a student with Lightning.

    python examples/lightning_module.py TEACHER DATA_DIR [--method NAME ...] [--epochs N] [--out FOLDER] [--resume]

TEACHER is a model folder, such as runs/<name>/teacher of `hdkd distill`, or the name of released weights. DATA_DIR
holds train/<class>/* and test/<class>/* of the teacher's classes. To choose the epoch, --val-fraction of the training
images is held out; give 0 if there is a val/<class>/*. FOLDER gets

    checkpoints/last.ckpt, best.ckpt    --resume continues after the last one; the best one is tested
    logs/version_<N>/metrics.csv        all parts of the loss, and the balanced accuracy
    student/                            model folder of the best student, for `hdkd predict`, `hdkd eval` and timm

`hdkd distill --teacher-checkpoint TEACHER` does the same, with everything else that a training needs.
"""

import argparse
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import lightning
import timm
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from timm.data import create_loader, resolve_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from hdkd_timm import DistillationTask
from hdkd_timm.data.config import DataConfig
from hdkd_timm.data.datasets import create_datasets
from hdkd_timm.models.checkpoint import load_model, save_model

METRIC = 'balanced_accuracy'
Batch = Tuple[torch.Tensor, torch.Tensor]  # images (B, C, H, W), class indices (B,)


class Distillation(lightning.LightningModule):
    """A student that learns from a frozen teacher. Its checkpoints leave out the teacher, which is given anew."""

    def __init__(self, student: nn.Module, teacher: nn.Module, methods: Sequence[str], lr: float, weight_decay: float):
        super().__init__()
        self.task = DistillationTask(student, teacher, methods)
        self.lr, self.weight_decay = lr, weight_decay
        self.metrics = nn.ModuleDict(
            {f'{split}_{METRIC}': MulticlassAccuracy(student.num_classes, average='macro') for split in ('val', 'test')}
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.task.get_eval_model()(images)

    def on_train_epoch_start(self) -> None:
        self.task.set_epoch(self.current_epoch, self.trainer.max_epochs)  # some methods fade in or out

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        result = self.task(*batch)  # 'loss', 'output', and every part of the loss
        parts = {f'train_{name}': value.detach() for name, value in result.items() if name != 'output'}
        self.log_dict(parts, on_step=False, on_epoch=True)
        return result['loss']

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._update_metric(f'val_{METRIC}', batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._update_metric(f'test_{METRIC}', batch)

    def _update_metric(self, name: str, batch: Batch) -> None:
        images, targets = batch
        self.metrics[name].update(self(images), targets)
        self.log(name, self.metrics[name], prog_bar=True)

    def configure_optimizers(self) -> Any:
        epochs = self.trainer.max_epochs
        optimizer = create_optimizer_v2(
            self.task.trainable_module, opt='adamw', lr=self.lr, weight_decay=self.weight_decay
        )
        scheduler, _ = create_scheduler_v2(optimizer, sched='cosine', num_epochs=epochs, warmup_epochs=epochs // 5)
        return [optimizer], [scheduler]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step(self.current_epoch + 1)  # timm's schedulers are told the epoch that comes next


def create_networks(args: argparse.Namespace) -> Tuple[nn.Module, nn.Module]:
    """A new student, and the teacher with whose classes, channels and widths it is built."""
    teacher, model_args = load_model(args.teacher)
    widths = {'dims': model_args['dims']} if 'dims' in model_args else {}
    student = timm.create_model(
        args.student, num_classes=teacher.num_classes, in_chans=teacher.in_chans, img_size=args.img_size, **widths
    )
    return student, teacher


def create_loaders(
    args: argparse.Namespace, student: nn.Module, teacher: nn.Module
) -> Tuple[Dict[str, DataLoader], List[str]]:
    """Loaders of the splits, and the class names by index."""
    config = DataConfig(data_dir=args.data_dir, val_fraction=args.val_fraction, in_chans=teacher.in_chans)
    datasets, classes = create_datasets(config)
    for split in ('val', 'test'):
        if split not in datasets:
            raise ValueError(f"'{args.data_dir}' has no split '{split}' (found: {', '.join(datasets)}).")
    if list(teacher.pretrained_cfg.get('label_names') or classes) != classes:
        names = ', '.join(teacher.pretrained_cfg['label_names'])
        raise ValueError(f"The classes of '{args.data_dir}' are {', '.join(classes)}, the teacher's are {names}.")
    if len(datasets['train']) < args.batch_size:
        raise ValueError(f'--batch-size {args.batch_size}: there are only {len(datasets["train"])} training images.')
    data_config = resolve_data_config(dict(input_size=(teacher.in_chans, args.img_size, args.img_size)), model=student)
    loaders = {
        split: create_loader(
            dataset,
            batch_size=args.batch_size,
            is_training=split == 'train',
            num_workers=args.workers,
            use_prefetcher=False,  # Lightning moves the batches
            scale=(0.8, 1.0),
            vflip=0.5,
            **data_config,
        )
        for split, dataset in datasets.items()
    }
    return loaders, classes


def create_trainer(args: argparse.Namespace) -> lightning.Trainer:
    # two callbacks, as save_last=True of the first would only write last.ckpt after epochs that are the best so far
    files = dict(dirpath=args.out / 'checkpoints', enable_version_counter=False)  # a new file replaces the old one
    checkpoints = [
        ModelCheckpoint(filename='best', monitor=f'val_{METRIC}', mode='max', **files),
        ModelCheckpoint(filename='last', **files),
    ]
    logger = CSVLogger(args.out, name='logs')
    return lightning.Trainer(max_epochs=args.epochs, devices=1, logger=logger, callbacks=checkpoints)


def parse_args(words: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('teacher')
    parser.add_argument('data_dir')
    parser.add_argument('--student', default='hdkd_student', help='a student of the package')
    parser.add_argument('--method', nargs='+', default=['hdkd'], help='distillation methods of the package')
    parser.add_argument('--epochs', type=int, default=25)
    parser.add_argument('--batch-size', type=int, default=16)
    parser.add_argument('--img-size', type=int, default=224)
    parser.add_argument('--lr', type=float, default=1e-3)
    parser.add_argument('--weight-decay', type=float, default=0.05)
    parser.add_argument('--val-fraction', type=float, default=0.15)
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=Path('lightning'), help='folder to write')
    parser.add_argument('--resume', action='store_true', help='continue after the last checkpoint in --out')
    args = parser.parse_args(words)
    if (args.out / 'student').exists():
        parser.error(f"--out '{args.out}' holds a finished training: choose another folder.")
    if args.out.exists() and not args.resume:
        parser.error(f"--out '{args.out}' already exists: choose another folder, or continue there with --resume.")
    if args.resume and not (args.out / 'checkpoints' / 'last.ckpt').exists():
        parser.error(f"--resume: there is no '{args.out}/checkpoints/last.ckpt'.")
    return args


def main() -> None:
    args = parse_args()
    lightning.seed_everything(args.seed)
    student, teacher = create_networks(args)
    loaders, classes = create_loaders(args, student, teacher)
    module = Distillation(student, teacher, args.method, args.lr, args.weight_decay)
    trainer, checkpoints = create_trainer(args), args.out / 'checkpoints'
    trainer.fit(module, loaders['train'], loaders['val'], ckpt_path=checkpoints / 'last.ckpt' if args.resume else None)
    trainer.test(module, loaders['test'], ckpt_path=checkpoints / 'best.ckpt')  # the module has its weights afterwards
    save_model(module.task.get_eval_model(), args.out / 'student', label_names=classes)


if __name__ == '__main__':
    main()
