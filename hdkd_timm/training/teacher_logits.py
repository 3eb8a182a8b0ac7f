"""Logits of teachers for the training images, stored in a file: what is in it, and does it fit a training?

A safetensors file with 'logits', (M, V, N, K) in float16: M teachers, V views, N training images, K classes, and
'images', the JSON text of a list of [path, label, SHA-256 or ''], one for each image. Its metadata are JSON texts: all
that the views depend on, the classes, the teachers, and the SHA-256 of both tensors.
"""

import dataclasses
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import PIL
import timm
import torch
import torchvision
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from ..data.augment import create_eval_transform, create_train_transform
from ..data.samples import SampleDataset, find_changes, list_images
from ..distillation.teacher import StoredLogits
from ..utils.config import flag
from ..utils.files import PathLike, atomic_write, write_json
from ..utils.parsing import read_json
from ..utils.run_files import TEACHER_LOGITS_FILE
from .config import DistillConfig, TrainConfig
from .context import RunContext

_logger = logging.getLogger(__name__)

FORMAT = 'hdkd teacher logits 1'
# settings that decide what a view shows, by which the student must see what the teachers saw
OF_EVERY_IMAGE = ('img_size', 'in_chans')
OF_THE_VIEWS = ('seed', 'aug', 'load_size', 'scale', 'ratio', 'hflip', 'vflip', 'color_jitter', 'aa')

Image = Tuple[str, str, str]  # path, label, SHA-256 or ''


@dataclasses.dataclass
class TeacherLogits:
    """What a file of stored logits holds.

    Args:
        logits: (M, V, N, K), float16.
        images: Path, label and SHA-256 ('' if unknown) of each of the N images.
        classes: Names of the K classes.
        teachers: Architectures of the M teachers.
        checkpoints: Where they were loaded from, as `load_model` takes it.
        views: V, or 0 for one view without augmentation.
        crops: Setting -> value, of all that the views depend on.
        versions: Package -> version, of those that make the views.
    """

    logits: torch.Tensor
    images: List[Image]
    classes: List[str]
    teachers: List[str]
    checkpoints: List[str]
    views: int
    crops: Dict[str, Any]
    versions: Dict[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 of the logits."""
        return hashlib.sha256(self.logits.contiguous().numpy().tobytes()).hexdigest()

    def describe(self) -> Dict[str, Any]:
        """All but logits and images."""
        names = ('classes', 'teachers', 'checkpoints', 'views', 'crops', 'versions')
        return {**{name: getattr(self, name) for name in names}, 'logits_sha256': self.digest}


# -- the file ----------------------------------------------------------------------------------------------------------


def write_teacher_logits(stored: TeacherLogits, path: PathLike) -> None:
    """Write a file of stored logits, whole or not at all."""
    text = json.dumps(stored.images).encode()
    tensors = {'logits': stored.logits.contiguous(), 'images': torch.frombuffer(bytearray(text), dtype=torch.uint8)}
    values = dict(stored.describe(), images_sha256=hashlib.sha256(text).hexdigest())
    metadata = {name: json.dumps(value) for name, value in values.items()}
    with atomic_write(path, 'wb') as file:
        file.write(save(tensors, {'format': FORMAT, **metadata}))


def read_teacher_logits(path: PathLike) -> TeacherLogits:
    """Read a file of stored logits.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not one, or is damaged.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"File of teacher logits '{path}' does not exist: hdkd cache-logits writes it.")
    try:
        with safe_open(path, 'pt') as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError) as e:
        raise ValueError(f"'{path}' is not a file of hdkd cache-logits, or is damaged ({e}).") from e
    if metadata.pop('format', '') != FORMAT:
        raise ValueError(f"'{path}' is not a file of hdkd cache-logits: it has no logits of teachers.")
    values = {name: json.loads(value) for name, value in metadata.items()}
    digests = {name: values.pop(f'{name}_sha256') for name in ('logits', 'images')}
    text = tensors['images'].numpy().tobytes()
    images = (
        [tuple(image) for image in json.loads(text)] if hashlib.sha256(text).hexdigest() == digests['images'] else []
    )
    stored = TeacherLogits(tensors['logits'], images, **values)
    if not images or stored.digest != digests['logits']:
        raise ValueError(f"'{path}' is damaged: a checksum in it is wrong. Restore it, or store the logits again.")
    return stored


# -- what a training must have in common with it -----------------------------------------------------------------------


def check_views(config: TrainConfig, views: int) -> None:
    """Check that images are augmented one by one, so that their logits can be stored.

    Raises:
        ValueError: for a setting that mixes or makes images, or, with fixed views, gives an image more than one of them
            in an epoch, or changes it afterwards.
    """
    reasons = {
        'mixup': 'mixes two images, and logits are stored for single ones',
        'cutmix': 'mixes two images, and logits are stored for single ones',
        'smote': 'makes images of others, and logits are stored for those of the data',
    }
    of_views = {
        'sampler': 'draws an image several times in an epoch, and there is one view of it',
        'reprob': 'erases parts of an image after the view that the logits are of, by the batch that it is in',
        'aug_device': 'augments whole batches, so that an image has no views of its own',
    }
    for name, reason in {**reasons, **(of_views if views else {})}.items():
        value = getattr(config, name)
        if value:
            way_out = 'drop it, use --views 0' if name in of_views else 'drop it'
            raise ValueError(
                f'{flag(name)}{"" if value is True else f" {value}"} is not for stored logits: it {reason}; {way_out},'
                ' or let the teacher run.'
            )


def describe_crops(config: TrainConfig, views: int, data_config: Dict[str, Any]) -> Dict[str, Any]:
    """All that decides what a view shows beside the image, as JSON has it.

    Args:
        config: Settings of the augmentation and the images.
        views: Number of views, 0 for one without augmentation.
        data_config: As timm resolves it for the student.
    """
    names = OF_EVERY_IMAGE + (OF_THE_VIEWS if views else ())
    crops = {name: getattr(config, name) for name in names}
    if config.multi_label:
        crops['multi_label'] = True
    crops['interpolation'] = data_config['interpolation']
    if views and config.aa:
        crops['mean'] = data_config['mean']  # what auto augmentation fills gaps with
    transform = create_train_transform(config, data_config) if views else create_eval_transform(data_config)
    return json.loads(json.dumps({**crops, 'transform': repr(transform)}))


def describe_versions() -> Dict[str, str]:
    """Versions of the packages that make the views."""
    packages = {'timm': timm, 'torch': torch, 'torchvision': torchvision, 'pillow': PIL, 'numpy': np}
    return {name: package.__version__ for name, package in packages.items()}


def list_train_images(context: RunContext) -> List[Image]:
    """Path, label and SHA-256 ('' if unknown) of each training image, as images.csv lists them.

    Paths are relative to the folder of the images of all splits, which may move.

    Raises:
        ValueError: if the images have no names, as those of a streamed dataset.
    """
    if not isinstance(context.datasets['train'], SampleDataset):
        raise ValueError(
            f"Stored logits need a dataset with random access, which '{context.config.dataset}' does not have."
        )
    rows = list_images(context.datasets, context.classes)
    paths = [row['path'] for row in rows]
    base = os.path.commonpath(paths) if all(map(os.path.isabs, paths)) else ''
    return [
        (row['path'].removeprefix(base).lstrip('/\\'), row['label'], row.get('sha256') or '')
        for row in rows
        if row['split'] == 'train'
    ]


def load_teacher_logits(context: RunContext, config: DistillConfig, student: nn.Module) -> StoredLogits:
    """The stored logits of a training as a teacher, checked against its images, classes and augmentation.

    Args:
        context: The run.
        config: Settings of the student.
        student: The student.

    Raises:
        FileNotFoundError, ValueError: as `read_teacher_logits` and `check_views`; if images, classes or a setting that
            decides the views differ; names it and both values.
    """
    path = str(config.teacher_logits)
    stored = read_teacher_logits(path)
    check_views(config, stored.views)
    if stored.classes != context.classes:
        raise _differs(path, 'the classes', ', '.join(stored.classes), ', '.join(context.classes))
    _check_crops(path, stored, describe_crops(config, stored.views, context.data_config(student, config.img_size)))
    rows = _match_images(path, stored, list_train_images(context))
    logits = stored.logits if stored.views else stored.logits[:, :, rows]
    return StoredLogits(logits, stored.teachers, is_same_view=stored.views > 0)


def _differs(path: str, what: str, before: Any, now: Any) -> ValueError:
    return ValueError(
        f"'{path}' was stored with {what} {before}, not {now}: use the same as hdkd cache-logits did, or store the"
        ' logits again.'
    )


def _check_crops(path: str, stored: TeacherLogits, crops: Dict[str, Any]) -> None:
    """Raise ValueError for the first setting that gives the student other views; warn of other versions."""
    for name in {**crops, **stored.crops}:
        before, now = stored.crops.get(name), crops.get(name)
        if before != now:
            what = flag(name) if name in (*OF_EVERY_IMAGE, *OF_THE_VIEWS, 'multi_label') else f"the student's {name}"
            raise _differs(path, what, before, now)
    versions = describe_versions()
    others = [
        f'{name} {old}, not {versions.get(name)}' for name, old in stored.versions.items() if old != versions[name]
    ]
    if others and stored.views:
        _logger.warning(
            f"'{path}' was stored with {', '.join(others)}: if that changed the augmentation, the student sees other"
            ' views than the teacher did.'
        )


def _match_images(path: str, stored: TeacherLogits, images: List[Image]) -> List[int]:
    """Row of each training image in a file. Views belong to the numbers of the images, so that all must be the same and
    in the same order; without views some of them may be missing in the training.

    Raises:
        ValueError: if an image is missing or has another label or content; names it.
    """
    row_of = {image[0]: i for i, image in enumerate(stored.images)}
    number = f'{len(stored.images):,} images in the file, {len(images):,} in the training'
    for image in images:
        if image[0] not in row_of:
            raise ValueError(f"'{path}' has no logits for training image '{image[0]}' ({number}): store them again.")
    rows = [row_of[image[0]] for image in images]
    if stored.views and rows != list(range(len(stored.images))):
        raise ValueError(
            f"'{path}' has the logits of other training images, or of another order ({number}), by whose numbers the"
            ' views are drawn: use the same data, split and seed, or store the logits again.'
        )
    before, now = ([image[1] for image in group] for group in ([stored.images[row] for row in rows], images))
    changed = [i for i, (old, new) in enumerate(zip(before, now)) if old != new]
    if changed:
        raise _differs(path, f"image '{images[changed[0]][0]}' of class", before[changed[0]], now[changed[0]])
    contents = (
        np.array([[image[2]] for image in group], object) for group in ([stored.images[i] for i in rows], images)
    )
    changed = np.flatnonzero(find_changes(*contents)).tolist()
    if changed:
        raise ValueError(
            f"Image '{images[changed[0]][0]}' has changed since its logits were stored in '{path}' ({len(changed):,} of"
            f' {len(images):,} images): restore the images, or store the logits again.'
        )
    return rows


def keep_origin(context: RunContext, config: DistillConfig) -> None:
    """Record in the folder of a run what its stored logits are, or compare them with what was recorded.

    Raises:
        ValueError: if a run that is resumed was started with other logits.
    """
    stored = read_teacher_logits(str(config.teacher_logits))
    path = context.folder / TEACHER_LOGITS_FILE
    recorded = read_json(path) if path.exists() else None
    context.world.barrier()  # all processes have read it
    if recorded is not None and recorded.get('logits_sha256') != stored.digest:
        raise ValueError(
            f"Run '{context.folder}' was started with other logits than '{config.teacher_logits}' has now: restore the"
            ' file, or start another run.'
        )
    if recorded is None and context.world.is_primary:
        write_json(stored.describe(), path, summed=True)
