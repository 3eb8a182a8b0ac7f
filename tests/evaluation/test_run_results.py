"""Results of runs as they were written, and runs whose files are damaged or missing."""

import re

import pytest
from helpers import write_run

from hdkd_timm.evaluation.run_results import (
    count_images,
    format_table,
    is_role,
    is_teacher,
    list_missing_files,
    list_roles,
    read_networks,
    read_settings,
)
from hdkd_timm.utils.csv_files import write_rows


def test_table_of_results():
    result = dict(
        accuracy=1.0,
        balanced_accuracy=0.5,
        macro_auroc=None,
        intervals_95=dict(accuracy=[0.7354, 1.0], balanced_accuracy=[None, None]),
    )
    lines = format_table({'models': {'student': dict(parameters=1234, train_seconds=7.2, test=result)}}).splitlines()
    assert lines[1].split() == ['student', '1,234', '100.0%', '(73.5-100.0)', '50.0%', '-', '7', 's']


def test_table_of_results_rounds_nothing_to_perfect():
    result = dict(
        accuracy=0.9996,
        balanced_accuracy=0.99999,
        macro_auroc=0.99996,
        intervals_95=dict(accuracy=[0.99784, 0.99999], balanced_accuracy=[0.9, 1.0]),
    )
    models = {name: dict(parameters=1234, train_seconds=7.2, test=result) for name in ('student', 'a' * 30)}
    lines = format_table({'models': models}).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split()[2:7] == ['99.96%', '(99.8-99.999)', '99.999%', '(90.0-100.0)', '0.99996']


@pytest.mark.parametrize(
    ('file', 'change', 'message'),
    [
        ('predictions.csv', lambda text: text[: text.rindex('/data')], 'do not match: its 11 rows'),
        ('predictions.csv', lambda text: text.replace(',a,', ',b,', 1), 'do not match: its 12 rows'),
        ('predictions.csv', lambda text: text[:-30], "predictions.csv' is damaged"),
        ('predictions.csv', lambda text: text.splitlines()[0] + '\n', 'do not match: its 0 rows'),
        ('predictions.csv', lambda text: re.sub(r'0\.\d+', 'nan', text, count=1), 'is damaged'),
        ('predictions.csv', lambda text: text.replace('prob_b', 'prob_a'), "two columns are named 'prob_a'"),
        ('metrics.json', lambda text: text.replace('"recall"', '"recal"', 1), "metrics.json' is damaged"),
        ('metrics.json', lambda text: text.replace('"images": 12', '"images": 13'), "metrics.json' is damaged"),
        (
            'metrics.json',
            lambda text: text.replace('"epochs": 1,', '"epochs": 1, "epochs": 2,'),
            "duplicate key 'epochs'",
        ),
        ('metrics.json', lambda text: '[1]', "metrics.json' is damaged"),
        ('metrics.json', lambda text: text.replace('"parameters": 5,', ''), "metrics.json' is damaged .KeyError"),
        ('summary.csv', lambda text: text.replace('1.5', 'x'), "summary.csv' is damaged"),
        ('images.csv', lambda text: text.replace('label', 'lable'), "images.csv' is damaged"),
        ('config.yaml', lambda text: text * 2, "config.yaml' line 2: duplicate key 'model'"),
    ],
)
def test_damaged_files(file, change, message, tmp_path):
    """The error is one line that names the file."""
    write_run(tmp_path / 'run', ['a', 'b', 'c'])
    path = tmp_path / 'run' / file
    assert change(path.read_text()) != path.read_text()
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=message) as caught:
        for network in read_networks([tmp_path / 'run']):
            read_settings(network.run)
            count_images(network.run / 'images.csv')
    assert '\n' not in str(caught.value)


def test_images_are_counted_in_natural_order(tmp_path):
    labels = ['10', '2', 'b', 'A', '2']
    write_rows(
        [
            dict(path=f'{i}.png', label=label, split=split)
            for split in ('test', 'train', 'extra')
            for i, label in enumerate(labels[:2] if split == 'test' else labels)
        ],
        tmp_path / 'images.csv',
    )
    counts = count_images(tmp_path / 'images.csv')
    assert [(split, list(of_class.items())) for split, of_class in counts.items()] == [
        ('train', [('2', 2), ('10', 1), ('A', 1), ('b', 1)]),
        ('test', [('2', 1), ('10', 1)]),
    ]
    assert count_images(tmp_path / 'none.csv') == {}


def test_results_that_were_written_are_read(tmp_path):
    result = write_run(tmp_path / 'run', ['a', 'b', 'c'])
    (network,) = read_networks([tmp_path / 'run'])
    assert (network.label, network.split, network.classes) == ('run', 'test', ['a', 'b', 'c'])
    assert network.result == result
    assert network.targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert network.names[0] == '/data/0.png'
    assert network.groups is None
    assert network.epochs == [dict(epoch=0, train_loss=1.5, val_log_loss=1.0)]


def test_names_and_groups_are_those_of_the_list_of_images(tmp_path):
    """Older runs have paths in predictions.csv that are relative to an unknown folder."""
    write_run(tmp_path / 'run', ['a', 'b', 'c'], groups=[f'patient {i // 2}' for i in range(12)])
    path = tmp_path / 'run' / 'predictions.csv'
    path.write_text(path.read_text().replace('/data/', './'))
    (network,) = read_networks([tmp_path / 'run'])
    assert network.names == [f'/data/{i}.png' for i in range(12)]
    assert network.groups.tolist() == [f'patient {i // 2}' for i in range(12)]


def test_missing_files_are_listed(tmp_path):
    write_run(tmp_path / 'run', ['a', 'b', 'c'])
    assert list_missing_files(*read_networks([tmp_path / 'run'])) == []
    for name in ('config.yaml', 'images.csv', 'summary.csv', 'best/config.json', 'predictions.csv'):
        (tmp_path / 'run' / name).rename(tmp_path / 'moved')
        missing = list_missing_files(*read_networks([tmp_path / 'run']))
        assert missing[0].startswith(f'{name} ('), missing
        assert len(missing) == 1 or name == 'config.yaml'  # which tells where the run is
        (tmp_path / 'moved').rename(tmp_path / 'run' / name)


@pytest.mark.parametrize(
    ('settings', 'roles'),
    [
        (dict(model='hdkd_student'), []),
        (dict(teacher='t'), ['teacher', 'student']),
        (dict(teacher='t', teacher_checkpoint='a', student_alone=True), ['teacher', 'student_alone', 'student']),
        (dict(teacher='t', teacher_checkpoint=['a']), ['teacher', 'student']),
        (dict(teacher='t', teacher_checkpoint=['a', 'b']), ['teacher_1', 'teacher_2', 'student']),
        (dict(teacher='t', teacher_logits='f'), ['student']),
    ],
)
def test_networks_that_a_run_is_to_have(settings, roles):
    assert list_roles(settings) == roles
    assert all(map(is_role, roles))
    assert [is_teacher(role) for role in roles] == [role.startswith('teacher') for role in roles]


def test_teachers_are_in_the_order_of_their_numbers(tmp_path):
    for name in ('teacher_10', 'teacher_2', 'student', 'teacher_x'):
        write_run(tmp_path / 'run' / name, ['a', 'b'])
    (tmp_path / 'run' / 'config.yaml').write_text('teacher: t\n')
    assert [network.folder.name for network in read_networks([tmp_path / 'run'])] == [
        'teacher_2',
        'teacher_10',
        'student',
    ]
