"""What a 202 is worth when the hub is killed the moment after."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from itertools import count

import httpx
import psycopg

from shared import tasks
from tests.integration.api_server import png

CLIENTS = 30
ENOUGH = 150
"""Answers after which the hub is killed."""


@contextlib.asynccontextmanager
async def process(dsn: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A hub's HTTP side in a process of its own, and where it is."""
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.integration.api_server", dsn, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert running.stdout is not None
        async with asyncio.timeout(30):
            url = (await running.stdout.readline()).decode().strip()
        assert url, "the hub did not start"
        yield running, url
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()


async def submit(client: httpx.AsyncClient, key: str) -> str | None:
    """The task's id if the answer was 202; None if there was no answer."""
    try:
        answer = await client.post(
            "/v1/tasks", params={"model": "defects"}, content=png(), headers={"idempotency-key": key}
        )
    except httpx.TransportError:
        return None
    assert answer.status_code == 202
    task_id: str = answer.json()["task_id"]
    return task_id


async def test_what_was_answered_202_survives_kill_9(database: str) -> None:
    """A hub that is killed in the middle of many submissions has lost none that it answered.

    And whoever repeats what got no answer, with its key, ends with one task for each key.
    """
    answered: dict[str, str] = {}
    unanswered: list[str] = []

    async def keep_submitting(
        hub: asyncio.subprocess.Process, client: httpx.AsyncClient, numbers: Iterator[int]
    ) -> None:
        while True:
            key = f"part-{next(numbers)}"
            task_id = await submit(client, key)
            if task_id is None:
                unanswered.append(key)
                return
            answered[key] = task_id
            if len(answered) == ENOUGH:
                hub.send_signal(signal.SIGKILL)  # at once, while the groups after it are on their way

    async with process(database) as (hub, url), httpx.AsyncClient(base_url=url, timeout=30) as client:
        numbers = count()
        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(keep_submitting(hub, client, numbers))
    assert len(answered) >= ENOUGH
    assert unanswered
    assert set(answered.values()) <= _stored(database)

    async with process(database) as (_, url), httpx.AsyncClient(base_url=url, timeout=30) as client:
        again = await asyncio.gather(*(submit(client, key) for key in (*unanswered, *answered)))
    assert dict(zip((*unanswered, *answered), again, strict=True)).items() >= answered.items()
    assert _stored(database) == set(again)
    assert len(_stored(database)) == len(answered) + len(unanswered)


def _stored(database: str) -> set[str]:
    with psycopg.connect(database) as connection:
        return {tasks.format_id(row[0].bytes) for row in connection.execute("SELECT task_id FROM tasks")}
