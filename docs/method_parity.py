"""How close the distillation methods are to the published code: the largest errors that their tests find.

python docs/method_parity.py    # writes docs/tables/method_parity.csv
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path
from typing import Dict

import pytest

FOLDER = Path(__file__).parent
TESTS = FOLDER.parent / 'tests' / 'distillation' / 'methods'
COLUMNS = {'loss': 'loss', 'gradient': 'student_gradient', 'parameters': 'parameter_gradient', 'memory': 'memory'}


class Recorder:
    """Collects what `assert_matches` of the tests notes, for each file of tests."""

    def __init__(self):
        self.errors: Dict[str, Dict[str, float]] = defaultdict(dict)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        from method_helpers import ERRORS

        ERRORS.clear()
        yield
        found = self.errors[item.path.stem.removeprefix('test_')]
        for what, error in ERRORS:
            if what:
                found[what] = max(error, found.get(what, 0))


def main() -> None:
    recorder = Recorder()
    if pytest.main(['-q', '-k', 'published', str(TESTS)], plugins=[recorder]):
        sys.exit('A test failed: no table is written.')
    with (FOLDER / 'tables' / 'method_parity.csv').open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['method', *COLUMNS.values()])
        for method, errors in sorted(recorder.errors.items()):
            writer.writerow([method, *(f'{errors[what]:.1e}' if what in errors else '' for what in COLUMNS)])


if __name__ == '__main__':
    main()
