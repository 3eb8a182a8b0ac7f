"""Files and tables that tell of a network on a split."""
import csv
import dataclasses
import os
import signal
import tracemalloc

import numpy as np
import pytest
from helpers import TINY_STUDENT, write_images

from hdkd_timm import TrainConfig, train
from hdkd_timm.evaluation import metrics
from hdkd_timm.evaluation.evaluate import format_table, write_predictions
from hdkd_timm.utils.signals import Interrupted

NASTY = ['a,b', 'say "a"', 'two\nlines', ' spaces ', 'é', 'path\udc80']


@pytest.mark.parametrize('has_targets', [True, False])
def test_predictions(tmp_path, has_targets):
    """As the dictionary writer of the standard library writes these rows, to the byte; each number comes back."""
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(len(NASTY), 0.1), size=20)
    probs[0] = np.eye(len(NASTY))[2]
    names = [f'{NASTY[i % 6]}/{i}.png' for i in range(20)]
    targets = rng.integers(6, size=20) if has_targets else None
    write_predictions(tmp_path / 'found.csv', names, probs, NASTY, targets)
    encoding = dict(newline='', encoding='utf-8', errors='surrogateescape')
    with (tmp_path / 'expected.csv').open('w', **encoding) as file:
        writer = csv.DictWriter(file, [
            'path', *(['target'] if has_targets else []), 'label', *(f'prob_{label}' for label in NASTY)])
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


def test_table_of_results():
    result = dict(accuracy=1., balanced_accuracy=0.5, macro_auroc=None, intervals_95=dict(
        accuracy=[0.7354, 1.], balanced_accuracy=[None, None]))
    lines = format_table({'models': {'student': dict(parameters=1234, train_seconds=7.2, test=result)}}).splitlines()
    assert lines[1].split() == ['student', '1,234', '100.0%', '(73.5-100.0)', '50.0%', '-', '7', 's']


def test_table_of_results_rounds_nothing_to_perfect():
    result = dict(accuracy=0.9996, balanced_accuracy=0.99999, macro_auroc=0.99996, intervals_95=dict(
        accuracy=[0.99784, 0.99999], balanced_accuracy=[0.9, 1.]))
    models = {name: dict(parameters=1234, train_seconds=7.2, test=result) for name in ('student', 'a' * 30)}
    lines = format_table({'models': models}).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split()[2:7] == ['99.96%', '(99.8-99.999)', '99.999%', '(90.0-100.0)', '0.99996']


def test_a_final_test_stops_in_its_bootstrap_and_goes_on(tmp_path, monkeypatch):
    """A signal that comes in the middle ends as Interrupted; resumed, the run ends as one that was not."""
    write_images(tmp_path / 'data' / 'train')
    write_images(tmp_path / 'data' / 'test', number=4, seed=1)
    config = TrainConfig(
        data_dir=str(tmp_path / 'data'), img_size=32, epochs=1, batch_size=6, workers=0, device='cpu', bootstrap=64,
        model_kwargs={k: v for k, v in TINY_STUDENT.items() if k not in ('img_size', 'num_classes')},
        output=str(tmp_path / 'runs'), experiment='run')
    whole = train(dataclasses.replace(config, experiment='whole'))['models']['hdkd_student']
    monkeypatch.setattr(metrics, 'WEIGHTS_AT_ONCE', 1)
    parts = []
    original = metrics.WeightedImages.metrics

    def interrupted(self, weights):
        if weights.shape[1] > 1:
            parts.append(weights.shape[1])
            if len(parts) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
        return original(self, weights)

    with monkeypatch.context() as patch:
        patch.setattr(metrics.WeightedImages, 'metrics', interrupted)
        with pytest.raises(Interrupted):
            train(config)
    assert parts == [16, 16]  # of 64 draws
    assert not (tmp_path / 'runs' / 'run' / 'metrics.json').exists()
    resumed = train(config, resume=True)['models']['hdkd_student']
    assert resumed['test'] == whole['test']
