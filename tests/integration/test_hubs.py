"""Hubs as processes, killed, stopped and started again while agents send: nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cloud_hub import replicas
from cloud_hub.store import hubs as hub_store
from demo import background, program, servers
from shared import topics
from tests.integration import agents
from tests.integration.agents import MODEL
from tests.integration.test_chain import BRIGHT, JOB, curl, until

SITES = ["plant-0", "plant-1", "plant-2", "plant-3"]
TAKEN_OVER_S = hub_store.LIVE_S + 2 * replicas.BEAT_S + 2.5
"""Missed, noticed by the others, the agents' batches sent again; and some for a busy machine."""


@dataclass
class Floor:
    """Some hubs on one database and broker, and agents of several sites."""

    hubs: list[program.Program]
    edges: list[program.Program]
    site_broker: servers.Mosquitto
    database: str
    published: int = 0

    async def ask(self, query: str, *parameters: Any) -> Any:
        """The one value that a query gives."""
        async with await psycopg.AsyncConnection.connect(self.database) as connection:
            row = await (await connection.execute(query, parameters)).fetchone()
        assert row is not None
        return row[0]

    async def live(self) -> dict[str, program.Program]:
        """The hubs that say that they are alive, by their ids."""
        query = "SELECT coalesce(array_agg(hub_id), '{}') FROM hubs WHERE seen_at > now() - interval '2 s'"
        ids = await self.ask(query)
        return {hub_id: one for hub_id in ids for one in self.hubs if f":{one.port}/" in hub_id}

    async def all_live(self, count: int) -> None:
        await until(self.live, lambda live: len(live) == count)

    async def busiest(self) -> tuple[program.Program, list[str]]:
        """The hub that serves most, and the sites of those agents."""
        live = await self.live()
        served: dict[str, list[str]] = {}
        for site in SITES:
            served.setdefault(replicas.owner(topics.Agent(site, "edge-1"), live), []).append(site)
        hub_id = max(served, key=lambda one: len(served[one]))
        return live[hub_id], served[hub_id]

    async def publish(self, count: int, every_s: float = 0.0) -> None:
        """So many jobs at each site."""
        for _ in range(count // 10):
            for site in SITES:
                await agents.run(
                    "mosquitto_pub",
                    self.site_broker,
                    *("-q", "1", "-t", f"backhaul/v1/{site}/jobs/camera-1/{MODEL}", "-l"),
                    stdin=(JOB + "\n").encode() * 10,
                )
                self.published += 10
            await asyncio.sleep(every_s)

    async def arrived(self, site: str) -> int:
        """Results of a site that are committed."""
        return int(
            await self.ask(
                "SELECT coalesce(sum(committed), 0) FROM up_lanes JOIN agents USING (agent_id)"
                " WHERE site = %s AND lane LIKE 'results%%'",
                site,
            )
        )

    async def balanced(self) -> None:
        """Wait until each job has its result; then none is there twice, and none is missing."""
        await until(lambda: self.ask("SELECT count(*) FROM results"), lambda count: count >= self.published)
        assert await self.ask("SELECT count(DISTINCT task_id) FROM results") == self.published
        assert await self.ask("SELECT count(*) FROM results") == self.published
        assert await self.ask("SELECT sum(cursor - committed) FROM up_lanes") == 0


@pytest.fixture
async def floor(
    tmp_path: Path,
    database: str,
    broker: servers.Mosquitto,
    redis_url: str,
    request: pytest.FixtureRequest,
) -> AsyncIterator[Floor]:
    """Three hubs, with Redis or without, and an agent at each site."""
    async with contextlib.AsyncExitStack() as stack:
        cloud = await stack.enter_async_context(servers.Mosquitto(tmp_path / "cloud-broker"))
        hubs = []
        for n in range(3):
            hub = program.Program(f"hub-{n}", ["cloud-hub", "serve"], tmp_path / f"hub-{n}.toml")
            settings: dict[str, Any] = {
                "database": database,
                "broker": {"host": cloud.host, "port": cloud.port},
                "leases": {"ttl_s": 8.0},
            }
            hub.configure(settings | ({"redis": redis_url} if request.param else {}))
            hubs.append(hub)
        edges = []
        for site in SITES:
            (tmp_path / site).mkdir()
            edges.append(agents.agent(tmp_path / site, broker, cloud, site=site))
        everything = [*hubs, *edges]
        stack.push_async_callback(lambda: background.together(one.close() for one in everything))
        await hubs[0].start()  # which migrates the database
        await background.together(one.start() for one in everything[1:])
        floor = Floor(hubs, edges, broker, database)
        await floor.all_live(3)
        yield floor


@pytest.mark.parametrize(
    "floor",
    [pytest.param(True, id="redis"), pytest.param(False, id="no redis", marks=pytest.mark.soak)],
    indirect=True,
)
async def test_a_killed_hub_is_succeeded_within_seconds(floor: Floor) -> None:
    """Its agents' results go on at another hub, all of them and once; back again it takes its share."""
    await floor.publish(20)
    await floor.balanced()
    hub, sites = await floor.busiest()
    publishing = asyncio.create_task(floor.publish(150, 0.3))
    await asyncio.sleep(0.5)
    await hub.kill()
    killed = time.monotonic()
    before = {site: await floor.arrived(site) for site in sites}
    for site in sites:
        await until(lambda: floor.arrived(site), lambda now: now > before[site] + 20)  # noqa: B023
    taken_over_s = time.monotonic() - killed
    print(f"taken over after {taken_over_s:.1f} s")
    assert taken_over_s < TAKEN_OVER_S
    await hub.start()
    await floor.all_live(3)
    await publishing
    await floor.balanced()


@pytest.mark.parametrize("floor", [False], indirect=True, ids=["no redis"])
async def test_hubs_that_are_killed_in_turn_lose_nothing(floor: Floor) -> None:
    """Each is killed and started again while devices publish and clients submit."""
    publishing = asyncio.create_task(floor.publish(150, 0.3))
    submitted: list[str] = []
    for turn, hub in enumerate(floor.hubs):
        other = floor.hubs[(turn + 1) % 3]
        submitted += await submit(other, 20)
        await hub.kill()
        submitted += await submit(other, 20)
        await hub.start()
    await publishing
    floor.published += len(submitted)
    await floor.balanced()
    states = "SELECT count(*) FROM tasks WHERE state <> 'COMPLETED'"
    await until(lambda: floor.ask(states), lambda count: count == 0)


@pytest.mark.parametrize("floor", [True], indirect=True, ids=["redis"])
async def test_a_hub_that_slept_does_no_harm(floor: Floor) -> None:
    """Stopped until the others have taken its agents over, it wakes up believing that they are its own."""
    publishing = asyncio.create_task(floor.publish(150, 0.3))
    hub, sites = await floor.busiest()
    os.kill(hub.pid, signal.SIGSTOP)
    try:
        before = {site: await floor.arrived(site) for site in sites}
        for site in sites:
            await until(lambda: floor.arrived(site), lambda now: now > before[site] + 20)  # noqa: B023
    finally:
        os.kill(hub.pid, signal.SIGCONT)
    await floor.all_live(3)
    await publishing
    await floor.balanced()
    status, told = await curl(hub, "/healthz/ready")
    assert status == 200, told


async def submit(hub: program.Program, count: int) -> list[str]:
    """Tasks for whoever has the model; their ids."""
    tasks = []
    for _ in range(count):
        status, submitted = await curl(
            hub,
            *("--data-binary", "@-", "-H", "Content-Type: image/png", f"/v1/tasks?model={MODEL}"),
            body=BRIGHT,
        )
        assert status == 202, json.dumps(submitted)
        tasks.append(submitted["task_id"])
    return tasks
