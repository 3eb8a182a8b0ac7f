"""What reading every image once records, and when it stops."""

import hashlib

import numpy as np
import pytest
from data_helpers import CORNERS, create
from helpers import write_dicom
from PIL import Image

from hdkd_timm.data import inspection
from hdkd_timm.data.inspection import inspect_image, inspect_images
from hdkd_timm.data.pixels import MemoryBudget
from hdkd_timm.data.value_range import StoredValues


def test_records(tmp_path):
    Image.fromarray(CORNERS).save(tmp_path / 'x.png')
    (tmp_path / 'bad.png').write_bytes(b'no image')
    paths = [str(tmp_path / name) for name in ('x.png', 'bad.png', 'missing.png')]
    good, bad, missing = inspect_images(paths)
    data = (tmp_path / 'x.png').read_bytes()
    assert good == ('', len(data), hashlib.sha256(data).hexdigest(), StoredValues('RGB', 8, 0, 255, 255))
    assert bad.error.startswith('UnidentifiedImageError: not an image in a supported format')
    assert (bad.size, bad.digest, bad.values) == (8, hashlib.sha256(b'no image').hexdigest(), None)
    assert missing.error.startswith('FileNotFoundError: ')
    assert missing.size == 0
    with open(paths[0], 'rb') as file:
        assert inspect_image(file) == inspect_image(data) == good
        with Image.open(paths[0]) as image:
            assert inspect_image(image) == good._replace(size=0, digest='')


def test_all_reading_threads_share_a_budget(tmp_path, monkeypatch):
    reserved = []
    reserve = MemoryBudget.reserve

    def noted(budget, pixels):
        reserved.append((budget.total, pixels))
        return reserve(budget, pixels)

    monkeypatch.setattr(MemoryBudget, 'reserve', noted)
    monkeypatch.setattr(inspection, 'available_memory', lambda: 3000)
    paths = [tmp_path / name for name in ('a.png', 'b.webp', 'c.tif')]
    for path in paths:
        Image.new('L', (5, 4)).save(path)
    paths.append(write_dicom(tmp_path / 'x.dcm', np.zeros((4, 5), np.uint16)))
    assert not any(record.error for record in inspect_images(list(map(str, paths))))
    assert reserved == [(1500, 20)] * 4


def test_reading_stops_once_an_error_is_certain(write_csv, monkeypatch):
    path = write_csv(
        'path,label,split',
        'images/0.png,a,train',
        'images/1.png,b,train',
        *(f'gone/{i}.png,{"ab"[i % 2]},train' for i in range(3000)),
    )
    read = []
    inspect = inspection.inspect_images
    monkeypatch.setattr(inspection, 'inspect_images', lambda paths, mode: read.extend(paths) or inspect(paths, mode))
    with pytest.raises(ValueError, match=r"gone/0\.png' .* 998 or more unreadable in split 'train'"):
        create(data_csv=path, only='train')
    assert len(read) == 1000
    assert len(create(data_csv=path, only='train', on_bad_image='skip')[0]['train']) == 2
