"""Memory that reading threads share."""

import threading

from hdkd_timm.data.pixels import PEAK, MemoryBudget


def test_budget_bounds_what_is_read_at_once():
    budget, lock = MemoryBudget(10 * PEAK), threading.Lock()
    now, most = [], []

    def read(pixels):
        with budget.reserve(pixels):
            with lock:
                now.append(pixels)
                most.append((sum(now), len(now)))
            threading.Event().wait(0.005)
            with lock:
                now.remove(pixels)

    threads = [threading.Thread(target=read, args=(pixels,)) for pixels in [4, 4, 4, 3, 25, 1, 9] * 6]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(most) == 42
    assert not budget.taken
    assert all(total <= 10 or number == 1 for total, number in most)  # one that is too large goes alone
