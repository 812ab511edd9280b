"""Result rows: a page of them, or all of them as a stream of Arrow."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

import pyarrow as pa

from cloud_hub.store import pool
from shared import wire

SCHEMA: Final = pa.schema(
    [
        *wire.RESULTS.schema,
        pa.field("site", pa.string(), nullable=False),
        pa.field("agent", pa.string(), nullable=False),
        pa.field("received_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)
"""What a stream of result rows holds: the wire's columns, who sent them, and when they came."""


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
    """Newest task first, or, of one task, by item."""

    rows: pa.RecordBatch
    """In the columns of SCHEMA."""
    next: Position | None


async def page(
    connection: pool.Connection, wanted: Filter, *, after: Position | None = None, limit: int = 100
) -> Page:
    """Rows, newest task first, that come after the position `after`."""
    raise NotImplementedError


def stream(connection: pool.Connection, wanted: Filter, *, rows: int = 8192) -> AsyncIterator[pa.RecordBatch]:
    """All rows, oldest task first, in batches of SCHEMA; memory is that of one batch.

    Needs a transaction of its own, open as long as the stream is read.
    """
    raise NotImplementedError


async def of_task(connection: pool.Connection, task_id: bytes) -> pa.RecordBatch:
    """The rows of one task, by item."""
    raise NotImplementedError
