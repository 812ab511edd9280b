"""Queues over REST: their settings, what is in them, and what their limits do to submissions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from cloud_hub import queues
from cloud_hub.store import agents, apply, schedule
from cloud_hub.store import queues as queue_store
from cloud_hub.store import tasks as task_store
from shared import tasks
from tests.integration import api_server, stores
from tests.integration.api_server import PRESS_A, Served, join, png

ARCHIVE = "/v1/queues/archive"


@pytest.fixture
async def hub(database: str) -> AsyncIterator[Served]:
    async with api_server.serving(database) as served:
        yield served


async def settings(hub: Served, **said: Any) -> dict[str, Any]:
    """Give queue `archive` these settings."""
    answer = await hub.client.put(ARCHIVE, json=said)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def send(hub: Served, *priorities: int | None, **said: Any) -> httpx.Response:
    """Submit a batch into queue `archive`, a task of each priority."""
    one = {"model": "defects", "queue": "archive", **said}
    one["inputs"] = [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]
    body = [one | ({} if priority is None else {"priority": priority}) for priority in priorities]
    return await hub.client.post("/v1/tasks/batch", json={"tasks": body})


async def archive(hub: Served) -> dict[str, Any]:
    found: dict[str, Any] = (await hub.client.get(ARCHIVE)).json()
    return found


async def states(hub: Served) -> list[tuple[int, str, str | None]]:
    """(priority, state, reason) of every task, oldest first."""
    return [
        tuple(row) for row in await hub.rows("SELECT priority, state, reason FROM tasks ORDER BY task_id")
    ]


# Settings


async def test_settings_are_put_whole_and_go_by_the_name(hub: Served) -> None:
    """PUT gives all settings at once: again it changes nothing, and what it does not say is the default."""
    said = {"weight": 3.0, "max_running": 8, "max_queued": 100, "max_per_second": 2.5, "default_priority": 2}
    first = await settings(hub, **said, when_full="drop_lowest")
    assert {name: first[name] for name in said} == said
    assert (await settings(hub, **said, when_full="drop_lowest"))["updated_at"] == first["updated_at"]
    assert hub.queues.max_running("archive") == 8
    again = await settings(hub, weight=2)
    assert (again["weight"], again["max_running"], again["when_full"]) == (2.0, None, "reject")
    assert (hub.queues.weight("archive"), hub.queues.limited()) == (2.0, ())


async def test_a_queue_without_settings_is_a_queue(hub: Served) -> None:
    """One that nobody set up has weight 1 and no limits; to delete its settings twice is no error."""
    fresh = await archive(hub)
    assert (fresh["weight"], fresh["max_queued"], fresh["updated_at"], fresh["queued"]) == (
        1.0,
        None,
        None,
        0,
    )
    await settings(hub, weight=7)
    await send(hub, 5)
    for _ in range(2):
        gone = (await hub.client.delete(ARCHIVE)).json()
        assert (gone["weight"], gone["updated_at"], gone["queued"]) == (1.0, None, 1)
    assert hub.queues.weight("archive") == 1.0


@pytest.mark.parametrize(
    ("name", "said", "where"),
    [
        ("archive", {"weight": 0}, "weight"),
        ("archive", {"weight": -1}, "weight"),
        ("archive", {"max_running": -1}, "max_running"),
        ("archive", {"max_queued": 2**63}, "max_queued"),
        ("archive", {"max_per_second": 0}, "max_per_second"),
        ("archive", {"default_priority": 10}, "default_priority"),
        ("archive", {"when_full": "panic"}, "when_full"),
        ("archive", {"wieght": 2}, "wieght"),
        ("+", {}, "name"),
    ],
)
async def test_settings_that_make_no_sense_are_refused(
    hub: Served, name: str, said: dict[str, Any], where: str
) -> None:
    """A value out of its range, a word that is none and a name that is none are problems that say where."""
    answer = await hub.client.put(f"/v1/queues/{name}", json=said)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert answer.json()["errors"][0]["where"] == where
    assert await hub.rows("SELECT count(*) FROM queues") == [(0,)]


async def test_settings_of_another_hub_are_known_within_a_second(hub: Served) -> None:
    """A hub reads the settings again and again, and needs no word from whoever changed them."""
    running = asyncio.create_task(hub.queues.run())
    async with hub.pool.connection() as connection:
        await queue_store.put(connection, queue_store.Queue(name="archive", max_running=3))
    async with asyncio.timeout(5):
        while hub.queues.limited() != ("archive",):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    running.cancel()


# What is in them


async def test_the_list_says_what_waits_and_what_runs(hub: Served) -> None:
    """Depths by priority, running tasks, the age of the first and the rate, of every queue there is."""
    await settings(hub, weight=2)
    agent_id = await join(hub.pool)
    await send(hub, 7, 7, 2)
    running = await hub.submit(queue="line-4")
    async with hub.pool.connection() as connection:
        await stores.lease(connection, [schedule.Grant(tasks.parse_id(running), agent_id, 30.0)])
        await connection.execute("UPDATE tasks SET submitted_at = now() - interval '90 s' WHERE priority = 2")
    found = {one["name"]: one for one in (await hub.client.get("/v1/queues")).json()["queues"]}
    assert list(found) == ["archive", "line-4"]
    assert (found["archive"]["queued"], found["archive"]["by_priority"]) == (3, {"7": 2, "2": 1})
    assert found["archive"]["oldest_s"] == pytest.approx(90, abs=10)
    assert found["archive"]["submitted_per_s"] == pytest.approx(3 / queues.LATELY_S, rel=0.5)
    assert (found["line-4"]["queued"], found["line-4"]["running"]) == (0, 1)


# Limits


async def test_a_full_queue_refuses_with_what_to_do(hub: Served) -> None:
    """At its limit a queue answers 429 and when to come; nothing of a batch that does not fit is stored."""
    await settings(hub, max_queued=3)
    assert (await send(hub, 5, 5)).status_code == 202
    full = await send(hub, 9, 9)
    assert (full.status_code, full.json()["type"]) == (429, "/problems/queue-full")
    assert int(full.headers["retry-after"]) >= 1
    assert "backhaul queues set archive --max-queued" in full.json()["detail"]
    assert (await send(hub, 5)).status_code == 202
    assert (await archive(hub))["queued"] == 3
    never = await send(hub, 5, 5, 5, 5)
    assert (never.status_code, never.json()["type"]) == (413, "/problems/too-large")
    metrics = (await hub.client.get("/metrics")).text
    assert 'backhaul_http_requests_total{method="POST",route="/v1/tasks/batch",status="429"} 1.0' in metrics


async def test_room_is_made_by_whatever_leaves_the_queue(hub: Served) -> None:
    """A task that was placed or cancelled waits no more, and another one gets in."""
    await settings(hub, max_queued=2)
    await send(hub, 5, 5)
    first, second = (tasks.format_id(row[0]) for row in await hub.rows("SELECT task_id FROM tasks"))
    await hub.client.post(f"/v1/tasks/{first}/cancel")
    assert (await send(hub, 5)).status_code == 202
    async with hub.pool.connection() as connection:
        agent_id = (await agents.seen(connection, PRESS_A, 1)).agent_id
        await stores.lease(connection, [schedule.Grant(tasks.parse_id(second), agent_id, 30.0)])
    assert (await send(hub, 5)).status_code == 202
    assert (await send(hub, 5)).status_code == 429


async def test_a_limit_is_exact_however_many_come_at_once(hub: Served) -> None:
    """Of a hundred clients at once as many get in as there is room for, and each other one is refused."""
    await settings(hub, max_queued=37)
    answers = await asyncio.gather(*(send(hub, 5) for _ in range(100)))
    assert sorted(answer.status_code for answer in answers) == [202] * 37 + [429] * 63
    assert await hub.rows("SELECT count(*) FROM tasks") == [(37,)]
    assert (await archive(hub))["queued"] == 37


async def test_a_repetition_finds_its_task_in_a_full_queue(hub: Served) -> None:
    """Who repeats a submission that was stored is told so, full queue or not."""
    await settings(hub, max_queued=1)
    first = await send(hub, 5, idempotency_key="part-1")
    again = await send(hub, 5, idempotency_key="part-1")
    assert again.status_code == 202
    assert again.json()["tasks"] == [
        {"task_id": first.json()["tasks"][0]["task_id"], "repeated": True},
    ]
    assert (await send(hub, 5, idempotency_key="part-2")).status_code == 429


async def test_the_lowest_and_youngest_is_shed_for_a_higher_one(hub: Served) -> None:
    """In a full queue that drops, the youngest of the lowest priority ends as TERMINATED(shed), told."""
    await settings(hub, max_queued=3, when_full="drop_lowest")
    await send(hub, 2)
    await send(hub, 2)
    await send(hub, 4)
    hub.told.clear()
    assert (await send(hub, 7)).status_code == 202
    assert await states(hub) == [
        (2, "QUEUED", None),
        (2, "TERMINATED", "shed"),
        (4, "QUEUED", None),
        (7, "QUEUED", None),
    ]
    (outcome,) = hub.told
    assert [(end.state, end.reason) for end in outcome.ended] == [(tasks.State.TERMINATED, tasks.Reason.SHED)]
    lowest = await send(hub, 2)
    assert (lowest.status_code, "lower priority" in lowest.json()["detail"]) == (429, True)
    assert (await archive(hub))["queued"] == 3


async def test_a_shed_task_is_a_dead_letter(hub: Served) -> None:
    """Its body is kept, and it runs when somebody asks for it."""
    await settings(hub, max_queued=1, when_full="drop_lowest")
    await send(hub, 2)
    await send(hub, 7)
    (page,) = [(await hub.client.get("/v1/tasks?reason=shed")).json()["tasks"]]
    again = await hub.client.post(f"/v1/tasks/{page[0]['task_id']}/retry")
    assert again.json()["state"] == "QUEUED"


async def test_a_device_s_task_is_never_refused_nor_shed(hub: Served) -> None:
    """What agents hand over counts in its queue and stays there: its site has promised it."""
    await settings(hub, max_queued=1, when_full="drop_lowest")
    agent_id = await join(hub.pool)
    async with hub.pool.connection() as connection, connection.transaction():
        for _ in range(2):
            handed_over = stores.handed_over(tasks.new_id(), queue="archive", priority=1)
            await apply.tasks(connection, agent_id, handed_over)
    assert (await archive(hub))["queued"] == 2
    assert (await send(hub, 9)).status_code == 429
    assert [state for _, state, _ in await states(hub)] == ["QUEUED"] * 2


async def test_tasks_come_no_faster_than_they_may(hub: Served) -> None:
    """Beyond its rate a queue answers 429 and when to come; what it refused is not counted against it."""
    await settings(hub, max_per_second=2)
    assert (await send(hub, 5, 5)).status_code == 202
    fast = await send(hub, 5)
    assert (fast.status_code, fast.json()["type"]) == (429, "/problems/too-fast")
    assert fast.headers["retry-after"] == "1"
    await asyncio.sleep(0.55)  # a token comes every half second
    assert (await send(hub, 5)).status_code == 202


async def test_a_queue_gives_its_tasks_their_priority(hub: Served) -> None:
    """A task that names no priority has its queue's."""
    await settings(hub, default_priority=2)
    await send(hub, None, 7)
    await hub.client.post("/v1/tasks", params={"model": "defects"}, content=png())
    assert sorted(priority for priority, _, _ in await states(hub)) == [2, 5, 7]


async def test_queues_without_limits_cost_no_statement(hub: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as no queue of a group has a limit, nothing is asked about depths."""
    await settings(hub, max_queued=1)

    async def asked(*_: Any) -> None:
        raise AssertionError("depths were asked for")

    monkeypatch.setattr(queue_store, "room", asked)
    await hub.submit()
    await hub.submit(queue="line-4")
    monkeypatch.undo()
    assert (await send(hub, 5)).status_code == 202


async def test_a_limit_is_found_at_any_depth(hub: Served) -> None:
    """With ten thousand tasks waiting, neither the limit nor the shedding looks at more than it needs."""
    async with hub.pool.connection() as connection:
        for priority in (3, 4):
            batch = [stores.submission(queue="archive", priority=priority) for _ in range(5000)]
            await task_store.submit(connection, batch)
    await settings(hub, max_queued=10_000, when_full="drop_lowest")
    assert (await send(hub, 6, 6)).status_code == 202
    lowest = await hub.rows("SELECT state FROM tasks WHERE priority = 3 ORDER BY task_id")
    assert [state for (state,) in lowest] == ["QUEUED"] * 4998 + ["TERMINATED"] * 2
    assert (await archive(hub))["by_priority"] == {"6": 2, "4": 5000, "3": 4998}
