"""Settings of the data: where labelled images come from, and how they are split and checked."""

import dataclasses
from typing import Optional, Tuple

from ..utils.config import flag, setting

TABLE_COLUMNS = ('path_column', 'label_column', 'split_column', 'group_column')


@dataclasses.dataclass
class SourceConfig:
    """Where labelled images come from; flags are named as in timm's train.py."""

    data_dir: Optional[str] = setting(
        None,
        'folder with train/<class>/*, test/<class>/* and optionally val/<class>/*, or with train.tar, test.tar',
        metavar='DIR',
        group='data',
        common=True,
    )
    data_csv: Optional[str] = setting(
        None,
        "CSV file instead: columns path (relative to --data-dir, else to the file's folder), label, split, group",
        metavar='FILE',
        common=True,
    )
    path_column: str = setting('path', 'CSV column with the file of an image, or its name without suffix')
    label_column: Tuple[str, ...] = setting(
        ('label',),
        'CSV column with the class, or several, one for each class, of which one is 1; with --multi-label any number of'
        " them is 1, or one column has the labels, separated by '|'",
        metavar='NAME',
    )
    multi_label: bool = setting(
        False,
        'an image of --data-csv has any number of labels',
        common=True,
    )
    split_column: str = setting('split', 'CSV column with the split of an image: train, val or test')
    group_column: Optional[str] = setting(
        None, "CSV column of groups (patients, lesions) that splits keep together (default: 'group', if present)"
    )
    dataset: Optional[str] = setting(
        None, "dataset of timm's create_dataset instead (hfds/NAME, wds/NAME, torch/NAME), with root --data-dir"
    )
    train_split: str = setting('train', 'training split of --dataset')
    val_split: str = setting('', 'validation split of --dataset, empty for none')
    test_split: str = setting('test', 'test split of --dataset, empty for none')
    dataset_download: bool = setting(False, 'allow --dataset to be downloaded')
    class_map: Optional[str] = setting(
        None, 'class map of --dataset, a text file with one class per line', metavar='FILE'
    )
    input_key: Optional[str] = setting(None, 'image field of --dataset')
    target_key: Optional[str] = setting(None, 'label field of --dataset')
    seed: int = setting(42, 'random seed', at_least=0)

    def __post_init__(self) -> None:
        """Raises ValueError for a column of a table where the images come from elsewhere."""
        if self.data_csv or not (self.data_dir or self.dataset):
            return
        for field in dataclasses.fields(SourceConfig):
            value = getattr(self, field.name)
            if field.name in TABLE_COLUMNS and value != field.default:
                names = value if isinstance(value, str) else ' '.join(value)
                raise ValueError(
                    f"{flag(field.name)} '{names}' has no effect without a table: give the table with --data-csv FILE,"
                    f' or drop {flag(field.name)}.'
                )


@dataclasses.dataclass
class DataConfig(SourceConfig):
    """Settings of `create_datasets`."""

    num_classes: Optional[int] = setting(
        None, 'number of classes, for datasets that do not provide it', at_least=2, group='data'
    )
    in_chans: int = setting(3, 'image channels, 3 (RGB) or 1 (greyscale)')
    train_fraction: float = setting(
        1.0, 'fraction of the training images to use, sampled per class', above=0, at_most=1
    )
    val_fraction: float = setting(
        0.0,
        'fraction of the training images to hold out for validation if there is no val split, stratified by class'
        ' and grouped',
        at_least=0,
        below=1,
        common=True,
    )
    folds: Optional[int] = setting(
        None,
        'cross-validation: number of folds of the training images, stratified by class and grouped, of which one'
        ' is held out, as val if there is a test split, else as test',
        at_least=2,
    )
    fold: int = setting(0, 'fold that is held out, from 0', at_least=0)
    split_seed: Optional[int] = setting(
        None,
        'random seed of --train-fraction, --val-fraction and --folds, so that runs with other seeds share their images'
        ' (default: --seed)',
        at_least=0,
    )
    on_bad_image: str = setting('error', 'stop at images that cannot be read, or skip them', choices=('error', 'skip'))
    check_images: bool = setting(
        True,
        'read every image once before training; without this check, a resumed run compares the sizes of its image'
        ' files, not their contents',
    )
