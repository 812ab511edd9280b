"""Submissions over REST: what a 202 promises, and what becomes of what cannot be taken."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from cloud_hub.api import context, submissions
from cloud_hub.store import tasks as task_store
from shared import jobs, tasks
from tests.integration import api_server
from tests.integration.api_server import Served, arrow, jpeg, png

OIP = {"inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}]}


@pytest.fixture
async def hub(database: str) -> AsyncIterator[Served]:
    async with api_server.serving(database) as served:
        yield served


# Submitting


async def test_a_202_names_a_task_that_is_stored_as_it_was_sent(hub: Served) -> None:
    """The answer to a submission is 202 with the task's address, where it is found queued, its body kept."""
    answer = await hub.client.post(
        "/v1/tasks",
        params={
            "model": "defects@3",
            "priority": 8,
            "queue": "line-4",
            "device": "camera-7",
            "max_attempts": 2,
        },
        content=png(),
        headers={"content-type": "image/png"},
    )
    assert answer.status_code == 202
    told = answer.json()
    assert told == {"task_id": told["task_id"], "state": "QUEUED", "repeated": False}
    assert answer.headers["location"] == f"/v1/tasks/{told['task_id']}"
    task = (await hub.client.get(answer.headers["location"])).json()
    assert (task["model"], task["version"], task["priority"], task["queue"]) == ("defects", "3", 8, "line-4")
    assert (task["state"], task["device"], task["max_attempts"], task["attempts"]) == (
        "QUEUED",
        "camera-7",
        2,
        [],
    )
    async with hub.pool.connection() as connection:
        assert await task_store.payload(connection, tasks.parse_id(told["task_id"])) == png()


FORMS: list[tuple[str, str | None, bytes, str, int]] = [
    ("a PNG", "image/png", png(), jobs.PNG, 1),
    ("a JPEG", "image/jpeg", jpeg(), jobs.JPEG, 1),
    ("an image of no stated type", None, png(), jobs.PNG, 1),
    ("an image as curl sends it", "application/x-www-form-urlencoded", jpeg(), jobs.JPEG, 1),
    (
        "an image in JSON",
        jobs.JSON,
        json.dumps({"image": base64.b64encode(png()).decode()}).encode(),
        jobs.PNG,
        1,
    ),
    ("tensors in JSON", "application/json; charset=utf-8", json.dumps(OIP).encode(), jobs.JSON, 2),
    ("rows of Arrow", jobs.ARROW, arrow({"x": [1.0, 2.0, 3.0]}), jobs.ARROW, 3),
]


@pytest.mark.parametrize(
    ("said", "body", "stored", "items"), [f[1:] for f in FORMS], ids=[f[0] for f in FORMS]
)
async def test_every_form_of_a_body_is_taken(
    hub: Served, said: str | None, body: bytes, stored: str, items: int
) -> None:
    """Images, JSON and Arrow become tasks of the right kind and items, whatever a client calls them."""
    headers = {"content-type": said} if said else {}
    answer = await hub.client.post("/v1/tasks", params={"model": "defects"}, content=body, headers=headers)
    assert answer.status_code == 202, answer.text
    task = (await hub.client.get(answer.headers["location"])).json()
    assert (task["content_type"], task["items"]) == (stored, items)


@pytest.mark.parametrize("field", ["model", "model_name"])
async def test_a_json_body_may_say_everything_itself(hub: Served, field: str) -> None:
    """Model, device and metadata may stand in the JSON; then the address needs no query."""
    body = {
        field: "defects",
        "device": "camera-7",
        "parameters": {"priority": 9, "deadline_ms": 60_000},
        **OIP,
    }
    answer = await hub.client.post("/v1/tasks", json=body)
    assert answer.status_code == 202, answer.text
    task = (await hub.client.get(answer.headers["location"])).json()
    assert (task["model"], task["device"], task["priority"]) == ("defects", "camera-7", 9)
    assert task["deadline_at"] > task["submitted_at"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_submits_a_file_and_reads_its_task(hub: Served, tmp_path: Path) -> None:
    """The two lines of shell that a newcomer would write do what they say."""
    (tmp_path / "part.png").write_bytes(png())
    submitted = await _curl("--data-binary", f"@{tmp_path}/part.png", f"{hub.url}/v1/tasks?model=defects")
    task = await _curl(f"{hub.url}/v1/tasks/{submitted['task_id']}")
    assert (task["state"], task["content_type"]) == ("QUEUED", "image/png")


async def _curl(*words: str) -> Any:
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "--fail", *words, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return json.loads(out)


async def test_the_same_key_is_the_same_task(hub: Served) -> None:
    """However often and however simultaneously a key is sent, in whatever place, one task is made of it."""
    first = await hub.submit(idempotency_key="part-1")
    by_header: dict[str, Any] = {
        "headers": {"idempotency-key": "part-1"},
        "params": {"model": "defects"},
        "content": png(),
    }
    answers = await asyncio.gather(*(hub.client.post("/v1/tasks", **by_header) for _ in range(20)))
    assert {(a.status_code, a.json()["task_id"], a.json()["repeated"]) for a in answers} == {
        (202, first, True)
    }
    in_json = {"model": "defects", "image": base64.b64encode(png()).decode(), "idempotency_key": "part-1"}
    assert (await hub.client.post("/v1/tasks", json=in_json)).json()["task_id"] == first
    assert await hub.rows("SELECT count(*) FROM tasks") == [(1,)]


async def test_a_repeated_task_is_told_in_its_present_state(hub: Served) -> None:
    """Who repeats a submission learns how far the task is, not how it began."""
    task_id = await hub.submit(idempotency_key="part-1")
    await hub.client.post(f"/v1/tasks/{task_id}/cancel")
    answer = await hub.client.post(
        "/v1/tasks", params={"model": "defects", "idempotency_key": "part-1"}, content=png()
    )
    assert answer.json() == {"task_id": task_id, "state": "TERMINATED", "repeated": True}


# Group commit


async def test_concurrent_submissions_share_commits(hub: Served) -> None:
    """Hundreds of clients at once cost PostgreSQL a fraction of as many transactions."""
    await asyncio.gather(*(hub.submit() for _ in range(150)))
    ((stored, transactions),) = await hub.rows("SELECT count(*), count(DISTINCT xmin::text) FROM tasks")
    assert stored == 150
    assert transactions <= 50


async def test_a_lone_submission_waits_for_nobody(hub: Served) -> None:
    """With nobody else about a submission costs one commit, and does not wait for company."""
    await hub.submit()
    began = time.monotonic()
    for _ in range(10):
        await hub.submit()
    assert (time.monotonic() - began) / 10 < 0.5
    assert await hub.rows("SELECT count(DISTINCT xmin::text) FROM tasks") == [(11,)]


class Held:
    """A committer that is held up, as by a slow disk, until it is let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.asked = asyncio.Event()
        self.through: submissions.Committer | None = None

    async def __call__(self, requests: Sequence[submissions.Group]) -> submissions.Committed:
        assert self.through is not None
        self.asked.set()
        await self.go.wait()
        return await self.through(requests)


async def test_too_much_waiting_is_refused_and_counted_exactly(database: str) -> None:
    """When PostgreSQL falls behind, more tasks are answered 429 and when to come; each 202 is stored."""
    held = Held()
    async with api_server.serving(database, committer=held, max_waiting_tasks=5) as hub:
        held.through = submissions.into(hub.pool)
        ask: dict[str, Any] = {"url": "/v1/tasks", "params": {"model": "defects"}, "content": png()}
        answers = [asyncio.create_task(hub.client.post(**ask))]
        await held.asked.wait()  # one is on its way to the disk
        answers += [asyncio.create_task(hub.client.post(**ask)) for _ in range(20)]
        done, waiting = await asyncio.wait(answers, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        while len(done) < 15:
            more, waiting = await asyncio.wait(waiting, timeout=10, return_when=asyncio.FIRST_COMPLETED)
            assert more
            done |= more
        refused = [task.result() for task in done]
        assert {answer.status_code for answer in refused} == {429}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        held.go.set()
        taken = await asyncio.gather(*waiting)
        assert [answer.status_code for answer in taken] == [202] * 6
        assert await hub.rows("SELECT count(*) FROM tasks") == [(6,)]


async def test_one_that_cannot_be_stored_fails_alone(hub: Served) -> None:
    """A task that PostgreSQL refuses takes down neither those that come with it nor those after it."""

    def submission(model: str, items: int) -> task_store.Submission:
        """A task; one of no items breaks a constraint of the database."""
        job = jobs.Job(
            model=model, metadata=jobs.Metadata(), content_type=jobs.PNG, payload=png(), items=items
        )
        return task_store.Submission(job=job)

    sent = [submission("good", 1), submission("bad", 0), submission("fine", 1)]
    together = [hub.submitter.submit([one]) for one in sent]
    good, bad, fine = await asyncio.gather(*together, return_exceptions=True)
    assert isinstance(bad, Exception)
    assert not isinstance(good, BaseException)
    assert not isinstance(fine, BaseException)
    await hub.submit()
    assert await hub.rows("SELECT model FROM tasks ORDER BY task_id") == [("good",), ("fine",), ("defects",)]


# Batches


async def test_a_batch_is_one_transaction_in_its_order(hub: Served) -> None:
    """The ids of a batch come in the order of its tasks, which were all committed at once."""
    batch = [{"model": f"model-{n}", "idempotency_key": f"key-{n}", **OIP} for n in range(200)]
    answer = await hub.client.post("/v1/tasks/batch", json={"tasks": batch})
    assert answer.status_code == 202, answer.text
    ids = [one["task_id"] for one in answer.json()["tasks"]]
    stored = dict(await hub.rows("SELECT task_id, model FROM tasks"))
    assert [stored[tasks.parse_id(one)] for one in ids] == [one["model"] for one in batch]
    assert await hub.rows("SELECT count(DISTINCT xmin::text) FROM tasks") == [(1,)]
    again = (await hub.client.post("/v1/tasks/batch", json={"tasks": batch})).json()["tasks"]
    assert again == [{"task_id": one, "repeated": True} for one in ids]


async def test_a_batch_of_arrow_carries_images_and_metadata(hub: Served) -> None:
    """A data engineer's table of images becomes tasks without base64."""
    body = arrow(
        {
            "payload": pa.array([png(1), jpeg()], pa.binary()),
            "content_type": ["image/png", None],
            "model": ["defects", "ocr@2"],
            "priority": pa.array([9, None], pa.int8()),
            "device": [None, "camera-7"],
        }
    )
    answer = await hub.client.post("/v1/tasks/batch", content=body, headers={"content-type": jobs.ARROW})
    assert answer.status_code == 202, answer.text
    stored = await hub.rows(
        "SELECT model, version, priority, device, content_type FROM tasks ORDER BY task_id"
    )
    assert stored == [("defects", None, 9, None, jobs.PNG), ("ocr", "2", 5, "camera-7", jobs.JPEG)]


async def test_a_batch_with_a_fault_stores_nothing_and_tells_all_faults(hub: Served) -> None:
    """One bad task refuses the whole batch; each fault is named with its place in it."""
    batch = [
        {"model": "m", **OIP},
        {"model": "m", "priority": 12, **OIP},
        {"model": "m"},
    ]
    answer = await hub.client.post("/v1/tasks/batch", json={"tasks": batch})
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["type"] == "/problems/rejected"
    assert [fault["where"] for fault in problem["errors"]] == ["tasks/1/priority", "tasks/2/inputs"]
    assert await hub.rows("SELECT count(*) FROM tasks") == [(0,)]


# Bodies


@pytest.mark.parametrize("chunked", [False, True], ids=["by its length", "while it is read"])
async def test_a_body_too_large_is_refused(database: str, chunked: bool) -> None:
    """A body beyond the limit is answered 413, whether its length is declared or not, and is not kept."""
    async with api_server.serving(database, context.Settings(max_task_bytes=1000)) as hub:

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(50):
                yield bytes(100)

        body: Any = pieces() if chunked else bytes(5000)
        answer = await hub.client.post("/v1/tasks", params={"model": "defects"}, content=body)
        assert (answer.status_code, answer.json()["type"]) == (413, "/problems/too-large")
        assert hub.app.state.hub.bodies.held == 0


async def test_bodies_share_a_budget(database: str) -> None:
    """However many bodies come at once, the hub holds no more than its budget, and says so with 429."""
    settings = context.Settings(max_bodies_bytes=4000)
    async with api_server.serving(database, settings) as hub:
        more = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield png() + bytes(3000)
            await more.wait()

        first = asyncio.create_task(_submit(hub, slow()))
        while not hub.app.state.hub.bodies.held:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        refused = await _submit(hub, png() + bytes(2000))
        assert (refused.status_code, refused.json()["type"]) == (429, "/problems/busy")
        more.set()
        assert (await first).status_code == 202
        assert (await _submit(hub, png() + bytes(2000))).status_code == 202
        assert hub.app.state.hub.bodies.held == 0


async def _submit(hub: Served, body: Any) -> httpx.Response:
    return await hub.client.post("/v1/tasks", params={"model": "defects"}, content=body)


async def test_a_client_that_goes_away_leaves_nothing_behind(hub: Served) -> None:
    """A client that hangs up in the middle of its body costs nothing and stores nothing."""
    _, writer = await asyncio.open_connection("127.0.0.1", int(hub.url.rpartition(":")[2]))
    writer.write(b"POST /v1/tasks?model=defects HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n" + png())
    await writer.drain()
    while not hub.app.state.hub.bodies.held:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    writer.close()
    while hub.app.state.hub.bodies.held:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    assert await hub.rows("SELECT count(*) FROM tasks") == [(0,)]
