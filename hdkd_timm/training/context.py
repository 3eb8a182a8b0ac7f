"""What the networks of a run share: its settings, images, processes, folder and signals."""

import contextlib
import dataclasses
import functools
import logging
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np
import timm
import torch
from torch import nn
from torchvision import transforms

from ..data.cache import CachedDataset, cache_images
from ..data.datasets import create_datasets
from ..data.imbalance import class_weights, count_classes, sample_weights, smote
from ..data.loader import SplitLoader
from ..data.samples import list_images
from ..utils.config import flag, to_yaml
from ..utils.distributed import World, describe_device
from ..utils.files import add_sums, with_free_name
from ..utils.image_size import ImageSize, to_height_width
from ..utils.memory import kept_memory
from ..utils.run_files import IMAGES_FILE
from ..utils.signals import Interrupted, Signals
from ..version import __version__
from .config import TrainConfig
from .inputs import keep_inputs
from .logger import check_logs
from .resume import check_run, default_settings, free_settings
from .run_folder import keep_images, run_folder

_logger = logging.getLogger(__name__)

EQUAL_CLASSES = ('balanced_accuracy', 'macro_f1', 'macro_auroc', 'mean_ap')  # metrics that weight all classes equally
FEW_IMAGES = 5  # of a class; with fewer, one image is a quarter or more of its recall


@dataclasses.dataclass
class RunContext:
    """What the networks of a run share.

    Args:
        config: Settings of the run.
        world: The processes of the run.
        datasets: Split ('train', 'val', 'test') -> dataset, as `create_datasets` returns them.
        classes: Class names by index.
        folder: Folder of the run, empty until `open_run` opens it.
        signals: Notes the signals that ask the run to stop.
        caches: Split -> description of the transform and the cached dataset.
    """

    config: TrainConfig
    world: World
    datasets: Dict[str, Any]
    classes: List[str]
    folder: Path = Path()
    signals: Signals = dataclasses.field(default_factory=Signals)
    caches: Dict[str, Tuple[str, CachedDataset]] = dataclasses.field(default_factory=dict)

    @property
    def train_targets(self) -> np.ndarray:
        return self.datasets['train'].targets

    @property
    def test_split(self) -> str:
        """The split that networks are tested on: 'val' where there is no test split."""
        return 'test' if 'test' in self.datasets else 'val'

    def create_loaders(
        self, model: nn.Module, img_size: ImageSize, only: Optional[str] = None, **of_training: Any
    ) -> Dict[str, SplitLoader]:
        """Loaders of all splits, or only of one, normalised for the model; cached once the run's folder is open.

        Args:
            model: The model.
            img_size: Height and width of its images, one number for both, or two.
            only: The only split to load.
            of_training: Arguments of `SplitLoader` for the training split: with_index, views, in_order.
        """
        return {
            split: self._create_loader(split, model, img_size, **(of_training if split == 'train' else {}))
            for split in self.datasets
            if only in (None, split)
        }

    def data_config(self, model: nn.Module, img_size: ImageSize) -> Dict[str, Any]:
        """How timm resizes, crops and normalises images for a model."""
        input_size = (self.config.in_chans, *to_height_width(img_size))
        return timm.data.resolve_data_config(dict(input_size=input_size), model=model)

    def _create_loader(self, split: str, model: nn.Module, img_size: ImageSize, **training_args: Any) -> SplitLoader:
        config, world = self.config, self.world
        if split == 'train':
            weights = sample_weights(config.sampler, self.train_targets) if config.sampler else None
            training_args.update(augment=config, weights=weights)
        return SplitLoader(
            self.datasets[split],
            self.data_config(model, img_size),
            config.batch_size,
            num_workers=config.workers,
            device=world.device,
            seed=config.seed,
            rank=world.rank,
            world_size=world.size,
            local_size=world.local_size,
            cache=functools.partial(self._cache, split, config.cache) if config.cache and self.folder.name else None,
            **training_args,
        )

    def _cache(self, split: str, kind: str, dataset: Any, transform: transforms.Compose) -> CachedDataset:
        """The cache of a split, shared by consecutive networks that use the same deterministic transform."""
        wanted = repr(transform)
        if split in self.caches and self.caches[split][0] != wanted:
            del self.caches[split]  # the previous network is trained: free its memory first
        if split not in self.caches:
            folder = Path(self.config.cache_dir or Path(self.config.output) / '.cache')
            self.caches[split] = wanted, cache_images(dataset, transform, kind, folder, f"split '{split}'", self.world)
        return self.caches[split][1]

    def class_weights(self) -> Optional[torch.Tensor]:
        """Weights of the classes in the cross entropy, (K,); None for equal weights."""
        kind = self.config.class_weights
        if kind is None:
            return None
        targets = getattr(self.datasets['train'], 'targets', None)  # streamed datasets have none
        return torch.tensor(class_weights(kind, targets, self.classes), dtype=torch.float32)

    def stop_if_asked(self, save: Optional[Callable[[], None]] = None) -> None:
        """Stop if a signal asked any of the processes to; `save` is called first.

        Raises:
            Interrupted: if a signal was received.
        """
        signum = self.world.max(self.signals.received or 0)
        if signum:
            if save is not None:
                save()
            raise Interrupted(signum, self.folder)

    def describe(self) -> Dict[str, Any]:
        """What metrics.json of a run reports beside the results."""
        return {
            'classes': self.classes,
            'images': {split: len(dataset) for split, dataset in self.datasets.items()},
            'img_size': self.config.img_size,
            **self.describe_environment(),
        }

    def describe_environment(self) -> Dict[str, Any]:
        """What results may depend on beside the settings."""
        return {
            'versions': {
                'hdkd_timm': __version__,
                'timm': timm.__version__,
                'torch': torch.__version__,
                'python': sys.version.split()[0],
            },
            'device': describe_device(self.world.device),
            'processes': self.world.size,
        }


def prepare_run(config: TrainConfig, world: World, resume: bool) -> RunContext:
    """Check the settings against what is installed and against the images, which are read here; nothing is written.

    Raises:
        FileNotFoundError, ValueError, ImportError, MemoryError: bad settings or images.
    """
    if resume and config.experiment is None:
        raise ValueError(
            '--resume needs to know the run: --config runs/NAME/config.yaml, or its settings and --experiment NAME.'
        )
    check_logs(config.log)
    if config.torchcompile:
        backends = torch.compiler.list_backends(exclude_tags=())
        if config.torchcompile not in backends:
            raise ValueError(
                f"--torchcompile '{config.torchcompile}' is not a backend: choose from {', '.join(backends)}."
            )
    datasets, classes = create_datasets(config, config.batch_size)
    if config.early_stopping and 'val' not in datasets:
        raise ValueError('--early-stopping needs a val split: add one, or use --val-fraction or --folds.')
    if getattr(datasets['train'], 'targets', None) is None:
        _check_without_random_access(config)
    if config.smote:
        datasets['train'] = smote(datasets['train'], config.smote, classes, config.input_size[1:], seed=config.seed)
    return RunContext(config, world, datasets, classes)


def _check_without_random_access(config: TrainConfig) -> None:
    """Raise ValueError for settings that a streamed dataset, without targets known beforehand, cannot have."""
    needs_targets = [
        name for name in ('class_weights', 'sampler', 'smote') if getattr(config, name) in ('balanced', 'effective')
    ]
    needs_targets += [name for name in ('cache', 'smote') if getattr(config, name)]
    if needs_targets:
        raise ValueError(
            f"{flag(needs_targets[0])} needs a dataset with random access, which '{config.dataset}' does not have."
        )


@contextlib.contextmanager
def open_run(
    context: RunContext, resume: bool, overwrite: bool, networks: Dict[str, TrainConfig], inputs: Dict[str, Any]
) -> Iterator[None]:
    """The run's folder, which the first process opens for all.

    Args:
        context: The run, which gets its folder, and a name if it has none.
        resume: As in `run_folder`.
        overwrite: As in `run_folder`.
        networks: As in `check_run`.
        inputs: As in `keep_inputs`.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: as `run_folder`, `check_run`, `keep_images` and `keep_inputs`.
    """
    world = context.world
    with contextlib.ExitStack() as stack:
        error = None
        if world.is_primary:
            try:
                context.config, context.folder = _open_folder(context, stack, resume, overwrite, networks)
                keep_images(list_images(context.datasets, context.classes), context.folder)
                add_sums(context.folder, IMAGES_FILE)
                keep_inputs(inputs, context.folder)
            except Exception as e:
                error = e
        error, context.folder, context.config = world.gather((error, context.folder, context.config))[0]
        if error is not None:
            raise error
        if world.is_primary:
            _log_images(context)
        with context.signals, kept_memory(world.device):
            yield


def _open_folder(
    context: RunContext,
    stack: contextlib.ExitStack,
    resume: bool,
    overwrite: bool,
    networks: Dict[str, TrainConfig],
) -> Tuple[TrainConfig, Path]:
    """Open the folder of a run until `stack` is closed. Returns the settings with the run's name, and the folder."""
    config = context.config

    def open_as(experiment: str, overwrite: bool) -> Tuple[TrainConfig, Path]:
        named = dataclasses.replace(config, experiment=experiment)
        return named, stack.enter_context(
            run_folder(
                named.output,
                experiment,
                to_yaml(named),
                resume,
                overwrite,
                free_settings(config),
                functools.partial(check_run, networks),
                default_settings(config),
            )
        )

    if config.experiment:
        return open_as(config.experiment, overwrite)
    name = f'{time.strftime("%Y%m%d-%H%M%S")}-{config.model.split("/")[-1]}'
    return with_free_name(Path(config.output, name), lambda path: open_as(path.name, overwrite=False))


def _log_images(context: RunContext) -> None:
    datasets, world = context.datasets, context.world
    counts = ''
    if hasattr(datasets['train'], 'targets'):
        numbers = count_classes(context.train_targets, context.classes)
        counts = f' (training: {", ".join(f"{name} {number}" for name, number in numbers.items())})'
    images = ', '.join(f'{split} {len(dataset)}' for split, dataset in datasets.items())
    processes = f', {world.size} processes' if world.is_distributed else ''
    what = 'labels' if context.config.multi_label else 'classes'
    _logger.info(f'{len(context.classes)} {what}{counts}, images: {images}; device {world.device}{processes}')
    if 'val' not in datasets:
        _logger.info('No val split: the last epoch is kept.')
    else:
        warn_of_few_images(context)
    if 'test' not in datasets:
        _logger.warning(
            'No test split: the results are those of the best epoch on val, which are optimistically biased.'
        )


def warn_of_few_images(context: RunContext) -> None:
    """Warn if the val split has so few images of a class, or with a label, that chance may select the epoch."""
    config, targets = context.config, getattr(context.datasets['val'], 'targets', None)  # streamed datasets have none
    if config.select_metric not in EQUAL_CLASSES or targets is None:
        return
    numbers = count_classes(targets, context.classes)
    few = [f'{name} {number}' for name, number in numbers.items() if number < FEW_IMAGES]
    what = 'labels' if config.multi_label else 'classes'
    if few:
        _logger.warning(
            f'{config.select_metric} weights all {what} equally, and the val split has fewer than {FEW_IMAGES} images'
            f' of {len(few)} of {len(numbers)} {what} ({", ".join(few)}): chance may select the epoch. Hold out more'
            ' images, use --select-metric log_loss, or train without a val split, which keeps the last epoch.'
        )
