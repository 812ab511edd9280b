"""Celery: a list in Redis, one prefork process; tasks are acknowledged late, results are ignored."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import AsyncIterator
from typing import Final

import celery
from celery import platforms
from redis import asyncio as redis

from benchmarks.queues import child

TASK: Final = "no-op"
QUEUE: Final = "celery"
UNACKNOWLEDGED: Final = "unacked"

SETTINGS: Final = {
    "task_acks_late": True,
    "task_ignore_result": True,
    # Celery's own advice for many short tasks.
    "worker_prefetch_multiplier": 128,
    "worker_redirect_stdouts": False,
}
# The worker alone: it does not look for others, nor tell them of itself.
WORKER: Final = (
    *("--quiet", "worker", "--loglevel", "ERROR", "--pool", "prefork", "--concurrency", "1"),
    *("--without-gossip", "--without-mingle", "--without-heartbeat"),
)


class Queue:
    def __init__(self, app: celery.Celery, connection: redis.Redis) -> None:
        self._app = app
        self._connection = connection

    async def submit(self, count: int) -> None:
        task = self._app.signature(TASK, (child.PAYLOAD,))
        with self._app.producer_or_acquire() as producer:
            for _ in range(count):
                task.apply_async(producer=producer)

    async def left(self) -> int:
        waiting = await self._connection.llen(QUEUE)
        return int(waiting + await self._connection.hlen(UNACKNOWLEDGED))


def _app(url: str) -> celery.Celery:
    app = celery.Celery("benchmark", broker=url)
    app.conf.update(SETTINGS)
    return app


@contextlib.asynccontextmanager
async def connect(url: str) -> AsyncIterator[Queue]:
    async with redis.from_url(url) as connection:
        yield Queue(_app(url), connection)


def work(url: str, tally: child.Tally) -> None:
    def no_op(payload: str) -> None:
        tally.add()

    app = _app(url)
    app.task(name=TASK)(no_op)
    app.worker_main(list(WORKER))


if __name__ == "__main__":
    warnings.simplefilter("ignore", platforms.SecurityWarning)  # a benchmark may run as root
    child.run(connect, work)
