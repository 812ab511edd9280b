"""What tests of the journal are written with: tasks, ends of tasks, leases, and a journal to put them in."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from edge_agent import settings
from edge_agent.journal import journal, records
from shared import lanes, tasks, wire

RESULTS = lanes.Lane("results", 1)
TASKS = lanes.Lane("tasks", 1)
LEASES = lanes.Lane("leases", 1)

NOW_US = 1_700_000_000_000_000
"""What the clock says where a test does not move it."""

ALL_ROWS, ALL_BYTES = 1 << 30, 1 << 40


@contextlib.asynccontextmanager
async def opened(
    folder: Path,
    *,
    max_bytes: int = 1 << 30,
    keys: int = 1000,
    now_us: Callable[[], int] = lambda: NOW_US,
    name: str = "agent",
) -> AsyncIterator[journal.Journal]:
    """The journal in `folder`, fresh or as it was left."""
    policy = settings.Journal(max_bytes=max_bytes, idempotency_keys=keys)
    async with journal.Journal.open(folder / "journal.db", "site", name, policy, now_us=now_us) as book:
        yield book


def peek(folder: Path, query: str) -> list[tuple[Any, ...]]:
    """What the file in `folder` says, read past the journal."""
    with contextlib.closing(sqlite3.connect(folder / "journal.db")) as connection:
        return connection.execute(query).fetchall()


def task(payload: bytes = b"picture", **fields: Any) -> records.Task:
    """A device's task."""
    standard: dict[str, Any] = {
        "task_id": tasks.new_id(),
        "origin": records.Origin.DEVICE,
        "model": "surface",
        "version": None,
        "priority": 5,
        "queue": "default",
        "tag": 0.0,
        "device": "camera-1",
        "content_type": "image/png",
        "items": 1,
        "max_attempts": 3,
        "timeout_ms": None,
        "deadline_ms": None,
        "accepted_us": NOW_US,
        "response_topic": "answers",
        "payload": payload,
    }
    return records.Task(**(standard | fields))


async def accept(book: journal.Journal, **fields: Any) -> records.Task:
    """A new task in the journal."""
    (accepted,) = await book.accept([task(**fields)])
    assert accepted is not None
    assert accepted.task is not None
    assert not accepted.repeated
    return accepted.task


def row(task_id: bytes, item: int = 0, **fields: Any) -> records.ResultRow:
    """A result of one item."""
    standard = records.ResultRow(
        task_id=task_id,
        item=item,
        attempt=0,
        device="camera-1",
        model="surface",
        version="1",
        outcome=tasks.Outcome.OK,
        label="scratch",
        score=0.5,
        output=None,
        error=None,
        observed_at=NOW_US,
        clock_offset_us=None,
        clock_error_us=None,
        wait_us=10,
        run_us=20,
    )
    return standard._replace(**fields)


def end_of_attempt(task_id: bytes, number: int = 0, **fields: Any) -> records.AttemptRow:
    """An attempt that was completed."""
    standard = records.AttemptRow(task_id, number, tasks.State.COMPLETED, None, None, False, 1, 20)
    return standard._replace(**fields)


def reply(task_id: bytes, body: bytes = b"{}", topic: str = "answers") -> records.Reply:
    return records.Reply(
        task_id=task_id, topic=topic, correlation=b"7", content_type="application/json", body=body
    )


def finished(task_id: bytes, items: int = 1) -> records.Finished:
    """The good end of a device's task that the hub does not know."""
    return records.Finished(task_id, [row(task_id, item) for item in range(items)], reply(task_id))


def leases(task_ids: Iterable[bytes], **columns: Any) -> pa.RecordBatch:
    """Records of a `leases` lane; a column is given as one value for all."""
    ids = list(task_ids)
    standard: dict[str, Any] = {
        "model": "surface",
        "version": "2",
        "priority": 5,
        "queue": "default",
        "device": "elsewhere",
        "content_type": "image/png",
        "payload": b"leased picture",
        "items": 1,
        "attempt": 1,
        "ttl_ms": 10_000,
        "items_done": 0,
    }
    return wire.build(
        wire.LEASES, {"task_id": ids} | {name: [v] * len(ids) for name, v in (standard | columns).items()}
    )


async def take_leases(
    book: journal.Journal, last: int, batch: pa.RecordBatch, accepted_us: int = NOW_US
) -> list[records.Task]:
    """Apply leases; the tasks to run under them, new ones first."""
    taken = await book.apply_leases(
        LEASES, last, batch, stamp=lambda model, queue, items: float(items), accepted_us=accepted_us
    )
    return [*taken.new, *(one.task for one in taken.renewed)]


async def sent(book: journal.Journal, lane: lanes.Lane, after: int = 0, **limits: int) -> list[wire.Batch]:
    """All batches of a lane after a number, as the uplink reads them; their numbers have no gap."""
    batches: list[wire.Batch] = []
    while True:
        batch = await book.read(
            lane, after, limits.get("max_rows", ALL_ROWS), limits.get("max_bytes", ALL_BYTES)
        )
        if batch is None:
            return batches
        assert batch.span.first == after + 1
        assert batch.span.size == sum(part.num_rows for part in batch.batches)
        batches.append(batch)
        after = batch.span.last


def rows_of(batches: Sequence[wire.Batch]) -> list[dict[str, Any]]:
    """The records in batches, in order."""
    return list(itertools.chain.from_iterable(part.to_pylist() for b in batches for part in b.batches))
