"""All parts of the benchmark: `hdkd bench`.

    step                a training step of HDKD in several forms
    profile             what the time of a step goes into, and how far each part is from what the machine can do
    inference           images per second of our networks and of others of timm's, in several forms
    inference-profile   what the time of a forward pass goes into, as for a step
    epoch               images per second of a training from files, with and without a cache
    growth              time of a training step by image size and by batch size

Weights and images are random, which makes no difference to the time.
"""

from pathlib import Path
from typing import Callable, List

import timm

from ..sharing.export import import_packages
from ..utils.csv_files import write_rows
from ..utils.distributed import pick_device
from ..utils.files import check_output_file
from .config import EXPORTS, MODELS, BenchConfig
from .epoch import measure_epochs
from .growth import measure_growth
from .inference import measure_inference
from .machine import describe_machine
from .profile import measure_inference_profile, measure_profile
from .step import measure_steps
from .tables import HEADINGS, Row, format_rows

MEASURES = {
    'step': measure_steps,
    'profile': measure_profile,
    'inference': measure_inference,
    'inference-profile': measure_inference_profile,
    'epoch': measure_epochs,
    'growth': measure_growth,
}


def run_benchmark(config: BenchConfig, report: Callable[[str], None] = print) -> List[Row]:
    """Measure what the settings name, report each table when it is complete, and write the rows to a CSV file.

    Returns:
        One row per form: 'part', 'name', 'ms' per step or batch, 'ratio' and more, see `tables.COLUMNS`.

    Raises:
        FileExistsError: if the CSV file exists.
        FileNotFoundError: if its folder does not.
        ImportError: if packages for exported forms are missing.
        ValueError: for an unknown model.
    """
    out = Path(config.out)
    check_output_file(out, '--out')
    for name in config.models:
        if not timm.is_model(name):
            raise ValueError(f"Unknown model '{name}' in --models: choose timm's or {', '.join(MODELS)}.")
    device = pick_device(config.device)
    if 'inference' in config.parts and device.type == 'cpu':
        for form in config.forms:
            if form in EXPORTS:
                import_packages(*EXPORTS[form])
    machine = describe_machine(device)
    report(machine)
    rows: List[Row] = []
    for part in config.parts:
        for row in MEASURES[part](config, device):
            rows.append(dict(row, machine=machine))
            write_rows(rows, out)  # after each row, so that a later failure loses nothing
        report(f'\n{HEADINGS[part].format(**vars(config))}\n\n{format_rows(rows, part)}')
    return rows
