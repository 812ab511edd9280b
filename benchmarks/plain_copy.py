"""Tasks into PostgreSQL as fast as it takes them with a key and a queue to take them from: one plain table.

The columns and the values are those of the hub's tasks, the payload among them; binary COPY from memory, so
many rows a transaction, over one connection.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Final

import pgpq
import psycopg
import pyarrow as pa

from benchmarks import noop
from shared import tasks

_TABLE: Final = """
    DROP TABLE IF EXISTS plain;
    CREATE TABLE plain (
        task_id uuid PRIMARY KEY, observed_at timestamptz NOT NULL, class_id integer NOT NULL,
        items integer NOT NULL, payload_bytes integer NOT NULL, priority smallint NOT NULL,
        max_attempts smallint NOT NULL, model text NOT NULL, queue text NOT NULL, content_type text NOT NULL,
        body bytea NOT NULL, state text NOT NULL DEFAULT 'QUEUED',
        submitted_at timestamptz NOT NULL DEFAULT now()
    );
    CREATE INDEX ON plain (class_id, priority DESC, task_id) WHERE state = 'QUEUED';
"""
_COLUMNS: Final = pa.schema(
    {
        "task_id": pa.binary(16),
        "observed_at": pa.timestamp("us", tz="UTC"),
        "class_id": pa.int32(),
        "items": pa.int32(),
        "payload_bytes": pa.int32(),
        "priority": pa.int16(),
        "max_attempts": pa.int16(),
        "model": pa.string(),
        "queue": pa.string(),
        "content_type": pa.string(),
        "body": pa.binary(),
    }
)


async def measure(dsn: str, batches: int, size: int) -> float:
    """Tasks a second."""
    made = [_batch(size) for _ in range(batches)]
    statement = f"COPY plain ({', '.join(_COLUMNS.names)}) FROM STDIN (FORMAT BINARY)"
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute(_TABLE)
        began = time.perf_counter()
        for batch in made:
            encoder = pgpq.ArrowToPostgresBinaryEncoder(_COLUMNS)
            async with connection.cursor() as cursor, cursor.copy(statement) as stream:
                await stream.write(encoder.write_header() + encoder.write_batch(batch) + encoder.finish())
        took = time.perf_counter() - began
        await connection.execute("DROP TABLE plain")
    return batches * size / took


def _batch(size: int) -> pa.RecordBatch:
    body, now = noop.payload(), datetime.now(UTC)
    row = [now, 1, 1, len(body), 5, 3, noop.MODEL, "default", "application/json", body]
    columns = [[tasks.new_id() for _ in range(size)], *([value] * size for value in row)]
    return pa.record_batch(columns, schema=_COLUMNS)
