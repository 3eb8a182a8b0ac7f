"""YAML and JSON of others: the right values, or an error of one line that names file and line, in little memory."""

import pytest
import yaml
from processes import run

from hdkd_timm.cli import main
from hdkd_timm.utils.parsing import MAX_YAML, parse_json, parse_yaml, read_json, to_yaml

# nine lists of nine of the ones before: 400 bytes, 3.4e9 values written out
BOMB = '\n'.join(
    ['a0: &a0 [x, x, x, x, x, x, x, x, x]', *(f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 9)}]' for i in range(1, 10))]
)


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('1e-3', '1e-3'),
        ('yes', True),
        ('0.5', 0.5),
        ('1.5e3', 1500.0),
        ('1_000', 1000),
        ('0x1F', 31),
        ('-7', -7),
        ('~', None),
        ('-.inf', -float('inf')),
        ('"5"', '5'),
        # in YAML 1.1 750, 90.5, 8, a date, 2, and an error
        ('12:30', '12:30'),
        ('1:30.5', '1:30.5'),
        ('010', '010'),
        ('2026-01-31', '2026-01-31'),
        ('0b10', '0b10'),
        ('=', '='),
    ],
)
def test_plain_values(text, value):
    found = parse_yaml(f'a: {text}', 'file')['a']
    assert found == value
    assert type(found) is type(value)


def test_exponents_within_a_setting():
    """A setting has a type by which it is converted; what is in a dict has none, and is as the flag has it."""
    found = parse_yaml('lr: 1e-3\nkwargs: {a: 1e-3, b: "1e-3", c: .5e3, d: 1E+5, e: 1e}\n', 'file')
    assert found == dict(lr='1e-3', kwargs=dict(a=1e-3, b='1e-3', c=500.0, d=1e5, e='1e'))


def test_aliases_are_expanded():
    assert parse_yaml('a: &a {x: 1}\nb: {<<: *a, x: 2}\nc: &c 5\nd: [*c, *c]', 'file') == {
        'a': {'x': 1},
        'b': {'x': 2},
        'c': 5,
        'd': [5, 5],
    }


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (BOMB, r"'f' line \d: more than 65,536 characters with its aliases"),
        (f'a: &a "{"x" * 30_000}"\nb: [*a, *a, *a]', "'f' line 2: more than 65,536 characters with its aliases"),
        ('a: &a [*a]', "'f' line 1: an alias that contains itself"),
        ('a: 1\nb: 2\na: 3', "'f' line 3: duplicate key 'a', first in line 1: keep one of them"),
        ('a: 1\n"a": 3', "'f' line 2: duplicate key 'a'"),
        ('batch-size: 1\nbatch_size: 2', "'f' line 2: duplicate key 'batch_size', first in line 1"),
        ('a: {b: 1,\n b: 2}', "'f' line 2: duplicate key 'b', first in line 1"),
        ('a: [{b: {c: 1, c: 2}}]', "'f' line 1: duplicate key 'c'"),
        ('a: ' + '[' * 5000, "'f' line 1: nested deeper than 32 levels"),
        ('- ' * 5000 + 'a', "'f' line 1: nested deeper than 32 levels"),
        ('a: ' + '9' * 5000, "'f' line 1: an integer of 5000 digits, the maximum is 20"),
        ('x' * (MAX_YAML + 1), "'f': more than 65,536 characters, too many for settings"),
        ('a: !!python/object/apply:os.getcwd []', "'f' is not a YAML file .could not determine a constructor"),
        ('a: !!int foo', "'f' is not a YAML file .invalid literal"),
        ('a: 1\n---\nb: 2', "'f' is not a YAML file .expected a single document"),
        ('a: \x00', "'f' is not a YAML file .unacceptable character"),
    ],
)
def test_refused_yaml(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_yaml(text, "'f'")
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'text',
    [
        '1e-3',
        '12:30',
        '010',
        '=x',
        'on',
        '1.5e5',
        '-1e5',
        '.5e5',
        '~',
        '<<',
        '=',
        '0b1',
        '1:2.5',
        '-.inf',
        '0o7',
        '+1',
        '1.',
        '.',
        '-',
        '',
        '\n',
        'é',
        '\x1b',
        '2026-01-31',
        '1_0',
    ],
)
def test_text_round_trip(text):
    for values in ({'a': text}, {'a': {'b': text}}, {'a': [text]}):
        assert parse_yaml(to_yaml(values), 'x') == values
        assert yaml.safe_load(to_yaml(values)) == values  # for other readers too


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('{"a": 1, "a": 2}', "'f': duplicate key 'a': keep one of them"),
        ('{"x": {"a": 1, "a": 1}}', "'f': duplicate key 'a'"),
        ('{"a": NaN}', "'f': NaN is not a finite number"),
        ('[-Infinity]', "'f': -Infinity is not a finite number"),
        ('[1e999]', "'f': 1e999 is not a finite number"),
        ('[' * 100_000, "'f': nested too deeply"),
        ('{"a": ' * 100_000, "'f': nested too deeply"),
        ('9' * 5000, "'f': an integer of 5000 digits, the maximum is 20"),
        ('{"a": 1', r"'f' is not a JSON file \(Expecting ',' delimiter: line 1"),
        (b'\xff\xd8', r"'f' is not a JSON file \("),
    ],
)
def test_refused_json(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(text, "'f'")
    assert '\n' not in str(caught.value)


def test_json(tmp_path):
    (tmp_path / 'a.json').write_bytes(b'\xef\xbb\xbf{"\xc3\xa4": [1, 2.5, null, true]}')  # as Windows writes it
    assert read_json(tmp_path / 'a.json') == {'ä': [1, 2.5, None, True]}
    (tmp_path / 'b.json').write_text('{"a": 1, "a": 2}')
    with pytest.raises(ValueError, match=r"b\.json': duplicate key 'a'"):
        read_json(tmp_path / 'b.json')


# the command in little memory
LIMITED = """
import resource, sys
from hdkd_timm.cli import main
resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))
sys.exit(main())
"""


def test_bomb_in_a_config(tmp_path):
    """The whole command takes no more memory than with another error."""
    (tmp_path / 'bomb.yaml').write_text(BOMB)
    done = run('-c', LIMITED, 'train', '--config', tmp_path / 'bomb.yaml')
    assert done.returncode == 1
    assert 'with its aliases (*NAME) expanded' in done.stderr
    assert done.stderr.count('\n') == 1


def test_duplicate_key_in_a_config(tmp_path, capsys):
    (tmp_path / 'twice.yaml').write_text('lr: 1e-3\nepochs: 5\nlr: 1e-4\n')
    assert main(['train', '--config', str(tmp_path / 'twice.yaml')]) == 1
    assert capsys.readouterr().err == (
        f"hdkd train: error: '{tmp_path}/twice.yaml' line 3: duplicate key 'lr', first in line 1: keep one of them.\n"
    )
