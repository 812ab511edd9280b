"""One task of many items on its way through the model, a batch at a time.

    slice -> rows -> (now and then, and where it stops) journal: rows and checkpoint in one commit

Between two slices it can be stopped: by a word from outside, by its deadline or its time-out, or by an item
on which the model fails. What was done stays done: the task goes on from there, here or elsewhere.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import enum
import time
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, TypeVar, TypeVarTuple

from edge_agent import clock, engine, models, outcomes, streams, verdicts
from edge_agent.journal import journal, records
from edge_agent.oip import answers
from edge_agent.trials import watch

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

COMMIT_ITEMS: Final = 1024
"""Items whose rows wait for their commit, at most, and those of one slice."""
COMMIT_BYTES: Final = 1 << 18
"""Bytes of their outputs, likewise."""
COMMIT_S: Final = 2.0
"""How long they wait, at most. A commit costs some 10 KB of flash beside what is in it, so a slow model may
not commit each of its slices; what it loses when the agent dies is this much work."""


class Stop(enum.Enum):
    """Why a task stopped before its last item."""

    CANCEL = enum.auto()
    """Somebody wants it no more."""
    PREEMPT = enum.auto()
    """The hub wants it back, for something more urgent."""
    LEAVE = enum.auto()
    """The agent stops."""
    EXPIRED = enum.auto()
    """Its deadline passed."""
    FAILED = enum.auto()
    """It took too long, or the model failed on an item; another attempt may do better."""
    ROOM = enum.auto()
    """Another model needs the memory of this one."""
    GONE = enum.auto()
    """It is not in the journal any more: the hub's result came first."""


class End(NamedTuple):
    """How far a task came."""

    task: records.Task
    """Under its newest attempt, with the items that are done."""
    rows: list[records.ResultRow]
    """Of those of them that are not committed yet."""
    run: verdicts.Run
    """The attempt as a whole."""
    stop: Stop | None
    """None: it came to its end."""
    error: str = ""
    """Of FAILED, why."""


class _Broken(NamedTuple):
    """An item of a slice on which the model failed."""

    position: int
    reason: str


def needed(model: models.Model, task: records.Task) -> bool:
    """Whether a task that was taken alone runs slice by slice: it has more items than one batch, or goes on
    from a checkpoint. What is to be answered with tensors is kept to one batch when it comes."""
    return task.items_done > 0 or (task.items > model.max_batch and not answers.here(task))


class Slices:
    """Runs one task from its checkpoint on."""

    def __init__(
        self,
        task: records.Task,
        model: models.Model,
        machine: engine.Engine,
        pool: concurrent.futures.Executor,
        book: journal.Journal,
        offset: clock.Offset,
        *,
        asked: Callable[[bytes], Stop | None],
        moved: Callable[[bytes, int], records.Task],
        between: Callable[[records.Task], Awaitable[None]],
        ran: Callable[[models.Model, watch.Ran, int], None],
        syncs: bool,
    ) -> None:
        """`asked` says whether somebody wants the task to stop. `moved` is told how many items are done, and
        answers with the task as it is then: the hub may have leased a newer attempt at it meanwhile.
        `between` runs what goes before the next slice; `ran` is told of each, with its microseconds."""
        self._task = task
        self._model = model
        self._engine = machine
        self._pool = pool
        self._journal = book
        self._offset = offset
        self._asked = asked
        self._moved = moved
        self._between = between
        self._ran = ran
        self._syncs = syncs
        self._rows: list[records.ResultRow] = []
        self._bytes = 0
        self._started_us = clock.wall_us()
        self._started = time.monotonic()
        self._committed = self._started

    async def run(self, work: engine.Work) -> End:
        """Run it until it ends or is stopped."""
        items = await self._in_thread(self._engine.open, self._model, work)
        self._task = self._moved(self._task.task_id, self._task.items_done)
        remaining_ms = self._task.remaining_ms(clock.wall_us())
        not_after = None if remaining_ms is None else time.monotonic() + remaining_ms / 1000
        while self._task.items_left:
            stop = self._asked(self._task.task_id)
            if stop is not None:
                return self._end(stop)
            if not_after is not None and time.monotonic() >= not_after:
                return self._end(Stop.EXPIRED)
            if self._late:
                late = f"the attempt took longer than timeout_ms = {self._task.timeout_ms}"
                if not self._last_try:
                    return self._end(Stop.FAILED, late)
                failure = outcomes.ItemFailed(late, outcomes.Failure.INFERENCE_FAILED)
                self._take([failure] * self._task.items_left, self._run(clock.wall_us(), time.monotonic()))
                break
            first = self._task.items_done
            began_us, began = clock.wall_us(), time.monotonic()
            made = await self._in_thread(
                self._engine.run_items,
                self._model,
                items,
                first,
                first + self._model.max_batch,
                streams.of(self._model, self._task),
            )
            broken = None if self._last_try else _broken(made)
            run = self._run(began_us, began)
            self._ran(self._model, watch.Ran(self._task, work, first, made), run.run_us)
            self._take(made if broken is None else made[: broken.position], run)
            if broken is not None:
                return self._end(Stop.FAILED, broken.reason)
            if self._task.items_left:
                if self._due and not await self.commit():
                    return self._end(Stop.GONE)
                if self._makes_room:
                    return self._end(Stop.ROOM)
                await self._between(self._task)
        return self._end(None)

    async def commit(self) -> bool:
        """Commit the rows there are, with the checkpoint; False if the task has left the journal."""
        rows, self._rows, self._bytes = self._rows, [], 0
        self._committed = time.monotonic()
        if not rows:
            return True
        return await self._journal.checkpoint(verdicts.checkpoint(self._task, rows, syncs=self._syncs))

    @property
    def _last_try(self) -> bool:
        """Whether what fails now has failed for good; of a task of the hub's, the hub decides that."""
        return (
            self._task.origin is records.Origin.DEVICE and self._task.attempt + 1 >= self._task.max_attempts
        )

    @property
    def _late(self) -> bool:
        timeout_ms = self._task.timeout_ms
        return timeout_ms is not None and (time.monotonic() - self._started) * 1000 > timeout_ms

    @property
    def _makes_room(self) -> bool:
        """Whether it is to stop for another model; not at once: that costs a commit, and loading it anew."""
        return time.monotonic() >= self._started + COMMIT_S and self._engine.models.is_to_go(self._model.key)

    @property
    def _due(self) -> bool:
        return (
            len(self._rows) >= COMMIT_ITEMS
            or self._bytes >= COMMIT_BYTES
            or time.monotonic() >= self._committed + COMMIT_S
        )

    def _take(self, made: list[outcomes.Outcome], run: verdicts.Run) -> None:
        """A slice is done."""
        rows = verdicts.rows(self._task, self._task.items_done, made, run)
        self._rows += rows
        self._bytes += sum(len(row.output) for row in rows if row.output is not None)
        self._task = self._moved(self._task.task_id, self._task.items_done + len(rows))

    def _run(self, started_us: int, started: float) -> verdicts.Run:
        return verdicts.Run(
            version=self._model.version,
            started_us=started_us,
            run_us=int((time.monotonic() - started) * 1e6),
            clock_offset_us=self._offset.offset_us,
            clock_error_us=self._offset.error_us,
        )

    def _end(self, stop: Stop | None, error: str = "") -> End:
        return End(self._task, self._rows, self._run(self._started_us, self._started), stop, error)

    async def _in_thread(self, work: Callable[[*_Ts], _T], *given: *_Ts) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *given)


def _broken(made: list[outcomes.Outcome]) -> _Broken | None:
    """The first item on which the model failed, if it did; another attempt may do better from there on."""
    for position, one in enumerate(made):
        if isinstance(one, outcomes.ItemFailed) and one.kind is outcomes.Failure.INFERENCE_FAILED:
            return _Broken(position, one.reason)
    return None
