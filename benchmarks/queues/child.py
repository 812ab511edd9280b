"""What the queues' own processes have in common: one that queues, and the worker.

queue    makes the schema and says so; at the word queues the tasks and says how fast; at the next word
         waits until the store says that all are done, and says how many are not
work     does tasks, and says when the first one is done and, at the last one, how fast it was
"""

from __future__ import annotations

import asyncio
import random
import string
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

from benchmarks import worker

PAYLOAD: Final = "".join(random.Random(7).choices(string.ascii_letters + string.digits, k=2048))
"""What each task carries: 2 KB that neither JSON nor a store's compression makes larger or smaller."""

PATIENCE_S: Final = 10.0
POLL_S: Final = 0.02


class Queue(Protocol):
    """The side of a task queue that puts tasks in."""

    async def submit(self, count: int) -> None:
        """Queue so many tasks, in the fastest way that the public interface has for many."""

    async def left(self) -> int:
        """How many tasks are not done, as the store says."""


class Tally:
    """Counts, in the worker, the tasks that are done."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._done = 0
        self._first = (0, 0.0)

    def add(self, tasks: int = 1) -> None:
        """So many more are done. The parent hears of the first and of the last."""
        self._done += tasks
        if self._done == tasks:
            self._first = (tasks, time.perf_counter())
            worker.tell({"began": True})
        if self._done == self._count:
            already, began = self._first
            seconds = time.perf_counter() - began
            worker.tell({"tasks_per_s": (self._count - already) / seconds})


def parts(count: int, size: int) -> Iterator[int]:
    """The sizes of the parts of `count`, none above `size`."""
    for start in range(0, count, size):
        yield min(size, count - start)


def run(
    connect: Callable[[str], AbstractAsyncContextManager[Queue]], work: Callable[[str, Tally], None]
) -> None:
    """Be the process that the parent asked for; `connect` and `work` are given the store's address."""
    given = worker.arguments()
    if given["role"] == "work":
        work(given["address"], Tally(given["count"]))
    else:
        asyncio.run(_queue(connect(given["address"]), given["count"]))


async def _queue(connecting: AbstractAsyncContextManager[Queue], count: int) -> None:
    async with connecting as queue:
        worker.tell({"ready": True})
        worker.hear()
        began = time.perf_counter()
        await queue.submit(count)
        worker.tell({"submitted_per_s": count / (time.perf_counter() - began)})
        worker.hear()
        patience = time.monotonic() + PATIENCE_S
        while (left := await queue.left()) and time.monotonic() < patience:  # noqa: ASYNC110 - a store says nothing
            await asyncio.sleep(POLL_S)
        worker.tell({"left": left})
        worker.hear()
