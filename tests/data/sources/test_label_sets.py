"""Tables of images with any number of labels."""

import logging

import numpy as np
import pytest

from hdkd_timm.data.config import DataConfig
from hdkd_timm.data.datasets import create_datasets, read_samples
from hdkd_timm.data.sources.tables import read_csv


@pytest.fixture
def read(tmp_path):
    def read(text, label_columns=('label',), **kwargs):
        (tmp_path / 'table.csv').write_text(text)
        samples, names = read_csv(tmp_path / 'table.csv', label_columns=label_columns, multi_label=True, **kwargs)
        return {split: part.targets.tolist() for split, part in samples.items()}, names

    return read


def test_labels_of_one_column(read, caplog):
    caplog.set_level(logging.INFO)
    text = 'path,label,split\n1,b|a,train\n2,No Finding,train\n3,,train\n4, c | a |a,train\n5,b,test\n6,c|a,test\n'
    assert read(text) == (
        {'train': [[1, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 1]], 'test': [[0, 1, 0], [1, 0, 1]]},
        ['a', 'b', 'c'],
    )
    assert '6 images with 1.17 labels each of 3, 2 of them without a label' in caplog.text


def test_labels_of_several_columns(read, caplog):
    caplog.set_level(logging.INFO)
    text = 'path;Edema;Cardiomegaly;age\n1;1;0;5\n2;;1.0;6\n3;False;0.0;7\n4;TRUE;1;8\n'
    targets, names = read(text, ('Edema', 'Cardiomegaly'))
    assert (targets, names) == ({'train': [[0, 1], [1, 0], [0, 0], [1, 1]]}, ['Cardiomegaly', 'Edema'])
    assert "1 empty cells of the label columns of '" in caplog.text


def test_names_are_in_natural_order(read):
    assert read('path,label\n1,x10|x9|x1\n')[1] == ['x1', 'x9', 'x10']


@pytest.mark.parametrize(
    ('text', 'columns', 'message'),
    [
        ('path,label,split\n1,a,train\n2,b,test\n', ('label',), "no training image has the label 'b', which cannot be"),
        ('path,label\n1,\n2,no finding\n', ('label',), 'No image of .* has a label'),
        ('path,label\n1,a|nan\n', ('label',), "label 'nan' denotes a missing value"),
        ('path,x\n1,a\n', ('label',), "has no column 'label'"),
        ('path,a,b\n1,1,0\n2,-1,0\n', ('a', 'b'), r"line 3: a must be 0 or 1 \(--label-column\), got '-1': decide"),
        ('path,a|b,c\n1,1,0\n', ('a|b', 'c'), r"a label may not contain '\|', rename column 'a\|b'"),
        ('path,a\n1,1\n1,0\n', ('a',), "image '1' is in line 2 already"),
    ],
)
def test_bad_tables(read, text, columns, message):
    with pytest.raises(ValueError, match=message):
        read(text, columns)


def test_what_is_probably_not_meant_is_said(read, caplog):
    read('path,label,split\n1,a;b,train\n2,none|c,train\n3,c,test\n')
    assert "'a;b' is taken as one label of 1 images: several are separated by '|', not by ';'" in caplog.text
    assert "the label 'none', which is used as a name" in caplog.text
    assert "no image of split 'test' has the labels a;b, none: their AUROC" in caplog.text


def test_labels_need_a_table(tmp_path):
    (tmp_path / 'train').mkdir()
    with pytest.raises(ValueError, match='--multi-label needs a table of the labels, --data-csv'):
        read_samples(DataConfig(data_dir=str(tmp_path), multi_label=True))


def test_dataset(tmp_path, image_folder):
    """Targets of a dataset are rows of 0 and 1; a class whose only image cannot be read is named."""
    rows = [f'{image_folder}/train/a/{i}.png,{label},train' for i, label in enumerate(['a', 'a|b', '', 'c'])]
    rows += [f'{image_folder}/test/a/{i}.png,{label},test' for i, label in enumerate(['a|b|c', ''])]
    (tmp_path / 'table.csv').write_text('\n'.join(['path,label,split', *rows]) + '\n')
    config = DataConfig(data_csv=str(tmp_path / 'table.csv'), multi_label=True)
    datasets, classes = create_datasets(config)
    assert classes == ['a', 'b', 'c']
    image, target = datasets['train'][1]
    assert image.size == (40, 40)
    np.testing.assert_array_equal(target, [1, 1, 0])
    (image_folder / 'train' / 'a' / '3.png').write_bytes(b'broken')
    config.on_bad_image = 'skip'
    with pytest.raises(ValueError, match="No readable image of class 'c' in split 'train'"):
        create_datasets(config)
