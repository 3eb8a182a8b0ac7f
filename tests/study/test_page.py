import math

import pytest

from hdkd_timm.study.config import StudyConfig
from hdkd_timm.study.page import (
    _describe_settings,
    describe,
    describe_order,
    format_markdown,
    format_rows,
    state_differences,
)

ROW = dict(
    seeds=3,
    planned=3,
    parameters=1000,
    seconds=90.0,
    val_accuracy=0.8,
    val_accuracy_sd=0.01,
    test_accuracy=0.75,
    test_accuracy_sd=0.02,
    test_macro_auroc=0.9,
    test_macro_auroc_sd=math.nan,
    test_log_loss=0.5,
    test_log_loss_sd=0.1,
)
DIFFERENCE = dict(accuracy_difference=0.05, accuracy_difference_sd=0.01, accuracy_low=-0.01, accuracy_high=0.11)


def test_best_on_val_comes_first():
    rows = [
        dict(ROW, arm='none'),
        dict(ROW, arm='kd', val_accuracy=0.9, seeds=2, **DIFFERENCE),
        dict(ROW, arm='at', val_accuracy=math.nan, val_accuracy_sd=math.nan),
    ]
    columns, cells = format_rows(rows, 'none', 'accuracy', 'test')
    assert columns[:4] == ['arm', 'seeds', 'val accuracy', 'test accuracy']
    assert [line[0] for line in cells] == ['kd', 'none', 'at']
    kd = dict(zip(columns, cells[0]))
    assert (kd['seeds'], kd['test accuracy'], kd['test macro AUROC']) == ('2 of 3', '75.0 % ± 2.0', '0.900')
    assert kd['difference to none (points)'] == '+5.00 ± 1.0 (−1.00 to +11.00)'
    assert dict(zip(columns, cells[1]))['difference to none (points)'] == '–'
    assert format_markdown(columns, cells).splitlines()[2].startswith('| kd | 2 of 3 | 90.0 % ± 1.0 |')


def test_lowest_loss_comes_first():
    rows = [dict(ROW, arm=str(loss), val_log_loss=loss, val_log_loss_sd=0.0) for loss in (0.3, 0.2)]
    _, cells = format_rows(rows, '0.3', 'log_loss', 'test')
    assert [line[0] for line in cells] == ['0.2', '0.3']


def test_without_val_no_arm_is_chosen():
    rows = [dict(ROW, arm=name, val_accuracy=math.nan, test_accuracy=test) for name, test in (('a', 0.1), ('b', 0.9))]
    columns, cells = format_rows(rows, 'a', 'accuracy', 'test')
    assert [line[0] for line in cells] == ['a', 'b']
    assert columns[2] == 'test accuracy'
    assert [line[2] for line in cells] == ['10.0 % ± 2.0', '90.0 % ± 2.0']


def test_differences_in_words():
    rows = [
        dict(ROW, arm='none'),
        dict(ROW, arm='kd', val_accuracy=0.7, **DIFFERENCE),
        dict(ROW, arm='at', val_accuracy=0.75, **{**DIFFERENCE, 'accuracy_difference': -0.02}),
    ]
    assert state_differences(rows[:1], 'none', 'accuracy', 'test') == []
    assert state_differences(rows, 'none', 'accuracy', 'test') == [
        "Best on val, apart from the baseline 'none', is 'at'. 'at' compared with 'none': accuracy on test differs by"
        ' −2.00 points (95 % interval −1.00 to +11.00 points).'
    ]
    without_val = [dict(row, val_accuracy=math.nan) for row in rows]
    assert [text.split(':')[0] for text in state_differences(without_val, 'none', 'accuracy', 'test')] == [
        "'kd' compared with 'none'",
        "'at' compared with 'none'",
    ]
    unknown = [dict(row, accuracy_low=math.nan, val_accuracy_low=math.nan) for row in without_val[:2]]
    assert state_differences(unknown, 'none', 'accuracy', 'test') == [
        "'kd' compared with 'none': accuracy on test differs by +5.00 points."
    ]
    (biased,) = state_differences(rows[:2], 'none', 'accuracy', 'val')
    assert biased.endswith(' The same images selected the epochs, so this is optimistic.')


def test_differences_by_number_of_images():
    rows = [
        dict(row, train_fraction=fraction, train_images=images)
        for fraction, images in ((1.0, 1200), (0.1, 120))
        for row in (dict(ROW, arm='none'), dict(ROW, arm='kd', **DIFFERENCE))
    ]
    interval = '+5.00 points (95 % interval −1.00 to +11.00 points)'
    assert state_differences(rows, 'none', 'accuracy', 'test') == [
        f"'kd' compared with 'none': accuracy on test differs by {interval} with 120 images, {interval} with 1,200"
        ' images.'
    ]


@pytest.mark.parametrize(
    ('split', 'has_val', 'words'),
    [
        ('test', True, 'Best on val first'),
        ('test', False, 'do not choose by the test images'),
        ('val', True, 'optimistically biased'),
    ],
)
def test_what_the_order_means(split, has_val, words):
    assert words in describe_order(split, has_val)


def test_fewer_images_come_first():
    rows = [
        dict(ROW, arm='none', train_fraction=1.0, train_images=1200),
        dict(ROW, arm='none', train_fraction=0.015, train_images=18, val_accuracy=0.1),
        dict(ROW, arm='kd', train_fraction=0.015, train_images=18, val_accuracy=0.2),
    ]
    columns, cells = format_rows(rows, 'none', 'accuracy', 'test')
    assert columns[:3] == ['arm', 'training images', 'seeds']
    assert [line[:2] for line in cells] == [['kd', '18 (1.5 %)'], ['none', '18 (1.5 %)'], ['none', '1,200 (100 %)']]
    assert describe(StudyConfig(methods=('kd',), train_fractions=(1.0, 0.015)), 'none', 'test').startswith(
        '1 arm, 3 seeds (1, 2, 3), 100 epochs, 224 px, 1.5 and 100 % of the training images. Mean'
    )


def test_settings_of_arms_are_shown_as_they_are_given():
    shown = [
        _describe_settings(values) for values in ({'method': ('kd', 'at')}, {'init_from_teacher': ()}, {'tau': 2.0})
    ]
    assert shown == ['method: kd at', 'init_from_teacher: default', 'tau: 2.0']
    assert _describe_settings({'method': ('hdkd',)}) == 'those of the study'


def test_only_what_all_arms_share_is_said_of_them():
    config = StudyConfig(epochs=7, img_size=64, arms={'a': {}, 'b': {'epochs': 9}})
    assert '2 arms, 3 seeds (1, 2, 3), 64 px.' in describe(config, 'a', 'test')
