"""pgqueuer: PostgreSQL, asyncpg; uvloop, as under its own command."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Final

import asyncpg
import pgqueuer
import uvloop

from benchmarks.queues import child

TASK: Final = "no-op"
TOGETHER: Final = 500
BATCH: Final = 100


class Queue:
    def __init__(self, queries: pgqueuer.Queries) -> None:
        self._queries = queries

    async def submit(self, count: int) -> None:
        payload = child.PAYLOAD.encode()
        for size in child.parts(count, TOGETHER):
            await self._queries.enqueue([TASK] * size, [payload] * size, [0] * size)

    async def left(self) -> int:
        return sum(row.count for row in await self._queries.queue_size())


@contextlib.asynccontextmanager
async def connect(dsn: str) -> AsyncIterator[Queue]:
    connection = await asyncpg.connect(dsn)
    try:
        queries = pgqueuer.Queries(pgqueuer.AsyncpgDriver(connection))
        await queries.install()
        yield Queue(queries)
    finally:
        await connection.close()


def work(dsn: str, tally: child.Tally) -> None:
    async def no_op(job: pgqueuer.Job) -> None:
        tally.add()

    @contextlib.asynccontextmanager
    async def manager() -> AsyncIterator[pgqueuer.PgQueuer]:
        connection = await asyncpg.connect(dsn)
        try:
            made = pgqueuer.PgQueuer(pgqueuer.AsyncpgDriver(connection))
            made.entrypoint(TASK)(no_op)
            yield made
        finally:
            await connection.close()

    uvloop.run(pgqueuer.run(manager, batch_size=BATCH))


if __name__ == "__main__":
    child.run(connect, work)
