"""A migrated store for a test, and the things that tests put into it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from cloud_hub.store import agents, classes, leadership, migrate, pool, schedule, tasks
from shared import jobs, topics, wire
from shared import tasks as words


@asynccontextmanager
async def fresh(database: str, max_size: int = 6) -> AsyncIterator[pool.Pool]:
    """A pool on an empty database that is brought to the newest schema."""
    await migrate.migrate(database)
    async with pool.open_pool(database, min_size=1, max_size=max_size) as connections:
        yield connections


def submission(
    *, model: str = "faces", items: int = 1, payload: bytes = b"picture", **metadata: Any
) -> tasks.Submission:
    """A job of any content: the store does not look into it."""
    job = jobs.Job(
        model=model,
        metadata=jobs.Metadata(**metadata),
        content_type=jobs.ARROW,
        payload=payload,
        items=items,
    )
    return tasks.Submission(job=job)


async def agent(connection: pool.Connection, name: str = "one", epoch: int = 1, site: str = "lyon") -> int:
    """The id of an agent that is there."""
    return (await agents.seen(connection, topics.Agent(site, name), epoch)).agent_id


async def submit(connection: pool.Connection, count: int = 1, **fields: Any) -> list[bytes]:
    """Queue `count` tasks and return their ids."""
    submitted = await tasks.submit(connection, [submission(**fields) for _ in range(count)])
    return [one.task_id for one in submitted]


async def waiting(connection: pool.Connection, *, model: str = "faces") -> list[bytes]:
    """The tasks that may be granted now, the most urgent first, and of one priority the oldest."""
    await schedule.ripen(connection)
    heads = await schedule.heads(connection, 1_000_000, classes.Known())
    found = sorted(
        (-task.priority, task.task_id) for head in heads for task in head.tasks if task.model == model
    )
    return [task_id for _, task_id in found]


async def grant(
    connection: pool.Connection, task_ids: Sequence[bytes], agent_id: int, ttl_s: float = 60.0
) -> list[schedule.Granted]:
    return await lease(connection, [schedule.Grant(task_id, agent_id, ttl_s) for task_id in task_ids])


async def lease(connection: pool.Connection, grants: Sequence[schedule.Grant]) -> list[schedule.Granted]:
    """Make leases as whoever leads."""
    return await schedule.grant(connection, (await leadership.leader(connection)).token, grants)


async def get(connection: pool.Connection, task_id: bytes) -> tasks.Task:
    """The task, which must be there."""
    task = await tasks.get(connection, task_id)
    assert task is not None
    return task


def rows(
    task_id: bytes, items: int = 1, *, label: str | None = "good", first: int = 0, **fixed: Any
) -> pa.RecordBatch:
    """Result rows of a task's items; `fixed` is what else is the same in all of them."""
    columns = {
        "attempt": 1,
        "device": "camera-1",
        "model": "faces",
        "version": "3",
        "outcome": words.Outcome.OK.value,
        "label": label,
        "score": 0.5,
        "observed_at": datetime.now(UTC),
        "wait_us": 10,
        "run_us": 20,
    } | fixed
    return wire.build(
        wire.RESULTS,
        {
            "task_id": [task_id] * items,
            "item": list(range(first, first + items)),
            **{name: [value] * items for name, value in columns.items()},
        },
    )


def report(
    task_id: bytes,
    attempt: int,
    state: words.State,
    *,
    items_done: int = 0,
    retriable: bool = False,
    reason: str | None = None,
    error: str | None = None,
) -> pa.RecordBatch:
    """One record of how an attempt ended."""
    return wire.build(
        wire.ATTEMPTS,
        {
            "task_id": [task_id],
            "attempt": [attempt],
            "state": [state.value],
            "reason": [reason],
            "error": [error],
            "retriable": [retriable],
            "items_done": [items_done],
            "run_us": [1000],
        },
    )


def handed_over(task_id: bytes, payload: bytes | None = b"picture", **fields: Any) -> pa.RecordBatch:
    """One record that hands a task over; without payload, one that was withdrawn."""
    columns = {
        "model": "faces",
        "priority": 5,
        "queue": "default",
        "content_type": jobs.PNG,
        "items": 1,
        "max_attempts": 3,
        "observed_at": datetime.now(UTC),
    } | fields
    return wire.build(
        wire.TASKS,
        {"task_id": [task_id], "payload": [payload], **{name: [value] for name, value in columns.items()}},
    )


async def scalar(connection: pool.Connection, query: bytes, *parameters: Any) -> Any:
    """The one value that a query gives."""
    row = await (await connection.execute(query, parameters)).fetchone()
    assert row is not None
    return row[0]


async def until_one_waits(connections: pool.Pool) -> None:
    """Until a transaction waits for another."""
    query = (
        b"SELECT count(*) FROM pg_stat_activity "
        b"WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    async with asyncio.timeout(10), pool.statement(connections) as connection:
        while not await scalar(connection, query):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
