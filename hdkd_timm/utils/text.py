"""Text of others, such as names of classes and files, where a person reads it: what it holds shows and does nothing."""
import logging
import re
from typing import Any

# control characters, also of terminals (ESC, CSI), those that change the direction or hide (Unicode TR 36, 2.4), other
# ends of lines, and halves of characters, which stand for bytes of file names that are no UTF-8
_SILENT = re.compile(
    '[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff'
    '\U000e0000-\U000e007f]')


def printable(text: str, lines: bool = False) -> str:
    """Text in which characters that control a terminal or the direction of writing show as \\x1b, \\u202e and so on.

    Args:
        text: Any.
        lines: Leave tabs and ends of lines alone, which are those of a message, not of a name.
    """
    text = _SILENT.sub(lambda found: ascii(found[0])[1:-1], text)
    return text if lines else text.replace('\n', '\\n').replace('\t', '\\t')


class PrintableStream:
    """A text stream to which all is written as `printable` has it.

    Args:
        stream: Where it goes.
    """

    def __init__(self, stream: Any):
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(printable(text, lines=True))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class PrintableFormatter(logging.Formatter):
    """Log messages as `printable` has them."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), lines=True)
