"""Images per second of a training from image files, with and without a cache, next to steps on one batch."""

import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List

import timm
import torch
from torch import nn
from torchvision.transforms import Compose

from ..data.augment import AugmentConfig, BatchAugmentation
from ..data.cache import CachedDataset, cache_images
from ..data.config import DataConfig
from ..data.datasets import create_datasets
from ..data.loader import SplitLoader
from ..data.phantoms import write_phantoms
from ..data.samples import SampleDataset
from ..distillation.hdkd_task import HDKDTask
from ..utils.memory import kept_memory
from .config import BenchConfig
from .tables import Row
from .timing import take_turns

Step = Callable[[torch.Tensor, torch.Tensor], None]


def _create_step(student: nn.Module, num_classes: int, config: BenchConfig, device: torch.device) -> Step:
    """A training step of HDKD as the trainer does it on this device; it takes images (B, C, H, W) and targets (B,)."""
    on_gpu = device.type != 'cpu'
    teacher = timm.create_model('hdkd_teacher', img_size=config.img_size, num_classes=num_classes)
    task = HDKDTask(student, teacher, verbose=False).to(device).train()
    task.trainable_module.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-5)
    if on_gpu and config.compiled:
        task.compile()

    def step(images: torch.Tensor, targets: torch.Tensor) -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, getattr(torch, config.amp_dtype), enabled=on_gpu):
            loss = task(images.contiguous(memory_format=torch.channels_last), targets)['loss']
        loss.backward()
        optimizer.step()

    return step


def _create_loaders(
    dataset: SampleDataset,
    student: nn.Module,
    config: BenchConfig,
    device: torch.device,
    folder: Path,
) -> Dict[str, SplitLoader]:
    data_config = timm.data.resolve_data_config(dict(input_size=(3, config.img_size, config.img_size)), model=student)

    def cache(dataset: SampleDataset, transform: Compose) -> CachedDataset:
        return cache_images(dataset, transform, 'ram', folder, "split 'train'")

    def load(cached: bool = False, **augment: Any) -> SplitLoader:
        return SplitLoader(
            dataset,
            data_config,
            config.batch_size,
            AugmentConfig(aug='paper', **augment),
            config.workers,
            device,
            cache=cache if cached else None,
        )

    loaders = {'files': load(), 'files, cached': load(True)}
    if device.type != 'cpu':
        loaders['files, cached, augmented on the device'] = load(True, aug_device=True)
    return loaders


def _create_epoch(loader: SplitLoader, step: Step, augment: Callable) -> Callable[[], None]:
    def run() -> None:
        for batch in loader.epoch(0):
            step(*augment(*batch, 0))

    return run


def measure_epochs(config: BenchConfig, device: torch.device) -> List[Row]:
    """Time an epoch of training: of steps on one batch, and with batches from files."""
    with tempfile.TemporaryDirectory() as folder:
        data_dir = config.data_dir
        if data_dir is None:
            data_dir = str(Path(folder) / 'phantoms')
            write_phantoms(data_dir, num_train=max(2, config.epoch_images // 4), num_test=1, size=config.img_size)
        datasets, classes = create_datasets(DataConfig(data_dir=data_dir), only='train')
        torch.manual_seed(0)
        student = timm.create_model('hdkd_student', img_size=config.img_size, num_classes=len(classes))
        step = _create_step(student, len(classes), config, device)
        loaders = _create_loaders(datasets['train'], student, config, device, Path(folder))
        batch = next(iter(loaders['files'].epoch(0)))
        number = len(loaders['files'])
        epochs: Dict[str, Callable[[], Any]] = {'one batch': lambda: [step(*batch) for _ in range(number)]}
        for name, loader in loaders.items():
            augment = AugmentConfig(aug='paper', aug_device='device' in name)
            epochs[name] = _create_epoch(
                loader, step, BatchAugmentation(augment, len(classes), device, loader.mean, loader.std)
            )
        with kept_memory(device):  # as the trainer does
            seconds = take_turns(epochs, config.rounds, device)
    return [
        dict(
            part='epoch',
            name=name,
            img_size=config.img_size,
            batch_size=config.batch_size,
            ms=1000 * value / number,
            images_per_second=number * config.batch_size / value,
            ratio=value / seconds['one batch'],
        )
        for name, value in seconds.items()
    ]
