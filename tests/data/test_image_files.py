"""Which files are images, by name and by content."""

import os
import socket

import pytest

from hdkd_timm.data.image_files import IMG_EXTENSIONS, is_dicom, is_side_file
from hdkd_timm.data.image_io import image_size, read_image
from hdkd_timm.data.inspection import inspect_images


def test_extensions():
    assert {
        '.jpg',
        '.jpeg',
        '.png',
        '.webp',
        '.bmp',
        '.tif',
        '.tiff',
        '.dcm',
        '.dicom',
        '.jfif',
        '.jpe',
        '.gif',
    } <= set(IMG_EXTENSIONS)


def test_names_of_side_files():
    for name in (
        '.hidden.png',
        '._img.png',
        '.DS_Store',
        'Thumbs.db',
        'desktop.ini',
        '__MACOSX',
        '.ipynb_checkpoints',
        'labels.CSV',
        'notes.txt',
        'LICENSE',
        'a/b/.x',
    ):
        assert is_side_file(name), name
    for name in ('a.png', 'scan', 'x.heic', 'a.csv.png', 'thumbs.png', 'b.unknown'):
        assert not is_side_file(name), name


def test_special_files_are_refused_before_they_are_opened(tmp_path):
    os.mkfifo(tmp_path / 'pipe.png')
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / 'socket.png'))
    paths = [str(tmp_path / 'pipe.png'), '/dev/zero', str(tmp_path / 'socket.png'), str(tmp_path)]
    errors = [record.error for record in inspect_images(paths)]  # a pipe would block, /dev/zero never end
    server.close()
    assert errors[0] == f"OSError: '{paths[0]}' is a named pipe, expected an image file"
    assert errors[1] == "OSError: '/dev/zero' is a device, expected an image file"
    assert 'is a socket, expected an image file' in errors[2]
    assert errors[3].startswith('IsADirectoryError: ')
    for read in (read_image, image_size, is_dicom):
        with pytest.raises(OSError, match='is a named pipe'):
            read(paths[0])
