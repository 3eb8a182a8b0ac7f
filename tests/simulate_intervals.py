"""How often 95 % intervals hold the true value: `python tests/simulate_intervals.py` (`--edge`: near 100 % right)

Draws test sets of a classifier whose figures are known from a million images, with and without groups of images that
are right or wrong together, and counts. Intervals of grouped images that do not know their groups are far too narrow.

With --edge, few images of a classifier that is nearly always right; 'recall' is the mean over the classes. With
--labels, images with any number of four labels, of which 5 to 40 % of the images have one.
"""

import argparse
import itertools

import numpy as np

from hdkd_timm.evaluation.bootstrap import bootstrap_intervals, class_intervals
from hdkd_timm.evaluation.metrics import METRICS, MULTI_LABEL_METRICS, classification_metrics
from hdkd_timm.evaluation.multi_label import WeightedLabels, multi_label_metrics, multi_label_report
from hdkd_timm.evaluation.paired_tests import paired_bootstrap, paired_label_bootstrap

EDGE = ('accuracy', 'recall', 'balanced_accuracy')


def draw(number: int, group_size: int, rng: np.random.Generator) -> tuple:
    """Probabilities (N, 3), targets (N,) and groups (N,); images of a group share class and difficulty."""
    groups = np.arange(number) // group_size
    targets = rng.choice(3, groups[-1] + 1, p=[0.5, 0.3, 0.2])[groups]
    shared = rng.normal(size=(groups[-1] + 1, 3))[groups]
    logits = 1.2 * np.eye(3)[targets] + np.sqrt(0.5) * shared + np.sqrt(0.5) * rng.normal(size=(number, 3))
    probs = np.exp(logits)
    return probs / probs.sum(axis=1, keepdims=True), targets, groups


def label(right: float, targets: np.ndarray, groups: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Probabilities (N, K) that label each image right that often, whatever its class; those of a group are right or
    wrong together, with a correlation of a half."""
    of_group = rng.random(groups[-1] + 1)[groups] < right
    correct = np.where(rng.random(len(groups)) ** 2 < 0.5, of_group, rng.random(len(groups)) < right)
    labels = np.where(correct, targets, (targets + rng.integers(1, classes, size=len(groups))) % classes)
    logits = rng.random((len(groups), classes)) + np.eye(classes)[labels] * (1 + rng.exponential(2, (len(groups), 1)))
    probs = np.exp(logits)
    return probs / probs.sum(axis=1, keepdims=True)


def draw_right(right: float, classes: int, number: int, group_size: int, rng: np.random.Generator) -> tuple:
    """Probabilities (N, K) of `label`, targets and groups (N,); images of a group share the class."""
    groups = np.arange(number) // group_size
    targets = rng.integers(classes, size=groups[-1] + 1)[groups]
    return label(right, targets, groups, classes, rng), targets, groups


def holds(interval, true: float) -> float:
    """1 or 0; NaN if the interval is not known."""
    low, high = interval
    return float(low - 1e-9 <= true <= high + 1e-9) if np.isfinite(low) else float('nan')


def print_row(*cells) -> None:
    shown = [f'{cell:.1%}' if isinstance(cell, float) else str(cell) for cell in cells]
    print('| ' + ' | '.join(shown) + ' |', flush=True)


SETTINGS = (('over images', 1, False), ('over groups of 4', 4, True), ('over images, in groups of 4', 4, False))


def simulate(args: argparse.Namespace) -> None:
    print_row('intervals', *METRICS)
    print('|---|' + '---:|' * len(METRICS))
    for words, group_size, by_group in SETTINGS:
        rng = np.random.default_rng(0)
        true = classification_metrics(*draw(1_000_000, group_size, rng)[:2])
        held = []
        for seed in range(args.draws):
            probs, targets, groups = draw(args.images, group_size, rng)
            found = bootstrap_intervals(probs, targets, groups if by_group else None, args.resamples, seed=seed)
            held.append([holds(found[name], true[name]) for name in METRICS])
        print_row(words, *map(float, np.nanmean(held, axis=0)))


def simulate_edge(args: argparse.Namespace) -> None:
    names = METRICS if args.metrics else EDGE
    print_row('intervals', 'right', 'classes', 'images', *names)
    print('|---|---:|---:|---:|' + '---:|' * len(names))
    for (words, group_size, by_group), right, classes, number in itertools.product(
        SETTINGS, args.right, args.classes, args.edge_images
    ):
        rng = np.random.default_rng(0)
        true = dict.fromkeys(EDGE, right)
        if args.metrics:
            true = {**classification_metrics(*draw_right(right, classes, 1_000_000, group_size, rng)[:2]), **true}
        held = []
        for seed in range(args.draws):
            probs, targets, groups = draw_right(right, classes, number, group_size, rng)
            groups = groups if by_group else None
            intervals = bootstrap_intervals(probs, targets, groups, args.resamples if args.metrics else 0, seed=seed)
            _, limits = class_intervals(probs.argmax(axis=1) == targets, targets, classes, groups)
            recall = np.nanmean([holds(interval, right) for interval in limits])
            held.append([recall if name == 'recall' else holds(intervals[name], true[name]) for name in names])
        print_row(words, f'{right:.0%}', classes, number, *map(float, np.nanmean(held, axis=0)))


def simulate_pairs(args: argparse.Namespace) -> None:
    """Two classifiers that are right as often, and label half of the groups alike: no metric differs truly."""
    print_row('pairs', 'right', 'classes', 'images', *METRICS)
    print('|---|---:|---:|---:|' + '---:|' * len(METRICS))
    for (words, group_size, by_group), right, classes, number in itertools.product(
        SETTINGS, args.right, args.classes, args.edge_images
    ):
        rng = np.random.default_rng(0)
        held = []
        for seed in range(args.draws):
            probs, targets, groups = draw_right(right, classes, number, group_size, rng)
            alike = (rng.random(groups[-1] + 1) < 0.5)[groups][:, None]
            other = np.where(alike, probs, label(right, targets, groups, classes, rng))
            found = paired_bootstrap(probs, other, targets, groups if by_group else None, args.resamples, seed=seed)
            held.append([holds(found[name]['interval'], 0.0) for name in METRICS])
        print_row(words, f'{right:.0%}', classes, number, *map(float, np.nanmean(held, axis=0)))


SHARES = np.array([0.05, 0.1, 0.2, 0.4])  # of the images that have each label


def draw_labels(number: int, group_size: int, rng: np.random.Generator) -> tuple:
    """Targets (N, 4) and groups (N,); images of a group share the labels."""
    groups = np.arange(number) // group_size
    return (rng.random((groups[-1] + 1, 4)) < SHARES)[groups].astype(np.uint8), groups


def score_labels(distance: float, targets: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Calibrated probabilities (N, 4) of scores that differ by `distance` standard deviations with and without a label;
    images of a group share half of the variance."""
    noise = np.sqrt(0.5) * (rng.normal(size=(groups[-1] + 1, 4))[groups] + rng.normal(size=targets.shape))
    logits = distance * (noise + distance * (targets - 0.5)) + np.log(SHARES / (1 - SHARES))
    return 1 / (1 + np.exp(-logits))


def simulate_labels(args: argparse.Namespace) -> None:
    """With --pairs, two networks that know as much, and score half of the groups alike: no metric differs truly."""
    print_row('pairs' if args.pairs else 'intervals', 'AUROC', 'images', *MULTI_LABEL_METRICS)
    print('|---|---:|---:|' + '---:|' * len(MULTI_LABEL_METRICS))
    for (words, group_size, by_group), distance, number in itertools.product(SETTINGS, (1.5, 2.5, 5.0), (60, 200, 600)):
        rng = np.random.default_rng(0)
        targets, groups = draw_labels(400_000, group_size, rng)
        true = multi_label_metrics(score_labels(distance, targets, groups, rng), targets)
        held = []
        for seed in range(args.draws):
            targets, groups = draw_labels(number, group_size, rng)
            probs = score_labels(distance, targets, groups, rng)
            known = groups if by_group else None
            if args.pairs:
                alike = (rng.random(groups[-1] + 1) < 0.5)[groups][:, None]
                other = np.where(alike, probs, score_labels(distance, targets, groups, rng))
                networks = [WeightedLabels(part, targets) for part in (probs, other)]
                found = paired_label_bootstrap(networks, known, args.resamples, seed=seed)
                held.append([holds(found[name]['interval'], 0.0) for name in MULTI_LABEL_METRICS])
            else:
                report = multi_label_report(probs, targets, 'abcd', known, args.resamples, seed, progress=False)
                held.append([holds(report['intervals_95'][name], true[name]) for name in MULTI_LABEL_METRICS])
        print_row(words, f'{true["macro_auroc"]:.3f}', number, *map(float, np.nanmean(held, axis=0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--draws', type=int, default=500, help='test sets (default: %(default)s)')
    parser.add_argument('--images', type=int, default=400, help='of each, without --edge (default: %(default)s)')
    parser.add_argument('--resamples', type=int, default=300, help='of the bootstrap (default: %(default)s)')
    parser.add_argument('--edge', action='store_true', help='few images, nearly all of them right')
    parser.add_argument('--right', type=float, nargs='+', default=[0.9, 0.99], help='with --edge: share of them')
    parser.add_argument('--classes', type=int, nargs='+', default=[2, 4, 7], help='with --edge: how many')
    parser.add_argument('--edge-images', type=int, nargs='+', default=[10, 30, 100], help='with --edge: how many')
    parser.add_argument('--metrics', action='store_true', help='with --edge: of all metrics')
    parser.add_argument('--labels', action='store_true', help='images with any number of labels')
    parser.add_argument('--pairs', action='store_true', help='with --edge or --labels: differences of two classifiers')
    args = parser.parse_args()
    (simulate_labels if args.labels else simulate_pairs if args.pairs else simulate_edge if args.edge else simulate)(
        args
    )


if __name__ == '__main__':
    main()
