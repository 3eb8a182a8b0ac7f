"""What is in a folder of images: each real folder is looked through once, and what is left out is named.

A linked folder is as good as a real one. Passed over without a word are hidden folders and files, and what systems and
programs put beside images; all else is an image, or is told by `warn_left_out`.
"""
import logging
import os
import re
from collections import Counter, deque
from contextlib import suppress
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from ..image_io import IMG_EXTENSIONS, is_image_file, is_side_file

_logger = logging.getLogger(__name__)

SHOWN = 5  # names in a message

Seen = Dict[Any, str]  # identity of a real folder -> its first path


def natural_order(name: str) -> Tuple[List[Any], str]:
    """Sort key: timm's natural order of names; those that it holds equal ('a' and 'A', '1' and '01') by code point.

    timm's own `natural_key` fails on digits that are no decimals ('1²').
    """
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r'(\d+)', name.lower()))], name


def is_hidden_folder(name: str) -> bool:
    """Is this the name of a folder of a system or program, such as .ipynb_checkpoints and __MACOSX?"""
    return name.startswith('.') or name.lower() == '__macosx'


def folder_id(path: str) -> Any:
    """What is equal for all paths of one real folder."""
    stat = os.stat(path)
    return (stat.st_dev, stat.st_ino) if stat.st_ino else os.path.realpath(path)


def folders_above(folder: str) -> Seen:
    """The folders that a folder lies in, to which a link in it would lead in a circle."""
    above: Seen = {}
    path = os.path.realpath(folder)
    while os.path.dirname(path) != path:
        path = os.path.dirname(path)
        with suppress(OSError):
            above[folder_id(path)] = path
    return above


def scan_folder(folder: str) -> Tuple[List[str], List[str]]:
    """Names of the folders in a folder, linked ones among them and hidden ones not, and of all else.

    Raises:
        OSError: if the folder cannot be read; it is named.
    """
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not _is_folder(entry):
                    files.append(entry.name)
                elif not is_hidden_folder(entry.name):
                    folders.append(entry.name)
    except OSError as e:
        raise OSError(
            f"Cannot read folder '{folder}' ({type(e).__name__}: {e.strerror}): make it readable, or move it"
            ' elsewhere.') from e
    return sorted(folders), sorted(files)


def _is_folder(entry: 'os.DirEntry[str]') -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def walk_folder(folder: str, seen: Optional[Seen] = None, skip_unreadable: bool = False) -> Iterator[
        Tuple[str, List[str]]]:
    """Each real folder in a folder, itself the first, and the paths of its files; linked folders come last.

    Args:
        folder: Where to begin.
        seen: Folders that are passed over, to which those are added that are not; by default those above.
        skip_unreadable: Leave folders out that cannot be read, with a warning.

    Raises:
        OSError: if a folder cannot be read.
    """
    seen = folders_above(folder) if seen is None else seen
    real, links = [folder], deque()
    while real or links:
        path = real.pop() if real else links.popleft()
        identity = folder_id(path)
        if identity in seen:
            _logger.warning(f"Passed over '{path}': it is the folder '{seen[identity]}' again.")
            continue
        seen[identity] = path
        try:
            folders, files = scan_folder(path)
        except OSError as e:
            if not skip_unreadable:
                raise
            _logger.warning(f'Left out a folder: {e}')
            continue
        yield path, [os.path.join(path, name) for name in files]
        for name in folders:
            inner = os.path.join(path, name)
            (links if os.path.islink(inner) else real).append(inner)


class Listing(NamedTuple):
    """Files of folders.

    Args:
        images: Image files, by suffix, or DICOM files by content; broken links among them, which cannot be read.
        others: Files that are neither images nor known side files.
    """
    images: List[str]
    others: List[str]


def sort_files(paths: Iterable[str]) -> Listing:
    """Which files are images, and which are left out."""
    listing = Listing([], [])
    for path in paths:
        name = os.path.basename(path)
        if name.startswith('.'):
            # what macOS keeps beside a file is called ._NAME; another hidden image may have been meant
            if name.lower().endswith(IMG_EXTENSIONS) and not name.startswith('._'):
                listing.others.append(path)
        elif name.lower().endswith(IMG_EXTENSIONS):
            listing.images.append(path)
        elif not is_side_file(name):
            (listing.images if _holds_dicom(path) else listing.others).append(path)
    return listing


def _holds_dicom(path: str) -> bool:
    try:
        return is_image_file(path)
    except OSError:  # a pipe, a broken link, no permission
        return False


def count_suffixes(paths: Iterable[str]) -> str:
    """How many files have each suffix, the ten most frequent: '.png 12, .jfif 3'."""
    counts = Counter(os.path.splitext(path)[1].lower() or 'none' for path in paths)
    frequent = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:10]
    told = ', '.join(f'{suffix} {number:,}' for suffix, number in frequent)
    return told + (f', {len(counts) - 10:,} others' if len(counts) > 10 else '')


def name_some(names: Sequence[str], shown: int = SHOWN) -> str:
    """The first names of a list, and that there are more."""
    return ', '.join(names[:shown]) + (', ...' if len(names) > shown else '')


def warn_left_out(names: Sequence[str], where: str) -> None:
    """Tell of files that are neither images nor known side files, by names within a folder and suffixes."""
    if names:
        hidden = any(os.path.basename(name).startswith('.') for name in names)
        _logger.warning(
            f"Left out {len(names):,} file{'s' * (len(names) > 1)} of '{where}', {'hidden or ' * hidden}without the"
            f' suffix of an image: {name_some(sorted(names, key=natural_order))} (by suffix: {count_suffixes(names)}).')
