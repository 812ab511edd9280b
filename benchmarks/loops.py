"""As many calls as go into a time, from one thread or several."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable
from typing import NamedTuple

Call = Callable[[], int]
"""Does something, and says with how many items."""


class Pace(NamedTuple):
    """What came of calls."""

    items_per_s: float
    took_s: list[float]
    """Each call's seconds, in order of their length."""

    def ms(self, share: float) -> float:
        """The milliseconds below which `share` of the calls stayed."""
        return 1000 * self.took_s[min(len(self.took_s) - 1, int(share * len(self.took_s)))]


def pace(call: Call, seconds: float, threads: int = 1) -> Pace:
    """Call, in each thread at least once, until so many seconds are over."""
    began = time.perf_counter()
    until = began + seconds

    def loop() -> tuple[int, list[float]]:
        items = 0
        took: list[float] = []
        while not took or time.perf_counter() < until:
            start = time.perf_counter()
            items += call()
            took.append(time.perf_counter() - start)
        return items, took

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        done = [one.result() for one in [pool.submit(loop) for _ in range(threads)]]
    elapsed = time.perf_counter() - began
    return Pace(sum(items for items, _ in done) / elapsed, sorted(one for _, took in done for one in took))
