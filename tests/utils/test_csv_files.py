"""CSV files that spreadsheets open and that come back as they were."""

import csv

import pytest

from hdkd_timm.utils.csv_files import check_table_file, raw_cell, read_rows, safe_cell, write_rows

FORMULAS = ["=cmd|' /C calc'!A0", '+1+1', '-2+3', '@SUM(A1)', '\t=1', '\r=1', '\n=1', '＝1+1', '-', '+ve', '-ve', '=']


OTHERS = ['a', "'", "''", "'a'", "it's", '', ' =1', 'a=b', '/data/=x.png', '-1', '+0.5', '-1e-5', '-inf', "'-1", '膠']


@pytest.mark.parametrize('text', [*FORMULAS, *OTHERS, *(f"'{text}" for text in FORMULAS), "'''=a"])
def test_cell_round_trip(text):
    cell = safe_cell(text)
    assert raw_cell(cell) == text
    assert cell[:1] not in '=+-@\t\r\n＝' or not cell or cell == text in OTHERS
    assert (cell != text) == (text.lstrip("'") in [*FORMULAS, '=a'])


def test_numbers_stay():
    assert [safe_cell(value) for value in (-1, -0.5, None, True)] == [-1, -0.5, None, True]


def test_rows_round_trip(tmp_path):
    names = [*FORMULAS, *OTHERS]
    rows = [{'path': name, '=column': name, 'value': -0.5} for name in names]
    write_rows(rows, tmp_path / 'a.csv')
    with (tmp_path / 'a.csv').open(newline='', encoding='utf-8') as file:
        cells = list(csv.reader(file))
    assert cells[0] == ['path', "'=column", 'value']
    assert cells[1] == ["'=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0", '-0.5']  # as a spreadsheet gets it
    assert read_rows(tmp_path / 'a.csv') == [dict(row, value='-0.5') for row in rows]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a,b\n1,2\n3\n', r"a\.csv' is damaged \(line 3: 1 cells, expected 2\)"),
        ('a,b\n1,2,3\n', 'line 2: 3 cells, expected 2'),
        ('a,a\n1,2\n', "two columns are named 'a'"),
        ('a,b\n"1,2\n', 'unexpected end of data'),
    ],
)
def test_damaged_rows(text, message, tmp_path):
    (tmp_path / 'a.csv').write_text(text)
    with pytest.raises(ValueError, match=message):
        read_rows(tmp_path / 'a.csv')


@pytest.mark.parametrize('name', ['a.csv', 'a.CSV', 'a.txt', 'a', 'fold.1', 'a.jsonl'])
def test_endings_of_a_table(name, tmp_path):
    """One without a meaning of its own is fine: the file is CSV all the same."""
    check_table_file(tmp_path / name, '--out', ('.jsonl',))


@pytest.mark.parametrize('suffix', ['.xlsx', '.tsv', '.json', '.jsonl', '.csv.gz'])
def test_a_table_is_not_named_as_another_format(suffix, tmp_path):
    with pytest.raises(ValueError, match=r'of --out cannot be written as \.\w+: use \.csv\.'):
        check_table_file(tmp_path / f'a{suffix}', '--out')
