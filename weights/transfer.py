"""Released weights as a starting point for other data: `python weights/transfer.py --brain-mri DIR --ham10k DIR`

Each student is fine-tuned on a tenth of the other data set, next to one that starts from random weights.

DIR is a data set's folder, with its images.csv. Same settings for all; the last epoch is tested, once. Runs that were
stopped continue, finished ones are not repeated.
"""

import argparse
import logging
import statistics
from pathlib import Path
from typing import Any, Dict

from hdkd_timm import TrainConfig, train
from hdkd_timm.models.pretrained import RELEASES

SETTINGS: Dict[str, Dict[str, Any]] = {
    'brain_mri': dict(split_column='grouped_split'),
    'ham10k': dict(class_weights='balanced'),
}
STARTS = {'brain_mri': (None, 'ham10k'), 'ham10k': (None, 'brain_mri')}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--brain-mri', type=Path, help="the data set's folder")
    parser.add_argument('--ham10k', type=Path, help="the data set's folder")
    parser.add_argument('--network', default='hdkd_student', help='default: %(default)s')
    parser.add_argument('--img-size', type=int, default=112, help='default: %(default)s')
    parser.add_argument('--epochs', type=int, default=25, help='default: %(default)s')
    parser.add_argument('--train-fraction', type=float, default=0.1, help='default: %(default)s')
    parser.add_argument('--seeds', type=int, nargs='+', default=[42, 43, 44], help='default: 42 43 44')
    parser.add_argument('--output', type=Path, default=Path('runs'), help='folder for runs')
    args = parser.parse_args()
    if not (args.brain_mri or args.ham10k):
        parser.error('no data: name the folder of at least one data set, --brain-mri DIR, --ham10k DIR')
    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    logging.getLogger('hdkd_timm').setLevel(logging.INFO)

    print('| data | starts from | balanced accuracy, mean of seeds | each seed | accuracy |')
    print('|---|---|---:|---:|---:|')
    for data in ('brain_mri', 'ham10k'):
        folder = getattr(args, data)
        for start in STARTS[data] if folder else ():
            reports = []
            for seed in args.seeds:
                name = f'{args.network}.{start}' if start else args.network
                of_file = f'{start}-{RELEASES[name].sha256[:8]}' if start else 'random'
                experiment = f'transfer-{args.network}-{data}-{of_file}-{seed}'
                results = train(
                    TrainConfig(
                        data_csv=str(folder / 'images.csv'),
                        **SETTINGS[data],
                        train_fraction=args.train_fraction,
                        model=name,
                        pretrained=start is not None,
                        img_size=args.img_size,
                        epochs=args.epochs,
                        seed=seed,
                        amp=True,
                        amp_dtype='bfloat16',
                        channels_last=True,
                        cache='ram',
                        workers=0,
                        output=str(args.output),
                        experiment=experiment,
                    ),
                    resume=(args.output / experiment / 'config.yaml').exists(),
                )
                (report,) = results['models'].values()
                reports.append(report['test'])
            balanced = [100 * report['balanced_accuracy'] for report in reports]
            print(
                f'| {data} | {start or "random weights"} | {statistics.mean(balanced):.1f} % |'
                f' {", ".join(f"{value:.1f}" for value in balanced)} |'
                f' {100 * statistics.mean(report["accuracy"] for report in reports):.1f} % |',
                flush=True,
            )


if __name__ == '__main__':
    main()
