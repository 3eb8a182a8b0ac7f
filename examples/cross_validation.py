"""Cross-validation: train on each K - 1 of K folds, test on the one left out, and tell mean and spread.

    python examples/cross_validation.py --data-dir DIR --folds 5 [flags of `hdkd train`]

DIR holds train/<class>/* alone (or --data-csv a table without test rows; with a column `group`, such as the patient, no
group is torn apart): fold I is then the test split of run NAME/fold-I. Where there is a test split, too, fold I is its
val split. Runs that are finished are not repeated: start it again where it was broken.
"""
import argparse
import dataclasses
from pathlib import Path

import numpy as np

from hdkd_timm import TrainConfig, train
from hdkd_timm.evaluation.metrics import METRICS
from hdkd_timm.utils.config import add_arguments, from_arguments

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
add_arguments(parser, TrainConfig, folds=5, experiment='cross-validation')
config = from_arguments(TrainConfig, parser.parse_args())

results = []
for fold in range(config.folds):
    experiment = f'{config.experiment}/fold-{fold}'
    begun = (Path(config.output) / experiment / 'config.yaml').exists()
    metrics = train(dataclasses.replace(config, fold=fold, experiment=experiment), resume=begun)
    result, = metrics['models'].values()
    results.append(result['test'])
    print(f"fold {fold}: {len(result['test']['per_class'])} classes, {result['test']['images']} images, "
          f"balanced accuracy {result['test']['balanced_accuracy']:.1%}")

print(f"{'metric':<20}{'mean':>10}{'std':>10}")
for name in METRICS:
    values = np.array([result[name] for result in results], dtype=float)
    print(f'{name:<20}{values.mean():>10.4f}{values.std(ddof=1):>10.4f}')
