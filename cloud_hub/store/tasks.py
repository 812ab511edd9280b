"""Tasks of the hub: submitted, looked up, listed, cancelled, asked to run again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec
import pyarrow as pa
from psycopg.rows import dict_row

from cloud_hub.store import arrays, classes, copy, ends, ids, pool, sql, verdicts
from shared import jobs, tasks, topics

_SQL: Final = sql.load("tasks")

_INSTANT: Final = pa.timestamp("us", tz="UTC")
_TASK_COLUMNS: Final = pa.schema(
    {
        "task_id": pa.binary(16),
        "observed_at": _INSTANT,
        "deadline_at": _INSTANT,
        "class_id": pa.int32(),
        "timeout_ms": pa.int64(),
        "items": pa.int32(),
        "payload_bytes": pa.int32(),
        "priority": pa.int16(),
        "max_attempts": pa.int16(),
        "model": pa.string(),
        "queue": pa.string(),
        "content_type": pa.string(),
        "version": pa.string(),
        "device": pa.string(),
        "traceparent": pa.string(),
        "idempotency_key": pa.string(),
        "client_id": pa.string(),
    }
)

_PAYLOAD_COLUMNS: Final = pa.schema({"task_id": pa.binary(16), "body": pa.binary()})

_WRITERS: Final[dict[str, Callable[..., str]]] = {
    field.name: arrays.of(field.type) for field in _TASK_COLUMNS
}
"""How each column is written for a statement."""

COPY_FROM: Final = 64
"""So many tasks are written by COPY; fewer by INSERT, which takes one round trip instead of four."""

_CONDITIONS: Final = {
    "reason": b"t.reason = %(reason)s",
    "model": b"t.model = %(model)s",
    "queue": b"t.queue = %(queue)s",
    "device": b"t.device = %(device)s",
    "priority": b"t.priority = %(priority)s",
    "site": b"t.origin_agent IN (SELECT agent_id FROM agents WHERE site = %(site)s)",
}
"""The fields of a Filter as SQL, the state apart."""


class Submission(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A job that is to become a task."""

    job: jobs.Job
    task_id: bytes = msgspec.field(default_factory=tasks.new_id)
    device: str | None = None


class Submitted(NamedTuple):
    """What a submission became."""

    task_id: bytes
    repeated: bool
    """Its idempotency key was seen before: `task_id` is the task of that time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One execution of a task by one agent."""

    attempt: int
    agent: topics.Agent
    agent_id: int
    state: tasks.State
    """PROCESSING while it holds the lease; QUEUED if it was put back or lost."""
    reason: str | None
    error: str | None
    items_done: int
    run_us: int | None
    granted_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task as the hub knows it."""

    task_id: bytes
    state: tasks.State
    reason: tasks.Reason | None
    error: str | None
    model: str
    version: str | None
    priority: int
    queue: str
    selector: str
    """Which agents may run it, by their labels; '': any."""
    device: str | None
    content_type: str
    payload_bytes: int
    items: int
    items_done: int
    attempt: int
    failures: int
    """Attempts that failed or were lost; at `max_attempts` the task is TERMINATED(exhausted)."""
    max_attempts: int
    timeout_ms: int | None
    deadline_at: datetime | None
    not_before: datetime | None
    """While it waits after a failed attempt."""
    idempotency_key: str | None
    client_id: str | None
    traceparent: str | None
    origin: topics.Agent | None
    """The agent that handed it over; None if it was submitted to the hub."""
    agent: topics.Agent | None
    """The agent that holds its lease."""
    observed_at: datetime
    submitted_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which tasks; None: any."""

    state: tasks.State | None = None
    reason: tasks.Reason | None = None
    model: str | None = None
    queue: str | None = None
    device: str | None = None
    priority: int | None = None
    site: str | None = None
    """Of the origin."""


@dataclass(frozen=True, slots=True)
class Page:
    """Newest first."""

    tasks: list[Task]
    next: bytes | None
    """Ask again with this as `before`; None: there are no more."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many tasks there are, by state; and of those that wait, by model, queue and priority."""

    states: dict[tasks.State, int]
    queued: dict[tuple[str, str, int], int]


async def submit(connection: pool.Connection, submissions: Sequence[Submission]) -> list[Submitted]:
    """Queue tasks, all in one go; in the order of `submissions`. Durable once the caller has committed.

    Of submissions with one idempotency key, here or in another transaction at this very moment, one
    becomes the task, and the others are told its id.
    """
    owners = await _claim(connection, submissions)
    submitted = []
    for submission in submissions:
        key = submission.job.metadata.idempotency_key
        task_id = submission.task_id if key is None else owners[key]
        submitted.append(Submitted(task_id, repeated=task_id != submission.task_id))
    fresh = [one for one, became in zip(submissions, submitted, strict=True) if not became.repeated]
    if fresh:
        await _store(connection, fresh)
    return submitted


async def _store(connection: pool.Connection, submissions: Sequence[Submission]) -> None:
    """Write tasks and payloads: a few by one statement, many by two COPYs, each way where it is faster."""
    columns = await _task_columns(connection, submissions)
    bodies = [submission.job.payload for submission in submissions]
    if len(submissions) < COPY_FROM:
        await connection.execute(_SQL["insert"], {**_written(columns), "bodies": bodies})
        return
    payloads = {"task_id": columns["task_id"], "body": bodies}
    await copy.copy_in(connection, "tasks", pa.RecordBatch.from_pydict(columns, schema=_TASK_COLUMNS))
    await copy.copy_in(connection, "payloads", pa.RecordBatch.from_pydict(payloads, schema=_PAYLOAD_COLUMNS))


async def _claim(connection: pool.Connection, submissions: Sequence[Submission]) -> dict[str, bytes]:
    """The task of each idempotency key: the one that had it before, or the first that brings it here."""
    keys: dict[str, bytes] = {}
    for submission in submissions:
        if (key := submission.job.metadata.idempotency_key) is not None:
            keys.setdefault(key, submission.task_id)
    if not keys:
        return keys
    cursor = await connection.execute(
        _SQL["claim"], {"keys": arrays.texts(keys), "task_ids": arrays.ids(keys.values())}
    )
    return dict(await cursor.fetchall())


async def _task_columns(
    connection: pool.Connection, submissions: Sequence[Submission]
) -> dict[str, list[Any]]:
    """What submissions say of their tasks, by column; the other columns take their defaults."""
    metadata = [submission.job.metadata for submission in submissions]
    deadlines: list[datetime | None] = [None] * len(submissions)
    if any(one.deadline_ms is not None for one in metadata):
        # Deadlines are judged by the database's clock, so they are set by it.
        row = await (await connection.execute(_SQL["now"])).fetchone()
        assert row is not None
        deadlines = [
            None if one.deadline_ms is None else row[0] + timedelta(milliseconds=one.deadline_ms)
            for one in metadata
        ]
    submitted = [submission.job for submission in submissions]
    keys = [
        classes.Key(job.model, one.version or "", one.queue, one.selector or "")
        for job, one in zip(submitted, metadata, strict=True)
    ]
    known = await classes.resolve(connection, keys)
    now = datetime.now(UTC)
    return {
        "task_id": [submission.task_id for submission in submissions],
        "observed_at": [now] * len(submissions),
        "deadline_at": deadlines,
        "class_id": [known[key] for key in keys],
        "timeout_ms": [one.timeout_ms for one in metadata],
        "items": [job.items for job in submitted],
        "payload_bytes": [len(job.payload) for job in submitted],
        "priority": [job.priority for job in submitted],
        "max_attempts": [one.max_attempts for one in metadata],
        "model": [job.model for job in submitted],
        "queue": [one.queue for one in metadata],
        "content_type": [job.content_type for job in submitted],
        "version": [one.version for one in metadata],
        "device": [submission.device for submission in submissions],
        "traceparent": [one.traceparent for one in metadata],
        "idempotency_key": [one.idempotency_key for one in metadata],
        "client_id": [job.client_id for job in submitted],
    }


def _written(columns: Mapping[str, list[Any]]) -> dict[str, str | None]:
    """Columns of tasks as a statement takes them; what no task says is left out."""
    return {name: arrays.if_any(write, columns[name]) for name, write in _WRITERS.items()}


async def get(connection: pool.Connection, task_id: bytes) -> Task | None:
    """One task as it stands; None if the hub does not know it."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_select([b"t.task_id = %(task_id)s"]), {"task_id": ids.Id(task_id), "limit": 1})
        row = await cursor.fetchone()
    return None if row is None else _task(row)


async def attempts(connection: pool.Connection, task_id: bytes) -> list[Attempt]:
    """The attempts at a task, oldest first, with the one that runs; 0 is its origin's own."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_SQL["attempts"], {"task_id": ids.Id(task_id)})
        rows = await cursor.fetchall()
    return [
        Attempt(
            agent=topics.Agent(row.pop("site"), row.pop("name")), state=tasks.State(row.pop("state")), **row
        )
        for row in rows
    ]


async def payload(connection: pool.Connection, task_id: bytes) -> bytes | None:
    """What the task runs on; None if there is no such task or it is completed."""
    async with connection.cursor(binary=True) as cursor:
        await cursor.execute(_SQL["payload"], {"task_id": ids.Id(task_id)})
        row = await cursor.fetchone()
    return None if row is None else bytes(row[0])


async def list_page(
    connection: pool.Connection, wanted: Filter, *, before: bytes | None = None, limit: int = 100
) -> Page:
    """Tasks, newest first, older than `before`."""
    conditions = [condition for name, condition in _CONDITIONS.items() if getattr(wanted, name) is not None]
    if wanted.state is not None:
        # Spelled out, so that the planner sees which partial index holds it.
        conditions.append(b"t.state = '%s'" % wanted.state.value.encode())
    if before is not None:
        conditions.append(b"t.task_id < %(before)s")
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _select(conditions),
            {
                **{name: getattr(wanted, name) for name in _CONDITIONS},
                "before": before and ids.Id(before),
                "limit": limit + 1,
            },
        )
        found = [_task(row) for row in await cursor.fetchall()]
    return Page(found[:limit], found[limit - 1].task_id if len(found) > limit else None)


async def cancel(connection: pool.Connection, task_ids: Sequence[bytes]) -> ends.Outcome:
    """End tasks that are queued or processing; those that are not are left out of `ended`."""
    standings = await ends.lock(connection, task_ids)
    changes = [verdicts.cancelled(standing) for standing in standings.values()]
    return await ends.settle(connection, [change for change in changes if change is not None])


async def requeue(connection: pool.Connection, task_ids: Sequence[bytes]) -> list[bytes]:
    """Ask dead letters to run again; returns those that will.

    Failures are forgotten, the deadline too; rows of the failed run give way to those that will come.
    """
    cursor = await connection.execute(_SQL["dead_letters"], {"task_ids": arrays.ids(task_ids)})
    letters = [task_id for (task_id,) in await cursor.fetchall()]
    if letters:
        chosen = {"task_ids": arrays.ids(letters)}
        await connection.execute(_SQL["clear_results"], chosen)
        await connection.execute(_SQL["requeue"], chosen)
    return letters


async def forget(connection: pool.Connection, before: datetime, limit: int = 10_000) -> int:
    """Delete tasks that ended before an instant, and their keys; returns how many, at most `limit`.

    Result rows stay: they go by months, with `partitions.drop_before`.
    """
    cursor = await connection.execute(
        _SQL["forget"], {"until": ids.lowest(before), "before": before, "limit": limit}
    )
    return cursor.rowcount


async def counts(connection: pool.Connection) -> Counts:
    """Counted, not estimated: the open tasks by an index of theirs, the others by the number of all."""
    cursor = await connection.execute(_SQL["count_states"])
    states = {tasks.State(state): count for state, count in await cursor.fetchall()}
    return Counts(states, await classes.depths(connection))


def _select(conditions: Sequence[bytes]) -> bytes:
    return _SQL["select"].replace(b"{conditions}", b" AND ".join(conditions) or b"true")


def _task(row: dict[str, Any]) -> Task:
    for place in ("origin", "agent"):
        site, name = row.pop(f"{place}_site"), row.pop(f"{place}_name")
        row[place] = None if site is None else topics.Agent(site, name)
    reason = row.pop("reason")
    return Task(
        state=tasks.State(row.pop("state")), reason=None if reason is None else tasks.Reason(reason), **row
    )
