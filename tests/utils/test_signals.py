"""Real signals are recorded, and end a wait for a batch."""

import os
import signal
import threading
import time

import pytest

from hdkd_timm.utils.signals import STOP_SIGNALS, Interrupted, Signals


@pytest.mark.parametrize('signum', STOP_SIGNALS)
def test_signal_is_recorded(signum):
    before = [signal.getsignal(s) for s in STOP_SIGNALS]
    with Signals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), signum)
        assert signals.received == signum
    assert [signal.getsignal(s) for s in STOP_SIGNALS] == before


@pytest.mark.parametrize('signum', [signal.SIGHUP, signal.SIGUSR1])
def test_signals_that_have_another_use_are_left_alone(signum):
    """nohup has SIGHUP ignored; programs around a training use SIGUSR1."""
    seen = []
    before = signal.signal(signum, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signum)
            assert signals.received is None
        signal.signal(signum, lambda *args: seen.append(args[0]))
        with Signals() as signals:
            os.kill(os.getpid(), signum)
            assert signals.received is None
    finally:
        signal.signal(signum, before)
    assert seen == [signum]


def test_second_ctrl_c_ends_at_once():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    with Signals() as signals:  # a scheduler may ask twice
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM


def waiting_for(seconds, seen):
    """Batches, the second of which takes long to read, in code that passes over damaged images."""
    yield 1
    try:
        time.sleep(seconds)
    except Exception:
        seen.append('damaged')
    yield 2


@pytest.mark.parametrize(('may_end', 'expected'), [(True, [1]), (False, [1, 2])])
def test_signal_while_a_batch_is_waited_for(may_end, expected):
    seen = []
    with Signals() as signals:
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        assert list(signals.watch(waiting_for(60 if may_end else 0.5, seen), lambda: may_end)) == expected
        timer.join()
        assert signals.received == signal.SIGTERM
        assert seen == []
        os.kill(os.getpid(), signal.SIGHUP)  # it ends waits alone


def test_signal_between_batches():
    with Signals() as signals:
        batches = signals.watch([1, 2, 3])
        assert next(batches) == 1
        os.kill(os.getpid(), signal.SIGTERM)  # in the middle of a step
        assert list(batches) == []
    with Signals() as signals:
        assert list(signals.watch([1, 2, 3])) == [1, 2, 3]


def test_signals_in_a_thread_of_another_program():
    before = signal.getsignal(signal.SIGINT)
    found = []

    def use():
        with Signals() as signals:
            found.append(signals.received)
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert found == [None, before]


def test_interrupted():
    error = Interrupted(signal.SIGTERM, 'runs/a')
    assert str(error) == "SIGTERM, the state of run 'runs/a' is saved"
    assert (error.signum, error.signal_name, error.folder) == (15, 'SIGTERM', 'runs/a')
