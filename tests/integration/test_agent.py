"""The edge alone: a device's job in each of its forms, over a real broker, by other people's clients."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from demo import program, servers
from edge_agent import runner
from shared import jobs, tasks, topics
from tests import models
from tests.integration import agents, hubs
from tests.integration.agents import JOBS, SITE

BRIGHT = models.png(250)
RESULTS = f"backhaul/v1/{SITE}/results/+"


@pytest.fixture
async def edge(broker: servers.Mosquitto, tmp_path: Path) -> AsyncIterator[program.Program]:
    """A site that stands alone: its broker and its agent."""
    async with agents.running(agents.agent(tmp_path, broker)) as one:
        yield one


@pytest.mark.usefixtures("edge")
async def test_a_request_and_its_response_over_mqtt_5(broker: servers.Mosquitto) -> None:
    """`mosquitto_rr` asks with a response topic and correlation data, and gets the verdict back there."""
    body = json.dumps({"image": base64.b64encode(BRIGHT).decode(), "priority": 7})
    answer = await agents.run(
        "mosquitto_rr", broker, "-V", "5", "-t", JOBS, "-e", "line/replies", "-m", body, "-W", "8"
    )
    reply = json.loads(answer)
    assert reply["state"] == "COMPLETED"
    assert [item["label"] for item in reply["items"]] == ["bright"]


@pytest.mark.usefixtures("edge")
async def test_a_raw_image_from_an_mqtt_311_device(broker: servers.Mosquitto, tmp_path: Path) -> None:
    """A device that publishes nothing but a picture finds its verdict under the site's results."""
    picture = tmp_path / "part.png"
    picture.write_bytes(BRIGHT)
    async with agents.Replies(broker, RESULTS) as replies:
        await agents.run("mosquitto_pub", broker, "-V", "311", "-q", "1", "-t", JOBS, "-f", picture)
        reply = await replies.next()
    assert (reply["state"], reply["model"], reply["version"]) == ("COMPLETED", "brightness", "1.0.0")
    assert reply["items"][0]["score"] > 0.9


@pytest.mark.usefixtures("edge")
async def test_an_open_inference_request(broker: servers.Mosquitto) -> None:
    """An Open Inference Protocol v2 request of three items gets three verdicts and its own id back."""
    data = [0.0] * 64 + [1.0] * 64 + [0.1] * 64
    request = {
        "id": "shift-7",
        "parameters": {"response_topic": "line/oip", "priority": 9},
        "inputs": [{"name": "image", "shape": [3, 1, 8, 8], "datatype": "FP32", "data": data}],
    }
    async with agents.Replies(broker, "line/oip") as replies:
        await agents.run("mosquitto_pub", broker, "-q", "1", "-t", JOBS, "-m", json.dumps(request))
        reply = await replies.next()
    assert reply["id"] == "shift-7"
    assert [item["label"] for item in reply["items"]] == ["dark", "bright", "dark"]


@pytest.mark.usefixtures("edge")
async def test_rows_of_arrow(broker: servers.Mosquitto) -> None:
    """An Arrow stream is a job with an item a row; a row that holds no picture fails alone."""
    table = pa.table({"image": pa.array([BRIGHT, b"no picture", BRIGHT], pa.binary())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    async with agents.Replies(broker, RESULTS) as replies:
        await agents.run(
            "mosquitto_pub", broker, "-q", "1", "-t", JOBS, "-s", stdin=sink.getvalue().to_pybytes()
        )
        reply = await replies.next()
    assert reply["state"] == "COMPLETED"
    assert [item["outcome"] for item in reply["items"]] == ["ok", "failed", "ok"]
    assert "picture" in reply["items"][1]["error"] or "image" in reply["items"][1]["error"]


@pytest.mark.parametrize(
    ("topic", "body", "says"),
    [
        (JOBS, "hello", "content type"),
        (JOBS, '{"image": "%%%"}', "base64"),
        (JOBS, '{"image": "AAAA"}', "neither a PNG nor a JPEG"),
        (f"backhaul/v1/{SITE}/jobs/camera-1/unknown", '{"inputs": []}', "inputs"),
        (
            f"backhaul/v1/{SITE}/jobs/camera-1/unknown",
            json.dumps({"image": base64.b64encode(BRIGHT).decode()}),
            "unknown",
        ),
        (JOBS, json.dumps({"image": base64.b64encode(BRIGHT).decode(), "priority": 12}), "priority 12"),
    ],
)
async def test_a_job_that_is_not_valid_is_rejected_with_the_reason(
    edge: program.Program, broker: servers.Mosquitto, topic: str, body: str, says: str
) -> None:
    """Bad input gets a REJECTED reply that says what is wrong; it is counted, and the next job is served."""
    async with agents.Replies(broker, RESULTS) as replies:
        await agents.run("mosquitto_pub", broker, "-q", "1", "-t", topic, "-m", body)
        rejected = await replies.next()
        await agents.run(
            "mosquitto_pub",
            broker,
            *("-q", "1", "-t", JOBS, "-m", json.dumps({"image": base64.b64encode(BRIGHT).decode()})),
        )
        served = await replies.next()
    assert rejected["state"] == "REJECTED"
    assert says in rejected["error"]
    assert served["state"] == "COMPLETED"
    told = (await edge.ask("/status"))["telemetry"]
    assert (told["jobs_total"], told["rejected_total"]) == (2, 1)


@pytest.mark.usefixtures("edge")
async def test_the_same_idempotency_key_is_the_same_task(broker: servers.Mosquitto) -> None:
    """A device that repeats its job gets the first one's verdict again, under the same task id."""
    body = json.dumps({"image": base64.b64encode(BRIGHT).decode(), "idempotency_key": "part-4711"})
    async with agents.Replies(broker, RESULTS) as replies:
        for _ in range(2):
            await agents.run("mosquitto_pub", broker, "-q", "1", "-t", JOBS, "-m", body)
        first, second = await replies.next(), await replies.next()
    assert first == second


async def test_an_accepted_job_survives_kill_nine(
    edge: program.Program, broker: servers.Mosquitto, tmp_path: Path
) -> None:
    """Jobs whose PUBACK was sent are answered after the agent was killed and started again."""
    body = json.dumps({"image": base64.b64encode(BRIGHT).decode()})
    async with agents.Replies(broker, RESULTS) as replies:
        publishing = agents.run(
            "mosquitto_pub", broker, "-q", "1", "-t", JOBS, "-l", stdin=(body + "\n").encode() * 50
        )
        await publishing  # returns when the broker has them all; the agent may hold some, the broker the rest
        await edge.kill()
        await edge.start()
        seen: set[str] = set()
        while len(seen) < 50:
            seen.add((await replies.next())["task_id"])
    told = (await edge.ask("/status"))["telemetry"]
    assert told["queued"] == 0


async def test_the_local_port_answers(edge: program.Program) -> None:
    """Health, metrics in Prometheus' format and status are served; another path says what there is."""
    async with httpx.AsyncClient(base_url=edge.url) as client:
        assert "# TYPE backhaul_agent_jobs_total counter" in (await client.get("/metrics")).text
        assert (await client.get("/healthz/live")).status_code == 200
        lost = await client.get("/nothing")
    assert lost.status_code == 404
    assert "/status" in lost.text


async def test_a_graceful_stop_is_quick_and_loses_nothing(broker: servers.Mosquitto, tmp_path: Path) -> None:
    """SIGTERM under load ends the agent within ten seconds, status 0, and the next start answers the rest."""
    body = json.dumps({"image": base64.b64encode(BRIGHT).decode()})
    one = agents.agent(tmp_path, broker)
    async with agents.running(one), agents.Replies(broker, RESULTS) as replies:
        await agents.run(
            "mosquitto_pub", broker, "-q", "1", "-t", JOBS, "-l", stdin=(body + "\n").encode() * 200
        )
        await one.stop()
        await one.start()
        seen: set[str] = set()
        while len(seen) < 200:
            seen.add((await replies.next())["task_id"])
    assert "Traceback" not in one.log.read_text()


# Tasks of many items, leased by a hub that the test plays

MANY = 10_000
AGENT = topics.Agent(SITE, "edge-1")


@pytest.fixture
async def hub(broker: servers.Mosquitto) -> AsyncIterator[hubs.Hub]:
    async with hubs.playing(broker, AGENT) as one:
        yield one


@pytest.fixture
async def leased(broker: servers.Mosquitto, hub: hubs.Hub, tmp_path: Path) -> AsyncIterator[program.Program]:
    """An agent that works for the hub alone, an item at a time, and says often how it does."""
    models.write_slow_scorer(tmp_path / "models" / "slow", extra="[batching]\nmax_batch = 1")
    one = agents.agent(
        tmp_path, None, broker, labels={"gpu": "a2000"}, uplink={"telemetry_s": 0.05, "linger_s": 0.0}
    )
    async with agents.running(one):
        await hub.online()
        await hub.heartbeat()
        yield one


def many() -> dict[str, Any]:
    """An Arrow stream of numbers, each an item whose score is the number itself."""
    windows = pa.array([[float(number)] * 4 for number in range(MANY)], pa.list_(pa.float32(), 4))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.schema([pa.field("window", windows.type)])) as writer:
        writer.write_batch(pa.record_batch([windows], ["window"]))
    payload = sink.getvalue().to_pybytes()
    return {"model": "slow", "content_type": jobs.ARROW, "payload": payload, "items": MANY}


def each_item_once(hub: hubs.Hub, count: int = MANY) -> None:
    """The rows that came are those of the first items, in order, each with its own score."""
    assert [row["item"] for row in hub.rows] == list(range(count))
    assert [row["score"] for row in hub.rows] == list(range(count))


@pytest.mark.usefixtures("leased")
async def test_what_is_preempted_twenty_times_runs_each_item_once(hub: hubs.Hub) -> None:
    """A task of 10,000 items is preempted 20 times at random and leased again each time: it goes on where it
    was, every item runs once, and there is one row of it."""
    task_id, work, dice = tasks.new_id(), many(), random.Random(20)
    done = 0
    for attempt in range(1, 21):
        await hub.lease(task_id, attempt, work, items_done=done)
        await asyncio.sleep(dice.uniform(0, 0.04))  # anywhere in the work, of which there are seconds
        await hub.command("preempt", task_id, json.dumps({"attempt": attempt}))
        await hub.until(lambda: len(hub.attempts) == attempt)  # noqa: B023 - awaited within the turn
        report = hub.attempts[-1]
        assert (report["attempt"], report["state"], report["retriable"]) == (attempt, "QUEUED", True)
        assert report["items_done"] >= done
        done = report["items_done"]
        each_item_once(hub, done)
    assert 20 < done < MANY
    await hub.lease(task_id, 21, work, items_done=done)
    await hub.until(lambda: len(hub.attempts) == 21)
    assert (hub.attempts[-1]["state"], hub.attempts[-1]["items_done"]) == ("COMPLETED", MANY)
    each_item_once(hub)
    told = await hub.heartbeat()
    assert (told.items_total, told.leases, told.queued) == (MANY, [], 0)


async def test_what_is_killed_goes_on_from_its_checkpoint(leased: program.Program, hub: hubs.Hub) -> None:
    """kill -9 in the middle of a task of 10,000 items, and again: it goes on by itself, there is one row of
    each item, and its heartbeats name the lease. So often that it would be set aside, had it not come on."""
    task_id = tasks.new_id()
    await hub.lease(task_id, 7, many())
    for deaths in range(1, runner.CRASHES + 1):
        before = len(hub.rows)
        await hub.until(lambda: len(hub.rows) > before)  # noqa: B023 - awaited within the turn
        await leased.kill()
        await leased.start()
        await hub.online(times=deaths + 1)
        while not (told := await hub.heartbeat()).leases:
            pass
        (lease,) = told.leases
        assert (lease.task_id, lease.attempt) == (tasks.format_id(task_id), 7)
        assert lease.done >= len(hub.rows) > 0
    await hub.until(lambda: bool(hub.attempts))
    assert [(one["attempt"], one["state"], one["items_done"]) for one in hub.attempts] == [
        (7, "COMPLETED", MANY)
    ]
    each_item_once(hub)


async def test_a_stop_puts_a_lease_back_with_its_checkpoint(leased: program.Program, hub: hubs.Hub) -> None:
    """SIGTERM in the middle of a long task: its rows and its checkpoint are with the hub before it goes."""
    task_id = tasks.new_id()
    await hub.lease(task_id, 1, many())
    await hub.until(lambda: bool(hub.rows))
    await leased.stop()
    await hub.until(lambda: not hub.presence[-1])
    (report,) = hub.attempts
    assert (report["state"], report["items_done"]) == ("QUEUED", len(hub.rows))
    each_item_once(hub, len(hub.rows))


@pytest.mark.usefixtures("leased")
async def test_what_the_heartbeat_says_of_the_agent(hub: hubs.Hub) -> None:
    """Its labels, for how long its link has been up, and of a task that runs how far it is."""
    first = await hub.heartbeat()
    assert first.labels == {"gpu": "a2000"}
    await hub.lease(tasks.new_id(), 1, many(), items_done=5000)
    second = await hub.heartbeat()
    assert 0 < first.link_up_s < second.link_up_s < 60
    (lease,) = second.leases
    assert (lease.attempt, lease.running_s < 5) == (1, True)
    assert 5000 <= lease.done < MANY
    await hub.until(lambda: bool(hub.attempts))
    assert [row["item"] for row in hub.rows] == list(range(5000, MANY))


async def test_words_that_are_for_nobody_are_counted(leased: program.Program, hub: hubs.Hub) -> None:
    """A preemption of an unknown task, one that names no attempt or none that is here, and one that cannot
    be read change nothing."""
    task_id = tasks.new_id()
    await hub.lease(task_id, 2, many(), items_done=5000)
    for body in (None, '{"attempt": 1}', '{"attempt": "two"}', "{"):
        await hub.command("preempt", task_id, body)
    await hub.command("preempt", tasks.new_id(), '{"attempt": 2}')
    await hub.command("dance", task_id)
    await hub.until(lambda: bool(hub.attempts))
    assert (hub.attempts[0]["state"], hub.attempts[0]["attempt"]) == ("COMPLETED", 2)
    async with httpx.AsyncClient(base_url=leased.url) as client:
        metrics = (await client.get("/metrics")).text
    assert "backhaul_agent_commands_ignored_total 5.0" in metrics


async def test_models_that_do_not_fit_take_turns_in_memory(broker: servers.Mosquitto, tmp_path: Path) -> None:
    """With room for one model both are served: who needs the other one waits for it, and for nothing else."""
    for name in ("bright-a", "bright-b"):
        models.write_classifier(tmp_path / "models" / name, name=name)
    settings = {"max_loaded": 1, "reload_s": 10}
    async with agents.running(agents.agent(tmp_path, broker, engine=settings)) as edge:
        body = json.dumps({"image": base64.b64encode(BRIGHT).decode(), "response_topic": "line/turns"})
        async with agents.Replies(broker, "line/turns") as replies:
            for turn in range(6):
                topic = f"backhaul/v1/{SITE}/jobs/camera-1/bright-{'ab'[turn % 2]}"
                await agents.run("mosquitto_pub", broker, "-q", "1", "-t", topic, "-m", body)
            said = [await replies.next() for _ in range(6)]
        assert [one["state"] for one in said] == ["COMPLETED"] * 6
        told = await edge.ask("/status")
    assert [one["loaded"] for one in told["models"]].count(True) == 1
    assert [one["loaded"] for one in told["telemetry"]["models"]].count(True) == 1
