"""CSV tables of images."""

import os
import re
from pathlib import Path

import pytest
from data_helpers import create, sizes, table

from hdkd_timm.data import inspection
from hdkd_timm.data.sources.tables import read_csv
from hdkd_timm.utils.csv_files import write_rows


def test_csv(write_csv):
    path = write_csv(*table('tttttteevv'))
    datasets, classes = create(data_csv=path)
    assert (sizes(datasets), classes) == ({'train': 6, 'test': 2, 'val': 2}, ['a', 'b'])
    # images 6 and 7
    assert [(image.getpixel((0, 0)), target) for image, target in datasets['test']] == [
        ((60, 60, 60), 0),
        ((70, 70, 70), 1),
    ]
    assert datasets['test'].samples.groups is None
    grey = create(data_csv=path, in_chans=1, only='val')[0]
    assert [grey['val'][i][0].getpixel((0, 0)) for i in range(2)] == [80, 90]


def test_csv_paths(write_csv, tmp_path):
    path = write_csv(*table('ttee'))
    lines = [line.replace('images/', '') for line in table('ttee')]
    names = create(data_csv=path)[0]['test'].samples.filenames()
    write_csv(*lines)
    with pytest.raises(ValueError, match=r"Cannot read image '.*table/0\.png' \(FileNotFoundError"):
        create(data_csv=path)
    datasets, _ = create(tmp_path / 'table' / 'images', data_csv=path)
    assert datasets['test'].samples.filenames() == names
    # absolute paths are kept
    write_csv(lines[0], *(f'{tmp_path / "table" / "images"}/{line}' for line in lines[1:]))
    assert create(data_csv=path)[0]['test'].samples.filenames() == names
    assert create(tmp_path, data_csv=path)[0]['test'].samples.filenames() == names


def test_csv_columns_of_other_names(write_csv):
    lines = [line.replace('split', 'use').replace('group', 'patient') for line in table('tttteeee', groups='11223344')]
    path = write_csv(*lines)
    datasets, _ = create(data_csv=path, split_column='use', group_column='patient')
    assert sizes(datasets) == {'train': 4, 'test': 4}
    assert datasets['train'].samples.groups.tolist() == ['1', '1', '2', '2']
    # without their names all is for training, and has no groups
    datasets, _ = create(data_csv=path, val_fraction=0.5)
    assert sizes(datasets) == {'train': 4, 'val': 4}
    assert datasets['train'].samples.groups is None
    with pytest.raises(ValueError, match=r"no column 'patients' \(columns found: 'path', 'label', 'use', 'patient'\)"):
        create(data_csv=path, group_column='patients')
    with pytest.raises(ValueError, match="no column 'uses'"):
        create(data_csv=path, split_column='uses')
    with pytest.raises(ValueError, match="no column 'group'"):  # the default's name, but asked for
        create(data_csv=path, group_column='group')


@pytest.mark.parametrize('delimiter', [';', '\t', '|'])
def test_csv_of_other_separators(write_csv, delimiter, caplog):
    caplog.set_level('INFO')
    expected = create(data_csv=write_csv(*table('ttee')))[0]
    assert 'separated by' not in caplog.text
    lines = [line.replace(',', delimiter) for line in table('ttee', groups='1,22'.replace(',', '2'))]
    lines[1] = lines[1].replace('images/0.png', '"images/0.png"')
    datasets, classes = create(data_csv=write_csv(*lines))
    assert classes == ['a', 'b']
    assert datasets['test'].samples.filenames() == expected['test'].samples.filenames()
    assert f'are separated by {delimiter!r}' in caplog.text


def test_csv_of_other_column_names(write_csv):
    lines = table('ttee')
    expected, classes = create(data_csv=write_csv(*lines))
    # the columns of the defaults' names are then others
    lines = [f'{line},{"dx" if i == 0 else i % 2}' for i, line in enumerate(lines)]
    path = write_csv(lines[0].replace('path', 'image_id').replace('label', 'path'), *lines[1:])
    datasets, found = create(data_csv=path, path_column='image_id', label_column=('dx',))
    assert found == ['0', '1']
    assert datasets['test'].samples.filenames() == expected['test'].samples.filenames()
    assert datasets['test'].targets.tolist() == [1, 0]
    with pytest.raises(ValueError, match="no column 'label' .*--label-column names another one"):
        create(data_csv=path)


def test_csv_with_a_column_for_each_class(write_csv):
    lines = ['path,split,MEL,NV,BCC', 'images/0.png,train,1.0,0.0,0.0', 'images/1.png,train,0,True,false']
    lines += [
        'images/2.png,train,0,0,1',
        'images/3.png,test,0, 1 ,0',
        'images/4.png,test,1,0,0',
        'images/5.png,test,0,0,1',
    ]
    columns = ('MEL', 'NV', 'BCC')
    datasets, classes = create(data_csv=write_csv(*lines), label_column=columns)
    assert classes == ['BCC', 'MEL', 'NV']
    assert [classes[i] for i in datasets['train'].targets] == ['MEL', 'NV', 'BCC']
    assert [classes[i] for i in datasets['test'].targets] == ['NV', 'MEL', 'BCC']
    for cells, match in (
        ('1,1,0', 'line 8: one of MEL, NV, BCC must be 1, got MEL, NV'),
        ('0,0,0', 'line 8: one of MEL, NV, BCC must be 1, got none'),
        ('0,0.7,0.3', r"line 8: NV must be 0 or 1 \(--label-column\), got '0.7'"),
        ('0,,1', 'line 8: no NV'),
    ):
        with pytest.raises(ValueError, match=match):
            create(data_csv=write_csv(*lines, f'images/6.png,test,{cells}'), label_column=columns)


def test_csv_of_images_without_suffix(write_csv, tmp_path, caplog):
    """As 'image_id' of HAM10000, whose files are in two folders."""
    caplog.set_level('INFO')
    expected = create(data_csv=write_csv(*table('ttee')))[0]['test'].samples.filenames()
    lines = [line.replace('images/', '').replace('.png', '') for line in table('ttee')]
    datasets, _ = create(data_csv=write_csv(*lines))
    assert datasets['test'].samples.filenames() == expected
    assert "4 images of '" in caplog.text
    assert 'are named without suffix, and found in' in caplog.text
    datasets, _ = create(data_csv=write_csv(*(line.replace('.png', '') for line in table('ttee'))))
    assert datasets['test'].samples.filenames() == expected
    with pytest.raises(ValueError, match=r"Cannot read image '.*table/nowhere' \(FileNotFoundError"):
        create(data_csv=write_csv(*lines, 'nowhere,a,train'))
    (tmp_path / 'table' / 'images' / '0.jpg').write_bytes(b'')
    with pytest.raises(ValueError, match=r"line 2: '0' may be .*images/0\.jpg, .*images/0\.png: give the file"):
        create(data_csv=write_csv(*lines))


def test_csv_of_names_with_dots_and_without_suffix(write_csv, tmp_path):
    """As the UIDs that name DICOM files: what follows the last dot is no suffix."""
    for i in range(4):
        (tmp_path / 'table' / 'images' / f'{i}.png').rename(tmp_path / 'table' / 'images' / f'1.2.276.{i}.png')
    lines = ['path,label,split', *(f'1.2.276.{i},{"ab"[i % 2]},{"train" if i < 2 else "test"}' for i in range(4))]
    datasets, _ = create(data_csv=write_csv(*lines))
    assert [Path(name).name for name in datasets['test'].samples.filenames()] == ['1.2.276.2.png', '1.2.276.3.png']


def test_csv_with_a_duplicate_image(write_csv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for again in (f'{tmp_path}/table/images/0.png', './images/0.png', 'images/../images/0.png'):
        path = write_csv(*table('ttee'), f'{again},b,test')
        for name in (path, 'table/data.csv'):
            with pytest.raises(ValueError, match=f"line 6: image '{re.escape(again)}' is in line 2 already"):
                create(data_csv=name)


def test_csv_split_names_and_rows_without_one(write_csv, caplog):
    lines = table('ttttee--')
    path = write_csv(*[line.replace('test', ' Testing').replace('train', 'TRAIN ') for line in lines])
    datasets, _ = create(data_csv=path)
    assert sizes(datasets) == {'train': 4, 'test': 2}
    assert 'Ignored 2 rows' in caplog.text
    path = write_csv(*[line.replace('test', 'validation') for line in lines])
    assert sizes(create(data_csv=path)[0]) == {'train': 4, 'val': 2}


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
def test_csv_encodings(write_csv, encoding):
    path = write_csv(*table('ttee', labels='äß'), encoding=encoding)
    assert create(data_csv=path)[1] == ['ß', 'ä']


def test_csv_file_names_that_are_not_utf8(write_csv):
    path = Path(write_csv(*table('ttee')))
    path.write_bytes(path.read_bytes().replace(b'images/0', b'images/\xe4'))
    with pytest.raises(ValueError, match='line 2: .* is not UTF-8'):
        create(data_csv=path)
    os.rename(path.parent / 'images/0.png', os.fsencode(path.parent) + b'/images/\xe4.png')
    datasets, _ = create(data_csv=path)
    assert sizes(datasets) == {'train': 2, 'test': 2}
    assert datasets['train'][0][0] is not None


def test_csv_of_excel(write_csv, tmp_path):
    path = write_csv(*table('ttee'))
    with open(path, 'rb') as file:
        rows = file.read().replace(b'\n', b'\r\n')
    with open(path, 'wb') as file:
        file.write(b'\xef\xbb\xbf' + rows)
    assert sizes(create(data_csv=path)[0]) == {'train': 2, 'test': 2}
    with open(path, 'wb') as file:
        file.write('path,label,split\nimages/0.png,ä,train\n'.encode('latin-1'))
    with pytest.raises(ValueError, match=r"line 2: '\\udce4' is not UTF-8: save the table as 'CSV UTF-8'"):
        create(data_csv=path)
    with pytest.raises(FileNotFoundError, match=r"CSV file '.*nowhere\.csv' does not exist"):
        create(data_csv=str(tmp_path / 'nowhere.csv'))


@pytest.mark.parametrize(
    ('edit', 'match'),
    [
        (lambda t: t[:1] + t[2:3] + t[2:], r"line 3: image 'images/1\.png' is in line 2 already"),
        (lambda t: [*t, 'images/0.png,a,test'], r"line 6: image 'images/0\.png' is in line 2 already"),
        (lambda t: [*t, '', 'images/0.png,a,test'], r"line 7: image 'images/0\.png' is in line 2 already"),
        (lambda t: [*t, ',a,train'], 'line 6: no path'),
        (lambda t: [*t, 'images/9.png,,train'], 'line 6: no label'),
        (lambda t: [*t, 'images/9.png, ,train'], 'line 6: no label'),
        (lambda t: [*t, 'images/9.png'], 'line 6: no label'),
        (
            lambda t: [*t, 'images/9.png,a,holdout'],
            "line 6: unknown split 'holdout', expected one of train, training, ",
        ),
        (lambda t: [*t, 'images/9.png,c,test'], r"Class 'c' is in '.*split test' but not in '.*split train'"),
        (lambda t: [*t, 'images/9.png,c,train'], r"Class 'c' is in '.*split train' but not in '.*split test'"),
        (
            lambda t: [t[0].replace('label', 'class'), *t[1:]],
            r"no column 'label' \(columns found: 'path', 'class', 'split'\)",
        ),
        (lambda t: [t[0].replace(',', ', '), *t[1:]], r"'label' \(columns found: 'path', ' label', ' split'\)"),
        (lambda t: [t[0].replace('path', 'file'), *t[1:]], "no column 'path'"),
        (lambda t: [t[0].replace(',', ';'), *t[1:]], r'line 2: no label'),
        (lambda t: [''], r"no column 'path' \(columns found: none\)"),
        (lambda t: t[:1], "no row of split 'train'"),
        (lambda t: t[:1] + t[3:], "no row of split 'train'"),
        (lambda t: t[:3], "neither a split 'test' nor 'val'"),
        (lambda t: [*t, 'images/missing.png,a,train'], r"images/missing\.png' \(FileNotFoundError"),
        (lambda t: [*t, 'images,a,train'], r"Cannot read image '.*/images' \(IsADirectoryError"),
        (
            lambda t: [*t, 'images/9.png,carcinoma, basal cell,train'],
            r'line 6: 4 cells, but the header has 3: put text',
        ),
        (lambda t: [*t[:2], 'images/9.png,a', *t[2:]], r'line 3: 2 cells, but the header has 3\.'),
        (lambda t: [t[0] + ',label', *(line + ',b' for line in t[1:])], "line 1: two columns are named 'label'"),
        (lambda t: [t[0] + ',note,note', *(line + ',1,2' for line in t[1:])], "line 1: two columns are named 'note'"),
        (lambda t: [*t, '"images/9.png,a,train'], 'is not a CSV file in UTF-8 .line 6: unexpected end of data'),
        (lambda t: [*t[:2], 'images/9.png,"a,train', *t[2:], 'images/8.png,a",train'], 'line 7: a label of 5 lines'),
        (lambda t: [*t[:2], 'images/9.png,"a,train', *t[2:], 'images/8.png,"a",train'], "line 7: ',' expected after"),
        (lambda t: [*t, 'images/9.png,nan,train'], "line 6: label 'nan' denotes a missing value .1 such rows."),
        (lambda t: [*t, 'images/8.png,NaN,train', 'images/9.png,#N/A,test'], "line 6: label 'NaN' .*2 such rows"),
    ],
)
def test_bad_csv(write_csv, edit, match):
    path = write_csv(*edit(table('ttee')))
    with pytest.raises(ValueError, match=match):
        create(data_csv=path)


@pytest.mark.parametrize('encoding', ['utf-16', 'utf-16-be'])
@pytest.mark.parametrize('only', [None, 'test'])
def test_a_table_in_utf_16(write_csv, encoding, only):
    mark = '\ufeff' if encoding == 'utf-16-be' else ''  # utf-16 writes one itself
    lines = table('ttee')
    path = write_csv(mark + lines[0], *lines[1:], encoding=encoding)
    with pytest.raises(ValueError, match=r"data\.csv' is in UTF-16, .*: save the table as 'CSV UTF-8'"):
        create(data_csv=path, only=only)


def test_csv_only(write_csv):
    path = write_csv(*table('ee--'))
    assert sizes(create(data_csv=path, only='test')[0]) == {'test': 2}
    with pytest.raises(ValueError, match="no row of split 'val'"):
        create(data_csv=path, only='val')
    # all rows without a column of splits
    path = write_csv('path,label', 'images/0.png,a', 'images/5.png,b', 'images/6.png,b')
    datasets, classes = create(data_csv=path, only='test')
    assert (sizes(datasets), classes) == ({'test': 3}, ['a', 'b'])
    assert datasets['test'].targets.tolist() == [0, 1, 1]


def test_csv_images_without_a_group_are_their_own(write_csv):
    path = write_csv(*table('t' * 8 + 'eeee', groups=['1', '1', '', '', '', '', '', '', '', '', '', '']))
    datasets, _ = create(data_csv=path)
    groups = datasets['train'].samples.groups.tolist()
    assert groups[:2] == ['1', '1']
    assert len(set(groups)) == 7
    assert not set(groups) & set(datasets['test'].samples.groups)


def test_csv_blanks_around_labels_and_groups(write_csv):
    lines = table('t' * 12, labels='aabb', groups=['1', '1', '2', '2', '3', '3', '4', '4', '', '', '', ''])
    paths, rest = zip(*(line.split(',', 1) for line in lines))
    path = write_csv(
        lines[0],
        *(  # of every other row
            f'{name}, {columns.replace(",", " , ")} ' if i % 2 else f'{name},{columns}'
            for i, (name, columns) in enumerate(zip(paths[1:], rest[1:]))
        ),
    )
    for fold in range(4):
        datasets, classes = create(data_csv=path, folds=4, fold=fold)
        train, test = (set(datasets[split].samples.groups) for split in ('train', 'test'))
        assert classes == ['a', 'b']
        assert not train & test
        assert {group for group in train | test if len(group) == 1} == set('1234')
        assert len(train | test) == 4 + 4  # each without a group is its own


def test_csv_of_images_that_do_not_exist_fails_at_once(write_csv, tmp_path, monkeypatch):
    rows = [f'gone/{i}.png,{"ab"[i % 2]},train' for i in range(200)]
    path = write_csv('path,label,split', *rows)
    monkeypatch.setattr(inspection, 'inspect_images', None)  # is not reached
    with pytest.raises(
        ValueError,
        match=(
            r"Cannot read image '.*table/gone/0\.png' \(FileNotFoundError\), and none of the first 100 images of"
            f" '{path}' exists: its paths are relative to '.*table', specify another directory with --data-dir"
        ),
    ):
        create(data_csv=path, val_fraction=0.5)
    assert len(create(data_csv=path, val_fraction=0.5, check_images=False)[0]['train']) == 100


def test_csv_whose_other_rows_are_elsewhere(write_csv):
    """The images of rows of another split, or of none, need not be there."""
    path = write_csv(
        'path,label,split',
        *(f'gone/{i}.png,{"ab"[i % 2]},{"train" if i % 3 else ""}' for i in range(200)),
        'images/0.png,a,test',
        'images/1.png,b,test',
    )
    assert len(create(data_csv=path, only='test')[0]['test']) == 2
    with pytest.raises(ValueError, match=r'gone/1\.png'):
        create(data_csv=path)


def test_escaped_names_are_read(tmp_path):
    """Files and classes whose names were escaped are found; a hand-written table may contain them unescaped."""
    rows = []
    for name in ('=a.png', "'=b.png", '-c.png', '@d.png'):
        (tmp_path / name).write_bytes(b'')
        rows.append(dict(path=name, label=f'={len(rows) % 2}'))
    write_rows(rows, tmp_path / 'ours.csv')
    (tmp_path / 'own.csv').write_text('path,label\n=a.png,=0\n-c.png,=0\n@d.png,=1\n')
    for name, number in (('ours.csv', 4), ('own.csv', 3)):
        samples, classes = read_csv(tmp_path / name)
        assert classes == ['=0', '=1']
        names = samples['train'].filenames()
        assert len(names) == number
        assert all((tmp_path / name).exists() for name in names)
