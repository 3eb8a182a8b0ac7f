"""Plots of results with matplotlib (extra `plots`)."""

import math
import warnings
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from ..data.targets import to_indicators
from ..utils.files import PathLike
from ..utils.text import printable
from .metrics import METRIC_NAMES, binary_aurocs, expected_calibration_error, reliability

# the colour-blind-safe palette of Okabe and Ito; beyond eight, lines differ by their dashes
COLOURS = ('#0072B2', '#E69F00', '#009E73', '#D55E00', '#CC79A7', '#56B4E9', '#000000', '#B8A800')
OTHER_FONTS = (
    'Noto Sans CJK SC',
    'Noto Sans CJK JP',
    'Noto Sans CJK KR',
    'WenQuanYi Zen Hei',
    'Microsoft YaHei',
    'PingFang SC',
    'Hiragino Sans',
    'Malgun Gothic',
    'Arial Unicode MS',
    'Noto Sans Devanagari',
    'Noto Sans Arabic',
)
MAX_CELLS = 25  # largest number of classes for which a confusion matrix shows counts
MAX_NAMES = 60  # ... for which it shows class names
MAX_CURVES = 10  # ... for which every class has a curve in colour; beyond it, only the lowest and the highest do
LOWEST, HIGHEST = 5, 3
MAX_BARS = 40  # ... for which every class has its bars
DASHES = ('-', '--', ':', '-.')


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure, in inches, that needs no display and does not change matplotlib's state.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ImportError("Plots need matplotlib: pip install 'hdkd-timm[plots]'.") from e
    return Figure(figsize=(width, height), layout='constrained')


def line_style(i: int) -> Dict[str, Any]:
    return dict(color=COLOURS[i % len(COLOURS)], linestyle=DASHES[i // len(COLOURS) % len(DASHES)])


def shorten_name(name: str, length: int = 24) -> str:
    """A class name of limited length: long names keep their start and end, which distinguish them."""
    name = printable(name)
    end = length // 3
    return name if len(name) <= length else f'{name[: length - 1 - end]}…{name[-end:]}'


def format_percent(share: float) -> str:
    """A share as a percentage without decimals; 100 % and 0 % are exact, otherwise '>99 %' and '<1 %'."""
    if 0.995 <= share < 1:
        return '>99 %'
    return '<1 %' if 0 < share <= 0.005 else f'{100 * share:.0f} %'


def add_legend(axes: Any, labels: Sequence[str], **kwargs: Any) -> None:
    """A legend of the first lines of the axes, without math mode and including labels that start with an underscore."""
    legend = axes.legend(axes.get_lines()[: len(labels)], labels, **{'fontsize': 8, **kwargs})
    for text in legend.get_texts():
        text.set_parse_math(False)


def save_figure(figure: Any, path: PathLike, dpi: int) -> None:
    """Write a PNG, with fonts for names in other scripts if the system has them."""
    from matplotlib.font_manager import fontManager
    from matplotlib.text import Text

    installed = {font.name for font in fontManager.ttflist}
    family = ['DejaVu Sans', *(name for name in OTHER_FONTS if name in installed)]
    for text in figure.findobj(Text):
        text.set_fontfamily(family)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Glyph .* missing')  # the tables next to the plots have the names
        figure.savefig(Path(path), dpi=dpi, format='png')


def most_confused_classes(matrix: Sequence[Sequence[int]], number: int = 20) -> List[int]:
    """Indices of the classes in the most frequent confusions.

    Args:
        matrix: Confusion matrix (K, K), rows true and columns predicted.
        number: Largest number of classes.
    """
    counts = np.array(matrix)
    np.fill_diagonal(counts, 0)
    found: Dict[int, None] = {}
    for place in np.argsort(-counts, axis=None, kind='stable'):
        pair = [int(k) for k in np.unravel_index(place, counts.shape)]
        if counts[tuple(pair)] == 0 or len(found.keys() | pair) > number:
            break
        found.update(dict.fromkeys(pair))
    return sorted(found)


def _label_classes(axes: Any, classes: Sequence[str], subset: str) -> None:
    """Class names on both axes of a confusion matrix; with more than `MAX_NAMES` classes, only their number."""
    number = len(classes)
    if number > MAX_NAMES:
        axes.set(xlabel=f'predicted, {number} classes', ylabel=f'true, {number} classes', xticks=[], yticks=[])
        return
    axes.set(xlabel=f'predicted{subset}', ylabel=f'true{subset}')
    style = dict(parse_math=False, fontsize=10 if number <= 16 else 8)
    rotation = dict(rotation=45, ha='right') if number <= 16 else dict(rotation=90, ha='center')
    names = [shorten_name(name) for name in classes]
    axes.set_xticks(range(number), names, **rotation, **style)
    axes.set_yticks(range(number), names, **style)


def _write_counts(axes: Any, counts: np.ndarray, shares: np.ndarray) -> None:
    """Count and percentage in each cell of a confusion matrix; of more than `MAX_CURVES` classes, not in empty ones."""
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            if count or len(counts) <= MAX_CURVES:
                axes.text(
                    j,
                    i,
                    f'{count}\n{format_percent(shares[i, j])}',
                    ha='center',
                    va='center',
                    fontsize=8,
                    color='white' if shares[i, j] > 0.5 else 'black',
                )


def plot_confusion_matrix(
    matrix: Sequence[Sequence[int]],
    classes: Sequence[str],
    path: PathLike,
    shown: Optional[Sequence[int]] = None,
) -> None:
    """Write a PNG of a confusion matrix: counts, and percentages of each true class.

    With more than `MAX_CELLS` classes it has no numbers, with more than `MAX_NAMES` no class names.

    Args:
        matrix: (K, K), rows true and columns predicted.
        classes: Names of the K classes.
        path: File to write.
        shown: Indices of the classes to show; all by default.

    Raises:
        ImportError: without matplotlib.
    """
    counts = np.asarray(matrix)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    subset = ''
    if shown is not None:
        subset = f' ({len(shown)} of {len(classes)} classes)'
        counts, shares = counts[np.ix_(shown, shown)], shares[np.ix_(shown, shown)]
        classes = [classes[k] for k in shown]
    number = len(classes)
    side = min(2.2 + 0.75 * number, 14) if number <= MAX_NAMES else 7
    figure = new_figure(side + 0.6, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label='share of the true class', shrink=0.8)
    _label_classes(axes, classes, subset)
    if number <= MAX_CELLS:  # beyond that, numbers would be illegible
        _write_counts(axes, counts, shares)
    save_figure(figure, path, 120)


def shorten(text: str, length: int = 30) -> str:
    """The end of a long text, the part of a path that identifies a file."""
    return text if len(text) <= length else f'…{text[1 - length :]}'


def plot_pairs(
    images: Sequence[Tuple[Any, Any]],
    captions: Sequence[Tuple[str, str]],
    titles: Sequence[str],
    path: PathLike,
    columns: int = 3,
) -> None:
    """Write a PNG sheet of pairs of images side by side.

    Args:
        images: At least one pair of images, in a format that matplotlib displays.
        captions: Caption of each image, of one or more lines; of long lines, the end is shown.
        titles: Title of each pair.
        path: File to write.
        columns: Number of pairs per row of the sheet.

    Raises:
        ImportError: without matplotlib.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = new_figure(4.6 * columns, 3.1 * rows)
    sheets = figure.subfigures(rows, columns, squeeze=False).flat
    for sheet, pair, texts, title in zip(sheets, images, captions, titles):
        sheet.suptitle(title, fontsize=9, parse_math=False)
        for axes, image, text in zip(sheet.subplots(1, 2), pair, texts):
            axes.imshow(image, cmap='gray', vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
            lines = [shorten(printable(line)) for line in text.split('\n')]
            axes.set_xlabel('\n'.join(lines), fontsize=7, parse_math=False)
    save_figure(figure, path, 100)


def overlay(image: np.ndarray, heat: np.ndarray, strength: float = 0.6) -> np.ndarray:
    """Blend a heat map over an image, the more opaque the stronger, in a colour-blind-safe colour map.

    Args:
        image: (H, W, 3), bytes.
        heat: (H, W), 0 to 1.
        strength: Opacity of the strongest place.

    Returns:
        (H, W, 3), bytes.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        from matplotlib import colormaps
    except ImportError as e:
        raise ImportError("Plots need matplotlib: pip install 'hdkd-timm[plots]'.") from e
    colour = colormaps['inferno'](heat)[..., :3] * 255
    cover = strength * heat[..., None]
    return (image * (1 - cover) + colour * cover).round().astype(np.uint8)


def plot_images(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    labels: Sequence[str],
    path: PathLike,
) -> None:
    """Write a PNG sheet of images, with a label for each row and a title for each column.

    Raises:
        ImportError: without matplotlib.
    """
    figure = new_figure(2.4 * len(titles) + 0.4, 2.55 * len(rows) + 0.3)
    grid = figure.subplots(len(rows), len(titles), squeeze=False)
    for line, images, label in zip(grid, rows, labels):
        for axes, image in zip(line, images):
            axes.imshow(image)
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(printable(label, lines=True), fontsize=8, parse_math=False)
    for axes, title in zip(grid[0], titles):
        axes.set_title(title, fontsize=9, parse_math=False)
    save_figure(figure, path, 110)


def plot_curves(
    rows: Sequence[Mapping[str, float]],
    best_epoch: Optional[int],
    path: PathLike,
    metric: str = 'balanced_accuracy',
) -> None:
    """Write a PNG of learning curves: log loss, a metric, and the training loss with its components.

    Args:
        rows: At least one row of summary.csv, one per epoch.
        best_epoch: The epoch that was kept, counted from 0.
        path: File to write.
        metric: The metric.

    Raises:
        ImportError: without matplotlib.
    """
    epochs = [int(row['epoch']) + 1 for row in rows]
    parts = [key for key in rows[0] if key.startswith('train_') and 'loss' in key and key != 'train_log_loss']
    pairs = [
        (f'{split}_{key}', {'train': 'training', 'val': 'validation'}[split])
        for key in ('log_loss', metric)
        for split in ('train', 'val')
    ]
    marker = dict(marker='.', markersize=5)
    figure = new_figure(12.6, 3.9)
    panels = figure.subplots(1, 3)
    for axes, title, lines in (
        (panels[0], 'log loss', pairs[:2]),
        (panels[1], METRIC_NAMES[metric], pairs[2:]),
        (
            panels[2],
            'training loss and components',
            [(key, key.removeprefix('train_').replace('_', ' ')) for key in parts],
        ),
    ):
        lines = [(key, label) for key, label in lines if key in rows[0]]
        for i, (key, _) in enumerate(lines):
            axes.plot(epochs, [row[key] for row in rows], **line_style(i), **marker)
        axes.set(title=title, xlabel='epoch')
        axes.grid(alpha=0.25)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if best_epoch is not None:
            axes.axvline(best_epoch + 1, color='0.5', linewidth=1, linestyle=':')
        outside = dict(loc='upper left', bbox_to_anchor=(1, 1)) if len(lines) > 2 else {}
        add_legend(axes, [label for _, label in lines], **outside)
    values = [row[key] for row in rows for key in parts]
    if values and min(values) > 0 and max(values) > 20 * min(values):
        panels[2].set_yscale('log')
    save_figure(figure, path, 110)


def _plot_classes(
    axes: Any, curves: Mapping[int, Tuple[Any, Any]], areas: np.ndarray, classes: Sequence[str], **kwargs: Any
) -> None:
    """One curve per class, with the areas in a legend below the axes; of many classes, only the worst and the best are
    in colour and in the legend, and the others in grey."""
    order = sorted(curves, key=lambda k: areas[k])
    is_few = len(curves) <= MAX_CURVES
    named = list(curves) if is_few else [*order[:LOWEST], *order[-HIGHEST:]]
    for i, k in enumerate(named):
        axes.plot(*curves[k], **line_style(i), **kwargs)
    for k in curves if not is_few else ():
        if k not in named:
            axes.plot(*curves[k], color='0.75', linewidth=0.5, zorder=1, **kwargs)
    labels = [f'{shorten_name(classes[k])}  {areas[k]:.3f}' for k in named]
    title = None if is_few else f'lowest {LOWEST} and highest {HIGHEST} of {len(curves)} classes, others in grey'
    if labels:
        add_legend(
            axes, labels, loc='upper center', bbox_to_anchor=(0.5, -0.12), ncols=2, title=title, title_fontsize=8
        )


def plot_roc_pr(probs: np.ndarray, targets: np.ndarray, classes: Sequence[str], path: PathLike) -> None:
    """Write a PNG of the one-vs-rest ROC and precision-recall curves of each class, with their areas.

    With more than `MAX_CURVES` classes, only the worst and the best are in colour and named.

    Args:
        probs: Probabilities (N, K).
        targets: Class indices (N,), or labels (N, K).
        classes: Names of the K classes.
        path: File to write.

    Raises:
        ImportError: without matplotlib.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

    is_few = len(classes) <= MAX_CURVES  # the legend is below the axes
    lines = (len(classes) if is_few else LOWEST + HIGHEST) / 2
    figure = new_figure(10.4, 5.4 + 0.22 * math.ceil(lines) + (0 if is_few else 0.35))
    roc, pr = figure.subplots(1, 2)
    roc_curves, pr_curves, precisions = {}, {}, np.full(len(classes), np.nan)
    for k, is_class in enumerate(to_indicators(targets, len(classes)).T):
        if not is_class.any() or is_class.all():
            continue
        roc_curves[k] = roc_curve(is_class, probs[:, k])[:2]
        precision, recall, _ = precision_recall_curve(is_class, probs[:, k])
        pr_curves[k] = recall, precision
        precisions[k] = average_precision_score(is_class, probs[:, k])
    _plot_classes(roc, roc_curves, binary_aurocs(probs, targets), classes)
    _plot_classes(pr, pr_curves, precisions, classes, drawstyle='steps-post')
    roc.plot([0, 1], [0, 1], color='0.6', linewidth=0.8)
    roc.set(title='ROC: class, AUROC', xlabel='false positive rate', ylabel='true positive rate')
    pr.set(title='precision-recall: class, average precision', xlabel='recall', ylabel='precision')
    for axes in (roc, pr):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect='equal', anchor='N')
        axes.grid(alpha=0.25)
    save_figure(figure, path, 110)


def plot_reliability(probs: np.ndarray, targets: np.ndarray, path: PathLike) -> None:
    """Write a PNG of the reliability diagram: accuracy per confidence bin, and the number of images per bin.

    Args:
        probs: Probabilities (N, K).
        targets: Class indices (N,).
        path: File to write.

    Raises:
        ImportError: without matplotlib.
    """
    found = reliability(probs, targets)
    images = found['images']
    bins = len(images)
    centres, used = (np.arange(bins) + 0.5) / bins, images > 0
    figure = new_figure(5.4, 5.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    accuracy, confidence = (found[key][used] / images[used] for key in ('correct', 'confidence'))
    upper.bar(centres[used], accuracy, 0.92 / bins, color=COLOURS[0], label='accuracy')
    upper.bar(
        centres[used],
        confidence - accuracy,
        0.92 / bins,
        accuracy,
        color='none',
        edgecolor=COLOURS[3],
        hatch='///',
        linewidth=1,
        label='gap to confidence',
    )
    upper.plot([0, 1], [0, 1], color='0.4', linewidth=0.8)
    upper.set(
        ylabel='accuracy',
        ylim=(0, 1),
        title=f'expected calibration error {expected_calibration_error(probs, targets):.3f}',
    )
    upper.legend(loc='upper left', fontsize=8)
    lower.bar(centres, images, 0.92 / bins, color='0.5')
    lower.set(xlabel='confidence', ylabel='images', xlim=(0, 1))
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
    save_figure(figure, path, 110)


def plot_class_counts(counts: Mapping[str, Mapping[str, int]], path: PathLike) -> None:
    """Write a PNG of the number of images per class and split.

    With more than `MAX_BARS` classes, it shows those with the fewest and the most images.

    Args:
        counts: Split -> class -> number of images.
        path: File to write.

    Raises:
        ImportError: without matplotlib.
    """
    labels = list(dict.fromkeys(label for of_class in counts.values() for label in of_class))
    title = None
    if len(labels) > MAX_BARS:
        first, half = next(iter(counts)), MAX_BARS // 4
        order = sorted(labels, key=lambda label: counts[first].get(label, 0))
        title = f'the {half} classes with the fewest and the {half} with the most {first} images, of {len(labels)}'
        labels = [*order[:half], *order[-half:]]
    figure = new_figure(7.6, 1.1 + 0.22 * len(labels) * (len(counts) + 0.6))
    axes = figure.subplots()
    height = 0.8 / len(counts)
    for i, (split, of_class) in enumerate(counts.items()):
        places = np.arange(len(labels)) + height * (i - (len(counts) - 1) / 2)
        numbers = [of_class.get(label, 0) for label in labels]
        bars = axes.barh(places, numbers, height * 0.95, color=COLOURS[i], label=split)
        axes.bar_label(bars, [f'{number:,}' for number in numbers], padding=2, fontsize=7)
    axes.set_yticks(range(len(labels)), [shorten_name(label) for label in labels], parse_math=False)
    axes.invert_yaxis()
    axes.margins(x=0.1, y=0.02)
    axes.set(xlabel='images')
    axes.legend(fontsize=8, loc='lower left', bbox_to_anchor=(0, 1), ncols=len(counts), title=title, title_fontsize=8)
    save_figure(figure, path, 110)
