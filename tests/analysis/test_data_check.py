"""What `hdkd check` finds in data sets whose faults are known."""

import csv
import json
import shutil
import tarfile

import numpy as np
import pytest
from helpers import smooth_image, write_images
from PIL import Image
from processes import hdkd

from hdkd_timm.analysis.data_check import (
    CheckConfig,
    check_data,
    format_check,
    list_pairs,
    summarize,
)
from hdkd_timm.cli import main
from hdkd_timm.data.config import DataConfig
from hdkd_timm.data.datasets import create_datasets
from hdkd_timm.data.samples import list_images
from hdkd_timm.data.sources.tables import read_csv
from hdkd_timm.utils.csv_files import write_rows


@pytest.fixture
def leaky(tmp_path):
    """Classes a and b with 8 training and 4 test images each, and the faults in the comments."""
    data = tmp_path / 'data'
    for split, number in (('train', 8), ('test', 4)):
        for label in 'ab':
            (data / split / label).mkdir(parents=True)
            for i in range(number):
                smooth_image([split == 'test', label == 'b', i]).save(data / split / label / f'{i}.png')
    shutil.copy(data / 'train' / 'a' / '0.png', data / 'test' / 'a' / '0.png')  # an equal file
    Image.open(data / 'train' / 'a' / '1.png').save(data / 'test' / 'a' / '1.bmp')  # equal pixels
    Image.open(data / 'train' / 'a' / '2.png').resize((40, 44)).save(data / 'test' / 'b' / '2.png')  # near, other label
    shutil.copy(data / 'train' / 'b' / '3.png', data / 'train' / 'b' / 'again.png')  # within a split
    (data / 'train' / 'b' / 'broken.png').write_bytes(b'no image')
    return data


def test_finds_what_is_wrong(leaky):
    check = check_data(CheckConfig(data_dir=str(leaky)))
    summary = summarize(check)
    assert summary['images'] == {'train': {'a': 8, 'b': 10}, 'test': {'a': 5, 'b': 4}}
    assert list(summary['unreadable']) == [str(leaky / 'train' / 'b' / 'broken.png')]
    assert summary['sizes']['test'] == dict(smallest=[44, 40], median=[48, 48], largest=[48, 48], different=2)
    assert summary['modes']['train'] == {'RGB, 8 bit': 17}
    assert summary['pairs'] == dict(file=2, pixels=1, near=1)
    assert summary['labels_differ'] == 1
    assert summary['leaks'] == {
        'train in test': dict(images=18, pixels=2, near=3, groups=0),
        'test in train': dict(images=9, pixels=2, near=3, groups=0),
    }
    rows, indices = list_pairs(check)
    assert [check.name[i] for i in indices[:, 1]] == [row['second_path'] for row in rows]
    assert [row['kind'] for row in rows] == ['near', 'file', 'pixels', 'file']
    assert (rows[0]['first_path'], rows[0]['second_label']) == (str(leaky / 'train' / 'a' / '2.png'), 'b')
    assert [row['across_splits'] for row in rows] == [True, True, True, False]


def test_command(leaky, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(['check', str(leaky), '--out', 'out', '--write-split', 'new.csv', '--strict']) == 1
    out = capsys.readouterr().out
    assert 'WARNING: 1 of these pairs have different labels' in out
    assert 'LEAK: of 9 test images, 2 with equal pixels in train, 3 with a duplicate or near-duplicate (33.3%)' in out
    assert 'broken.png' in out
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {
        'summary.json',
        'images.csv',
        'duplicates.csv',
        'pairs.png',
    }
    assert json.loads((tmp_path / 'out' / 'summary.json').read_text())['labels_differ'] == 1
    with Image.open(tmp_path / 'out' / 'pairs.png') as picture:
        assert picture.width > 1000
    # the split that it wrote has none of it, and is the trainer's
    assert main(['check', 'new.csv', '--out', 'again', '--strict']) == 0
    assert 'no image, near-duplicate or group is in two splits' in capsys.readouterr().out
    samples, _ = read_csv(tmp_path / 'new.csv')
    assert sum(map(len, samples.values())) == 26
    assert abs(len(samples['test']) - 9) <= 1
    # nothing is overwritten
    for args in (['--out', 'out'], ['--out', 'other', '--write-split', 'new.csv']):
        assert main(['check', str(leaky), *args]) == 1
        assert 'already exists' in capsys.readouterr().err
    assert not (tmp_path / 'other').exists()
    assert main(['check', str(leaky), '--data-csv', 'new.csv']) == 1
    assert 'both name the images' in capsys.readouterr().err


def test_tells_of_images_that_are_read_nearly_black(tmp_path, capsys):
    """16-bit files that hold 12 bits, an int32 file that holds 8, in both splits: one warning."""
    for split, number in (('train', 3), ('test', 2)):
        for label in 'ab':
            (tmp_path / 'data' / split / label).mkdir(parents=True)
            for i in range(number):
                grey = np.asarray(smooth_image([split == 'test', label == 'b', i]).convert('L'))
                Image.fromarray(grey.astype(np.uint16) * 16).save(tmp_path / 'data' / split / label / f'{i}.png')
    (tmp_path / 'data' / 'test' / 'a' / '0.png').unlink()
    Image.fromarray(grey.astype(np.int32)).save(tmp_path / 'data' / 'test' / 'a' / '0.tif')
    assert main(['check', str(tmp_path / 'data'), '--out', str(tmp_path / 'out')]) == 0
    (told,) = [line for line in capsys.readouterr().out.splitlines() if 'nearly black' in line]
    assert told.startswith('WARNING: 10 of 10 images use so little of their value range')
    assert '9 of them have values' in told
    assert 'of 0 to 65535 (I;16, 16 bit)' in told
    summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
    assert told == f'WARNING: {summary["dark"]}'
    assert summary['modes']['test'] == {'I, 32 bit': 1, 'I;16, 16 bit': 3}


def test_other_images_are_not_told(leaky):
    assert summarize(check_data(CheckConfig(data_dir=str(leaky))))['dark'] == ''


def test_suffixes_and_what_is_left_out(image_folder, caplog):
    for i in range(3):
        path = image_folder / 'train' / 'a' / f'{i}.png'
        with Image.open(path) as image:
            image.save(path.with_suffix('.jfif'), 'JPEG')
        path.unlink()
    (image_folder / 'test' / 'b' / 'x.xyz').touch()
    summary = summarize(check_data(CheckConfig(data_dir=str(image_folder))))
    assert summary['images']['train']['a'] == 8
    assert summary['suffixes'] == {'train': {'.png': 21, '.jfif': 3}, 'test': {'.png': 12}}
    assert 'train: files by suffix: .png 21, .jfif 3' in format_check(summary)
    assert 'test: files by suffix' not in format_check(summary)
    assert 'test/b/x.xyz (by suffix: .xyz 1)' in caplog.text


def test_images_that_changed_since_they_were_listed(image_folder):
    table = image_folder / 'images.csv'
    write_rows(list_images(*create_datasets(DataConfig(data_dir=str(image_folder)))), table)
    assert summarize(check_data(CheckConfig(data_csv=str(table))))['changed'] == []
    Image.new('RGB', (40, 40), 'white').save(image_folder / 'train' / 'c' / '5.png')
    summary = summarize(check_data(CheckConfig(data_csv=str(table))))
    assert summary['changed'] == [str(image_folder / 'train' / 'c' / '5.png')]
    assert 'WARNING: 1 images have changed since they were listed' in format_check(summary)


def test_table_whose_images_are_not_there(image_folder, tmp_path):
    table = tmp_path / 'table.csv'
    rows = [dict(path=f'gone/{i}.png', label='ab'[i % 2], split='train') for i in range(6)]
    write_rows(rows, table)
    match = rf"None of the 6 images of '{table}' exist, .* relative to '{tmp_path}'"
    with pytest.raises(ValueError, match=match):
        check_data(CheckConfig(data_csv=str(table)))
    write_rows([*rows, dict(path=image_folder / 'train' / 'a' / '0.png', label='a', split='train')], table)
    assert len(summarize(check_data(CheckConfig(data_csv=str(table))))['unreadable']) == 6


def test_class_names_that_hold_line_breaks_stay_on_a_line(tmp_path):
    write_images(tmp_path / 'data', ['a', 'b\nc\x1b[2J'], number=1)
    (tmp_path / 'data' / 'a' / 'bad\n.png').write_bytes(b'no image')
    lines = format_check(summarize(check_data(CheckConfig(data_dir=str(tmp_path / 'data'))))).split('\n')
    assert lines[2].startswith('b\\nc\\x1b[2J  ')
    assert len({len(line.rstrip()) for line in lines[:3]}) == 1
    assert any("data/a/bad\\n.png'" in line for line in lines[4:])


def test_threads_read_a_tar_file(leaky):
    with tarfile.open(leaky / 'val.tar', 'w') as tar:
        tar.add(leaky / 'train', '.')
    check = check_data(CheckConfig(data_dir=str(leaky)))
    train, val = (
        [summary for summary, s in zip(check.summaries, check.split) if check.splits[s] == split]
        for split in ('train', 'val')
    )
    assert [image.file_hash for image in val] == [image.file_hash for image in train]


@pytest.mark.parametrize('place', ['', 'test'])
def test_one_split(tmp_path, capsys, place):
    """Class folders without splits, and a test split only."""
    write_images(tmp_path / 'data' / place, number=3)
    shutil.copy(tmp_path / 'data' / place / 'a' / '0.png', tmp_path / 'data' / place / 'b' / 'again.png')
    assert main(['check', str(tmp_path / 'data'), '--out', str(tmp_path / 'out'), '--strict']) == 0
    out = capsys.readouterr().out
    assert out.split()[:2] == ['class', place or 'train']
    assert '1 equal files' in out
    assert 'WARNING: 1 of these pairs have different labels' in out


def test_names_may_hold_anything(tmp_path):
    for split in ('train', 'test'):
        for label in ('<b>$x$', 'a_b, "c"'):
            (tmp_path / 'data' / split / label).mkdir(parents=True)
            smooth_image([1, split == 'test']).save(tmp_path / 'data' / split / label / '$\\alpha$.png')
    process = hdkd('check', tmp_path / 'data', '--out', tmp_path / 'out')
    assert process.returncode == 0, process.stderr
    with (tmp_path / 'out' / 'duplicates.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert {row['first_label'] for row in rows} | {row['second_label'] for row in rows} == {'<b>$x$', 'a_b, "c"'}
