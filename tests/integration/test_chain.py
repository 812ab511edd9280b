"""From the device to PostgreSQL and back: each arrow between an edge, the pool and the hub."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from demo import program, servers
from tests import models
from tests.integration import agents
from tests.integration.agents import JOBS, MODEL, SITE

BRIGHT = models.png(250)
JOB = json.dumps({"image": base64.b64encode(BRIGHT).decode()})
RESULTS = f"backhaul/v1/{SITE}/results/+"
PATIENCE_S = 20.0


@dataclass
class Cloud:
    """A hub on servers of its own."""

    hub: program.Program
    broker: servers.Mosquitto
    database: str

    async def rows(self, query: str) -> list[tuple[Any, ...]]:
        async with await psycopg.AsyncConnection.connect(self.database) as connection:
            return await (await connection.execute(query)).fetchall()

    async def until(self, query: str, wanted: Callable[[Any], bool]) -> Any:
        """The first column of a query's only row, as soon as it is as `wanted`."""
        return await until(lambda: self._first(query), wanted)

    async def _first(self, query: str) -> Any:
        found = await self.rows(query)
        return found[0][0] if found else None


async def until(look: Callable[[], Awaitable[Any]], wanted: Callable[[Any], bool]) -> Any:
    """Look again and again until what is seen is as `wanted`."""
    seen = None
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not wanted(seen := await look()):  # noqa: ASYNC110 - another process, which sends no signal
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"after {PATIENCE_S:g} s it is still {seen!r}")
    return seen


@pytest.fixture
async def cloud(tmp_path: Path, database: str, redis_url: str) -> AsyncIterator[Cloud]:
    """The cloud side: a broker and a hub on an empty database."""
    async with servers.Mosquitto(tmp_path / "cloud-broker") as broker:
        hub = program.Program("hub", ["cloud-hub", "serve"], tmp_path / "hub.toml")
        hub.configure(
            {
                "database": database,
                "redis": redis_url,
                "broker": {"host": broker.host, "port": broker.port},
                "leases": {"ttl_s": 3.0, "look_every_s": 0.2},
            }
        )
        async with agents.running(hub):
            yield Cloud(hub, broker, database)


def pool(directory: Path, cloud: Cloud, **sections: Any) -> program.Program:
    """An agent of the cloud pool."""
    directory.mkdir(exist_ok=True)
    return agents.agent(directory, None, cloud.broker, **{"site": "cloud", "name": "pool-1", **sections})


async def curl(hub: program.Program, *words: str, body: bytes | None = None) -> tuple[int, Any]:
    """Ask the hub with curl: the status and the JSON it answers."""
    process = await asyncio.create_subprocess_exec(
        "curl",
        *("-sS", "-w", "\n%{http_code}", *words[:-1], f"{hub.url}{words[-1]}"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate(body)
    text, _, status = printed.decode().rpartition("\n")
    return int(status), json.loads(text)


async def publish(broker: servers.Mosquitto, count: int, device: str = "camera-1") -> None:
    topic = JOBS.replace("camera-1", device)
    await agents.run(
        "mosquitto_pub", broker, "-q", "1", "-t", topic, "-l", stdin=(JOB + "\n").encode() * count
    )


async def test_results_reach_the_table(cloud: Cloud, broker: servers.Mosquitto, tmp_path: Path) -> None:
    """Each job published at a site is one row in PostgreSQL, and the ledger says that none is missing."""
    async with agents.running(agents.agent(tmp_path, broker, cloud.broker)):
        await publish(broker, 100)
        await cloud.until("SELECT count(*) FROM results", lambda count: count == 100)
    rows = await cloud.rows("SELECT DISTINCT device, model, version, outcome, label FROM results")
    assert rows == [("camera-1", MODEL, "1.0.0", "ok", "bright")]
    assert await cloud.rows("SELECT count(*) FROM tasks") == [(0,)], "a local task is the edge's own"
    status, told = await curl(cloud.hub, f"/v1/agents/{SITE}/edge-1")
    assert status == 200
    lanes = {(lane["direction"], lane["lane"]): lane for lane in told["lanes"]}
    assert lanes["up", "results.1"]["committed"] == 100
    assert lanes["up", "results.1"]["missing"] == 0


async def test_one_broker_may_serve_a_site_and_the_cloud(cloud: Cloud, tmp_path: Path) -> None:
    """An agent's connections do not push each other off a broker that is the site's and the cloud's."""
    async with agents.running(agents.agent(tmp_path, cloud.broker, cloud.broker)):
        await publish(cloud.broker, 100)
        await cloud.until("SELECT count(*) FROM results", lambda count: count == 100)
    assert "already connected" not in cloud.broker.log.read_text()


async def test_a_site_works_without_the_cloud_and_syncs_later(
    cloud: Cloud, broker: servers.Mosquitto, tmp_path: Path
) -> None:
    """With no cloud an agent starts cold, answers its devices, starts again, and syncs by itself later."""
    await cloud.broker.stop()
    edge = agents.agent(tmp_path, broker, cloud.broker)
    async with agents.running(edge), agents.Replies(broker, RESULTS) as replies:
        await publish(broker, 30)
        for _ in range(30):
            assert (await replies.next())["state"] == "COMPLETED"
        await edge.kill()
        await edge.start()
        await publish(broker, 30)
        for _ in range(30):
            assert (await replies.next())["state"] == "COMPLETED"
        assert await cloud.rows("SELECT count(*) FROM results") == [(0,)]
        await cloud.broker.start()
        await cloud.until("SELECT count(*) FROM results", lambda count: count >= 60)
    assert await cloud.rows("SELECT count(*), count(DISTINCT task_id) FROM results") == [(60, 60)]


async def test_overflow_runs_in_the_pool_and_its_reply_comes_home(
    cloud: Cloud, broker: servers.Mosquitto, tmp_path: Path
) -> None:
    """A job whose model is not at the site runs in the pool, and its device hears the verdict at home."""
    models.write_scorer(tmp_path / "pool-models" / "mean")
    topic = f"backhaul/v1/{SITE}/jobs/gauge-1/mean"
    request = {
        "inputs": [{"name": "window", "shape": [2, 4], "datatype": "FP32", "data": [1] * 4 + [20] * 4}]
    }
    async with (
        agents.running(agents.agent(tmp_path, broker, cloud.broker)),
        agents.running(pool(tmp_path / "pool", cloud, models=str(tmp_path / "pool-models"))),
        agents.Replies(broker, RESULTS) as replies,
    ):
        await agents.run("mosquitto_pub", broker, "-q", "1", "-t", topic, "-m", json.dumps(request))
        reply = await replies.next()
        assert reply["state"] == "COMPLETED"
        assert [item["label"] for item in reply["items"]] == ["normal", "high"]
        rows = await cloud.rows(
            "SELECT r.item, r.label, a.site FROM results r JOIN agents a USING (agent_id) ORDER BY item"
        )
        assert rows == [(0, "normal", "cloud"), (1, "high", "cloud")]
        assert await cloud.rows("SELECT state FROM tasks") == [("COMPLETED",)]


async def test_a_rest_submission_runs_on_an_agent(cloud: Cloud, tmp_path: Path) -> None:
    """curl submits a picture, waits for its end, and reads its results; the agent that ran it is named."""
    async with agents.running(pool(tmp_path / "pool", cloud)):
        status, submitted = await curl(
            cloud.hub,
            *("--data-binary", "@-", "-H", "Content-Type: image/png", f"/v1/tasks?model={MODEL}"),
            body=BRIGHT,
        )
        assert status == 202
        task = submitted["task_id"]
        status, ended = await curl(cloud.hub, f"/v1/tasks/{task}?wait=15")
        assert (status, ended["state"]) == (200, "COMPLETED")
        status, results = await curl(cloud.hub, f"/v1/tasks/{task}/results")
    assert status == 200
    assert [row["label"] for row in results["results"]] == ["bright"]


async def test_a_lease_of_an_agent_that_died_is_given_to_another(cloud: Cloud, tmp_path: Path) -> None:
    """Tasks leased to an agent that is killed run elsewhere when their leases run out, once each."""
    first = pool(tmp_path / "first", cloud, name="pool-1")
    async with agents.running(first):
        await until(lambda: first.ask("/status"), lambda told: bool(told and told["uplink"]["hub_reachable"]))
        await first.kill()
        body = json.dumps({"tasks": [{"model": MODEL, **json.loads(JOB)}] * 20}).encode()
        status, _ = await curl(
            cloud.hub,
            "--data-binary",
            "@-",
            "-H",
            "Content-Type: application/json",
            "/v1/tasks/batch",
            body=body,
        )
        assert status == 202
        async with agents.running(pool(tmp_path / "second", cloud, name="pool-2")):
            await cloud.until(
                "SELECT count(*) FROM tasks WHERE state = 'COMPLETED'", lambda count: count == 20
            )
    assert await cloud.rows("SELECT count(*), count(DISTINCT task_id) FROM results") == [(20, 20)]


async def test_what_is_handed_over_is_taken_back_when_the_hub_is_away(
    cloud: Cloud, broker: servers.Mosquitto, tmp_path: Path
) -> None:
    """With nobody to run it the hub holds a task; when the hub goes away, its site runs it and answers."""
    edge = agents.agent(
        tmp_path,
        broker,
        cloud.broker,
        overflow={"max_wait_s": 0.0, "reclaim_after_s": 0.5},
        leases={"slots": 0},
    )
    async with agents.running(edge), agents.Replies(broker, RESULTS) as replies:
        await until(lambda: edge.ask("/status"), lambda told: bool(told and told["uplink"]["hub_reachable"]))
        await publish(broker, 200)
        waiting = await cloud.until(
            "SELECT count(*) FROM tasks WHERE state = 'QUEUED'", lambda count: count > 0
        )
        await cloud.broker.kill()
        seen: set[str] = set()
        while len(seen) < 200:
            reply = await replies.next()
            assert reply["state"] == "COMPLETED"
            seen.add(reply["task_id"])
        await cloud.broker.start()
        await cloud.until("SELECT count(*) FROM results", lambda count: count == 200)
        await cloud.until("SELECT count(*) FROM tasks WHERE state <> 'COMPLETED'", lambda count: count == 0)
    assert waiting > 0
    assert await cloud.rows("SELECT count(*), count(DISTINCT task_id) FROM results") == [(200, 200)]


async def test_presence_tells_who_is_gone(cloud: Cloud, broker: servers.Mosquitto, tmp_path: Path) -> None:
    """A killed agent is shown offline within seconds, by its will; back again, online in the same epoch."""
    edge = agents.agent(tmp_path, broker, cloud.broker)

    async def status() -> Any:
        return (await curl(cloud.hub, f"/v1/agents/{SITE}/edge-1"))[1].get("status")

    async with agents.running(edge):
        await until(status, lambda told: told == "online")
        epoch = (await curl(cloud.hub, f"/v1/agents/{SITE}/edge-1"))[1]["epoch"]
        await edge.kill()
        await until(status, lambda told: told == "offline")
        await edge.start()
        await until(status, lambda told: told == "online")
        assert (await curl(cloud.hub, f"/v1/agents/{SITE}/edge-1"))[1]["epoch"] == epoch


async def test_a_backlog_does_not_hold_up_live_results(
    cloud: Cloud, broker: servers.Mosquitto, tmp_path: Path
) -> None:
    """What piled up while the link was cut drains on its old lane, and new results come on a fresh one."""
    await cloud.broker.stop()
    edge = agents.agent(tmp_path, broker, cloud.broker, uplink={"backlog_records": 50})
    async with agents.running(edge), agents.Replies(broker, RESULTS) as replies:
        await publish(broker, 120)
        for _ in range(120):
            await replies.next()
        await cloud.broker.start()
        await cloud.until("SELECT count(*) FROM results", lambda count: count >= 1)
        await publish(broker, 10)
        await cloud.until("SELECT count(*) FROM results", lambda count: count == 130)
    lanes = dict(await cloud.rows("SELECT lane, committed FROM up_lanes WHERE lane LIKE 'results%'"))
    assert lanes == {"results.1": 120, "results.2": 10}


async def test_a_restored_journal_takes_a_new_epoch(
    cloud: Cloud, broker: servers.Mosquitto, tmp_path: Path
) -> None:
    """An agent whose disk was put back to an older state loses no result to numbers given before."""
    edge = agents.agent(tmp_path, broker, cloud.broker)
    state = tmp_path / "state"

    async def done(device: str, count: int) -> None:
        """Its jobs have results: at least so many, for what a broker hands over again is a job again."""
        await publish(broker, count, device)
        query = f"SELECT count(*) FROM results WHERE device = '{device}'"
        await cloud.until(query, lambda seen: seen >= count)

    async with agents.running(edge):
        await done("camera-1", 20)
        await edge.stop()
        shutil.copytree(state, tmp_path / "backup")
        await edge.start()
        await done("camera-2", 30)
        await edge.stop()
        shutil.rmtree(state)
        shutil.copytree(tmp_path / "backup", state)
        await edge.start()
        await done("camera-3", 40)
    assert await cloud.rows("SELECT count(DISTINCT epoch) FROM agents") == [(2,)]
    assert await cloud.rows("SELECT sum(cursor - committed) FROM up_lanes") == [(0,)]


async def test_an_agent_that_stops_puts_leased_tasks_back(cloud: Cloud, tmp_path: Path) -> None:
    """SIGTERM gives what was leased and not started back at once, not when its leases run out."""
    first = pool(tmp_path / "first", cloud, leases={"ahead_s": 60.0, "slots": 500}, engine={"window": 500})
    slow = "[batching]\nmax_batch = 500\nmax_delay_ms = 60000\nlearn = false\n"
    manifest = tmp_path / "first" / "models" / MODEL / "model.toml"
    manifest.write_text(manifest.read_text() + slow)
    async with agents.running(first):
        await until(lambda: first.ask("/status"), lambda told: bool(told and told["uplink"]["hub_reachable"]))
        body = json.dumps({"tasks": [{"model": MODEL, **json.loads(JOB)}] * 20}).encode()
        await curl(
            cloud.hub,
            *("--data-binary", "@-", "-H", "Content-Type: application/json", "/v1/tasks/batch"),
            body=body,
        )
        await until(lambda: first.ask("/status"), lambda told: told["telemetry"]["queued"] == 20)
    await cloud.until("SELECT count(*) FROM tasks WHERE state = 'QUEUED'", lambda count: count == 20)
    states = await cloud.rows("SELECT state, error, count(*) FROM attempts GROUP BY 1, 2")
    assert states == [("QUEUED", None, 20)]
