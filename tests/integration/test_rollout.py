"""A rollout from end to end: a hub that decides, an agent that does it, a device that goes on publishing."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import httpx

from demo import program, servers
from shared import packages
from tests import models
from tests.integration import agents, shipped
from tests.integration.agents import MODEL
from tests.integration.test_agent_registry import Steady
from tests.integration.test_chain import Cloud, cloud, until

__all__ = ["cloud"]  # the fixture


def agent(folder: Path, broker: servers.Mosquitto, one: Cloud) -> program.Program:
    """An agent without models of its own."""
    (folder / "models").mkdir(exist_ok=True)
    asked = {"url": one.hub.url, "unsigned": True, "poll_s": 0.1}
    return agents.agent(
        folder, broker, one.broker, registry=asked, overflow={"enabled": False}, uplink={"telemetry_s": 0.3}
    )


def packed(folder: Path) -> bytes:
    sink = io.BytesIO()
    packages.pack(folder, sink)
    return sink.getvalue()


async def push(hub: httpx.AsyncClient, folder: Path, version: str, *, brittle: bool = False) -> None:
    """Have the hub keep a version of the classifier; a brittle one fails on what the device publishes."""
    write = models.write_brittle_classifier if brittle else models.write_classifier
    body = packed(write(folder / f"made-{version}", version=version))
    answer = await hub.put(shipped.at(MODEL, version), content=body)
    assert answer.status_code == 201, answer.text


async def serve(hub: httpx.AsyncClient, version: str) -> None:
    """Have all agents serve this version."""
    answer = await hub.put(f"/v1/targets/{MODEL}", json={"version": version})
    assert answer.status_code == 200, answer.text


async def begin(hub: httpx.AsyncClient, *stages: str) -> str:
    """Start to roll version 2.0.0 out; the rollout's path."""
    answer = await hub.post(
        "/v1/rollouts",
        json={
            "model": MODEL,
            "version": "2.0.0",
            "stages": list(stages),
            "gates": ["errors<=1%", "drift<=0.2", "agreement>=95%"],
            "min_results": 20,
            "soak_s": 0,
        },
    )
    assert answer.status_code == 201, answer.text
    return f"/v1/rollouts/{answer.json()['rollout_id']}"


async def ended(hub: httpx.AsyncClient, path: str) -> dict[str, Any]:
    """The rollout, when it has ended."""

    async def look() -> Any:
        return (await hub.get(path)).json()

    found: dict[str, Any] = await until(look, lambda seen: seen["state"] in ("completed", "rolled_back"))
    return found


async def test_a_good_version_goes_through_all_stages(
    cloud: Cloud, broker: servers.Mosquitto, tmp_path: Path
) -> None:
    """Shadowed, split and served by what the agent reports, until the target names it; no job is lost."""
    async with httpx.AsyncClient(base_url=cloud.hub.url) as hub, asyncio.TaskGroup() as group:
        for version in ("1.0.0", "2.0.0"):
            await push(hub, tmp_path, version)
        await serve(hub, "1.0.0")
        device = Steady(broker)
        async with agents.running(agent(tmp_path, broker, cloud)):
            working = group.create_task(device.run())
            await device.sees("1.0.0")
            seen = await ended(hub, await begin(hub, "shadow", "traffic:50%", "100%"))
            assert seen["state"] == "completed", seen
            count = len(device.replies)
            await device.until(lambda: len(device.replies) > count + 20)
            device.stop()
            await working
        assert device.replies[-1]["version"] == "2.0.0"
        targets = (await hub.get("/v1/targets")).json()["targets"]
        assert [one["version"] for one in targets] == ["2.0.0"]
    assert {reply["state"] for reply in device.replies} == {"COMPLETED"}
    assert len({reply["task_id"] for reply in device.replies}) == device.published == len(device.replies)


async def test_a_bad_version_goes_back(cloud: Cloud, broker: servers.Mosquitto, tmp_path: Path) -> None:
    """It fails on what the device publishes: the rollout is rolled back with a reason that says where and
    why, and the old version answers."""
    async with httpx.AsyncClient(base_url=cloud.hub.url) as hub, asyncio.TaskGroup() as group:
        await push(hub, tmp_path, "1.0.0")
        await push(hub, tmp_path, "2.0.0", brittle=True)
        await serve(hub, "1.0.0")
        device = Steady(broker)
        async with agents.running(agent(tmp_path, broker, cloud)):
            working = group.create_task(device.run())
            await device.sees("1.0.0")
            seen = await ended(hub, await begin(hub, "traffic:50%", "100%"))
            assert seen["state"] == "rolled_back", seen
            assert "errors" in seen["reason"]
            count = len(device.replies)
            await device.until(lambda: len(device.replies) > count + 20)
            assert {reply["version"] for reply in device.replies[-10:]} == {"1.0.0"}
            device.stop()
            await working
    assert len({reply["task_id"] for reply in device.replies}) == device.published == len(device.replies)
    bad = [reply for reply in device.replies if reply["state"] != "COMPLETED"]
    assert len(bad) <= 10, "the agent did not wait for the hub to tell it"
    assert {reply["version"] for reply in bad} <= {"2.0.0"}
