"""Models from the hub to an agent: fetched, verified, swapped under load, refused, kept for a start alone."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from demo import program, servers
from demo.servers import ports
from shared import packages, signatures, topics
from tests import models
from tests.integration import agents, api_server, hubs
from tests.integration.agents import MODEL, SITE
from tests.integration.api_server import Served
from tests.integration.test_chain import until

AGENT: Final = topics.Agent(SITE, "edge-1")
RESULTS: Final = f"backhaul/v1/{SITE}/results/+"
JOBS: Final = f"backhaul/v1/{SITE}/jobs/camera-1/{MODEL}"
IMAGE: Final = base64.b64encode(models.png(250)).decode()


@pytest.fixture
async def hub(database: str) -> AsyncIterator[Served]:
    """A hub's REST, which knows the agent."""
    async with api_server.serving(database) as served:
        await api_server.join(served.pool, AGENT, telemetry=api_server.telemetry())
        yield served


class Releases:
    """Makes packages, signs and pushes them, and has them served."""

    def __init__(self, hub: Served, cloud: servers.Mosquitto, folder: Path) -> None:
        self.hub = hub
        self.cloud = cloud
        self._folder = folder
        self.key = signatures.generate(folder / "release.pem")
        self.strange = signatures.generate(folder / "strange.pem")

    async def push(
        self, version: str, *, by: str = "release", extra: bytes = b"", graph: bytes | None = None
    ) -> dict[str, Any]:
        """Push a version of the classifier; `by`: whose key signs it, none if empty."""
        # Tasks wait for company, so that some always do when the version changes.
        batching = "[batching]\nmax_batch = 64\nmax_delay_ms = 100"
        folder = models.write_classifier(self._folder / f"made-{version}", version=version, extra=batching)
        if extra:
            (folder / "notes.bin").write_bytes(extra)
        if graph is not None:
            (folder / "model.onnx").write_bytes(graph)
        sink = io.BytesIO()
        packed = packages.pack(folder, sink)
        headers = {}
        if by:
            pem = (self._folder / f"{by}.pem").read_bytes()
            signed = signatures.sign(pem, MODEL, version, packed.sha256)
            headers = {"Backhaul-Key": signed.key, "Backhaul-Signature": signed.signature}
        path = f"/v1/models/{MODEL}/versions/{version}"
        answer = await self.hub.client.put(path, content=sink.getvalue(), headers=headers)
        assert answer.status_code == 201, answer.text
        pushed: dict[str, Any] = answer.json()
        return pushed

    async def serve(self, version: str) -> None:
        answer = await self.hub.client.put(f"/v1/targets/{MODEL}", json={"version": version})
        assert answer.status_code == 200, answer.text


@pytest.fixture
def releases(hub: Served, tmp_path: Path) -> Iterator[Releases]:
    with servers.Mosquitto(tmp_path / "cloud-broker") as cloud:
        yield Releases(hub, cloud, tmp_path)


def agent(
    folder: Path, broker: servers.Mosquitto, releases: Releases, url: str = "", **more: Any
) -> program.Program:
    """An agent without models of its own, which trusts the release key."""
    (folder / "models").mkdir(exist_ok=True)
    registry = {"url": url or releases.hub.url, "trusted_keys": [releases.key], "poll_s": 0.1, **more}
    return agents.agent(folder, broker, releases.cloud, registry=registry, overflow={"enabled": False})


async def seen(one: program.Program, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """What the agent says of the registry, as soon as it is as `wanted`."""

    async def look() -> Any:
        told = await one.ask("/status")
        return told and told["registry"] | {"served": [model["version"] for model in told["models"]]}

    found: dict[str, Any] = await until(look, lambda told: bool(told) and wanted(told))
    return found


def serves(*versions: str) -> Callable[[dict[str, Any]], bool]:
    return lambda told: told["served"] == list(versions)


def is_in(state: str) -> Callable[[dict[str, Any]], bool]:
    return lambda told: [one["state"] for one in told["wanted"]] == [state]


async def job(broker: servers.Mosquitto, **metadata: Any) -> dict[str, Any]:
    """The reply to a device's job."""
    body = json.dumps({"image": IMAGE, **metadata})
    words = ("-V", "5", "-t", JOBS, "-e", "line/replies", "-m", body, "-W", "8")
    reply: dict[str, Any] = json.loads(await agents.run("mosquitto_rr", broker, *words))
    return reply


async def test_a_version_that_is_pushed_is_served_and_reported(
    releases: Releases, broker: servers.Mosquitto, tmp_path: Path
) -> None:
    """An agent without models is told of one: its heartbeat names the version, a job pinned to it runs."""
    pushed = await releases.push("1.0.0")
    async with (
        hubs.playing(releases.cloud, AGENT) as played,
        agents.running(agent(tmp_path, broker, releases)) as one,
    ):
        await seen(one, lambda told: told["heard_s"] is not None)
        assert (await seen(one, serves()))["wanted"] == []
        await releases.serve("1.0.0")
        told = await seen(one, serves("1.0.0"))
        assert [(found["state"], found["sha256"]) for found in told["wanted"]] == [
            ("served", pushed["sha256"])
        ]
        beat = await played.heartbeat()
        assert [(model.name, model.version) for model in beat.models] == [(MODEL, "1.0.0")]
        reply = await job(broker, version="1.0.0")
        assert (reply["state"], reply["version"]) == ("COMPLETED", "1.0.0")


class Steady:
    """A device that publishes a job every few milliseconds, and counts what comes back."""

    def __init__(self, broker: servers.Mosquitto) -> None:
        self._broker = broker
        self._stop = asyncio.Event()
        self.published = 0
        self.pinned: str | None = None
        """The version that every second job wants."""
        self.replies: list[dict[str, Any]] = []
        self.came = asyncio.Event()

    async def run(self) -> None:
        """Publish until told to stop, then wait for every reply."""
        client = servers.binary("mosquitto_pub")
        async with agents.Replies(self._broker, RESULTS) as replies, asyncio.TaskGroup() as group:
            taking = group.create_task(self._take(replies))
            words = ("-h", self._broker.host, "-p", str(self._broker.port), "-q", "1", "-t", JOBS, "-l")
            process = await asyncio.create_subprocess_exec(
                client.path, *words, env=client.env, stdin=asyncio.subprocess.PIPE
            )
            assert process.stdin is not None
            while not self._stop.is_set():
                version = self.pinned if self.published % 2 else None
                process.stdin.write(json.dumps({"image": IMAGE, "version": version}).encode() + b"\n")
                await process.stdin.drain()
                self.published += 1
                await asyncio.sleep(0.004)
            process.stdin.close()
            await process.wait()
            await self.until(lambda: len(self.replies) >= self.published)
            taking.cancel()

    async def _take(self, replies: agents.Replies) -> None:
        while True:
            self.replies.append(await replies.next())
            self.came.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(agents.PATIENCE_S):
            while not condition():
                self.came.clear()
                await self.came.wait()

    async def sees(self, version: str) -> None:
        """Wait until a verdict comes from that version."""
        await self.until(lambda: bool(self.replies) and self.replies[-1]["version"] == version)

    def stop(self) -> None:
        self._stop.set()


async def test_versions_are_swapped_under_load_and_no_job_is_lost(
    releases: Releases, broker: servers.Mosquitto, tmp_path: Path
) -> None:
    """While jobs come steadily the version goes up, and back without a fetch: each is answered once."""
    for version in ("1.0.0", "2.0.0"):
        await releases.push(version)
    await releases.serve("1.0.0")
    async with agents.running(agent(tmp_path, broker, releases)) as one:
        await seen(one, serves("1.0.0"))
        device = Steady(broker)

        async def log() -> str:
            return one.log.read_text()

        async with asyncio.TaskGroup() as group:
            group.create_task(device.run())
            device.pinned = "1.0.0"
            await device.sees("1.0.0")
            await releases.serve("2.0.0")
            await device.sees("2.0.0")
            device.pinned = None
            await until(log, lambda text: f"{MODEL}@1.0.0 is served no longer" in text)
            await releases.hub.rows("DELETE FROM blob_chunks RETURNING 1")  # nothing can be fetched any more
            device.pinned = "2.0.0"
            await releases.serve("1.0.0")
            await device.sees("1.0.0")
            device.pinned = None
            await until(log, lambda text: f"{MODEL}@2.0.0 is served no longer" in text)
            device.stop()
        told = await seen(one, serves("1.0.0"))
        assert told["kept"] == [f"{MODEL}@2.0.0"]
    assert {reply["state"] for reply in device.replies} == {"COMPLETED"}
    assert len({reply["task_id"] for reply in device.replies}) == device.published == len(device.replies)


class Thin:
    """A way to the hub on which each connection breaks after some bytes."""

    def __init__(self, url: str, limit: int) -> None:
        self._far = url.removeprefix("http://").split(":")
        self.limit = limit
        self.port = ports.free()
        self.passed = 0
        """Bytes that came from the hub."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Thin]:
        async with await asyncio.start_server(self._pass, "127.0.0.1", self.port):
            yield self

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._far[0], int(self._far[1]))
        left = self.limit
        with contextlib.suppress(OSError):
            far_writer.write(await reader.readuntil(b"\r\n\r\n"))
            while left and (data := await far_reader.read(min(left, 1 << 16))):
                writer.write(data)
                await writer.drain()
                left -= len(data)
                self.passed += len(data)
        for end in (writer, far_writer):
            end.close()


async def test_a_fetch_that_breaks_off_goes_on(
    releases: Releases, broker: servers.Mosquitto, tmp_path: Path
) -> None:
    """The link breaks again and again, and the agent is killed in the middle: no byte is fetched twice."""
    pushed = await releases.push("1.0.0", extra=os.urandom(1 << 20))
    await releases.serve("1.0.0")
    async with Thin(releases.hub.url, limit=400_000).open() as thin:
        one = agent(tmp_path, broker, releases, thin.url)
        async with agents.running(one):
            await seen(one, lambda told: any("broke off" in (had["reason"] or "") for had in told["wanted"]))
            await one.kill()
            partial = tmp_path / "state" / "models" / ".partial" / pushed["sha256"]
            assert 0 < partial.stat().st_size < pushed["size"]
            await one.start()
            await seen(one, serves("1.0.0"))
            assert not partial.exists()
    assert thin.passed < pushed["size"] + 100_000, "what was there was fetched again"


@pytest.mark.parametrize("case", ["unsigned", "stranger", "forged", "tampered", "broken"])
async def test_what_cannot_be_trusted_or_run_is_refused(
    releases: Releases, broker: servers.Mosquitto, tmp_path: Path, case: str
) -> None:
    """Signed by nobody trusted, changed, or no model: it is said why, and the version before goes on."""
    await releases.push("1.0.0")
    await releases.serve("1.0.0")
    by = {"unsigned": "", "stranger": "strange"}.get(case, "release")
    pushed = await releases.push("2.0.0", by=by, graph=b"no graph" if case == "broken" else None)
    if case == "forged":
        await releases.hub.rows(
            "UPDATE models SET signature = (SELECT signature FROM models WHERE version = '1.0.0') "
            "WHERE version = '2.0.0' RETURNING 1"
        )
    if case == "tampered":
        await releases.hub.rows(
            "UPDATE blob_chunks SET body = overlay(body PLACING '\\x41' FROM 600 FOR 1) WHERE blob_id = "
            f"(SELECT blob_id FROM blobs WHERE sha256 = '{pushed['sha256']}') RETURNING 1"
        )
    says = {
        "unsigned": "not signed",
        "stranger": "none of registry.trusted_keys",
        "forged": "was not signed with",
        "tampered": "SHA-256",
        "broken": "opens on none",
    }
    async with agents.running(agent(tmp_path, broker, releases)) as one:
        await seen(one, serves("1.0.0"))
        await releases.serve("2.0.0")
        told = await seen(one, is_in("refused"))
        assert says[case] in told["wanted"][0]["reason"], told
        assert told["served"] == ["1.0.0"]
        assert (await job(broker))["version"] == "1.0.0"
        await releases.push("3.0.0")
        await releases.serve("3.0.0")  # what is refused stands in nobody's way
        await seen(one, serves("3.0.0"))
        assert one.log.read_text().count("is refused") == 1


async def test_a_start_without_the_hub_serves_what_is_on_disk(
    releases: Releases, broker: servers.Mosquitto, tmp_path: Path
) -> None:
    """What was verified once is served when the agent is ready, without the hub; unless it was changed."""
    pushed = await releases.push("1.0.0")
    await releases.serve("1.0.0")
    one = agent(tmp_path, broker, releases)
    async with agents.running(one):
        await seen(one, serves("1.0.0"))
        await one.stop()
        one = agent(tmp_path, broker, releases, f"http://127.0.0.1:{ports.free()}")
        await one.start()
        told = await seen(one, lambda told: told["error"] is not None)
        assert told["served"] == ["1.0.0"]
        assert (await job(broker))["version"] == "1.0.0"
        await one.stop()
        graph = tmp_path / "state" / "models" / pushed["sha256"] / "model.onnx"
        graph.write_bytes(graph.read_bytes().replace(b"mean", b"wean"))
        await one.start()
        assert (await seen(one, is_in("waiting")))["served"] == []
        assert "taken off the disk" in one.log.read_text()
        await one.close()
