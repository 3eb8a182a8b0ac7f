"""What a study found: each arm's metrics over its seeds, and its difference to the baseline on the same images."""

import math
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ..analysis.comparison import match_images
from ..evaluation.paired_tests import mean_differences
from ..evaluation.run_results import NetworkResults, count_per_split, read_networks
from ..utils.run_files import IMAGES_FILE, METRICS_FILE
from .config import Run


class ArmResult(NamedTuple):
    """Results of an arm.

    Args:
        arm: Its name.
        students: Seed -> its student.
        seeds: Number of seeds that it is to have.
        fraction: Its fraction of the training images, in a study of several.
        train_images: Number of its training images, with `fraction`.
    """

    arm: str
    students: Dict[int, NetworkResults]
    seeds: int
    fraction: Optional[float] = None
    train_images: int = 0

    def values(self, split: str, metric: str) -> List[float]:
        """A metric of each seed: on 'val' that of the epoch that is kept, else on the split of the results."""
        if split != 'val' or next(iter(self.students.values())).split == 'val':
            return [student.result[metric] for student in self.students.values()]
        found = [student.epochs[student.metrics['epoch']].get(f'val_{metric}') for student in self.students.values()]
        return [value for value in found if value is not None]


def mean_and_spread(values: Sequence[float]) -> List[float]:
    """Mean and standard deviation over seeds (of n - 1 degrees of freedom); NaN where there are too few."""
    mean = float(np.mean(values)) if len(values) else math.nan
    return [mean, float(np.std(values, ddof=1)) if len(values) > 1 else math.nan]


def read_arms(runs: Sequence[Run]) -> List[ArmResult]:
    """The arms, at each fraction of the training images, with at least one finished run, in the order of the study.

    Raises:
        ValueError: if a file is damaged.
    """
    arms: Dict[Tuple[str, Optional[float]], ArmResult] = {}
    for run in runs:
        key, folder = (run.arm, run.fraction), Path(run.config.output, run.name)
        if not (folder / 'student' / METRICS_FILE).is_file():
            continue
        if key not in arms:
            seeds = sum((other.arm, other.fraction) == key for other in runs)
            images = 0 if run.fraction is None else count_per_split(folder / IMAGES_FILE)['train']
            arms[key] = ArmResult(run.arm, {}, seeds, run.fraction, images)
        arms[key].students[run.seed] = read_networks([folder / 'student'])[0]
    return list(arms.values())


def compare_arms(
    baseline: ArmResult, arm: ArmResult, resamples: int = 1000, seed: int = 42, confidence: float = 0.95
) -> Optional[Dict[str, Dict[str, Any]]]:
    """Differences of all metrics, arm minus baseline, averaged over the seeds that both have, see `mean_differences`.

    In each resample, of images or of their groups, all networks see the same images: the interval tells how certain the
    difference of these trainings is on other images. The spread over seeds is another source of chance, which the table
    shows beside it. With a single seed this is what `hdkd report` gives for the two networks.

    Args:
        baseline: The arm to compare with.
        arm: The other one.
        resamples: Number of resamples.
        seed: Seed of the resampling.
        confidence: Confidence level.

    Returns:
        Metric -> 'difference', 'interval' [low, high] and 'seeds', the difference of each seed; None if they share no
        seed. The interval is NaN if the networks do not differ, or the metric is undefined.

    Raises:
        ValueError: if they were not tested on the same images.
    """
    shared = [number for number in baseline.students if number in arm.students]
    if not shared:
        return None
    first = baseline.students[shared[0]]
    networks: List[Any] = []
    for side in (baseline, arm):
        for number in shared:
            student = side.students[number]
            match = match_images(first, student)
            if match.problem:
                raise ValueError(f"Arms '{baseline.arm}' and '{arm.arm}' cannot be compared: {match.problem}")
            networks.append(student.problem.weigh(student.probs[match.indices], first.targets, student.thresholds))
    sides = networks[: len(shared)], networks[len(shared) :]
    before, after = ([network.metrics(np.ones((network.num_images, 1))) for network in side] for side in sides)
    found = {}
    for metric, values in mean_differences(*sides, first.groups, resamples, confidence, seed).items():
        low, high = values['interval']
        found[metric] = dict(
            difference=values['difference'],
            interval=[low, high] if low < high else [math.nan, math.nan],
            seeds=[float(b[metric][0] - a[metric][0]) for a, b in zip(before, after)],
        )
    return found


def study_table(
    arms: Sequence[ArmResult], baseline: str, metrics: Sequence[str], resamples: int
) -> List[Dict[str, Any]]:
    """A row per arm, and per fraction of the training images if there are several.

    Args:
        arms: The arms.
        baseline: Name of the arm that the others are compared with.
        metrics: Metrics to report.
        resamples: Resamples of the paired bootstrap; 0 for no differences.

    Returns:
        'arm', 'seeds' (finished) and 'planned', 'parameters', 'seconds' (mean training time of the student), with
        fractions also 'train_fraction' and 'train_images'; for each metric and split mean and spread ('test_accuracy',
        'test_accuracy_sd'); of each metric on the test split the difference to the baseline at this fraction
        ('accuracy_difference'), its spread over the seeds ('accuracy_difference_sd') and its interval ('accuracy_low',
        'accuracy_high').
    """
    baselines = {arm.fraction: arm for arm in arms if arm.arm == baseline}
    rows = []
    for arm in arms:
        students = list(arm.students.values())
        row: Dict[str, Any] = dict(
            arm=arm.arm,
            **({} if arm.fraction is None else dict(train_fraction=arm.fraction, train_images=arm.train_images)),
            seeds=len(students),
            planned=arm.seeds,
            parameters=students[0].metrics['parameters'],
            seconds=round(float(np.mean([student.metrics['train_seconds'] for student in students])), 1),
        )
        for split in dict.fromkeys(('val', students[0].split)):
            for metric in metrics:
                row[f'{split}_{metric}'], row[f'{split}_{metric}_sd'] = mean_and_spread(arm.values(split, metric))
        compared, of_baseline = None, baselines.get(arm.fraction)
        if of_baseline is not None and arm is not of_baseline and resamples:
            compared = compare_arms(of_baseline, arm, resamples)
        for metric in metrics if compared else ():
            row[f'{metric}_difference'], row[f'{metric}_difference_sd'] = mean_and_spread(compared[metric]['seeds'])
            row[f'{metric}_low'], row[f'{metric}_high'] = compared[metric]['interval']
        rows.append(row)
    return rows
