"""Files in a directory tree: each real directory is visited once, and files that are not used are reported.

A linked directory is as good as a real one. Hidden files and directories, and those that systems and programs put
beside images, are skipped silently; every other file is either an image or reported by `warn_ignored_files`.
"""

import logging
import os
import re
from collections import Counter, deque
from contextlib import suppress
from typing import Any, Deque, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from ..image_files import IMG_EXTENSIONS, is_image_file, is_side_file, split_suffix

_logger = logging.getLogger(__name__)

MAX_NAMES = 5  # names in a message

Seen = Dict[Any, str]  # identity of a real directory -> the path under which it was first seen


def natural_order(name: str) -> Tuple[List[Any], str]:
    """Sort key: timm's natural order, where that is ambiguous ('a' and 'A', '1' and '01') by code point.

    timm's own `natural_key` fails on digits that are not decimals ('1²').
    """
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r'(\d+)', name.lower()))], name


def is_hidden_folder(name: str) -> bool:
    """Whether this is a directory of a system or program, such as .ipynb_checkpoints and __MACOSX."""
    return name.startswith('.') or name.lower() == '__macosx'


def folder_id(path: str) -> Any:
    """An identity that all paths of a real directory share."""
    stat = os.stat(path)
    return (stat.st_dev, stat.st_ino) if stat.st_ino else os.path.realpath(path)


def parent_folders(folder: str) -> Seen:
    """The directories that contain this one: a link to one of them is a cycle."""
    parents: Seen = {}
    path = os.path.realpath(folder)
    while os.path.dirname(path) != path:
        path = os.path.dirname(path)
        with suppress(OSError):
            parents[folder_id(path)] = path
    return parents


def warn_of_repeat(folder: str, first: str) -> None:
    """Report a directory that is skipped because it was seen before."""
    _logger.warning(f"Skipped '{folder}': it is the same directory as '{first}'.")


def scan_folder(folder: str) -> Tuple[List[str], List[str]]:
    """List a directory.

    Returns:
        Names of its directories, linked ones included and hidden ones excluded, and names of everything else.

    Raises:
        OSError: if it cannot be read; names it.
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
            f"Cannot read directory '{folder}' ({type(e).__name__}: {e.strerror}): make it readable or move it"
            ' elsewhere.'
        ) from e
    return sorted(folders), sorted(files)


def _is_folder(entry: 'os.DirEntry[str]') -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def walk_folder(
    folder: str,
    seen: Optional[Seen] = None,
    skip_unreadable: bool = False,
) -> Iterator[Tuple[str, List[str]]]:
    """Walk a directory tree, following links after all real directories.

    Args:
        folder: Root of the tree.
        seen: Directories to skip, to which the visited ones are added; the parents of the root by default.
        skip_unreadable: Skip directories that cannot be read, with a warning.

    Yields:
        Each real directory, starting with the root, and the paths of its files.

    Raises:
        OSError: if a directory cannot be read.
    """
    seen = parent_folders(folder) if seen is None else seen
    real: List[str] = [folder]
    links: Deque[str] = deque()
    while real or links:
        path = real.pop() if real else links.popleft()
        identity = folder_id(path)
        if identity in seen:
            warn_of_repeat(path, seen[identity])
            continue
        seen[identity] = path
        try:
            folders, files = scan_folder(path)
        except OSError as e:
            if not skip_unreadable:
                raise
            _logger.warning(f'Skipped a directory: {e}')
            continue
        yield path, [os.path.join(path, name) for name in files]
        for name in folders:
            inner = os.path.join(path, name)
            (links if os.path.islink(inner) else real).append(inner)


class Listing(NamedTuple):
    """Files by kind.

    Args:
        images: Image files by suffix, and DICOM files by content. Includes broken links, which cannot be read.
        others: Files that are neither images nor known side files.
    """

    images: List[str]
    others: List[str]


def sort_files(paths: Iterable[str]) -> Listing:
    """Separate images from other files; known side files are dropped."""
    listing = Listing([], [])
    for path in paths:
        name = os.path.basename(path)
        if name.startswith('.'):
            # macOS keeps ._NAME beside a file; any other hidden image may have been meant to be used
            if name.lower().endswith(IMG_EXTENSIONS) and not name.startswith('._'):
                listing.others.append(path)
        elif name.lower().endswith(IMG_EXTENSIONS):
            listing.images.append(path)
        elif not is_side_file(name):
            (listing.images if _is_readable_image(path) else listing.others).append(path)
    return listing


def _is_readable_image(path: str) -> bool:
    try:
        return is_image_file(path)
    except OSError:  # a pipe, a broken link, no permission
        return False


def count_suffixes(paths: Iterable[str]) -> str:
    """Number of files with each of the ten most frequent suffixes, '.png 12, .jfif 3'."""
    counts = Counter(split_suffix(path)[1].lower() or 'none' for path in paths)
    frequent = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:10]
    text = ', '.join(f'{suffix} {number:,}' for suffix, number in frequent)
    return text + (f', {len(counts) - 10:,} others' if len(counts) > 10 else '')


def join_names(names: Sequence[str], limit: int = MAX_NAMES) -> str:
    """The first names of a list, with '...' if there are more."""
    return ', '.join(names[:limit]) + (', ...' if len(names) > limit else '')


def warn_ignored_files(names: Sequence[str], where: str) -> None:
    """Warn about files that are neither images nor known side files.

    Args:
        names: Their names, relative to `where`.
        where: The directory or tar file.
    """
    if names:
        hidden = any(os.path.basename(name).startswith('.') for name in names)
        _logger.warning(
            f"Ignored {len(names):,} file{'s' * (len(names) > 1)} in '{where}', {'hidden or ' * hidden}without an image"
            f' suffix: {join_names(sorted(names, key=natural_order))} (by suffix: {count_suffixes(names)}).'
        )
