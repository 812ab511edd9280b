"""The edge alone: a device's job in each of its forms, over a real broker, by other people's clients."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pyarrow as pa
import pytest

from demo import program, servers
from tests import models
from tests.integration import agents
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
