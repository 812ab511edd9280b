"""How many items of a model are worth running together, learnt from what batches take.

Pure but for its memory: no clock, no I/O. Sizes are the powers of two up to the bound, and the bound itself.
For each the median of its latest runs counts, so that a disturbance passes by and a change is followed; what
decoding takes is known apart, for it grows with each item whatever the size.

    pace(size) = size / (decoding of them + work of the run + what a batch costs beside it)

Where the CPU runs the graph its work is the thread's own time, not that on the clock: on a busy machine a
long run is cut into by others, who in turn take from short runs when those are over. So by the clock short
runs look cheaper than they are.

The size worth taking is the smallest whose pace is near the best. Now and then another one is tried while
enough items wait for it, two batches in a row: untried sizes first, then those not seen for longest, for
`TRIES_SHARE` of the time.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Final, NamedTuple, Protocol

LATEST: Final = 15
"""Runs of a size that count."""
FEW: Final = 3
"""Of fewer runs than these a size is not yet said to be worse than the next smaller one."""
OLD: Final = 100
"""Batches after which what was known of a size gives way to the next that is measured of it."""
NEAR: Final = 0.05
"""Of sizes that differ by less in pace the smaller is taken: its items are answered sooner."""
GAIN: Final = 0.1
"""Throughput must rise by this share before anybody waits for company."""
BUSY: Final = 0.5
"""Nobody waits at less than this share of what could run: an executor that idles gains nothing by it."""
TRIES_SHARE: Final = 0.02
"""Of the executor's time for sizes that are not the best known."""
BESIDE_S: Final = 0.002
"""A batch costs an agent about this much beside its decoding and its run, in threads, commits and replies:
so tiny runs are put together even where the graph gains nothing by it."""
SLACK: Final = 1.25
"""A run may take so many times its usual seconds."""
RATE_OVER_S: Final = 1.0
"""The time constant of the rate of arrivals."""
_NEWEST_SHARE: Final = 0.1
"""Weight of the newest batch in what decoding an item takes."""
_RECENT: Final = 8
"""A batch larger than so many before it has memory to allocate; it counts until there is a better one."""
_ALIKE: Final = 0.75
"""A batch counts for a size if it has at least this share of its items."""


class Policy(Protocol):
    """What the batcher asks of each model."""

    @property
    def size(self) -> int:
        """Items that make a whole batch: more that wait bring nothing."""
        ...

    def take(self, waiting: int, left_s: float | None) -> int:
        """Items to take into a batch now, of so many that wait; the first must be answered in `left_s`."""
        ...

    def waits(self, waiting: int, delay_s: float, now: float) -> bool:
        """Whether so many items should wait up to `delay_s` for more."""
        ...

    def arrived(self, items: int, now: float) -> None:
        """So many have come."""
        ...


class Whole(NamedTuple):
    """As the manifest says: batches up to the bound, and always the whole delay."""

    size: int

    def take(self, waiting: int, left_s: float | None) -> int:
        return self.size

    def waits(self, waiting: int, delay_s: float, now: float) -> bool:
        return True

    def arrived(self, items: int, now: float) -> None:
        pass


class _Run(NamedTuple):
    """What a run of a size took."""

    seconds: float
    """On the clock."""
    work: float
    """Of them those that nobody else could have used."""


class Learnt:
    """Of one model on one provider. `ran` may be called from other threads than the rest, one at a time."""

    def __init__(self, bound: int) -> None:
        """`bound`: no batch is larger; at least 1."""
        powers = (1 << power for power in range(bound.bit_length()))
        self.sizes: Final = tuple(sorted({*powers, bound}))
        self._latest: Final = {size: deque[_Run](maxlen=LATEST) for size in self.sizes}
        self._usual: Final[dict[int, _Run | None]] = dict.fromkeys(self.sizes)
        self._measured: Final = dict.fromkeys(self.sizes, 0)
        """The number of its latest batch, from 1."""
        self._turn: Final = dict.fromkeys(self.sizes, 0)
        """The same, or that of the batch when it was last tried."""
        self._batches = 0
        self._recent: Final = deque[int](maxlen=_RECENT)
        """Items of the latest batches."""
        self._provisional: Final = set(self.sizes)
        """Sizes of which nothing is known that counts for long."""
        self._again: int | None = None
        """A size that was tried, and is to be tried once more: the first time it may have had to allocate."""
        self._read_s: float | None = None
        self._size = bound
        # Two counts, each written by one side only, in place of a lock.
        self._for_tries_s = 0.0
        self._tried_s = 0.0
        self._arrivals = 0.0
        self._arrived_at = -math.inf

    # What is measured

    def ran(self, count: int, run_s: float, read_s: float | None = None, work_s: float | None = None) -> None:
        """A batch of `count` items ran in so many seconds; `read_s` were for decoding them, if they were.

        `work_s` are those of the run that nobody else could have used, if not all.
        """
        self._batches += 1
        if read_s is not None:
            each = read_s / count
            self._read_s = (
                each if self._read_s is None else self._read_s + _NEWEST_SHARE * (each - self._read_s)
            )
        self._for_tries_s += TRIES_SHARE * (run_s + (read_s or 0.0))
        size = next((size for size in self.sizes if count <= size), None)
        if size is None or count < _ALIKE * size:
            return
        latest = self._latest[size]
        allocates = bool(self._recent) and count > max(self._recent)
        self._recent.append(count)
        provisional = allocates or read_s is None  # the engine's warm-up decodes nothing
        if provisional and latest and size not in self._provisional:
            return
        if size in self._provisional or self._batches - self._measured[size] > OLD:
            latest.clear()
        if not provisional:
            self._provisional.discard(size)
        scale = size / count
        latest.append(_Run(run_s * scale, (run_s if work_s is None else work_s) * scale))
        self._usual[size] = _Run(*map(statistics.median, zip(*latest, strict=True)))
        self._measured[size] = self._turn[size] = self._batches
        self._size = self._best()

    def arrived(self, items: int, now: float) -> None:
        self._arrivals = self._arrivals_at(now) + items
        self._arrived_at = now

    def _arrivals_at(self, now: float) -> float:
        """Those that came, weighed by how long ago."""
        return self._arrivals * math.exp(min(0.0, self._arrived_at - now) / RATE_OVER_S)

    # What was learnt

    @property
    def size(self) -> int:
        """The bound until anything was measured."""
        return self._size

    @property
    def read_s(self) -> float:
        """Seconds for decoding an item; 0 until that was measured."""
        return self._read_s or 0.0

    @property
    def run_s(self) -> dict[int, float]:
        """Seconds of a run, by size."""
        return {size: usual.seconds for size, usual in self._usual.items() if usual is not None}

    def arrivals_per_s(self, now: float) -> float:
        """Items that come per second, lately."""
        return self._arrivals_at(now) / RATE_OVER_S

    def seconds(self, count: int) -> float:
        """On the clock, for decoding and running so many; 0 until anything was measured."""
        return self._of(count).seconds + count * self.read_s

    def work(self, count: int) -> float:
        """Seconds of all work for a batch of so many."""
        return self._of(count).work + count * self.read_s + BESIDE_S

    def _of(self, count: int) -> _Run:
        """What a run of so many takes.

        Between two known sizes as the line between them, below the smallest as that one. Beyond the largest
        each item costs what it costs there.
        """
        known = {size: usual for size, usual in self._usual.items() if usual is not None}
        below = max((size for size in known if size <= count), default=None)
        above = min((size for size in known if size > count), default=None)
        if below is None:
            return _Run(0.0, 0.0) if above is None else known[above]
        low = known[below]
        if above is None:
            return _Run(*(value * count / below for value in low))
        share = (count - below) / (above - below)
        return _Run(*(start + share * (end - start) for start, end in zip(low, known[above], strict=True)))

    def _best(self) -> int:
        paces: dict[int, float] = {}
        each = math.inf  # the work for an item of the next smaller size
        for size, usual in self._usual.items():
            if usual is not None:
                work = usual.work if len(self._latest[size]) >= FEW else min(usual.work, size * each)
                paces[size] = size / (work + size * self.read_s + BESIDE_S)
                each = usual.work / size
        enough = (1 - NEAR) * max(paces.values())
        return next(size for size, pace in paces.items() if pace >= enough)

    # What to do

    def take(self, waiting: int, left_s: float | None) -> int:
        """At most the bound; the best size, now and then another one. Where the deadline leaves too little
        time for that, a size that keeps it, if there is one."""
        size = self._in_time(self._size, left_s)
        again, self._again = self._again, None
        other = again if again is not None and again <= waiting else self._untried_or_old(waiting)
        if other is None:
            return size
        cost_s = self.seconds(other) + BESIDE_S
        # What was saved up is worth one try, of two batches, not a row of them.
        self._tried_s = max(self._tried_s, self._for_tries_s - 3 * cost_s)
        affordable = other == again or self._for_tries_s - self._tried_s >= 2 * cost_s
        if not affordable or self._in_time(other, left_s) != other:
            return size
        self._again = None if other == again else other
        self._tried_s += cost_s
        self._turn[other] = self._batches  # it is over, whether its batch comes to be measured or not
        return other

    def _untried_or_old(self, waiting: int) -> int | None:
        others = [size for size in self.sizes if size <= waiting and size != self._size]
        return min(others, key=self._turn.__getitem__, default=None)

    def _in_time(self, size: int, left_s: float | None) -> int:
        if left_s is None or self.seconds(size) * SLACK <= left_s:
            return size
        smaller = [one for one in self.sizes if one < size and self.seconds(one) * SLACK <= left_s]
        if smaller:
            return smaller[-1]
        return self.sizes[0] if self.seconds(self.sizes[0]) <= left_s else size

    def waits(self, waiting: int, delay_s: float, now: float) -> bool:
        """Only if company will come, throughput rises with it, and there is enough work to need that."""
        per_s = self.arrivals_per_s(now)
        together = min(self._size, waiting + int(per_s * delay_s))
        if together <= waiting or not self._batches:
            return False
        alone = self.work(waiting) / waiting
        return alone >= (1 + GAIN) * self.work(together) / together and per_s * alone >= BUSY
