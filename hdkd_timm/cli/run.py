"""`hdkd run SCRIPT [ARGS...]`: run a Python script with this package's models registered.

timm's validate.py, benchmark.py, inference.py and onnx_export.py have no flag to import a plugin; this command is it.
"""

import io
import os
import sys
from types import ModuleType
from typing import Sequence

from .parser import CommandParser


def add_arguments(parser: CommandParser) -> None:
    parser.usage = 'hdkd run SCRIPT [ARG ...]'
    parser.add_argument('script', metavar='SCRIPT', help='Python file')
    parser.add_argument(
        'args', nargs='*', default=(), metavar='ARG', help='arguments of the script: everything after its name'
    )


def run(parser: CommandParser, argv: Sequence[str]) -> int:
    """Run the script that is named first, with all that follows as its arguments."""
    argv = argv[1:] if argv[:1] == ['--'] else argv
    if not argv or argv[0].startswith('-'):
        parser.parse_args(argv)  # shows the help, or exits with an error
    script, *args = argv
    if not os.path.isfile(script):
        print(f"hdkd run: error: script '{script}' does not exist, or is not a file.", file=sys.stderr)
        return 1
    run_script(script, args)
    return 0


def run_script(script: str, args: Sequence[str] = ()) -> None:
    """Run a script as `python SCRIPT ARGS` would: as `__main__`, with its `sys.argv` and its folder on `sys.path`.

    Unlike `runpy.run_path` this leaves `__main__` in place (for atexit functions and processes that the script spawns)
    and passes `sys.argv[0]` as it was written. What the script raises is not caught; SystemExit has its exit code.
    """
    path = os.path.abspath(script)
    with io.open_code(path) as file:
        code = compile(file.read(), path, 'exec')
    main = ModuleType('__main__')
    main.__file__ = path
    sys.modules['__main__'] = main
    sys.argv[:] = [script, *args]
    if not getattr(sys.flags, 'safe_path', False):  # python -P, since 3.11
        sys.path[0] = os.path.dirname(os.path.realpath(script))
    exec(code, main.__dict__)
