"""Three rollouts on the demo's plants: one that passes, one that its gate stops, and one that a plant takes
back by itself while it is cut off from the cloud. `backhaul demo --rollouts` plays them.

    1.1.0   is as good as 1.0.0: shadowed at plant-a, then served there, then everywhere
    1.2.0   has its labels in another order: shadowed at plant-a, where the two disagree
    1.3.0   takes no picture of the cameras' size: served at plant-b, whose link is cut at that moment

All of it is done with the commands that an operator has. The cameras publish all the while, and in the end
their books must balance.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import psycopg

from demo import background, report, system
from demo.floor import Floor
from shared import topics

FIRST: Final = "1.0.0"
GOOD: Final = "1.1.0"
SWAPPED: Final = "1.2.0"
BLIND: Final = "1.3.0"

RATE_PER_S: Final = 25.0
"""Pictures of each plant: enough that a stage has its evidence in seconds."""
EVIDENCE: Final = ("--min-results", "60", "--soak", "1s")
GATES: Final = ("errors<=1%", "latency_p95<=5x", "drift<=0.3", "agreement>=95%")
"""Of latency little is asked: a machine that plays three plants and their cloud is busy with itself."""
PATIENCE_S: Final = 90.0
"""How long anything may take here."""
LOOK_EVERY_S: Final = 0.1
AFTERWARDS_S: Final = 1.5
"""The cameras go on for so long after the last rollout."""

BY_VERSION: Final = "SELECT version, count(*) FROM results GROUP BY version"


class Failed(Exception):
    """The rollouts did not go as they should; the message says what is different."""


class Ended(msgspec.Struct, frozen=True):
    """How a rollout ended."""

    version: str
    stages: list[str]
    state: str
    stage: str
    """In which it ended."""
    reason: str
    seconds: float
    results: int
    """By that version, of all agents, in PostgreSQL when the cameras had stopped."""


class Outcome(msgspec.Struct, frozen=True):
    """What came of them all, and the cameras' books."""

    rollouts: list[Ended]
    books: report.Report

    @property
    def problems(self) -> list[str]:
        """What is not as it should be; nothing if all is well."""
        found = list(self.books.problems)
        by_version = {one.version: one for one in self.rollouts}
        good, swapped, blind = (by_version[version] for version in (GOOD, SWAPPED, BLIND))
        for one, state in ((good, "completed"), (swapped, "rolled_back"), (blind, "rolled_back")):
            if one.state != state:
                found.append(f"the rollout of {one.version} ended {one.state}, not {state}: {one.reason}")
        if not good.results:
            found.append(f"{GOOD} was rolled out, and no result is of it")
        if swapped.results:
            found.append(f"{SWAPPED} was only to be shadowed, and {swapped.results} results are of it")
        if blind.results != self.books.failed:
            found.append(f"{self.books.failed} jobs failed, and {blind.results} results are of {BLIND}")
        return found


class Packages:
    """The model packages, made of the demo's one: they differ in what their manifests say."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._first = system.MODELS / system.MODEL
        self._manifest = (self._first / "model.toml").read_text(encoding="utf-8")

    def make(self, version: str) -> Path:
        """The folder of a version."""
        folder = self._home / version
        shutil.copytree(self._first, folder)
        manifest = self._said('version = "1.0.0"', f'version = "{version}"', self._manifest)
        if version == SWAPPED:
            manifest = self._said('"ok", "scratch", "pit"', '"pit", "ok", "scratch"', manifest)
        if version == BLIND:
            manifest += "\n[limits]\nmax_pixels = 4096  # the cameras' pictures have 16,384\n"
        (folder / "model.toml").write_text(manifest, encoding="utf-8")
        return folder

    def _said(self, before: str, after: str, manifest: str) -> str:
        assert before in manifest, before
        return manifest.replace(before, after)


class Operator(NamedTuple):
    """Somebody at a terminal."""

    hub: str
    """Its address."""
    say: Callable[[str], None]

    async def does(self, *words: str | Path) -> dict[str, Any]:
        """Run `backhaul` with these words; what it answers. Raises Failed."""
        shown = " ".join(word.name if isinstance(word, Path) else _quoted(word) for word in words)
        self.say(f"$ backhaul {shown}")
        answer: dict[str, Any] = msgspec.json.decode(await _backhaul(*words, "--hub", self.hub, "--json"))
        return answer


async def keygen(key: Path) -> str:
    """Make a key to sign packages with; returns the public one."""
    answer = msgspec.json.decode(await _backhaul("models", "keygen", key, "--json"))
    return str(answer["key"])


class Rollouts:
    """Plays the three rollouts on a system whose agents trust `key`'s public key."""

    def __init__(self, whole: system.System, key: Path, say: Callable[[str], None]) -> None:
        self._whole = whole
        self._key = key
        self._say = say
        self._packages = Packages(whole.directory / "packages")
        self._operator = Operator(whole.hub.url, say)
        self._floor = Floor(whole, rate_per_s=RATE_PER_S)
        self._near, self._far = list(whole.sites)[:2]
        self._ended: list[tuple[dict[str, Any], float]] = []

    async def run(self) -> Outcome:
        """Play them, let everything come to rest, and balance the books. Raises Failed."""
        try:
            async with asyncio.timeout(4 * PATIENCE_S):
                await self._serve_first()
                async with self._floor.at_work(), background.beside(self._watch()):
                    await self._that_passes()
                    await self._that_its_gate_stops()
                    await self._that_a_plant_takes_back()
                    await asyncio.sleep(AFTERWARDS_S)
                    self._say("the cameras stop; waiting for the last replies and records")
                    books = await self._floor.close()
        except TimeoutError:
            raise Failed("the rollouts took too long") from None
        results = await self._results()
        return Outcome([_ended(last, took, results) for last, took in self._ended], books)

    # The acts

    async def _serve_first(self) -> None:
        await self._push(FIRST)
        await self._operator.does("models", "serve", f"{system.MODEL}@{FIRST}")
        for place in self._whole.agents:
            await self._until(
                f"{place} serves {FIRST}",
                lambda told: any(model["version"] == FIRST for model in told["models"]),
                place,
            )

    async def _that_passes(self) -> None:
        stages = f"site={self._near}/shadow,site={self._near},100%"
        rollout = await self._start(GOOD, stages)
        await self._watch_to_its_end(rollout)

    async def _that_its_gate_stops(self) -> None:
        rollout = await self._start(SWAPPED, f"site={self._near}/shadow,100%")
        await self._watch_to_its_end(rollout)

    async def _that_a_plant_takes_back(self) -> None:
        far = self._whole.sites[self._far]
        place = topics.Agent(self._far, system.EDGE)
        rollout = await self._start(BLIND, f"site={self._far},100%")
        await self._until(
            f"{place} serves {BLIND}", lambda told: _trial(told) in ("ready", "rolled_back"), place
        )
        self._say(f"{self._far} is cut off")
        far.cut()
        self._floor.notebook.cut(self._far, time.monotonic())
        await self._until(f"{place} is back by itself", lambda told: _trial(told) == "rolled_back", place)
        self._say(f"{place} has gone back by itself, without a word of the hub")
        replied = self._floor.notebook.replied[self._far]
        await self._floor.notebook.until(
            lambda: self._floor.notebook.replied[self._far] >= replied + RATE_PER_S
        )
        self._say(f"{self._far} has its link again")
        self._floor.notebook.healed(self._far)
        await far.heal()
        await self._watch_to_its_end(rollout)

    # How it is done

    async def _push(self, version: str) -> None:
        folder = await asyncio.to_thread(self._packages.make, version)
        await self._operator.does("models", "push", folder, "--key", self._key)

    async def _start(self, version: str, stages: str) -> dict[str, Any]:
        await self._push(version)
        gates = [word for gate in GATES for word in ("--gate", gate)]
        return await self._operator.does(
            "rollout", "start", f"{system.MODEL}@{version}", "--stages", stages, *gates, *EVIDENCE
        )

    async def _watch_to_its_end(self, rollout: Mapping[str, Any]) -> None:
        began, told = time.monotonic(), 0
        while True:
            now = await self._whole.hub.ask(f"/v1/rollouts/{rollout['rollout_id']}")
            if now is not None:
                for event in now["history"][told:]:
                    why = f": {event['reason']}" if event["reason"] else ""
                    self._say(f"rollout of {now['version']}: {event['kind']}{why}")
                told = max(told, len(now["history"]))
                if now["ended_at"] is not None:
                    self._ended.append((now, time.monotonic() - began))
                    return
                if time.monotonic() - began > PATIENCE_S:
                    raise Failed(f"the rollout of {now['version']} does not end: {now['reason']}")
            await asyncio.sleep(LOOK_EVERY_S)

    async def _until(
        self, what: str, holds: Callable[[dict[str, Any]], bool], place: topics.Agent
    ) -> dict[str, Any]:
        """What an agent says of itself once that holds. Raises Failed."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    told = await self._whole.agents[place].ask("/status")
                    if told is not None and holds(told):
                        return dict(told)
                    await asyncio.sleep(LOOK_EVERY_S)
        except TimeoutError:
            raise Failed(f"it did not come to that: {what}") from None

    async def _watch(self) -> None:
        """Make sure that all parts run."""
        while True:
            for part in self._whole.parts:
                if not part.running:
                    raise Failed(f"{part.name} has ended; its log is {part.log}")
            await asyncio.sleep(1.0)

    async def _results(self) -> dict[str, int]:
        async with await psycopg.AsyncConnection.connect(self._whole.dsn) as connection:
            return dict(await (await connection.execute(BY_VERSION)).fetchall())


def _trial(told: Mapping[str, Any]) -> str:
    """How far an agent is with what it tries."""
    return next((str(one["state"]) for one in told["telemetry"].get("trials", ())), "waiting")


def _ended(last: Mapping[str, Any], took: float, results: Mapping[str, int]) -> Ended:
    return Ended(
        version=last["version"],
        stages=last["stages"],
        state=last["state"],
        stage=last["stages"][last["stage"]],
        reason=last["reason"],
        seconds=round(took, 1),
        results=results.get(last["version"], 0),
    )


def _quoted(word: str) -> str:
    return f"'{word}'" if set(word) & set("<>&;* ") else word


async def _backhaul(*words: str | Path) -> bytes:
    """The standard output of the command. Raises Failed."""
    command = Path(sysconfig.get_path("scripts")) / "backhaul"
    process = await asyncio.create_subprocess_exec(
        sys.executable, command, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    if process.returncode:
        raise Failed(f"backhaul {' '.join(map(str, words))}: {(errors or output).decode().strip()}")
    return output
