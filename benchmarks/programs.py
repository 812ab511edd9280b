"""A hub and an agent of the pool, the real programs, for tasks that cost nothing to run."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from benchmarks import noop
from demo import program, servers, toml
from shared import topics

AGENT: Final = topics.Agent("cloud", "pool-1")


class Programs:
    """Starts them, with files in one directory, against these servers."""

    def __init__(self, directory: Path, broker: servers.Mosquitto, redis: servers.Valkey) -> None:
        self._directory = directory
        self._broker = broker
        self._redis = redis
        self._address: toml.Table = {"host": broker.host, "port": broker.port}
        noop.write_model(directory / "models")

    @contextlib.asynccontextmanager
    async def hub(self, dsn: str) -> AsyncIterator[program.Program]:
        """A hub on the database `dsn`."""
        hub = program.Program("hub", ["cloud-hub", "serve"], self._directory / "hub.toml")
        hub.configure({"database": dsn, "redis": self._redis.url, "broker": self._address})
        async with _running(hub):
            yield hub

    @contextlib.asynccontextmanager
    async def agent(self, **settings: toml.Table) -> AsyncIterator[program.Program]:
        """An agent with an empty journal; `settings` are sections of its file."""
        with tempfile.TemporaryDirectory(dir=self._directory) as home:
            agent = program.Program("agent", ["edge-agent", "run"], Path(home) / "agent.toml")
            agent.configure(
                {
                    "site": AGENT.site,
                    "name": AGENT.name,
                    "state": "state",
                    "models": str(self._directory / "models"),
                    "uplink_broker": self._address,
                    **settings,
                }
            )
            async with _running(agent):
                yield agent


@contextlib.asynccontextmanager
async def _running(one: program.Program) -> AsyncIterator[None]:
    try:
        await one.start()
        yield
    finally:
        await one.close()
