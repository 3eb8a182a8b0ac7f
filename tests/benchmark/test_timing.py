import torch

from hdkd_timm.benchmark import timing
from hdkd_timm.benchmark.timing import measure_latency, take_turns
from hdkd_timm.utils import memory

CPU = torch.device('cpu')


class Clock:
    """A clock that forms advance by the seconds that they take."""

    now = 0.0

    def __call__(self):
        return self.now

    def form(self, calls, name, *seconds):
        """A form whose calls take these seconds, and then always the last of them."""
        left = list(seconds)

        def call():
            calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


def test_median_after_warm_up():
    clock, calls = Clock(), []
    forms = {'a': clock.form(calls, 'a', 90, 2, 1, 7, 3), 'b': clock.form(calls, 'b', 50, 60, 4)}
    assert take_turns(forms, 3, CPU, clock=clock) == {'a': 3, 'b': 4}
    assert ''.join(calls) == 'aabb' + 3 * 'ab'


def test_forms_that_keep_memory_come_last(monkeypatch):
    clock, calls = Clock(), []
    monkeypatch.setattr(memory, 'keep_freed_memory', lambda keep=True: calls.append('+' if keep else '-') or True)
    forms = {'a': clock.form(calls, 'a', 1), 'b': clock.form(calls, 'b', 2, 2, 9, 9, 2)}
    assert take_turns(forms, 3, CPU, kept=('a',), clock=clock)['a'] == 1
    assert ''.join(calls) == 'aabb' + 3 * 'b+aaa-'


def test_quick_forms_are_called_several_times():
    clock, calls = Clock(), []
    assert take_turns({'quick': clock.form(calls, 'q', 2**-5)}, 2, CPU, clock=clock) == {'quick': 2**-5}
    assert len(calls) == 2 + 2 * 9  # to 0.3 seconds


def test_latency(monkeypatch):
    """Of single calls after two for warm-up, also of those that keep memory."""
    clock, calls = Clock(), []
    monkeypatch.setattr(timing, 'LATENCY_CALLS', 21)
    monkeypatch.setattr(memory, 'keep_freed_memory', lambda keep=True: calls.append('+' if keep else '-') or True)
    forms = {
        'a': clock.form(calls, 'a', 99, 99, *range(21)),
        'b': clock.form(calls, 'b', 99, 5),
    }
    assert measure_latency(forms, 1, CPU, kept=('b',), clock=clock) == {'a': (10, 19), 'b': (5, 5)}
    assert ''.join(calls) == 23 * 'a' + '+' + 23 * 'b' + '-'
