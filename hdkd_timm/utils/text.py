"""Text of others, such as names of classes and files, displayed safely: control characters are shown, not executed."""

import logging
import re
from typing import Any

# control characters, including terminal escapes (ESC, CSI), characters that change the direction of writing or are
# invisible (Unicode TR 36, 2.4), other line separators, and surrogates, which stand for bytes that are not UTF-8
_UNSAFE = re.compile(
    '[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff'
    '\U000e0000-\U000e007f]'
)

WARNING = 'Warning: '


def printable(text: str, lines: bool = False) -> str:
    """Escape characters that control a terminal or the direction of writing, as \\x1b, \\u202e and so on.

    Args:
        text: The text.
        lines: Keep tabs and newlines, for a message rather than a name.
    """
    text = _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)
    return text if lines else text.replace('\n', '\\n').replace('\t', '\\t')


class PrintableStream:
    """A text stream that escapes everything with `printable`.

    Args:
        stream: The underlying stream.
    """

    def __init__(self, stream: Any):
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(printable(text, lines=True))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class PrintableFormatter(logging.Formatter):
    """Formats log messages with `printable`; warnings start with `WARNING`."""

    def format(self, record: logging.LogRecord) -> str:
        text = printable(super().format(record), lines=True)
        return f'{WARNING}{text}' if record.levelno == logging.WARNING else text
