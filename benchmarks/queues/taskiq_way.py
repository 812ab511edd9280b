"""taskiq: Redis streams, each task acknowledged when it is done; uvloop, as under its own command."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

import taskiq_redis
import uvloop
from redis import asyncio as redis
from taskiq import api

from benchmarks.queues import child

TASK: Final = "no-op"
STREAM: Final = "taskiq"
TOGETHER: Final = 100


async def _no_op(payload: str) -> None:
    """Only ever called by the worker, which registers another in its place."""


class Queue:
    def __init__(self, task: Any, connection: redis.Redis) -> None:
        self._task = task
        self._connection = connection

    async def submit(self, count: int) -> None:
        for size in child.parts(count, TOGETHER):
            await asyncio.gather(*(self._task.kiq(child.PAYLOAD) for _ in range(size)))

    async def left(self) -> int:
        (group,) = await self._connection.xinfo_groups(STREAM)
        acknowledged = group["entries-read"] - group["pending"]
        return int(await self._connection.xlen(STREAM) - acknowledged)


def _broker(url: str) -> taskiq_redis.RedisStreamBroker:
    # From the stream's beginning: the tasks are there before the worker is.
    return taskiq_redis.RedisStreamBroker(url, queue_name=STREAM, consumer_id="0")


@contextlib.asynccontextmanager
async def connect(url: str) -> AsyncIterator[Queue]:
    broker = _broker(url)
    await broker.startup()
    try:
        async with redis.from_url(url) as connection:
            yield Queue(broker.task(TASK)(_no_op), connection)
    finally:
        await broker.shutdown()


def work(url: str, tally: child.Tally) -> None:
    async def no_op(payload: str) -> None:
        tally.add()

    async def serve() -> None:
        broker = _broker(url)
        broker.task(TASK)(no_op)
        await api.run_receiver_task(broker, run_startup=True)

    uvloop.run(serve())


if __name__ == "__main__":
    child.run(connect, work)
