import argparse
import dataclasses
import math
import re
from typing import Any, Dict, Optional, Tuple

import pytest
import yaml

from hdkd_timm.utils.config import (
    KeyValues,
    NestedKeyValues,
    add_arguments,
    check_settings,
    check_values,
    flag,
    from_arguments,
    given_settings,
    read_yaml,
    setting,
    to_yaml,
)


@dataclasses.dataclass
class Config:
    folder: str = setting(help='a folder')
    number: int = setting(3, 'a number', flags=('-n',))
    rate: Optional[float] = setting(None, 'a rate')
    pair: Tuple[float, float] = setting((1.0, 2.0), 'two numbers')
    several: Tuple[int, ...] = setting((1, 2), 'some numbers')
    switch: bool = setting(False, 'on or off')
    kind: str = setting('a', 'one of two', choices=('a', 'b'))
    logs: Tuple[str, ...] = setting((), 'some of two', choices=('x', 'y'))
    arguments: Dict[str, Any] = setting({}, 'any', nargs='*', action=KeyValues, metavar='NAME=VALUE')
    share: Optional[float] = setting(None, 'a number with bounds', above=0, at_most=1)
    counts: Tuple[int, ...] = setting((1,), 'numbers with bounds', at_least=1, below=10)


def parse(*args, **defaults):
    parser = argparse.ArgumentParser()
    add_arguments(parser, Config, **defaults)
    return from_arguments(Config, parser.parse_args(args), **defaults)


def test_key_values_of_a_repeated_flag_are_merged():
    assert parse('--folder', 'x', '--arguments', 'a=1', 'b=2', '--arguments', 'c=3').arguments == dict(a=1, b=2, c=3)
    assert parse('--folder', 'x', '--arguments', 'a=1', '--arguments').arguments == {}  # the flag alone: none
    with pytest.raises(SystemExit):
        parse('--folder', 'x', '--arguments', 'a=1', '--arguments', 'a=2')
    flags = argparse.ArgumentParser()
    flags.add_argument('--method-args', nargs='+', action=NestedKeyValues, metavar='METHOD.NAME=VALUE')
    args = ['--method-args', 'kd.tau=2', '--method-args', 'kd.weight=3', 'at.weight=4']
    assert flags.parse_args(args).method_args == {'kd': {'tau': 2, 'weight': 3}, 'at': {'weight': 4}}


def test_defaults():
    assert parse('--folder', 'x') == Config('x')
    assert parse('--folder', 'x', number=5, switch=True) == Config('x', number=5, switch=True)
    assert parse(folder=None).folder is None


def test_flags():
    assert parse(
        '--folder',
        'x',
        '-n',
        '4',
        '--rate',
        '0.5',
        '--pair',
        '3',
        '4',
        '--several',
        '7',
        '--switch',
        '--kind',
        'b',
        '--logs',
        'y',
        'x',
    ) == Config('x', 4, 0.5, (3.0, 4.0), (7,), True, 'b', ('y', 'x'))
    assert not parse('--folder', 'x', '--no-switch', switch=True).switch
    assert flag('two_words') == '--two-words'


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ([], 'required: --folder'),
        (['--kind', 'c'], "--kind: invalid choice: 'c'"),
        (['--pair', '1'], '--pair: expected 2 arguments'),
        (['--number', '1.5'], "-n/--number: invalid int value: '1.5'"),
        (['--arguments', 'a'], '--arguments: expected NAME=VALUE, got a'),
        (['--arguments', '=1'], '--arguments: expected NAME=VALUE, got =1'),
    ],
)
def test_bad_flags(args, message, capsys):
    with pytest.raises(SystemExit):
        parse(*(['--folder', 'x'] if args else []), *args)
    assert message in capsys.readouterr().err


def test_key_values():
    found = parse(
        '--folder',
        'x',
        '--arguments',
        'number=5',
        'rate=1e-3',
        'dims=(8,16)',
        'words=a b',
        'none=None',
        'on=True',
        'equals=a=b',
        'empty=',
        'code=__import__("os")',
        "quoted='5'",
        'set={[1]}',
    ).arguments
    assert found == {
        'number': 5,
        'rate': 1e-3,
        'dims': (8, 16),
        'words': 'a b',
        'none': None,
        'on': True,
        'equals': 'a=b',
        'empty': '',
        'code': '__import__("os")',
        'quoted': '5',
        'set': '{[1]}',
    }
    assert parse('--folder', 'x', '--arguments').arguments == {}
    parse('--folder', 'x').arguments['a'] = 1
    assert parse('--folder', 'x').arguments == {}  # a default of its own for each


def test_help_shows_the_defaults(capsys):
    with pytest.raises(SystemExit):
        parse('--help')
    shown = ' '.join(capsys.readouterr().out.split())
    assert 'a number (default: 3)' in shown
    assert 'two numbers (default: 1.0 2.0)' in shown
    assert re.search(r'a rate --', shown)  # no default to show
    assert re.search(r'on or off --', shown)


def test_help_tells_one_default(capsys):
    @dataclasses.dataclass
    class Named:
        name: Optional[str] = setting(None, 'a name (default: the date)')

    for defaults, shown in (({}, 'a name (default: the date) '), ({'name': 'x'}, 'a name (default: x) ')):
        parser = argparse.ArgumentParser()
        add_arguments(parser, Named, **defaults)
        parser.print_help()
        assert shown in ' '.join(capsys.readouterr().out.split()) + ' '


@dataclasses.dataclass
class Base:
    first: int = setting(1, 'one', group='early')
    second: int = setting(2, 'two')
    third: int = setting(3, 'three', group='late', common=True)


@dataclasses.dataclass
class Derived(Base):
    fourth: int = setting(4, 'four')
    second: int = setting(5, 'two again', group='middle')
    fifth: int = setting(5, 'five')


def test_groups_in_the_help():
    """A field is in the group that is named at or above it in its class; that of a subclass replaces its parent's."""
    parser = argparse.ArgumentParser()
    arguments = add_arguments(parser, Derived, exclude=['fifth'], titles=['late', 'unused', 'middle'])
    assert list(arguments) == ['first', 'second', 'third', 'fourth']
    sections = re.findall(r'(?m)^([a-z]+):\n((?:  .*\n?)+)', parser.format_help())
    assert [(title, re.findall(r'--(\w+)', lines)) for title, lines in sections if title != 'options'] == [
        ('late', ['third']),
        ('middle', ['second']),
        ('early', ['first']),
        ('settings', ['fourth']),
    ]


def test_only_given_flags_are_in_the_result():
    parser = argparse.ArgumentParser()
    add_arguments(parser, Base)
    args = parser.parse_args(['--second', '2'])
    assert given_settings(Base, args) == {'second': 2}
    assert from_arguments(Base, args, first=7, second=8) == Base(first=7, second=2)


def write(tmp_path, text):
    path = tmp_path / 'settings.yaml'
    path.write_text(text)
    return path


def test_yaml(tmp_path):
    path = write(
        tmp_path,
        '# a comment\nfolder: x\nnumber: 5\nrate: 1e-3\npair: [1, 2.5]\nseveral: [7]\nswitch: true\n'
        'kind: b\nlogs: [x]\narguments: {dims: [8, 16], rate: 0.5}\n',
    )
    found = check_settings(read_yaml(path), [Config], 'file')
    assert found == dict(
        folder='x',
        number=5,
        rate=1e-3,
        pair=(1.0, 2.5),
        several=(7,),
        switch=True,
        kind='b',
        logs=('x',),
        arguments={'dims': [8, 16], 'rate': 0.5},
    )
    assert isinstance(found['rate'], float)
    assert [type(v) for v in found['pair']] == [float, float]
    assert isinstance(found['several'], tuple)
    assert read_yaml(write(tmp_path, 'two-words: 1\n')) == {'two_words': 1}  # as the flags have them


def test_yaml_there_and_back(tmp_path):
    config = Config('x', rate=1e-5, several=(3,), arguments={'dims': (8, 16), 'name': 'a'}, logs=('x', 'y'))
    found = check_settings(read_yaml(write(tmp_path, to_yaml(config))), [Config], 'file')
    assert Config(**found) == dataclasses.replace(config, arguments={'dims': [8, 16], 'name': 'a'})
    assert list(yaml.safe_load(to_yaml(config)))[:3] == ['folder', 'number', 'rate']


@pytest.mark.parametrize(
    ('name', 'value', 'expected'),
    [
        ('rate', None, None),
        ('rate', 2, 2.0),
        ('rate', '1E-4', 1e-4),
        ('pair', (1, 2), (1.0, 2.0)),
        ('several', 5, (5,)),
        ('logs', 'x', ('x',)),
        ('several', [], ()),
        ('arguments', {}, {}),
    ],
)
def test_values_that_are_converted(name, value, expected):
    found = check_settings({name: value}, [Config], 'file')
    assert found == {name: expected}
    assert type(found[name]) is type(expected)


@pytest.mark.parametrize(
    ('name', 'value', 'message'),
    [
        ('wings', 1, "Unknown setting 'wings' in file."),
        ('numbers', 1, "Unknown setting 'numbers' in file: did you mean number?"),
        ('number', 1.5, "Setting 'number' in file must be int, got 1.5."),
        ('number', '5', "Setting 'number' in file must be int, got '5'."),
        ('number', True, "Setting 'number' in file must be int, got True."),
        ('number', None, "Setting 'number' in file must be int, got None."),
        ('rate', 'fast', "Setting 'rate' in file must be Optional[float], got 'fast'."),
        ('rate', False, "Setting 'rate' in file must be Optional[float], got False."),
        ('rate', [1.0], "Setting 'rate' in file must be Optional[float], got [1.0]."),
        ('pair', [1], "Setting 'pair' in file must be Tuple[float, float], got [1]."),
        ('pair', [1, 2, 3], "Setting 'pair' in file must be Tuple[float, float], got [1, 2, 3]."),
        ('pair', [1, 'x'], "Setting 'pair' in file must be Tuple[float, float], got [1, 'x']."),
        ('several', ['x'], "Setting 'several' in file must be Tuple[int, ...], got ['x']."),
        ('switch', 1, "Setting 'switch' in file must be bool, got 1."),
        ('switch', 'yes', "Setting 'switch' in file must be bool, got 'yes'."),
        ('folder', 5, "Setting 'folder' in file must be str, got 5: put it in quotes."),
        ('arguments', [1], "Setting 'arguments' in file must be Dict[str, Any], got [1]."),
        ('kind', 'c', "Setting 'kind' in file must be one of a, b, got 'c'."),
        ('logs', ['x', 'z'], "Setting 'logs' in file must be one of x, y, got 'z'."),
        ('share', 2, "Setting 'share' in file must be above 0 and at most 1, got 2.0."),
        ('counts', [5, 10], "Setting 'counts' in file must be 1 or more and below 10, got 10."),
    ],
)
def test_bad_settings(name, value, message):
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        check_settings({'kind': 'a', name: value}, [Config], 'file')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(kind='c'), "--kind must be one of a, b, got 'c'."),
        (dict(logs=('x', 'z')), "--logs must be one of x, y, got 'z'."),
        *((dict(share=v), f'--share must be above 0 and at most 1, got {v}.') for v in (0.0, 1.5, math.nan, math.inf)),
        *((dict(counts=(5, v)), f'--counts must be 1 or more and below 10, got {v}.') for v in (0, 10)),
    ],
)
def test_values_out_of_choices_and_bounds(changes, message):
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        check_values(Config('x', **changes))


@pytest.mark.parametrize(
    'changes',
    [{}, dict(kind='b', logs=('y', 'x')), dict(share=1e-9), dict(share=1.0), dict(counts=(1, 9)), dict(counts=())],
)
def test_values_within_choices_and_bounds(changes):
    check_values(Config('x', **changes))


def test_settings_of_several_dataclasses():
    @dataclasses.dataclass
    class Other:
        extra: float = setting(1.0, 'more')

    assert check_settings({'extra': 2, 'number': 1}, [Config, Other], 'file') == {'extra': 2.0, 'number': 1}
    with pytest.raises(ValueError, match="Unknown setting 'extra'"):
        check_settings({'extra': 2}, [Config], 'file')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a: [1', 'YAML file (while parsing'),
        ('a: b: c', 'YAML file (mapping values are not allowed here'),
        ('a: !!python/object/apply:os.getcwd []', 'YAML file (could not determine a constructor'),
        ('- a\n- b', 'must hold settings, one NAME: VALUE per line.'),
        ('', 'must hold settings, one NAME: VALUE per line.'),
        ('words', 'must hold settings, one NAME: VALUE per line.'),
        ('1: 2', 'must hold settings, one NAME: VALUE per line.'),
    ],
)
def test_no_yaml(text, message, tmp_path):
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=f"^'{re.escape(str(path))}' .*{re.escape(message)}") as caught:
        read_yaml(path)
    assert '\n' not in str(caught.value)


def test_no_file(tmp_path):
    (tmp_path / 'image.yaml').write_bytes(b'\xff\xd8\xff\xe0')
    with pytest.raises(ValueError, match=r"image\.yaml' is not a YAML file"):
        read_yaml(tmp_path / 'image.yaml')
    for path in (tmp_path / 'nowhere.yaml', tmp_path):
        with pytest.raises(FileNotFoundError, match=f"Config file '{path}' does not exist, or is not a file"):
            read_yaml(path)
