"""The journal's API: what intake, runner, replies and uplink ask of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from edge_agent import clock, settings
from edge_agent.journal import changes, database, errors, memory, outbox, reads, records, space
from edge_agent.journal.readers import Readers
from edge_agent.journal.running import Running
from edge_agent.journal.writer import Writer
from shared.lanes import Lane  # the name, for here `lanes` is a method

if TYPE_CHECKING:
    import pyarrow as pa

    from shared import wire

log: Final = logging.getLogger(__name__)
_T = TypeVar("_T")

MEMORY_SHARE: Final = 16
"""Replies kept for repeated idempotency keys take at most one part in so many of the quota."""

Stamp = Callable[[str, str, int], float]
"""The fair-share tag of a task that joins the queue now, from its model, queue and items."""


class Journal:
    """The agent's durable store. Every method belongs to the event loop; what it writes is on disk
    when it returns, unless it says otherwise.

    Any of them may raise JournalBroken, if the disk fails, or JournalClosed.
    """

    def __init__(
        self,
        path: Path,
        writer: Writer,
        readers: Readers,
        running: Running,
        counters: records.Counters,
        policy: settings.Journal,
        now_us: Callable[[], int],
    ) -> None:
        """Use `Journal.open`."""
        self._path = path
        self._writer = writer
        self._readers = readers
        self._policy = policy
        self._memory = memory.Memory(policy.idempotency_keys, policy.max_bytes // MEMORY_SHARE)
        self._now_us = now_us
        self.running: Final = running
        """Where to mark what runs: see `records.Task.crashes`."""
        self.counters: Final = counters
        self.epoch = 0
        """Says from where on the lanes are numbered: a fresh journal has a fresh one."""
        self.site = ""
        self.name = ""

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        path: Path,
        site: str,
        name: str,
        policy: settings.Journal,
        *,
        now_us: Callable[[], int] = clock.wall_us,
    ) -> AsyncIterator[Journal]:
        """The journal in the file `path` of the agent `site/name`, for the time of the block.

        Raises JournalInUse, JournalTooNew, JournalFull or JournalBroken. A damaged file is moved aside
        and replaced.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        async with contextlib.AsyncExitStack() as stack:
            running = Running(path.with_name(path.name + "-running"))
            stack.callback(running.close)
            room = space.Space(path, policy.max_bytes)
            try:
                opened = await asyncio.to_thread(database.open_for_writing, path)
            except errors.JournalFull:
                if not room.release():
                    raise
                opened = await asyncio.to_thread(database.open_for_writing, path)
            meter = database.WriteMeter(path)
            stack.callback(meter.close)
            stack.push_async_callback(asyncio.to_thread, opened.connection.close)
            on_damage = functools.partial(database.suspect, path)
            readers = Readers(path, on_damage)
            stack.push_async_callback(asyncio.to_thread, readers.close)
            counters = records.Counters(recovered_from_corruption=int(opened.moved_aside is not None))
            writer = Writer(
                opened.connection,
                room,
                counters,
                meter=meter,
                before_commit=outbox.Outbox().flush,
                on_damage=on_damage,
            )
            stack.push_async_callback(writer.close)
            journal = cls(path, writer, readers, running, counters, policy, now_us)
            await journal._begin(site, name)
            stack.callback(running.clear)
            yield journal

    async def _begin(self, site: str, name: str) -> None:
        """Find out whose journal this is, and what ran when it was left."""
        self.site, self.name = site, name
        known = await self._readers.read(reads.identity)
        if known is not None and known[1:] == (site, name):
            self.epoch = known[0]
        else:
            if known is not None:
                log.warning("the journal of %s/%s becomes %s/%s's, in a new epoch", *known[1:], site, name)
            await self.new_epoch()
        if self.running.left_behind:
            ids = self.running.left_behind
            self.counters.crashes_found = await self._writer.commit(lambda t: changes.mark_crashed(t, ids))
            self.running.clear()

    # Tasks

    async def accept(self, arrived: Sequence[records.Task]) -> list[records.Accepted | None]:
        """Take in devices' tasks, with one commit. Only then may their messages be acknowledged.

        A task whose idempotency key is known adds nothing: the answer is the first one's. None for a
        task for which there is no room. Raises JournalFull if the disk is full.
        """
        return await self._writer.commit(
            lambda t: [changes.accept(t, task) for task in arrived], new_work=True
        )

    async def apply_leases(
        self, lane: Lane, last: int, batch: pa.RecordBatch, *, stamp: Stamp, accepted_us: int
    ) -> records.Taken:
        """Take in `wire.LEASES` records that end with number `last`, and move the lane's cursor there.

        `batch` holds the new ones alone. Returns the tasks to run: not those that were withdrawn, nor
        those that an equal or newer lease brought before. Raises JournalFull.
        """
        leased = [
            _leased(lease, stamp(lease["model"], lease["queue"], lease["items"]), accepted_us)
            for lease in batch.to_pylist()
            if lease["payload"] is not None
        ]
        taken = await self._writer.commit(
            lambda t: changes.lease(t, lane, last, leased, batch.num_rows), new_work=True
        )
        return self._taken(taken)

    async def checkpoint(self, reached: records.Checkpoint) -> bool:
        """A task of many items has come further: the rows go up, and these items are not run again.

        False if it has left the journal, for the hub's result came first; then its rows are dropped.
        """
        return await self._writer.commit(lambda t: changes.checkpoint(t, reached))

    async def finish(self, finished: Sequence[records.Finished]) -> list[bytes]:
        """End tasks: rows and ends of attempts go up, replies wait for the broker, the tasks are gone.

        Returns the ids of those that were here. One that was not, for the hub's result came first, adds
        nothing: its rows are dropped, and its reply was given. Nor does the end of an attempt, other than
        its completion, if the hub has leased us a newer one meanwhile: under that the task stays.
        """
        return await self._writer.commit(lambda t: changes.finish(t, finished, self._memory))

    async def hand_over(self, task_ids: Sequence[bytes]) -> list[bytes]:
        """Give devices' tasks to the hub; the ids of those that were here to give."""
        return await self._writer.commit(lambda t: changes.hand_over(t, task_ids))

    async def reclaim(self, task_ids: Sequence[bytes]) -> list[records.Task]:
        """Take handed-over tasks back, acknowledged or not; those that had not ended at the hub.

        The hub may know them by now: their end must be reported to it, as attempt 0.
        """
        return await self._writer.commit(lambda t: changes.reclaim(t, task_ids))

    async def apply_returned(
        self, lane: Lane, last: int, new: int, returned: Sequence[records.Returned]
    ) -> list[bytes]:
        """End handed-over tasks as the hub reports in `new` new records that end with `last`.

        The lane's cursor moves with it. Returns the ids of those that were still to be ended.
        """
        return await self._writer.commit(
            lambda t: changes.take_back_ended(t, lane, last, returned, new, self._memory)
        )

    async def waiting(
        self,
        limit: int,
        *,
        after: records.Task | None = None,
        holder: records.Holder = records.Holder.EDGE,
    ) -> list[records.Task]:
        """Up to `limit` tasks in the order in which they run, without payloads."""
        return await self._readers.read(lambda c: reads.waiting(c, limit, after, holder))

    async def oldest(self, models: Collection[str], limit: int) -> list[records.Task]:
        """Up to `limit` tasks of these models that are to run here, in the order of their arrival, without
        payloads."""
        return await self._readers.read(lambda c: reads.oldest(c, models, limit))

    async def find(self, task_ids: Sequence[bytes]) -> dict[bytes, records.Task]:
        """Those of the tasks that are here, by id, without payloads."""
        return await self._readers.read(lambda c: reads.find(c, task_ids))

    async def payloads(self, task_ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """The payloads of those of the tasks that are here."""
        return await self._readers.read(lambda c: reads.payloads(c, task_ids))

    async def parts(self, task_id: bytes) -> list[records.Part]:
        """What the reply to a task will say of its items that are done, in their order."""
        return await self._readers.read(lambda c: reads.parts(c, task_id))

    # Replies

    async def unreplied(self, limit: int, *, after: bytes = b"") -> list[records.Reply]:
        """Up to `limit` replies that wait for the broker, those of tasks after id `after`, by id."""
        await self.flush()
        return await self._readers.read(lambda c: reads.unreplied(c, limit, after))

    async def replied(self, task_ids: Sequence[bytes]) -> None:
        """The broker has these replies. Goes to disk with a later commit, within a second."""
        ids = list(task_ids)
        await self._writer.eventually(lambda t: changes.replied(t, ids))

    # Lanes

    @property
    def on_appended(self) -> Callable[[Mapping[Lane, int]], None] | None:
        """Called in the loop after a commit that made lanes grow, with their highest numbers."""
        return self._writer.on_appended

    @on_appended.setter
    def on_appended(self, callback: Callable[[Mapping[Lane, int]], None] | None) -> None:
        self._writer.on_appended = callback

    async def read(self, lane: Lane, after: int, max_rows: int, max_bytes: int) -> wire.Batch | None:
        """The records of an up lane after number `after`, as far as they are of one kind.

        Whole chunks, as many as fit in `max_rows` and `max_bytes` (before compression), at least one.
        None if there are none.
        """
        now_us = self._now_us()
        return await self._readers.read(lambda c: reads.batch(c, lane, after, max_rows, max_bytes, now_us))

    async def acknowledged(self, lane: Lane, cursor: int) -> None:
        """The hub has committed all up to `cursor`: that is deleted, with a later commit, within a second."""
        await self._writer.eventually(lambda t: outbox.acknowledged(t, lane, cursor))

    async def open_generation(self, name: str) -> Lane:
        """The lane for live records of a name: a fresh one if there is a backlog for them to pass.

        An older generation is dropped when it has drained.
        """
        return await self._writer.commit(lambda t: outbox.open_generation(t, name))

    async def move_cursor(self, lane: Lane, last: int, new: int) -> None:
        """A down lane was passed up to number `last`, and `new` new records of it were done."""
        await self._writer.commit(lambda t: outbox.move_cursor(t, lane, last, new))

    async def new_epoch(self) -> int:
        """Begin anew, for the hub has seen numbers that this journal never gave (it was put back to an
        older state): all that is not acknowledged is kept, and numbered from 1; cursors start over."""
        epoch = secrets.randbits(48) | 1
        await self._writer.commit(lambda t: outbox.begin_epoch(t, epoch, self.site, self.name))
        self.epoch = epoch
        return epoch

    # Figures

    async def lanes(self) -> dict[Lane, records.Numbers]:
        """The up lanes, with what is numbered and acknowledged on each."""
        await self.flush()
        return await self._readers.read(reads.numbers)

    async def cursors(self) -> dict[Lane, records.Cursor]:
        """The down lanes, with how far each was passed."""
        return await self._readers.read(reads.cursors)

    async def counts(self) -> records.Counts:
        """How much of everything the journal holds."""
        return await self._readers.read(reads.counts)

    @property
    def size_bytes(self) -> int:
        """On disk, the write-ahead log included."""
        return space.size_bytes(self._path)

    async def flush(self) -> None:
        """Wait until all that was asked before is on disk."""
        await self._writer.commit(lambda _: None)

    def _taken(self, answer: _T | None) -> _T:
        """What was taken in; None says that there was no room."""
        if answer is None:
            raise errors.JournalFull(
                "the journal has no room for new work: either it holds all that journal.max_bytes = "
                f"{self._policy.max_bytes:,} allows, or its disk is full"
            )
        return answer


def _leased(lease: Mapping[str, Any], tag: float, accepted_us: int) -> records.Task:
    """The task in a record of `wire.LEASES`."""
    return records.Task(
        task_id=lease["task_id"],
        origin=records.Origin.HUB,
        hub_attempt=lease["attempt"],
        model=lease["model"],
        version=lease["version"],
        priority=lease["priority"],
        queue=lease["queue"],
        tag=tag,
        device=lease["device"],
        content_type=lease["content_type"],
        items=lease["items"],
        items_done=lease["items_done"],
        attempt=lease["attempt"],
        max_attempts=lease["attempt"] + 1,  # there may be another: only the hub knows
        timeout_ms=lease["timeout_ms"],
        deadline_ms=lease["deadline_ms"],
        accepted_us=accepted_us,
        traceparent=lease["traceparent"],
        stream=lease.get("stream"),
        payload=lease["payload"],
    )
