"""Result rows: a page of them, or all of them as a stream of Arrow."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

import pyarrow as pa

from cloud_hub.store import arrow, ids, pool, sql
from shared import wire

_SQL: Final = sql.load("results")

SCHEMA: Final = pa.schema(
    [
        *wire.RESULTS.schema,
        pa.field("site", pa.string(), nullable=False),
        pa.field("agent", pa.string(), nullable=False),
        pa.field("received_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)
"""What a stream of result rows holds: the wire's columns, who sent them, and when they came."""


class _Order(NamedTuple):
    """An order of rows, and what comes after a position in it."""

    by: bytes
    beyond: bytes


_BY_ITEM: Final = _Order(
    b" ORDER BY r.task_id, r.item", b"(r.task_id, r.item) > (%(after_task)s, %(after_item)s)"
)
_NEWEST_FIRST: Final = _Order(
    b" ORDER BY r.task_id DESC, r.item DESC", b"(r.task_id, r.item) < (%(after_task)s, %(after_item)s)"
)

_CONDITIONS: Final = {
    "task_id": b"r.task_id = %(task_id)s",
    "model": b"r.model = %(model)s",
    "version": b"r.version = %(version)s",
    "device": b"r.device = %(device)s",
    "outcome": b"r.outcome = %(outcome)s",
    "label": b"r.label = %(label)s",
    "site": b"r.agent_id IN (SELECT agent_id FROM agents WHERE site = %(site)s)",
    "agent": b"r.agent_id IN (SELECT agent_id FROM agents WHERE name = %(agent)s)",
    "since": b"r.task_id >= %(since)s",
    "until": b"r.task_id < %(until)s",
}
"""The fields of a Filter as SQL."""

_PARAMETERS: Final[dict[str, Callable[[Any], Any]]] = {
    "task_id": ids.Id,
    "since": ids.lowest,
    "until": ids.lowest,
}
"""The fields that are said in task ids."""


class Position(NamedTuple):
    """The place of a row in the order of task and item."""

    task_id: bytes
    item: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which rows; None: any."""

    task_id: bytes | None = None
    model: str | None = None
    version: str | None = None
    device: str | None = None
    outcome: str | None = None
    label: str | None = None
    site: str | None = None
    agent: str | None = None
    since: datetime | None = None
    """By the time in the task ids: from this instant on…"""
    until: datetime | None = None
    """…and before this one."""


@dataclass(frozen=True, slots=True)
class Page:
    """Newest task first, the last item of each first; or, of one task, by item."""

    rows: pa.RecordBatch
    """In the columns of SCHEMA."""
    next: Position | None


async def page(
    connection: pool.Connection, wanted: Filter, *, after: Position | None = None, limit: int = 100
) -> Page:
    """Rows, newest task first, that come after the position `after`."""
    order = _NEWEST_FIRST if wanted.task_id is None else _BY_ITEM
    found = await _select(connection, wanted, order, after, limit + 1)
    rows = found[:limit]
    last = Position(*rows[-1][:2]) if len(found) > limit else None
    return Page(arrow.batch(SCHEMA, rows), last)


async def stream(
    connection: pool.Connection, wanted: Filter, *, rows: int = 8192
) -> AsyncIterator[pa.RecordBatch]:
    """All rows, oldest task first, in batches of SCHEMA; memory is that of one batch.

    Needs a connection of its own, and, unlike all else here, ends its transactions itself, one a batch: an
    export of an hour must neither keep dead rows of the queues from being cleared away nor stand in the
    way of a month that is to be made or dropped. So rows that are recorded meanwhile may be in it.
    """
    after = None
    while True:
        await connection.execute(_SQL["patience"])
        found = await _select(connection, wanted, _BY_ITEM, after, rows)
        await connection.commit()
        if found:
            yield arrow.batch(SCHEMA, found)
        if len(found) < rows:
            return
        after = Position(*found[-1][:2])


async def of_task(connection: pool.Connection, task_id: bytes) -> pa.RecordBatch:
    """The rows of one task, by item."""
    return arrow.batch(SCHEMA, await _select(connection, Filter(task_id=task_id), _BY_ITEM))


async def _select(
    connection: pool.Connection,
    wanted: Filter,
    order: _Order,
    after: Position | None = None,
    limit: int | None = None,
) -> list[tuple[Any, ...]]:
    """Rows in the columns of SCHEMA, as `arrow.batch` takes them."""
    names = [name for name in _CONDITIONS if getattr(wanted, name) is not None]
    conditions = [_CONDITIONS[name] for name in names]
    parameters = {name: _PARAMETERS.get(name, _as_it_is)(getattr(wanted, name)) for name in names}
    if after is not None:
        conditions.append(order.beyond)
        parameters |= {"after_task": ids.Id(after.task_id), "after_item": after.item}
    where = b" WHERE " + b" AND ".join(conditions) if conditions else b""
    async with connection.cursor(binary=True) as cursor:
        arrow.prepare(cursor)
        await cursor.execute(
            _SQL["select"] + where + order.by + b" LIMIT %(limit)s", {**parameters, "limit": limit}
        )
        return await cursor.fetchall()


def _as_it_is(value: Any) -> Any:
    return value
