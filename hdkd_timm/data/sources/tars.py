"""Images in a tar file, in class folders or in one inner tar file per class.

Links are followed: `tar` writes one for a file that it has already stored under another name. timm's reader of tar
files skips them.
"""

import copy
import io
import logging
import posixpath
import tarfile
from typing import BinaryIO, Dict, Iterator, List, NamedTuple, Optional, Tuple

from timm.data.readers.reader import Reader

from ..image_files import IMG_EXTENSIONS, is_dicom, is_side_file
from .walk import is_hidden_folder, natural_order, warn_ignored_files

_logger = logging.getLogger(__name__)

MAX_LINKS = 40  # in a chain, as on Linux


class TarImage(NamedTuple):
    """An image in a tar file.

    Args:
        name: Its name in the tar file, or in the inner one.
        member: Location of its bytes.
        label: Its class: the name of its folder, or of its inner tar file.
        level: Number of folders above it; None in an inner tar file.
    """

    name: str
    member: tarfile.TarInfo
    label: str
    level: Optional[int]


class TarReader(Reader):
    """timm reader of the images in a tar file. Each access reopens the file, so threads and processes may share it.

    Args:
        root: The tar file.

    Raises:
        ValueError: if it is not a tar file, is damaged, contains no images, images outside class folders or one level
            too deep, broken links, or data after its end.
    """

    def __init__(self, root: str):
        super().__init__()
        self.root = root
        try:
            with tarfile.open(root, 'r:') as tar:
                images, others = _list_images(tar)
        except (tarfile.TarError, EOFError) as e:
            raise ValueError(f"'{root}' is not a tar file of images in class folders ({e}).") from e
        except ValueError as e:
            raise ValueError(f"'{root}': {e}") from e
        warn_ignored_files(others, root)
        if not images:
            raise ValueError(f"'{root}' is not a tar file of images in class folders (it contains no images).")
        levels = {image.level for image in images} - {None}
        if 0 in levels or len(levels) > 1:
            raise ValueError(
                f"'{root}' contains images outside class folders or one level too deep; expected '<class>/*' in it."
            )
        self.samples = sorted(images, key=lambda image: natural_order(image.name))
        self.classes = sorted({image.label for image in images}, key=natural_order)
        index_of = {name: i for i, name in enumerate(self.classes)}
        self.targets = [index_of[image.label] for image in self.samples]

    def __getitem__(self, index: int) -> Tuple[BinaryIO, int]:
        with tarfile.open(self.root, 'r:') as tar:
            return io.BytesIO(tar.extractfile(self.samples[index].member).read()), self.targets[index]

    def __len__(self) -> int:
        return len(self.samples)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        name = self.samples[index].name
        return posixpath.basename(name) if basename else name


def _list_images(tar: tarfile.TarFile) -> Tuple[List[TarImage], List[str]]:
    """Images of a tar file and its inner tar files, and the names of files that are neither images nor side files.

    Raises:
        ValueError: if a link is broken; as `_check_end`.
    """
    images, others, inner_images = [], [], []
    for name, member in _files(tar):
        suffix = posixpath.splitext(name)[1].lower()
        if suffix == '.tar' and member.isfile():
            with tarfile.open(fileobj=tar.extractfile(member), mode='r:') as inner:
                stem = posixpath.splitext(posixpath.basename(name))[0]
                try:
                    found, inner_others = _list_inner(inner, member.offset_data, stem)
                except ValueError as e:
                    raise ValueError(f"'{name}': {e}") from e
            inner_images += found
            others += [f'{name}/{inner_name}' for inner_name in inner_others]
        elif _is_image(tar, name, member):
            folder = posixpath.dirname(posixpath.normpath(name))
            images.append(
                TarImage(member.name, member, posixpath.basename(folder), folder.count('/') + 1 if folder else 0)
            )
        elif not is_side_file(name):
            others.append(name)
    return inner_images + images, others


def _list_inner(tar: tarfile.TarFile, offset: int, label: str) -> Tuple[List[TarImage], List[str]]:
    """As `_list_images`, for a tar file that starts at this offset of another one."""
    images, others = [], []
    for name, member in _files(tar):
        if _is_image(tar, name, member):
            member = copy.copy(member)  # another link may refer to it
            member.offset_data += offset
            images.append(TarImage(member.name, member, posixpath.basename(posixpath.dirname(name)) or label, None))
        elif not is_side_file(name):
            others.append(name)
    return images, others


def _is_image(tar: tarfile.TarFile, name: str, member: tarfile.TarInfo) -> bool:
    if not member.isfile():
        return False
    if name.lower().endswith(IMG_EXTENSIONS):
        return True
    return not is_side_file(name) and is_dicom(tar.extractfile(member).read(132), name)


def _files(tar: tarfile.TarFile) -> Iterator[Tuple[str, tarfile.TarInfo]]:
    """The files in a tar file that are not hidden. Of members with the same name the last one counts, as for `tar -x`.

    Yields:
        The name without a leading './', and the member; for a link, a copy of its target under the name of the link.

    Raises:
        ValueError: if a link is broken; as `_check_end`.
    """
    members: Dict[str, tarfile.TarInfo] = {}
    for member in tar:
        name = posixpath.normpath(member.name)
        members.pop(name, None)
        members[name] = member
    _check_end(tar)
    for name, member in members.items():
        *folders, last = name.split('/')
        if member.isdir() or last.startswith('.') or any(map(is_hidden_folder, folders)):
            continue
        if not (member.islnk() or member.issym()):
            yield name, member
            continue
        target = _follow(name, members)
        if target is None and is_side_file(name):
            continue
        if target is None or target.isdir():
            what = 'a folder' if target is not None else 'which it does not contain'
            raise ValueError(
                f"'{name}' is a link to '{member.linkname}', {what}: recreate the tar file with `tar --dereference`"
                ' (-h).'
            )
        linked = copy.copy(target)
        linked.name = member.name
        yield name, linked


def _check_end(tar: tarfile.TarFile) -> None:
    """Check that a tar file ends after its listed members: `tarfile` takes a damaged header for the end.

    Raises:
        ValueError: if anything but zeros follows.
    """
    tar.fileobj.seek(tar.offset)
    is_marked = False
    while block := tar.fileobj.read(2**16):
        is_marked = True
        if any(block):
            raise ValueError(
                f'its list of files ends at byte {tar.offset:,}, but data follows: it is damaged, or several tar files'
                ' were concatenated. Copy it again, or recreate it as a single tar file.'
            )
    if not is_marked:
        _logger.warning(f"Tar file '{tar.name}' has no end-of-archive marker: if it was truncated, images are missing.")


def _follow(name: str, members: Dict[str, tarfile.TarInfo]) -> Optional[tarfile.TarInfo]:
    """The target of a link, None if the tar file does not contain it."""
    for _ in range(MAX_LINKS):
        member = members.get(name)
        if member is None or not (member.islnk() or member.issym()):
            return member
        # a hard link's target is a name in the archive, a symbolic link's is relative to its folder
        folder = posixpath.dirname(name) if member.issym() else ''
        name = posixpath.normpath(posixpath.join(folder, member.linkname))
    return None
