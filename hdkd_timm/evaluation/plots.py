"""Pictures of results, by matplotlib (extra `plots`)."""
import math
import warnings
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from ..utils.files import PathLike
from ..utils.text import printable
from .metrics import class_auroc, expected_calibration_error, reliability

# the colours of Okabe and Ito, that all eyes tell apart; beyond eight, lines differ by their dashes
COLOURS = ('#0072B2', '#E69F00', '#009E73', '#D55E00', '#CC79A7', '#56B4E9', '#000000', '#B8A800')
OTHER_FONTS = (
    'Noto Sans CJK SC', 'Noto Sans CJK JP', 'Noto Sans CJK KR', 'WenQuanYi Zen Hei', 'Microsoft YaHei', 'PingFang SC',
    'Hiragino Sans', 'Malgun Gothic', 'Arial Unicode MS', 'Noto Sans Devanagari', 'Noto Sans Arabic')
MAX_CELLS = 25  # classes up to which a confusion matrix shows its numbers
MAX_NAMES = 60  # classes up to which it shows their names
MAX_CURVES = 10  # classes up to which each has a curve of its own; of more the worst and the best have
LOWEST, HIGHEST = 5, 3
MAX_BARS = 40  # classes up to which each has its bars
DASHES = ('-', '--', ':', '-.')


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure, in inches, that needs no display and leaves matplotlib's state alone.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ImportError("Pictures need matplotlib: pip install 'hdkd-timm[plots]'.") from e
    return Figure(figsize=(width, height), layout='constrained')


def _style(i: int) -> Dict[str, Any]:
    return dict(color=COLOURS[i % len(COLOURS)], linestyle=DASHES[i // len(COLOURS) % len(DASHES)])


def _fit(name: str, length: int = 24) -> str:
    """A class name that fits: of a long one its beginning and its end, which tell names apart."""
    name = printable(name)
    end = length // 3
    return name if len(name) <= length else f'{name[:length - 1 - end]}…{name[-end:]}'


def format_percent(share: float) -> str:
    """A share in per cent without decimals, as 100 % or 0 % if it is no less or more."""
    if 0.995 <= share < 1:
        return '>99 %'
    return '<1 %' if 0 < share <= 0.005 else f'{100 * share:.0f} %'


def _add_legend(axes: Any, labels: Sequence[str], **kwargs: Any) -> None:
    """A legend of the axes' first lines, none of which is taken for mathematics or left out for its underscore."""
    legend = axes.legend(axes.get_lines()[:len(labels)], labels, **{'fontsize': 8, **kwargs})
    for text in legend.get_texts():
        text.set_parse_math(False)


def _save(figure: Any, path: PathLike, dpi: int) -> None:
    """Write a PNG, with fonts for names in other scripts where the system has them."""
    from matplotlib.font_manager import fontManager
    from matplotlib.text import Text

    there = {font.name for font in fontManager.ttflist}
    family = ['DejaVu Sans', *(name for name in OTHER_FONTS if name in there)]
    for text in figure.findobj(Text):
        text.set_fontfamily(family)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Glyph .* missing')  # the tables beside the pictures have the names
        figure.savefig(Path(path), dpi=dpi, format='png')


def find_confused(matrix: Sequence[Sequence[int]], number: int = 20) -> List[int]:
    """So many classes, by index, that take part in the most frequent confusions.

    Args:
        matrix: Confusion matrix (K, K), rows true and columns predicted.
        number: How many at most.
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


def plot_confusion_matrix(
        matrix: Sequence[Sequence[int]],
        classes: Sequence[str],
        path: PathLike,
        shown: Optional[Sequence[int]] = None,
) -> None:
    """Write a PNG of a confusion matrix: counts, and per cent of each true class. Of more than `MAX_CELLS` classes it
    has no numbers, of more than `MAX_NAMES` no names.

    Args:
        matrix: (K, K), rows true and columns predicted.
        classes: Names of the K classes.
        path: File to write.
        shown: Indices of the classes to show, all by default.

    Raises:
        ImportError: without matplotlib.
    """
    counts = np.asarray(matrix)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    some = ''
    if shown is not None:
        some = f' ({len(shown)} of {len(classes)} classes)'
        counts, shares = counts[np.ix_(shown, shown)], shares[np.ix_(shown, shown)]
        classes = [classes[k] for k in shown]
    number = len(classes)
    side = min(2.2 + 0.75 * number, 14) if number <= MAX_NAMES else 7
    figure = new_figure(side + 0.6, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label='share of the true class', shrink=0.8)
    axes.set(xlabel=f'predicted{some}', ylabel=f'true{some}')
    if number > MAX_NAMES:
        axes.set(xlabel=f'predicted, {number} classes', ylabel=f'true, {number} classes', xticks=[], yticks=[])
    else:
        names, size = [_fit(name) for name in classes], 10 if number <= 16 else 8
        axes.set_xticks(range(number), names, rotation=45 if number <= 16 else 90, ha='right' if number <= 16 else
                        'center', parse_math=False, fontsize=size)
        axes.set_yticks(range(number), names, parse_math=False, fontsize=size)
    if number > MAX_CELLS:  # no one could read them
        _save(figure, path, 120)
        return
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            if count == 0 and number > MAX_CURVES:
                continue
            axes.text(
                j, i, f'{count}\n{format_percent(shares[i, j])}', ha='center', va='center', fontsize=8,
                color='white' if shares[i, j] > 0.5 else 'black')
    _save(figure, path, 120)


def shorten(text: str, length: int = 30) -> str:
    """The end of a long text, which tells paths apart."""
    return text if len(text) <= length else f'…{text[1 - length:]}'


def plot_pairs(
        images: Sequence[Tuple[Any, Any]],
        captions: Sequence[Tuple[str, str]],
        titles: Sequence[str],
        path: PathLike,
        columns: int = 3,
) -> None:
    """Write a PNG sheet of pairs of images side by side.

    Args:
        images: Pairs of images, as matplotlib shows them; P of them, one at least.
        captions: Of each image, whose ends are shown, lines may be several.
        titles: Of each pair.
        path: File to write.
        columns: Pairs in a row of the sheet.

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
    _save(figure, path, 100)


def overlay(image: np.ndarray, heat: np.ndarray, strength: float = 0.6) -> np.ndarray:
    """An image under a map, the stronger the more it covers: grey image, colours that all eyes tell apart.

    Args:
        image: (H, W, 3), bytes.
        heat: (H, W), 0 to 1.
        strength: How much of the image the strongest place covers.

    Returns:
        (H, W, 3), bytes.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        from matplotlib import colormaps
    except ImportError as e:
        raise ImportError("Pictures need matplotlib: pip install 'hdkd-timm[plots]'.") from e
    colour = colormaps['inferno'](heat)[..., :3] * 255
    cover = strength * heat[..., None]
    return (image * (1 - cover) + colour * cover).round().astype(np.uint8)


def plot_images(
        rows: Sequence[Sequence[np.ndarray]],
        heads: Sequence[str],
        labels: Sequence[str],
        path: PathLike,
) -> None:
    """Write a PNG sheet of images, a row of them for each label, a head above each column.

    Raises:
        ImportError: without matplotlib.
    """
    figure = new_figure(2.4 * len(heads) + 0.4, 2.55 * len(rows) + 0.3)
    grid = figure.subplots(len(rows), len(heads), squeeze=False)
    for line, images, label in zip(grid, rows, labels):
        for axes, image in zip(line, images):
            axes.imshow(image)
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(printable(label, lines=True), fontsize=8, parse_math=False)
    for axes, head in zip(grid[0], heads):
        axes.set_title(head, fontsize=9, parse_math=False)
    _save(figure, path, 110)


def plot_curves(rows: Sequence[Mapping[str, float]], best_epoch: Optional[int], path: PathLike) -> None:
    """Write a PNG of a training: log loss and balanced accuracy by epoch, and the training loss with its parts.

    Args:
        rows: A mapping an epoch, as summary.csv holds them; one at least.
        best_epoch: The epoch that was kept, counted from 0.
        path: File to write.

    Raises:
        ImportError: without matplotlib.
    """
    epochs = [int(row['epoch']) + 1 for row in rows]
    parts = [key for key in rows[0] if key.startswith('train_') and 'loss' in key and key != 'train_log_loss']
    pairs = [(f'{split}_{key}', {'train': 'training', 'val': 'validation'}[split]) for key in (
        'log_loss', 'balanced_accuracy') for split in ('train', 'val')]
    marker = dict(marker='.', markersize=5)
    figure = new_figure(12.6, 3.9)
    panels = figure.subplots(1, 3)
    for axes, title, lines in (
            (panels[0], 'log loss', pairs[:2]),
            (panels[1], 'balanced accuracy', pairs[2:]),
            (panels[2], 'training loss and its parts',
             [(key, key.removeprefix('train_').replace('_', ' ')) for key in parts])):
        lines = [(key, label) for key, label in lines if key in rows[0]]
        for i, (key, _) in enumerate(lines):
            axes.plot(epochs, [row[key] for row in rows], **_style(i), **marker)
        axes.set(title=title, xlabel='epoch')
        axes.grid(alpha=0.25)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if best_epoch is not None:
            axes.axvline(best_epoch + 1, color='0.5', linewidth=1, linestyle=':')
        outside = dict(loc='upper left', bbox_to_anchor=(1, 1)) if len(lines) > 2 else {}
        _add_legend(axes, [label for _, label in lines], **outside)
    values = [row[key] for row in rows for key in parts]
    if values and min(values) > 0 and max(values) > 20 * min(values):
        panels[2].set_yscale('log')
    _save(figure, path, 110)


def _plot_classes(axes: Any, curves: Mapping[int, Tuple[Any, Any]], areas: np.ndarray, classes: Sequence[str],
                  **kwargs: Any) -> None:
    """A curve a class, with its area in a legend below the axes; of many classes the worst and the best ones in colour
    and the others in grey."""
    order = sorted(curves, key=lambda k: areas[k])
    is_few = len(curves) <= MAX_CURVES
    named = list(curves) if is_few else [*order[:LOWEST], *order[-HIGHEST:]]
    for i, k in enumerate(named):
        axes.plot(*curves[k], **_style(i), **kwargs)
    for k in curves if not is_few else ():
        if k not in named:
            axes.plot(*curves[k], color='0.75', linewidth=0.5, zorder=1, **kwargs)
    labels = [f'{_fit(classes[k])}  {areas[k]:.3f}' for k in named]
    title = None if is_few else f'the lowest {LOWEST} and the highest {HIGHEST} of {len(curves)} classes, others grey'
    if labels:
        _add_legend(axes, labels, loc='upper center', bbox_to_anchor=(0.5, -0.12), ncols=2, title=title,
                    title_fontsize=8)


def plot_roc_pr(probs: np.ndarray, targets: np.ndarray, classes: Sequence[str], path: PathLike) -> None:
    """Write a PNG of the ROC and the precision-recall curve of each class against the rest, with their areas. Of more
    than `MAX_CURVES` classes the worst and the best have colours and names.

    Args:
        probs: Probabilities (N, K).
        targets: Class indices (N,).
        classes: Names of the K classes.
        path: File to write.

    Raises:
        ImportError: without matplotlib.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

    is_few = len(classes) <= MAX_CURVES  # the legend's lines come below the squares
    lines = (len(classes) if is_few else LOWEST + HIGHEST) / 2
    figure = new_figure(10.4, 5.4 + 0.22 * math.ceil(lines) + (0 if is_few else 0.35))
    roc, pr = figure.subplots(1, 2)
    roc_curves, pr_curves, precisions = {}, {}, np.full(len(classes), np.nan)
    for k in range(len(classes)):
        is_class = targets == k
        if not is_class.any() or is_class.all():
            continue
        roc_curves[k] = roc_curve(is_class, probs[:, k])[:2]
        precision, recall, _ = precision_recall_curve(is_class, probs[:, k])
        pr_curves[k] = recall, precision
        precisions[k] = average_precision_score(is_class, probs[:, k])
    _plot_classes(roc, roc_curves, class_auroc(probs, targets), classes)
    _plot_classes(pr, pr_curves, precisions, classes, drawstyle='steps-post')
    roc.plot([0, 1], [0, 1], color='0.6', linewidth=0.8)
    roc.set(title='ROC: class, area', xlabel='false positive rate', ylabel='true positive rate')
    pr.set(title='precision-recall: class, average precision', xlabel='recall', ylabel='precision')
    for axes in (roc, pr):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect='equal', anchor='N')
        axes.grid(alpha=0.25)
    _save(figure, path, 110)


def plot_reliability(probs: np.ndarray, targets: np.ndarray, path: PathLike) -> None:
    """Write a PNG of accuracy by confidence, in the bins of the expected calibration error, and of the images in them.

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
    centres, some = (np.arange(bins) + 0.5) / bins, images > 0
    figure = new_figure(5.4, 5.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    accuracy, confidence = (found[key][some] / images[some] for key in ('correct', 'confidence'))
    upper.bar(centres[some], accuracy, 0.92 / bins, color=COLOURS[0], label='accuracy')
    upper.bar(  # the gap to what the network believes
        centres[some], confidence - accuracy, 0.92 / bins, accuracy, color='none', edgecolor=COLOURS[3], hatch='///',
        linewidth=1, label='gap to the confidence')
    upper.plot([0, 1], [0, 1], color='0.4', linewidth=0.8)
    upper.set(
        ylabel='accuracy', ylim=(0, 1),
        title=f'expected calibration error {expected_calibration_error(probs, targets):.3f}')
    upper.legend(loc='upper left', fontsize=8)
    lower.bar(centres, images, 0.92 / bins, color='0.5')
    lower.set(xlabel='confidence', ylabel='images', xlim=(0, 1))
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
    _save(figure, path, 110)


def plot_class_counts(counts: Mapping[str, Mapping[str, int]], path: PathLike) -> None:
    """Write a PNG of how many images each class has in each split. Of more than `MAX_BARS` classes it shows those that
    have the fewest and the most.

    Args:
        counts: Split -> class -> number.
        path: File to write.

    Raises:
        ImportError: without matplotlib.
    """
    labels = list(dict.fromkeys(label for of_class in counts.values() for label in of_class))
    title = None
    if len(labels) > MAX_BARS:
        first, half = next(iter(counts)), MAX_BARS // 4
        order = sorted(labels, key=lambda label: counts[first].get(label, 0))
        title = f'the {half} classes with the fewest and the {half} with the most images of {first}, of {len(labels)}'
        labels = [*order[:half], *order[-half:]]
    figure = new_figure(7.6, 1.1 + 0.22 * len(labels) * (len(counts) + 0.6))
    axes = figure.subplots()
    height = 0.8 / len(counts)
    for i, (split, of_class) in enumerate(counts.items()):
        places = np.arange(len(labels)) + height * (i - (len(counts) - 1) / 2)
        numbers = [of_class.get(label, 0) for label in labels]
        bars = axes.barh(places, numbers, height * 0.95, color=COLOURS[i], label=split)
        axes.bar_label(bars, [f'{number:,}' for number in numbers], padding=2, fontsize=7)
    axes.set_yticks(range(len(labels)), [_fit(label) for label in labels], parse_math=False)
    axes.invert_yaxis()
    axes.margins(x=0.1, y=0.02)
    axes.set(xlabel='images')
    axes.legend(fontsize=8, loc='lower left', bbox_to_anchor=(0, 1), ncols=len(counts), title=title, title_fontsize=8)
    _save(figure, path, 110)
