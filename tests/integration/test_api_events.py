"""Live events over REST: pictures of the fleet for whoever watches, at the pace of each."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cloud_hub import events
from cloud_hub.api import context, snapshots
from demo import servers
from shared import tasks
from tests.integration import api_server
from tests.integration.api_server import Served, join, record, results, telemetry


@pytest.fixture
async def hub(database: str) -> AsyncIterator[Served]:
    async with api_server.serving(database) as served:
        yield served


Event = tuple[str, Any]


@contextlib.asynccontextmanager
async def watching(hub: Served) -> AsyncIterator[AsyncIterator[Event]]:
    """The events of a stream, as a browser reads them."""
    async with hub.client.stream("GET", "/v1/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")

        async def read() -> AsyncIterator[Event]:
            name = ""
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    yield name, json.loads(line.removeprefix("data: "))

        yield read()


async def first(stream: AsyncIterator[Event], wanted: str) -> Any:
    """The next event of that name."""
    async with asyncio.timeout(10):
        async for name, data in stream:
            if name == wanted:
                return data
    raise AssertionError(f"the stream ended before an event {wanted!r}")


async def test_a_watcher_sees_the_hub_the_fleet_and_its_tasks(hub: Served) -> None:
    """Who opens the stream gets at once what the hub stands on, the fleet, its books, and newest tasks."""
    agent_id = await join(hub.pool, telemetry=telemetry(items_per_s=40.0))
    await record(hub.pool, agent_id, results(3))
    done, queued = await hub.submit(), await hub.submit()
    await hub.client.post(f"/v1/tasks/{done}/cancel")
    async with watching(hub) as stream:
        assert await first(stream, "hub") == {"postgresql": "ok", "broker": "none", "redis": "none"}
        picture = await first(stream, "fleet")
        snapshots.Picture.model_validate(picture)
        assert picture["totals"]["ledger"] == {"numbered": 3, "committed": 3, "missing": 0, "waiting": 0}
        assert picture["sites"][0]["agents"][0]["name"] == "press-a"
        assert picture["throughput"] == {"*": [40.0], "lyon/press-a": [40.0]}
        lists = await first(stream, "tasks")
        assert [task["task_id"] for task in lists["recent"]] == [queued, done]
        assert [task["task_id"] for task in lists["failures"]] == [done]


async def test_changes_are_seen_within_seconds(hub: Served) -> None:
    """A picture follows the last by about a second and shows what happened since."""
    async with watching(hub) as stream:
        assert (await first(stream, "fleet"))["totals"]["agents"] == 0
        await join(hub.pool)
        async with asyncio.timeout(3):
            while (await first(stream, "fleet"))["totals"]["agents"] != 1:
                pass


async def test_ended_tasks_are_told(hub: Served) -> None:
    """A task that ends is told on the stream, with its end and its reason."""
    task_id = await hub.submit()
    async with watching(hub) as stream:
        await first(stream, "fleet")
        await hub.client.post(f"/v1/tasks/{task_id}/cancel")
        told = await first(stream, "ended")
        ended = {"task_id": task_id, "state": "TERMINATED", "reason": "cancelled", "model": "defects"}
        assert told == {"tasks": [ended], "lost": 0}


async def test_many_watchers_share_one_picture(hub: Served) -> None:
    """Twenty dashboards cost PostgreSQL no more than one: they are shown the same picture."""
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(watching(hub)) for _ in range(20)]
        pictures = await asyncio.gather(*(first(stream, "fleet") for stream in streams))
    assert len({picture["at"] for picture in pictures}) <= 2


async def test_a_watcher_that_does_not_read_holds_up_nobody(hub: Served) -> None:
    """A client that never reads loses events of its own; others and the publisher go on without it."""
    host, port = hub.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.sendall(b"GET /v1/events HTTP/1.1\r\nHost: hub\r\n\r\n")
        async with watching(hub) as stream:
            await first(stream, "fleet")
            lost = 0
            for _ in range(20):
                for _ in range(2000):
                    hub.events.publish(events.TaskEnded(tasks.new_id(), tasks.State.COMPLETED))
                lost = (await first(stream, "ended"))["lost"]
            assert lost > 0  # even one that reads gets no more than its share
            assert (await first(stream, "fleet"))["totals"]["agents"] == 0
            assert len(hub.events._subscriptions) == 2
            assert all(len(box._waiting) <= events.MAILBOX for box in hub.events._subscriptions)


async def test_watchers_are_bounded_and_leave_no_trace(database: str) -> None:
    """More watchers than the limit are refused with 429; one that leaves makes room."""
    async with api_server.serving(database, context.Settings(max_watchers=1)) as hub:
        async with watching(hub) as stream:
            await first(stream, "hub")
            refused = await hub.client.get("/v1/events")
            assert (refused.status_code, refused.json()["type"]) == (429, "/problems/busy")
        async with asyncio.timeout(5):
            while hub.events.subscribers or hub.app.state.hub.watchers.inside:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        async with watching(hub) as stream:
            await first(stream, "hub")


async def test_the_stream_ends_when_the_hub_stops(hub: Served) -> None:
    """A stopping hub ends its streams, so that it is not held up by who watches it."""
    async with watching(hub) as stream:
        await first(stream, "fleet")
        hub.events.close()
        async with asyncio.timeout(3):
            with contextlib.suppress(httpx.RemoteProtocolError):
                async for _ in stream:
                    pass


async def test_watchers_are_told_that_postgresql_is_away(tmp_path: Path) -> None:
    """While PostgreSQL is away the stream goes on and says so; when it is back there are pictures again."""
    async with servers.Postgres(tmp_path / "postgres") as postgres:
        settings = context.Settings(database_wait_s=1)
        async with api_server.serving(postgres.dsn, settings) as hub, watching(hub) as stream:
            await first(stream, "fleet")
            await postgres.stop()
            while (await first(stream, "hub"))["postgresql"] != "down":
                pass
            await postgres.start()
            await first(stream, "fleet")


async def test_throughput_is_remembered_while_nobody_watches(
    hub: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The history that a dashboard opens with was noted before it opened."""
    monkeypatch.setattr(snapshots, "EVERY_S", 0.05)
    await join(hub.pool, telemetry=telemetry(items_per_s=40.0))
    taken: snapshots.Snapshots = hub.app.state.snapshots
    running = asyncio.create_task(taken.run())
    while taken.latest is None or len(taken.latest.picture.throughput["*"]) < 5:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    running.cancel()
    async with watching(hub) as stream:
        assert (await first(stream, "fleet"))["throughput"]["lyon/press-a"][:5] == [40.0] * 5
