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


def test_one_column_of_0_and_1_is_a_label(read):
    assert read('path,Effusion\n1,1\n2,0\n3,\n', ('Effusion',)) == ({'train': [[1], [0], [0]]}, ['Effusion'])


def test_a_column_of_no_finding_is_no_label(read, caplog):
    caplog.set_level(logging.INFO)
    targets, names = read('path, B,No Finding,A\n1,1,0,0\n2,0,1,0\n3,1,0,1\n', (' B', 'No Finding', 'A'))
    assert (targets, names) == ({'train': [[0, 1], [0, 0], [1, 1]]}, ['A', 'B'])
    assert "the column 'No Finding' is no label" in caplog.text


def test_labels_are_those_of_the_whole_table(read):
    """One split alone has the labels of all."""
    text = 'path,label,split\n1,a|b,train\n2,c,train\n3,b,test\n'
    assert read(text, only='test') == ({'test': [[0, 1, 0]]}, ['a', 'b', 'c'])


def test_names_are_in_natural_order(read):
    assert read('path,label\n1,x10|x9|x1\n')[1] == ['x1', 'x9', 'x10']


@pytest.mark.parametrize(
    ('text', 'columns', 'message'),
    [
        ('path,label,split\n1,a,train\n2,b,test\n', ('label',), "no training image has the label 'b', which cannot be"),
        ('path,label\n1,\n2,no finding\n', ('label',), 'No image of .* has a label'),
        ('path,a,b\n1,1,0\n2,1,0\n', ('a', 'b'), "no training image has the label 'b'"),
        ('path,label\n1,"a\nb"\n', ('label',), 'a label of 2 lines'),
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


def test_a_fraction_that_leaves_a_label_out_is_refused(tmp_path):
    """Each image of 'b' is one of ten with a rarer label, by which images are drawn."""
    rows = [f'{i}-{k},c{i}{"|b" * (k == 0)},train' for i in range(12) for k in range(10)]
    rows += [f'test-{i},c{i}|b,test' for i in range(12)]
    (tmp_path / 'table.csv').write_text('\n'.join(['path,label,split', *rows]) + '\n')
    messages = []
    for seed in range(20):
        settings = dict(multi_label=True, train_fraction=0.1, check_images=False, seed=seed)
        try:
            datasets, classes = create_datasets(DataConfig(data_csv=str(tmp_path / 'table.csv'), **settings))
        except ValueError as e:
            messages.append(str(e))
        else:
            assert datasets['train'].targets[:, classes.index('b')].any()
    assert set(messages) == {
        "No training image with 'b' is left by --train-fraction, --val-fraction or --folds: use another --split-seed,"
        ' or more images.'
    }
    assert len(messages) < 20
