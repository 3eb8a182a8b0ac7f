"""Pictures of results, by matplotlib (extra `plots`)."""
import warnings
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

import numpy as np

from .files import PathLike
from .metrics import class_auroc, expected_calibration_error, reliability

# the colours of Okabe and Ito, that all eyes tell apart; beyond eight, lines differ by their dashes
COLOURS = ('#0072B2', '#E69F00', '#009E73', '#D55E00', '#CC79A7', '#56B4E9', '#000000', '#B8A800')
OTHER_FONTS = (
    'Noto Sans CJK SC', 'Noto Sans CJK JP', 'Noto Sans CJK KR', 'WenQuanYi Zen Hei', 'Microsoft YaHei', 'PingFang SC',
    'Hiragino Sans', 'Malgun Gothic', 'Arial Unicode MS', 'Noto Sans Devanagari', 'Noto Sans Arabic')
MAX_CELLS = 25  # classes up to which a confusion matrix shows its numbers
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


def _begin(name: str, length: int = 24) -> str:
    """The beginning of a long class name."""
    return name if len(name) <= length else f'{name[:length - 1]}…'


def _add_legend(axes: Any, labels: Sequence[str], **kwargs: Any) -> None:
    """A legend of the axes' first lines, none of which is taken for mathematics or left out for its underscore."""
    if len(labels) > 10:
        kwargs = dict(loc='upper left', bbox_to_anchor=(1, 1))
    legend = axes.legend(
        axes.get_lines()[:len(labels)], labels, fontsize=7 if len(labels) > 8 else 8, ncols=1 + len(labels) // 24,
        **kwargs)
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


def plot_confusion_matrix(matrix: Sequence[Sequence[int]], classes: Sequence[str], path: PathLike) -> None:
    """Write a PNG of a confusion matrix, (K, K), rows true and columns predicted: counts, and per cent of each row.

    Raises:
        ImportError: without matplotlib.
    """
    counts = np.asarray(matrix)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    number = len(classes)
    side = min(2.2 + 0.75 * number, 14)
    figure = new_figure(side + 0.6, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label='share of the true class', shrink=0.8)
    axes.set(xlabel='predicted', ylabel='true')
    if number <= 60:
        names, size = [_begin(name) for name in classes], 10 if number <= 16 else 6
        axes.set_xticks(range(number), names, rotation=45 if number <= 16 else 90, ha='right' if number <= 16 else
                        'center', parse_math=False, fontsize=size)
        axes.set_yticks(range(number), names, parse_math=False, fontsize=size)
    if number > MAX_CELLS:  # no one could read them
        _save(figure, path, 120)
        return
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            axes.text(
                j, i, f'{count}\n{100 * shares[i, j]:.0f} %', ha='center', va='center', fontsize=8,
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
            axes.set_xlabel('\n'.join(shorten(line) for line in text.split('\n')), fontsize=7, parse_math=False)
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
        line[0].set_ylabel(label, fontsize=8, parse_math=False)
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


def plot_roc_pr(probs: np.ndarray, targets: np.ndarray, classes: Sequence[str], path: PathLike) -> None:
    """Write a PNG of the ROC and the precision-recall curve of each class against the rest, with their areas.

    Args:
        probs: Probabilities (N, K).
        targets: Class indices (N,).
        classes: Names of the K classes.
        path: File to write.

    Raises:
        ImportError: without matplotlib.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

    areas = class_auroc(probs, targets)
    figure = new_figure(10.4 if len(classes) <= 10 else 14, 4.9)
    roc, pr = figure.subplots(1, 2)
    areas_of, precisions_of = [], []
    for k, name in enumerate(classes):
        is_class = targets == k
        if not is_class.any() or is_class.all():
            continue
        false, true, _ = roc_curve(is_class, probs[:, k])
        precision, recall, _ = precision_recall_curve(is_class, probs[:, k])
        precise = average_precision_score(is_class, probs[:, k])
        roc.plot(false, true, **_style(k))
        pr.plot(recall, precision, drawstyle='steps-post', **_style(k))
        areas_of.append(f'{_begin(name)}  {areas[k]:.3f}')
        precisions_of.append(f'{_begin(name)}  {precise:.3f}')
    roc.plot([0, 1], [0, 1], color='0.6', linewidth=0.8)
    roc.set(title='ROC: class, area', xlabel='false positive rate', ylabel='true positive rate')
    pr.set(title='precision-recall: class, average precision', xlabel='recall', ylabel='precision')
    for axes, labels, place in ((roc, areas_of, 'lower right'), (pr, precisions_of, 'lower left')):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect='equal')
        axes.grid(alpha=0.25)
        if labels:
            _add_legend(axes, labels, loc=place)
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
    """Write a PNG of how many images each class has in each split.

    Args:
        counts: Split -> class -> number.
        path: File to write.

    Raises:
        ImportError: without matplotlib.
    """
    labels = list(dict.fromkeys(label for of_class in counts.values() for label in of_class))
    figure = new_figure(7.6, 1.1 + 0.22 * len(labels) * (len(counts) + 0.6))
    axes = figure.subplots()
    height = 0.8 / len(counts)
    for i, (split, of_class) in enumerate(counts.items()):
        places = np.arange(len(labels)) + height * (i - (len(counts) - 1) / 2)
        numbers = [of_class.get(label, 0) for label in labels]
        bars = axes.barh(places, numbers, height * 0.95, color=COLOURS[i], label=split)
        axes.bar_label(bars, [f'{number:,}' for number in numbers], padding=2, fontsize=7)
    axes.set_yticks(range(len(labels)), [_begin(label) for label in labels], parse_math=False)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set(xlabel='images')
    axes.legend(fontsize=8)
    _save(figure, path, 110)
