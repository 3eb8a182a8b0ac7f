"""`hdkd run SCRIPT [ARGS...]`: run a Python script with this package's models registered.

timm's validate.py, benchmark.py, inference.py and onnx_export.py have no flag to import a plugin; this is it.
"""
import io
import os
import sys
from types import ModuleType
from typing import Sequence


def run_script(script: str, args: Sequence[str] = ()) -> None:
    """Run a script as `python SCRIPT ARGS` would: as `__main__`, with its `sys.argv` and its folder on `sys.path`.

    Unlike `runpy.run_path` it leaves `__main__` in place (for atexit functions and processes that the script spawns)
    and gives `sys.argv[0]` as it was written. What the script raises comes through, SystemExit with its exit code.
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
