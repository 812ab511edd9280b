"""Tasks on their way out: what is said of each end, and the commits that make it so.

All that has ended while one commit was under way shares the next.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from edge_agent import verdicts
from edge_agent.journal import journal, records
from shared import tasks

WAITING: Final = 512
"""Ended tasks that wait for their commit, at most: then the engine waits too."""


class Ends:
    """Ends tasks that the runner has taken from the window."""

    def __init__(
        self,
        book: journal.Journal,
        site: str,
        counts: Counter[str],
        *,
        on_finished: Callable[[Sequence[records.Finished]], None],
        on_gone: Callable[[bytes], None],
        on_again: Callable[[records.Task], None],
        syncs: bool,
    ) -> None:
        """`on_finished` is told of tasks whose end is committed, unless the hub's result came before;
        `on_gone` of each that is not here any more; `on_again` of one that is, for the hub has leased it
        anew. Without `syncs` rows and ends of attempts go nowhere."""
        self._journal = book
        self._site = site
        self._counts = counts
        self._on_finished = on_finished
        self._on_gone = on_gone
        self._on_again = on_again
        self._syncs = syncs
        self._waiting: asyncio.Queue[records.Finished] = asyncio.Queue(WAITING)
        self._open = 0
        """Tasks that were taken and have not left again: back to where they wait, or by their commit."""
        self._quiet = asyncio.Event()

    def taken(self, count: int) -> None:
        """So many tasks are under way, to their end or back to where they wait."""
        self._open += count

    def left(self, count: int = 1) -> None:
        """So many of them are there."""
        self._open -= count
        self._quiet.set()

    async def all_left(self) -> None:
        """Wait until no task is under way."""
        while self._open:
            self._quiet.clear()
            await self._quiet.wait()

    async def put(self, finished: records.Finished) -> None:
        """Have this committed."""
        await self._waiting.put(finished)

    async def close(self, task: records.Task, rows: Sequence[records.ResultRow], run: verdicts.Run) -> None:
        """Each item of a task that ran slice by slice has an outcome; `rows`, of those not committed yet."""
        earlier = await self._earlier(task)
        failed = [row for row in rows if row.outcome != tasks.Outcome.OK]
        self._counts["failed"] += bool(failed) or any(part.failed for part in earlier)
        await self.put(verdicts.closed(task, rows, run.version, run.run_us, self._site, earlier))

    async def terminate(
        self, task: records.Task, reason: tasks.Reason, error: str, rows: Sequence[records.ResultRow] = ()
    ) -> None:
        """The task will not run, or not to its end; `rows` as in `close`."""
        self._counts[reason] += 1
        earlier = await self._earlier(task)
        await self.put(verdicts.terminated(task, reason, error, self._site, last=rows, earlier=earlier))

    async def put_back(
        self, task: records.Task, run_us: int = 0, rows: Sequence[records.ResultRow] = ()
    ) -> None:
        """The hub has its task back, with its checkpoint; `rows` as in `close`."""
        self._counts["put_back"] += 1
        await self.put(verdicts.put_back(task, run_us, rows))

    async def run(self) -> None:
        """Commit what has ended, as much at a time as there is, until cancelled."""
        while True:
            finished = [await self._waiting.get()]
            while not self._waiting.empty():
                finished.append(self._waiting.get_nowait())
            if not self._syncs:
                finished = [msgspec.structs.replace(one, rows=(), attempt=None) for one in finished]
            here = set(await self._journal.finish(finished))
            for one in finished:
                if one.task_id in here:
                    self._on_gone(one.task_id)
                else:
                    await self._refused(one.task_id)
            self._counts["finished"] += len(here)
            self._on_finished([one for one in finished if one.task_id in here])
            self.left(len(finished))

    async def _refused(self, task_id: bytes) -> None:
        """The journal did not take an end: the hub's result came first, or a newer lease. Under that one the
        task waits for its turn, from the checkpoint that the journal has."""
        task = (await self._journal.find([task_id])).get(task_id)
        if task is not None and task.holder is records.Holder.EDGE:
            self._on_again(task)
        else:
            self._on_gone(task_id)

    async def _earlier(self, task: records.Task) -> Sequence[records.Part]:
        """What a device's reply says of items whose rows went up before. It is kept in the journal, for the
        rows are gone from there as soon as the hub has them, and memory is no place for 100,000 items."""
        if not task.items_done or task.origin is not records.Origin.DEVICE:
            return ()
        return await self._journal.parts(task.task_id)
