"""Versions of a model swapped under a steady stream of jobs: each must be answered once, and well.

A hub on PostgreSQL and Valkey, an agent, the cloud's broker and the site's, all real. Versions are pushed
to the hub, and one after the other is named as the one to serve; the agent fetches, verifies and loads it,
serves it from then on, and lets the one before go once its last job is done. The device publishes whatever
happens, and counts what comes back.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import io
import re
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec

from benchmarks import figures, meters, pictures, programs
from cloud_hub.store import migrate
from demo import program, servers
from shared import link, packages, topics

SITE: Final = "plant-a"
REPLIES: Final = "camera-01/replies"
PATIENCE_S: Final = 60.0
POLL_S: Final = 0.05
WAITING: Final = 256
"""Jobs that may wait for the broker's word, more than ever do."""


@dataclass(frozen=True)
class Sizes:
    """Swaps, the jobs a second meanwhile, and how long a version serves at least."""

    swaps: int = 20
    jobs_per_s: float = 200.0
    serve_s: float = 1.0


USUAL: Final = Sizes()
QUICK: Final = Sizes(swaps=2, jobs_per_s=100.0, serve_s=0.2)


@dataclass(frozen=True)
class Swapped:
    """What came of it."""

    swaps: int
    published: int
    answers: collections.Counter[int]
    """How often each job was answered, by its number; without those that never were."""
    failed: int
    """Answers that tell of no success."""
    versions: int
    """Different ones that answered."""
    latencies_ms: list[float]
    """Of first answers, in order of their length."""
    swap_s: list[float]
    """From the word that a version is wanted to its first answer."""
    own_mb: list[float]
    """The agent's own memory after the first swap, and after the last."""

    @property
    def missing(self) -> int:
        return self.published - len(self.answers)

    @property
    def twice(self) -> int:
        return sum(times > 1 for times in self.answers.values())

    def figures(self) -> dict[str, Any]:
        return {
            "swaps": self.swaps,
            "jobs": self.published,
            "missing": self.missing,
            "twice": self.twice,
            "failed": self.failed,
            "versions": self.versions,
            "p50_ms": figures.significant(figures.quantile(self.latencies_ms, 0.5)),
            "p99_ms": figures.significant(figures.quantile(self.latencies_ms, 0.99)),
            "longest_ms": figures.significant(self.latencies_ms[-1]),
            "swap_s": figures.significant(figures.median(self.swap_s)),
            "own_mb": [round(one, 1) for one in self.own_mb],
        }


class Device:
    """Publishes pictures at a fixed rate, and keeps what is said of each."""

    def __init__(self, address: link.Address, topic: str, encoded: Sequence[bytes], per_s: float) -> None:
        self._link = link.Link(address, "camera-01", receive_maximum=1000)
        self._link.subscribe(f"{REPLIES}/#", 1, self._arrived)
        self._topic = topic
        self._encoded = encoded
        self._per_s = per_s
        self._sent_at: list[float] = []
        self._changed = asyncio.Event()
        self._enough = asyncio.Event()
        self.answers: collections.Counter[int] = collections.Counter()
        self.latencies_ms: list[float] = []
        self.failed = 0
        self.first_at: dict[str, float] = {}
        """When each version was first heard of (`time.monotonic`)."""

    @property
    def published(self) -> int:
        return len(self._sent_at)

    async def run(self) -> None:
        """Publish until it is enough, and wait for all answers; or for `PATIENCE_S`, if some never come."""
        async with asyncio.TaskGroup() as group:
            standing = group.create_task(self._link.run(), name="device")
            await self._link.wait_connected()
            await self._publish()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    while len(self.answers) < self.published:
                        self._changed.clear()
                        await self._changed.wait()
            await asyncio.sleep(0.5)  # for answers that come twice
            standing.cancel()

    def stop(self) -> None:
        self._enough.set()

    async def sees(self, version: str) -> float:
        """When an answer first came from that version."""
        async with asyncio.timeout(PATIENCE_S):
            while version not in self.first_at:
                self._changed.clear()
                await self._changed.wait()
        return self.first_at[version]

    async def _publish(self) -> None:
        room = asyncio.Semaphore(WAITING)
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while not self._enough.is_set():
                await room.acquire()
                number = self.published
                self._sent_at.append(time.monotonic())
                sent = self._link.publish(
                    self._topic,
                    self._encoded[number % len(self._encoded)],
                    qos=1,
                    content_type="image/png",
                    response_topic=REPLIES,
                    correlation=number.to_bytes(4, "big"),
                )
                group.create_task(sent, name="job").add_done_callback(lambda _: room.release())
                due = began + self.published / self._per_s
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    def _arrived(self, message: link.Message) -> None:
        now = time.monotonic()
        self._link.ack(message)
        number = int.from_bytes(message.correlation or b"", "big")
        said = msgspec.json.decode(message.payload)
        self.answers[number] += 1
        if self.answers[number] == 1:
            self.latencies_ms.append(1000 * (now - self._sent_at[number]))
        if said["state"] != "COMPLETED":
            self.failed += 1
        else:
            self.first_at.setdefault(said["version"], now)
        self._changed.set()


class Releases:
    """Versions of one package, pushed to a hub."""

    def __init__(self, material: pictures.Material, url: str, directory: Path) -> None:
        self._material = material
        self._directory = directory
        self._http = httpx.AsyncClient(base_url=url, timeout=PATIENCE_S)

    async def __aenter__(self) -> Releases:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def push(self, version: str) -> None:
        """The same graph under another version."""
        model = self._material.model
        folder = Path(shutil.copytree(self._material.models / model, self._directory / version))
        manifest = folder / "model.toml"
        text = manifest.read_text(encoding="utf-8")
        manifest.write_text(re.sub(r'(?m)^version = ".*"$', f'version = "{version}"', text), encoding="utf-8")
        sink = io.BytesIO()
        packages.pack(folder, sink)
        await self._put(f"/v1/models/{model}/versions/{version}", content=sink.getvalue())

    async def serve(self, version: str) -> None:
        await self._put(f"/v1/targets/{self._material.model}", json={"version": version})

    async def _put(self, path: str, **body: Any) -> None:
        answer = await self._http.put(path, **body)
        assert answer.is_success, answer.text


async def measure(sizes: Sizes) -> Swapped:
    """Swap so often. Raises AssertionError unless each job was answered once, and well."""
    with tempfile.TemporaryDirectory(prefix="backhaul-swaps-") as folder:
        directory = Path(folder)
        material = pictures.lay_out(directory / "made")
        async with (
            servers.Postgres(directory / "postgres") as postgres,
            servers.Valkey(directory / "valkey") as valkey,
            servers.Mosquitto(directory / "cloud") as cloud,
            servers.Mosquitto(directory / "site") as broker,
        ):
            await migrate.migrate(postgres.dsn)
            started = programs.Programs(directory, cloud, valkey)
            async with (
                started.hub(postgres.dsn) as hub,
                Releases(material, hub.url, directory / "made") as releases,
                _agent(started, directory, hub, broker) as agent,
            ):
                topic = topics.job(SITE, "camera-01", material.model)
                encoded = pictures.load(material.pictures)
                device = Device(link.Address(broker.host, broker.port), topic, encoded, sizes.jobs_per_s)
                swapped = await _swap(sizes, agent, releases, device)
    assert not swapped.missing, f"{swapped.missing} jobs of {swapped.published} were not answered"
    assert not swapped.twice, f"{swapped.twice} jobs were answered more than once"
    assert not swapped.failed, f"{swapped.failed} jobs failed"
    return swapped


@contextlib.asynccontextmanager
async def _agent(
    started: programs.Programs, directory: Path, hub: program.Program, broker: servers.Mosquitto
) -> AsyncIterator[program.Program]:
    """An agent of a site, without models of its own."""
    own = directory / "own"
    own.mkdir()
    settings: dict[str, Any] = {
        "site": SITE,
        "models": str(own),
        "broker": {"host": broker.host, "port": broker.port},
        "registry": {"url": hub.url, "unsigned": True, "poll_s": 0.1},
        "overflow": {"enabled": False},
    }
    async with started.agent(**settings) as agent:
        yield agent


async def _swap(sizes: Sizes, agent: program.Program, releases: Releases, device: Device) -> Swapped:
    versions = [f"{number}.0.0" for number in range(1, sizes.swaps + 2)]
    swap_s: list[float] = []
    own_mb: list[float] = []
    for version in versions:
        await releases.push(version)
    await releases.serve(versions[0])
    await _serves(agent, versions[0])
    async with asyncio.TaskGroup() as group:
        group.create_task(device.run(), name="device")
        await device.sees(versions[0])
        for version in versions[1:]:
            began = time.monotonic()
            await releases.serve(version)
            swap_s.append(await device.sees(version) - began)
            await _serves(agent, version)
            await asyncio.sleep(sizes.serve_s)
            own_mb.append(meters.own_mb(agent.pid))
        device.stop()
    return Swapped(
        swaps=sizes.swaps,
        published=device.published,
        answers=device.answers,
        failed=device.failed,
        versions=len(device.first_at),
        latencies_ms=sorted(device.latencies_ms),
        swap_s=swap_s,
        own_mb=[own_mb[0], own_mb[-1]],
    )


async def _serves(agent: program.Program, version: str) -> None:
    """Wait until the agent serves that version, and no other."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            told = await agent.ask("/status")
            if told is not None and [one["version"] for one in told["models"]] == [version]:
                return
            await asyncio.sleep(POLL_S)


def report(swapped: Swapped) -> None:
    told = swapped.figures()
    figures.show(
        f"{swapped.swaps} swaps of a model's version under a stream of jobs",
        (
            "jobs",
            "answered",
            "twice",
            "failed",
            "versions",
            "p50 ms",
            "p99 ms",
            "longest",
            "swap s",
            "agent MB",
        ),
        [
            (
                f"{swapped.published:,}",
                *(
                    f"{len(swapped.answers):,}",
                    f"{swapped.twice}",
                    f"{swapped.failed}",
                    f"{swapped.versions}",
                ),
                *(f"{told[name]:g}" for name in ("p50_ms", "p99_ms", "longest_ms", "swap_s")),
                " to ".join(f"{one:.0f}" for one in swapped.own_mb),
            )
        ],
        (
            "A swap lasts from the word that a version is wanted to its first answer. The agent's memory is",
            "its own (anonymous), after the first swap and after the last.",
        ),
    )
