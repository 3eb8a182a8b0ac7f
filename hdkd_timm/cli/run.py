"""`hdkd run SCRIPT [ARGS...]`: run a Python script with this package's models registered.

timm's validate.py, benchmark.py, inference.py and onnx_export.py have no flag to import a plugin; this command is it.
"""

import io
import os
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Optional, Sequence

from .parser import CommandParser

# what a fresh interpreter runs: the script's folder first on the path, this package last, unless it is found before
FRESH = (
    'import sys; folder, root, script = sys.argv[1:4]; sys.path[0] = folder; sys.path.append(root);'
    ' from hdkd_timm.cli.run import run_script; sys.path.pop(); run_script(script, sys.argv[4:])'
)


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
    folder = os.path.dirname(os.path.realpath(script))
    if not getattr(sys.flags, 'safe_path', False) and find_shadowed(folder) is not None:
        return run_fresh(folder, script, args)
    run_script(script, args)
    return 0


def find_shadowed(folder: str) -> Optional[str]:
    """A module that is imported already, and that a script in this folder would import from there.

    So has a checkout of timm its scripts beside its own `timm`, which is not the installed one.
    """
    for name, module in list(sys.modules.items()):
        spec = PathFinder.find_spec(name, [folder]) if '.' not in name and name != '__main__' else None
        if spec is None or not spec.has_location or not getattr(module, '__file__', None):
            continue  # a folder without __init__.py comes after all other modules, and built-in ones before
        if os.path.realpath(str(spec.origin)) != os.path.realpath(str(module.__file__)):
            return name
    return None


def run_fresh(folder: str, script: str, args: Sequence[str]) -> int:
    """Run the script in an interpreter that has not imported anything. On POSIX it takes the place of this process."""
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, *subprocess._args_from_interpreter_flags(), '-c', FRESH, folder, root, script, *args]  # type: ignore[attr-defined]
    if os.name == 'nt':
        return subprocess.run(command, check=False).returncode
    sys.stdout.flush()
    os.execv(sys.executable, command)


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
