"""Pictures that can be read back."""
import sys

import numpy as np
import pytest
from PIL import Image

from hdkd_timm.plots import plot_confusion_matrix


def test_confusion_matrix(tmp_path):
    names = ['a', '$x_1$ <b>', 'a name longer than twenty-four letters']  # no mathematics, no markup
    plot_confusion_matrix([[9, 1, 0], [0, 0, 0], [2, 0, 8]], names, tmp_path / 'a.png')
    plot_confusion_matrix([[1, 9, 0], [0, 0, 0], [2, 0, 8]], names, tmp_path / 'b.png')
    pixels = [np.asarray(Image.open(tmp_path / f'{name}.png').convert('RGB')).astype(int) for name in 'ab']
    assert pixels[0].shape == pixels[1].shape
    changed = np.abs(pixels[0] - pixels[1]).sum(axis=2) > 100
    assert 0.02 < changed.mean() < 0.3  # two cells of nine


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    with pytest.raises(ImportError, match=r"pip install 'hdkd-timm\[plots\]'"):
        plot_confusion_matrix([[1]], ['a'], tmp_path / 'c.png')
    assert not list(tmp_path.iterdir())
