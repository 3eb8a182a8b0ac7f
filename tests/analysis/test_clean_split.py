"""Splits without leaks, of data sets whose leaks are known."""

import csv

import numpy as np
import pytest
from helpers import smooth_image, write_images

from hdkd_timm.analysis.clean_split import draw_split, write_split
from hdkd_timm.analysis.data_check import CheckConfig, check_data, has_leak, summarize
from hdkd_timm.utils.csv_files import write_rows


def test_groups(tmp_path):
    write_images(tmp_path, 'ab', number=6, size=48)
    with (tmp_path / 'images.csv').open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['path', 'label', 'split', 'group'])
        for label in 'ab':
            for i in range(6):
                writer.writerow([f'{label}/{i}.png', label, 'test' if i in (1, 4) else 'train', f'{label}{i // 2}'])
    check = check_data(CheckConfig(data_csv=str(tmp_path / 'images.csv')))
    summary = summarize(check)
    assert {where: leak['groups'] for where, leak in summary['leaks'].items()} == {
        'train in test': 4,
        'test in train': 4,
    }
    assert has_leak(summary)
    split, units = draw_split(check)
    for unit in set(units.tolist()):
        assert len(set(split[units == unit].tolist())) == 1
    for label in (0, 1):
        assert (split[check.target == label] == check.splits.index('test')).sum() == 2
    write_split(check, tmp_path / 'new.csv')
    assert not has_leak(summarize(check_data(CheckConfig(data_csv=str(tmp_path / 'new.csv')))))


def test_split_keeps_the_sizes(tmp_path):
    """With many images in clusters of all sizes."""
    rng = np.random.default_rng(0)
    for i in range(120):
        split = 'train' if i % 3 else 'test'
        (tmp_path / split / 'ab'[i % 2]).mkdir(parents=True, exist_ok=True)
        smooth_image([7, int(rng.integers(70)), i % 2], 24).save(tmp_path / split / 'ab'[i % 2] / f'{i}.png')
    check = check_data(CheckConfig(data_dir=str(tmp_path)))
    before = summarize(check)
    assert before['leaks']['test in train']['pixels'] > 5
    write_split(check, tmp_path / 'new.csv')
    after = summarize(check_data(CheckConfig(data_csv=str(tmp_path / 'new.csv'))))
    assert after['images'] == before['images']
    assert not has_leak(after)
    # by the seed
    assert (draw_split(check, 1)[0] == draw_split(check, 1)[0]).all()
    assert (draw_split(check, 1)[0] != draw_split(check, 2)[0]).any()


def test_no_split_without_a_class(tmp_path):
    """The only lesion of a class has images in both splits: no split without leaks has the class in both."""
    rows = []
    for label, groups in (('a', range(8)), ('b', range(8, 16)), ('c', (99, 99))):
        for i, group in enumerate(groups):
            split = 'test' if i % 2 else 'train'
            (tmp_path / label).mkdir(exist_ok=True)
            smooth_image([ord(label), i, group]).save(tmp_path / label / f'{i}.png')
            rows.append(dict(path=f'{label}/{i}.png', label=label, split=split, group=group))
    write_rows(rows, tmp_path / 'images.csv')
    check = check_data(CheckConfig(data_csv=str(tmp_path / 'images.csv')))
    with pytest.raises(ValueError, match=r"has images of class 'c' in t\w+: its 2 readable images form 1 clusters"):
        write_split(check, tmp_path / 'new.csv')
    assert not (tmp_path / 'new.csv').exists()


def test_split_with_a_cluster_that_is_too_large(tmp_path):
    """It exceeds the size of any split; the other classes are not affected."""
    splits = np.repeat(['train', 'test'], [60, 20])
    labels = np.tile(['a', 'b', 'c', 'd'], 20)
    groups = np.array([f'{label}{i // 8}' for i, label in enumerate(labels)])
    groups[(labels == 'a') & (np.arange(80) < 72)] = 'large'
    rows = []
    for i, (split, label, group) in enumerate(zip(splits, labels, groups)):
        (tmp_path / label).mkdir(exist_ok=True)
        smooth_image([i, ord(label)]).save(tmp_path / label / f'{i}.png')
        rows.append(dict(path=f'{label}/{i}.png', label=label, split=split, group=group))
    write_rows(rows, tmp_path / 'images.csv')
    check = check_data(CheckConfig(data_csv=str(tmp_path / 'images.csv')))
    before = summarize(check)['images']
    for seed in range(5):
        after = write_split(check, tmp_path / f'{seed}.csv', seed)
        moved = {label: after['test'][label] - before['test'][label] for label in 'bcd'}
        assert all(abs(number) <= 1 for number in moved.values()), moved
        assert not has_leak(summarize(check_data(CheckConfig(data_csv=str(tmp_path / f'{seed}.csv')))))


def test_split_behind_a_link(tmp_path):
    for i in range(8):
        folder = tmp_path / 'data' / ('test' if i % 2 else 'train') / 'ab'[i // 4]
        folder.mkdir(parents=True, exist_ok=True)
        smooth_image([i, 1]).save(folder / f'{i}.png')
    (tmp_path / 'deep' / 'er').mkdir(parents=True)
    (tmp_path / 'link').symlink_to(tmp_path / 'deep' / 'er')
    write_split(check_data(CheckConfig(data_dir=str(tmp_path / 'data'))), tmp_path / 'link' / 'new.csv')
    again = summarize(check_data(CheckConfig(data_csv=str(tmp_path / 'link' / 'new.csv'))))
    assert not again['unreadable']
