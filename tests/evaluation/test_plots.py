"""Plots that are read back."""

import sys

import numpy as np
import pytest
from PIL import Image

from hdkd_timm.evaluation.plots import (
    format_percent,
    most_confused_classes,
    overlay,
    plot_class_counts,
    plot_confusion_matrix,
    plot_curves,
    plot_reliability,
    plot_roc_pr,
    shorten_name,
)

NAMES = ['_a', '$x_1$ <b>', 'a name longer than twenty-four letters', 'under_score$']  # no mathematics, no markup


def render(plot, folder, *args):
    """Pixels of the PNG that a function writes."""
    plot(*args, folder / 'plot.png')
    with Image.open(folder / 'plot.png') as image:
        assert image.format == 'PNG'
        return np.asarray(image.convert('RGB')).astype(int)


def changed_share(first, second):
    """Share of the pixels that differ between two plots."""
    assert first.shape == second.shape
    return (np.abs(first - second).sum(axis=2) > 100).mean()


def test_confusion_matrix(tmp_path):
    matrices = ([[9, 1, 0], [0, 0, 0], [2, 0, 8]], [[1, 9, 0], [0, 0, 0], [2, 0, 8]])
    changed = changed_share(*(render(plot_confusion_matrix, tmp_path, matrix, NAMES[:3]) for matrix in matrices))
    assert 0.02 < changed < 0.3  # two cells of nine


def test_confusion_matrix_of_many_classes(tmp_path):
    """The size of the plot is limited."""
    plot_confusion_matrix(np.eye(150, dtype=int) * 5, [f'class {i}' for i in range(150)], tmp_path / 'many.png')
    with Image.open(tmp_path / 'many.png') as image:
        assert max(image.size) < 2000


def test_curves(tmp_path):
    rows = [
        {
            'epoch': i,
            'train_loss': 100 / (i + 1),
            'train_ce_loss': 1 / (i + 1),
            'train_log_loss': 2 / (i + 1),
            'train_balanced_accuracy': 0.1 * i,
            'val_log_loss': 1.0,
            'val_balanced_accuracy': 0.2,
        }
        for i in range(5)
    ]
    other = [dict(row, train_ce_loss=1.0) for row in rows]
    plot = render(plot_curves, tmp_path, rows, 3)
    assert 0.0005 < changed_share(plot, render(plot_curves, tmp_path, other, 3)) < 0.02  # a line
    assert 0.0005 < changed_share(plot, render(plot_curves, tmp_path, rows, 1)) < 0.02
    plot_curves(rows[:1], None, tmp_path / 'one.png')  # without a best epoch, of one epoch
    plot_curves([{k: v for k, v in row.items() if 'val' not in k} for row in rows], None, tmp_path / 'train.png')


def test_roc_and_reliability(tmp_path):
    rng = np.random.default_rng(0)
    targets = rng.integers(3, size=100)
    sure = np.full((100, 4), 0.02) + 0.92 * np.eye(4)[targets]
    unsure = rng.dirichlet(np.ones(4), size=100)
    for plot, names in ((plot_roc_pr, [NAMES]), (plot_reliability, [])):
        assert changed_share(*(render(plot, tmp_path, probs, targets, *names) for probs in (sure, unsure))) > 0.005
    plot_roc_pr(sure, np.zeros(100, int), NAMES, tmp_path / 'none.png')  # no class has a rest
    many = rng.dirichlet(np.ones(40), size=400)
    plot_roc_pr(many, rng.integers(40, size=400), [f'class {i}' for i in range(40)], tmp_path / 'many.png')


def test_class_counts(tmp_path):
    counts = {'train': dict.fromkeys(NAMES, 10), 'test': {NAMES[0]: 3}}
    other = {'train': dict(counts['train'], _a=2), 'test': counts['test']}
    assert 0.005 < changed_share(*(render(plot_class_counts, tmp_path, numbers) for numbers in (counts, other))) < 0.2


def test_overlay():
    image = np.full((2, 2, 3), 100, np.uint8)
    found = overlay(image, np.array([[0, 1], [0.5, 0]]), strength=0.5)
    assert found.dtype == np.uint8
    assert (found[0, 0] == 100).all()
    assert (found[1, 1] == 100).all()
    assert found[0, 1] == pytest.approx([176, 178, 132], abs=2)  # half of the strongest colour, (252, 255, 164)


@pytest.mark.parametrize(
    ('share', 'shown'), [(1, '100 %'), (0.998, '>99 %'), (0.99, '99 %'), (0.004, '<1 %'), (0, '0 %'), (0.5, '50 %')]
)
def test_percent_without_decimals(share, shown):
    assert format_percent(share) == shown


def test_most_confused():
    matrix = [[5, 0, 0, 1], [0, 5, 3, 0], [0, 0, 5, 0], [0, 0, 0, 5]]
    assert most_confused_classes(matrix) == [0, 1, 2, 3]
    assert most_confused_classes(matrix, 2) == [1, 2]
    assert most_confused_classes([[3, 0], [0, 3]]) == []


def test_long_names_differ():
    names = [f'{"a long beginning that is the same " * 2}{end}' for end in ('left', 'right')]
    assert len({shorten_name(name) for name in names}) == 2
    assert all(len(shorten_name(name)) == 24 for name in names)


def test_names_in_other_scripts(tmp_path, recwarn):
    plot_confusion_matrix([[1, 0], [0, 1]], ['膠質腫', 'опухоль'], tmp_path / 'a.png')
    assert [str(warning.message) for warning in recwarn] == []


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    with pytest.raises(ImportError, match=r"pip install 'hdkd-timm\[plots\]'"):
        plot_confusion_matrix([[1]], ['a'], tmp_path / 'c.png')
    assert not list(tmp_path.iterdir())
