"""`backhaul rollout`, run as a command against a hub's answers and against a real hub."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.integration import api_server, shipped
from tests.integration.api_server import Served, join, telemetry
from tests.integration.test_operator import Ran, backhaul

ID = "01990d8a-6f2b-7c41-9d3e-5b8f0a1c2d3e"
AT = "2026-01-05T08:00:00Z"


@dataclass
class Played:
    """A hub that gives answers of a test's making over real HTTP."""

    url: str = ""
    answers: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)
    """By `METHOD /path`: what it answers, the last again and again. Status 0: no answer at all."""
    asked: list[tuple[str, Any]] = field(default_factory=list)

    def answer(self, request: str, body: Any) -> tuple[int, Any]:
        self.asked.append((request, body))
        waiting = self.answers.get(request.partition("?")[0], [(404, {"detail": "there is no such thing"})])
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]

    def bodies(self, request: str) -> list[Any]:
        return [body for one, body in self.asked if one == request]

    async def run(self, *words: str) -> Ran:
        return await backhaul(None, "rollout", *words, BACKHAUL_HUB=self.url)


@pytest.fixture
def played() -> Iterator[Played]:
    found = Played()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["content-length"])) or b"null"))

        def _answer(self, body: Any) -> None:
            status, answer = found.answer(f"{self.command} {self.path}", body)
            if status == 0:
                self.close_connection = True
                return
            said = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(said)))
            if status == 503:
                self.send_header("retry-after", "60")  # longer than a command has patience for
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_port}"
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        serving.start()
        with contextlib.ExitStack() as stack:
            stack.callback(serving.join)
            stack.callback(server.shutdown)
            yield found


def judgement(gate: str = "errors<=1%", verdict: str = "passed", **said: Any) -> dict[str, Any]:
    return {
        "gate": gate,
        "verdict": verdict,
        "value": 0.2,
        "evidence": 540,
        "said": "errors 0.2% of 540 results, within errors<=1%",
        "needed": True,
    } | said


def progress(stage: int, judgements: tuple[dict[str, Any], ...] = (), **said: Any) -> dict[str, Any]:
    return {
        "stage": stage,
        "agents": 0,
        "ready": 0,
        "new_results": 0,
        "judgements": list(judgements),
    } | said


def event(kind: str, reason: str = "", **said: Any) -> dict[str, Any]:
    return {
        "at": AT,
        "kind": kind,
        "stage": 0,
        "by": "policy",
        "reason": reason,
        "evidence": {},
    } | said


def rollout(**said: Any) -> dict[str, Any]:
    """One in the second of its three stages."""
    return {
        "rollout_id": ID,
        "model": "defects",
        "version": "4",
        "selector": "",
        "stages": ["internal", "5%", "100%"],
        "gates": ["errors<=1%", "agreement>=95%"],
        "min_results": 100,
        "soak_s": 600.0,
        "patience_s": None,
        "on_fail": "roll_back",
        "state": "running",
        "stage": 1,
        "stage_since": AT,
        "started_at": AT,
        "ended_at": None,
        "reason": "57 of 100 results are there",
        "progress": [
            progress(0, agents=2, ready=2, new_results=540),
            progress(
                1,
                (
                    judgement(),
                    judgement("agreement>=95%", "open", value=None, evidence=0, needed=False),
                ),
                agents=7,
                ready=6,
                new_results=57,
            ),
            progress(2, agents=140),
        ],
        "agents": [
            {
                "agent": "lyon/press-a",
                "online": True,
                "mode": "serve",
                "state": "ready",
                "reason": None,
                "version_results": 51,
            },
            {
                "agent": "gdansk/jetson",
                "online": False,
                "mode": "serve",
                "state": "fetching",
                "reason": None,
                "version_results": 6,
            },
        ],
        "history": [
            event("started", "asked for", by="operator"),
            event("promoted", "all gates hold"),
        ],
    } | said


# Asking


async def test_what_is_started_is_what_was_said(played: Played) -> None:
    """Stages, gates, agents, times and numbers reach the hub as they were written, durations in seconds."""
    played.answers = {"POST /v1/rollouts": [(201, rollout(stage=0))]}
    words = ["start", "defects@4", "--stages", "internal, seed:10%,100%/traffic:25%", "--where", "site=lyon"]
    words += ["--gate", "errors<=1%", "--gate", "drift<=0.1", "--soak", "10m", "--min-results", "50"]
    ran = await played.run(*words, "--patience", "2h", "--on-fail", "pause")
    assert ran.status == 0, ran.err
    assert played.bodies("POST /v1/rollouts") == [
        {
            "model": "defects",
            "version": "4",
            "selector": "site=lyon",
            "stages": ["internal", "seed:10%", "100%/traffic:25%"],
            "gates": ["errors<=1%", "drift<=0.1"],
            "min_results": 50,
            "soak_s": 600.0,
            "patience_s": 7200.0,
            "on_fail": "pause",
        }
    ]
    assert ran.out == f"{ID}: defects to 4 is running, stage 1 of 3, internal.\n"


async def test_what_is_not_said_is_left_to_the_hub(played: Played) -> None:
    """Gates, times and numbers that nobody named are the hub's own; a version may stand by itself."""
    played.answers = {"POST /v1/rollouts": [(201, rollout(stage=0))]}
    ran = await played.run("start", "defects", "4", "--stages", "100%", "--json")
    assert ran.lines == [rollout(stage=0)]
    assert played.bodies("POST /v1/rollouts") == [
        {"model": "defects", "version": "4", "selector": "", "stages": ["100%"]}
    ]


@pytest.mark.parametrize("words", [("defects",), ("defects@4", "4"), ("defects@",)])
async def test_a_rollout_is_to_one_version(played: Played, words: tuple[str, ...]) -> None:
    """Without a version, or with two, nothing is asked and it is said how one is named."""
    ran = await played.run("start", *words, "--stages", "100%")
    assert (ran.status, "defects@VERSION" in ran.err) == (1, True), ran.err
    assert not played.asked


@pytest.mark.parametrize("change", ["pause", "resume", "rollback"])
async def test_a_change_is_asked_with_its_reason(played: Played, change: str) -> None:
    """What an operator does is done with his reason, and what has become of the rollout is told."""
    request = f"POST /v1/rollouts/{ID}/{change}"
    played.answers = {request: [(200, rollout(state="paused"))]}
    ran = await played.run(change, ID, "--reason", "the line is down")
    assert ran.out == f"{ID}: defects to 4 is paused, stage 2 of 3, 5%.\n"
    assert played.bodies(request) == [{"reason": "the line is down", "stage": None}]


async def test_a_promotion_is_never_two(played: Played) -> None:
    """However often it is asked because no answer came, it is from the stage that the operator saw."""
    request = f"POST /v1/rollouts/{ID}/promote"
    promoted = (200, rollout(stage=2))
    played.answers = {f"GET /v1/rollouts/{ID}": [(200, rollout())], request: [(0, None), (0, None), promoted]}
    ran = await played.run("promote", ID)
    assert ran.out == f"{ID}: defects to 4 is running, stage 3 of 3, 100%.\n", ran.err
    assert played.bodies(request) == [{"reason": "", "stage": 1}] * 3


async def test_a_refusal_says_what_is_wrong_and_where(played: Played) -> None:
    """A stage that cannot be read is told by its place; the status is 1."""
    problem = {
        "detail": "'5' is no stage",
        "errors": [{"where": "stages[1]", "detail": "write 5% or a ring's name"}],
    }
    played.answers = {"POST /v1/rollouts": [(422, problem)]}
    ran = await played.run("start", "defects@4", "--stages", "internal,5")
    assert ran.status == 1
    assert ran.err.splitlines() == ["backhaul: '5' is no stage", "  stages[1]: write 5% or a ring's name"]


# Looking


async def test_a_rollout_is_shown_stage_by_stage(played: Played) -> None:
    """Where it is, what its gates say and by how many results, each agent, and what was done why."""
    played.answers = {f"GET /v1/rollouts/{ID}": [(200, rollout())]}
    ran = await played.run("show", ID)
    assert ran.status == 0, ran.err
    lines = [" ".join(line.split()) for line in ran.out.splitlines()]
    for seen in (
        f"defects to 4 {ID}",
        "Why 57 of 100 results are there",
        "Each stage 100 results, 10 min or more",
        "✓ internal 2 2 540",
        "▶ 5% 7 6 57 1 of 1 passed",
        "100% 140 0",
        "errors<=1% passed 540 errors 0.2% of 540 results, within errors<=1%",
        "lyon/press-a online serve ready 51",
        "gdansk/jetson offline serve fetching 6",
        "2026-01-05 08:00:00 UTC promoted internal policy all gates hold",
    ):
        assert seen in lines, ran.out
    assert any(line.startswith("agreement>=95% not needed") for line in lines)


async def test_rollouts_are_listed(played: Played) -> None:
    """Of one model or in one state, as was asked; without a word, all."""
    done = rollout(state="completed", stage=2, ended_at=AT, reason="every stage was passed")
    played.answers = {"GET /v1/rollouts": [(200, {"rollouts": [rollout(), done]})]}
    ran = await played.run()
    for seen in (ID, "running", "defects", "all agents", "2 of 3, 5%", "completed", "every stage was passed"):
        assert seen in ran.out, ran.out
    await played.run("list", "--model", "defects", "--state", "running")
    assert played.asked[-1][0] == "GET /v1/rollouts?model=defects&state=running"
    played.answers = {"GET /v1/rollouts": [(200, {"rollouts": []})]}
    assert (await played.run("list")).out == "No rollouts.\n"


@pytest.mark.parametrize(("state", "status"), [("completed", 0), ("rolled_back", 1), ("paused", 3)])
async def test_the_status_of_who_looked_on_is_how_it_ended(played: Played, state: str, status: int) -> None:
    """--watch tells each step once and ends with the rollout, so that a release can wait for it."""
    ended = rollout(state=state, history=[*rollout()["history"], event(state, "drift is 0.4")])
    played.answers = {f"GET /v1/rollouts/{ID}": [(200, rollout()), (200, ended)]}
    ran = await played.run("show", ID, "--watch")
    assert ran.status == status, ran.err
    assert [line.partition("UTC  ")[2] for line in ran.out.splitlines()] == [
        "started, by the operator: asked for",
        "promoted, by the policy: all gates hold",
        f"{state.replace('_', ' ')}, by the policy: drift is 0.4",
    ]


async def test_a_hub_that_is_away_does_not_end_the_watch(played: Played) -> None:
    """No answer for a while is no failed rollout: it is said, and waited for."""
    ended = rollout(state="completed", stage=2, ended_at=AT)
    started = (201, rollout(stage=0, history=[]))
    played.answers = {
        "POST /v1/rollouts": [started],
        f"GET /v1/rollouts/{ID}": [(200, rollout()), *[(503, {"detail": "no database"})] * 2, (200, ended)],
    }
    words = ("start", "defects@4", "--stages", "internal,5%,100%", "--watch", "--json")
    ran = await played.run(*words)
    assert (ran.status, ran.err.count("Waiting for it.")) == (0, 1), ran.err
    assert [line["kind"] for line in ran.lines] == ["started", "promoted"]
    gone = await played.run("show", ID.replace("0", "1"), "--watch")
    assert (gone.status, "no such thing" in gone.err) == (1, True)


# With a real hub


@pytest.fixture
async def hub(database: str, tmp_path: Path) -> AsyncIterator[Served]:
    """A hub with two versions of a model, the first of which an agent is to serve."""
    async with api_server.serving(database) as served:
        for version in ("1", "2"):
            body = shipped.package(tmp_path, version=version, graph=version.encode())
            await shipped.pushed(served, body, version=version)
        await shipped.aim(served, "1")
        await join(served.pool, telemetry=telemetry(labels={"ring": "internal"}))
        yield served


async def begun(hub: Served, *words: str) -> str:
    """The id of a rollout of two stages that was started."""
    started = await backhaul(
        hub, "rollout", "start", "defects@2", "--stages", "internal,100%", "--json", *words
    )
    assert started.status == 0, started.err
    rollout_id: str = started.lines[0]["rollout_id"]
    return rollout_id


async def test_a_rollout_is_led_by_hand(hub: Served) -> None:
    """By its id or its model it is shown, paused, resumed and promoted to its end: the new target."""
    rollout_id = await begun(hub, "--soak", "1h", "--gate", "errors <= 2 %")
    listed = (await backhaul(hub, "rollout")).out
    assert rollout_id in listed
    assert "running" in listed
    shown = " ".join((await backhaul(hub, "rollout", "show", "defects")).out.split())
    for seen in ("▶ internal 1 0 0", "errors<=2% open", "lyon/press-a online serve waiting"):
        assert seen in shown, shown
    for word, said in (
        ("pause", "is paused, stage 1 of 2, internal."),
        ("resume", "is running, stage 1 of 2, internal."),
        ("promote", "is running, stage 2 of 2, 100%."),
        ("promote", "is completed."),
    ):
        ran = await backhaul(hub, "rollout", word, rollout_id, "--reason", f"a reason to {word}")
        assert ran.out == f"{rollout_id}: defects to 2 {said}\n", ran.err
    over = await backhaul(hub, "rollout", "rollback", "defects")
    assert (over.status, "is completed" in over.err) == (1, True)
    assert "a reason to resume" in (await backhaul(hub, "rollout", "show", rollout_id)).out
    (target,) = (await hub.client.get("/v1/targets")).json()["targets"]
    assert target["version"] == "2"


async def test_who_looks_on_sees_it_go_back(hub: Served) -> None:
    """A rollout that is taken back while somebody looks on ends the looking, with status 1."""
    rollout_id = await begun(hub)
    looking = asyncio.create_task(backhaul(hub, "rollout", "show", rollout_id, "--watch"))
    await backhaul(hub, "rollout", "rollback", rollout_id, "--reason", "seen on the floor")
    looked = await looking
    assert looked.status == 1, looked.err
    assert looked.out.splitlines()[-1].endswith("rolled back, by the operator: seen on the floor")
    assert "rolled back" in (await backhaul(hub, "rollout", "list", "--state", "rolled_back")).out
    assert (await backhaul(hub, "rollout", "list", "--state", "running")).out == "No rollouts.\n"


async def test_what_cannot_be_begun_is_told(hub: Served) -> None:
    """What cannot be read, is not there or is under way is refused with a sentence."""
    for words, said in (
        (("start", "defects@2", "--stages", "internal,5%%"), "stages/1"),
        (("start", "defects@2", "--stages", "100%", "--gate", "speed<=1"), "gates/0"),
        (("start", "defects@9", "--stages", "100%"), "no defects@9 was pushed"),
        (("start", "defects@1", "--stages", "100%"), "already"),
        (("show", ID), "there is no rollout"),
        (("show", "this"), "neither an id nor a model with a rollout"),
        (("list", "--state", "done"), "state"),
    ):
        ran = await backhaul(hub, "rollout", *words)
        assert ran.status == 1, words
        assert said in ran.err, ran.err
        assert "Traceback" not in ran.err
    await begun(hub)
    twice = await backhaul(hub, "rollout", "start", "defects@2", "--stages", "100%")
    assert (twice.status, "is being rolled out already" in twice.err) == (1, True)
