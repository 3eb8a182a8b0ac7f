"""The images that the released weights know, from a download: `python weights/prepare.py ham10000 DOWNLOAD DIR`

DOWNLOAD holds the original images, in any folders; each is found by its file name, without the ending. DIR, which is
new, gets copies of 224 x 224 pixels, as the weights were trained and tested on, and images.csv with the split, for
reproduce.py and check.py. splits/NAME.csv.gz lists the images: name, label, split and group.

- brain_tumor_mri: https://www.kaggle.com/datasets/masoudnickparvar/brain-tumor-mri-dataset (2021)
- ham10000: https://doi.org/10.7910/DVN/DBW86T (HAM10000_images_part_1 and _2)
- chest_xray: https://doi.org/10.17632/rscbjbr9sj.2 (ChestXRay2017)
- busi: https://doi.org/10.1016/j.dib.2019.104863
"""

import argparse
import csv
import gzip
import re
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from PIL import Image, ImageOps

from hdkd_timm.data.image_files import is_image_file
from hdkd_timm.data.image_io import read_image
from hdkd_timm.utils.csv_files import write_rows
from hdkd_timm.utils.files import new_folder
from hdkd_timm.utils.run_files import IMAGES_FILE

SPLITS = Path(__file__).parent / 'splits'
SIZE = (224, 224)
FORMATS: Dict[str, Tuple[str, Dict[str, Any]]] = {
    'brain_tumor_mri': ('.webp', {'quality': 80}),
    'ham10000': ('.webp', {'quality': 80}),
    'chest_xray': ('.jpeg', {'quality': 95}),
    'busi': ('.png', {}),
}


def read_split(name: str) -> List[Dict[str, str]]:
    """The rows of splits/NAME.csv.gz."""
    with gzip.open(SPLITS / f'{name}.csv.gz', 'rt', encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


def find_images(download: Path, names: Sequence[str]) -> Tuple[Dict[str, Path], List[Path]]:
    """The file of each name, and the other image files below the folder.

    Raises:
        FileNotFoundError: if some have none; says how many, and which is the first.
        ValueError: if several files with different content have the same name.
    """
    wanted, found, others = set(names), {}, []
    for path in sorted(path for path in download.rglob('*') if path.is_file() and is_image_file(path)):
        name = re.sub(r' \((\d+)\)$', r'_\1', path.stem)  # 'benign (1).png' is benign_1
        if name not in wanted:
            others.append(path)
        elif name in found and found[name].read_bytes() != path.read_bytes():
            raise ValueError(f"'{found[name]}' and '{path}' are different images of one name: keep the original.")
        else:
            found.setdefault(name, path)
    missing = [name for name in names if name not in found]
    if missing:
        raise FileNotFoundError(
            f"{len(missing):,} of {len(names):,} images are not in '{download}', the first is '{missing[0]}': give the"
            ' folder of all original images, unpacked and under their own names.'
        )
    return found, others


def resize(image: Image.Image, is_cropped: bool) -> Image.Image:
    """The image at 224 x 224 pixels: its central square, or all of it with another aspect ratio."""
    if is_cropped:
        return ImageOps.fit(image, SIZE, Image.Resampling.BILINEAR)
    return image.resize(SIZE, Image.Resampling.BILINEAR)


def prepare(name: str, download: Path, folder: Path) -> List[Path]:
    """Write the copies and images.csv. Returns the images that do not belong to the data set as it was used."""
    rows = read_split(name)
    found, others = find_images(download, [row['name'] for row in rows])
    suffix, options = FORMATS[name]
    with new_folder(folder) as out:
        table = []
        for row in rows:
            path = Path(row['label'], row['name'] + suffix)
            (out / path.parent).mkdir(exist_ok=True)
            image = read_image(found[row['name']], 'L' if suffix == '.png' else 'RGB')
            resize(image, name == 'busi').save(out / path, **options)
            table.append({'path': path.as_posix(), **{key: value for key, value in row.items() if key != 'name'}})
        write_rows(table, out / IMAGES_FILE)
    return others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', choices=FORMATS, help='the data set')
    parser.add_argument('download', metavar='DOWNLOAD', type=Path, help='folder of the original images')
    parser.add_argument('folder', metavar='DIR', type=Path, help='folder for the copies, which is new')
    args = parser.parse_args()
    if not args.download.is_dir():
        parser.error(f"'{args.download}' is no folder")
    try:
        others = prepare(args.name, args.download, args.folder)
    except (OSError, ValueError) as e:
        parser.exit(1, f'prepare.py: {e}\n')
    if others:
        print(f"{len(others):,} other images are left out, such as '{others[0]}'.")
    print(f"'{args.folder / IMAGES_FILE}' lists {len(read_split(args.name)):,} images.")


if __name__ == '__main__':
    main()
