"""predictions.csv, written and read."""

import csv
import json
import tracemalloc

import numpy as np
import pytest

from hdkd_timm.evaluation.predictions import read_predictions, write_predictions

NASTY = ['a,b', 'say "a"', 'two\nlines', ' spaces ', 'é', 'path\udc80']


@pytest.mark.parametrize('has_targets', [True, False])
def test_predictions(tmp_path, has_targets):
    """The same bytes as from csv.DictWriter, and exact numbers when read back."""
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(len(NASTY), 0.1), size=20)
    probs[0] = np.eye(len(NASTY))[2]
    names = [f'{NASTY[i % 6]}/{i}.png' for i in range(20)]
    targets = rng.integers(6, size=20) if has_targets else None
    write_predictions(tmp_path / 'found.csv', names, probs, NASTY, targets)
    encoding = dict(newline='', encoding='utf-8', errors='surrogateescape')
    with (tmp_path / 'expected.csv').open('w', **encoding) as file:
        writer = csv.DictWriter(
            file, ['path', *(['target'] if has_targets else []), 'label', *(f'prob_{label}' for label in NASTY)]
        )
        writer.writeheader()
        for i, name in enumerate(names):
            row = {'path': name, 'label': NASTY[probs[i].argmax()]}
            row.update({'target': NASTY[targets[i]]} if has_targets else {})
            writer.writerow({**row, **{f'prob_{label}': repr(float(p)) for label, p in zip(NASTY, probs[i])}})
    assert (tmp_path / 'found.csv').read_bytes() == (tmp_path / 'expected.csv').read_bytes()
    with (tmp_path / 'found.csv').open(**encoding) as file:
        rows = list(csv.DictReader(file))
    assert [[float(row[f'prob_{label}']) for label in NASTY] for row in rows] == probs.tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['expected.csv', 'found.csv']


@pytest.mark.parametrize('targets', [None, np.array([0, 5])])
def test_json_lines(targets, tmp_path):
    probs = np.random.default_rng(0).dirichlet(np.ones(len(NASTY)), size=2)
    names = ['a/b\udc80.png', 'two\nlines.png']
    write_predictions(tmp_path / 'found.JSONL', names, probs, NASTY, targets)
    rows = [json.loads(line) for line in (tmp_path / 'found.JSONL').read_text(encoding='ascii').splitlines()]
    assert [row['path'] for row in rows] == names
    assert [row['label'] for row in rows] == [NASTY[i] for i in probs.argmax(axis=1)]
    assert [row.get('target') for row in rows] == ([None, None] if targets is None else ['a,b', 'path\udc80'])
    assert [row['probs'] for row in rows] == [dict(zip(NASTY, p)) for p in probs.tolist()]


def test_predictions_in_single_precision_have_their_own_digits(tmp_path):
    probs = np.array([[0.1, 0.9]], np.float32)
    write_predictions(tmp_path / 'found.csv', ['x'], probs, ['a', 'b'])
    assert (tmp_path / 'found.csv').read_text().splitlines()[1] == f'x,b,{float(probs[0, 0])!r},{float(probs[0, 1])!r}'


def test_predictions_are_not_kept_in_memory(tmp_path):
    probs = np.random.default_rng(0).dirichlet(np.ones(500), size=400)
    names, classes = [f'{i}.png' for i in range(400)], [f'class {i}' for i in range(500)]
    tracemalloc.start()
    write_predictions(tmp_path / 'found.csv', names, probs, classes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < probs.nbytes / 2  # was 22 times as much
    assert (tmp_path / 'found.csv').stat().st_size > 2 * probs.nbytes


def test_predictions_are_read_back(tmp_path):
    rng = np.random.default_rng(0)
    probs, targets = rng.dirichlet(np.ones(3), size=10), rng.integers(3, size=10)
    names = [f'{i}.png' for i in range(10)]
    write_predictions(tmp_path / 'found.csv', names, probs, ['a', 'b', 'c'], targets)
    read_names, read_targets, read_probs = read_predictions(tmp_path / 'found.csv', ['a', 'b', 'c'])
    assert read_names == names
    assert read_targets.tolist() == targets.tolist()
    assert read_probs.tolist() == probs.tolist()
    with pytest.raises(ValueError, match="found.csv' is damaged .KeyError"):
        read_predictions(tmp_path / 'found.csv', ['a', 'b', 'd'])
