"""Records on their way down: numbered at the end of a lane, composed into Arrow when they are sent."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import pyarrow as pa

from cloud_hub.store import arrays, arrow, pool, sql
from shared import lanes, wire

LEASES: Final = lanes.Lane("leases")
RESULTS: Final = lanes.Lane("results")
COMMANDS: Final = lanes.Lane("commands")
"""The down lanes; the hub opens one generation of each."""

PLACES: Final = 1
"""The class of advisory locks by which a place's succession waits for words to it, and they for it."""

_SQL: Final = sql.load("outgoing")
_TO_TEXT: Final = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Record:
    """A chunk that is to go down to an agent."""

    agent_id: int
    lane: lanes.Lane
    kind: wire.Kind
    size: int = 1
    """How many numbers it takes: of a completed task's results, one an item."""
    task_id: bytes | None = None
    attempt: int | None = None
    body: Mapping[str, Any] | None = None
    """The columns that are not composed from tables when it is sent."""


async def append(connection: pool.Connection, records: Sequence[Record]) -> frozenset[int]:
    """Put records at the end of their lanes; returns the agents (ids) that have something to be sent."""
    if not records:
        return frozenset()
    if origins := {record.agent_id for record in records if record.lane == RESULTS}:
        await connection.execute(_SQL["hold_places"], {"class": PLACES, "agent_ids": sorted(origins)})
    cursor = await connection.execute(
        _SQL["append"],
        {
            "results_lane": str(RESULTS),
            "agent_ids": arrays.numbers(record.agent_id for record in records),
            "lanes": arrays.texts(str(record.lane) for record in records),
            "sizes": arrays.numbers(record.size for record in records),
            "kinds": arrays.texts(record.kind.name for record in records),
            "task_ids": arrays.ids(record.task_id for record in records),
            "attempts": arrays.numbers(record.attempt for record in records),
            "bodies": arrays.texts(
                None if r.body is None else _TO_TEXT.encode(r.body).decode() for r in records
            ),
        },
    )
    return frozenset(agent_id for (agent_id,) in await cursor.fetchall())


async def read(
    connection: pool.Connection, agent_id: int, lane: lanes.Lane, after: int, max_rows: int, max_bytes: int
) -> wire.Batch | None:
    """The next records of a lane after the number `after`: whole chunks of one kind, within the limits.

    A single chunk above them comes alone. None if there is nothing.
    """
    place = {"agent_id": agent_id, "lane": str(lane)}
    cursor = await connection.execute(_SQL["chunks"], {**place, "after": after, "limit": max_rows})
    chunks: list[tuple[int, int, str, int]] = await cursor.fetchall()
    if not chunks:
        return None
    first, last, name, size = chunks[0]
    kind = wire.KINDS[name]
    for begin, end, other, payload_bytes in chunks[1:]:
        size += payload_bytes
        if other != name or begin != last + 1 or end - first >= max_rows or size > max_bytes:
            break
        last = end
    batch = await _compose(connection, kind, {**place, "first": first, "last": last})
    ends = [end for _, end, _, _ in chunks if end <= last]
    span = lanes.Span(first, _within(batch, first, ends, max_bytes))
    return wire.Batch(span, kind, [batch.slice(0, span.size)])


def _within(batch: pa.RecordBatch, first: int, ends: Sequence[int], max_bytes: int) -> int:
    """The last of the chunks' `ends` up to which the batch has at most `max_bytes`, but at least one."""
    if batch.nbytes <= max_bytes:
        return ends[-1]
    fitting = bisect_right(ends, max_bytes, key=lambda end: batch.slice(0, end - first + 1).nbytes)
    return ends[max(0, fitting - 1)]


async def _compose(connection: pool.Connection, kind: wire.Kind, chunk: Mapping[str, Any]) -> pa.RecordBatch:
    """The records of a run of chunks of one kind."""
    if kind in (wire.LEASES, wire.RESULTS):
        async with connection.cursor(binary=True) as cursor:
            arrow.prepare(cursor)
            await cursor.execute(_SQL[kind.name], chunk)
            return arrow.batch(kind.schema, await cursor.fetchall())
    cursor = await connection.execute(_SQL["bodies"], chunk)
    records = [
        {"task_id": task_id, "attempt": attempt, **(msgspec.json.decode(body) if body else {})}
        for task_id, attempt, body in await cursor.fetchall()
    ]
    return wire.build(kind, {name: [record.get(name) for record in records] for name in kind.schema.names})
