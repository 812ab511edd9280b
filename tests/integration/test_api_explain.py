"""Why a task waits and why it went where it went, over REST."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cloud_hub.api import explain as api
from cloud_hub.store import apply, explain, queues, schedule
from cloud_hub.store import tasks as task_store
from shared import tasks, topics
from shared.tasks import State
from tests.integration import api_server, stores
from tests.integration.api_server import Served, join, model, telemetry

PRESS_B = topics.Agent("lyon", "press-b")
WHY = {
    "predicted_s": 0.9,
    "wait_s": 0.2,
    "transfer_s": 0.1,
    "run_s": 0.6,
    "able": 3,
    "effective_priority": 6,
}


@pytest.fixture
async def hub(database: str) -> AsyncIterator[Served]:
    async with api_server.serving(database) as served:
        yield served


async def ask(hub: Served, task_id: str) -> dict[str, Any]:
    """The explanation, which is as the description of the API has it."""
    answer = await hub.client.get(f"/v1/tasks/{task_id}/explain")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    api.Explanation.model_validate(found)
    return found


async def waits(hub: Served, task_id: str) -> dict[str, Any]:
    found: dict[str, Any] = (await ask(hub, task_id))["waiting"]
    return found


async def grant(hub: Served, task_id: str, agent_id: int, why: Any = WHY) -> None:
    text = why if isinstance(why, str) else json.dumps(why)
    async with hub.pool.connection() as connection:
        grants = [schedule.Grant(tasks.parse_id(task_id), agent_id, 30.0, 6, text)]
        assert await stores.lease(connection, grants)


def codes(waiting: dict[str, Any]) -> list[str]:
    return [cause["code"] for cause in waiting["causes"]]


# Waiting


async def test_a_waiting_task_knows_what_it_waits_for(hub: Served) -> None:
    """As the fleet changes, so does the reason: nobody has the model, nobody has room, its turn comes."""
    task_id = await hub.submit()
    assert codes(await waits(hub, task_id)) == ["no_agent"]
    agent_id = await join(hub.pool, telemetry=telemetry(capacity=1))
    assert codes(await waits(hub, task_id)) == ["turn"]
    await grant(hub, await hub.submit(), agent_id)
    busy = await waits(hub, task_id)
    assert codes(busy)[0] == "no_room"
    assert "lyon/press-a 1 of 1" in busy["causes"][0]["text"]
    assert busy["able"] == [{"agent": "lyon/press-a", "credits": 0, "items_per_s": 40.0}]
    await hub.client.post("/v1/agents/lyon/press-a/drain")
    assert codes(await waits(hub, task_id)) == ["draining"]


async def test_selectors_are_held_against_labels(hub: Served) -> None:
    """A task that asks for labels which nobody has says which, and is answered by what its site is."""
    told = telemetry(models=[model()])
    told.labels = {"gpu": "h100"}
    await join(hub.pool, telemetry=told)
    nowhere = await waits(hub, await hub.submit(selector="gpu=none,site=lyon"))
    assert (codes(nowhere), nowhere["selector"]) == (["selector"], "gpu=none,site=lyon")
    assert codes(await waits(hub, await hub.submit(selector="site=lyon,gpu=h100"))) == ["turn"]


async def test_a_queue_at_its_limit_is_the_reason(hub: Served) -> None:
    """So many of its queue run as may, though the agents have room."""
    agent_id = await join(hub.pool, telemetry=telemetry())
    async with hub.pool.connection() as connection:
        await queues.put(connection, queues.Queue(name="archive", max_running=1))
    await grant(hub, await hub.submit(queue="archive"), agent_id)
    assert codes(await waits(hub, await hub.submit(queue="archive"))) == ["queue_limit"]


async def test_its_place_is_exact(hub: Served) -> None:
    """What is before a task: higher priorities of its model, older ones of its class, others beside it."""
    for priority, queue in ((7, "default"), (7, "archive"), (5, "default"), (5, "default"), (3, "default")):
        await hub.submit(priority=priority, queue=queue)
    task_id = await hub.submit()
    await hub.submit()
    await hub.submit(queue="archive")
    await hub.submit(model="ocr", priority=9)
    assert (await waits(hub, task_id))["before"] == {
        "higher": 2,
        "same": 2,
        "same_is_more": False,
        "beside": 1,
    }


async def test_counting_stops(hub: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a very long queue a place is only told to be beyond what is counted."""
    monkeypatch.setattr(explain, "MOST", 100)
    async with hub.pool.connection() as connection:
        await task_store.submit(connection, [stores.submission(model="defects") for _ in range(150)])
    before = (await waits(hub, await hub.submit()))["before"]
    assert (before["same"], before["same_is_more"]) == (100, True)


async def test_the_turn_is_predicted(hub: Served) -> None:
    """From the tasks before it and the speed that the fleet measured."""
    agent_id = await join(hub.pool, telemetry=telemetry(capacity=1))
    await grant(hub, await hub.submit(), agent_id)
    for _ in range(80):
        await hub.submit()
    assert (await waits(hub, await hub.submit()))["turn_in_s"] == pytest.approx(2.0)


async def test_waiting_raises_its_priority(hub: Served) -> None:
    """The priority by which it goes is shown beside the one that it was given."""
    task_id = await hub.submit()
    async with hub.pool.connection() as connection:
        await connection.execute("UPDATE tasks SET submitted_at = now() - interval '700 s'")
    found = await waits(hub, task_id)
    assert (found["priority"], found["effective_priority"]) == (5, 7)


async def test_a_task_that_failed_waits_for_its_time(hub: Served) -> None:
    """While it backs off that is the reason, with how long."""
    await join(hub.pool, telemetry=telemetry())
    task_id = await hub.submit()
    async with hub.pool.connection() as connection:
        await connection.execute("UPDATE tasks SET not_before = now() + interval '40 s'")
    found = await waits(hub, task_id)
    assert codes(found) == ["backing_off"]
    assert "tried again in 40 s" in found["causes"][0]["text"]


# Decisions


async def test_a_decision_names_the_runners_up(hub: Served) -> None:
    """The chosen agent, what it was predicted to take, and the others by name with their scores."""
    here, there = await join(hub.pool, telemetry=telemetry()), await join(hub.pool, PRESS_B)
    task_id = await hub.submit()
    await grant(hub, task_id, here, WHY | {"others": [[there, 1.4], [999, 2.0]], "tag": 3.5, "moon": "full"})
    found = await ask(hub, task_id)
    assert (found["state"], found["waiting"]) == ("PROCESSING", None)
    (decision,) = found["decisions"]
    assert {name: decision[name] for name in WHY} == WHY
    assert decision["agent"] == "lyon/press-a"
    assert decision["others"] == [
        {"agent": "lyon/press-b", "predicted_s": 1.4},
        {"agent": "agent 999", "predicted_s": 2.0},
    ]
    assert (decision["tag"], decision["more"]) == (3.5, {"moon": "full"})
    assert (decision["state"], decision["stopping"]) == ("PROCESSING", False)


async def test_every_attempt_tells_how_it_ended(hub: Served) -> None:
    """One that was put back and one that failed, each with what its decision weighed."""
    agent_id = await join(hub.pool, telemetry=telemetry())
    task_id = await hub.submit()
    await grant(hub, task_id, agent_id)
    urgent = tasks.new_id()
    async with hub.pool.connection() as connection:
        await schedule.stop(connection, [(tasks.parse_id(task_id), 1)], [urgent])
    assert (await ask(hub, task_id))["decisions"][0]["stopping"] is True
    for attempt, state in ((1, State.QUEUED), (2, State.FAILED)):
        async with hub.pool.connection() as connection:
            said = stores.report(tasks.parse_id(task_id), attempt, state, error="no channel 3")
            await apply.attempts(connection, agent_id, said)
        if attempt == 1:
            await grant(hub, task_id, agent_id)
    found = await ask(hub, task_id)
    assert (found["state"], found["reason"]) == ("TERMINATED", "not_retriable")
    first, second = found["decisions"]
    assert (first["state"], first["preempted_for"]) == ("QUEUED", tasks.format_id(urgent))
    assert first["predicted_s"] == 0.9
    assert (second["state"], second["error"], second["effective_priority"]) == ("FAILED", "no channel 3", 6)


@pytest.mark.parametrize(
    ("why", "more"),
    [
        ("moonlight", {"why": "moonlight"}),
        ('["a"]', {"why": ["a"]}),
        ('{"able": "many"}', {"able": "many"}),
        ('{"others": {"7": 1}}', {}),
    ],
)
async def test_what_a_scheduler_of_another_version_noted_is_shown(hub: Served, why: str, more: Any) -> None:
    """What cannot be understood is shown as it is, and the rest of the explanation stands."""
    task_id = await hub.submit()
    await grant(hub, task_id, await join(hub.pool), why)
    (decision,) = (await ask(hub, task_id))["decisions"]
    assert (decision["more"], decision["able"], decision["others"]) == (more, None, [])


async def test_the_plan_is_by_index_alone(hub: Served) -> None:
    """The place of a task is counted on the index, without a look into the table."""
    async with hub.pool.connection() as connection:
        await task_store.submit(connection, [stores.submission() for _ in range(200)])
    async with hub.pool.connection() as connection:
        await connection.set_autocommit(True)
        await connection.execute("VACUUM ANALYZE tasks")
        place = {"class_id": 1, "priority": 5, "task_id": tasks.format_id(tasks.new_id()), "limit": 99}
        plan = await (await connection.execute(b"EXPLAIN " + explain._SQL["before"], place)).fetchall()
        await connection.set_autocommit(False)
    assert any("Index Only Scan" in line and "tasks_queued" in line for (line,) in plan), plan
