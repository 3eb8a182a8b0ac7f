"""Sentences of a report."""

from types import SimpleNamespace

import pytest
from helpers import write_run

from hdkd_timm.analysis.report_tables import class_table, describe_network
from hdkd_timm.evaluation.problem import SingleLabel
from hdkd_timm.evaluation.run_results import read_networks


@pytest.mark.parametrize(('epochs', 'words'), [(1, '1 epoch on'), (2, '2 epochs on')])
def test_sentence_of_a_network(epochs, words):
    network = SimpleNamespace(
        metrics=dict(name='teacher', parameters=3_948_161, epoch=0, epochs=epochs, train_seconds=90.0),
        model=dict(architecture='hdkd_teacher', pretrained_cfg=dict(input_size=(3, 32, 64))),
        classes=['a', 'b'],
        result=dict(images=12, balanced_accuracy=0.5),
        split='test',
        problem=SingleLabel,
    )
    assert describe_network(network, {}, 7) == (
        f'hdkd_teacher (3.9 million parameters) was trained for {words} 7 images of 2 classes at 32 x 64 pixels in'
        ' 90 s; epoch 1 was kept. On 12 test images, its balanced accuracy is 50.0 %.'
    )


@pytest.mark.parametrize(
    ('settings', 'text'),
    [
        ({}, '), distilled from a teacher, was'),
        (dict(method=['hdkd'], pretrained=True), '), distilled from a teacher, starting from pretrained weights, was'),
        (dict(method=['kd', 'at']), '), distilled from a teacher by kd and at, was'),
        (
            dict(method=['none'], init_from_teacher=[]),
            "), trained without distillation, starting from layers of the teacher's, was",
        ),
    ],
)
def test_how_a_student_was_trained(settings, text, tmp_path):
    write_run(tmp_path / 'run', ['a', 'b'])
    (network,) = read_networks([tmp_path / 'run'])
    assert text in describe_network(network, settings)


def test_undefined_scores_of_a_class_are_not_0():
    scores = dict(precision=0.0, recall=0.0, f1=0.0)
    network = SimpleNamespace(
        problem=SingleLabel,
        classes=['a', 'b', 'c'],
        probs=None,
        result=dict(
            per_class={'a': dict(scores, support=2), 'b': dict(scores, support=0), 'c': dict(scores, support=0)},
            confusion_matrix=[[0, 2, 0], [0, 0, 0], [0, 0, 0]],
        ),
    )
    shown = [[row[key] for key in ('precision', 'recall', 'f1')] for row in class_table(network)]
    assert shown == [['0.000'] * 3, ['0.000', '–', '0.000'], ['–', '–', '–']]
