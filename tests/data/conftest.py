"""Fixtures of the tests of the data."""

import pytest
from PIL import Image


@pytest.fixture
def write_csv(tmp_path):
    """A function that writes images of grey 0, 10, 20, ... in images/, and a table of them from its text."""
    folder = tmp_path / 'table' / 'images'
    folder.mkdir(parents=True)
    for i in range(12):
        image = Image.new('L', (8, 8), 10 * i)
        image.putpixel((7, 7), 255)  # it is neither blank nor dark, of which a warning would have its name
        image.save(folder / f'{i}.png')

    def write(*lines, encoding='utf-8'):
        path = folder.parent / 'data.csv'
        path.write_text('\n'.join(lines) + '\n', encoding=encoding)
        return str(path)

    return write
