"""The fleet over REST: who is there by every sign, the books of each lane, health and metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from cloud_hub.api import context, fleet_view
from cloud_hub.store import lanes as lane_store
from cloud_hub.store import schedule
from shared import lanes, signals, tasks, topics
from tests.integration import api_server, stores
from tests.integration.api_server import PRESS_A, Served, join, model, record, results, telemetry

AGENT = "/v1/agents/lyon/press-a"


@pytest.fixture
async def hub(database: str) -> AsyncIterator[Served]:
    async with api_server.serving(database) as served:
        yield served


@dataclass
class Heard:
    """What a hub hears of its one agent."""

    epoch: int
    heard: float
    telemetry: signals.Telemetry | None = None

    def find(self, agent: topics.Agent) -> Heard | None:
        return self if agent == PRESS_A else None


async def test_the_fleet_has_every_agent_at_its_site(hub: Served) -> None:
    """Sites and agents come in order of name, with what each says of itself."""
    await join(hub.pool, topics.Agent("lyon", "press-b"))
    await join(hub.pool, topics.Agent("gdansk", "jetson"), telemetry=telemetry(queued=3, items_per_s=40.0))
    await join(hub.pool, PRESS_A)
    fleet = (await hub.client.get("/v1/fleet")).json()
    fleet_view.Fleet.model_validate(fleet)
    names = [(site["site"], [agent["name"] for agent in site["agents"]]) for site in fleet["sites"]]
    assert names == [("gdansk", ["jetson"]), ("lyon", ["press-a", "press-b"])]
    jetson = fleet["sites"][0]["agents"][0]
    assert (jetson["online"], jetson["software"], jetson["attention"]) == (True, "backhaul 0.1.0", [])
    assert (jetson["telemetry"]["queued"], jetson["telemetry"]["items_per_s"]) == (3, 40.0)
    assert jetson["telemetry"]["models"][0]["name"] == "defects"


async def test_a_new_epoch_takes_the_place_of_the_old(hub: Served) -> None:
    """An agent with a fresh journal is shown once, in its newest epoch."""
    await join(hub.pool, epoch=1)
    await join(hub.pool, epoch=7)
    (site,) = (await hub.client.get("/v1/fleet")).json()["sites"]
    assert [agent["epoch"] for agent in site["agents"]] == [7]


@pytest.mark.parametrize(
    ("presence", "silent_s", "status"),
    [(True, 1, "online"), (True, 11, "silent"), (False, 1, "offline"), (False, 100, "offline")],
)
def test_online_is_by_presence_and_by_heartbeat(presence: bool, silent_s: float, status: str) -> None:
    """An agent counts as online only while its presence says so and its heartbeats come."""
    assert fleet_view.status(presence, silent_s, silent_after_s=10) == status


async def test_a_dead_agent_is_not_shown_online(database: str) -> None:
    """An agent whose will never came, and that was not heard for too long, is silent, with the reason."""
    async with api_server.serving(database, context.Settings(silent_after_s=0.0)) as hub:
        await join(hub.pool, online=True)
        agent = (await hub.client.get(AGENT)).json()
        assert (agent["status"], agent["online"], agent["presence"]) == ("silent", False, True)
        assert "not heard" in agent["attention"][0]


async def test_what_the_hub_hears_is_fresher_than_the_store(database: str) -> None:
    """A heartbeat that this hub just heard is shown before it is stored, but never that of another epoch."""
    heard = Heard(epoch=1, heard=time.monotonic(), telemetry=telemetry(queued=99))
    async with api_server.serving(database, context.Settings(silent_after_s=5), live=heard) as hub:
        await join(hub.pool, telemetry=telemetry(queued=1))
        assert (await hub.client.get(AGENT)).json()["telemetry"]["queued"] == 99
        heard.epoch = 2
        assert (await hub.client.get(AGENT)).json()["telemetry"]["queued"] == 1


async def test_a_fallen_back_model_needs_attention(hub: Served) -> None:
    """A model that runs on another provider than it should is told in words, and counted."""
    fell = telemetry(models=[model(wanted="CUDA"), model("ocr", wanted="CPU")])
    await join(hub.pool, telemetry=fell)
    agent = (await hub.client.get(AGENT)).json()
    assert agent["attention"] == ["defects 3 runs on CPUExecutionProvider, not CUDAExecutionProvider"]
    assert (await hub.client.get("/v1/summary")).json()["fleet"]["attention"] == 1


async def test_the_ledger_is_computed_lane_by_lane(hub: Served) -> None:
    """Numbered, committed, missing and still to come are told of each lane, and add up in the summary."""
    agent_id = await join(hub.pool)
    await record(hub.pool, agent_id, results(40), numbered=55)
    async with hub.pool.connection() as connection:  # the agent's store has lost 3 records for good
        lane = lanes.Lane("tasks")
        await lane_store.lock(connection, agent_id, lane)
        await lane_store.advance(connection, agent_id, lane, last=10, added=7, numbered=10)
    agent = (await hub.client.get(AGENT)).json()
    books = {lane["lane"]: lane for lane in agent["lanes"] if lane["direction"] == "up"}
    assert (books["results.1"]["numbered"], books["results.1"]["committed"]) == (55, 40)
    assert (books["results.1"]["missing"], books["results.1"]["waiting"]) == (0, 15)
    assert (books["tasks.1"]["missing"], books["tasks.1"]["waiting"]) == (3, 0)
    assert agent["to_sync"] == 15
    assert agent["attention"] == ["3 records of lane tasks.1 are missing"]
    totals = (await hub.client.get("/v1/summary")).json()["fleet"]["ledger"]
    assert totals == {"numbered": 65, "committed": 47, "missing": 3, "waiting": 15}


async def test_leases_are_counted_and_shown_at_their_tasks(hub: Served) -> None:
    """A task that an agent holds counts with that agent, and names it."""
    agent_id = await join(hub.pool)
    task_id = await hub.submit()
    async with hub.pool.connection() as connection:
        await stores.lease(connection, [schedule.Grant(tasks.parse_id(task_id), agent_id, 30.0)])
    agent = (await hub.client.get(AGENT)).json()
    assert agent["leases"] == 1
    assert {lane["lane"] for lane in agent["lanes"] if lane["direction"] == "down"} == {"leases.1"}
    task = (await hub.client.get(f"/v1/tasks/{task_id}")).json()
    assert (task["state"], task["agent"], task["attempt"]) == ("PROCESSING", "lyon/press-a", 1)
    assert [(one["attempt"], one["agent"], one["state"]) for one in task["attempts"]] == [
        (1, "press-a", "PROCESSING")
    ]


async def test_drain_and_resume_are_kept_and_told(database: str) -> None:
    """Draining is stored, shown and told to the hub; resume ends it."""
    told: list[Any] = []
    async with api_server.serving(database, drained=lambda agent, drain: told.append((agent, drain))) as hub:
        await join(hub.pool)
        assert (await hub.client.post(f"{AGENT}/drain")).json()["draining"] is True
        assert (await hub.client.get(AGENT)).json()["draining"] is True
        assert (await hub.client.post(f"{AGENT}/resume")).json()["draining"] is False
    assert told == [(PRESS_A, True), (PRESS_A, False)]


async def test_a_drain_with_a_limit_puts_back_what_still_runs(hub: Served) -> None:
    """When the time is up the agent is asked, once for each attempt, to stop what it holds; not before."""
    agent_id = await join(hub.pool)
    task_id = tasks.parse_id(await hub.submit())
    async with hub.pool.connection() as connection:
        await stores.lease(connection, [schedule.Grant(task_id, agent_id, 30.0)])
    commands = "SELECT task_id, attempt, body ->> 'command' FROM outgoing WHERE lane = 'commands.1'"
    await hub.client.post(f"{AGENT}/drain")
    await hub.client.post(f"{AGENT}/drain", params={"within_s": 60})
    assert await hub.rows(commands) == []
    hub.told.clear()
    drained = await hub.client.post(f"{AGENT}/drain", params={"within_s": 0.1})
    assert (drained.json()["draining"], drained.json()["leases"]) == (True, 1)
    async with asyncio.timeout(10):
        while not hub.told:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert hub.told[0].told == {agent_id}
    await asyncio.sleep(1.2)  # it looks again, and does not ask again
    assert await hub.rows(commands) == [(task_id, 1, "preempt")]


async def test_resume_forgets_the_limit(hub: Served) -> None:
    """An agent that is given work again is not asked to stop it, when the time of an earlier drain is up."""
    agent_id = await join(hub.pool)
    await hub.client.post(f"{AGENT}/drain", params={"within_s": 0.3})
    await hub.client.post(f"{AGENT}/resume")
    task_id = tasks.parse_id(await hub.submit())
    async with hub.pool.connection() as connection:
        await stores.lease(connection, [schedule.Grant(task_id, agent_id, 30.0)])
    await asyncio.sleep(0.6)
    assert await hub.rows("SELECT count(*) FROM outgoing WHERE lane = 'commands.1'") == [(0,)]


@pytest.mark.parametrize("within_s", ["-1", "nan", "inf", "soon"])
async def test_a_limit_that_is_no_time_is_refused(hub: Served, within_s: str) -> None:
    """The limit of a drain is a time of a day at most."""
    await join(hub.pool)
    answer = await hub.client.post(f"{AGENT}/drain", params={"within_s": within_s})
    assert (answer.status_code, answer.json()["errors"][0]["where"]) == (422, "within_s")
    assert (await hub.client.get(AGENT)).json()["draining"] is False


async def test_the_summary_counts_tasks_by_state(hub: Served) -> None:
    """Tasks are counted by state, and the queued ones by model and queue."""
    await hub.client.post(f"/v1/tasks/{await hub.submit()}/cancel")
    await hub.submit(model="ocr")
    await hub.submit(model="ocr", queue="line-4")
    counted = (await hub.client.get("/v1/summary")).json()["tasks"]
    assert {state: count for state, count in counted["states"].items() if count} == {
        "QUEUED": 2,
        "TERMINATED": 1,
    }
    assert counted["queued"] == {"ocr/default": 1, "ocr/line-4": 1}


# Health and metrics


@pytest.mark.parametrize(
    ("broker", "redis", "status", "said"),
    [
        (True, True, 200, "ok"),
        (None, None, 200, "ok"),
        (True, False, 200, "degraded"),
        (False, True, 503, None),
    ],
)
async def test_ready_needs_the_broker_but_not_redis(
    database: str, broker: bool | None, redis: bool | None, status: int, said: str | None
) -> None:
    """Without its broker a hub is not ready; without Redis it is only degraded."""
    async with api_server.serving(database, broker=lambda: broker, redis=lambda: redis) as hub:
        answer = await hub.client.get("/healthz/ready")
        assert (answer.status_code, answer.json().get("status")) == (status, said or 503)
        assert (await hub.client.get("/healthz/live")).json() == {"status": "ok"}


async def test_metrics_tell_of_the_fleet_and_never_of_a_task(hub: Served) -> None:
    """Prometheus finds agents, lanes, task states and requests by route; no label has an id in it."""
    await record(hub.pool, await join(hub.pool, telemetry=telemetry(items_total=12)), results(3))
    task_id = await hub.submit()
    await hub.client.get(f"/v1/tasks/{task_id}")
    await hub.client.get("/nothing/here")
    text = (await hub.client.get("/metrics")).text
    for line in (
        'backhaul_up{part="postgresql"} 1.0',
        'backhaul_tasks{state="QUEUED"} 1.0',
        'backhaul_agent_online{agent="press-a",site="lyon"} 1.0',
        'backhaul_agent_items_total{agent="press-a",site="lyon"} 12.0',
        'backhaul_lane_committed_records{agent="press-a",direction="up",lane="results.1",site="lyon"} 3.0',
        'backhaul_http_requests_total{method="POST",route="/v1/tasks",status="202"} 1.0',
        'backhaul_http_requests_total{method="GET",route="/v1/tasks/{task_id}",status="200"} 1.0',
        'backhaul_http_requests_total{method="GET",route="none",status="404"} 1.0',
    ):
        assert line in text
    assert task_id not in text
