"""How the time of a training step grows with the image size and the batch size."""

import statistics
from typing import List

import torch

from ..utils.memory import kept_memory
from .config import BenchConfig
from .step import StepForm, create_step
from .tables import Row
from .timing import take_turns


def measure_growth(config: BenchConfig, device: torch.device) -> List[Row]:
    """Time a step by image size and by batch size; the ratio is that of the time per image and pixel."""
    form = StepForm(channels_last=True, fused=True, kept=True, amp=device.type != 'cpu')
    rows = []
    for name, sizes, batches in (
        ('image size', config.growth_sizes, (config.batch_size,)),
        ('batch size', (config.img_size,), config.growth_batches),
    ):
        cases = [(size, batch) for size in sizes for batch in batches]
        with kept_memory(device):
            seconds = take_turns(
                {
                    (size, batch): create_step(form, batch, size, device, getattr(torch, config.amp_dtype))
                    for size, batch in cases
                },
                config.rounds,
                device,
            )
        per_pixel = {case: value / (case[0] ** 2 * case[1]) for case, value in seconds.items()}
        middle = statistics.median(per_pixel.values())
        rows.extend(
            dict(
                part='growth',
                name=name,
                img_size=size,
                batch_size=batch,
                ms=1000 * seconds[size, batch],
                images_per_second=batch / seconds[size, batch],
                ratio=per_pixel[size, batch] / middle,
            )
            for size, batch in cases
        )
    return rows
