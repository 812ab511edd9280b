"""What is compared: servers of one model over HTTP, each the real program in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Final, Protocol

import httpx

from benchmarks.serving import predictor
from demo import program, servers
from demo.servers import ports
from edge_agent import models

START_S: Final = 60.0
POLL_S: Final = 0.05


@dataclass(frozen=True)
class Question:
    """A model, and what it is asked."""

    model: models.Model
    bodies: Path
    """A file with a request a line."""

    @property
    def graph(self) -> predictor.Graph:
        (given,) = self.model.manifest.inputs
        return predictor.Graph(str(self.model.path), list(given.shape), getattr(given, "scale", 1.0))


@dataclass(frozen=True)
class Serving:
    """A server that answers."""

    pid: int
    port: int
    path: str
    """Where requests go."""


class Way(Protocol):
    """A server that can be measured, again and again."""

    @property
    def name(self) -> str:
        """Its key among the figures."""

    @property
    def title(self) -> str:
        """Its words in the table."""

    def serving(self, question: Question, directory: Path) -> AbstractAsyncContextManager[Serving]:
        """The server, once it answers, for the time of the block; `directory` is for its files."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A library that serves models, as it was set up."""

    name: str
    words: str
    """For the table; {} stands for the version."""
    path: str

    @property
    def installed(self) -> bool:
        return util.find_spec(self.name) is not None

    @property
    def title(self) -> str:
        return self.words.format(metadata.version(self.name))

    @contextlib.asynccontextmanager
    async def serving(self, question: Question, directory: Path) -> AsyncIterator[Serving]:
        port = ports.free()
        given = json.dumps({"port": port, "graph": question.graph._asdict()})
        module = f"benchmarks.serving.{self.name}_way"
        process = servers.Process(self.name, [sys.executable, "-m", module, given], directory / "log")
        served = Serving(0, port, self.path)
        try:
            await process.start()
            await _answers(process, served, question)
            yield Serving(process.pid, port, self.path)
        finally:
            await process.kill()


KINDS: Final = (
    Kind(name="mosec", words="mosec {}", path="/inference"),
    Kind(name="litserve", words="LitServe {}", path="/predict"),
)


class Agent:
    """The agent's own port. Its cloud does not answer, so that its journal keeps every result as well."""

    name = "backhaul"
    title = "edge agent"

    @contextlib.asynccontextmanager
    async def serving(self, question: Question, directory: Path) -> AsyncIterator[Serving]:
        agent = program.Program("agent", ["edge-agent", "run"], directory / "agent.toml")
        agent.configure(
            {
                "site": "plant-a",
                "name": "edge-1",
                "state": "state",
                "models": str(question.model.folder.parent),
                "uplink_broker": {"host": ports.HOST, "port": ports.free()},
                "engine": {"threads": 1},
            }
        )
        try:
            await agent.start()
            yield Serving(agent.pid, agent.port, f"/v2/models/{question.model.name}/infer")
        finally:
            await agent.close()


async def answer(served: Serving, question: Question) -> list[float]:
    """The numbers that the server says of the first request. Raises httpx.HTTPError."""
    body = question.bodies.read_bytes().splitlines()[0]
    async with httpx.AsyncClient(base_url=f"http://{ports.HOST}:{served.port}") as client:
        said = await client.post(served.path, content=body, headers={"Content-Type": "application/json"})
        said.raise_for_status()
        numbers: list[float] = said.json()["outputs"][0]["data"]
        return numbers


async def _answers(process: servers.Process, served: Serving, question: Question) -> None:
    """Wait until it does. Raises servers.StartFailed."""
    try:
        async with asyncio.timeout(START_S):
            while process.running:
                with contextlib.suppress(httpx.HTTPError):
                    await answer(served, question)
                    return
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        pass
    raise servers.StartFailed(f"{process.name} does not answer; the end of its log:\n{process.tail()}")
