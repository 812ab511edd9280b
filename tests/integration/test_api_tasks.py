"""Tasks over REST: awaited, listed, cancelled, run again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from cloud_hub.api import context
from cloud_hub.api import tasks as task_api
from cloud_hub.store import tasks as task_store
from shared import tasks
from tests.integration import api_server
from tests.integration.api_server import Served


@pytest.fixture
async def hub(database: str) -> AsyncIterator[Served]:
    async with api_server.serving(database) as served:
        yield served


# Looking


async def test_a_wait_ends_with_the_task(hub: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a task has the answer as soon as it has ended, without polling for it."""
    monkeypatch.setattr(task_api, "POLL_S", 60)
    task_id = await hub.submit()
    waiting = asyncio.create_task(hub.client.get(f"/v1/tasks/{task_id}", params={"wait": 30}))
    while not hub.app.state.hub.waits.inside:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    began = time.monotonic()
    await hub.client.post(f"/v1/tasks/{task_id}/cancel")
    answer = await waiting
    assert time.monotonic() - began < 10
    assert (answer.json()["state"], answer.json()["reason"]) == ("TERMINATED", "cancelled")


async def test_a_wait_notices_an_end_that_nobody_told_of(hub: Served) -> None:
    """A task that ended by another process is seen by looking, within about a second."""
    task_id = await hub.submit()
    waiting = asyncio.create_task(hub.client.get(f"/v1/tasks/{task_id}", params={"wait": 30}))
    async with hub.pool.connection() as connection:
        await task_store.cancel(connection, [tasks.parse_id(task_id)])
    began = time.monotonic()
    assert (await waiting).json()["state"] == "TERMINATED"
    assert time.monotonic() - began < 10


async def test_a_wait_has_an_end(hub: Served) -> None:
    """A task that does not end is answered as it is when the time has passed."""
    task_id = await hub.submit()
    began = time.monotonic()
    answer = await hub.client.get(f"/v1/tasks/{task_id}", params={"wait": 0.3})
    assert answer.json()["state"] == "QUEUED"
    assert 0.3 <= time.monotonic() - began < 10


async def test_waits_are_bounded_and_end_when_the_hub_stops(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More waits than the limit are refused with 429; a stopping hub answers those that wait at once."""
    monkeypatch.setattr(task_api, "POLL_S", 60)
    async with api_server.serving(database, context.Settings(max_waits=2)) as hub:
        address = f"/v1/tasks/{await hub.submit()}"
        waiting = [asyncio.create_task(hub.client.get(address, params={"wait": 60})) for _ in range(2)]
        while hub.app.state.hub.waits.inside < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        refused = await hub.client.get(address, params={"wait": 60})
        assert (refused.status_code, refused.json()["type"]) == (429, "/problems/busy")
        assert (await hub.client.get(address)).status_code == 200
        began = time.monotonic()
        hub.events.close()
        assert [answer.json()["state"] for answer in await asyncio.gather(*waiting)] == ["QUEUED"] * 2
        assert time.monotonic() - began < 10


async def test_paging_meets_every_task_once_while_others_come(hub: Served) -> None:
    """Walking the pages shows each task that was there once, newest first, whatever is added meanwhile."""
    there = [await hub.submit() for _ in range(23)]
    met: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = (await hub.client.get("/v1/tasks", params={"limit": 5, **cursor})).json()
        met += [task["task_id"] for task in page["tasks"]]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
        await hub.submit()
    assert met == there[::-1]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"model": "ocr"}, ["ocr"]),
        ({"queue": "line-4"}, ["queued"]),
        ({"device": "camera-7"}, ["seen"]),
        ({"state": "TERMINATED"}, ["ended"]),
        ({"state": "TERMINATED", "reason": "expired"}, []),
        ({"site": "lyon"}, []),
    ],
    ids=str,
)
async def test_a_list_has_what_was_asked_for(hub: Served, wanted: dict[str, str], found: list[str]) -> None:
    """Each filter leaves the tasks that it names."""
    made = {
        "ocr": await hub.submit(model="ocr"),
        "queued": await hub.submit(queue="line-4"),
        "seen": await hub.submit(device="camera-7"),
        "ended": await hub.submit(),
    }
    await hub.client.post(f"/v1/tasks/{made['ended']}/cancel")
    page = (await hub.client.get("/v1/tasks", params=wanted)).json()
    assert [task["task_id"] for task in page["tasks"]] == [made[name] for name in found]


# Changing


async def test_cancel_ends_a_task_and_may_be_repeated(hub: Served) -> None:
    """A cancelled task is TERMINATED(cancelled); to cancel it again is no error and changes nothing."""
    task_id = await hub.submit()
    first, again = [await hub.client.post(f"/v1/tasks/{task_id}/cancel") for _ in range(2)]
    assert (first.json()["state"], first.json()["reason"]) == ("TERMINATED", "cancelled")
    assert again.json() == first.json()
    assert [[end.task_id for end in outcome.ended] for outcome in hub.told if outcome.ended] == [
        [tasks.parse_id(task_id)]
    ]


async def test_retry_runs_a_dead_letter_again(hub: Served) -> None:
    """A dead letter that is retried is queued again, and the scheduler is told of it."""
    task_id = await hub.submit()
    await hub.client.post(f"/v1/tasks/{task_id}/cancel")
    answer = await hub.client.post(f"/v1/tasks/{task_id}/retry")
    assert (answer.status_code, answer.json()["state"], answer.json()["reason"]) == (200, "QUEUED", None)
    assert hub.told[-1].queued == {"defects": 1}


async def test_retry_and_cancel_keep_to_the_states(hub: Served) -> None:
    """A queued task is no dead letter, and cannot be retried: 409, and nothing changes."""
    task_id = await hub.submit()
    answer = await hub.client.post(f"/v1/tasks/{task_id}/retry")
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/conflict")
    assert (await hub.client.get(f"/v1/tasks/{task_id}")).json()["state"] == "QUEUED"


async def end_all(hub: Served, reason: str, **fields: str) -> None:
    """Everything that is queued, of some fields, has ended for this reason."""
    which = " AND ".join(["state = 'QUEUED'", *(f"{name} = '{value}'" for name, value in fields.items())])
    async with hub.pool.connection() as connection:
        await connection.execute(
            f"UPDATE tasks SET state = 'TERMINATED', reason = '{reason}', finished_at = now() "
            f"WHERE {which}".encode()
        )


async def test_many_dead_letters_run_again_by_a_filter(hub: Served) -> None:
    """Those that the filter names are queued again, up to the limit, and all that others ended as stay."""
    for model in ("defects", "defects", "defects", "ocr"):
        await hub.submit(model=model)
    await end_all(hub, "exhausted")
    await hub.submit(model="defects")
    await end_all(hub, "expired")
    ask = {"reason": "exhausted", "model": "defects"}
    first = await hub.client.post("/v1/tasks/retry", params={**ask, "limit": 2})
    assert first.json() == {"retried": 2, "more": True}
    assert hub.told[-1].queued == {"defects": 2}
    rest = await hub.client.post("/v1/tasks/retry", params=ask)
    assert rest.json() == {"retried": 1, "more": False}
    assert await hub.rows("SELECT model, reason FROM tasks WHERE state = 'TERMINATED' ORDER BY 1") == [
        ("defects", "expired"),
        ("ocr", "exhausted"),
    ]


async def test_what_somebody_cancelled_runs_again_only_by_that_word(hub: Served) -> None:
    """Without a reason all dead letters are meant but the cancelled ones; and some filter must be said."""
    for reason in ("cancelled", "exhausted", "shed"):
        await hub.submit(queue="archive")
        await end_all(hub, reason)
    nothing = await hub.client.post("/v1/tasks/retry")
    assert (nothing.status_code, nothing.json()["type"]) == (422, "/problems/invalid")
    some = await hub.client.post("/v1/tasks/retry", params={"queue": "archive"})
    assert some.json() == {"retried": 2, "more": False}
    assert await hub.rows("SELECT reason FROM tasks WHERE state = 'TERMINATED'") == [("cancelled",)]
    wanted = await hub.client.post("/v1/tasks/retry", params={"reason": "cancelled"})
    assert wanted.json()["retried"] == 1


async def test_dead_letters_without_a_body_are_passed_over(
    hub: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its site ran itself cannot run here: it does not hide those behind it."""
    monkeypatch.setattr(task_api, "RETRY_PAGE", 2)
    for _ in range(2):
        await hub.submit()
    async with hub.pool.connection() as connection:
        for _ in range(3):
            task_id = tasks.parse_id(await hub.submit())
            await connection.execute("DELETE FROM payloads WHERE task_id = %s", (tasks.format_id(task_id),))
    await end_all(hub, "exhausted")
    answer = await hub.client.post("/v1/tasks/retry", params={"reason": "exhausted"})
    assert answer.json() == {"retried": 2, "more": False}


async def test_tasks_are_listed_by_priority(hub: Served) -> None:
    """An operator finds the urgent ones."""
    await hub.submit(priority=2)
    urgent = await hub.submit(priority=9)
    found = (await hub.client.get("/v1/tasks", params={"priority": 9})).json()["tasks"]
    assert [task["task_id"] for task in found] == [urgent]
