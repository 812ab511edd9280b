"""The ceiling: what PostgreSQL takes from a worker that is nothing but its SQL.

Tasks come by COPY, 500 a transaction. The worker leases a hundred, the most urgent first, and commits; then
completes them, each only under the attempt that it has leased, writes a row for each result, and commits.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

import psycopg

from benchmarks.queues import child

TOGETHER: Final = 500
BATCH: Final = 100

SCHEMA: Final = """
    CREATE TABLE tasks (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        state text NOT NULL DEFAULT 'queued',
        priority smallint NOT NULL,
        attempt integer NOT NULL DEFAULT 0,
        lease_ends timestamptz,
        payload text NOT NULL
    );
    CREATE INDEX tasks_queued ON tasks (priority DESC, id) WHERE state = 'queued';
    CREATE INDEX tasks_leased ON tasks (lease_ends) WHERE state = 'leased';
    CREATE TABLE results (
        task_id bigint PRIMARY KEY,
        attempt integer NOT NULL,
        ended_at timestamptz NOT NULL DEFAULT now(),
        output text
    );
"""
SUBMIT: Final = "COPY tasks (priority, payload) FROM STDIN"
LEASE: Final = """
    UPDATE tasks SET state = 'leased', attempt = attempt + 1, lease_ends = now() + interval '30 s'
    FROM (
        SELECT id FROM tasks WHERE state = 'queued'
        ORDER BY priority DESC, id LIMIT %s FOR UPDATE SKIP LOCKED
    ) AS next
    WHERE tasks.id = next.id
    RETURNING tasks.id, tasks.attempt, tasks.payload
"""
COMPLETE: Final = """
    WITH done AS (
        UPDATE tasks SET state = 'done', lease_ends = NULL
        FROM unnest(%s::bigint[], %s::integer[]) AS mine (id, attempt)
        WHERE tasks.id = mine.id AND tasks.attempt = mine.attempt AND tasks.state = 'leased'
        RETURNING tasks.id, tasks.attempt
    )
    INSERT INTO results (task_id, attempt) SELECT id, attempt FROM done
"""
LEFT: Final = "SELECT (SELECT count(*) FROM tasks) - (SELECT count(*) FROM results)"


class Queue:
    def __init__(self, connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> None:
        self._connection = connection

    async def submit(self, count: int) -> None:
        for size in child.parts(count, TOGETHER):
            async with self._connection.cursor() as cursor, cursor.copy(SUBMIT) as copy:
                for _ in range(size):
                    await copy.write_row((0, child.PAYLOAD))

    async def left(self) -> int:
        row = await (await self._connection.execute(LEFT)).fetchone()
        assert row is not None
        return int(row[0])


@contextlib.asynccontextmanager
async def connect(dsn: str) -> AsyncIterator[Queue]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute(SCHEMA)
        yield Queue(connection)


def work(dsn: str, tally: child.Tally) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        while leased := connection.execute(LEASE, (BATCH,), binary=True).fetchall():
            ids, attempts, _ = zip(*leased, strict=True)
            connection.execute(COMPLETE, (list(ids), list(attempts)))
            tally.add(len(leased))


if __name__ == "__main__":
    child.run(connect, work)
