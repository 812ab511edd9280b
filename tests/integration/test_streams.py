"""A model that carries a state, in a real agent: devices that publish at once, each with its own stream."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from demo import program, servers
from tests import models
from tests.integration import agents

DEVICES = ("camera-1", "camera-2", "press-1", "press-2")
JOBS = 40
NUMBERS = (1, 10, 100, 1000)
BAD = 9
"""An index on which the graph fails, each time it is tried."""


@pytest.fixture
async def edge(tmp_path: Path, broker: servers.Mosquitto) -> AsyncIterator[program.Program]:
    models.write_counter(
        tmp_path / "models" / "counter",
        extra="[batching]\nmax_batch = 8\nmax_delay_ms = 5\nlearn = false",
    )
    async with agents.running(agents.agent(tmp_path, broker, engine={"threads": 2, "window": 8})) as started:
        yield started


def body(number: int, indices: list[int], topic: str, **said: Any) -> str:
    tensor = {"name": "index", "shape": [len(indices)], "datatype": "INT64", "data": indices}
    parameters = {"response_topic": topic, "correlation": str(number), **said}
    return json.dumps({"inputs": [tensor], "parameters": parameters})


def expected(jobs: list[list[int]]) -> dict[str, list[float | None]]:
    """The sums of a stream, by its jobs' correlations; an item that fails leaves them as they were."""
    total = 0
    sums: dict[str, list[float | None]] = {}
    for number, indices in enumerate(jobs):
        sums[str(number)] = []
        for index in indices:
            total += 0 if index == BAD else NUMBERS[index]
            sums[str(number)].append(None if index == BAD else float(total))
    return sums


async def publish(broker: servers.Mosquitto, device: str, jobs: list[str]) -> None:
    topic = f"backhaul/v1/{agents.SITE}/jobs/{device}/counter"
    await agents.run(
        "mosquitto_pub", broker, *("-q", "1", "-t", topic, "-l"), stdin="\n".join(jobs).encode() + b"\n"
    )


async def answered(replies: agents.Replies, jobs: int) -> dict[str, list[float | None]]:
    """The scores of all replies, by their correlations."""
    found: dict[str, list[float | None]] = {}
    while len(found) < jobs:
        reply = await replies.next()
        if not reply:
            continue  # the sign by which another device learns that it is subscribed
        assert "items" in reply, reply
        found[reply["correlation"]] = [item.get("score") for item in reply["items"]]
    return found


async def test_each_devices_items_run_in_their_order(
    edge: program.Program, broker: servers.Mosquitto
) -> None:
    """Jobs of four devices, interleaved, of different priorities and sizes, some of which fail each time they
    are tried: every item finds the sum of all that came before it from its device, and of nothing else. So it
    is while batches form, while two of them run at a time, and while most of the jobs wait in the journal
    alone."""
    chance = random.Random(7)
    jobs = {
        device: [
            [
                BAD if chance.random() < 0.03 else chance.randrange(4)
                for _ in range(chance.choice((1, 1, 1, 3, 12)))
            ]
            for _ in range(JOBS)
        ]
        for device in DEVICES
    }

    async def device(name: str) -> dict[str, list[float | None]]:
        async with agents.Replies(broker, f"line/{name}") as replies:
            bodies = [
                body(number, indices, f"line/{name}", priority=chance.randrange(10))
                for number, indices in zip(count(), jobs[name], strict=False)
            ]
            await publish(broker, name, bodies)
            return await answered(replies, JOBS)

    found = await asyncio.gather(*map(device, DEVICES))
    for name, sums in zip(DEVICES, found, strict=True):
        assert sums == expected(jobs[name]), name
    told = await edge.ask("/status")
    assert told["streams"] == {"kept": len(DEVICES), "begun": len(DEVICES), "dropped": {}}


async def test_a_restart_begins_anew(edge: program.Program, broker: servers.Mosquitto) -> None:
    """A state is in memory alone. A job may name its stream, and then shares it with other devices' jobs."""
    async with agents.Replies(broker, "line/all") as replies:
        await publish(broker, "camera-1", [body(0, [0], "line/all", stream="line 1")])
        await publish(broker, "camera-2", [body(1, [1], "line/all", stream="line 1")])
        await publish(broker, "camera-2", [body(2, [2], "line/all")])
        assert await answered(replies, 3) == {"0": [1], "1": [11], "2": [100]}
        await edge.stop()
        await edge.start()
        await publish(broker, "camera-1", [body(3, [3], "line/all", stream="line 1")])
        assert await answered(replies, 1) == {"3": [1000]}
    assert (await edge.ask("/status"))["streams"]["begun"] == 1
