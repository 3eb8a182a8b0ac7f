"""Pictures of results, by matplotlib (extra `plots`)."""
from pathlib import Path
from typing import Any, Sequence, Tuple

import numpy as np

from .files import PathLike


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


def plot_confusion_matrix(matrix: Sequence[Sequence[int]], classes: Sequence[str], path: PathLike) -> None:
    """Write a PNG of a confusion matrix, (K, K), rows true and columns predicted: counts, and per cent of each row.

    Raises:
        ImportError: without matplotlib.
    """
    counts = np.asarray(matrix)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    side = 2.2 + 0.75 * len(classes)
    figure = new_figure(side + 0.6, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label='share of the true class', shrink=0.8)
    names = [name if len(name) <= 24 else f'{name[:23]}…' for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=45, ha='right', parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set(xlabel='predicted', ylabel='true')
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            axes.text(
                j, i, f'{count}\n{100 * shares[i, j]:.0f} %', ha='center', va='center', fontsize=8,
                color='white' if shares[i, j] > 0.5 else 'black')
    figure.savefig(Path(path), dpi=120, format='png')


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
    figure.savefig(Path(path), dpi=100, format='png')


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
    figure.savefig(Path(path), dpi=110, format='png')
