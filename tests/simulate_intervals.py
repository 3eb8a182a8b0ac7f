"""How often 95 % intervals hold the true value: `python tests/simulate_intervals.py`

Draws test sets of a classifier whose figures are known from a million images, with and without groups of images that
are right or wrong together, and counts. A bootstrap of some hundred images is a little too narrow; one of grouped
images that does not know their groups is far too narrow.
"""
import argparse

import numpy as np

from hdkd_timm.metrics import METRICS, bootstrap_intervals, classification_metrics


def draw(number: int, group_size: int, rng: np.random.Generator) -> tuple:
    """Probabilities (N, 3), targets (N,) and groups (N,); images of a group share class and difficulty."""
    groups = np.arange(number) // group_size
    targets = rng.choice(3, groups[-1] + 1, p=[0.5, 0.3, 0.2])[groups]
    shared = rng.normal(size=(groups[-1] + 1, 3))[groups]
    logits = 1.2 * np.eye(3)[targets] + np.sqrt(0.5) * shared + np.sqrt(0.5) * rng.normal(size=(number, 3))
    probs = np.exp(logits)
    return probs / probs.sum(axis=1, keepdims=True), targets, groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--draws', type=int, default=500, help='test sets (default: %(default)s)')
    parser.add_argument('--images', type=int, default=400, help='images of each (default: %(default)s)')
    parser.add_argument('--resamples', type=int, default=300, help='of the bootstrap (default: %(default)s)')
    args = parser.parse_args()
    print('| intervals | ' + ' | '.join(METRICS) + ' |')
    print('|---|' + '---:|' * len(METRICS))
    for words, group_size, by_group in (
            ('over images', 1, False), ('over groups of 4', 4, True), ('over images, in groups of 4', 4, False)):
        rng = np.random.default_rng(0)
        true = classification_metrics(*draw(1_000_000, group_size, rng)[:2])
        held = dict.fromkeys(METRICS, 0)
        for seed in range(args.draws):
            probs, targets, groups = draw(args.images, group_size, rng)
            intervals = bootstrap_intervals(
                probs, targets, groups if by_group else None, args.resamples, seed=seed)
            for name, (low, high) in intervals.items():
                held[name] += low <= true[name] <= high
        print(f'| {words} | ' + ' | '.join(f'{held[name] / args.draws:.1%}' for name in METRICS) + ' |', flush=True)


if __name__ == '__main__':
    main()
