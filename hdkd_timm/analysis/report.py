"""`hdkd report`: report.html, a page with the results of a run, or of several runs side by side.

It is made from the files of the run, its model and its images, and needs no network access and no scripts.
"""

import logging
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from ..data.config import DataConfig
from ..data.datasets import read_splits
from ..evaluation.plots import MAX_BARS, MAX_CELLS, MAX_NAMES
from ..evaluation.problem import SingleLabel
from ..evaluation.run_results import (
    NetworkResults,
    count_images,
    count_per_split,
    list_missing_files,
    list_unfinished,
    read_networks,
    read_settings,
    read_source,
)
from ..utils.files import PathLike, atomic_write
from ..utils.run_files import IMAGES_FILE
from ..utils.text import printable
from .comparison import choose_comparisons, compare, list_mismatches
from .data_check import CheckConfig, DataCheck, check_data, check_samples, list_leaks, summarize
from .mistakes import show_mistakes
from .report_files import PAGE, PICTURES, check_destination, replace_report
from .report_plots import Pictures, plot_counts, plot_network
from .report_tables import (
    class_table,
    confusion_table,
    describe_calibration,
    describe_network,
    metrics_table,
    settings_table,
)

_logger = logging.getLogger(__name__)


def load_template(name: str = PAGE) -> Any:
    """A Jinja template of the package.

    Raises:
        ImportError: without Jinja2.
    """
    try:
        import jinja2
    except ImportError as e:
        raise ImportError("Reports need Jinja2 and matplotlib: pip install 'hdkd-timm[report]'.") from e
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / 'templates'),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    return environment.get_template(name)


def _check_no_study(run: Path) -> None:
    """Raise ValueError for the folder of a study, of which a report would show nothing but the teacher."""
    if 'arms' in read_settings(run):
        raise ValueError(
            f"'{run}' is a study, whose page is '{run / 'study.html'}': give its runs, such as"
            f" '{run / 'runs' / 'ARM-SEED'}', or '{run / 'teacher'}'."
        )


def _check_run(run: Path) -> DataCheck:
    """The images of a run, in its splits."""
    config = DataConfig(**read_source(run, read_settings(run)))
    if config.data_csv == str(run / IMAGES_FILE):
        return check_data(CheckConfig(data_csv=config.data_csv, multi_label=config.multi_label))
    return check_samples(*read_splits(config))


def _check_images(run: Path) -> Dict[str, Any]:
    """Sentences about duplicates and leaks, and whether there are leaks or contradictory labels (None if unknown)."""
    if not (run / IMAGES_FILE).is_file():
        return dict(lines=['The run has no list of its images, so they were not checked.'], leaks=None)
    _logger.info('Looking for duplicates among the images of the run.')
    try:
        summary = summarize(_check_run(run))
    except (OSError, ValueError) as e:
        return dict(lines=[f'The images could not be checked: {e}'], leaks=None)
    leaks, unreadable, pairs = list_leaks(summary), summary['unreadable'], summary['pairs']
    if len(unreadable) == sum(summary['total'].values()):
        return dict(lines=[f'The images could not be checked: {next(iter(unreadable.values()))}'], leaks=None)
    lines = [
        f'Pairs of duplicates: {pairs["file"]:,} equal files, {pairs["pixels"]:,} equal pixels in different files,'
        f' {pairs["near"]:,} near-duplicates.'
    ]
    if summary['labels_differ']:
        lines.append(f'Pairs of duplicates with different labels: {summary["labels_differ"]:,}.')
    if unreadable:
        lines.append(f'Images that cannot be read: {len(unreadable):,}.')
    if summary['changed']:
        lines.append(f'Images that have changed since the run read them: {len(summary["changed"]):,}.')
    lines += [f'{leak[0].upper()}{leak[1:]}.' for leak in leaks] or [
        'No image, near-duplicate or group is in two splits.'
    ]
    return dict(lines=lines, leaks=bool(leaks or summary['labels_differ']))


def _has_same_images(run: Path, other: Path) -> bool:
    """Whether two runs have identical lists of images."""
    path, other = run / IMAGES_FILE, other / IMAGES_FILE
    return path.is_file() and other.is_file() and path.read_bytes() == other.read_bytes()


def _network_section(
    network: NetworkResults,
    pictures: Pictures,
    stem: str,
    mistakes: int,
    device: Optional[str],
) -> Dict[str, Any]:
    """What the page shows about a network."""
    metrics, number = network.metrics, len(network.classes)
    images = count_per_split(network.run / IMAGES_FILE).get('train', 0)
    return dict(
        label=network.label,
        sentence=describe_network(network, read_settings(network.run), images),
        is_multi_label=network.problem is not SingleLabel,
        pictures=plot_network(network, pictures, stem),
        per_class=class_table(network),
        confusions=confusion_table(network),
        calibration=describe_calibration(network),
        split=network.split,
        missing=list_missing_files(network),
        is_large=number > MAX_CELLS,
        is_named=number <= MAX_NAMES,
        images=f'{network.result["images"]:,} {network.split} images',
        mistakes=show_mistakes(network, mistakes, pictures, stem, device),
        environment={
            'device': metrics.get('device'),
            'processes': metrics.get('processes'),
            **(metrics.get('versions') or {}),
        },
    )


def _network_sections(
    networks: Sequence[NetworkResults],
    pictures: Pictures,
    mistakes: int,
    device: Optional[str],
) -> List[Dict[str, Any]]:
    sections = []
    for i, network in enumerate(networks, 1):
        stem = f'{i}-{network.metrics["name"]}-' if len(networks) > 1 else ''
        stem = ''.join(c if c.isalnum() or c in '-_' else '_' for c in stem)
        sections.append(_network_section(network, pictures, stem, mistakes, device))
    return sections


def _data_sections(runs: Sequence[Path], pictures: Pictures, check: bool) -> List[Dict[str, Any]]:
    """What the page shows about the data of each run: counts of images and, if requested, duplicates."""
    sections: List[Dict[str, Any]] = []
    for i, run in enumerate(runs, 1):
        counts = count_images(run / IMAGES_FILE, bool(read_settings(run).get('multi_label')))
        totals = count_per_split(run / IMAGES_FILE)
        section: Dict[str, Any] = dict(name=run.resolve().name, counts=counts)
        if counts:
            file = f'{i}-classes.png' if len(runs) > 1 else 'classes.png'
            section['picture'] = plot_counts(counts, totals, pictures, file)
            labels = list(dict.fromkeys(label for of_class in counts.values() for label in of_class))
            section['classes'] = (
                [dict(name=label, numbers=[of_class.get(label, 0) for of_class in counts.values()]) for label in labels]
                if len(labels) > MAX_BARS
                else []
            )
        if check:
            same = next((done for done, other in zip(sections, runs) if _has_same_images(run, other)), None)
            section['check'] = dict(same['check'], same=same['name']) if same else _check_images(run)
        sections.append(section)
    return sections


def write_report(
    runs: Sequence[PathLike],
    out: Optional[PathLike] = None,
    mistakes: int = 12,
    check: bool = True,
    device: Optional[str] = None,
    resamples: int = 1000,
    seed: int = 42,
) -> Path:
    """Write report.html, a page about one or several runs, and its pictures as PNG files in report/.

    An existing report is replaced once the new one is complete.

    Args:
        runs: Runs, or folders of single networks in them.
        out: Folder to write into; by default that of the run, or of the network if it is the only one.
        mistakes: Number of the most confident mistakes of each network to show.
        check: Look for duplicates among the images, as `hdkd check` does.
        device: Device that explains the mistakes, the fastest one available by default.
        resamples: Resamples of the paired bootstrap.
        seed: Its seed.

    Returns:
        The page.

    Raises:
        FileNotFoundError, ValueError: as `read_networks`; if there are several runs and no `out`, or one is a study.
        FileExistsError: if a file that is not part of a report would be replaced.
        ImportError: without Jinja2 or matplotlib.
    """
    if mistakes < 0:
        raise ValueError(f'--mistakes must be at least 0, got {mistakes}.')
    template = load_template()
    for run in map(Path, runs):
        _check_no_study(run)
    networks = read_networks(runs)
    folders = list(dict.fromkeys(network.run for network in networks))
    if out is None and len(folders) > 1:
        raise ValueError('A report on several runs needs a directory: choose one with --out.')
    if out is None:
        out = networks[0].folder if networks[0].folder.resolve() in map(Path.resolve, map(Path, runs)) else folders[0]
    out = Path(out)
    check_destination(out)
    mismatches = list_mismatches(networks)
    with replace_report(out) as temporary:
        pictures = Pictures(temporary / PICTURES)
        page = template.render(
            title=', '.join(folder.resolve().name for folder in folders),
            networks=_network_sections(networks, pictures, mistakes, device),
            data=_data_sections(folders, pictures, check),
            metrics=metrics_table(networks, not mismatches),
            mismatches=mismatches,
            unfinished=list_unfinished(runs),
            comparisons=[compare(*pair, resamples, seed) for pair in choose_comparisons(networks)],
            runs=[folder.resolve().name for folder in folders],
            settings=settings_table(networks),
        )
        with atomic_write(temporary / PAGE) as file:
            file.write(page)
    return out / PAGE
