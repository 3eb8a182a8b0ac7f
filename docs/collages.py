"""A set of images with any number of labels, from one of images of one class: `python docs/collages.py TABLE OUT`.

Each image is a collage of two by two images of the table, and has the label of every class in it but one (`--none`),
which is none. TABLE has the columns path, label, split and group. A split's collages are made of its own images;
without a split 'val' a part of the groups of 'train' is held out for it. OUT gets the images and a table for
--data-csv, whose labels are separated by '|'.
"""

import argparse
import csv
from pathlib import Path
from typing import Dict, List

import numpy as np
from PIL import Image

VAL_SHARE = 0.15  # of the groups of 'train'


def read_images(table: Path, split_column: str, seed: int) -> Dict[str, Dict[str, List[Path]]]:
    """Split -> class -> files."""
    with table.open(encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    rng = np.random.default_rng(seed)
    groups = sorted({row['group'] for row in rows if row[split_column] == 'train'})
    held_out = set(rng.permutation(groups)[: round(VAL_SHARE * len(groups))])
    has_val = any(row[split_column] == 'val' for row in rows)
    found: Dict[str, Dict[str, List[Path]]] = {split: {} for split in ('train', 'val', 'test')}
    for row in rows:
        split = row[split_column]
        if split == 'train' and not has_val and row['group'] in held_out:
            split = 'val'
        found[split].setdefault(row['label'], []).append(table.parent / row['path'])
    return found


def draw_collage(images: Dict[str, List[Path]], none: str, share: float, size: int, rng: np.random.Generator):
    """A collage, and its labels: each quarter shows `none` with probability 1 - `share`, else another class."""
    others = sorted(set(images) - {none})
    picture, labels = Image.new('RGB', (size, size)), set()
    for place in ((0, 0), (size // 2, 0), (0, size // 2), (size // 2, size // 2)):
        label = str(rng.choice(others)) if rng.random() < share else none
        labels |= {label} - {none}
        with Image.open(images[label][rng.integers(len(images[label]))]) as image:
            picture.paste(image.convert('RGB').resize((size // 2, size // 2)), place)
    return picture, sorted(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(':')[0])
    parser.add_argument('table', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--none', default='notumor', help='class that is no label')
    parser.add_argument('--split-column', default='split')
    parser.add_argument('--share', type=float, default=0.45, help='share of the quarters that show another class')
    parser.add_argument('--numbers', type=int, nargs=3, default=(1600, 300, 600), help='of train, val and test')
    parser.add_argument('--size', type=int, default=128)
    parser.add_argument('--seed', type=int, default=42)
    args = parser.parse_args()
    images, rng = read_images(args.table, args.split_column, args.seed), np.random.default_rng(args.seed)
    args.out.mkdir(parents=True)
    rows = []
    for split, number in zip(('train', 'val', 'test'), args.numbers):
        for i in range(number):
            picture, labels = draw_collage(images[split], args.none, args.share, args.size, rng)
            name = f'{split}-{i:05d}.png'
            picture.save(args.out / name)
            rows.append([name, '|'.join(labels), split])
    with (args.out / 'table.csv').open('w', encoding='utf-8', newline='') as file:
        csv.writer(file).writerows([['path', 'label', 'split'], *rows])
    print(f"{len(rows)} collages, see '{args.out}/table.csv'.")


if __name__ == '__main__':
    main()
