"""An agent on a broker, and devices that are other people's programs."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from demo import program, servers
from tests import models

SITE: Final = "plant-t"
MODEL: Final = "brightness"
JOBS: Final = f"backhaul/v1/{SITE}/jobs/camera-1/{MODEL}"
PATIENCE_S: Final = 10.0


def agent(
    directory: Path, broker: servers.Mosquitto | None, cloud: servers.Mosquitto | None = None, **sections: Any
) -> program.Program:
    """An agent with a model that tells bright pictures from dark ones, not started."""
    packages = directory / "models"
    if not packages.exists():
        models.write_classifier(packages / MODEL)
    settings: dict[str, Any] = {"site": SITE, "name": "edge-1", "state": "state", "models": str(packages)}
    if broker is not None:
        settings["broker"] = {"host": broker.host, "port": broker.port}
    if cloud is not None:
        settings["uplink_broker"] = {"host": cloud.host, "port": cloud.port}
    one = program.Program("edge-1", ["edge-agent", "run"], directory / "agent.toml")
    one.configure({**settings, **sections})
    return one


@contextlib.asynccontextmanager
async def running(one: program.Program) -> AsyncIterator[program.Program]:
    """Start it and, at the end, stop it."""
    try:
        await one.start()
        yield one
    finally:
        await one.close()


async def run(name: str, broker: servers.Mosquitto, *words: str | Path, stdin: bytes | None = None) -> bytes:
    """Run one of Mosquitto's clients against `broker`; what it prints."""
    client = servers.binary(name)
    process = await asyncio.create_subprocess_exec(
        client.path,
        "-h",
        broker.host,
        "-p",
        str(broker.port),
        *words,
        env=client.env,
        stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            printed, complained = await process.communicate(stdin)
    except BaseException:
        process.kill()
        raise
    assert process.returncode == 0, f"{name}: {complained.decode()}"
    return printed


class Replies:
    """What a plain MQTT 3.1.1 device sees on a topic, by `mosquitto_sub`."""

    def __init__(self, broker: servers.Mosquitto, topic: str) -> None:
        self._broker = broker
        self._topic = topic
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Replies:
        client = servers.binary("mosquitto_sub")
        self._process = await asyncio.create_subprocess_exec(
            client.path,
            *("-h", self._broker.host, "-p", str(self._broker.port), "-V", "311", "-q", "1"),
            *("-t", self._topic, "-t", "ready/#", "-F", "%t %p"),
            env=client.env,
            stdout=asyncio.subprocess.PIPE,
        )
        await run(
            "mosquitto_pub", self._broker, "-t", "ready/now", "-m", "{}", "-r"
        )  # subscribed when it is seen
        await self.next()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    async def next(self) -> dict[str, Any]:
        """The next reply."""
        assert self._process is not None
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            line = await self._process.stdout.readline()
        reply: dict[str, Any] = json.loads(line.partition(b" ")[2])
        return reply
