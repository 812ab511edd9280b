"""procrastinate: PostgreSQL, psycopg; ten tasks at once, each with a connection to complete it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any, Final

import procrastinate

from benchmarks.queues import child

TASK: Final = "no-op"
TOGETHER: Final = 500
AT_ONCE: Final = 10


class Queue:
    def __init__(self, app: procrastinate.App) -> None:
        self._app = app

    async def submit(self, count: int) -> None:
        deferrer = self._app.configure_task(TASK)
        for size in child.parts(count, TOGETHER):
            await deferrer.batch_defer_async(*({"payload": child.PAYLOAD} for _ in range(size)))

    async def left(self) -> int:
        queues: list[dict[str, Any]] = await self._app.job_manager.list_queues_async()
        return sum(queue["todo"] + queue["doing"] for queue in queues)


def _app(dsn: str) -> procrastinate.App:
    # Two more: for the worker's fetches and its heartbeat.
    return procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn, max_size=AT_ONCE + 2))


@contextlib.asynccontextmanager
async def connect(dsn: str) -> AsyncIterator[Queue]:
    async with _app(dsn).open_async() as app:
        await app.schema_manager.apply_schema_async()
        yield Queue(app)


def work(dsn: str, tally: child.Tally) -> None:
    async def no_op(payload: str) -> None:
        tally.add()

    async def serve() -> None:
        async with _app(dsn).open_async() as app:
            app.task(name=TASK)(no_op)
            await app.run_worker_async(concurrency=AT_ONCE)

    asyncio.run(serve())


if __name__ == "__main__":
    # It warns of an app made in the module that was started, which is what this is for.
    logging.getLogger("procrastinate").setLevel(logging.ERROR)
    child.run(connect, work)
