"""Group commit: one thread that writes, and makes many callers' changes durable with one fsync.

While the disk is busy with one commit, the operations of the next pile up; then all of them go
together. So a lone job is on disk after one fsync and no delay, and a flood pays one fsync for all.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeVar

from edge_agent.journal import database, errors, records
from edge_agent.journal.space import Space
from edge_agent.journal.transaction import Change, Transaction
from shared import lanes

log: Final = logging.getLogger(__name__)
_T = TypeVar("_T")

GROUP: Final = 256
"""Operations in one commit, and operations that may wait for the next; further callers wait their turn."""
PATIENCE_S: Final = 1.0
"""How long an operation that nobody waits for may wait for a commit to join."""
IDLE_S: Final = 2.0
"""After so long without work, the house is tidied."""


class Operation(NamedTuple):
    """A change that waits for its commit."""

    change: Change[Any]
    caller: asyncio.Future[Any] | None
    """Who waits for the commit; nobody, if the change may join whichever comes next."""
    new_work: bool
    """True for what is refused on a full disk, so that all else has room to finish."""


class Outcome(NamedTuple):
    """What an operation came to."""

    operation: Operation
    value: Any
    error: Exception | None = None


class Written(NamedTuple):
    """What a commit, or several for one group, came to."""

    outcomes: list[Outcome]
    appended: dict[lanes.Lane, int]
    """The lanes that grew, with the highest number of each."""


class Writer:
    """Owns the writing connection and its thread. All public methods belong to the event loop."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        space: Space,
        counters: records.Counters,
        *,
        meter: database.WriteMeter,
        before_commit: Callable[[Transaction], None],
        on_damage: Callable[[], None],
    ) -> None:
        """`before_commit` completes what the operations of a group have gathered; `on_damage` is told
        that the file is corrupt. Both run in the writer's thread."""
        self._connection = connection
        self._space = space
        self._counters = counters
        self._meter = meter
        self._before_commit = before_commit
        self._on_damage = on_damage
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(GROUP)
        self._queue: queue.SimpleQueue[Operation | None] = queue.SimpleQueue()
        self._ended = False
        """True once the thread takes nothing any more."""
        self._last = False
        """True once the thread has seen the end of the queue."""
        self.on_appended: Callable[[Mapping[lanes.Lane, int]], None] | None = None
        self._thread = threading.Thread(target=self._run, name="journal writer", daemon=True)
        self._thread.start()

    async def commit(self, change: Change[_T], *, new_work: bool = False) -> _T:
        """What `change` returns, once it is on disk.

        Raises what `change` raised, or JournalFull, JournalBroken or JournalClosed; then nothing of it is
        in the journal. A caller that is cancelled gives up the answer, not the change.
        """
        await self._slots.acquire()
        caller: asyncio.Future[_T] = self._loop.create_future()
        self._put(Operation(change, caller, new_work))
        return await caller

    async def eventually(self, change: Change[object]) -> None:
        """Have `change` join the next commit, at the latest PATIENCE_S from now.

        For what may be lost in a crash because it will be done again.
        """
        await self._slots.acquire()
        self._put(Operation(change, None, False))

    async def close(self) -> None:
        """Commit all that waits and end the thread."""
        self._ended = True
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _put(self, operation: Operation) -> None:
        if self._ended:
            self._slots.release()
            raise errors.JournalClosed("the journal is closed")
        self._queue.put(operation)

    # In the loop, called by the thread

    def _deliver(self, written: Written) -> None:
        for (_, caller, _), value, error in written.outcomes:
            self._slots.release()
            if caller is None or caller.done():
                continue
            if error is None:
                caller.set_result(value)
            else:
                caller.set_exception(error)
        if written.appended and self.on_appended is not None:
            self.on_appended(written.appended)

    def _bury(self, left: list[Operation]) -> None:
        """The thread has ended: whoever waits for it would wait for ever."""
        self._ended = True
        while not self._queue.empty():
            operation = self._queue.get()
            if operation is not None:
                left.append(operation)
        end = errors.JournalClosed("the journal's writer has ended")
        self._deliver(Written([Outcome(operation, None, end) for operation in left], {}))

    # In the thread

    def _run(self) -> None:
        group: list[Operation] = []
        untidy = True
        try:
            while not self._last:
                group = self._take(IDLE_S if untidy else None)
                if group:
                    written = self._write(group)
                    group = []
                    self._loop.call_soon_threadsafe(self._deliver, written)
                    untidy = True
                elif not self._last:
                    untidy = self._tidy()
        finally:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._bury, group)

    def _take(self, idle_s: float | None) -> list[Operation]:
        """The next group: all that waits, as soon as somebody waits. Empty after `idle_s` of silence."""
        group: list[Operation] = []
        urgent = False
        until = None if idle_s is None else time.monotonic() + idle_s
        while len(group) < GROUP:
            pause = 0.0 if urgent or self._last else None if until is None else until - time.monotonic()
            try:
                operation = self._queue.get(timeout=None if pause is None else max(0.0, pause))
            except queue.Empty:
                break
            if operation is None:
                self._last = True
                continue
            if not group:
                until = time.monotonic() + PATIENCE_S
            group.append(operation)
            urgent = urgent or operation.caller is not None
        return group

    def _write(self, group: list[Operation]) -> Written:
        """Commit a group; if that fails, each of its operations alone, so that only the culprit fails."""
        try:
            return self._transact(group)
        except Exception as error:  # noqa: BLE001 - whatever a change raised, its caller gets it
            if len(group) == 1:
                return self._retry(group[0], error)
        together = Written([], {})
        for operation in group:
            alone = self._write([operation])
            together.outcomes.extend(alone.outcomes)
            together.appended.update(alone.appended)
        return together

    def _retry(self, operation: Operation, error: Exception) -> Written:
        """What is no new work gets the ballast's room on a full disk, and a second chance."""
        if database.is_full(error) and not operation.new_work and self._space.release():
            return self._write([operation])
        if operation.caller is None:
            log.error("the journal could not do what nobody waits for", exc_info=error)
        return Written([Outcome(operation, None, self._judge(error, operation))], {})

    def _transact(self, group: list[Operation]) -> Written:
        transaction = Transaction(self._connection, self._space)
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            outcomes = [Outcome(operation, operation.change(transaction)) for operation in group]
            self._before_commit(transaction)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # SQLite rolls back some errors by itself
                self._connection.execute("ROLLBACK")
            raise
        self._counters.commits += 1
        self._counters.operations += len(group)
        self._counters.refused += transaction.refused
        self._counters.bytes_appended += transaction.bytes_appended
        self._counters.bytes_written += self._meter.written()
        return Written(outcomes, transaction.appended)

    def _judge(self, error: Exception, operation: Operation) -> Exception:
        """The error as the caller of `operation` shall see it."""
        if database.is_corrupt(error):
            self._on_damage()
        if database.is_full(error):
            self._counters.refused += operation.new_work
        return database.explain(error)

    def _tidy(self) -> bool:
        """Tidy until that is done or somebody comes; True if there is more to do."""
        try:
            while self._space.tidy(self._connection):
                if not self._queue.empty():
                    return True
        except sqlite3.Error as error:
            log.warning("the journal could not be tidied: %s", error)
        return False
