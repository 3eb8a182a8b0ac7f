"""Read every image of a data set once before it is used: can it be read, its hash, its range of values."""

import dataclasses
import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import BinaryIO, Iterable, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
from PIL import Image

from ..utils.memory import available_memory
from .image_files import ImageFile, file_name, frame_of, open_seekable
from .image_io import read_with_values
from .pixels import MemoryBudget, Reserve
from .samples import FileReader, SampleDataset, Samples, warn_of_changes
from .targets import to_indicators
from .value_range import StoredValues, describe_ranges, is_suspicious

_logger = logging.getLogger(__name__)

CHUNK = 1000  # images read at a time, before deciding whether to continue
MAX_UNREADABLE = 20  # unreadable images after which reading stops, where the first one is an error anyway


class ImageRecord(NamedTuple):
    """Result of reading an image once.

    Args:
        error: Why it cannot be read, '' if it can.
        size: Bytes of the file, 0 for a decoded image.
        digest: SHA-256 of these bytes in hexadecimal digits, '' for a decoded image.
        values: How its values are stored, None if it cannot be read.
    """

    error: str = ''
    size: int = 0
    digest: str = ''
    values: Optional[StoredValues] = None


def hash_file(file: BinaryIO) -> Tuple[int, str]:
    """Number of bytes of an open file, and their SHA-256, with the frame if it is one, in hexadecimal digits. Rewinds
    the file."""
    file.seek(0)
    digest, size = hashlib.sha256(), 0
    while block := file.read(2**16):
        digest.update(block)
        size += len(block)
    file.seek(0)
    if frame_of(file) is not None:
        digest.update(f'#{frame_of(file)}'.encode())
    return size, digest.hexdigest()


def inspect_image(
    file: Union[ImageFile, Image.Image],
    mode: str = 'RGB',
    name: Optional[str] = None,
    reserve: Reserve = nullcontext,
) -> ImageRecord:
    """Read an image once; never raises for an image that cannot be read.

    Args:
        file: Path, open binary file, bytes, or an image that is decoded already.
        mode: See `read_image`.
        name: See `read_image`.
        reserve: Context manager that waits for the memory for that many pixels.
    """
    size, digest = 0, ''
    try:
        if isinstance(file, Image.Image):
            return ImageRecord(values=read_with_values(file, mode)[1])
        with open_seekable(file) as opened:
            size, digest = hash_file(opened)
            return ImageRecord('', size, digest, read_with_values(opened, mode, file_name(file, name), reserve)[1])
    except Exception as e:  # Pillow's plugins raise errors of many types on broken files
        return ImageRecord(f'{type(e).__name__}: {e}', size, digest)


def inspect_images(paths: Sequence[str], mode: str = 'RGB') -> List[ImageRecord]:
    """Read image files once, as many at a time as fit into half of the available memory.

    Args:
        paths: The files, (N,).
        mode: See `read_image`.

    Returns:
        Their records in the same order, (N,).
    """
    budget = MemoryBudget(available_memory() // 2)
    with ThreadPoolExecutor() as pool:
        return list(pool.map(partial(inspect_image, mode=mode, reserve=budget.reserve), paths))


def inspect_samples(samples: Samples, img_mode: str, max_unreadable: Optional[int] = None) -> List[ImageRecord]:
    """Read the images of samples once, in order.

    Args:
        samples: The images, (N,).
        img_mode: See `read_image`.
        max_unreadable: Stop after the chunk in which the number of unreadable images reaches this.

    Returns:
        Their records, (N,), or fewer if reading stopped.
    """
    records: List[ImageRecord] = []
    unreadable = 0
    for start in range(0, len(samples), CHUNK):
        chunk = range(start, min(start + CHUNK, len(samples)))
        if isinstance(samples.reader, FileReader):
            records += inspect_images([samples.filename(i) for i in chunk], img_mode)
        else:
            dataset = SampleDataset(samples, img_mode)
            records += [_inspect_sample(dataset, i) for i in chunk]
        unreadable += sum(bool(record.error) for record in records[start:])
        if max_unreadable is not None and unreadable >= max_unreadable:
            break
    return records


def _inspect_sample(dataset: SampleDataset, index: int) -> ImageRecord:
    """Record of an image in a dataset. An image that comes decoded is hashed by its pixels."""

    def inspect_decoded(image: Image.Image) -> ImageRecord:
        head = repr((image.mode, image.size, image.getpalette()))
        return inspect_image(image, dataset.img_mode)._replace(
            digest=hashlib.sha256(head.encode() + image.tobytes()).hexdigest()
        )

    try:
        return dataset.open(index, inspect_decoded, lambda file, name: inspect_image(file, dataset.img_mode, name))
    except ValueError as e:
        return ImageRecord(error=f'{type(e.__cause__).__name__}: {e.__cause__}')


def inspect_and_report(
    samples: Samples,
    img_mode: str,
    on_bad_image: str,
    split: Optional[str] = None,
) -> List[ImageRecord]:
    """Read the images of samples once, and report those that cannot be read.

    Args:
        samples: The images, (N,).
        img_mode: See `read_image`.
        on_bad_image: 'error', or 'skip' to warn about each.
        split: Their split, for messages.

    Returns:
        Their records, (N,).

    Raises:
        ValueError: with 'error', if an image cannot be read; names the first.
    """
    records = inspect_samples(samples, img_mode, MAX_UNREADABLE if on_bad_image == 'error' else None)
    report_unreadable(samples, records, on_bad_image, split)
    return records


def report_unreadable(
    samples: Samples, records: Sequence[ImageRecord], on_bad_image: str, split: Optional[str] = None
) -> None:
    """Report the images that cannot be read, as `inspect_and_report`, of samples whose records, or the first of them,
    are known."""
    unreadable = [i for i, record in enumerate(records) if record.error]
    if not unreadable:
        return
    if on_bad_image == 'error':
        first = unreadable[0]
        number = f'{len(unreadable)} or more' if len(records) < len(samples) else f'{len(unreadable)}'
        raise ValueError(
            f"Cannot read image '{samples.filename(first)}' ({records[first].error}); {number} unreadable in"
            f' {f"split {split!r}" if split else "total"}. Fix or remove it, or skip such images with --on-bad-image'
            ' skip.'
        )
    for i in unreadable:
        _logger.warning(f"Skipped unreadable image '{samples.filename(i)}' ({records[i].error})")
    of_split = f" of split '{split}'" if split else ''
    _logger.warning(f'Skipped {len(unreadable):,} of {len(samples):,} images{of_split}, which cannot be read.')


def check_images(
    samples: Samples,
    split: str,
    classes: Sequence[str],
    img_mode: str,
    on_bad_image: str,
) -> Tuple[Samples, List[StoredValues]]:
    """Read the images of a split once.

    Args:
        samples: The split.
        split: Its name in messages.
        classes: Class names by index.
        img_mode: See `read_image`.
        on_bad_image: 'error' or 'skip'.

    Returns:
        The samples that can be read, with their contents, and how their values are stored.

    Raises:
        ValueError: if an image cannot be read, or with 'skip' none of a class.
    """
    records = inspect_and_report(samples, img_mode, on_bad_image, split)
    kept = np.array([not record.error for record in records], bool)
    has = to_indicators(samples.targets, len(classes))
    missing = np.flatnonzero(has.any(axis=0) & ~has[kept].any(axis=0))
    if len(missing):
        raise ValueError(f"No readable image of class '{classes[missing[0]]}' in split '{split}'.")
    contents = np.array([(str(record.size or ''), record.digest) for record in records], object).reshape(-1, 2)
    samples = dataclasses.replace(samples, contents=contents).take(kept)
    warn_of_changes(samples, split)
    return samples, [record.values for record in records if not record.error]


def warn_of_ranges(values: Sequence[Optional[StoredValues]], parts: Iterable[Samples]) -> None:
    """Warn about nearly black and blank images, once per data set.

    Args:
        values: Stored values of all images, None if unreadable, (N,).
        parts: Samples of these images in the same order, N in total.
    """
    # listing the names may read the whole dataset
    if any(map(is_suspicious, values)):
        warning = describe_ranges(values, [name for part in parts for name in part.filenames()])
        if warning:
            _logger.warning(warning)
