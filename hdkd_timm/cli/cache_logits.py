"""`hdkd cache-logits`: the logits of trained teachers for the training images, in a file."""

import argparse
import dataclasses

from ..data.augment import AugmentConfig
from ..data.config import DataConfig
from ..training.cache_logits import CacheLogitsConfig
from .distill import read_distill_settings
from .parser import CommandParser

USED = (  # settings beside those of the data and the augmentation
    'views',
    'teacher_checkpoint',
    'teacher_label_names',
    'teacher_img_size',
    'teacher',
    'model',
    'model_kwargs',
    'img_size',
    'batch_size',
    'amp',
    'amp_dtype',
    'workers',
    'device',
)
UNUSED = (  # settings of the augmentation of whole batches, and of labels
    'mixup',
    'cutmix',
    'mixup_prob',
    'mixup_switch_prob',
    'mixup_off_epoch',
    'smoothing',
    'aug_device',
    'reprob',
    'remode',
    'recount',
)


def add_arguments(parser: CommandParser) -> None:
    parser.usage = f'{parser.prog} --data-dir DIR --teacher-checkpoint PATH [PATH ...] --out FILE [OPTION ...]'
    parser.add_argument('--out', required=True, metavar='FILE', help='file to write, .safetensors')
    parser.add_argument('--recipe', metavar='NAME', help='settings of a recipe; --config and flags take precedence')
    kept = {field.name for cls in (DataConfig, AugmentConfig) for field in dataclasses.fields(cls)}.union(USED)
    others = {field.name for field in dataclasses.fields(CacheLogitsConfig)} - kept
    parser.add_settings(CacheLogitsConfig, others.union(UNUSED))


def run(args: argparse.Namespace) -> None:
    from ..training.cache_logits import cache_logits

    result = cache_logits(read_distill_settings(args, CacheLogitsConfig), args.out)
    views = f'{result["views"]} views' if result['views'] else 'one view without augmentation'
    print(
        f'Logits of {", ".join(result["teachers"])} for {result["images"]:,} training images, {views}, are in'
        f" '{args.out}' ({result['bytes'] / 1e6:.1f} MB). Train students with hdkd distill --teacher-logits."
    )
