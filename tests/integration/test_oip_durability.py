"""Requests over HTTP that the agent has accepted, and those for which it has no room."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from demo import program, servers
from shared import topics
from tests import models
from tests.integration import agents, hubs


@pytest.fixture
async def slow(broker: servers.Mosquitto, tmp_path: Path) -> AsyncIterator[program.Program]:
    """An agent whose model takes its time, with room for a few requests."""
    models.write_slow_scorer(tmp_path / "models" / "slow", effort=1000, extra="[batching]\nmax_batch = 1")
    async with agents.running(agents.agent(tmp_path, broker, oip={"waiting": 20})) as one:
        yield one


def body(number: float, **parameters: Any) -> bytes:
    return json.dumps(
        {
            "inputs": [{"name": "window", "shape": [1, 4], "datatype": "FP32", "data": [number] * 4}],
            "parameters": parameters,
        }
    ).encode()


async def queued(one: program.Program, at_least: int = 0, at_most: int = 1000) -> None:
    """Wait until so many tasks wait or run."""
    async with asyncio.timeout(20):
        while not at_least <= (await one.ask("/status"))["telemetry"]["queued"] <= at_most:
            pass


async def test_what_was_accepted_survives_kill_nine(slow: program.Program) -> None:
    """Requests that were accepted when the agent is killed run after its restart, once; repeated with their
    keys they are answered."""
    path = "/v2/models/slow/infer"

    async def ask(client: httpx.AsyncClient, number: int) -> httpx.Response:
        return await client.post(path, content=body(number, idempotency_key=f"part-{number}"))

    async with httpx.AsyncClient(base_url=slow.url, timeout=30) as client:
        asked = [asyncio.create_task(ask(client, number)) for number in range(12)]
        await queued(slow, at_least=8)
        await slow.kill()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert len([one for one in answers if isinstance(one, Exception)]) >= 6
    await slow.start()
    async with httpx.AsyncClient(base_url=slow.url, timeout=30) as client:
        again = await asyncio.gather(*(ask(client, number) for number in range(12)))
        scores = [one.json()["outputs"][0]["data"][0] for one in again]
        assert scores == pytest.approx(list(range(12)))
        told = (await slow.ask("/status"))["telemetry"]
        assert (told["queued"], told["items_total"] <= 12) == (0, True)
        once_more = await asyncio.gather(*(ask(client, number) for number in range(12)))
        assert [one.content for one in once_more] == [one.content for one in again]
        assert (await slow.ask("/status"))["telemetry"]["items_total"] == told["items_total"]


async def test_who_leaves_loses_nothing_but_the_answer(slow: program.Program) -> None:
    """A client that goes away in the middle has its request run; who repeats it gets the answer."""
    path = "/v2/models/slow/infer"
    async with httpx.AsyncClient(base_url=slow.url, timeout=30) as client:
        async with asyncio.TaskGroup() as group:
            for _ in range(9):
                group.create_task(client.post(path, content=body(1)))
            left = group.create_task(client.post(path, content=body(3, idempotency_key="left", priority=0)))
            await queued(slow, at_least=7)
            left.cancel()
        answer = await client.post(path, content=body(3, idempotency_key="left"))
        assert answer.json()["outputs"][0]["data"] == [3]
        assert (await slow.ask("/status"))["telemetry"]["items_total"] == 10


async def test_a_key_is_one_job_however_it_comes(slow: program.Program, broker: servers.Mosquitto) -> None:
    """A key that a device has used is refused to a client, and the other way round: neither could be told the
    other's answer."""
    job = body(1, idempotency_key="device's")
    topic = f"backhaul/v1/{agents.SITE}/jobs/gauge-1/slow"
    async with (
        httpx.AsyncClient(base_url=slow.url, timeout=60) as client,
        agents.Replies(broker, f"backhaul/v1/{agents.SITE}/results/+") as replies,
    ):
        await agents.run("mosquitto_pub", broker, "-q", "1", "-t", topic, "-m", job.decode())
        assert (await replies.next())["state"] == "COMPLETED"
        refused = await client.post("/v2/models/slow/infer", content=job)
        assert (refused.status_code, "another way" in refused.json()["error"]) == (409, True)
        job = body(1, idempotency_key="client's")
        assert (await client.post("/v2/models/slow/infer", content=job)).status_code == 200
        await agents.run("mosquitto_pub", broker, "-q", "1", "-t", topic, "-m", job.decode())
        rejected = await replies.next()
        assert (rejected["state"], "local port" in rejected["error"]) == ("REJECTED", True)


async def test_without_room_a_client_is_told_when_to_come_again(slow: program.Program) -> None:
    """Beyond `oip.waiting` a request is refused at once, with 503 and Retry-After; the others are answered,
    and the health of the agent is told all the time."""
    async with httpx.AsyncClient(base_url=slow.url, timeout=60) as client:
        answers = await asyncio.gather(
            *(client.post("/v2/models/slow/infer", content=body(number)) for number in range(60)),
            client.get("/healthz/live"),
            client.get("/v2/health/ready"),
        )
    taken = [one for one in answers[:60] if one.status_code == 200]
    refused = [one for one in answers[:60] if one.status_code == 503]
    assert len(taken) >= 20
    assert len(taken) + len(refused) == 60
    assert refused
    assert all(1 <= int(one.headers["retry-after"]) <= 60 for one in refused)
    assert [one.status_code for one in answers[60:]] == [200, 200]


async def test_the_hub_hears_of_it(broker: servers.Mosquitto, tmp_path: Path) -> None:
    """Each item of a request is a result row at the hub, with label and score, as a device's would be."""
    one = agents.agent(tmp_path, broker, broker, uplink={"telemetry_s": 0.05, "linger_s": 0.0})
    pictures = ",".join(f'"{base64.b64encode(models.png(grey)).decode()}"' for grey in (3, 250, 9))
    asked = f'{{"inputs": [{{"name": "image", "shape": [3], "datatype": "BYTES", "data": [{pictures}]}}]}}'
    async with hubs.playing(broker, topics.Agent(agents.SITE, "edge-1")) as hub, agents.running(one):
        await hub.online()
        async with httpx.AsyncClient(base_url=one.url) as client:
            answer = await client.post("/v2/models/brightness/infer", content=asked)
        assert answer.status_code == 200
        await hub.until(lambda: len(hub.rows) == 3)
    assert [(row["item"], row["label"], row["outcome"]) for row in hub.rows] == [
        (0, "dark", "ok"),
        (1, "bright", "ok"),
        (2, "dark", "ok"),
    ]
    probabilities = np.array(answer.json()["outputs"][0]["data"]).reshape(3, 2)
    assert [row["score"] for row in hub.rows] == pytest.approx(probabilities.max(axis=1).tolist())


async def test_a_full_journal_is_told(broker: servers.Mosquitto, tmp_path: Path) -> None:
    """What the journal has no room for is refused with 503 and Retry-After, and nothing of it runs."""
    models.write_scorer(tmp_path / "models" / "wide", width=100_000)
    rows = np.zeros((8, 100_000), np.float32).tobytes()
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "window",
                    "shape": [8, 100_000],
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": len(rows)},
                }
            ]
        }
    ).encode()
    one = agents.agent(tmp_path, broker, journal={"max_bytes": 2_000_000})
    async with agents.running(one), httpx.AsyncClient(base_url=one.url) as client:
        answer = await client.post(
            "/v2/models/mean/infer",
            content=head + rows,
            headers={"Inference-Header-Content-Length": str(len(head))},
        )
        assert (answer.status_code, "journal is full" in answer.json()["error"]) == (503, True)
        assert int(answer.headers["retry-after"]) >= 1
        told = (await one.ask("/status"))["telemetry"]
        assert (told["queued"], told["items_total"]) == (0, 0)


async def test_more_urgent_requests_go_first(slow: program.Program) -> None:
    """`priority` is that of jobs: 0 to 9, the higher the sooner."""
    ended: list[int] = []

    async def ask(client: httpx.AsyncClient, priority: int) -> None:
        answer = await client.post("/v2/models/slow/infer", content=body(1, priority=priority))
        assert answer.status_code == 200
        ended.append(priority)

    async with httpx.AsyncClient(base_url=slow.url, timeout=60) as client, asyncio.TaskGroup() as group:
        for priority in [1] * 12 + [9]:
            group.create_task(ask(client, priority))
    assert ended.index(9) < 6


async def test_an_answer_that_comes_too_late_is_not_computed(slow: program.Program) -> None:
    """`timeout`, in µs as Triton has it, is the deadline of the task: 504, and the model does not run."""
    async with httpx.AsyncClient(base_url=slow.url, timeout=60) as client, asyncio.TaskGroup() as group:
        for _ in range(10):
            group.create_task(client.post("/v2/models/slow/infer", content=body(1, priority=9)))
        late = await client.post("/v2/models/slow/infer", content=body(1, priority=0, timeout=1000))
    assert late.status_code == 504
    assert "deadline" in late.json()["error"]
    assert (await slow.ask("/status"))["telemetry"]["items_total"] == 10


async def test_a_stop_tells_who_waits(slow: program.Program) -> None:
    """SIGTERM: what runs is answered, who waits is told that the request is kept, and so it is."""
    async with httpx.AsyncClient(base_url=slow.url, timeout=60) as client:
        asked = [
            asyncio.create_task(client.post("/v2/models/slow/infer", content=body(number)))
            for number in range(15)
        ]

        await queued(slow, at_least=10)
        await slow.stop()
        answers = await asyncio.gather(*asked)
    assert {one.status_code for one in answers} <= {200, 503}
    kept = [one for one in answers if one.status_code == 503]
    assert all("kept" in one.json()["error"] for one in kept)
    await slow.start()
    await queued(slow, at_most=0)
    assert (await slow.ask("/status"))["telemetry"]["items_total"] == len(kept)
