import argparse
import dataclasses
from typing import Optional, Tuple

import pytest

from hdkd_timm.config import add_arguments, from_arguments, setting


@dataclasses.dataclass
class Config:
    folder: str = setting(help='a folder')
    number: int = setting(3, 'a number', flags=('-n',))
    rate: Optional[float] = setting(None, 'a rate')
    pair: Tuple[float, float] = setting((1., 2.), 'two numbers')
    several: Tuple[int, ...] = setting((1, 2), 'some numbers')
    switch: bool = setting(False, 'on or off')
    kind: str = setting('a', 'one of two', choices=('a', 'b'))


def parse(*args, **defaults):
    parser = argparse.ArgumentParser()
    add_arguments(parser, Config, **defaults)
    return from_arguments(Config, parser.parse_args(args))


def test_defaults():
    assert parse('--folder', 'x') == Config('x')
    assert parse('--folder', 'x', number=5, switch=True) == Config('x', number=5, switch=True)
    assert parse(folder=None).folder is None


def test_flags():
    assert parse('--folder', 'x', '-n', '4', '--rate', '0.5', '--pair', '3', '4', '--several', '7', '--switch',
                 '--kind', 'b') == Config('x', 4, 0.5, (3., 4.), (7,), True, 'b')


@pytest.mark.parametrize('args', [
    [], ['--folder', 'x', '--kind', 'c'], ['--folder', 'x', '--pair', '1'], ['--folder', 'x', '--number', '1.5']])
def test_bad_flags(args, capsys):
    with pytest.raises(SystemExit):
        parse(*args)
