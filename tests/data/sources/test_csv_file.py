"""Cells of a table that are probably not what was intended."""

from data_helpers import create, sizes, table
from helpers import write_images


def test_csv_with_empty_extra_cells(write_csv):
    """The index column of pandas has no name; spreadsheets end rows with commas."""
    path = write_csv(*(f'{i},{line},,' if i else f',{line},,' for i, line in enumerate(table('ttee'))))
    assert sizes(create(data_csv=path)[0]) == {'train': 2, 'test': 2}
    path = write_csv(*(line + ',' * i for i, line in enumerate(table('ttee'))))
    assert sizes(create(data_csv=path)[0]) == {'train': 2, 'test': 2}


def test_csv_labels_and_groups_that_may_be_missing_values(write_csv, caplog):
    path = write_csv(*table('ttee', labels=['None', 'a']))
    assert create(data_csv=path)[1] == ['a', 'None']
    assert f"2 images of '{path}' have the label 'None', which is used as a name" in caplog.text
    caplog.clear()
    groups = ['nan', 'nan', '', 'NA', 'NA', '5', '6', '7', 'nan', '8', '9', '9']
    path = write_csv(*table('t' * 8 + 'eeee', groups=groups))
    samples = create(data_csv=path)[0]['train'].samples
    assert samples.groups.tolist() == [
        'path images/0.png',
        'path images/1.png',
        'path images/2.png',
        'NA',
        'NA',
        '5',
        '6',
        '7',
    ]
    assert '3 images of' in caplog.text
    assert "have the group 'nan' (the first in line 2), which denotes a missing value: each becomes a" in caplog.text
    assert f"2 images of '{path}' have the group 'NA', which is used as a name: if it denotes a" in caplog.text
    assert 'share a group' not in caplog.text


def test_names_that_differ_in_case_or_spaces_are_reported(write_csv, image_folder, caplog):
    labels = ['Melanoma', 'melanoma', 'e\u0301', '\u00e9', 'x  y', 'x y', 'z']
    path = write_csv('path,label', *(f'images/{i}.png,{label}' for i, label in enumerate(labels)))
    assert len(create(data_csv=path, only='train')[1]) == 7
    assert f"3 classes of '{path}' differ from others only in case, white space or Unicode form" in caplog.text
    assert "'Melanoma' and 'melanoma'" in caplog.text
    path = write_csv(*table('tttteeee', groups=['p1', 'p2', 'p3', 'p3', 'P1', 'p4', 'p5', 'p5']))
    create(data_csv=path)
    assert '1 groups of' in caplog.text
    caplog.clear()
    for split in ('train', 'test'):
        write_images(image_folder / split, classes=['A'], number=1)
    create(image_folder)
    assert f"1 classes of '{image_folder}' differ from others only in case" in caplog.text


def test_csv_columns_with_nearly_the_right_name_are_reported(write_csv, caplog):
    path = write_csv(
        *[line.replace('split', 'Split').replace('group', ' group') for line in table('ttttttee', groups='11223344')]
    )
    assert create(data_csv=path, only='train')[0]['train'].samples.groups is None
    assert f"Column 'Split' of '{path}' is not used because its name is not 'split'" in caplog.text
    assert "Column ' group' of" in caplog.text
    caplog.clear()
    create(data_csv=path, split_column='Split', group_column=' group')
    assert 'is not used' not in caplog.text
