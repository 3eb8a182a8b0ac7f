"""The results of a study as CSV, Markdown, a picture and a page."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from ..analysis.comparison import format_differences
from ..analysis.report import load_template
from ..analysis.report_plots import Pictures
from ..evaluation.metrics import IN_PER_CENT, LOWER_IS_BETTER, METRIC_NAMES, format_metric
from ..evaluation.plots import COLOURS, add_legend, line_style, new_figure, save_figure, shorten_name
from ..utils.csv_files import write_rows
from ..utils.files import atomic_write
from ..utils.image_size import format_image_size
from ..utils.run_files import CONFIG_FILE
from .config import StudyConfig, list_arms
from .results import ArmResult, study_table

TABLE, MARKDOWN, PAGE = 'results.csv', 'results.md', 'study.html'
PICTURE, CURVE = 'comparison.png', 'learning_curve.png'
RESAMPLES = 2000
PICTURE_CAPTION = (
    '{metric} on {split}: a dot per seed, a bar for their mean; on the right the difference to {baseline} with its 95 %'
    ' interval.'
)
CURVE_CAPTION = (
    '{metric} on {split} by the number of training images: a dot per seed, lines through their means; on the right the'
    ' difference to {baseline} with its 95 % interval.'
)


def write_study(config: StudyConfig, folder: Path, arms: Sequence[ArmResult], problems: Sequence[str]) -> str:
    """Write results.csv, results.md, comparison.png (learning_curve.png, if there are several fractions of the training
    images) and study.html into the folder of a study.

    Args:
        config: Settings of the study.
        folder: Its folder.
        arms: Results of its arms, at least one.
        problems: What the reader must know, such as runs that failed.

    Returns:
        The table as Markdown.

    Raises:
        ValueError: if arms were not tested on the same images.
        ImportError: without Jinja2 or matplotlib.
    """
    template = load_template(PAGE)
    baseline = config.baseline or next(iter(list_arms(config)))
    metrics = list(dict.fromkeys((config.select_metric, *config.problem.shown, 'log_loss')))
    rows = study_table(arms, baseline, metrics, RESAMPLES)
    split = next(iter(arms[0].students.values())).split
    has_val = has_val_results(rows, config.select_metric)
    columns, cells = format_rows(rows, baseline, config.select_metric, split)
    table = format_markdown(columns, cells)
    write_rows(rows, folder / TABLE)
    with atomic_write(folder / MARKDOWN) as file:
        file.write(f'{table}\n\n{describe(config, baseline, split)}\n')
    picture, caption = (CURVE, CURVE_CAPTION) if config.train_fractions else (PICTURE, PICTURE_CAPTION)
    plot = plot_curve if config.train_fractions else plot_arms
    plot(arms, rows, config.select_metric, split, folder / picture)
    metric = METRIC_NAMES[config.select_metric]
    page = template.render(
        title=folder.resolve().name,
        sentences=state_differences(rows, baseline, config.select_metric, split),
        summary=describe(config, baseline, split),
        problems=problems,
        picture=Pictures(folder).embed(picture, f'{metric} of each arm, see the table'),
        caption=caption.format(metric=metric[0].upper() + metric[1:], split=split, baseline=baseline),
        table_caption=describe_order(split, has_val),
        columns=columns,
        rows=cells,
        config=CONFIG_FILE,
        arms=[(name, _describe_settings(values)) for name, values in list_arms(config).items()],
    )
    with atomic_write(folder / PAGE) as file:
        file.write(page)
    return table


def state_differences(rows: Sequence[Dict[str, Any]], baseline: str, metric: str, split: str) -> List[str]:
    """The differences to the baseline as sentences: of the arm that is best on val; of each arm where none is chosen,
    or where it may be another for each fraction of the training images.

    Args:
        rows: Those of `study_table`.
        baseline: Name of the arm that the others are compared with.
        metric: The metric that selects epochs.
        split: Split of the results.
    """
    order = [row for row in order_rows(rows, metric) if f'{metric}_difference' in row]
    has_fractions = any('train_fraction' in row for row in rows)
    names = list(dict.fromkeys(row['arm'] for row in order))
    chosen = [] if has_fractions or not has_val_results(order, metric) else names[:1]
    sentences = []
    for name in chosen or names:
        parts = [_describe_difference(row, metric) for row in order if row['arm'] == name]
        best = f"Best on val, apart from the baseline '{baseline}', is '{name}'. " if chosen else ''
        sentences.append(
            f"{best}'{name}' compared with '{baseline}': {METRIC_NAMES[metric]} on {split} differs by"
            f' {", ".join(parts)}.' + ' The same images selected the epochs, so this is optimistic.' * (split == 'val')
        )
    return sentences


def _describe_difference(row: Dict[str, Any], metric: str) -> str:
    low, high = row[f'{metric}_low'], row[f'{metric}_high']
    is_known = math.isfinite(low) and math.isfinite(high)
    interval = f' (95 % interval {format_differences(metric, low, high)})' if is_known else ''
    images = f' with {row["train_images"]:,} images' if 'train_fraction' in row else ''
    return f'{format_differences(metric, row[f"{metric}_difference"])}{interval}{images}'


def has_val_results(rows: Sequence[Dict[str, Any]], metric: str) -> bool:
    """Whether any arm has results on val."""
    return any(not math.isnan(row[f'val_{metric}']) for row in rows)


def order_rows(rows: Sequence[Dict[str, Any]], metric: str) -> List[Dict[str, Any]]:
    """The best arm on val first, in the order of the study where there is no val; from few training images to many."""
    sign = 1 if metric in LOWER_IS_BETTER else -1
    scores = [math.inf if math.isnan(row[f'val_{metric}']) else sign * row[f'val_{metric}'] for row in rows]
    return [rows[i] for i in sorted(range(len(rows)), key=lambda i: (rows[i].get('train_fraction', 1), scores[i]))]


def describe(config: StudyConfig, baseline: str, split: str) -> str:
    """What the table shows, in a few sentences."""
    arms = list_arms(config)
    varied = {name for values in arms.values() for name in values}
    shared = [f'{config.epochs} epoch{"s" * (config.epochs > 1)}'] * ('epochs' not in varied) + [
        f'{format_image_size(config.img_size)} px'
    ] * ('img_size' not in varied)
    where = ''
    if config.train_fractions:
        shared.append(f'{format_fractions(config.train_fractions)} of the training images')
        where = ' at the same fraction'
    return (
        f'{len(arms)} arm{"s" * (len(arms) > 1)}, {len(config.seeds)} seeds ({", ".join(map(str, config.seeds))})'
        f'{"".join(f", {text}" for text in shared)}. Mean and standard deviation over the seeds that are finished;'
        f' differences to {baseline}{where} are means over the seeds that both have, with paired 95 %'
        f' intervals over the {split} images ({RESAMPLES} resamples), which do not include the chance of the seeds.'
    )


def format_fractions(fractions: Sequence[float]) -> str:
    """Such as '1, 10 and 100 %'."""
    *others, last = [f'{100 * fraction:g}' for fraction in sorted(fractions)]
    return f'{", ".join(others)} and {last} %' if others else f'{last} %'


def describe_order(split: str, has_val: bool) -> str:
    """How the table is ordered, and what that means."""
    if split != 'test':
        return 'Best first. Without a test split these are the best epochs on val, which are optimistically biased.'
    if has_val:
        return 'Best on val first. The test images took no part in any choice.'
    return 'In the order of the study. There is no val split to choose an arm by: do not choose by the test images.'


def _describe_settings(values: Dict[str, Any]) -> str:
    default = {field.name: field.default for field in dataclasses.fields(StudyConfig)}
    shown = {name: value for name, value in values.items() if value != default.get(name)}
    words = {name: ' '.join(map(str, v)) or 'default' if isinstance(v, tuple) else v for name, v in shown.items()}
    return ', '.join(f'{name}: {value}' for name, value in words.items()) or 'those of the study'


def format_rows(
    rows: Sequence[Dict[str, Any]], baseline: str, metric: str, split: str
) -> Tuple[List[str], List[List[str]]]:
    """Column names and cells for display, in the order of `order_rows`; without a column of val if there is none.

    Args:
        rows: Those of `study_table`.
        baseline: Name of the arm that the others are compared with.
        metric: The metric that selects epochs; its differences are shown.
        split: Split of the results.
    """
    shown = list(dict.fromkeys((metric, 'macro_auroc', 'log_loss')))
    has_fractions = any('train_fraction' in row for row in rows)
    columns = ['arm', *(['training images'] * has_fractions), 'seeds']
    has_val = split != 'val' and has_val_results(rows, metric)
    columns += [f'val {METRIC_NAMES[metric]}'] * has_val
    columns += [f'{split} {METRIC_NAMES[name]}' for name in shown]
    unit = ' (points)' if metric in IN_PER_CENT else ''  # not in each cell
    columns += [f'difference to {baseline}{unit}', 'parameters', 'training time']
    cells = []
    for row in order_rows(rows, metric):
        difference = '–'
        if f'{metric}_difference' in row:
            interval = format_differences(metric, row[f'{metric}_low'], row[f'{metric}_high'])
            spread = _format_spread(metric, row[f'{metric}_difference_sd'])
            middle = format_differences(metric, row[f'{metric}_difference'])
            difference = f'{middle}{spread} ({interval})'.replace(' points', '')
        values = [_format_mean(row, 'val', metric)] if has_val else []
        values += [_format_mean(row, split, name) for name in shown]
        size, time = f'{row["parameters"]:,}', f'{row["seconds"] / 60:.1f} min'
        seeds = str(row['seeds']) if row['seeds'] == row['planned'] else f'{row["seeds"]} of {row["planned"]}'
        images = [f'{row["train_images"]:,} ({100 * row["train_fraction"]:g} %)'] if has_fractions else []
        cells.append([row['arm'], *images, seeds, *values, difference, size, time])
    return columns, cells


def _format_mean(row: Dict[str, Any], split: str, metric: str) -> str:
    return format_metric(metric, row[f'{split}_{metric}']) + _format_spread(metric, row[f'{split}_{metric}_sd'])


def _format_spread(metric: str, spread: float) -> str:
    if math.isnan(spread):
        return ''
    return f' ± {100 * spread:.1f}' if metric in IN_PER_CENT else f' ± {spread:.3f}'


def format_markdown(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; all but the first column are aligned to the right."""
    lines = [columns, ['---', *['---:'] * (len(columns) - 1)], *cells]
    return '\n'.join(f'| {" | ".join(cell.replace("|", "/") for cell in line)} |' for line in lines)


def plot_arms(arms: Sequence[ArmResult], rows: Sequence[Dict[str, Any]], metric: str, split: str, path: Path) -> None:
    """Write a PNG of a metric of each arm: a dot per seed and the mean, and the differences to the baseline.

    Args:
        arms: Results of the arms.
        rows: Their rows of `study_table`.
        metric: The metric.
        split: Split of the results.
        path: File to write.

    Raises:
        ImportError: without matplotlib.
    """
    scale = 100 if metric in IN_PER_CENT else 1
    unit = ' (%)' if metric in IN_PER_CENT else ''
    figure = new_figure(9.0, 1.2 + 0.36 * len(arms))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.4, 1))
    for i, (arm, row) in enumerate(zip(arms, rows)):
        values = scale * np.array(arm.values(split, metric))
        left.plot(values, np.full(len(values), i), 'o', color=COLOURS[0], alpha=0.6, markersize=5)
        left.plot([values.mean()] * 2, [i - 0.3, i + 0.3], color=COLOURS[3], linewidth=2)
        if f'{metric}_difference' in row:
            middle, low, high = (scale * row[f'{metric}_{name}'] for name in ('difference', 'low', 'high'))
            right.plot([low, high], [i, i], color=COLOURS[0], linewidth=2)
            right.plot(middle, i, 'o', color=COLOURS[3], markersize=5)
    right.axvline(0, color='0.5', linewidth=0.8)
    left.set_yticks(range(len(arms)), [shorten_name(arm.arm, 28) for arm in arms], parse_math=False)
    left.invert_yaxis()
    left.set(xlabel=f'{split} {METRIC_NAMES[metric]}{unit}')
    right.set(xlabel=f'difference to the baseline{" (points)" if unit else ""}')
    for axes in (left, right):
        axes.grid(axis='x', alpha=0.3)
    save_figure(figure, path, 110)


def plot_curve(arms: Sequence[ArmResult], rows: Sequence[Dict[str, Any]], metric: str, split: str, path: Path) -> None:
    """Write a PNG of a metric of each arm by the number of training images: a dot per seed and lines through the means,
    and the differences to the baseline.

    Args:
        arms: Results of the arms at each fraction of the training images.
        rows: Their rows of `study_table`.
        metric: The metric.
        split: Split of the results.
        path: File to write.

    Raises:
        ImportError: without matplotlib.
    """
    scale = 100 if metric in IN_PER_CENT else 1
    unit = ' (%)' if metric in IN_PER_CENT else ''
    figure = new_figure(9.0, 4.2)
    left, right = figure.subplots(1, 2, width_ratios=(1.4, 1))
    names = list(dict.fromkeys(arm.arm for arm in arms))
    for i, name in enumerate(names):  # lines before dots: the legend takes the first
        points = _curve_of_arm(name, arms, rows)
        means = [scale * row[f'{split}_{metric}'] for _, row in points]
        left.plot([arm.train_images for arm, _ in points], means, **line_style(i))
    for i, name in enumerate(names):
        color = line_style(i)['color']
        for arm, row in _curve_of_arm(name, arms, rows):
            values = scale * np.array(arm.values(split, metric))
            left.plot([arm.train_images] * len(values), values, 'o', color=color, alpha=0.5, markersize=4)
            if f'{metric}_difference' in row:
                middle, low, high = (scale * row[f'{metric}_{key}'] for key in ('difference', 'low', 'high'))
                place = arm.train_images * 1.06**i  # beside the intervals of the other arms
                right.plot([place] * 2, [low, high], color=color, linewidth=2)
                right.plot(place, middle, 'o', color=color, markersize=5)
    right.axhline(0, color='0.5', linewidth=0.8)
    left.set(ylabel=f'{split} {METRIC_NAMES[metric]}{unit}')
    right.set(ylabel=f'difference to the baseline{" (points)" if unit else ""}')
    ticks = sorted({arm.train_images for arm in arms})
    for axes in (left, right):
        axes.set(xscale='log', xlabel='training images')
        axes.set_xticks(ticks, [f'{tick:,}' for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    add_legend(left, [shorten_name(name, 28) for name in names])
    save_figure(figure, path, 110)


def _curve_of_arm(
    name: str, arms: Sequence[ArmResult], rows: Sequence[Dict[str, Any]]
) -> List[Tuple[ArmResult, Dict[str, Any]]]:
    """An arm and its row at each fraction, from few training images to many."""
    return sorted(
        ((arm, row) for arm, row in zip(arms, rows) if arm.arm == name), key=lambda point: point[0].train_images
    )
