"""Unpack a data set of MedMNIST (https://medmnist.com) into image files and a table.

    python examples/medmnist.py breastmnist.npz DIR [--labels malignant benign]
    hdkd distill --data-csv DIR/images.csv --img-size 28

FILE is as MedMNIST distributes it, with images of 28, 64, 128 or 224 px in the splits train, val and test. DIR, which
is new, gets a PNG file of each image, and images.csv with path, label and split. Where an image has any number of
labels, as in ChestMNIST, the table has a column for each: train with `--multi-label --label-column NAME ...`.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from hdkd_timm.utils.csv_files import write_rows
from hdkd_timm.utils.files import new_folder

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('file', type=Path, metavar='FILE')
parser.add_argument('folder', type=Path, metavar='DIR')
parser.add_argument('--labels', nargs='+', metavar='NAME', help='names of the labels by index (default: the indices)')
args = parser.parse_args()

if not args.file.is_file():
    parser.error(f"'{args.file}' does not exist")
if args.folder.exists():
    parser.error(f"'{args.folder}' exists: give a new folder")
arrays = np.load(args.file)  # numbers alone: nothing in it is executed
labels = {split: arrays[f'{split}_labels'] for split in ('train', 'val', 'test')}
labels = {split: array.reshape(len(array), -1) for split, array in labels.items()}
targets = np.concatenate(list(labels.values()))
is_multi_label = targets.shape[1] > 1
number = targets.shape[1] if is_multi_label else targets.max() + 1
names = args.labels or [f'{i:02}' for i in range(number)]
if len(names) != number:
    parser.error(f"--labels has {len(names)} names, '{args.file}' has {number} labels")

rows = []
with new_folder(args.folder) as folder:
    for split in labels:
        images = arrays[f'{split}_images']  # of one split at a time
        if not (images.ndim == 3 or images.ndim == 4 and images.shape[3] == 3):
            parser.error(f"'{args.file}' has images of shape {images.shape[1:]}, not (H, W) or (H, W, 3)")
        (folder / split).mkdir()
        for i, (image, label) in enumerate(zip(images, labels[split])):
            path = Path(split, f'{i:06}.png')
            Image.fromarray(image).save(folder / path)
            marks = dict(zip(names, label)) if is_multi_label else {'label': names[label[0]]}
            rows.append({'path': path.as_posix(), **marks, 'split': split})
    write_rows(rows, folder / 'images.csv')
print(f"'{args.folder / 'images.csv'}' lists {len(rows):,} images, {number} labels: {', '.join(names)}.")
