"""The queues as this hub knows them: their settings, read each second, and how fast tasks come to them.

Asked for each submission and each placement, so that nothing here asks the database. Of a queue without
settings nothing is looked up at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from cloud_hub.store import pool
from cloud_hub.store import queues as queue_store
from shared import jobs

log: Final = logging.getLogger(__name__)

EVERY_S: Final = 1.0
"""How often the settings are read: so late at most another hub's change is seen here."""
BURST_S: Final = 1.0
"""What a queue takes in so long, it takes at once."""
LATELY_S: Final = 10.0
"""The time over which rates are averaged."""
_AT_REST: Final = 0.001
"""A rate below this counts as none."""
_MANY: Final = 1000
"""Rates that are kept before those that have come to rest are forgotten."""


class TooFast(Exception):
    """A queue takes only so many tasks a second."""

    def __init__(self, queue: str, per_second: float, retry_after_s: float) -> None:
        super().__init__(f"queue {queue!r} takes {per_second:,g} tasks a second")
        self.queue = queue
        self.per_second = per_second
        self.retry_after_s = retry_after_s


class Bucket:
    """A token bucket that a large batch may overdraw, once it is full, so that none is too large for ever.

    Over time no more is taken than `per_second`, whatever the sizes. Times are monotonic seconds.
    """

    def __init__(self, now: float) -> None:
        self._at = now
        self._spent = 0.0
        """Tokens less than full."""

    def take(self, count: int, per_second: float, now: float) -> float:
        """Take `count` tokens and return 0, or take nothing and return in how many seconds they are there."""
        burst = max(1.0, per_second * BURST_S)
        self._spent = max(0.0, self._spent - (now - self._at) * per_second)
        self._at = now
        lacking = self._spent + min(count, burst) - burst
        if lacking > 1e-9:
            return lacking / per_second
        self._spent += count
        return 0.0

    def give_back(self, count: int) -> None:
        """`count` tokens were taken for nothing."""
        self._spent -= count


class Rate:
    """How many a second, lately: an exponentially weighted mean."""

    __slots__ = ("_at", "_per_s")

    def __init__(self) -> None:
        self._at = 0.0
        self._per_s = 0.0

    def add(self, count: int, now: float) -> None:
        self._per_s = self.at(now) + count / LATELY_S
        self._at = now

    def at(self, now: float) -> float:
        return self._per_s * math.exp((self._at - now) / LATELY_S)


class Queues:
    """The settings of the queues, and what is measured of them here."""

    def __init__(self, connections: pool.Pool, hubs: Callable[[], int] = lambda: 1) -> None:
        """`hubs` says how many hubs are alive: each takes its part of what a queue takes in a second."""
        self._connections = connections
        self._hubs = hubs
        self._settings: Mapping[str, queue_store.Queue] = {}
        self._bounded: frozenset[str] = frozenset()
        self._limited: tuple[str, ...] = ()
        self._buckets: dict[str, Bucket] = {}
        self._rates: dict[str, Rate] = {}
        self._room = _MANY

    async def run(self) -> None:
        """Read the settings again and again until cancelled; while PostgreSQL is away, the last ones hold."""
        while True:
            try:
                await self.refresh()
            except pool.UNAVAILABLE as error:
                log.warning("the settings of the queues are as they were: %s", error)
            await asyncio.sleep(EVERY_S)

    async def refresh(self) -> None:
        """Read the settings now. Raises pool.UNAVAILABLE."""
        async with self._connections.connection() as connection:
            self.know(await queue_store.all_of_them(connection))

    def know(self, settings: Mapping[str, queue_store.Queue]) -> None:
        """These are the settings, by name."""
        self._settings = settings
        self._bounded = frozenset(name for name, one in settings.items() if one.max_queued is not None)
        self._limited = tuple(name for name, one in settings.items() if one.max_running is not None)
        paced = {name for name, one in settings.items() if one.max_per_second is not None}
        for name in self._buckets.keys() - paced:
            del self._buckets[name]

    def find(self, name: str) -> queue_store.Queue:
        """The settings of a queue, be they all defaults."""
        return self._settings.get(name) or queue_store.Queue(name=name)

    def weight(self, name: str) -> float:
        found = self._settings.get(name)
        return 1.0 if found is None else found.weight

    def max_running(self, name: str) -> int | None:
        found = self._settings.get(name)
        return None if found is None else found.max_running

    def limited(self) -> tuple[str, ...]:
        """The queues of which only so many tasks may run."""
        return self._limited

    def bounded(self, names: Iterable[str]) -> dict[str, queue_store.Queue]:
        """Those among `names` in which only so many tasks may wait."""
        if not self._bounded:
            return {}
        return {name: self._settings[name] for name in self._bounded.intersection(names)}

    def with_priority(self, job: jobs.Job) -> jobs.Job:
        """`job`, with its queue's priority if it names none itself."""
        found = self._settings.get(job.metadata.queue)
        if found is None or found.default_priority is None or job.metadata.priority is not None:
            return job
        metadata = msgspec.structs.replace(job.metadata, priority=found.default_priority)
        return msgspec.structs.replace(job, metadata=metadata)

    @contextlib.contextmanager
    def submitting(self, submitted: Sequence[jobs.Job]) -> Iterator[None]:
        """Tasks come to their queues in this block; one that is left by an error has brought none.

        Raises TooFast, of all of them, if one of their queues is to get no more just now.
        """
        counts: Mapping[str, int] = (
            {submitted[0].metadata.queue: 1}
            if len(submitted) == 1
            else Counter(job.metadata.queue for job in submitted)
        )
        taken: list[tuple[Bucket, int]] = []
        try:
            for name, count in counts.items():
                if (found := self._settings.get(name)) is not None and found.max_per_second is not None:
                    taken.append((self._take(found.max_per_second, name, count), count))
            yield
        except BaseException:
            for bucket, count in taken:
                bucket.give_back(count)
            raise
        now = time.monotonic()
        for name, count in counts.items():
            self._rate(name, now).add(count, now)

    def _take(self, per_second: float, name: str, count: int) -> Bucket:
        ours = per_second / max(1, self._hubs())
        now = time.monotonic()
        bucket = self._buckets.setdefault(name, Bucket(now))
        if wait_s := bucket.take(count, ours, now):
            raise TooFast(name, per_second, wait_s)
        return bucket

    def _rate(self, name: str, now: float) -> Rate:
        if name not in self._rates and len(self._rates) >= self._room:
            self._rates = {name: rate for name, rate in self._rates.items() if rate.at(now) >= _AT_REST}
            self._room = max(_MANY, 2 * len(self._rates))
        return self._rates.setdefault(name, Rate())

    def rates(self) -> dict[str, float]:
        """Tasks that were submitted to this hub per second, lately, by queue."""
        now = time.monotonic()
        return {name: found for name, rate in self._rates.items() if (found := rate.at(now)) >= _AT_REST}

    def settings(self) -> Mapping[str, queue_store.Queue]:
        """The queues that have settings, by name."""
        return self._settings
