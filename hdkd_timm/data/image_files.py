"""Which files are images: by suffix, or by content for DICOM files, which often have none."""

import io
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Iterator, Optional, Tuple, Union

from .pixels import read_head

ImageFile = Union[str, Path, BinaryIO, bytes]

DICOM_EXTENSIONS = ('.dcm', '.dicom')
NIFTI_EXTENSIONS = ('.nii', '.nii.gz')
IMG_EXTENSIONS = (
    '.png',
    '.apng',
    '.jpg',
    '.jpeg',
    '.jpe',
    '.jfif',
    '.mpo',
    '.tif',
    '.tiff',
    '.webp',
    '.bmp',
    '.dib',
    '.gif',
    '.jp2',
    '.j2k',
    '.jpc',
    '.jpf',
    '.jpx',
    '.j2c',
    '.avif',
    '.ppm',
    '.pgm',
    '.pbm',
    '.pnm',
    '.pfm',
    '.pcx',
    '.tga',
    *DICOM_EXTENSIONS,
    *NIFTI_EXTENSIONS,
)

# files that commonly lie beside images, and files and folders of operating systems and programs
SIDE_EXTENSIONS = (
    '.csv',
    '.tsv',
    '.txt',
    '.json',
    '.jsonl',
    '.xml',
    '.yaml',
    '.yml',
    '.toml',
    '.md',
    '.rst',
    '.html',
    '.htm',
    '.pdf',
    '.xlsx',
    '.xls',
    '.ods',
    '.doc',
    '.docx',
    '.db',
    '.ini',
    '.log',
    '.py',
    '.ipynb',
    '.sh',
    '.md5',
    '.sha256',
    '.bib',
)
SIDE_NAMES = ('thumbs.db', 'desktop.ini', '__macosx', 'license', 'licence', 'readme', 'dicomdir')


def is_side_file(name: str) -> bool:
    """Whether this names a file or folder that is expected beside images: hidden, a system file, a table, a text."""
    name = os.path.basename(name).lower()
    return name.startswith('.') or name in SIDE_NAMES or name.endswith(SIDE_EXTENSIONS)


def split_frame(path: Union[str, Path]) -> Tuple[str, Optional[int]]:
    """The file of an image, and its frame, page or slice, from 0, of one that is named FILE#FRAME; None for a file that
    has this very name, or no such mark."""
    file, _, number = str(path).rpartition('#')
    is_frame = file and number.isdecimal() and not os.path.lexists(path)
    return (file, int(number)) if is_frame else (str(path), None)


def split_suffix(path: Union[str, Path]) -> Tuple[str, str]:
    """Name of an image without its suffix and frame, and the suffix: ('scan', '.nii.gz') of 'scan.nii.gz#40'."""
    file, _ = split_frame(path)
    if file.lower().endswith('.nii.gz'):
        return file[: -len('.nii.gz')], file[-len('.nii.gz') :]
    return os.path.splitext(file)


def frame_of(file: BinaryIO) -> Optional[int]:
    """The frame of an open file that is the image, see `open_image_file`."""
    return getattr(file, 'frame', None)


def is_image_file(path: Union[str, Path]) -> bool:
    """Whether this is an image file, or a frame of one, by its suffix, or a DICOM file by its content."""
    return split_frame(path)[0].lower().endswith(IMG_EXTENSIONS) or is_dicom(path)


def is_dicom(file: ImageFile, name: Optional[str] = None) -> bool:
    """Whether this is a DICOM file, by its suffix or its preamble (128 bytes, then 'DICM')."""
    if split_frame(file_name(file, name))[0].lower().endswith(DICOM_EXTENSIONS):
        return True
    with open_seekable(file) as opened:
        return read_head(opened, 132)[128:] == b'DICM'


def file_name(file: ImageFile, name: Optional[str] = None) -> str:
    """The given name, else the path or the open file's own name; '' if it has none."""
    return str(name or (file if isinstance(file, (str, Path)) else getattr(file, 'name', '')))


def open_image_file(path: Union[str, Path]) -> BinaryIO:
    """Open a file for reading; `frame_of` tells the frame of one that is named FILE#FRAME.

    Raises:
        OSError: if it cannot be read, or is a pipe, socket or device: reading those could block or never end.
    """
    path, frame = split_frame(path)
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # open() has an error for folders
        kind = next(
            (
                kind
                for is_kind, kind in (
                    (stat.S_ISFIFO, 'named pipe'),
                    (stat.S_ISSOCK, 'socket'),
                    (stat.S_ISCHR, 'device'),
                    (stat.S_ISBLK, 'device'),
                )
                if is_kind(mode)
            ),
            'special file',
        )
        raise OSError(f"'{path}' is a {kind}, expected an image file")
    file = open(path, 'rb')  # noqa: SIM115, the caller closes it
    if frame is not None:
        setattr(file, 'frame', frame)  # noqa: B010, no attribute of files that a type checker knows
    return file


@contextmanager
def open_seekable(file: ImageFile) -> Iterator[BinaryIO]:
    """The file as an open one that can be rewound; only files opened here are closed."""
    if isinstance(file, (str, Path)):
        with open_image_file(file) as opened:
            yield opened
    elif isinstance(file, bytes):
        yield io.BytesIO(file)
    else:
        yield file if getattr(file, 'seekable', lambda: True)() else io.BytesIO(file.read())
