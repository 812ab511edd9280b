"""Models over REST: aimed at agents, and what an agent is to serve."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared import topics
from tests.integration import api_server
from tests.integration.api_server import PRESS_A, Served, join, telemetry
from tests.integration.shipped import aim, package, problem, pushed, sha256


@pytest.fixture
async def hub(database: str) -> AsyncIterator[Served]:
    async with api_server.serving(database) as served:
        yield served


async def test_targets_are_put_and_withdrawn(hub: Served, tmp_path: Path) -> None:
    """A target goes by model and selector, however that is written; again it changes nothing."""
    for version in ("1", "2"):
        await pushed(hub, package(tmp_path, version=version), version=version)
    first = await aim(hub, "1", "gpu=h100, site=lyon")
    assert first["selector"] == "gpu=h100,site=lyon"
    assert await aim(hub, "1", "site=lyon,gpu=h100") == first
    second = await aim(hub, "2", "site=lyon,gpu=h100")
    assert (second["version"], second["selector"]) == ("2", first["selector"])
    assert second["changed_at"] > first["changed_at"]
    everywhere = await aim(hub, "1")
    assert (await hub.client.get("/v1/targets")).json()["targets"] == [everywhere, second]
    assert (await hub.client.get("/v1/targets", params={"model": "other"})).json()["targets"] == []
    assert (await hub.client.get("/v1/models/defects")).json()["targets"] == [everywhere, second]
    left = await hub.client.delete("/v1/targets/defects", params={"selector": "site=lyon,gpu=h100"})
    assert left.json()["targets"] == [everywhere]
    gone = await hub.client.delete("/v1/targets/defects", params={"selector": "site=lyon,gpu=h100"})
    assert "no target for gpu=h100,site=lyon" in problem(gone, 404, "not-found")


async def test_targets_that_make_no_sense_are_refused(hub: Served, tmp_path: Path) -> None:
    """A version that nobody pushed, a selector that is none, a word that is not known."""
    await pushed(hub, package(tmp_path))
    address = "/v1/targets/defects"
    unknown = await hub.client.put(address, json={"version": "9"})
    assert "no defects@9 was pushed" in problem(unknown, 404, "not-found")
    problem(await hub.client.put("/v1/targets/other", json={"version": "1"}), 404, "not-found")
    problem(await hub.client.put(address, json={"version": "1", "selector": "lyon"}), 422, "invalid")
    problem(await hub.client.put(address, json={"version": "1", "where": "x"}), 422, "invalid")
    problem(await hub.client.delete(address, params={"selector": "lyon"}), 422, "invalid")
    assert (await hub.client.get("/v1/targets")).json() == {"targets": []}


async def test_an_agent_is_told_by_its_labels_what_to_serve(hub: Served, tmp_path: Path) -> None:
    """The most specific target that fits its site, its name and the labels of its heartbeat."""
    bodies = {version: package(tmp_path, version=version) for version in ("1", "2", "3")}
    for version, body in bodies.items():
        await pushed(hub, body, version=version)
    await pushed(hub, package(tmp_path, name="ocr"), name="ocr")
    await aim(hub, "1")
    await aim(hub, "2", "gpu=h100")
    await aim(hub, "3", "site=york,gpu=h100")
    await aim(hub, "1", "agent=press-b", name="ocr")
    await join(hub.pool, telemetry=telemetry(labels={"gpu": "h100"}))
    await join(hub.pool, topics.Agent("york", "press-b"), telemetry=telemetry(labels={"gpu": "h100"}))
    await join(hub.pool, topics.Agent("york", "press-c"), telemetry=telemetry())

    async def wanted(site: str, name: str) -> dict[str, str]:
        answer = await hub.client.get(f"/v1/agents/{site}/{name}/models")
        return {one["model"]: one["version"] for one in answer.json()["models"]}

    assert await wanted("lyon", "press-a") == {"defects": "2"}
    assert await wanted("york", "press-b") == {"defects": "3", "ocr": "1"}
    assert await wanted("york", "press-c") == {"defects": "1"}
    (told,) = (await hub.client.get("/v1/agents/lyon/press-a/models")).json()["models"]
    assert told == {
        "model": "defects",
        "version": "2",
        "sha256": sha256(bodies["2"]),
        "size": len(bodies["2"]),
        "key": None,
        "signature": None,
        "selector": "gpu=h100",
    }


async def test_what_has_not_changed_is_not_sent_again(hub: Served, tmp_path: Path) -> None:
    """If-None-Match is answered 304 until something that concerns this agent changes."""
    await pushed(hub, package(tmp_path))
    await pushed(hub, package(tmp_path, version="2"), version="2")
    await join(hub.pool, telemetry=telemetry())
    address = "/v1/agents/lyon/press-a/models"
    first = await hub.client.get(address)
    assert first.json() == {"models": [], "trials": []}
    await aim(hub, "1", "site=york")
    same = await hub.client.get(address, headers={"if-none-match": first.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    await aim(hub, "1")
    changed = await hub.client.get(address, headers={"if-none-match": first.headers["etag"]})
    assert changed.status_code == 200
    assert changed.headers["etag"] != first.headers["etag"]


async def test_an_agent_whose_labels_are_not_known_is_told_to_come_back(hub: Served, tmp_path: Path) -> None:
    """Before its first heartbeat it might be told what is not for it, so it is told nothing."""
    await pushed(hub, package(tmp_path))
    await aim(hub, "1")
    address = "/v1/agents/lyon/press-a/models"
    for _ in range(2):
        early = await hub.client.get(address)
        assert "heartbeat" in problem(early, 404, "not-found")
        assert int(early.headers["retry-after"]) >= 1
        await join(hub.pool)
    await join(hub.pool, telemetry=telemetry())
    assert (await hub.client.get(address)).status_code == 200


async def test_labels_heard_lately_go_before_those_stored(database: str, tmp_path: Path) -> None:
    """What this hub heard of the agent is fresher than what the store was told."""

    class Member:
        epoch = 1
        heard = 0.0
        telemetry = api_server.telemetry(labels={"gpu": "a10"})

    class Live:
        def find(self, agent: topics.Agent) -> Member | None:
            return Member() if agent == PRESS_A else None

    async with api_server.serving(database, live=Live()) as hub:
        await pushed(hub, package(tmp_path))
        await aim(hub, "1", "gpu=a10")
        await join(hub.pool, telemetry=telemetry(labels={"gpu": "h100"}))
        (told,) = (await hub.client.get("/v1/agents/lyon/press-a/models")).json()["models"]
        assert told["selector"] == "gpu=a10"
