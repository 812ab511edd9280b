"""A version beside another on one agent: shares, tags, shadows, and the way back with nobody there to ask."""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from demo import program, servers
from edge_agent.registry import wanted
from shared import signals, tasks, topics
from shared.rollouts import route, stages, trials
from tests import models
from tests.integration import agents, hubs, registries
from tests.integration.agents import MODEL, SITE
from tests.integration.test_agent_registry import Steady
from tests.integration.test_chain import until

AGENT: Final = topics.Agent(SITE, "edge-1")
RESULTS: Final = f"backhaul/v1/{SITE}/results/+"
JOBS: Final = f"backhaul/v1/{SITE}/jobs/camera-1/{MODEL}"
BRIGHT: Final = base64.b64encode(models.png(250)).decode()


@pytest.fixture
async def registry() -> AsyncIterator[registries.Registry]:
    """A registry with nothing in it."""
    async with registries.Registry().open() as opened:
        yield opened


@pytest.fixture
def cloud(tmp_path: Path) -> Any:
    """The cloud's broker."""
    with servers.Mosquitto(tmp_path / "cloud-broker") as opened:
        yield opened


def pushed(registry: registries.Registry, folder: Path, version: str, kind: str = "") -> wanted.Wanted:
    """A version of the classifier; `kind`: what is wrong with it."""
    made = folder / f"made-{version}"
    if kind == "brittle":
        models.write_brittle_classifier(made, version=version)
    else:
        models.write_classifier(made, version=version)
    if kind == "broken":
        (made / "model.onnx").write_bytes(b"no graph")
    if kind == "opposite":
        manifest = made / "model.toml"
        manifest.write_text(manifest.read_text().replace('["dark", "bright"]', '["bright", "dark"]'))
    return registry.push(made, version)


def trial(new: wanted.Wanted, old: wanted.Wanted, mode: stages.Mode, **more: Any) -> trials.Trial:
    """A trial with gates that only what is broken fails."""
    said: dict[str, Any] = {
        "rollout": str(uuid.UUID(int=7)),
        "gates": ["errors<=1%", "agreement>=90%"],
        "min_results": 20,
    }
    return trials.Trial(model=MODEL, mode=mode, new=new, old=old, **(said | more))


def agent(
    folder: Path, broker: servers.Mosquitto, cloud: servers.Mosquitto, registry: registries.Registry
) -> program.Program:
    """An agent without models of its own."""
    (folder / "models").mkdir(exist_ok=True)
    asked = {"url": registry.url, "unsigned": True, "poll_s": 0.1}
    return agents.agent(
        folder, broker, cloud, registry=asked, overflow={"enabled": False}, uplink={"telemetry_s": 0.2}
    )


async def standing(
    one: program.Program, wanted: Callable[[signals.TrialReport], bool]
) -> tuple[signals.TrialReport, list[str]]:
    """The agent's only trial, as soon as it is as `wanted`, and the versions that are loaded then."""

    async def look() -> Any:
        told = await one.ask("/status")
        found = told["telemetry"]["trials"] if told else []
        return found and (
            signals.TrialReport(**found[0]),
            [model["version"] for model in told["models"]],
        )

    found: tuple[signals.TrialReport, list[str]] = await until(look, lambda seen: seen and wanted(seen[0]))
    return found


def is_in(state: trials.State) -> Callable[[signals.TrialReport], bool]:
    return lambda report: report.state == state


async def publish(broker: servers.Mosquitto, count: int, **properties: str) -> None:
    """Jobs of a device; user properties beside them."""
    words = [
        word for key, value in properties.items() for word in ("-D", "PUBLISH", "user-property", key, value)
    ]
    lines = json.dumps({"image": BRIGHT}) + "\n"
    await agents.run(
        "mosquitto_pub",
        broker,
        *("-V", "5", "-q", "1", "-t", JOBS, "-l", *words),
        stdin=(lines * count).encode(),
    )


async def answers(replies: agents.Replies, count: int) -> list[dict[str, Any]]:
    return [await replies.next() for _ in range(count)]


def versions(replies: Sequence[dict[str, Any]]) -> list[str]:
    return [reply["version"] for reply in replies]


async def test_jobs_go_by_their_share_and_by_their_tags(
    registry: registries.Registry, broker: servers.Mosquitto, cloud: servers.Mosquitto, tmp_path: Path
) -> None:
    """A job goes where everybody who knows its id says, a tagged one to the new version, and one that names a
    version nowhere else; requests by the Open Inference Protocol are split as well. So it is after a start
    without the hub."""
    old, new = pushed(registry, tmp_path, "1.0.0"), pushed(registry, tmp_path, "2.0.0")
    told = trial(new, old, stages.Mode.SPLIT, traffic=30.0, tags=(("group", "beta"),))
    registry.want(old, tries=told)
    one = agent(tmp_path, broker, cloud, registry)

    def expected(reply: dict[str, Any]) -> str:
        goes = route.route(told.exposure, told.rollout, tasks.parse_id(reply["task_id"]), {})
        return (new if goes is route.Route.NEW else old).version

    async with agents.running(one), agents.Replies(broker, RESULTS) as replies:
        await standing(one, is_in(trials.State.READY))
        await publish(broker, 60)
        for reply in (by_share := await answers(replies, 60)):
            assert reply["version"] == expected(reply)
        assert set(versions(by_share)) == {"1.0.0", "2.0.0"}
        await publish(broker, 10, group="beta")
        assert versions(await answers(replies, 10)) == ["2.0.0"] * 10
        await publish(broker, 5, group="beta", version="1.0.0")
        assert versions(await answers(replies, 5)) == ["1.0.0"] * 5
        tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [BRIGHT]}
        async with httpx.AsyncClient(base_url=one.url) as client:
            said = [
                (await client.post(f"/v2/models/{MODEL}/infer", json={"inputs": [tensor]})).json()
                for _ in range(40)
            ]
        assert {answer["model_version"] for answer in said} == {"1.0.0", "2.0.0"}
        registry.away = True
        await one.kill()
        await one.start()
        await publish(broker, 20)
        for reply in await answers(replies, 20):
            assert reply["version"] == expected(reply)
        await publish(broker, 5, group="beta")
        assert versions(await answers(replies, 5)) == ["2.0.0"] * 5


async def test_a_shadow_is_compared_and_answers_nobody(
    registry: registries.Registry, broker: servers.Mosquitto, cloud: servers.Mosquitto, tmp_path: Path
) -> None:
    """Each job has one answer and one row, the old version's; the heartbeat counts what both said of it."""
    old, new = pushed(registry, tmp_path, "1.0.0"), pushed(registry, tmp_path, "2.0.0")
    registry.want(old, tries=trial(new, old, stages.Mode.SHADOW))
    one = agent(tmp_path, broker, cloud, registry)
    async with (
        hubs.playing(cloud, AGENT) as played,
        agents.running(one),
        agents.Replies(broker, RESULTS) as replies,
    ):
        await standing(one, is_in(trials.State.READY))
        await publish(broker, 40)
        assert set(versions(await answers(replies, 40))) == {"1.0.0"}
        await standing(one, lambda report: report.compared == 40)
        (report,) = (await played.heartbeat()).trials
        assert (report.state, report.compared, report.agreed) == ("ready", 40, 40)
        assert (report.shadow_failed, report.shadow_dropped) == (0, 0)
        await played.until(lambda: len(played.rows) >= 40)
        assert {row["version"] for row in played.rows} == {"1.0.0"}
        assert len(played.rows) == 40
        tensor = {"name": "image", "shape": [200], "datatype": "BYTES", "data": [BRIGHT] * 200}
        words = ("-q", "1", "-t", JOBS, "-s")
        await agents.run("mosquitto_pub", broker, *words, stdin=json.dumps({"inputs": [tensor]}).encode())
        (long,) = await answers(replies, 1)
        assert len(long["items"]) == 200
        report, _ = await standing(one, lambda report: report.compared > 40)
        assert (report.compared, report.agreed) == (41, 41), "a job is compared once, however long it is"


async def test_a_shadow_that_disagrees_is_left(
    registry: registries.Registry, broker: servers.Mosquitto, cloud: servers.Mosquitto, tmp_path: Path
) -> None:
    """The agent alone sees that the new version says something else, stops trying it, and says why."""
    old, new = pushed(registry, tmp_path, "1.0.0"), pushed(registry, tmp_path, "2.0.0", "opposite")
    registry.want(old, tries=trial(new, old, stages.Mode.SHADOW))
    one = agent(tmp_path, broker, cloud, registry)
    async with agents.running(one), agents.Replies(broker, RESULTS) as replies:
        await standing(one, is_in(trials.State.READY))
        await publish(broker, 30)
        assert set(versions(await answers(replies, 30))) == {"1.0.0"}
        report, _ = await standing(one, is_in(trials.State.ROLLED_BACK))
        assert "agreement" in report.reason
        assert report.agreed == 0 < report.compared


async def test_a_version_that_cannot_be_loaded_is_refused(
    registry: registries.Registry, broker: servers.Mosquitto, cloud: servers.Mosquitto, tmp_path: Path
) -> None:
    """The heartbeat says so and why, and the old version answers, though the hub wants the new one."""
    old, new = pushed(registry, tmp_path, "1.0.0"), pushed(registry, tmp_path, "2.0.0", "broken")
    registry.want(new, tries=trial(new, old, stages.Mode.SERVE))
    one = agent(tmp_path, broker, cloud, registry)
    async with agents.running(one), agents.Replies(broker, RESULTS) as replies:
        report, _ = await standing(one, is_in(trials.State.REFUSED))
        assert "opens on none" in report.reason
        await publish(broker, 5)
        assert versions(await answers(replies, 5)) == ["1.0.0"] * 5


async def test_a_bad_version_is_left_with_the_hub_gone(
    registry: registries.Registry, broker: servers.Mosquitto, cloud: servers.Mosquitto, tmp_path: Path
) -> None:
    """Told to serve it, then cut off: the agent goes back by itself, every job is answered once, and a start
    without the hub changes nothing; with the hub's next word it is as if nothing had been."""
    old, new = pushed(registry, tmp_path, "1.0.0"), pushed(registry, tmp_path, "2.0.0", "brittle")
    registry.want(old)
    one = agent(tmp_path, broker, cloud, registry)
    async with agents.running(one), agents.Replies(broker, RESULTS) as replies:
        await publish(broker, 5)
        assert versions(await answers(replies, 5)) == ["1.0.0"] * 5
        registry.want(new, tries=trial(new, old, stages.Mode.SERVE))
        _, loaded = await standing(one, is_in(trials.State.READY))
        assert loaded == ["1.0.0", "2.0.0"]
        registry.away = True
        await cloud.stop()
        await publish(broker, 40)
        seen = await answers(replies, 40)
        assert len({reply["task_id"] for reply in seen}) == 40
        assert "1.0.0" in versions(seen)
        report, _ = await standing(one, is_in(trials.State.ROLLED_BACK))
        assert "errors" in report.reason
        await one.restart()
        report, loaded = await standing(one, is_in(trials.State.ROLLED_BACK))
        assert (loaded, "errors" in report.reason) == (["1.0.0"], True)
        await publish(broker, 10)
        assert versions(await answers(replies, 10)) == ["1.0.0"] * 10
        registry.want(old)
        registry.away = False
        await until(lambda: one.ask("/status"), lambda told: bool(told) and not told["telemetry"]["trials"])
        kept = tmp_path / "state" / "models" / "gone-back.json"

        async def remembered() -> str:
            return kept.read_text()

        await until(remembered, lambda text: text == "{}")


async def test_stages_follow_one_another_under_load_and_no_job_is_lost(
    registry: registries.Registry, broker: servers.Mosquitto, cloud: servers.Mosquitto, tmp_path: Path
) -> None:
    """Shadowed, then split, served, and at the end the only version: each job is answered once, well."""
    old, new = pushed(registry, tmp_path, "1.0.0"), pushed(registry, tmp_path, "2.0.0")
    registry.want(old)
    one = agent(tmp_path, broker, cloud, registry)
    async with agents.running(one):
        device = Steady(broker)
        async with asyncio.TaskGroup() as group:
            group.create_task(device.run())
            await device.sees("1.0.0")
            registry.want(old, tries=trial(new, old, stages.Mode.SHADOW))
            await standing(one, lambda report: report.compared > 10)
            registry.want(old, tries=trial(new, old, stages.Mode.SPLIT, traffic=50.0))
            await device.sees("2.0.0")
            await device.sees("1.0.0")
            registry.want(new, tries=trial(new, old, stages.Mode.SERVE))
            count = len(device.replies) + 100
            await device.until(lambda: len(device.replies) > count)
            assert set(versions(device.replies[-30:])) == {"2.0.0"}
            registry.want(new)
            await until(lambda: one.ask("/status"), lambda told: bool(told) and len(told["models"]) == 1)
            device.stop()
    assert {reply["state"] for reply in device.replies} == {"COMPLETED"}
    assert len({reply["task_id"] for reply in device.replies}) == device.published == len(device.replies)
