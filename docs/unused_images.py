"""The students of a study on the training images that it left out: `python docs/unused_images.py STUDY`.

A tenth of a small data set, --train-fraction 0.1, leaves too few validation images to tell arms apart. The images that
the fraction left out are many, and no run has seen them: arms are chosen by them, and the test images stay for the
report. Images that share a group with one of the study are left out here too. Prints run and metrics, and writes them
to STUDY/unused.csv; runs that are in it already are not repeated.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any, Dict, List

from hdkd_timm import EvalConfig, evaluate_model
from hdkd_timm.data.config import DataConfig
from hdkd_timm.data.datasets import create_datasets
from hdkd_timm.data.samples import list_images
from hdkd_timm.utils.config import read_yaml
from hdkd_timm.utils.csv_files import read_rows, write_rows
from hdkd_timm.utils.run_files import CONFIG_FILE, IMAGES_FILE, METRICS_FILE

METRICS = ('accuracy', 'balanced_accuracy', 'macro_auroc', 'log_loss')


def list_unused(study: Path) -> List[Dict[str, Any]]:
    """The training images of the data set that no run of the study has, nor one of their group."""
    settings = read_yaml(study / CONFIG_FILE)
    config = DataConfig(data_csv=settings['data_csv'], split_column=settings['split_column'])
    seen = read_rows(next((study / 'runs').glob(f'*/{IMAGES_FILE}')))
    paths, groups = {row['path'] for row in seen}, {row.get('group') for row in seen} - {None, ''}
    return [
        {'path': row['path'], 'label': row['label'], 'split': 'val'}
        for row in list_images(*create_datasets(config))
        if row['split'] == 'train' and row['path'] not in paths and str(row.get('group')) not in groups
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('study', type=Path, help='folder of a study with --train-fraction')
    args = parser.parse_args()
    out = args.study / 'unused.csv'
    rows: List[Dict[str, Any]] = list(read_rows(out)) if out.exists() else []
    unused = list_unused(args.study)
    print(f'{len(unused):,} training images were left out.')
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / IMAGES_FILE
        write_rows(unused, table)
        for run in sorted((args.study / 'runs').iterdir()):
            if run.name in {row['run'] for row in rows} or not (run / METRICS_FILE).is_file():
                continue
            config = EvalConfig(data_csv=str(table), split='val', batch_size=128, workers=0, bootstrap=0)
            report, _ = evaluate_model(str(run / 'student'), config)
            rows.append({'run': run.name, **{name: round(report[name], 4) for name in METRICS}})
            write_rows(rows, out)
            print(', '.join(map(str, rows[-1].values())), flush=True)


if __name__ == '__main__':
    main()
