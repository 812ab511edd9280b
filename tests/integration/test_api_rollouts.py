"""Rollouts over REST: begun, looked at, taken on and back, and what agents are told meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloud_hub.store import apply
from shared import signals, topics
from shared.rollouts import gates, stages, trials
from tests.integration import api_server
from tests.integration.api_server import Served, join, results, telemetry
from tests.integration.shipped import aim, at, package, problem, pushed, sha256

PRESSES = [topics.Agent("lyon", f"press-{letter}") for letter in "abcd"]


@pytest.fixture
async def hub(database: str, tmp_path: Path) -> AsyncIterator[Served]:
    """A hub with three versions of a model and four agents, two of them in the ring `internal`."""
    async with api_server.serving(database) as served:
        for version in ("1", "2", "3"):
            await pushed(served, package(tmp_path, version=version), version=version)
        for place in PRESSES:
            await join(served.pool, place, telemetry=telemetry(labels=labels(place)))
        yield served


def labels(place: topics.Agent) -> dict[str, str]:
    return {"ring": "internal" if place in PRESSES[:2] else "plant"}


async def start(hub: Served, version: str = "2", **said: Any) -> dict[str, Any]:
    """Begin a rollout that has to pass by two stages."""
    body = {"model": "defects", "version": version, "stages": ["internal", "100%"], **said}
    answer = await hub.client.post("/v1/rollouts", json=body)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"/v1/rollouts/{found['rollout_id']}"
    return found


async def step(hub: Served, rollout: dict[str, Any], what: str, **said: Any) -> dict[str, Any]:
    answer = await hub.client.post(f"/v1/rollouts/{rollout['rollout_id']}/{what}", json=said)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def told(hub: Served, place: topics.Agent) -> dict[str, Any]:
    answer = await hub.client.get(f"/v1/agents/{place.site}/{place.name}/models")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def served(hub: Served, place: topics.Agent) -> str | None:
    """The version of the model that an agent is to serve by default."""
    return next((one["version"] for one in (await told(hub, place))["models"]), None)


async def report(hub: Served, place: topics.Agent, rollout: dict[str, Any], **said: Any) -> None:
    """A heartbeat that says how far an agent is with a rollout."""
    word = signals.TrialReport(rollout=rollout["rollout_id"], **({"state": "ready"} | said))
    await join(hub.pool, place, telemetry=telemetry(labels=labels(place), trials=[word]))


async def send(hub: Served, place: topics.Agent, version: str, count: int, **columns: Any) -> None:
    """Results of an agent, committed as the gateway does."""
    agent_id = await join(hub.pool, place)
    async with hub.pool.connection() as connection:
        rows = results(count, version=version, **columns)
        await apply.results(connection, agent_id, rows, hub.app.state.hub.rollouts.watched)


async def test_a_rollout_goes_by_its_stages_to_its_end(hub: Served) -> None:
    """Agents are told the new version stage by stage; targets say the old one until the last is over."""
    await aim(hub, "1")
    begun = await start(hub)
    assert (begun["state"], begun["stage"], begun["stages"]) == ("running", 0, ["internal", "100%"])
    assert begun["gates"] == [str(gate) for gate in gates.DEFAULT]
    assert [one["agents"] for one in begun["progress"]] == [2, 4]
    assert [await served(hub, place) for place in PRESSES] == ["2", "2", "1", "1"]
    assert [len((await told(hub, place))["trials"]) for place in PRESSES] == [1, 1, 0, 0]
    onward = await step(hub, begun, "promote", reason="looks well", stage=0)
    assert (onward["state"], onward["stage"]) == ("running", 1)
    assert [await served(hub, place) for place in PRESSES] == ["2"] * 4
    assert (await hub.client.get("/v1/targets")).json()["targets"][0]["version"] == "1"
    ended = await step(hub, begun, "promote", reason="done")
    assert (ended["state"], ended["reason"], ended["agents"]) == ("completed", "done", [])
    assert (await hub.client.get("/v1/targets")).json()["targets"][0]["version"] == "2"
    assert [await served(hub, place) for place in PRESSES] == ["2"] * 4
    assert [(await told(hub, place))["trials"] for place in PRESSES] == [[]] * 4
    assert [(one["kind"], one["stage"], one["by"], one["reason"]) for one in ended["history"]] == [
        ("started", 0, "operator", ""),
        ("promoted", 0, "operator", "looks well"),
        ("completed", 1, "operator", "done"),
    ]
    assert [one["evidence"] and one["evidence"]["agents"] for one in ended["history"]] == [None, 2, 4]
    assert [one["agents"] for one in ended["progress"]] == [2, 4]


async def test_rolling_back_takes_all_agents_back(hub: Served) -> None:
    """Those that had a version before go back to it, the others to none; then another rollout may begin."""
    await aim(hub, "1", "ring=internal")
    begun = await start(hub, stages=["100%"], selector="ring=plant")
    other = PRESSES[2]
    assert [await served(hub, place) for place in PRESSES] == ["1", "1", "2", "2"]
    assert (await told(hub, other))["trials"][0]["old"] is None
    ended = await step(hub, begun, "rollback", reason="scratches are missed")
    assert (ended["state"], ended["reason"]) == ("rolled_back", "scratches are missed")
    assert [await served(hub, place) for place in PRESSES] == ["1", "1", None, None]
    assert (await start(hub, "3"))["state"] == "running"


async def test_a_paused_rollout_stays_as_it_is(hub: Served) -> None:
    """Paused and resumed, again without effect; promoted, one that was paused runs again."""
    await aim(hub, "1")
    begun = await start(hub)
    paused = await step(hub, begun, "pause", reason="night")
    assert (paused["state"], paused["reason"]) == ("paused", "night")
    assert (await step(hub, begun, "pause"))["history"] == paused["history"]
    assert await served(hub, PRESSES[0]) == "2"
    resumed = await step(hub, begun, "resume")
    assert resumed["state"] == "running"
    assert (await step(hub, begun, "resume"))["history"] == resumed["history"]
    await step(hub, begun, "pause")
    promoted = await step(hub, begun, "promote")
    assert (promoted["state"], promoted["stage"]) == ("running", 1)


async def test_what_an_agent_is_told_is_what_agents_read(hub: Served) -> None:
    """A trial names both versions with all that is needed to fetch them, in the form that agents decode."""
    await aim(hub, "1")
    begun = await start(hub, stages=["100%/traffic:10%+tag:group=beta"], gates=["errors<=2%"], min_results=7)
    answer = await told(hub, PRESSES[0])
    assert await served(hub, PRESSES[0]) == "1"
    (trial,) = [msgspec.convert(one, trials.Trial) for one in answer["trials"]]
    packages = [(await hub.client.get(at(version=version))).json() for version in ("1", "2")]
    assert trial.exposure == stages.Exposure(stages.Mode.SPLIT, 10.0, (("group", "beta"),))
    assert (trial.rollout, trial.model) == (begun["rollout_id"], "defects")
    assert trial.old is not None
    assert [(one.version, one.sha256, one.size) for one in (trial.old, trial.new)] == [
        (one["version"], one["sha256"], one["size"]) for one in packages
    ]
    assert (trial.gates, trial.min_results) == (["errors<=2%"], 7)


async def test_only_agents_whose_version_would_change_take_part(hub: Served) -> None:
    """Not one with a more specific target, nor one that serves the version already, as in the end."""
    await aim(hub, "1")
    await aim(hub, "3", "agent=press-a,ring=internal")
    await aim(hub, "2", "agent=press-b,ring=internal")
    begun = await start(hub, stages=["100%"], selector="ring=internal")
    assert begun["agents"] == []
    await step(hub, begun, "rollback")
    begun = await start(hub, stages=["100%"], selector="ring=plant")
    assert [one["agent"] for one in begun["agents"]] == ["lyon/press-c", "lyon/press-d"]
    during = [await served(hub, place) for place in PRESSES]
    await step(hub, begun, "promote")
    assert during == [await served(hub, place) for place in PRESSES] == ["3", "2", "2", "2"]


async def test_progress_tells_agents_results_and_gates(hub: Served) -> None:
    """What agents report and what both versions did is there by stage and agent, with each gate's value."""
    await aim(hub, "1")
    await send(hub, PRESSES[0], "1", 30)
    begun = await start(hub, min_results=20, gates=["errors<=10%", "latency_p95<=1.5x", "agreement>=90%"])
    await report(hub, PRESSES[0], begun)
    await report(hub, PRESSES[1], begun, state="fetching", reason="")
    await send(hub, PRESSES[0], "2", 24)
    await send(hub, PRESSES[0], "2", 1, outcome="failed", label=None)
    await send(hub, PRESSES[2], "1", 5)
    found = (await hub.client.get(f"/v1/rollouts/{begun['rollout_id']}")).json()
    now, to_come = found["progress"]
    assert (now["agents"], now["ready"], now["new_results"]) == (2, 1, 25)
    assert (to_come["agents"], to_come["new_results"], to_come["judgements"]) == (4, 0, [])
    errors, latency, agreement = now["judgements"]
    assert (errors["gate"], errors["verdict"], errors["value"]) == ("errors<=10%", "passed", 4.0)
    assert (latency["verdict"], latency["value"], latency["evidence"]) == ("passed", 1.0, 25)
    assert (agreement["verdict"], agreement["needed"]) == ("open", False)
    assert [
        (one["agent"], one["online"], one["mode"], one["state"], one["version_results"])
        for one in found["agents"]
    ] == [
        ("lyon/press-a", True, "serve", "ready", 25),
        ("lyon/press-b", True, "serve", "fetching", 0),
        ("lyon/press-c", True, None, None, 0),
        ("lyon/press-d", True, None, None, 0),
    ]
    assert "lyon/press-b fetching" in found["reason"]


async def test_comparisons_of_a_stage_are_those_made_in_it(hub: Served) -> None:
    """What agents compared in an earlier stage does not count again, nor is lost by one that begins anew."""
    await aim(hub, "1")
    begun = await start(hub, stages=["internal/shadow:50%", "shadow"], gates=["agreement>=50%"])
    await report(hub, PRESSES[0], begun, compared=10, agreed=8)
    await report(hub, PRESSES[1], begun, compared=6, agreed=6)
    address = f"/v1/rollouts/{begun['rollout_id']}"
    assert (await hub.client.get(address)).json()["progress"][0]["new_results"] == 16
    await step(hub, begun, "promote")
    assert (await hub.client.get(address)).json()["progress"][1]["new_results"] == 0
    await report(hub, PRESSES[0], begun, compared=15, agreed=12)
    await report(hub, PRESSES[1], begun, compared=2, agreed=1)
    then, now = (await hub.client.get(address)).json()["progress"]
    assert (then["new_results"], now["new_results"]) == (16, 7)
    assert now["judgements"][0]["value"] == pytest.approx(100 * 5 / 7)


async def test_an_agent_that_starts_again_is_judged_by_what_it_compared_since(hub: Served) -> None:
    """However soon it has compared more than before: the few jobs of a hundred on which both versions differ
    are not held against the ten that it would seem to have."""
    await aim(hub, "1")
    begun = await start(hub, stages=["internal/shadow:50%", "shadow"], gates=["agreement>=95%"])
    await report(hub, PRESSES[0], begun, compared=100, agreed=100, life=11)
    await step(hub, begun, "promote")
    await report(hub, PRESSES[0], begun, compared=111, agreed=108, life=12)
    now = (await hub.client.get(f"/v1/rollouts/{begun['rollout_id']}")).json()["progress"][1]
    (agreement,) = now["judgements"]
    assert (now["new_results"], agreement["verdict"]) == (111, "passed")
    assert agreement["value"] == pytest.approx(100 * 108 / 111)


async def test_failures_that_no_result_tells_of_count(hub: Served) -> None:
    """A task of the hub's on which the model fails leaves no result: its agent tells. What failed in a stage
    before is not held against this one."""
    await aim(hub, "1")
    begun = await start(hub, stages=["internal", "100%"], gates=["errors<=10%"], min_results=100)
    await send(hub, PRESSES[0], "2", 18)
    await report(hub, PRESSES[0], begun, unrecorded=2, life=5)
    address = f"/v1/rollouts/{begun['rollout_id']}"
    now = (await hub.client.get(address)).json()["progress"][0]
    assert (now["new_results"], now["judgements"][0]["value"]) == (20, 10.0)
    await step(hub, begun, "promote")
    await report(hub, PRESSES[0], begun, unrecorded=3, life=5)
    await report(hub, PRESSES[1], begun, unrecorded=1, life=6)
    assert (await hub.client.get(address)).json()["progress"][1]["new_results"] == 2


@pytest.mark.parametrize("count", [-5, 10**30])
async def test_what_no_agent_can_have_counted_does_no_harm(hub: Served, count: int) -> None:
    """One agent that has lost its mind leaves the rollout readable, and takes nothing from the others."""
    await aim(hub, "1")
    begun = await start(hub, stages=["internal/shadow", "100%"], gates=["agreement>=50%", "errors<=1%"])
    said = {"compared": count, "agreed": count, "unrecorded": count}
    await report(hub, PRESSES[0], begun, **said)
    await report(hub, PRESSES[1], begun, compared=7, agreed=7)
    answer = await hub.client.get(f"/v1/rollouts/{begun['rollout_id']}")
    assert answer.status_code == 200
    assert answer.json()["progress"][0]["new_results"] >= 7
    await step(hub, begun, "promote")


async def test_results_of_agents_that_are_not_exposed_are_no_evidence(hub: Served) -> None:
    """One that serves the version already by a target of its own passes no stage for the others."""
    await aim(hub, "1")
    await aim(hub, "2", "agent=press-c")
    begun = await start(hub, gates=["errors<=1%"], min_results=10)
    for place in PRESSES[:2]:
        await report(hub, place, begun)
    await send(hub, PRESSES[2], "2", 30)
    found = (await hub.client.get(f"/v1/rollouts/{begun['rollout_id']}")).json()
    assert [one["new_results"] for one in found["progress"]] == [0, 0]
    assert "0 of 10 results" in found["reason"]
    await send(hub, PRESSES[0], "2", 3)
    found = (await hub.client.get(f"/v1/rollouts/{begun['rollout_id']}")).json()
    assert found["progress"][0]["new_results"] == 3


async def test_rollouts_are_listed_by_model_and_state(hub: Served, tmp_path: Path) -> None:
    """The active ones first, then those that ended last."""
    await pushed(hub, package(tmp_path, name="ocr"), name="ocr")
    first = await start(hub, "1")
    await step(hub, first, "rollback")
    second = await start(hub, "2")
    await step(hub, second, "rollback")
    other = await start(hub, "1", model="ocr")

    async def listed(**query: str) -> list[str]:
        found = (await hub.client.get("/v1/rollouts", params=query)).json()["rollouts"]
        return [one["rollout_id"] for one in found]

    ids = [one["rollout_id"] for one in (other, second, first)]
    assert await listed() == ids
    assert await listed(model="defects") == ids[1:]
    assert await listed(state="running") == ids[:1]
    assert await listed(state="completed") == []


async def test_a_rollout_that_makes_no_sense_is_refused(hub: Served) -> None:
    """What is wrong is named: a stage, a gate, the selector, a version unknown or served already."""
    await aim(hub, "1")
    good = {"model": "defects", "version": "2", "stages": ["100%"]}
    for fault, where in (
        ({"stages": ["5%", "0%"]}, "stages/1"),
        ({"gates": ["errors<=1%", "speed>9000"]}, "gates/1"),
        ({"selector": "lyon"}, "selector"),
        ({"stages": []}, "stages"),
        ({"min_results": 0}, "min_results"),
        ({"on_fail": "shrug"}, "on_fail"),
        ({"version": "1"}, "version"),
    ):
        answer = await hub.client.post("/v1/rollouts", json=good | fault)
        problem(answer, 422, "invalid")
        assert [one["where"] for one in answer.json()["errors"]] == [where]
    for unknown in ({"version": "9"}, {"model": "ocr"}):
        problem(await hub.client.post("/v1/rollouts", json=good | unknown), 404, "not-found")
    assert (await hub.client.get("/v1/rollouts")).json() == {"rollouts": []}


async def test_a_model_is_rolled_out_once_at_a_time(hub: Served) -> None:
    """A second rollout, a change of its target and the removal of its version are refused meanwhile."""
    await aim(hub, "1")
    begun = await start(hub)
    body = {"model": "defects", "version": "3", "stages": ["100%"]}
    problem(await hub.client.post("/v1/rollouts", json=body), 409, "rollout-underway")
    changed = await hub.client.put("/v1/targets/defects", json={"version": "3"})
    problem(changed, 409, "rollout-underway")
    problem(await hub.client.delete("/v1/targets/defects"), 409, "rollout-underway")
    for version in ("1", "2"):
        problem(await hub.client.delete(at(version=version)), 409, "in-use")
    await aim(hub, "3", "site=york")  # of others' agents it is free
    await step(hub, begun, "rollback")
    assert (await hub.client.delete(at(version="2"))).status_code == 200
    await aim(hub, "3")


async def test_what_is_over_is_over(hub: Served) -> None:
    """No step is taken on a rollout that has ended, nor for a stage that it has left."""
    begun = await start(hub)
    await step(hub, begun, "promote", stage=0)
    address = f"/v1/rollouts/{begun['rollout_id']}"
    again = await hub.client.post(f"{address}/promote", json={"stage": 0})
    assert "stage 1" in problem(again, 409, "rollout-over")
    await step(hub, begun, "rollback", reason="enough")
    for what in ("promote", "pause", "resume", "rollback"):
        late = await hub.client.post(f"{address}/{what}", json={})
        assert "rolled back: enough" in problem(late, 409, "rollout-over")
    unknown = f"/v1/rollouts/{begun['rollout_id'][:-1]}x"
    problem(await hub.client.get(unknown), 422, "invalid")
    problem(await hub.client.get(f"/v1/rollouts/{sha256(b'')[:32]}"), 404, "not-found")


async def test_the_picture_of_the_fleet_shows_rollouts(hub: Served) -> None:
    """Dashboards see those under way and the last that ended; Prometheus how many there are of each state."""
    await aim(hub, "1")
    ended = await start(hub, "3")
    await step(hub, ended, "rollback")
    begun = await start(hub)
    picture = (await hub.app.state.snapshots.get()).picture
    assert [one.rollout_id for one in picture.rollouts] == [begun["rollout_id"], ended["rollout_id"]]
    assert picture.rollouts[0].progress[0].agents == 2
    told = (await hub.client.get("/metrics")).text
    assert 'backhaul_rollouts{state="running"} 1.0' in told
    assert 'backhaul_rollouts{state="rolled_back"} 1.0' in told
    assert 'backhaul_rollouts{state="completed"} 0.0' in told
