"""A network on all images of a split, and the files and tables that tell of it."""
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import torch
from torch import nn

from ..data.loader import SplitLoader
from ..utils.csv_files import write_table
from ..utils.distributed import World
from ..utils.signals import Signals
from .metrics import IN_PER_CENT, format_interval, format_metric


@torch.inference_mode()
def evaluate(
        model: nn.Module,
        loader: SplitLoader,
        world: World,
        amp_dtype: Optional[torch.dtype] = None,
        channels_last: bool = False,
        signals: Optional[Signals] = None,
) -> Optional[Tuple[np.ndarray, np.ndarray]]:
    """Probabilities (N, K) and class indices (N,) of all images of a split, those of all processes, in their order.

    None if a signal asked to stop.

    Raises:
        FloatingPointError: if an output is no finite number.
    """
    model.eval()
    probs, targets = [], []
    autocast = torch.autocast(world.device.type, amp_dtype, enabled=amp_dtype is not None)
    ends_early = signals is not None and not world.is_distributed  # the other processes would wait for this one
    for input, target in signals.watch(loader) if ends_early else loader:
        if channels_last:
            input = input.contiguous(memory_format=torch.channels_last)
        with autocast:
            output = model(input)
        probs.append(output.float().cpu().double().softmax(dim=1))
        targets.append(target.cpu())
    if ends_early and signals.received:
        return None
    shares = world.gather((torch.cat(probs), torch.cat(targets)) if probs else None)
    shares = [share for share in shares if share is not None]
    total = sum(len(t) for _, t in shares)
    all_probs, all_targets = shares[0][0].new_empty(total, shares[0][0].shape[1]), shares[0][1].new_empty(total)
    if loader.iterable:
        all_probs, all_targets = (torch.cat(parts) for parts in zip(*shares))
    else:
        for rank, (p, t) in enumerate(shares):  # image i is with process i % size
            all_probs[rank::len(shares)], all_targets[rank::len(shares)] = p, t
    if not torch.isfinite(all_probs).all():
        raise FloatingPointError('The outputs are no finite numbers any more: try a lower learning rate.')
    return all_probs.numpy(), all_targets.numpy()


def write_predictions(
        path: Path,
        names: List[str],
        probs: np.ndarray,
        classes: List[str],
        targets: Optional[np.ndarray] = None,
) -> None:
    """Write a CSV file with path, target (where known), label (the most probable class) and prob_<class> of each.

    Probabilities have the digits that give them back. Rows are written as they are made: their text takes twenty times
    the memory of the numbers.
    """
    def cells(i: int) -> List[str]:
        target = [] if targets is None else [classes[targets[i]]]
        return [names[i], *target, classes[int(probs[i].argmax())], *map(repr, probs[i].astype(float).tolist())]

    columns = ['path', *([] if targets is None else ['target']), 'label', *(f'prob_{label}' for label in classes)]
    write_table(columns, map(cells, range(len(names))), path)


def format_table(metrics: Dict[str, Any]) -> str:
    """The results of `train` and `distill` as a table, a row a network, with 95 % intervals where there are."""
    split = 'test' if 'test' in next(iter(metrics['models'].values())) else 'val'
    rows = [['network', 'parameters', f'{split} accuracy', 'balanced accuracy', 'macro AUROC', 'training']]
    for name, result in metrics['models'].items():
        report = result[split]
        cells = []
        for key in IN_PER_CENT:
            interval = format_interval(key, report.get('intervals_95', {}).get(key))
            shown = f" ({interval.replace(' %', '').replace(' to ', '-')})" if interval else ''
            cells.append(format_metric(key, report[key]).replace(' ', '') + shown)
        cells.append(format_metric('macro_auroc', report['macro_auroc']).replace('–', '-'))
        seconds = f"{result['train_seconds']:.0f} s" if 'train_seconds' in result else 'given'
        rows.append([name, f"{result['parameters']:,}", *cells, seconds])
    widths = [max(least, *map(len, column)) for least, column in zip((13, 9, 20, 20, 11, 8), zip(*rows))]
    return '\n'.join('  '.join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]) for name, *cells in rows)
