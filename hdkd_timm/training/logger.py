"""Logs of a training: summary.csv, TensorBoard, Weights & Biases, and a progress bar."""

import math
import sys
import uuid
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from tqdm import tqdm

from ..utils.config import read_yaml
from ..utils.csv_files import write_rows
from ..utils.files import atomic_write
from ..utils.run_files import SUMMARY_FILE

LOGS = ('tensorboard', 'wandb')


def check_logs(names: Sequence[str]) -> None:
    """Check that the packages of these logs are installed.

    Raises:
        ImportError: if one is not.
    """
    for name in names:
        try:
            __import__(name)
        except ImportError as e:
            raise ImportError(f"--log {name} needs {name}: pip install 'hdkd-timm[{name}]'.") from e


class EpochLog:
    """Writes one row per epoch to summary.csv, and the newest row to the other logs.

    Args:
        folder: Folder of the run.
        name: Name of the run in Weights & Biases.
        logs: Some of `LOGS`.
    """

    def __init__(self, folder: Path, name: str, logs: Sequence[str] = ()):
        self.path = folder / SUMMARY_FILE
        self.tensorboard = self.wandb = None
        if 'tensorboard' in logs:
            from torch.utils.tensorboard import SummaryWriter

            self.tensorboard = SummaryWriter(str(folder / 'tensorboard'))
        if 'wandb' in logs:
            import wandb

            config = next(path for path in (folder / 'config.yaml', folder.parent / 'config.yaml') if path.exists())
            id_file = folder / 'wandb_id.txt'  # stays with the folder: a resumed run is the same one, another is not
            if not id_file.exists():
                with atomic_write(id_file) as file:
                    file.write(uuid.uuid4().hex)
            self.wandb = wandb.init(
                project='hdkd_timm',
                name=name,
                id=id_file.read_text(),
                resume='allow',
                dir=str(folder),
                config=read_yaml(config),
            )

    def write(self, rows: List[Dict[str, Any]]) -> None:
        """Write all rows so far; the last one is new."""
        write_rows(rows, self.path, summed=True)
        row = {key: value for key, value in rows[-1].items() if isinstance(value, (int, float)) and key != 'epoch'}
        row = {key: value for key, value in row.items() if math.isfinite(value)}
        epoch = rows[-1]['epoch']
        if self.tensorboard is not None:
            for key, value in row.items():
                self.tensorboard.add_scalar(key.replace('_', '/', 1), value, epoch)
            self.tensorboard.flush()
        if self.wandb is not None:
            self.wandb.log(row, step=epoch, commit=True)  # now, not with the next epoch

    def close(self) -> None:
        if self.tensorboard is not None:
            self.tensorboard.close()
        if self.wandb is not None:
            self.wandb.finish()


class Progress:
    """A progress bar over an epoch's images on a terminal, nothing elsewhere."""

    def __init__(self, title: str, images: Optional[int], done: int = 0, show: bool = True):
        self.bar = tqdm(
            desc=title,
            total=images or None,
            initial=done,
            unit='img',
            leave=False,
            file=sys.stderr,
            disable=None if show else True,
            dynamic_ncols=True,
        )

    def update(self, images: int, parts: Optional[Dict[str, float]] = None) -> None:
        """Advance by a number of images, and show values of the loss."""
        if parts:
            short = {name.removesuffix('_loss').replace('feature_loss_', 'feature'): v for name, v in parts.items()}
            self.bar.set_postfix({name: f'{value:.3g}' for name, value in short.items()}, refresh=False)
        self.bar.update(images)

    def close(self) -> None:
        self.bar.close()
