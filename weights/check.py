"""Test released weights again, and compare with their metrics.json: `python weights/check.py TAG --data-dir DIR`.

DIR is the data set's folder, with its images.csv. Exit code 1 if a metric is off by more than 0.001 (0.1 points of
accuracy).
"""

import argparse
import hashlib
import json
import math
import sys
from pathlib import Path

import yaml

from hdkd_timm import EvalConfig, evaluate_model
from hdkd_timm.evaluation.metrics import METRIC_NAMES
from hdkd_timm.models.pretrained import RELEASES, find_folder

TOLERANCE = 1e-3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('tag', choices=RELEASES, metavar='TAG', help=', '.join(RELEASES))
    parser.add_argument('--data-dir', required=True, type=Path, help="the data set's folder")
    parser.add_argument('--workers', '-j', type=int, default=0, help='loader processes')
    args = parser.parse_args()
    folder = find_folder(args.tag)
    if folder is None:
        parser.error(f"'{args.tag}' did not come with this installation of hdkd_timm")
    if not (args.data_dir / 'images.csv').is_file():
        parser.error(f"there is no '{args.data_dir / 'images.csv'}'")

    settings = yaml.safe_load((folder / 'train.yaml').read_text(encoding='utf-8'))['settings']
    column = {key: settings[key] for key in ('split_column',) if key in settings}
    size = json.loads((folder / 'config.json').read_text(encoding='utf-8'))['pretrained_cfg']['input_size'][-1]
    report, _ = evaluate_model(
        args.tag,
        EvalConfig(
            data_csv=str(args.data_dir / 'images.csv'), split='test', img_size=size, workers=args.workers, **column
        ),
    )
    released = json.loads((folder / 'metrics.json').read_text(encoding='utf-8'))['test']
    print(f'{args.tag}, sha256 {hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()}')
    print(f'{report["images"]} test images, {released["images"]} in metrics.json')
    print(f'{"":<24}{"measured":>10}{"released":>10}')
    same = report['images'] == released['images']
    for key in (name for name in METRIC_NAMES if name in released):
        words = METRIC_NAMES[key]
        values = [math.nan if r[key] is None else r[key] for r in (report, released)]
        is_same = math.isclose(*values, rel_tol=0, abs_tol=TOLERANCE) or all(map(math.isnan, values))
        print(f'{words:<24}{values[0]:>10.4f}{values[1]:>10.4f}{"" if is_same else "  differs"}')
        same = same and is_same
    return 0 if same else 1


if __name__ == '__main__':
    sys.exit(main())
