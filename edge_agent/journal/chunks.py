"""Chunks of records as they wait in the journal, packed and back.

Importing this module loads pyarrow: the journal does so with the first record that leaves or is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import pyarrow as pa

from edge_agent.journal import errors, records
from shared import wire

SCHEMA_VERSION: Final = wire.SCHEMA_VERSION


class Chunk(NamedTuple):
    """A packed run of records of one kind."""

    kind: str
    size: int
    """Records."""
    body: bytes
    schema_version: int = SCHEMA_VERSION


def pack_results(rows: Sequence[records.ResultRow]) -> Iterator[Chunk]:
    """All rows in one chunk, unless it would be larger than a batch may be."""
    return _pack(wire.RESULTS, rows)


def pack_attempts(rows: Sequence[records.AttemptRow]) -> Iterator[Chunk]:
    """All rows in one chunk, unless it would be larger than a batch may be."""
    return _pack(wire.ATTEMPTS, rows)


def join(kind: str, bodies: Iterable[bytes]) -> Iterator[Chunk]:
    """The records of several chunks in one, unless it would be larger than a batch may be."""
    which = wire.KINDS[kind]
    table = pa.Table.from_batches([wire.unpack(which, body) for body in bodies]).combine_chunks()
    for batch in table.to_batches():
        yield from _cut(which, batch)


def unpack(kind: str, schema_version: int, body: bytes) -> pa.RecordBatch:
    """The records of a chunk; zero-copy over `body`.

    Raises JournalTooNew for a schema of which this agent does not know the columns: a body does not
    say what they are.
    """
    if schema_version != SCHEMA_VERSION:
        raise errors.JournalTooNew(
            f"a chunk of {kind} was written with schema {schema_version} of the wire, and this agent knows "
            f"schema {SCHEMA_VERSION}: run the agent that wrote it until all is synced"
        )
    return wire.unpack(wire.KINDS[kind], body)


def handed_over(rows: Sequence[records.HandedOver], now_us: int) -> pa.RecordBatch:
    """Records for the lane `tasks`, as they leave at `now_us`."""
    values = zip(*(row.at(now_us) for row in rows), strict=True)
    return wire.build(wire.TASKS, dict(zip(records.HandedOver._fields, values, strict=True)))


def _pack(kind: wire.Kind, rows: Sequence[tuple[Any, ...]]) -> Iterator[Chunk]:
    columns = dict(zip(kind.schema.names, zip(*rows, strict=True), strict=True))
    return _cut(kind, wire.build(kind, columns))


def _cut(kind: wire.Kind, batch: pa.RecordBatch) -> Iterator[Chunk]:
    """One chunk, or as many halves as it takes: a chunk travels whole, and a broker takes only so much."""
    rows = batch.num_rows
    if rows <= wire.MAX_BATCH_ROWS:
        body = wire.pack(batch)
        if len(body) <= wire.MAX_BATCH_BYTES or rows == 1:
            yield Chunk(kind.name, rows, body)
            return
    yield from _cut(kind, batch.slice(0, rows // 2))
    yield from _cut(kind, batch.slice(rows // 2))
