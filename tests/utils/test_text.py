"""Text of others cannot control a terminal."""

import logging

import pytest
from helpers import write_images
from processes import hdkd

from hdkd_timm.cli import main
from hdkd_timm.utils.text import PrintableFormatter, printable


@pytest.mark.parametrize(
    ('text', 'shown'),
    [
        ('\x1b[31mred\x07', '\\x1b[31mred\\x07'),
        ('\x9b2J', '\\x9b2J'),
        ('a\u202egnp.exe', 'a\\u202egnp.exe'),
        ('a\nb\tc\r', 'a\\nb\\tc\\r'),
        ('\u2028', '\\u2028'),
        ('\udcff', '\\udcff'),
        ('a\u200bb', 'a\\u200bb'),
        *((text, text) for text in ('plain', 'C:\\x1b', 'é ß', '膠質腫', 'שלום', '👩\u200d⚕️', '<b>&', '')),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown


def test_printable_lines():
    assert printable('a\tb\nc\x1b[0m\r\n', lines=True) == 'a\tb\nc\\x1b[0m\\r\n'


def test_commands_print_no_escapes(tmp_path, capsys):
    """Class and file names of a data set as a terminal gets them, on both streams."""
    evil = 'mel\x1b]0;title\x07\x1b[2J\u202e'
    write_images(tmp_path / 'data' / 'train', classes=[evil, 'b'], number=2)
    (tmp_path / 'data' / 'train' / evil / 'broken\x1b[31m.png').write_bytes(b'broken')
    # a process of its own, as tests redirect the log
    done = hdkd('check', tmp_path / 'data')
    assert done.returncode == 0
    assert main(['predict', str(tmp_path / f'no{evil}'), str(tmp_path)]) == 1
    for output in (done.stdout + done.stderr, ''.join(capsys.readouterr())):
        assert '\\x1b]0;title\\x07' in output
        for unsafe in ('\x1b', '\x07', '\u202e'):
            assert unsafe not in output


def test_log_messages(capsys):
    record = logging.LogRecord('hdkd_timm', logging.INFO, '', 0, 'class %s\nnext', ('\x1b[1m',), None)
    formatter = PrintableFormatter('%(message)s')
    assert formatter.format(record) == 'class \\x1b[1m\nnext'
    record.levelno = logging.WARNING
    assert formatter.format(record) == 'Warning: class \\x1b[1m\nnext'
