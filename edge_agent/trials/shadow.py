"""Jobs that the old version has answered run on the new one too, when nothing else is to be done.

What the new version says of them is compared and goes nowhere. Jobs that find no room to wait for a quiet
moment are dropped and counted: a shadow costs the devices nothing. Of a job that runs slice by slice the
first slice is compared.

A new version that carries a state has one of its own. It begins when the shadows do, and misses what is
dropped: until it has caught up with the old one's, the two may well disagree.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from edge_agent import engine, models, outcomes, streams
from edge_agent.journal import records
from edge_agent.trials import watch

MOST: Final = 64
"""Jobs that wait for a quiet moment, at most."""
MOST_BYTES: Final = 8 << 20
"""Bytes of their payloads, at most."""
LOOK_S: Final = 0.01
"""While shadows wait, a quiet moment is looked for this often."""


class Said(NamedTuple):
    """What is compared of an item."""

    ok: bool
    label: str | None


class Shadow(NamedTuple):
    """A job that the old version has answered."""

    rollout: str
    new: models.Key
    task: records.Task
    work: engine.Work
    first: int
    """Which of its items is the first that is compared."""
    old: tuple[Said, ...]
    """What the old version said of them."""


class Compared(NamedTuple):
    """What the new version said of a job beside that."""

    agreed: bool
    failed: bool
    """An item failed on the new version alone."""


def shadow(rollout: str, new: models.Key, ran: watch.Ran) -> Shadow:
    """The shadow of a job: of its items those that ran together here."""
    return Shadow(rollout, new, ran.task, ran.work, ran.first, said(ran.made))


def said(made: Sequence[outcomes.Outcome]) -> tuple[Said, ...]:
    """What is compared of outcomes."""
    return tuple(
        Said(True, one.label) if isinstance(one, outcomes.Prediction) else Said(False, None) for one in made
    )


def compare(old: Sequence[Said], new: Sequence[Said]) -> Compared:
    """Whether both versions said the same of a job."""
    pairs = list(zip(old, new, strict=True))
    return Compared(
        agreed=all(one == other for one, other in pairs),
        failed=any(one.ok and not other.ok for one, other in pairs),
    )


class Shadows:
    """The jobs that wait to be run on new versions, one after the other, in a thread of their own."""

    def __init__(
        self,
        machine: engine.Engine,
        *,
        is_quiet: Callable[[], bool],
        on_compared: Callable[[str, Compared], None],
        on_dropped: Callable[[str], None],
    ) -> None:
        """`is_quiet` says whether the agent has nothing else to do; the others are told what became of a job,
        by the rollout it is for."""
        self._engine = machine
        self._is_quiet = is_quiet
        self._on_compared = on_compared
        self._on_dropped = on_dropped
        self._waiting: deque[Shadow] = deque()
        self._bytes = 0
        self._came = asyncio.Event()

    def offer(self, one: Shadow) -> None:
        """Run this when there is time, if there is room for it until then."""
        size = len(one.work.payload)
        if len(self._waiting) >= MOST or self._bytes + size > MOST_BYTES:
            self._on_dropped(one.rollout)
            return
        self._waiting.append(one)
        self._bytes += size
        self._came.set()

    def keep(self, rollouts: set[str]) -> None:
        """Forget the jobs of all rollouts but these."""
        kept = [one for one in self._waiting if one.rollout in rollouts]
        if len(kept) < len(self._waiting):
            self._waiting = deque(kept)
            self._bytes = sum(len(one.work.payload) for one in kept)

    async def run(self) -> None:
        """Run what comes until cancelled."""
        loop = asyncio.get_running_loop()
        pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="shadow")  # no thread until then
        try:
            while True:
                one = await self._next()
                made = await loop.run_in_executor(pool, self._run, one)
                if made is None:
                    self._on_dropped(one.rollout)
                else:
                    self._on_compared(one.rollout, compare(one.old, said(made)))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    async def _next(self) -> Shadow:
        while True:
            self._came.clear()
            if not self._waiting:
                await self._came.wait()
            elif self._is_quiet():
                one = self._waiting.popleft()
                self._bytes -= len(one.work.payload)
                return one
            else:
                await asyncio.sleep(LOOK_S)

    def _run(self, one: Shadow) -> list[outcomes.Outcome] | None:
        """What the new version says, in the thread; None if it is not loaded any more."""
        try:
            model = self._engine.find(*one.new)
            items = self._engine.open(model, one.work)
            stream = streams.of(model, one.task)
            if stream is not None:
                stream = stream._replace(final=True)  # nothing is tried again here
            return self._engine.run_items(model, items, one.first, one.first + len(one.old), stream)
        except (models.UnknownModel, engine.NotLoaded):
            return None
