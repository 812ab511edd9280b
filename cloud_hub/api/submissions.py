"""Group commit: submissions that arrive together are made durable together.

Each request waits here until the transaction that holds its tasks is committed; while one commit is on
its way to the disk, the next group gathers. So a thousand clients cost PostgreSQL a few commits, and a
lone client waits for nobody.

    request ─┐
    request ─┼─> waiting (bounded) ──> one flusher: COPY, commit ──> every request of the group is answered
    request ─┘
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

import prometheus_client

from cloud_hub.store import ends, pool
from cloud_hub.store import tasks as task_store

log = logging.getLogger(__name__)

MAX_WAITING_TASKS: Final = 20_000
MAX_WAITING_BYTES: Final = 256 << 20
MAX_GROUP_TASKS: Final = 2_000
"""Tasks of one commit, unless a single request has more."""
MAX_GROUP_BYTES: Final = 32 << 20
DATABASE_WAIT_S: Final = 5.0
"""How long a group waits for a connection to PostgreSQL before its requests are answered 503."""

Group: TypeAlias = Sequence[task_store.Submission]
Committer: TypeAlias = Callable[[Group], Awaitable[list[task_store.Submitted]]]
"""Makes all of a group durable, in order, or raises and stores nothing of it."""


class Busy(Exception):
    """As much waits for its commit as may wait."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("too many submissions wait for their commit")
        self.retry_after_s = retry_after_s


class Stopped(Exception):
    """The submitter is not running: whether a task that waited is stored is not known."""


class _Request:
    """The tasks of one request, which are committed together or not at all."""

    __slots__ = ("answer", "size", "tasks")

    def __init__(self, submitted: Group, answer: asyncio.Future[list[task_store.Submitted]]) -> None:
        self.tasks = submitted
        self.size = sum(len(task.job.payload) for task in submitted)
        self.answer = answer


class Submitter:
    """Queues what requests submit and commits it in groups; `run` is its one flusher."""

    def __init__(
        self,
        commit: Committer,
        *,
        max_waiting_tasks: int = MAX_WAITING_TASKS,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
        registry: prometheus_client.CollectorRegistry | None = None,
    ) -> None:
        self._commit = commit
        self._max_tasks = max_waiting_tasks
        self._max_bytes = max_waiting_bytes
        self._waiting: deque[_Request] = deque()
        self._tasks = 0
        self._bytes = 0
        self._arrived = asyncio.Event()
        self._stopped = False
        self._commit_s = 0.01
        """How long a commit takes, smoothed: what a refused client is told to wait at least."""
        self.commits = prometheus_client.Counter(
            "backhaul_submit_commits", "Transactions that made submitted tasks durable.", registry=registry
        )
        self.committed = prometheus_client.Counter(
            "backhaul_submit_tasks", "Tasks made durable for clients.", registry=registry
        )

    async def submit(self, submitted: Group) -> list[task_store.Submitted]:
        """Wait until all of `submitted` is committed; the answers are in its order.

        Raises Busy when too much waits already, Stopped when no flusher runs, or what the commit raised.
        """
        if self._stopped:
            raise Stopped
        request = _Request(submitted, asyncio.get_running_loop().create_future())
        tasks, size = self._tasks + len(submitted), self._bytes + request.size
        if self._waiting and (tasks > self._max_tasks or size > self._max_bytes):
            raise Busy(retry_after_s=self._commit_s * (1 + self._tasks / MAX_GROUP_TASKS))
        self._waiting.append(request)
        self._tasks, self._bytes = tasks, size
        self._arrived.set()
        return await request.answer

    async def run(self) -> None:
        """Commit group after group until cancelled; then whoever waits is told that it stopped."""
        group: list[_Request] = []
        try:
            while True:
                await self._arrived.wait()
                group = self._next_group()
                await self._flush(group)
        finally:
            self._stopped = True
            for request in (*group, *self._waiting):
                if not request.answer.done():
                    request.answer.set_exception(Stopped())
            self._waiting.clear()

    def _next_group(self) -> list[_Request]:
        """All that waits, up to what one commit should carry; whole requests, in order of arrival."""
        group: list[_Request] = []
        tasks = size = 0
        while self._waiting:
            request = self._waiting[0]
            if group and (
                tasks + len(request.tasks) > MAX_GROUP_TASKS or size + request.size > MAX_GROUP_BYTES
            ):
                break
            group.append(self._waiting.popleft())
            tasks += len(request.tasks)
            size += request.size
        self._tasks -= tasks
        self._bytes -= size
        if not self._waiting:
            self._arrived.clear()
        return group

    async def _flush(self, group: list[_Request]) -> None:
        """Commit a group; if that fails by what is in it, each request by itself.

        So one that cannot be stored fails alone, and neither those that happened to arrive with it nor
        the flusher.
        """
        try:
            await self._commit_group(group)
        except pool.UNAVAILABLE as error:
            log.warning("%d submissions could not be committed: %s", len(group), error)
            _fail(group, error)
        except Exception as error:
            if len(group) == 1:
                log.exception("a submission cannot be stored")
                _fail(group, error)
                return
            for request in group:
                await self._flush([request])

    async def _commit_group(self, group: list[_Request]) -> None:
        began = time.monotonic()
        answers = await self._commit([task for request in group for task in request.tasks])
        self._commit_s += 0.2 * (time.monotonic() - began - self._commit_s)
        self.commits.inc()
        self.committed.inc(len(answers))
        place = 0
        for request in group:
            end = place + len(request.tasks)
            if not request.answer.done():  # a client that went away is not told, but has its tasks
                request.answer.set_result(answers[place:end])
            place = end


def _fail(group: Sequence[_Request], error: Exception) -> None:
    for request in group:
        if not request.answer.done():
            request.answer.set_exception(error)


def into(
    connections: pool.Pool,
    tell: Callable[[ends.Outcome], None] = lambda outcome: None,
    *,
    database_wait_s: float = DATABASE_WAIT_S,
) -> Committer:
    """The committer that stores a group in one transaction of PostgreSQL, then tells of the queued tasks."""

    async def commit(group: Group) -> list[task_store.Submitted]:
        async with (
            connections.connection(timeout=database_wait_s) as connection,
            connection.transaction(),
        ):
            stored = await task_store.submit(connection, group)
        queued = Counter(
            one.job.model for one, became in zip(group, stored, strict=True) if not became.repeated
        )
        tell(ends.Outcome(queued=dict(queued)))
        return stored

    return commit
