"""Cross-validation: train on K - 1 of K folds, test on the remaining one, and report mean and standard deviation.

    python examples/cross_validation.py --data-dir DIR --folds 5 [flags of `hdkd train`]

DIR holds only train/<class>/* (or --data-csv names a table without test rows; a column `group`, such as the patient,
keeps groups together): fold I is then the test split of run NAME/fold-I. If there is a test split too, fold I is the
val split. Finished runs are not repeated: after an interruption, start the script again with the same flags.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np

from hdkd_timm import TrainConfig, train
from hdkd_timm.evaluation.metrics import METRIC_NAMES, format_metric
from hdkd_timm.utils.config import add_arguments, from_arguments
from hdkd_timm.utils.image_size import join_image_sizes

DEFAULTS = dict(folds=5, experiment='cross-validation')

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
add_arguments(parser, TrainConfig, **DEFAULTS)
args = parser.parse_args(join_image_sizes(sys.argv[1:], ['--img-size']))
config = from_arguments(TrainConfig, args, **DEFAULTS)
main_metric = config.problem.select_metric

results = []
for fold in range(config.folds):
    experiment = f'{config.experiment}/fold-{fold}'
    is_started = (Path(config.output) / experiment / 'config.yaml').exists()
    metrics = train(dataclasses.replace(config, fold=fold, experiment=experiment), resume=is_started)
    (result,) = metrics['models'].values()
    results.append(result['test'])
    print(
        f'fold {fold}: {len(result["test"]["per_class"])} classes, {result["test"]["images"]} images, '
        f'{METRIC_NAMES[main_metric]} {format_metric(main_metric, result["test"][main_metric])}'
    )

print(f'{"metric":<20}{"mean":>10}{"std":>10}')
for name in config.problem.metrics:
    values = np.array([result[name] for result in results], dtype=float)
    print(f'{name:<20}{values.mean():>10.4f}{values.std(ddof=1):>10.4f}')
