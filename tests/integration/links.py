"""Links to a real broker, and a broker that stalls."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator

from demo import servers
from shared import backoff, link

WAIT = 10.0
"""Seconds until a test gives up on what should come at once."""


def address(broker: servers.Mosquitto) -> link.Address:
    return link.Address(broker.host, broker.port)


def new_link(broker: servers.Mosquitto, client_id: str, **options: object) -> link.Link:
    """A link that loses no time between its tries."""
    settings = {"backoff": backoff.Backoff(0.01, 0.05), **options}
    return link.Link(address(broker), client_id, **settings)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def running(*links: link.Link, connected: bool = True) -> AsyncIterator[None]:
    """The links, running and connected; cancelled at the end."""
    async with asyncio.TaskGroup() as tasks:
        runs = [tasks.create_task(each.run(), name=f"run {each}") for each in links]
        try:
            async with asyncio.timeout(3 * WAIT):
                if connected:
                    for each in links:
                        await each.wait_connected()
                yield
        finally:
            for run in runs:
                run.cancel()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what raises no event: a line in the broker's log, a count that a handler keeps."""
    async with asyncio.timeout(WAIT):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@contextlib.contextmanager
def stalled(broker: servers.Mosquitto) -> Iterator[None]:
    """The broker, reachable but silent, as behind a link that swallows everything."""
    pid = broker.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if broker.running:
            os.kill(pid, signal.SIGCONT)
