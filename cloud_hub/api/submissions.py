"""Group commit: submissions that arrive together are made durable together.

Each request waits here until the transaction that holds its tasks is committed; while one commit is on
its way to the disk, the next group gathers. So a thousand clients cost PostgreSQL a few commits, and a
lone client waits for nobody.

    request ─┐
    request ─┼─> waiting (bounded) ──> flusher: COPY, commit ──> every request of the group is answered
    request ─┘                └──────> a second one, beside it while many tasks wait

Which of them find room in their queues is decided within the transaction (`admission`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

import prometheus_client

from cloud_hub import queues
from cloud_hub.api import admission
from cloud_hub.store import ends, pool
from cloud_hub.store import queues as queue_store
from cloud_hub.store import tasks as task_store
from shared import jobs

log = logging.getLogger(__name__)

MAX_WAITING_TASKS: Final = 20_000
MAX_WAITING_BYTES: Final = 256 << 20
MANY_TASKS: Final = 400
"""When so many tasks wait a second group is committed beside the first: PostgreSQL works on one while the
other is made ready."""
FEW_TASKS: Final = 16
GATHER_S: Final = 0.0015
"""When, after a commit, some wait already but fewer than those, more are about to come: waiting so long for
them saves every other commit. A lone client never waits."""
MAX_GROUP_TASKS: Final = 2_000
"""Tasks of one commit, unless a single request has more."""
MAX_GROUP_BYTES: Final = 32 << 20
DATABASE_WAIT_S: Final = 5.0
"""How long a group waits for a connection to PostgreSQL before its requests are answered 503."""

Group: TypeAlias = Sequence[task_store.Submission]
"""The tasks of one request, stored together or not at all."""
Answer: TypeAlias = list[task_store.Submitted] | admission.Full
"""What the tasks of a request became, in their order; or why none of them got in."""


class Committed(NamedTuple):
    """What one commit did."""

    answers: Sequence[Answer]
    """In the order of the requests."""
    shed: Counter[str]
    """Waiting tasks that gave way, by queue."""


Committer: TypeAlias = Callable[[Sequence[Group]], Awaitable[Committed]]
"""Makes requests durable, all in one transaction, or raises and stores nothing of them."""


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
    """Queues what requests submit and commits it in groups, while `run` runs."""

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
        self._many = asyncio.Event()
        self._stopped = False
        self._commit_s = 0.01
        """How long a commit takes, smoothed: what a refused client is told to wait at least."""
        self.commits = prometheus_client.Counter(
            "backhaul_submit_commits", "Transactions that made submitted tasks durable.", registry=registry
        )
        self.committed = prometheus_client.Counter(
            "backhaul_submit_tasks", "Tasks made durable for clients.", registry=registry
        )
        self.refused = prometheus_client.Counter(
            "backhaul_queue_refused_tasks",
            "Tasks that a limit of their queue kept out: full, or rate.",
            ("queue", "why"),
            registry=registry,
        )
        self.shed = prometheus_client.Counter(
            "backhaul_queue_shed_tasks",
            "Waiting tasks that gave way to higher ones in a full queue.",
            ("queue",),
            registry=registry,
        )

    async def submit(self, submitted: Group) -> list[task_store.Submitted]:
        """Wait until all of `submitted` is committed; the answers are in its order.

        Raises Busy when too much waits already, Full if a queue has no room, Stopped when no flusher runs,
        or what the commit raised.
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
        if tasks >= MANY_TASKS:
            self._many.set()
        return await request.answer

    async def run(self) -> None:
        """Commit group after group until cancelled; then whoever waits is told that it stopped."""
        try:
            async with asyncio.TaskGroup() as flushers:
                flushers.create_task(self._flush_when(self._arrived), name="submitter: flush")
                flushers.create_task(self._flush_when(self._many), name="submitter: flush beside")
        finally:
            self._stopped = True
            _fail(self._waiting, Stopped())
            self._waiting.clear()

    async def _flush_when(self, due: asyncio.Event) -> None:
        group: list[_Request] = []
        try:
            while True:
                if 0 < self._tasks < FEW_TASKS:
                    await asyncio.sleep(GATHER_S)
                await due.wait()
                group = self._next_group()
                if group:  # else the other was quicker
                    await self._flush(group)
        finally:
            _fail(group, Stopped())

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
        if self._tasks < MANY_TASKS:
            self._many.clear()
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
        committed = await self._commit([request.tasks for request in group])
        self._commit_s += 0.2 * (time.monotonic() - began - self._commit_s)
        self.commits.inc()
        for queue, count in committed.shed.items():
            self.shed.labels(queue).inc(count)
        for request, answer in zip(group, committed.answers, strict=True):
            if isinstance(answer, admission.Full):
                self.refused.labels(answer.queue, "full").inc(len(request.tasks))
                _fail([request], answer)
                continue
            self.committed.inc(len(answer))
            if not request.answer.done():  # a client that went away is not told, but has its tasks
                request.answer.set_result(answer)


def _fail(group: Iterable[_Request], error: Exception) -> None:
    for request in group:
        if not request.answer.done():
            request.answer.set_exception(error)


def into(
    connections: pool.Pool,
    tell: Callable[[ends.Outcome], None] = lambda outcome: None,
    limits: queues.Queues | None = None,
    *,
    database_wait_s: float = DATABASE_WAIT_S,
) -> Committer:
    """The committer that stores requests in one transaction of PostgreSQL, then tells what it did.

    `limits`: the queues in which only so many tasks may wait; None: there are none.
    """

    async def commit(requests: Sequence[Group]) -> Committed:
        told: list[ends.Outcome] = []
        shed: Counter[str] = Counter()
        # Looked up once: while a connection is waited for, the settings may change.
        metadata = [task.job.metadata for request in requests for task in request]
        bounded = limits.bounded(one.queue for one in metadata) if limits else {}
        lent = pool.statement if not bounded and _is_one_statement(metadata) else _transaction
        async with lent(connections, database_wait_s) as connection:
            decided = await _admit(connection, requests, metadata, bounded)
            admitted = [one for place, one in enumerate(requests) if place not in decided.refused]
            stored = await task_store.submit(connection, [task for one in admitted for task in one])
            if decided.shed:
                outcome, shed = await queue_store.shed(
                    connection, [(*place, count) for place, count in decided.shed.items()]
                )
                told.append(outcome)
        became = iter(stored)
        answers: list[Answer] = [
            decided.refused.get(place) or list(itertools.islice(became, len(request)))
            for place, request in enumerate(requests)
        ]
        queued = Counter(
            task.job.model
            for task, one in zip(itertools.chain.from_iterable(admitted), stored, strict=True)
            if not one.repeated
        )
        tell(ends.merge([ends.Outcome(queued=dict(queued)), *told]))
        return Committed(answers, shed)

    return commit


@contextlib.asynccontextmanager
async def _transaction(connections: pool.Pool, timeout_s: float) -> AsyncIterator[pool.Connection]:
    async with connections.connection(timeout=timeout_s) as connection, connection.transaction():
        yield connection


def _is_one_statement(metadata: Sequence[jobs.Metadata]) -> bool:
    """Whether all of it is stored by one INSERT, which is a transaction by itself: two round trips less."""
    return len(metadata) < task_store.COPY_FROM and not any(one.idempotency_key for one in metadata)


async def _admit(
    connection: pool.Connection,
    requests: Sequence[Group],
    metadata: Sequence[jobs.Metadata],
    bounded: Mapping[str, queue_store.Queue],
) -> admission.Admission:
    """Which requests get in; `metadata`: of all their tasks. Where no queue has a limit nobody is asked."""
    if not bounded:
        return admission.Admission()
    keys = {one.idempotency_key for one in metadata if one.queue in bounded and one.idempotency_key}
    depths, known = await queue_store.room(connection, bounded, keys)
    return admission.admit(requests, bounded, depths, known)
